"""The packages of `./build.sh package` on a cluster whose workers have a bare Python and Java, nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from cluster import bare_environment, spark_program, standalone_cluster

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"

PROBE = '''
"""Where each of two workers takes its packages from, and whether what ships with lensspark reaches it."""
import json, os, sys
from lensspark.session import spark_session

def look(_):
    import astropy, lensspark, numpy, pyarrow, scipy
    from lensspark.config import load, resource
    basis = numpy.load(resource("data/eigenbasis.npz"))
    yield {
        "lensspark": lensspark.__file__, "numpy": numpy.__file__, "pyarrow": pyarrow.__version__,
        "python": sys.version_info[:2], "prefix": sys.prefix, "folder": os.getcwd(),
        "threshold": load().score.threshold, "basis": sorted(basis.files),
    }

spark = spark_session("probe")
frame = spark.range(100, numPartitions=2).mapInPandas(lambda parts: (part * 2 for part in parts), "id long")
seen = spark.sparkContext.parallelize(range(2), 2).mapPartitions(look).collect()
print("PROBE" + json.dumps({"sum": frame.agg({"id": "sum"}).first()[0], "workers": seen}))
'''


def pinned(package: str) -> str:
    return re.search(rf"^{package}==(.+)$", (ROOT / "conf/constraints.txt").read_text(), re.MULTILINE)[1]


pytestmark = pytest.mark.skipif(
    version("pyarrow") != pinned("pyarrow"), reason="dist/ holds the packages of conf/constraints.txt"
)


@pytest.fixture(scope="module")
def packages() -> list[str]:
    """spark-submit's options for the packages, made afresh (the environment only where its versions changed)."""
    subprocess.run([ROOT / "build.sh", "package"], check=True, capture_output=True, cwd=ROOT)
    return [
        "--py-files", str(DIST / "lensspark-py.zip"),
        "--archives", f"{DIST / 'lensspark-env.tar.gz'}#env",
        "--conf", "spark.executorEnv.PYTHONPATH=./env/lib",
        "--conf", f"spark.pyspark.python=python{sys.version_info[0]}.{sys.version_info[1]}",
        "--conf", f"spark.pyspark.driver.python={sys.executable}",
        "--conf", "spark.executor.memory=900m",
    ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def submit(master: str, options: list[str], *arguments: str | Path) -> str:
    """spark-submit's stdout. The working folder has no lensspark in it, so that only the packages can bring it."""
    environment = bare_environment() | {"SPARK_CONF_DIR": str(ROOT / "conf")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # as `activate` does
    command = [spark_program("spark-submit"), "--master", master, *options, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=os.path.dirname(arguments[0]), capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr[-4000:]
    return done.stdout


def test_workers_need_nothing_but_python_and_java(cluster, packages, tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    said = submit(cluster.url, packages, tmp_path / "probe.py")
    found = json.loads(re.search("^PROBE(.+)$", said, re.MULTILINE)[1])
    assert found["sum"] == 9900
    for worker in found["workers"]:
        work = os.path.realpath(worker["folder"])
        assert work.startswith(os.path.realpath(cluster.folder))
        assert os.path.realpath(worker["numpy"]).startswith(f"{work}/env/lib/")
        assert "lensspark-py.zip" in worker["lensspark"]
        assert worker["prefix"] != sys.prefix
        assert tuple(worker["python"]) == sys.version_info[:2]
        assert worker["pyarrow"] == pinned("pyarrow")
        assert 0 < worker["threshold"] < 1 and worker["basis"]


def test_search_gives_the_ledger_of_local_mode(cluster, packages, tmp_path):
    survey = tmp_path / "survey"
    subprocess.run([sys.executable, ROOT / "jobs/simulate.py", "--out", survey, "--plates", "2", "--fibres", "300"],
                   check=True)
    local, remote = tmp_path / "local", tmp_path / "remote"
    search = [sys.executable, ROOT / "jobs/predict.py", "--spectra", survey, "--out", local]
    assert subprocess.run(search).returncode in (0, 3)
    submit(cluster.url, packages, ROOT / "jobs/predict.py", "--spectra", survey, "--out", remote)
    import pandas as pd

    expected, found = ledger(local), ledger(remote)
    assert len(expected) > 0
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)  # engines may sum in another order elsewhere


def ledger(run: Path):
    import pandas as pd

    rows = pd.read_parquet(run / "ledger").drop(columns=["run_id"])
    rows["plate"] = rows["plate"].astype(int)
    return rows.sort_values(["plate", "mjd", "fiberid", "run2d"]).reset_index(drop=True)[sorted(rows.columns)]
