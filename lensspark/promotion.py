"""How a finished result takes the place of the former one, and where the products of a run lie until and after that.

On a file system that renames (`renames`):

    RUN/_staging/       all that a run has made so far
    RUN/_promoting/     a finished result that is being moved to RUN; the next run ends what was cut off
    RUN/_former/        what had to make room for it

On an object store nothing is moved. RUN/run.json is the pointer, and its upload is the one step that shows a result:

    RUN/_results/NAME/  all that a run has made so far, with run.started.json until it is shown; then its products
    RUN/run.json        as in the folder of the result that is to be seen, with that folder's name as `products`
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from typing import Any

from lensspark.catalogue import join, write_file
from lensspark.progress import NAME as PROGRESS

CARD, STARTED = "run.json", "run.started.json"
STAGING, PROMOTING, FORMER, KEPT, RESULTS = "_staging", "_promoting", "_former", "former-", "_results"
POINTER = "products"  # of run.json: the folder of the products, below RUN
_FOLDER = re.compile(rf"{RESULTS}/[\w-]+")
_RENAMING = {"file", "local", "hdfs", "webhdfs"}


def renames(fs: Any) -> bool:
    """Whether the fsspec file system moves a folder in one step."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & _RENAMING)


def names(fs: Any, place: str) -> set[str]:
    """What the folder holds; nothing where there is none."""
    fs.invalidate_cache()
    if not fs.exists(place):
        return set()
    return {path.rstrip("/").rpartition("/")[2] for path in fs.ls(place, detail=False)} - {""}


# --- Where products lie ---


def products(out: str) -> str:
    """The folder or URL of the products of the finished run in `out`: `out` itself, or what its run.json points to.

    Raises ValueError if that is no place of a result.
    """
    import fsspec

    fs, place = fsspec.core.url_to_fs(join(out, CARD))
    try:
        card = json.loads(fs.cat_file(place))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return out
    return join(out, folder) if (folder := pointed(card)) else out


def pointed(card: dict[str, Any]) -> str:
    """The folder below RUN that its run.json, `card`, points to; '' if the products lie beside it.

    Raises ValueError if that is no place of a result.
    """
    folder = card.get(POINTER) or ""
    if folder and not _FOLDER.fullmatch(str(folder)):
        raise ValueError(f"run.json: {POINTER} = {folder!r}; expected {RESULTS}/NAME")
    return folder


def working_folder(fs: Any, place: str, run_id: str, resume: bool) -> str:
    """Where a run in `place` writes, below it: _staging, or on a store what it resumes or a new folder."""
    if renames(fs):
        return STAGING
    unfinished = unfinished_folders(fs, place)
    if resume and unfinished:
        return max(unfinished)
    # The names are in the order of the runs: a store's times of change are whole seconds.
    return f"{RESULTS}/{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{run_id}"


def unfinished_folders(fs: Any, place: str) -> list[str]:
    """Those of runs that were never shown, below `place`."""
    if renames(fs):
        return [STAGING] if fs.exists(f"{place}/{STAGING}") else []
    shown = _shown(fs, place)
    folders = (f"{RESULTS}/{name}" for name in sorted(names(fs, f"{place}/{RESULTS}")))
    return [folder for folder in folders if folder != shown and _is_unfinished(fs, f"{place}/{folder}")]


def _is_unfinished(fs: Any, folder: str) -> bool:
    return fs.exists(f"{folder}/{STARTED}") or not fs.exists(f"{folder}/{CARD}")


def _shown(fs: Any, place: str) -> str:
    try:
        return pointed(json.loads(fs.cat_file(f"{place}/{CARD}")))
    except FileNotFoundError:
        return ""


# --- Promotion ---


def promote(out: str, folder: str, keep: int) -> None:
    """Shows the result in `folder` below `out`, whole, in place of the former one; its run.json is what is read first.

    On a file system run.json is the first to leave and the last to come. `keep`: how many former results stay.
    """
    import fsspec

    fs, place = fsspec.core.url_to_fs(out)
    if not renames(fs):
        card = json.loads(fs.cat_file(f"{place}/{folder}/{CARD}"))
        write_file(join(out, CARD), (json.dumps(card | {POINTER: folder}, indent=2) + "\n").encode())
        _remove_progress(fs, place)
        tidy(fs, place, keep)
        return
    _remove_work(fs, f"{place}/{folder}")
    if fs.exists(f"{place}/{FORMER}"):
        fs.rm(f"{place}/{FORMER}", recursive=True)
    _move(fs, f"{place}/{folder}", f"{place}/{PROMOTING}")  # from here on the result is finished
    end(fs, place)


def end(fs: Any, place: str) -> None:
    """Ends a promotion, from wherever it was cut off; nothing happens where there is none."""
    waiting, former = f"{place}/{PROMOTING}", f"{place}/{FORMER}"
    moved = names(fs, waiting)
    if CARD in moved:  # else all is in its place
        fs.makedirs(former, exist_ok=True)
        for name in [CARD, *sorted(moved - {CARD})]:
            if fs.exists(f"{place}/{name}"):
                _move(fs, f"{place}/{name}", f"{former}/{name}")
        for name in [*sorted(moved - {CARD}), CARD]:
            if fs.exists(f"{waiting}/{name}"):
                _move(fs, f"{waiting}/{name}", f"{place}/{name}")
        _remove_progress(fs, place)
    for path in (waiting, former):
        if path == former and fs.exists(f"{former}/{CARD}"):
            _keep_former(fs, place)
        if fs.exists(path):
            fs.rm(path, recursive=True)


def tidy(fs: Any, place: str, keep: int, own: str = "") -> None:
    """Removes, on a store, what no run needs: work tables of the result that is shown, results of old beyond the
    latest `keep`, at least one, so that its readers end in peace, and what dead runs left but for `own`."""
    if renames(fs):
        return
    shown = _shown(fs, place)
    if shown:
        _remove_work(fs, f"{place}/{shown}")
    former = []
    for name in sorted(names(fs, f"{place}/{RESULTS}")):
        folder = f"{RESULTS}/{name}"
        if folder not in (shown, own) and _is_unfinished(fs, f"{place}/{folder}"):
            fs.rm(f"{place}/{folder}", recursive=True)
        elif folder not in (shown, own):
            former.append(f"{place}/{folder}")
    _remove_oldest(fs, former, max(keep, 1))


def _remove_work(fs: Any, folder: str) -> None:
    """STARTED is the last to go: what has it and is not shown is unfinished."""
    found = names(fs, folder)
    for name in [*(name for name in found if name.startswith("_")), *(found & {STARTED})]:
        fs.rm(f"{folder}/{name}", recursive=True)


def _remove_progress(fs: Any, place: str) -> None:
    """Of the run that was cut off, or of this one, which is over."""
    if fs.exists(f"{place}/{PROGRESS}"):
        fs.rm_file(f"{place}/{PROGRESS}")


def _remove_oldest(fs: Any, results: list[str], keep: int) -> None:
    by_age = sorted(results, key=lambda path: (str(fs.modified(f"{path}/{CARD}")), path))
    for path in by_age[: max(len(results) - keep, 0)]:
        fs.rm(path, recursive=True)


def _keep_former(fs: Any, place: str) -> None:
    """Keeps the former result as RUN/former-RUN_ID, and of those the latest `limits.keep_former`."""
    keep = json.loads(fs.cat_file(f"{place}/{CARD}"))["configuration"]["limits"]["keep_former"]
    if keep:
        former = json.loads(fs.cat_file(f"{place}/{FORMER}/{CARD}"))["run_id"]
        if fs.exists(f"{place}/{KEPT}{former}"):
            fs.rm(f"{place}/{KEPT}{former}", recursive=True)
        _move(fs, f"{place}/{FORMER}", f"{place}/{KEPT}{former}")
    _remove_oldest(fs, [f"{place}/{name}" for name in names(fs, place) if name.startswith(KEPT)], keep)


def _move(fs: Any, path: str, to: str) -> None:
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(fs, LocalFileSystem):
        os.rename(path, to)
    else:
        fs.mv(path, to, recursive=True)
