"""A run's folder: who may write in it, and what it takes up, replaces or refuses there.

    RUN/run.lock          a run is at work (lock.py)
    RUN/progress.json     where it is (progress.py)
    RUN/_staging/         all that it has made so far (on an object store elsewhere: promotion.py); run.started.json
                          tells what it is
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lensspark import __version__, catalogue, config, lock, manifest, promotion
from lensspark.catalogue import join
from lensspark.config import Config
from lensspark.lock import Lock
from lensspark.manifest import Manifest
from lensspark.model import Model
from lensspark.progress import NAME as PROGRESS
from lensspark.progress import Progress, line
from lensspark.promotion import CARD, FORMER, PROMOTING, RESULTS, STAGING, STARTED, names, products
from lensspark.redaction import without_credentials

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

RESUMED = ("_scored", "_blocks")  # of the folder that a run writes, what --resume takes up (blocks.py)
# A folder that holds one of these is a run's.
OURS = {CARD, STARTED, STAGING, PROMOTING, FORMER, RESULTS, PROGRESS, lock.NAME}


@dataclass
class Run:
    """One search: what it reads, where it writes, with which model and configuration."""

    spectra: str
    out: str
    model: Model | None  # None: a re-cut whose model is not at hand
    config: Config
    manifest_sha256: str
    model_sha256: str = ""
    known_lenses: pd.DataFrame | None = None
    grades: pd.DataFrame | None = None  # of people, for a re-cut
    parent: str = ""  # run_id of the run that is cut again
    facts: dict[str, Any] = field(default_factory=dict)  # for run.json
    timings: dict[str, float] = field(default_factory=dict)
    manifest: Manifest | None = None  # of a search
    former: Manifest | None = None  # of the finished run in `out`, whose rows are taken over
    lock: Lock | None = None
    progress: Progress | None = None
    folder: str = STAGING  # below `out`: where the run writes

    @property
    def configuration(self) -> dict[str, Any]:
        return self.config.as_dict()

    @property
    def run_id(self) -> str:
        of_its_own = catalogue.run_id(self.configuration, self.model_sha256, self.manifest_sha256)
        facts = {name: value for name, value in self.facts.items() if name.endswith("sha256")}
        return catalogue.digest([self.parent, of_its_own, facts])[:16] if self.parent else of_its_own

    def path(self, name: str) -> str:
        """Where the run writes `name`, until it is finished."""
        return join(self.out, f"{self.folder}/{name}")

    def product(self, name: str) -> str:
        """Where `name` of the finished run lies: of the former one, until this one takes its place."""
        return join(products(self.out), name)

    @contextmanager
    def working(self, spark: SparkSession) -> Iterator[None]:
        """Keeps RUN/progress.json and the lock's sign of life, and gives the lock back at the end."""
        held = self.lock or lock.acquire(self.out, self.run_id)
        self.lock, held.busy = held, True
        try:
            with Progress(self.out, self.run_id, spark, held.beat) as self.progress:
                yield
        finally:
            self.progress = self.lock = None
            held.release()

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Times a stage and ends with its line in the log, with the facts that the block puts into what it gets."""
        facts: dict[str, Any] = {}
        start = time.monotonic()
        if self.progress:
            self.progress.stage(name)
        yield facts
        self.timings[name] = time.monotonic() - start
        if self.progress:
            self.progress.erase()
        log.info(line(name, seconds=self.timings[name], **facts))

    def card(self) -> dict[str, Any]:
        """What run.started.json and run.json both say of a run: what makes it another run than others."""
        return without_credentials({
            "run_id": self.run_id, "model_sha256": self.model_sha256, "versions": {"lensspark": __version__},
            "parent_run_id": self.parent or None, "input_manifest_sha256": self.manifest_sha256,
            "configuration": self.configuration})


def finished_card(out: str) -> dict[str, Any]:
    """run.json of the finished run in `out`. Raises ValueError if there is none."""
    try:
        return _read_card(join(out, CARD))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{out}: no finished run: run.json: {error}") from error


def finished_run(out: str) -> Config:
    """The configuration of the finished run in `out`. Raises ValueError if there is none."""
    return config.from_dict(finished_card(out)["configuration"])


def _read_card(path: str) -> dict[str, Any]:
    import fsspec

    fs, place = fsspec.core.url_to_fs(path)  # not opened: file systems remember the size of what they have listed
    card = json.loads(fs.cat_file(place))
    return card | {"configuration": config.stored(card["configuration"]).as_dict()}


def claim(run: Run, resume: bool = False, incremental: bool = False) -> bool:
    """Takes the run's folder: its lock, an empty staging folder or, to `resume`, what a killed run left there.

    False, and nothing is touched, where the folder holds the result already: `incremental` or `resume` asked for no
    more. Raises ValueError if the folder cannot be written, is another run's at work, or holds another run: another
    model, configuration or version of lensspark, and, unless `incremental`, another input.
    """
    import fsspec

    fs, place = fsspec.core.url_to_fs(run.out)
    try:
        there = names(fs, place)
        if there and not there & OURS:
            raise ValueError(f"--out {run.out}: is not empty and holds no run; take a new folder")
        if PROMOTING not in there and CARD in there and (incremental or resume) and _is_done(run, incremental):
            return False
        run.lock = lock.acquire(run.out, run.run_id)
        try:
            _prepare(fs, place, run, resume, incremental)
        except BaseException:
            run.lock.release()
            raise
    except OSError as error:
        raise ValueError(f"--out {run.out}: cannot be written: {error.strerror or error}") from error
    return True


def _is_done(run: Run, incremental: bool) -> bool:
    """Whether the finished run in `out` is this very one, of this very input."""
    card = finished_card(run.out)
    _check_same(run, card, incremental)
    if card["run_id"] != run.run_id:
        return False
    if incremental and manifest.changes(_former(run), run.manifest):
        return False
    log.info(line("done", nothing_to_do=run.run_id, **card["counts"]))
    return True


def _prepare(fs: Any, place: str, run: Run, resume: bool, incremental: bool) -> None:
    promotion.end(fs, place)
    there = names(fs, place)
    if CARD in there:
        _check_same(run, finished_card(run.out), incremental)
        run.former = _former(run) if incremental else None
    for folder in ["", *promotion.unfinished_folders(fs, place)]:  # "": of older versions
        path = f"{place}/{folder}/{STARTED}" if folder else f"{place}/{STARTED}"
        if fs.exists(path):
            _check_same(run, _read_card(fs.unstrip_protocol(path)), True)
    run.folder = promotion.working_folder(fs, place, run.run_id, resume)
    kept = {RESULTS, STAGING} if resume else {RESULTS}
    for name in there:
        if name in (STARTED, PROGRESS) or name.startswith(f".{PROGRESS}.") or (
                name.startswith("_") and name not in kept):
            fs.rm(f"{place}/{name}", recursive=True)
    promotion.tidy(fs, place, run.config.limits.keep_former, run.folder)
    for name in names(fs, f"{place}/{run.folder}") - set(RESUMED):
        fs.rm(f"{place}/{run.folder}/{name}", recursive=True)
    if resume and not names(fs, f"{place}/{run.folder}"):
        log.info(line("resume", nothing_to_resume_in=run.out))
    catalogue.write_file(run.path(STARTED), json.dumps(run.card(), indent=1).encode())


def _check_same(run: Run, found: dict[str, Any], any_input: bool) -> None:
    """Raises ValueError, naming the first difference, if `found`, a card, is another run's."""
    mine = run.card()
    pairs = {name: (found.get(name), mine[name]) for name in ("model_sha256", "parent_run_id")}
    pairs["lensspark"] = tuple(card.get("versions", {}).get("lensspark") for card in (found, mine))
    for section, values in mine["configuration"].items():
        before = found["configuration"].get(section, {})
        pairs |= {f"{section}.{key}": (before.get(key), value) for key, value in values.items()}
    if not any_input or run.parent:
        pairs["run_id"] = found.get("run_id"), mine["run_id"]
    for name, (other, this) in pairs.items():
        if other != this:
            advice = "--incremental takes what is new or changed, or take a new folder" if (
                name == "run_id" and not run.parent) else "take a new folder"
            raise ValueError(f"--out {run.out}: holds a run with another {name} ({other}, this one's is {this}); "
                             f"{advice}")


def _former(run: Run) -> Manifest:
    try:
        return manifest.read(run.product(manifest.NAME))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--out {run.out}: its run has no {manifest.NAME} that says what it has read ({error}); take "
                         "a new folder") from error


def promote(run: Run) -> None:
    """Shows the finished result in place of the former one. Raises RuntimeError if the lock is another run's now."""
    run.lock.check()
    promotion.promote(run.out, run.folder, run.config.limits.keep_former)
