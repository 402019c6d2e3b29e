"""A training set of mock galaxies: light from an eigenbasis, BOSS-like sky and noise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from lensspark import schema
from lensspark.config import Config, resource
from lensspark.eigen import Basis
from lensspark.feed import SPLITS
from lensspark.mock import observe_plate
from lensspark.spectrum import window_pixels
from lensspark.training_set.common import labelled, new_folder, split_plates, write_facts, write_split

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

FIBRES_AT_ONCE = 500
MJD = 57000


def from_templates(spark: SparkSession, out: str | Path, config: Config, plates: list[int], fibres: int,
                   basis_paths: list[str | Path] | None = None) -> dict[str, int]:
    """Write mock spectra under `out`, those of `fibres` on each plate whose redshift a search of the published parent
    sample selects; returns the number of spectra in each split.

    The galaxies of the plates come from the bases at `basis_paths` in turn (default: the shipped one), kinds and lines
    from [mock_training]. Raises ValueError if `out` exists and is not empty.
    """
    out = new_folder(out)
    splits = split_plates(plates, config.training.validation_plates, config.training.test_plates,
                          config.training.seed)
    bases = [Path(path).read_bytes() for path in basis_paths or [resource("data/eigenbasis.npz")]]
    observe = _observer(config, bases, fibres)
    for split in SPLITS:
        chosen = sorted(plate for plate, name in splits.items() if name == split)
        if chosen:
            log.info("%s: %d plates", split, len(chosen))
            frame = spark.createDataFrame(pd.DataFrame({"plate": chosen})).repartitionByRange(len(chosen), "plate")
            write_split(frame.mapInArrow(observe, schema.TRAINING.struct_type()), out, split)
    counts = {split: spark.read.parquet(str(out / split)).count() for split in set(splits.values())}
    first, n_pix = window_pixels(config.read.window)
    write_facts(out, {"first_pixel": first, "n_pix": n_pix, "counts": counts, "mock": asdict(config.mock_training),
                      "seed": config.training.seed, "galaxies": [Basis.load(basis).provenance for basis in bases]})
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
                    made = observe_plate(seed, plate, MJD, fiberids, settings, basis, first, n_pix)
                    searched = made["z"] > config.selection.z_min
                    yield labelled({name: values[searched] for name, values in made.items()}, first)

    return observe
