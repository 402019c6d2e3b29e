"""Scoring on the cluster: the model is broadcast once, each Python worker verifies it and loads it once.

What runs in the workers gets Arrow batches of spectra, from Spark or read in place, and hands numpy arrays to the pure
functions: selected, prepare, engine, measure_line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from lensspark import arrow, engine, lines, schema, source
from lensspark.boss import Unit
from lensspark.config import Config
from lensspark.eigen import DLOGLAM
from lensspark.locate import faintest, measure_line, ranked
from lensspark.model import Model
from lensspark.selection import selected, text
from lensspark.session import share
from lensspark.spectrum import Prepared, prepare

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

AT_ONCE = 128  # spectra that are prepared together: more take memory and are no faster (docs/benchmarks.md)
MARGIN = 1e-3  # of S/N: what single precision may change
TOO_FEW_PIXELS = "too_few_usable_pixels"  # beside the sample's criteria in not_selected_because
_NUMBERS = tuple(column.name for column in schema.LINE + schema.NULLS)
# Where what is measured of a line goes, by what was searched: column -> what of the line.
_LINE = {column.name: column.name for column in schema.LINE}
_NULL = {"null_p_line": "p_line", "null_wave": "line_wave", "null_snr": "line_snr"}
_SHIFTED = {"shifted_p_line": "p_line", "shifted_wave": "line_wave", "shifted_snr": "line_snr"}
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


def least_snr(config: Config) -> float:
    """The S/N below which nothing that the run asks for depends on the network: score.min_snr, or less where fainter
    lines could be hits (`faintest`) or are counted in over-densities."""
    counted = max(faintest(config.vetting.overdensity_min_p_line), config.vetting.overdensity_min_snr)
    return min(config.score.min_snr, faintest(config.score.threshold) - MARGIN, counted)


def scorer(model: Model, config: Config) -> Scorer:
    """The scorer of `model` on the engine that `config.score` asks for."""
    return Scorer(model, engine.engine_for(model, config.score.engine, config.score.precision, config.score.batch_size))


def warm() -> None:
    """Loads the compiled kernels (lensspark.kernels), or compiles them where no search has been made yet: by preparing
    and measuring a spectrum without light."""
    model = Model.named("default")
    zeros = np.zeros((1, model.pixels[1]), np.float32)
    spectra = prepare(zeros, zeros, zeros.astype(np.int32), np.zeros(1), model.basis, model.input, model.pixels[0])
    _ = spectra.channels
    measure_line(spectra, None, np.zeros(1), 1.0)


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
                then: arrow.Work, table: schema.Table) -> DataFrame:
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


def _scoring(spark: SparkSession, model: Model, config: Config) -> arrow.Work:
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
    planes = [arrow.unpack(name, batch.column(name), n_pix) for name in ("flux", "ivar", "and_mask")]
    drawn = source.draw(key, config.score.null_fraction, f"flip-{config.score.null_seed}")
    role = roles(rows, chosen, drawn, planes[0].lengths > n_pix, config.score.null_sky)
    loglam0 = batch.column("loglam0").to_numpy(zero_copy_only=False)
    every = np.flatnonzero(role != "")
    values, scorable = search(score_batch, lambda rows, step: [plane.of(every[rows], step) for plane in planes],
                              z_lens[every], loglam0[every], role[every], config)
    found, unusable = {name: np.full(n, np.nan) for name in _NUMBERS}, np.zeros(n, bool)
    unusable[every] = ~scorable
    for name, value in values.items():
        found[name][every] = value
    unusable &= chosen["selected"].to_numpy()
    found |= {"z_lens": z_lens,
              "selected": np.where(readable, chosen["selected"] & ~unusable, None),
              "not_selected_because": np.where(readable, np.where(unusable, TOO_FEW_PIXELS, because), None)}
    return arrow.conform(batch, schema.SCORED, found)


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


def search(score_batch: Scorer, planes: Callable[[np.ndarray, int], Sequence[np.ndarray]], z_lens: np.ndarray,
           loglam0: np.ndarray, role: np.ndarray, config: Config) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """LINE and NULLS columns, NaN where a row's role asks for none or it is not scorable; and what is scorable.

    planes(rows, step): flux, ivar, and_mask (len(rows), n_pix) of some of the n rows, from the pixel `step` of the
    window on; z_lens, loglam0, role (n,). The classical search comes first: a line is where its S/N is highest, and
    p_line is 0. Where that S/N is `least_snr` or more the network decides instead.
    """
    n, n_pix, least = len(role), score_batch.model.pixels[1], least_snr(config)
    found, scorable = {name: np.full(n, np.nan) for name in _NUMBERS}, np.zeros(n, bool)
    asked: list[tuple[dict[str, str], np.ndarray, np.ndarray, Prepared]] = []

    def measure(spectra: Prepared, start: np.ndarray, p_line: np.ndarray, heat: np.ndarray | None,
                goes: Iterable[tuple[dict[str, str], np.ndarray]]) -> None:
        line = measure_line(spectra, heat, start, config.vetting.line_hits_snr)
        line["p_line"] = ranked(p_line, line["line_snr"])
        first = 0
        for columns, its in goes:
            at = slice(first, first := first + len(its))
            for column, name in columns.items():
                found[column][its] = np.where(spectra.scorable[at], line[name][at], np.nan)

    def ask() -> None:
        if asked:
            columns, its, starts, sets = zip(*asked, strict=True)
            spectra = Prepared.together(sets)
            measure(spectra, np.concatenate(starts), *score_batch.run(spectra.channels), zip(columns, its, strict=True))
            asked.clear()

    for first in range(0, n, AT_ONCE):
        rows = np.arange(first, min(first + AT_ONCE, n))
        own = score_batch.prepare(*planes(rows, 0), z_lens[rows])
        scorable[rows] = own.scorable
        seen = [(_LINE, rows, own, 0)]
        if (both := role[rows] == "both").any():
            seen.append((_NULL, rows[both], own[both].upside_down(), 0))
        if len(away := rows[role[rows] == "shifted"]):
            redwards = score_batch.prepare(*planes(away, n_pix), z_lens[away], shifted=True)
            seen.append((_SHIFTED, away, redwards, n_pix))
        for columns, its, spectra, step in seen:
            start = loglam0[its] + step * DLOGLAM
            measure(spectra, start, np.zeros(len(its)), None, [(columns, its)])
            bright = spectra.scorable & (spectra.snr.max(axis=1) >= least)
            asked.append((columns, its[bright], start[bright], spectra[bright]))
        if sum(len(its) for _, its, _, _ in asked) >= AT_ONCE:
            ask()
    ask()
    for column, name in _NULL.items():
        found[column] = np.where(role == "null", found[name], found[column])
    for column in _LINE:
        found[column][role == "null"] = np.nan
    return found, scorable
