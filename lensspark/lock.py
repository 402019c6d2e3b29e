"""One run at a time in a folder: RUN/run.lock names who holds it, and its time of change shows that he is alive.

On a file system it is made in one step (O_EXCL), on S3 too (If-None-Match). Where a store has no such step, two runs
that start within the same second may both believe that they hold it, until the first beat of one of them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lensspark.catalogue import join

log = logging.getLogger(__name__)

NAME = "run.lock"
STALE_S = 300.0  # without a beat from another machine: longer than a pause of its system, a swap or a network failure
BEAT_S = 10.0
_mine: dict[str, Lock] = {}  # of this process, by path


class Lock:
    """A lock that is held; `acquire` is the way to get one."""

    def __init__(self, out: str, run_id: str):
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        self.fs, self.path = fsspec.core.url_to_fs(join(out, NAME))
        self.local = isinstance(self.fs, LocalFileSystem)
        self.busy = False  # a search is at work under it
        self.facts = {"host": socket.gethostname(), "pid": os.getpid(), "birth": _birth(os.getpid()),
                      "started": datetime.now(UTC).isoformat(timespec="seconds"), "run_id": run_id,
                      "token": uuid.uuid4().hex}

    def create(self) -> bool:
        """Whether the lock is ours now. Raises OSError where nothing can be written."""
        if not self.local:
            if self.fs.exists(self.path):
                return False
            try:
                self._write(**({"mode": "create"} if "s3" in self.fs.protocol else {}))
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    if self.fs.exists(self.path):
                        return False
                    raise
                self._write()  # like S3, but without If-None-Match
            return self.held_by()["token"] == self.facts["token"]
        self.fs.makedirs(self.fs._parent(self.path), exist_ok=True)
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            json.dump(self.facts, file)
        return True

    def _write(self, **how: str) -> None:
        self.fs.pipe_file(self.path, json.dumps(self.facts | {"alive": time.time()}).encode(), **how)

    def held_by(self) -> dict[str, Any]:
        """The holder's facts and `age`, seconds since the last beat; without a token where they cannot be read."""
        self.fs.invalidate_cache()
        facts: dict[str, Any] = {"token": None}
        with contextlib.suppress(ValueError, TypeError):
            facts |= json.loads(self.fs.cat_file(self.path))
        alive = os.stat(self.path).st_mtime if self.local else facts.get("alive", 0.0)
        return facts | {"age": time.time() - alive}

    def check(self) -> None:
        """Raises RuntimeError if another run has taken the lock over: this one must not write any more."""
        try:
            holder = self.held_by()
        except FileNotFoundError:
            holder = {"token": None}
        if holder["token"] != self.facts["token"]:
            raise RuntimeError(f"{self.path}: no longer held by this run, but by {_named(holder)}")

    def beat(self) -> None:
        """Shows that this run is alive."""
        self.check()
        if not self.local:
            self._write()
            return
        try:
            os.utime(self.path)
        except OSError:  # mounts of object stores may not set times
            Path(self.path).write_text(json.dumps(self.facts))

    def release(self) -> None:
        """Gives the lock back; nothing happens if it is not ours any more."""
        _mine.pop(self.path, None)
        with contextlib.suppress(RuntimeError, OSError):
            self.check()
            self.fs.rm_file(self.path)

    def take_away(self, holder: dict[str, Any]) -> None:
        """Removes the lock of `holder`, and no other: a third run may have been quicker."""
        if not self.local:
            return self.fs.rm_file(self.path)
        aside = f"{self.path}.{self.facts['token']}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            found = Path(aside).read_text()
            if holder["token"] and holder["token"] not in found:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            os.unlink(aside)
        return None


def acquire(out: str, run_id: str) -> Lock:
    """The lock of the run's folder `out`, made where it is missing. Raises ValueError if a live run holds it.

    A lock is taken over, with a line in the log, if its process is dead on this machine, or if it had no beat for
    STALE_S on another.
    """
    lock = Lock(out, run_id)
    for _ in range(5):
        if lock.create():
            _mine[lock.path] = lock
            return lock
        try:
            holder = lock.held_by()
        except FileNotFoundError:
            continue
        own = _mine.get(lock.path)
        if own is None or own.busy or own.facts["token"] != holder["token"]:
            why = _dead(holder)
            if not why:
                break
            log.warning('stage=lock taken_over_from="%s" because="%s"', _named(holder), why)
        lock.take_away(holder)
    raise ValueError(f"--out {out}: {_named(holder)} is at work there ({NAME}); wait until it has ended")


def _named(holder: dict[str, Any]) -> str:
    if not holder.get("token"):
        return "an unknown run"
    return f"run {holder['run_id']} of process {holder['pid']} on {holder['host']} (started {holder['started']})"


def _dead(holder: dict[str, Any]) -> str:
    """Why the holder must be dead; '' if he may be alive."""
    if holder.get("host") == socket.gethostname():
        birth = _birth(holder["pid"])
        if birth is None:
            return f"there is no process {holder['pid']} any more"
        return f"process {holder['pid']} is another one now" if birth != holder["birth"] else ""
    return f"no sign of life for {holder['age']:.0f} s" if holder["age"] > STALE_S else ""


def _birth(pid: int) -> str | None:
    """What tells a process from a later one of the same number: its start, where the system says. None: it is dead."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return None if state in "ZX" else rest[18]  # field 22 of proc(5): start in ticks since boot
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
