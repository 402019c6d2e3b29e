"""Trainings in MLflow: the real client on a file store."""


import pytest

from lensspark import config, tracking
from lensspark.tracking import Tracker

mlflow = pytest.importorskip("mlflow", reason="tracking needs the extra `mlflow`")
CARD = {"test": {"accuracy": 0.9, "recall": [1, 2]}, "training_data": {"sha256": "ab" * 32}}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(address, client) of a store in a folder, which newer MLflow takes for a small installation."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    return uri, mlflow.MlflowClient(tracking_uri=uri)


def runs(client):
    return client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])


def test_a_training_is_told(server, tmp_path):
    uri, client = server
    out = tmp_path / "model"
    tracker = Tracker(uri, "small", out, config.load([], ["training.epochs=2"]))
    for number, loss in ((1, 0.5), (2, 0.25)):
        tracker.epoch(number, {"line_loss": loss, "recall": [{"snr": [4, 5]}]})
    (out / "card.json").write_text("{}")
    tracker.finish(out, CARD)
    (run,) = runs(client)
    assert run.info.status == "FINISHED" and run.info.run_name == "small"
    assert run.data.params["training.epochs"] == "2" and run.data.params["loss.kind"] == "cross_entropy"
    assert run.data.metrics == {"line_loss": 0.25, "test_plates.accuracy": 0.9}
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "line_loss")] == [
        (1, 0.5), (2, 0.25)]
    assert run.data.tags["data_sha256"] == "ab" * 32
    assert [found.path for found in client.list_artifacts(run.info.run_id, "model")] == ["model/card.json"]


def test_a_resumed_training_goes_on_with_its_run(server, tmp_path):
    uri, client = server
    for number in (1, 2):
        Tracker(uri, "small", tmp_path / "model", config.load()).epoch(number, {"line_loss": 1.0 / number})
    (run,) = runs(client)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "line_loss")] == [1, 2]
    Tracker(uri, "small", tmp_path / "other", config.load())
    assert len(runs(client)) == 2


def test_without_an_address_nothing_happens(tmp_path):
    tracker = Tracker("", "small", tmp_path / "model", config.load())
    tracker.epoch(1, {"line_loss": 1.0})
    tracker.finish(tmp_path / "model", CARD)
    assert not list(tmp_path.iterdir())


def test_without_the_package_a_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"training.mlflow.*lensspark\[mlflow\]"):
        Tracker("http://127.0.0.1:1", "small", tmp_path, config.load())
