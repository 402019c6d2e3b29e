"""Scoring on the cluster: the model is broadcast once, each Python worker verifies it and loads it once.

The pandas UDF gets batches of spectra and hands numpy arrays to the pure functions: prepare, engine, measure_line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lensspark import engine, lines, schema
from lensspark.config import Config
from lensspark.eigen import DLOGLAM
from lensspark.locate import measure_line, ranked
from lensspark.model import Model
from lensspark.session import share
from lensspark.source import unpack
from lensspark.spectrum import Prepared, prepare

INPUT = ("flux", "ivar", "and_mask", "z_lens", "loglam0")
AT_ONCE = 128  # spectra that are prepared together: more take memory and are no faster (docs/benchmarks.md)
TOO_FEW_PIXELS = "too_few_usable_pixels"  # beside the sample's criteria in not_selected_because
_SCORABLE = schema.Column("scorable", "boolean", "enough usable pixels")
_OUTPUT = schema.Table("measured", (*schema.LINE, *schema.NULLS, _SCORABLE))
_NUMBERS = tuple(column.name for column in schema.LINE + schema.NULLS)
_NULL_OF = {"null_p_line": "p_line", "null_wave": "line_wave", "null_snr": "line_snr"}
_SHIFTED_OF = {"shifted_p_line": "p_line", "shifted_wave": "line_wave", "shifted_snr": "line_snr"}
# What the pixels redwards of the window have more of, and no null search should find: the lens's Balmer lines, [OIII]
# and Ca H and K, and the strongest lines of the night sky (within 8 px lie the bands that eBOSS masks).
SHIFTED = {"lens_lines": tuple(dict.fromkeys((*lines.LENS_LINES, *lines.LENS_EMISSION))),
           "sky_lines": tuple(sum(band) / 2 for band in lines.SKY_BANDS), "sky_line_half_width_px": 8}

@dataclass(frozen=True)
class Scorer:
    """A model ready to score on this machine: `scorer(flux, ivar, and_mask, z_lens)`."""

    model: Model
    run: engine.Engine

    def __call__(self, flux: np.ndarray, ivar: np.ndarray, and_mask: np.ndarray, z_lens: np.ndarray,
                 shifted: bool = False) -> tuple[Prepared, np.ndarray, np.ndarray]:
        """(Prepared, p_line (n,), heat (n, n_cells)) of n spectra; arguments as `prepare`'s."""
        prepared = self.prepare(flux, ivar, and_mask, z_lens, shifted)
        return prepared, *self.run(prepared.channels)

    def prepare(self, flux: np.ndarray, ivar: np.ndarray, and_mask: np.ndarray, z_lens: np.ndarray,
                shifted: bool = False) -> Prepared:
        """n spectra as the model sees them.

        flux, ivar, and_mask: (n, n_pix) on the model's window, or if `shifted` on as many pixels redwards of it;
        z_lens: (n,).
        """
        model, (first, n_pix) = self.model, self.model.pixels
        settings = dataclasses.replace(model.input, **SHIFTED) if shifted else model.input
        return prepare(flux, ivar, and_mask, z_lens, model.basis, settings, first + n_pix * shifted)


def scorer(model: Model, config: Config) -> Scorer:
    """The scorer of `model` on the engine that `config.score` asks for."""
    return Scorer(model, engine.engine_for(model, config.score.engine, config.score.precision, config.score.batch_size))


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
    """`df` (selected spectra in the model's window, packed) as schema.SCORED: LINE and NULLS measured, pixels dropped.

    Only rows with `selected` are scored; one with too few usable pixels stops being selected and says so. A random
    `score.null_fraction` of them is scored upside down too, of the others those with as many pixels again redwards of
    the window there, and sky fibres as they are: all of this only fills NULLS. Raises ValueError if the engine is not
    installed on the driver.
    """
    engine.choose(config.score.engine)
    role = roles(config, model.pixels[1])
    pixels = [F.when(role.isNotNull(), F.col(name)).alias(name) for name in INPUT]
    measured = df.withColumn("measured", _measure(df.sparkSession, model, config)(*pixels, role))
    unusable = F.coalesce(F.col("selected") & ~F.col("measured.scorable"), F.lit(False))
    because = F.when(unusable, F.lit(TOO_FEW_PIXELS)).otherwise(F.col("not_selected_because"))
    measured = measured.withColumns({
        "selected": F.col("selected") & ~unusable,
        "not_selected_because": because,
        **{name: F.col(f"measured.{name}") for name in _NUMBERS},
    })
    return schema.SCORED.conform(measured.select(*schema.SCORED.names))


def roles(config: Config, n_pix: int) -> Column:
    """What is to be done with a row: `score`, `both` (and once more upside down), `shifted` (and once more redwards of
    the window, if it has more than `n_pix` pixels), `null` (a sky fibre), else null.

    Which rows are `both` depends on key and seed alone, not on the order or the partitions.
    """
    key = [F.col(column.name) for column in schema.KEY]
    drawn = F.pmod(F.xxhash64(F.lit(config.score.null_seed), *key), F.lit(2**31)) / 2**31
    again = F.when(drawn < config.score.null_fraction, "both").when(F.length("flux") > n_pix * 4, "shifted")  # bytes
    role = F.when(F.col("selected"), F.coalesce(again, F.lit("score")))
    if config.score.null_sky:
        sky = F.col("reason").isNull() & (F.upper(F.trim("objtype")) == "SKY") & F.col("z_lens").isNotNull()
        role = role.when(sky, "null")
    return role


def _measure(spark: Any, model: Model, config: Config) -> Callable:
    shared = share(spark, model.files)
    sha256, (_, n_pix) = model.sha256, model.pixels

    @F.pandas_udf(_OUTPUT.ddl)
    def measure(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        score_batch = _scorer_once(shared.value, sha256, config)
        for flux, ivar, and_mask, z_lens, loglam0, role in batches:
            every = np.flatnonzero(role.notna().to_numpy())
            out = {name: np.full(len(role), np.nan) for name in _NUMBERS}
            scorable = np.full(len(role), None, dtype=object)
            for rows in (every[i:i + AT_ONCE] for i in range(0, len(every), AT_ONCE)):
                packed = {"flux": flux, "ivar": ivar, "and_mask": and_mask}
                planes = [_arrays(name, column.to_numpy()[rows], n_pix) for name, column in packed.items()]
                numbers = [column.to_numpy()[rows] for column in (z_lens, loglam0, role)]
                found, scorable[rows] = search(score_batch, planes, *numbers, n_pix, config.vetting.line_hits_snr)
                for name, values in found.items():
                    out[name][rows] = values
            yield pd.DataFrame({**out, "scorable": scorable}).astype({"n_line_hits": "Int32", "scorable": "boolean"})

    return measure


def search(score_batch: Scorer, planes: list[list[np.ndarray]], z_lens: np.ndarray, loglam0: np.ndarray,
           role: np.ndarray, n_pix: int, min_snr: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """LINE and NULLS columns, NaN where a row's role asks for none or it is not scorable; and what is scorable.

    planes: flux, ivar, and_mask, each a list of n arrays on the window's `n_pix` pixels, or where the role is `shifted`
    on twice as many.
    """
    both, away = np.flatnonzero(role == "both"), np.flatnonzero(role == "shifted")
    prepared = score_batch.prepare(*(np.stack([array[:n_pix] for array in plane]) for plane in planes), z_lens)
    seen = [(np.arange(len(role)), prepared, 0), (both, prepared[both].upside_down(), 0)]
    if len(away):
        beyond = (np.stack([plane[row][n_pix:] for row in away]) for plane in planes)
        seen.append((away, score_batch.prepare(*beyond, z_lens[away], shifted=True), n_pix))
    p_line, heat = score_batch.run(np.concatenate([spectra.channels for _, spectra, _ in seen]))  # in one call
    measured, first = [], 0
    for rows, spectra, step in seen:
        its = slice(first, first + len(rows))
        first = its.stop
        values = measure_line(spectra, heat[its], loglam0[rows] + step * DLOGLAM, min_snr)
        values["p_line"] = ranked(p_line[its], values["line_snr"])
        measured.append({name: np.where(spectra.scorable, value, np.nan) for name, value in values.items()})
    own, flipped, *redwards = measured
    found = {name: np.where(role == "null", np.nan, values) for name, values in own.items()}
    found |= {null: np.where(role == "null", own[name], np.nan) for null, name in _NULL_OF.items()}
    for null, name in _NULL_OF.items():
        found[null][both] = flipped[name]
    for shifted in redwards:
        for null, name in _SHIFTED_OF.items():
            found[null] = np.full(len(role), np.nan)
            found[null][away] = shifted[name]
    return found, prepared.scorable


def _arrays(plane: str, packed: np.ndarray, n_pix: int) -> list[np.ndarray]:
    """The pixels of each spectrum's packed `plane`; raises ValueError for one without `n_pix` pixels, or twice as many.
    """
    arrays = [unpack(plane, data) for data in packed]
    lengths = {len(array) for array in arrays}
    if not lengths <= {n_pix, 2 * n_pix}:
        raise ValueError(f"{plane}: spectra of {sorted(lengths)} pixels, expected {n_pix}, or twice as many")
    return arrays
