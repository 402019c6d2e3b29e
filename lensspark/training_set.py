"""Spectra to learn from, as Parquet: DATA/train, DATA/validation and DATA/test hold schema.TRAINING, split by plate.

Plates are split whole, since the spectra of one share its sky, its calibration and its noise.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from lensspark import schema
from lensspark.boss import Spectra
from lensspark.config import Config, resource
from lensspark.eigen import Basis
from lensspark.mock import observe_plate
from lensspark.source import to_arrow
from lensspark.spectrum import pixel, window_pixels

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
LINE_KINDS = ("lya", "oii")  # within the window an [OII] interloper is a line like any other; vetting tells them apart
FIBRES_AT_ONCE = 500
ROW_GROUP_BYTES = 8 << 20  # about 700 spectra: what the feed shuffles and holds in memory
MJD = 57000


def split_plates(plates: list[int], validation: float, test: float, seed: int) -> dict[int, str]:
    """The split of each plate: the given fractions of plates, at least one of each where the fraction is not 0.

    Raises ValueError if nothing is left to train on.
    """
    n_validation, n_test = (max(round(f * len(plates)), 1) if f else 0 for f in (validation, test))
    if n_validation + n_test >= len(plates):
        raise ValueError(f"{len(plates)} plates cannot be split: {n_validation} for validation and {n_test} for test "
                         "leave none to train on")
    order = np.random.default_rng(seed).permutation(len(plates))
    names = ["validation"] * n_validation + ["test"] * n_test + ["train"] * (len(plates) - n_validation - n_test)
    return {plates[i]: name for i, name in zip(order, names, strict=True)}


def from_templates(spark: SparkSession, out: str | Path, config: Config, plates: list[int], fibres: int,
                   basis_paths: list[str | Path] | None = None) -> dict[str, int]:
    """Write `fibres` mock spectra of each plate under `out`; returns the number of spectra in each split.

    The galaxies of the plates come from the bases at `basis_paths` in turn (default: the shipped one), kinds and lines
    from [mock_training]. Raises ValueError if `out` exists and is not empty.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: expected a new folder")
    splits = split_plates(plates, config.training.validation_plates, config.training.test_plates,
                          config.training.seed)
    bases = [Path(path).read_bytes() for path in basis_paths or [resource("data/eigenbasis.npz")]]
    observe = _observer(config, bases, fibres)
    for split in SPLITS:
        chosen = sorted(plate for plate, name in splits.items() if name == split)
        if chosen:
            log.info("%s: %d plates", split, len(chosen))
            (spark.createDataFrame(pd.DataFrame({"plate": chosen})).repartitionByRange(len(chosen), "plate")
             .mapInArrow(observe, schema.TRAINING.struct_type())
             .write.option("parquet.block.size", ROW_GROUP_BYTES).parquet(str(out / split)))
    counts = {split: spark.read.parquet(str(out / split)).count() for split in set(splits.values())}
    first, n_pix = window_pixels(config.read.window)
    facts = {"first_pixel": first, "n_pix": n_pix, "counts": counts, "mock": asdict(config.mock_training),
             "seed": config.training.seed, "galaxies": [Basis.load(basis).provenance for basis in bases]}
    (out / "data.json").write_text(json.dumps(facts, indent=1))
    return counts


def _observer(config: Config, bases: list[bytes], fibres: int):
    first, n_pix = window_pixels(config.read.window)
    settings, seed = config.mock_training, config.training.seed

    def observe(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        loaded = [Basis.load(basis) for basis in bases]
        for batch in batches:
            for plate in batch.column(0).to_pylist():
                basis = loaded[plate % len(loaded)]
                for fibre in range(1, fibres + 1, FIBRES_AT_ONCE):
                    fiberids = np.arange(fibre, min(fibre + FIBRES_AT_ONCE, fibres + 1))
                    yield _batch(observe_plate(seed, plate, MJD, fiberids, settings, basis, first, n_pix), first)

    return observe


def _batch(mock: dict[str, np.ndarray], first: int) -> pa.RecordBatch:
    label = np.isin(mock["kind"], LINE_KINDS)
    mock |= {
        "label": label.astype(np.float32),
        "line_pixel": np.where(label, pixel(mock["line_wave"]) - first, np.nan).astype(np.float32),
        "line_snr": np.where(label, mock["line_snr"], np.nan),
    }
    planes = ("flux", "ivar", "and_mask")
    columns = {name: mock[name].tolist() for name in schema.TRAINING.names if name not in planes}
    return to_arrow([Spectra(columns, {name: mock[name] for name in planes})], schema.TRAINING)
