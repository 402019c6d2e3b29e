"""Whole searches as a user starts them: how long each stage takes, how much memory each process, when Spark is up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from lensspark.config import resource

EVERY = 0.2  # seconds between two looks at the memory


def predict(tree: Path, out: Path, *settings: str, master: str = "") -> dict[str, Any]:
    """Runs jobs/predict.py on `tree`; what it took.

    Executors that are processes of their own get one core each, as a container would confine them. `seconds` of the
    whole process, `to_first_task` until Spark's first task began, `timings` and `counts` of run.json,
    `memory_mb`: the most that the driver's Python, the JVM and any Python worker held (resident). Raises RuntimeError
    with the job's last lines if it fails.
    """
    shutil.rmtree(out, ignore_errors=True)
    events = out.with_suffix(".events")
    shutil.rmtree(events, ignore_errors=True)
    events.mkdir(parents=True)
    logged = {"enabled": "true", "compress": "false", "dir": events.as_uri()}
    options = " ".join(f"--conf spark.eventLog.{name}={value}" for name, value in logged.items())
    command = [sys.executable, str(resource("jobs/predict.py")), "--spectra", str(tree), "--out", str(out),
               *(word for setting in settings for word in ("--set", setting)), *(("--master", master) * bool(master))]
    start = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYSPARK_SUBMIT_ARGS": f"{options} pyspark-shell"})
    memory: dict[str, float] = {}
    watcher = threading.Thread(target=_watch, args=(process.pid, memory), daemon=True)
    watcher.start()
    _, errors = process.communicate()
    seconds = time.time() - start
    watcher.join()
    if process.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}: {errors[-1000:]}")
    card = json.loads((out / "run.json").read_text())
    return {"seconds": seconds, "to_first_task": _first_task(events) - start, "timings": card["timings"],
            "counts": card["counts"], "memory_mb": memory, "run": str(out)}


def _watch(pid: int, most: dict[str, float]) -> None:
    """Fills `most` with the largest resident size in MB of each kind of process below `pid`, until that ends."""
    try:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            for process in (root, *root.children(recursive=True)):
                try:
                    words, size = process.cmdline(), process.memory_info().rss / 1e6
                    java = "java" in "".join(words[:1])
                    if java and "--executor-id" in words:
                        _confine(process, int(words[words.index("--executor-id") + 1]))
                except psutil.Error:
                    continue
                kind = ("jvm" if java else "worker" if "pyspark" in " ".join(words) else
                        "driver" if process.pid == pid else "other")
                most[kind] = max(most.get(kind, 0.0), size)
            time.sleep(EVERY)
    except psutil.NoSuchProcess:
        return


def _confine(executor: psutil.Process, number: int) -> None:
    """Keeps an executor, and what it will start, on one core: the threads of its JVM would use others as well."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in executor.threads():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, {cores[number % len(cores)]})


def _first_task(events: Path) -> float:
    """Time at which Spark's first task was launched, seconds since the epoch."""
    logs = [path for path in events.rglob("*") if path.is_file() and not path.name.startswith(("appstatus", "."))]
    for path in logs:
        for text in path.read_text().splitlines():
            if '"SparkListenerTaskStart"' in text:
                return json.loads(text)["Task Info"]["Launch Time"] / 1000
    raise RuntimeError(f"{events}: no task in Spark's event log")
