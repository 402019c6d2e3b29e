"""Sabotage in a Python process of a search, where LENSSPARK_SABOTAGE = how:text:mark asks for it.

At the first opening of a file whose path holds `text`, in whichever process that happens, the file `mark` is made, with
the process's id in it, and the process: `kill` kills itself, `stop` is stopped, `wait` waits, `memory` asks for more
memory than it may have. `always-memory` does so at every opening. `unlink` removes the file, `cut` halves it, before it
is opened.
"""

import os
import signal
import time
from pathlib import Path

HOW, TEXT, MARK = (os.environ.get("LENSSPARK_SABOTAGE") or "::").split(":")
_open = os.open


def _is_first():
    try:
        mark = _open(MARK, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.write(mark, str(os.getpid()).encode())
    os.close(mark)
    return True


def _sabotage(path):
    if HOW == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif HOW == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif HOW == "wait":
        time.sleep(3600)
    elif HOW.endswith("memory"):
        hoard = []
        while True:
            hoard.append(bytes(100_000_000))
    elif HOW == "unlink":
        Path(path).unlink()
    elif HOW == "cut":
        os.truncate(path, os.path.getsize(path) // 2)


def _sabotaged(path, *arguments, **keywords):
    if TEXT in str(path) and str(path) != MARK and (_is_first() or HOW.startswith("always")):
        _sabotage(path)
    return _open(path, *arguments, **keywords)


if TEXT:
    os.open = _sabotaged
