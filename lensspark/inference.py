"""Scoring on the cluster: the model is broadcast once, each Python worker verifies it and loads it once.

What runs in the workers gets Arrow batches of spectra, from Spark or read in place, and hands numpy arrays to the pure
functions: selected, prepare, engine, measure_line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from lensspark import engine, lines, schema, source
from lensspark.boss import Unit
from lensspark.config import Config
from lensspark.eigen import DLOGLAM
from lensspark.locate import measure_line, ranked
from lensspark.model import Model
from lensspark.selection import selected, text
from lensspark.session import share
from lensspark.spectrum import Prepared, prepare

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

AT_ONCE = 128  # spectra that are prepared together: more take memory and are no faster (docs/benchmarks.md)
TOO_FEW_PIXELS = "too_few_usable_pixels"  # beside the sample's criteria in not_selected_because
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


def score(spectra: DataFrame, model: Model, config: Config) -> DataFrame:
    """`spectra` (data source "boss", `reading`'s options) as schema.SCORED: selected, LINE and NULLS measured.

    Only rows of the sample are scored; one with too few usable pixels stops being selected and says so. A random
    `score.null_fraction` of them is scored upside down too, of the others those with as many pixels again redwards of
    the window there, and sky fibres as they are: all of this only fills NULLS. Raises ValueError if the engine is not
    installed on the driver.
    """
    return spectra.mapInArrow(_scoring(spectra.sparkSession, model, config), schema.SCORED.ddl)


def score_files(spark: SparkSession, root: str, parts: Sequence[tuple[Unit, ...]], model: Model, config: Config,
                then: source.Work, table: schema.Table) -> DataFrame:
    """The rows of `table` that `then` makes of `score`'s, of the spectra in the files of `parts`, in one task each, so
    that neither pixels nor scores pass through the JVM."""
    options = source.parse_options({"path": root, **reading(model, config)})
    score_batches = _scoring(spark, model, config)
    return source.map_files(spark, parts, options, lambda batches: then(score_batches(batches)), table)


def reading(model: Model, config: Config) -> dict[str, str]:
    """The data source's options for what `score` takes."""
    settings, (low, high), scoring = config.read, model.window, config.score
    return {"layout": settings.layout, "window": f"{low!r},{high!r}", "packed": "true",
            "beyond": f"{scoring.null_shift_fraction!r},{scoring.null_seed}",
            "target_partition_mb": str(settings.target_partition_mb),
            "max_rows_per_batch": str(settings.max_rows_per_batch)}


def _scoring(spark: SparkSession, model: Model, config: Config) -> source.Work:
    """The function of Arrow batches, source.Options.table to schema.SCORED, that the workers run."""
    engine.choose(config.score.engine)
    shared, sha256 = share(spark, model.files), model.sha256

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        score_batch = _scorer_once(shared.value, sha256, config)
        for batch in batches:
            yield scored(batch, score_batch, config)

    return work


def scored(batch: pa.RecordBatch, score_batch: Scorer, config: Config) -> pa.RecordBatch:
    """schema.SCORED of a batch of the data source's rows; see `score`."""
    rows = batch.select([column.name for column in (*schema.CATALOGUE, *schema.FAULT)]).to_pandas()
    key = {column.name: batch.column(column.name).to_pylist() for column in schema.KEY}
    n, n_pix, readable = len(rows), score_batch.model.pixels[1], rows["reason"].isna().to_numpy()
    chosen = selected(rows, config.selection)
    z_lens, because = chosen["z_lens"].to_numpy(), chosen["not_selected_because"].to_numpy()
    planes = [source.unpack(name, batch.column(name), n_pix) for name in ("flux", "ivar", "and_mask")]
    drawn = source.draw(key, config.score.null_fraction, f"flip-{config.score.null_seed}")
    role = roles(rows, chosen, drawn, planes[0].lengths > n_pix, config.score.null_sky)
    loglam0 = batch.column("loglam0").to_numpy(zero_copy_only=False)
    found = {name: np.full(n, np.nan) for name in _NUMBERS}
    unusable, every = np.zeros(n, bool), np.flatnonzero(role != "")
    for part in (every[i:i + AT_ONCE] for i in range(0, len(every), AT_ONCE)):
        away = part[role[part] == "shifted"]
        near, far = ([plane.of(at, step) for plane in planes] for at, step in ((part, 0), (away, n_pix)))
        values, scorable = search(score_batch, near, far, z_lens[part], loglam0[part], role[part],
                                  config.vetting.line_hits_snr)
        unusable[part] = ~scorable
        for name, value in values.items():
            found[name][part] = value
    unusable &= chosen["selected"].to_numpy()
    found |= {"z_lens": z_lens,
              "selected": np.where(readable, chosen["selected"] & ~unusable, None),
              "not_selected_because": np.where(readable, np.where(unusable, TOO_FEW_PIXELS, because), None)}
    return source.conform(batch, schema.SCORED, found)


def roles(rows: pd.DataFrame, chosen: pd.DataFrame, drawn: np.ndarray, beyond: np.ndarray, sky_too: bool) -> np.ndarray:
    """What is to be done with each row, (n,) text: `score`; `both` where it is `drawn` (and once more upside down);
    `shifted` where it has pixels `beyond` the window (and once more there); `null` (a sky fibre, if `sky_too`); or ''.
    """
    readable = rows["reason"].isna().to_numpy()
    role = np.where(drawn, "both", np.where(beyond, "shifted", "score"))
    role = np.where(readable & chosen["selected"].to_numpy(), role, "")
    if sky_too:
        sky = (text(rows["objtype"]) == "SKY").to_numpy()
        role = np.where((role == "") & readable & sky & np.isfinite(chosen["z_lens"].to_numpy()), "null", role)
    return role


def search(score_batch: Scorer, near: Sequence[np.ndarray], far: Sequence[np.ndarray], z_lens: np.ndarray,
           loglam0: np.ndarray, role: np.ndarray, min_snr: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """LINE and NULLS columns, NaN where a row's role asks for none or it is not scorable; and what is scorable.

    near: flux, ivar, and_mask (n, n_pix) on the window; far: the same of the `shifted` rows alone, in order, redwards
    of it; z_lens, loglam0, role (n,).
    """
    both, away = np.flatnonzero(role == "both"), np.flatnonzero(role == "shifted")
    prepared = score_batch.prepare(*near, z_lens)
    seen = [(np.arange(len(role)), prepared, 0), (both, prepared[both].upside_down(), 0)]
    if len(away):
        seen.append((away, score_batch.prepare(*far, z_lens[away], shifted=True), near[0].shape[1]))
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
