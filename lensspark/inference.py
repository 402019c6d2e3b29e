"""Scoring on the cluster: the model is broadcast once, each Python worker verifies it and loads it once.

The pandas UDF gets batches of spectra and hands numpy arrays to the pure functions: prepare, engine, measure_line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lensspark import engine, schema
from lensspark.config import Config
from lensspark.locate import measure_line
from lensspark.model import Model
from lensspark.session import share
from lensspark.spectrum import Prepared, prepare

INPUT = ("flux", "ivar", "and_mask", "z_lens", "loglam0")
TOO_FEW_PIXELS = "too_few_usable_pixels"  # beside the sample's criteria in not_selected_because
_OUTPUT = schema.Table("measured", (*schema.LINE, schema.Column("scorable", "boolean", "enough usable pixels")))
_NUMBERS = tuple(column.name for column in schema.LINE)

Scorer = Callable[..., tuple[Prepared, np.ndarray, np.ndarray]]


def scorer(model: Model, config: Config) -> Scorer:
    """A function (flux, ivar, and_mask, z_lens) -> (Prepared, p_line (n,), heat (n, n_cells)) of n spectra.

    flux, ivar, and_mask: (n, n_pix) on the model's window; z_lens: (n,).
    """
    run = engine.engine_for(model, config.score.engine, config.score.precision, config.score.batch_size)
    first, _ = model.pixels

    def score(flux, ivar, and_mask, z_lens) -> tuple[Prepared, np.ndarray, np.ndarray]:
        prepared = prepare(flux, ivar, and_mask, z_lens, model.basis, model.input, first)
        return prepared, *run(prepared.channels)

    return score


_scorers: dict[tuple, Scorer] = {}  # of this Python worker, by model and engine


def _scorer_once(files: dict[str, bytes], sha256: str, config: Config) -> Scorer:
    key = (sha256, config.score)
    if key not in _scorers:
        model = Model(files).verified()
        if model.sha256 != sha256:
            raise ValueError(f"model: card.json has sha256 {model.sha256}, expected {sha256} as on the driver")
        _scorers.clear()  # a worker that outlives a run does not collect models
        _scorers[key] = scorer(model, config)
    return _scorers[key]


def score(df: DataFrame, model: Model, config: Config) -> DataFrame:
    """`df` (selected spectra in the model's window) as schema.SCORED: schema.LINE measured, pixels dropped.

    Only rows with `selected` are scored; one with too few usable pixels stops being selected and says so. Raises
    ValueError if the engine is not installed on the driver.
    """
    engine.choose(config.score.engine)
    pixels = [F.when(F.col("selected"), F.col(name)).alias(name) for name in INPUT]
    measured = df.withColumn("measured", _measure(df.sparkSession, model, config)(*pixels))
    unusable = F.coalesce(~F.col("measured.scorable"), F.lit(False))
    because = F.when(unusable, F.lit(TOO_FEW_PIXELS)).otherwise(F.col("not_selected_because"))
    measured = measured.withColumns({
        "selected": F.col("selected") & ~unusable,
        "not_selected_because": because,
        **{name: F.col(f"measured.{name}") for name in _NUMBERS},
    })
    return schema.SCORED.conform(measured.select(*schema.SCORED.names))


def _measure(spark: Any, model: Model, config: Config) -> Callable:
    shared = share(spark, model.files)
    sha256, (_, n_pix) = model.sha256, model.pixels

    @F.pandas_udf(_OUTPUT.ddl)
    def measure(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        score_batch = _scorer_once(shared.value, sha256, config)
        for flux, ivar, and_mask, z_lens, loglam0 in batches:
            rows = np.flatnonzero(flux.notna().to_numpy())
            out = {name: np.full(len(flux), np.nan) for name in _NUMBERS}
            scorable = np.full(len(flux), None, dtype=object)
            if len(rows):
                planes = [_stack(column, rows, n_pix) for column in (flux, ivar, and_mask)]
                prepared, p_line, heat = score_batch(*planes, z_lens.to_numpy()[rows])
                found = measure_line(prepared, heat, loglam0.to_numpy()[rows], config.vetting.min_line_snr)
                found["p_line"] = p_line
                for name, values in found.items():
                    out[name][rows] = np.where(prepared.scorable, values, np.nan)
                scorable[rows] = prepared.scorable
            yield pd.DataFrame({**out, "scorable": scorable}).astype({"n_line_hits": "Int32", "scorable": "boolean"})

    return measure


def _stack(column: pd.Series, rows: np.ndarray, n_pix: int) -> np.ndarray:
    """The arrays of `column` at `rows` as one (n, n_pix) array; raises ValueError for a ragged or short one."""
    arrays = column.to_numpy()[rows]
    lengths = {len(array) for array in arrays}
    if lengths != {n_pix}:
        raise ValueError(f"{column.name}: spectra of {sorted(lengths)} pixels, expected {n_pix} as the model's window")
    return np.stack(arrays)
