"""Where a run is: RUN/progress.json for those who watch it, a line on a terminal, and the lock's sign of life."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import fsspec

from lensspark.catalogue import join, write_file
from lensspark.lock import BEAT_S
from lensspark.redaction import without_credentials
from lensspark.session import ERASE, tracker

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

NAME = "progress.json"
DRAW_S = 1.0


class Progress:
    """The state of a run, told every BEAT_S seconds and whenever something ends; a context manager."""

    def __init__(self, out: str, run_id: str, spark: SparkSession, beat: Callable[[], None]):
        self.path, self.beat, self.terminal = join(out, NAME), beat, sys.stderr.isatty()
        self.tracker = tracker(spark)
        now = _now()
        self.state: dict[str, Any] = {
            "run_id": run_id, "state": "running", "stage": "start", "started": now, "stage_started": now,
            "updated": now, "plates": None, "plates_done": None, "spectra_done": None, "spectra_per_second": None,
            "done": None, "seconds_left": None, "host": socket.gethostname(), "pid": os.getpid()}
        self._lock, self._over = threading.RLock(), threading.Event()
        self._begin = time.monotonic()
        self._work = self._ready = self._found = 0.0  # bytes to score, done in this run, and of an earlier one
        self._spectra, self._block = 0, 0.0

    def __enter__(self) -> Progress:
        self.tell()
        self._teller = threading.Thread(target=self._keep_telling, name="progress", daemon=True)
        self._teller.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._over.set()
        self._teller.join()
        self.erase()
        if error is None:  # run.json says it all
            fs, place = fsspec.core.url_to_fs(self.path)
            if fs.exists(place):
                fs.rm_file(place)
        else:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            self.tell(state="failed", reason=without_credentials(reason), seconds_left=None)

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._begin, self._work = time.monotonic(), 0.0
        self.tell(stage=name, stage_started=_now(), done=None, seconds_left=None, spectra_per_second=None)

    def blocks(self, plates: int, nbytes: float, largest: float) -> None:
        """There are `nbytes` to score, in blocks of up to `largest` bytes."""
        self._work, self._block = max(nbytes, 1.0), largest
        self.tell(plates=plates, plates_done=0, spectra_done=0)

    def block(self, plates: int, nbytes: float, spectra: int, found: bool = False) -> None:
        """A block is done; `found`: by an earlier run."""
        with self._lock:
            if found:
                self._found += nbytes
            else:
                self._ready += nbytes
                self._spectra += spectra
            self.tell(plates_done=self.state["plates_done"] + plates, spectra_done=self.state["spectra_done"] + spectra)

    def tell(self, **facts: Any) -> None:
        """Writes RUN/progress.json. A disk that is full is none of a progress's business."""
        with self._lock:
            self.state |= facts
            if self._work:
                self._estimate()
            self.state["updated"] = _now()
            try:
                write_file(self.path, (json.dumps(self.state, indent=1) + "\n").encode())
            except OSError as error:
                log.debug("%s: %s", self.path, error)

    def _estimate(self) -> None:
        """Share of the bytes that is scored, that in running tasks included, and what the rest will take."""
        seconds = time.monotonic() - self._begin
        running = sum(stage.numCompletedTasks / max(stage.numTasks, 1) for stage in self._active()) * self._block
        ready = min(self._ready + running, self._work - self._found)
        self.state["done"] = round((self._found + ready) / self._work, 4)
        if ready > 0:
            self.state["seconds_left"] = round(seconds * (self._work - self._found - ready) / ready)
        if self._spectra:
            self.state["spectra_per_second"] = round(self._spectra / seconds)

    def _active(self) -> list[Any]:
        tracker = self.tracker
        return list(filter(None, map(tracker.getStageInfo, tracker.getActiveStageIds()))) if tracker else []

    def _keep_telling(self) -> None:
        last = time.monotonic()
        while not self._over.wait(DRAW_S if self.terminal else BEAT_S):
            try:
                if time.monotonic() - last >= BEAT_S - DRAW_S:
                    last = time.monotonic()
                    self.beat()
                    self.tell()
                if self.terminal:
                    with self._lock:
                        if self._work:
                            self._estimate()
                        tasks = self._active()
                        sys.stderr.write(f"{ERASE}{bar(self.state, tasks)}")
                        sys.stderr.flush()
            except Exception as error:  # a lost lock stops the run where it next writes, a lost JVM by itself
                log.debug("progress: %s", error)

    def erase(self) -> None:
        """Takes the line off the terminal."""
        if self.terminal:
            sys.stderr.write(ERASE)
            sys.stderr.flush()


def bar(state: dict[str, Any], tasks: list[Any], width: int = 24) -> str:
    """One line for people: the stage, how much of it is done, how fast, how long it will take."""
    done = state["done"]
    parts = []
    if done is None and tasks:
        done = sum(stage.numCompletedTasks for stage in tasks) / max(sum(stage.numTasks for stage in tasks), 1)
    elif done is not None:
        parts = [f"{state['plates_done']:,} of {state['plates']:,} plates"]
    if state["spectra_per_second"]:
        parts.append(f"{state['spectra_per_second']:,} spectra/s")
    if state["seconds_left"] is not None:
        minutes, seconds = divmod(state["seconds_left"], 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
    filled = "" if done is None else f"[{'#' * round(done * width):-<{width}}] {100 * done:3.0f} %"
    return "  ".join([f"{state['stage']:8}", filled, *parts])


def line(stage: str, **facts: Any) -> str:
    """`stage=score seconds=12.3 spectra=64000`: one line of the log, for people and programs."""
    def text(value: Any) -> str:
        value = f"{value:.1f}" if isinstance(value, float) else str(value)
        return json.dumps(value) if not value or set(value) & set(' "=') else value

    return " ".join(f"{name}={text(value)}" for name, value in {"stage": stage, **facts}.items())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
