"""The jobs through a Spark Connect server, as a Databricks notebook of today has it: the same tables as without."""

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from connect import connect_server
from small_survey import simulate_mixed

from lensspark import config, pipeline, schema
from lensspark.session import EXIT_QUARANTINE

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ["score.engine='openvino'", "report.blind_fakes=2", "output.format=delta"]
KEY = [column.name for column in schema.KEY]
needs_connect = pytest.mark.skipif(not find_spec("grpc_status"), reason="pyspark[connect] is not installed")


@pytest.fixture(scope="module")
def survey(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "redux"
    simulate_mixed(spark, folder, 1, 50)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with connect_server(tmp_path_factory.mktemp("connect")) as address:
        yield address


@pytest.fixture(scope="module")
def runs(spark, survey, server, tmp_path_factory):
    """(classic, remote): a finished run of the test's own session, and one of the job through the server."""
    folder = tmp_path_factory.mktemp("runs")
    run = pipeline.plan(str(survey), str(folder / "classic"), config.load([], SETTINGS))
    assert pipeline.predict(spark, run) == EXIT_QUARANTINE
    chosen = [word for setting in SETTINGS for word in ("--set", setting)]
    done = job("predict", server, "--spectra", survey, "--out", folder / "remote", *chosen)
    assert done.returncode == EXIT_QUARANTINE, done.stderr[-3000:]
    return folder / "classic", folder / "remote"


def job(name, server, *arguments):
    """A job as a process that has no Spark of its own: no Java is on its PATH."""
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    environment |= {"SPARK_REMOTE": server, "PYTHONPATH": str(ROOT), "PATH": "/nowhere"}
    command = [sys.executable, str(ROOT / f"jobs/{name}.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def table(run, name, key=KEY):
    """A run's table in the order of its key; the paths of quarantine's rows name the spectra well enough."""
    rows = pd.read_parquet(run / name)
    if "plate" in rows:
        rows["plate"] = rows["plate"].astype("Int32")
    return rows.sort_values(key).reset_index(drop=True)[sorted(rows.columns)]


@needs_connect
@pytest.mark.parametrize(("name", "key"), [("ledger", KEY), ("candidates", KEY), ("quarantine", ["path", "reason"]),
                                           ("overdensity", ["frame", "bin"])])
def test_a_search_through_the_server_gives_the_tables_of_one_without(runs, name, key):
    classic, remote = (table(run, name, key) for run in runs)
    assert len(classic)
    assert {(run / name / "_delta_log").is_dir() for run in runs} == {name != "overdensity"}
    pd.testing.assert_frame_equal(remote, classic, rtol=1e-6)


@needs_connect
def test_the_run_cards_agree(runs):
    classic, remote = (json.loads((run / "run.json").read_text()) for run in runs)
    for key in ("run_id", "counts", "funnel", "model_sha256", "input_manifest_sha256"):
        assert remote[key] == classic[key]


@needs_connect
def test_a_recut_through_the_server_tightens(runs, server, tmp_path):
    done = job("vet", server, "--run", runs[1], "--out", tmp_path / "recut", "--set", "vetting.min_line_snr=12")
    assert done.returncode == EXIT_QUARANTINE, done.stderr[-3000:]
    before, after = (table(run, "ledger") for run in (runs[1], tmp_path / "recut"))
    assert after[[*KEY, "p_line"]].equals(before[[*KEY, "p_line"]])
    kept = after["veto"] == 0
    assert 0 < kept.sum() < (before["veto"] == 0).sum()
    assert (after.loc[kept, "line_snr"] >= 12).all()


def test_one_module_alone_knows_the_spark_context():
    """Spark Connect has no sparkContext, no RDD and no JVM."""
    classic = {"sparkContext", "rdd", "_jvm", "_jdf", "_jsparkSession", "toJavaRDD"}
    for path in [*(ROOT / "lensspark").rglob("*.py"), *(ROOT / "jobs").glob("*.py"), *(ROOT / "conf").rglob("*.py")]:
        used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not used & classic or path.name == "session.py", f"{path}: {used & classic}"
