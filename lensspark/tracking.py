"""Trainings in MLflow, where `training.mlflow` names a tracking server: settings, figures by epoch, the model's folder.

The server's address is no part of a model: it may hold a password, and the same training elsewhere is the same.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lensspark.config import Config

EXPERIMENT = "lensspark"
SECTIONS = ("input", "network", "loss", "training")
MEMORY = "checkpoint/mlflow.json"  # in MODEL: the run that a resumed training goes on with
LONGEST = 500  # characters of a parameter, MLflow's own limit


class Tracker:
    """One training's run at the tracking server `uri`; without an address it does nothing.

    Raises ValueError if mlflow is not installed.
    """

    def __init__(self, uri: str, name: str, out: Path, settings: Config):
        self.client: Any = None
        if not uri:
            return
        if not importlib.util.find_spec("mlflow"):
            raise ValueError(f"training.mlflow = {uri!r}: mlflow is not installed; "
                             "expected `pip install 'lensspark[mlflow]'`, or no address")
        from mlflow import MlflowClient

        self.client, self.memory = MlflowClient(tracking_uri=uri), out / MEMORY
        self.run = self._former() or self._new(name, settings)

    def _former(self) -> str | None:
        if not self.memory.exists():
            return None
        run = json.loads(self.memory.read_text())["run_id"]
        self.client.update_run(run, status="RUNNING")
        return run

    def _new(self, name: str, settings: Config) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        run = self.client.create_run(found.experiment_id if found else self.client.create_experiment(EXPERIMENT),
                                     run_name=name).info.run_id
        for section in SECTIONS:
            for key, value in asdict(getattr(settings, section)).items():
                self.client.log_param(run, f"{section}.{key}", str(value)[:LONGEST])
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        self.memory.write_text(json.dumps({"run_id": run}))
        return run

    def epoch(self, number: int, measured: dict[str, Any]) -> None:
        """The figures of epoch `number`, counted from 1."""
        for key, value in measured.items():
            if self.client and isinstance(value, float):
                self.client.log_metric(self.run, key, value, step=number)

    def finish(self, out: Path, card: dict[str, Any]) -> None:
        """The figures on the test plates, the facts of the data, and the model's folder with its card."""
        if not self.client:
            return
        for key, value in card["test"].items():
            if isinstance(value, float):
                self.client.log_metric(self.run, f"test_plates.{key}", value)
        self.client.set_tag(self.run, "data_sha256", card["training_data"]["sha256"])
        for path in sorted(out.iterdir()):
            if path.is_file():
                self.client.log_artifact(self.run, str(path), "model")
        self.client.set_terminated(self.run)
