"""A training set of a survey's own spectra, after Li et al. (2018): see docs/science.md.

First the survey is read once: DATA/backdrops keeps sky fibres and galaxies of each plate, DATA/galaxies what galaxies
are like in each bin of redshift. Then blocks of artificial spectra are drawn from these, each from one plate's sky.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from lensspark import schema, source
from lensspark.boss import survey_files
from lensspark.config import Config
from lensspark.feed import SPLITS
from lensspark.galaxy_bins import Bins
from lensspark.mock.artificial import SPECTRA_AT_ONCE, artificial
from lensspark.session import progress, share
from lensspark.training_set.backdrops import keep_backdrops, load_backdrops, read_survey, usable_plates
from lensspark.training_set.basis import survey_basis
from lensspark.training_set.common import Frame, labelled, new_folder, plates_of, write_facts, write_split
from lensspark.training_set.galaxies import measure_galaxies

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

SPECTRA_PER_FILE = 2000  # 28 MB


def from_survey(spark: SparkSession, spectra: str, out: str | Path, config: Config, n: int | None = None,
                make_basis: bool = False) -> dict[str, int]:
    """Write `n` artificial spectra (default: survey_training.spectra) made of those in `spectra`; counts by split.

    `spectra`: root of a survey tree; `out`: a new folder that all workers reach under the same path. Also writes
    DATA/galaxies, DATA/backdrops, data.json and, with `make_basis`, DATA/basis.npz. Memory of a task is bounded by
    settings, whatever `n`. Raises ValueError if there are no spectra, too few plates, galaxies or sky fibres.
    """
    out = new_folder(out).resolve()
    settings, frame = config.survey_training, Frame.of(config)
    n = settings.spectra if n is None else n
    if n < 1:
        raise ValueError(f"--n {n}: expected at least 1")
    survey_files(spectra, config.read.layout)  # refuses a root without spectra before anything is written
    source.register(spark)
    with progress(spark, "read"):
        read = keep_backdrops(read_survey(spark, spectra, config, frame), out / "backdrops", config, frame)
    log.info("read %d spectra, %d of them unreadable", read["n_input"], read["n_quarantined"])
    backdrops = spark.read.schema(schema.BACKDROPS.struct_type()).parquet(str(out / "backdrops"))
    with _nothing_left_of(out), progress(spark, "galaxies"):
        splits = usable_plates(backdrops, spectra, config)
        rows, left_out = measure_galaxies(backdrops, splits, out / "galaxies", config, frame)
        bins = Bins.of(rows, settings.eigenvectors)
    _tell(rows, left_out)
    provenance = f"galaxies of {spectra}, sample {config.selection.sample}"
    if make_basis:
        with progress(spark, "basis"):
            survey_basis(backdrops, splits, config, frame, provenance).save(out / "basis.npz")
    with progress(spark, "draw"):
        draw(spark, out, splits, bins, config, frame, n)
    counts = {split: spark.read.parquet(str(out / split)).count() for split in sorted(set(splits.values()))}
    write_facts(out, {
        "first_pixel": frame.first, "n_pix": frame.n_pix, "counts": counts, "galaxies": [provenance],
        "seed": config.training.seed, "mock": dataclasses.asdict(config.mock_training),
        "survey_training": dataclasses.asdict(settings), **read,
        "plates": {split: plates_of(splits, split) for split in SPLITS}, "bins": summary(rows, left_out),
    })
    return counts


@contextmanager
def _nothing_left_of(out: Path) -> Iterator[None]:
    """A refusal within the block leaves no folder behind, since what was asked for cannot be made of this survey."""
    try:
        yield
    except ValueError:
        shutil.rmtree(out)
        raise


def _tell(rows: list[dict], left_out: dict[int, int]) -> None:
    facts = summary(rows, left_out)
    log.info("%(n)d bins at z = %(z_low).3f-%(z_high).3f, %(n_borrowing)d of them borrow from up to %(max_reach)d bins "
             "on each side; chi2 per degree of freedom %(chi2).3f", facts)
    if left_out:
        log.warning("%d galaxies in %d bins that find too few, neighbours included, are not drawn from",
                    facts["galaxies_left_out"], facts["n_left_out"])


def summary(rows: list[dict], left_out: dict[int, int]) -> dict[str, Any]:
    """What the bins are like, from rows of schema.GALAXIES: numbers, and medians over bins (None: none measured)."""
    facts = {"n": len(rows), "z_low": min(row["z_low"] for row in rows), "z_high": max(row["z_high"] for row in rows),
             "n_borrowing": sum(row["reach"] > 0 for row in rows), "max_reach": max(row["reach"] for row in rows),
             "n_left_out": len(left_out), "galaxies_left_out": sum(left_out.values())}
    for name in ("n_own", "n_used", "chi2", "chi2_held_out"):
        values = np.array([row[name] for row in rows], float)
        facts[name] = float(np.nanmedian(values)) if np.isfinite(values).any() else None
    return facts


def draw(spark: SparkSession, out: Path, splits: dict[int, str], bins: Bins, config: Config, frame: Frame, n: int
         ) -> None:
    """Write `n` artificial spectra, shared out evenly among all plates, as DATA/train and so on."""
    drawer = _drawer(spark, out / "backdrops", bins, config, frame)
    plates = sorted(splits)
    each = {plate: n // len(plates) + (i < n % len(plates)) for i, plate in enumerate(plates)}
    for split in SPLITS:
        blocks = [(plate, block, min(each[plate] - block * SPECTRA_AT_ONCE, SPECTRA_AT_ONCE))
                  for plate in plates_of(splits, split) for block in range(-(-each[plate] // SPECTRA_AT_ONCE))]
        if not blocks:
            continue
        total = sum(count for *_, count in blocks)
        log.info("%s: %d spectra in front of %d plates", split, total, len(plates_of(splits, split)))
        table = spark.createDataFrame(pd.DataFrame(blocks, columns=["plate", "block", "n"]).astype("int32"))
        files = min(len(blocks), max(-(-total // SPECTRA_PER_FILE), 2))
        write_split(table.repartitionByRange(files, "plate", "block").sortWithinPartitions("plate", "block")
                    .mapInArrow(drawer, schema.TRAINING.struct_type()), out, split)


def _drawer(spark: SparkSession, backdrops: Path, bins: Bins, config: Config, frame: Frame):
    shared = share(spark, bins)
    settings, kinds, seed = config.survey_training, config.mock_training, config.training.seed

    def observe(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held = None
        for batch in batches:
            for plate, block, n in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if held is None or held[0] != plate:
                    held = plate, load_backdrops(backdrops, plate, config, frame)
                drawn = artificial(seed, plate, block, n, held[1], shared.value, settings, kinds, frame.first)
                yield labelled(drawn, frame.first)

    return observe
