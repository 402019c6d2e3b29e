"""The Databricks notebooks run top to bottom on a mock survey, and show what the tables hold."""

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import notebook
import pandas as pd
import pytest
from connect import connect_server
from matplotlib.figure import Figure
from small_survey import simulate_mixed

from lensspark.model import Model

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in notebook.NOTEBOOKS.glob("*.py"))


@pytest.fixture(scope="module")
def survey(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "redux"
    simulate_mixed(spark, folder, 1, 50)
    return str(folder)


@pytest.fixture(scope="module")
def searched(spark, survey, tmp_path_factory):
    """(run's folder, what the notebook displayed)."""
    run = str(tmp_path_factory.mktemp("runs") / "first")
    return Path(run), notebook.run("search", spark, spectra=survey, run=run, settings="score.threshold=0.9")


def test_there_are_the_four():
    assert NAMES == ["candidates", "explore_plate", "search", "train"]


@pytest.mark.parametrize("name", NAMES)
def test_source_format(name):
    """Cells are Python or markdown; markdown and magics stand behind # MAGIC; paths default to Volumes."""
    cells = notebook.cells(name)
    assert len(cells) >= 5 and cells[0].lstrip().startswith("# MAGIC %md")
    text = "\n".join(cells)
    for cell in cells:
        assert cell.strip()
        lines = cell.strip().splitlines()
        magic = [line.startswith("# MAGIC") for line in lines]
        assert all(magic) or not any(magic)
        ast.parse(cell)
    called = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)
              and ast.unparse(node.func) == "dbutils.widgets.text"]
    defaults = [ast.literal_eval(node.args[1]) for node in called]
    assert any(value.startswith("/Volumes/") for value in defaults)
    assert not [value for value in defaults if value.startswith("/") and not value.startswith("/Volumes/")]


def test_explore_counts_the_plate(spark, survey):
    kinds, faults, selected, criteria, figure = notebook.run("explore_plate", spark, spectra=survey, plate="4000")
    assert kinds["n"].sum() == 50 and len(faults) == 0
    assert selected["count"].sum() == 50
    assert criteria["count"].sum() >= selected.set_index("selected")["count"].get(False, 0) > 0
    assert isinstance(figure, Figure) and len(figure.axes[0].lines) == 2


def test_explore_shows_what_cannot_be_trusted(spark, survey):
    """The plate after the last holds the broken files, and nothing to select."""
    kinds, faults, *others = notebook.run("explore_plate", spark, spectra=survey, plate="4001")
    assert len(faults) == 4 and faults["reason"].str.len().gt(5).all()
    assert len(kinds) == 0 and not [shown for shown in others if isinstance(shown, Figure)]


def test_search_shows_the_run_card(searched):
    run, (counts, timings, reasons) = searched
    card = json.loads((run / "run.json").read_text())
    assert dict(zip(counts["what"], counts["spectra"], strict=True)) == card["counts"]
    assert card["counts"]["n_input"] == 54 and card["configuration"]["score"]["threshold"] == 0.9
    assert reasons["count"].sum() == 4 and set(timings["stage"]) == set(card["timings"])


def test_a_search_that_is_refused_says_so(spark, survey, tmp_path):
    with pytest.raises(RuntimeError, match="exit code 2"):
        notebook.run("search", spark, spectra=survey, run=str(tmp_path / "run"), settings="score.threshold=7")
    assert not (tmp_path / "run").exists()


def test_candidates_are_those_of_the_ledger(spark, searched, capsys):
    run, _ = searched
    listed, cuts, figure = notebook.run("candidates", spark, run=str(run))
    ledger = pd.read_parquet(run / "ledger")
    assert len(listed) == (ledger["veto"] == 0).sum() > 0
    assert list(listed["rank"]) == list(range(1, len(listed) + 1))
    hits = ledger[ledger["is_hit"] == True]  # noqa: E712
    assert cuts.set_index("cut").loc["line_snr", "fail"] == (hits["veto"].astype(int) & 2 != 0).sum()
    assert (cuts["alone"] <= cuts["fail"]).all() and isinstance(figure, Figure)
    assert "left after" in capsys.readouterr().out


@pytest.mark.skipif(not (find_spec("petastorm") and find_spec("tensorflow")), reason="needs the extra `train`")
def test_train_leaves_a_model_and_tells_mlflow(spark, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = (tmp_path / "mlruns").as_uri()
    settings = ("training.epochs=1 network.channels=[4,4,8,8] network.heat_block=2 training.batch_size=32 "
                f"training.validation_plates=0.3 training.test_plates=0.3 training.mlflow={address}")
    kinds, history, test = notebook.run("train", spark, data=str(tmp_path / "data"), model=str(tmp_path / "model"),
                                        plates="3", fibres="60", settings=settings)
    assert kinds["count"].sum() > 20 and len(history) == 1
    assert 0 <= test.set_index("on the test plates")["value"]["accuracy"] <= 1
    model = Model.named(str(tmp_path / "model"))
    client = mlflow.MlflowClient(tracking_uri=address)
    (run,) = client.search_runs([client.get_experiment_by_name("lensspark").experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["accuracy"] == history["accuracy"].iloc[0]
    assert {"model/card.json", "model/weights.npz"} <= {
        found.path for found in client.list_artifacts(run.info.run_id, "model")}
    assert not [name for name, data in model.files.items() if b"mlruns" in data]


@pytest.mark.skipif(not find_spec("grpc_status"), reason="pyspark[connect] is not installed")
def test_they_run_through_spark_connect(survey, searched, tmp_path):
    """In a process of their own: a process has either kind of session."""
    runs = {"explore_plate": [f"spectra={survey}", "plate=4000"], "candidates": [f"run={searched[0]}"]}
    with connect_server(tmp_path / "server") as address:
        environment = os.environ | {"SPARK_REMOTE": address, "PYTHONPATH": str(ROOT)}
        for (name, words), n in zip(runs.items(), (5, 3), strict=True):
            done = subprocess.run([sys.executable, ROOT / "tests/notebook.py", name, *words], env=environment,
                                  capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            assert done.stdout.endswith(f"{n} displayed\n")
