"""Searches as they run in production, `python jobs/predict.py --master spark://...`, for tests that disturb them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from lensspark import config, schema
from lensspark.simulate import Plan, write_plate

ROOT = Path(__file__).resolve().parents[2]
SABOTEUR = ROOT / "tests/chaos/saboteur"
UNFINISHED = ("run.lock", "progress.json")
KEY = [column.name for column in schema.KEY]
QUICK_START = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # of a JVM that lives for a minute
# What the tests need of Spark: small executors, that hear of sabotage and find this checkout.
SPARK = {"spark.executor.extraJavaOptions": QUICK_START,
         "spark.executor.memory": "512m", "spark.driver.memory": "768m",
         "spark.executorEnv.PYTHONPATH": f"{SABOTEUR}{os.pathsep}{ROOT}"}


STARTED: list[Search] = []  # so that none outlives the tests


def write_survey(folder: Path, basis: Any, plates: int = 3, fibres: int = 25, layout: str = "spplate") -> str:
    """A mock survey with many lines, made without Spark; its root."""
    mock = config.load([], ["mock.lya=0.3", "mock.line_snr=[8, 20]"]).mock
    plan = Plan(4000, plates, fibres, 7, layout, 0)
    for plate in range(4000, 4000 + plates):
        write_plate(str(folder), plan, plate, mock, basis)
    return str(folder)


class Search:
    """A search that runs; `spark` are settings of Spark, `sabotage` is the saboteur's how:text:mark, `more` is for its
    environment."""

    def __init__(self, survey: str, out: Path, model: Path, *arguments: str, master: str = "local[2,4]",
                 spark: dict[str, str] | None = None, sabotage: str = "", **more: str):
        self.out = out
        chosen = SPARK | {"spark.executorEnv.LENSSPARK_SABOTAGE": sabotage} | (spark or {})
        settings = [f"score.model='{model}'", "score.threshold=0.72", "score.engine='openvino'",
                    "read.target_partition_mb=1"]
        command = [sys.executable, str(ROOT / "jobs/predict.py"), "--spectra", survey, "--out", str(out),
                   "--master", master, *(word for text in settings for word in ("--set", text)), *arguments]
        environment = os.environ | more | {
            "SPARK_LOCAL_IP": "127.0.0.1", "JAVA_TOOL_OPTIONS": QUICK_START,
            "PYTHONPATH": SPARK["spark.executorEnv.PYTHONPATH"],
            "PYSPARK_SUBMIT_ARGS": " ".join(f"--conf '{key}={value}'" for key, value in chosen.items())
                                   + " pyspark-shell",
        }
        if master.startswith("local"):
            environment["LENSSPARK_SABOTAGE"] = sabotage
        STARTED.append(self)
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True, start_new_session=True)

    def wait(self, seconds: float = 240) -> int:
        """The exit code; `said` is then what the job wrote."""
        try:
            self.said, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL to the job, its JVM and, in local mode, its Python workers: all that a lost machine takes along."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.said, _ = self.process.communicate()


def until(happened: Callable[[], Any], search: Search, seconds: float = 120) -> Any:
    """What `happened` returns once that is true; fails if the search ends before."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        if search.process.poll() is not None or time.monotonic() > end:
            search.process.kill()
            raise AssertionError(f"did not happen; the search said\n{search.process.communicate()[0]}")
        time.sleep(0.02)
    return found


def pid_in(mark: Path) -> int:
    """The process that made the saboteur's mark; 0 if none has."""
    return int(mark.read_text() or 0) if mark.exists() else 0


def parents(pid: int) -> list[tuple[int, str]]:
    """(pid, command line) of a process, its parent, and so on up to the first process of all."""
    found = []
    while pid > 1:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found.append((pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()))
        pid = int(stat[1])
    return found


def rows_of(out: Path) -> pd.DataFrame:
    """The ledger of the run in `out`, sorted."""
    rows = pd.read_parquet(out / "ledger").astype({"plate": int})
    return rows.sort_values(KEY).reset_index(drop=True)[sorted(rows.columns)]


def ledger_hash(out: Path) -> str:
    """sha256 over the sorted rows of the ledger in `out`, every digit of them."""
    return hashlib.sha256(rows_of(out).to_csv(index=False).encode()).hexdigest()


def content(folder: Path) -> dict[str, str]:
    """sha256 of every product in a run's folder, without what an unfinished run keeps there."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder): path for path in paths}
    return {str(name): hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()
            if not any(part.startswith((".", "_")) for part in name.parts) and str(name) not in UNFINISHED}
