"""Measuring: the spectra of hits, of their neighbours on the CCD and of repeated observations, read once more.

What is read is a table of targets, one row per (spectrum, hit); the spectra never leave the workers. `measure` of the
hits is lensspark.measure's; in the others the counterpart of the hit's line is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import SparkSession

from lensspark import arrow, exposures, lensing, measure, schema, source
from lensspark.boss import UNREADABLE, Fault, Key, Survey, full_files, read_exposures
from lensspark.config import Config
from lensspark.counterpart import counterpart
from lensspark.model import Model
from lensspark.session import share, task_slots
from lensspark.spectrum import mask_bits
from lensspark.store import Rows
from lensspark.vetting import sky

KEY = [column.name for column in schema.KEY]
HIT_KEY = [f"hit_{name}" for name in KEY]
HIT, NEIGHBOUR, REPEAT = "hit", "neighbour", "repeat"
OF_THE_HIT = ("line_wave", "line_flux", "z_lens", "vdisp", "vdisp_err")
PLANES = ("flux", "ivar", "and_mask", "wdisp", "model")
AT_ONCE = 48  # whole spectra that a worker holds, and hits that it gathers: fewer at once take longer each
PARTS_PER_CORE, TARGETS_PER_TASK = 4, 2000  # at least, as hits are uneven; at most
SDSS_RUN2D = ("26", "103", "104")  # SDSS-I/II: two spectrographs of 320 fibres; BOSS: of 500
_TYPES = {column.name: column for column in (*schema.KEY, *schema.CATALOGUE, *schema.SELECTION, *schema.LINE)}
_VETTING = {column.name: column for column in schema.VETTING}
COLUMNS = (*measure.COLUMNS, *exposures.COLUMNS)  # measured of a hit in its own spectrum and its exposures

TARGETS = schema.Table("targets", (
    *schema.KEY,
    *(schema.Column(f"hit_{column.name}", column.type, column.description) for column in schema.KEY),
    schema.Column("role", "string", "hit, neighbour or repeat"),
    *schema.PROVENANCE,
    *(_TYPES[name] for name in OF_THE_HIT),
))
MEASURED = schema.Table("measured", (
    *TARGETS.columns[:9],
    schema.Column("at_flux", "double", "flux of the counterpart", schema.LINE_FLUX_UNIT),
    schema.Column("at_flux_err", "double", "its error", schema.LINE_FLUX_UNIT),
    schema.Column("at_snr", "double", "its matched-filter S/N"),
    *(_VETTING[name] for name in COLUMNS),
))


def is_hit(rows: pd.DataFrame, config: Config) -> np.ndarray:
    """Which of `rows` are hits."""
    return (rows["p_line"] > config.score.threshold).to_numpy(bool)


def targets(rows: Rows, hits: pd.DataFrame, config: Config) -> pd.DataFrame:
    """TARGETS: the `hits`, their neighbours and their repeats among `rows`, in one pass."""
    hits = hits.drop_duplicates(KEY)  # a mirror may hold a spectrum twice
    hits = hits[[*KEY, "path", *OF_THE_HIT, "ra", "dec"]].rename(columns=dict(zip(KEY, HIT_KEY, strict=True)))
    own = hits.assign(role=HIT, **dict(zip(KEY, (hits[name] for name in HIT_KEY), strict=True)))
    reach, radius = config.vetting.neighbour_fibres, config.vetting.repeat_radius
    steps = np.array([step for step in range(-reach, reach + 1) if step])
    beside = own.loc[own.index.repeat(len(steps))].assign(role=NEIGHBOUR)
    beside["fiberid"] += np.tile(steps, len(own))
    beside = beside[_spectrograph(beside, "fiberid") == _spectrograph(beside, "hit_fiberid")].drop(columns="path")
    shared = share(rows.spark, (hits.drop(columns="path"), beside))

    def find(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        its_hits, its_neighbours = shared.value
        for spectra in arrow.at_once(batches):
            i, j, _ = sky.pairs(its_hits, spectra, radius)
            again = pd.concat([its_hits.iloc[i].reset_index(drop=True),
                               spectra[[*KEY, "path"]].iloc[j].reset_index(drop=True)], axis=1).assign(role=REPEAT)
            again = again[(again["plate"] != again["hit_plate"]) | (again["mjd"] != again["hit_mjd"])]
            found = pd.concat([spectra[[*KEY, "path"]].merge(its_neighbours, on=KEY), again])
            yield arrow.from_pandas(found, TARGETS)

    found = rows.map(find, TARGETS.ddl, (*KEY, "path", "ra", "dec")).toArrow().to_pandas()
    return pd.concat([own[list(TARGETS.names)], found], ignore_index=True)


def _spectrograph(spectra: pd.DataFrame, fiberid: str) -> np.ndarray:
    return (spectra[fiberid] - 1) // np.where(spectra["run2d"].isin(SDSS_RUN2D), 320, 500)


def measured(spark: SparkSession, survey: Survey, wanted: pd.DataFrame, model: Model, config: Config) -> pd.DataFrame:
    """MEASURED of `wanted` (TARGETS): a task reads some files of the `survey`, and measures what is wanted of them.

    A spectrum that is broken outside the window of the search, or whose file is gone, has no row; a file that the
    system cannot read now, but could before, fails the task.
    """
    if wanted.empty:
        return pd.DataFrame(columns=MEASURED.names)
    keys = [Key(*row) for row in wanted[KEY].itertuples(index=False, name=None)]
    full = full_files(survey, {key for key, role in zip(keys, wanted["role"], strict=True) if role == HIT})
    its = wanted.assign(full=[full.get(key) for key in keys])
    fibers = {path: tuple(of[["fiberid", "run2d"]].drop_duplicates().itertuples(index=False, name=None))
              for path, of in its.groupby("path")}
    units = tuple(replace(unit, fibers=fibers[unit.path]) for unit in survey.units if unit.path in fibers)
    parts = source.blocks(units, TARGETS_PER_TASK, PARTS_PER_CORE * (task_slots(spark) or 1), lambda u: len(u.fibers))
    vetting = config.vetting
    shared = share(spark, (model.files, its, lensing.distances(vetting.cosmology)))
    options = source.Options("", window=None, columns=PLANES, max_rows_per_batch=AT_ONCE)

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        files, its_targets, distances = shared.value
        own = Model(files)
        for rows in _apart(_readable(batch.to_pandas()).merge(its_targets, on=KEY) for batch in batches):
            yield arrow.from_pandas(_measure(rows, own, vetting, distances), MEASURED)

    return source.map_files(spark, parts, options, work, MEASURED).toArrow().to_pandas()


def _readable(rows: pd.DataFrame) -> pd.DataFrame:
    """Key, class and pixels of the rows without a fault; raises OSError for a file that cannot be read now."""
    for row in rows[rows["reason"].notna() & rows["hdu"].isna()].itertuples():
        if row.reason.startswith(UNREADABLE):
            raise OSError(f"{row.path}: {row.reason}")
    return rows.loc[rows["reason"].isna(), [*KEY, "class", "loglam0", *PLANES]]


def _apart(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The rows of `batches`: those that are not hits as they come, hits AT_ONCE at a time."""
    waiting: list[pd.DataFrame] = []
    for rows in batches:
        hit = rows["role"] == HIT
        if not hit.all():
            yield rows[~hit]
        if hit.any():  # copied: what stays shall not keep the pixels of the others
            own = rows[hit]
            waiting.append(own.assign(**{name: list(map(copy, own[name])) for name in PLANES}))
        if sum(map(len, waiting)) >= AT_ONCE:
            yield pd.concat(waiting)
            waiting = []
    if waiting:
        yield pd.concat(waiting)


def _measure(batch: pd.DataFrame, model: Model, vetting: Any, distances: lensing.Distances | None = None
             ) -> pd.DataFrame:
    """MEASURED of some rows of pixels."""
    batch = batch.reset_index(drop=True)
    out = batch[[name for name in MEASURED.names if name in batch.columns]].copy()
    planes = {name: measure.pad(list(batch[name])) for name in PLANES}
    good = np.where((planes["and_mask"] & mask_bits(model.input.bad_pixel_bits)) == 0, planes["ivar"], 0)
    loglam0, wave = batch["loglam0"].to_numpy(), batch["line_wave"].to_numpy(float)
    # The model of a neighbour that is a galaxy has the very line that leaks; no other model has a foreign line.
    beside = (batch["role"] == NEIGHBOUR).to_numpy()
    modelled = ~beside | (batch["class"] == "STAR").to_numpy()
    light = planes["flux"] - np.where(modelled[:, None] & np.isfinite(planes["model"]), planes["model"], 0)
    reach = np.where(beside, vetting.neighbour_max_px, 0.0)
    hits = np.flatnonzero(batch["role"] == HIT)
    columns = {name: np.full(len(batch), None if _VETTING[name].type == "string" else np.nan) for name in COLUMNS}
    if len(hits):
        numbers = [batch[name].to_numpy(float)[hits] for name in ("z_lens", "line_wave", "vdisp", "vdisp_err")]
        found = measure.measure_hits(*(planes[name][hits] for name in PLANES), loglam0[hits], *numbers,
                                     basis=model.basis, window=model.window, input_settings=model.input,
                                     settings=vetting, distances=distances)
        for name, values in found.items():
            columns[name][hits] = values
    for i in hits[batch["full"].notna()[hits]]:
        for name, value in _exposures(batch.loc[i], columns["profile_width"][i], model, vetting).items():
            columns[name][i] = value
    return out.assign(**counterpart(light, good, loglam0, wave, reach), **columns)[MEASURED.names]


def _exposures(hit: pd.Series, width: float, model: Model, vetting: Any) -> dict[str, float]:
    """exposures.COLUMNS of a row of pixels whose `full` file is there; none where that cannot be trusted."""
    wave, bad = float(hit["line_wave"]), mask_bits(model.input.bad_pixel_bits)
    try:
        found = read_exposures(hit["full"], Key(*(hit[name] for name in KEY)), exposures.window(wave))
    except Fault:  # the search has its spectrum; this is evidence beside it
        return {}
    if not found:  # a lite file by another name
        return {}
    good = [(one.loglam, one.flux, np.where(one.mask & bad == 0, one.ivar, 0)) for one in found]
    return exposures.compare(good, wave, width, vetting.exposure_flux_loss)


def gathered(wanted: pd.DataFrame, measured: pd.DataFrame, config: Config) -> pd.DataFrame:
    """One row per hit of `wanted` (TARGETS), in its order: its key and all that `measured` (MEASURED) says of it.

    A hit whose own spectrum could not be read again has NaN.
    """
    v = config.vetting
    measured = measured.drop(columns="role").drop_duplicates([*KEY, *HIT_KEY])
    every = wanted[[*KEY, *HIT_KEY, "role", "line_flux"]].merge(measured, on=[*KEY, *HIT_KEY], how="left")
    every = every.set_index(HIT_KEY)
    hits, beside, again = (every[every["role"] == role] for role in (HIT, NEIGHBOUR, REPEAT))
    out = hits[list(COLUMNS)].copy()

    # Of neighbours the brightest counts; one that shows nothing has a ratio of 0, one that could not be measured none.
    ratio = (beside["at_flux"] / beside["line_flux"]).where(beside["at_snr"] >= v.neighbour_min_snr, 0.0)
    beside = beside.assign(ratio=ratio)[beside["at_snr"].notna()]
    out["n_neighbour"] = beside.groupby(level=HIT_KEY).size().reindex(out.index, fill_value=0)
    brightest = beside.sort_values("ratio", kind="stable").groupby(level=HIT_KEY)[["ratio", "fiberid"]].last()
    brightest = brightest.reindex(out.index)
    out["neighbour_ratio"] = brightest["ratio"]
    out["neighbour_fiber"] = brightest["fiberid"].where(brightest["ratio"] > 1)

    out["n_repeat"] = again.groupby(level=HIT_KEY).size().reindex(out.index, fill_value=0)
    confirmed = again[again["at_snr"] >= v.repeat_min_snr]
    out["n_repeat_confirmed"] = confirmed.groupby(level=HIT_KEY).size().reindex(out.index, fill_value=0)
    own = hits[["at_flux", "at_flux_err"]].reindex(again.index)
    tension = ((1 - v.repeat_flux_loss) * own["at_flux"] - again["at_flux"]) / np.hypot(
        own["at_flux_err"], again["at_flux_err"])
    out["repeat_tension"] = tension.groupby(level=HIT_KEY).max().reindex(out.index)
    weight = again["at_flux_err"] ** -2.0
    flux, weight = (values.groupby(level=HIT_KEY).sum(min_count=1).reindex(out.index)
                    for values in (again["at_flux"] * weight, weight))
    own_weight = hits["at_flux_err"] ** -2.0
    out["repeat_snr"] = (hits["at_flux"] * own_weight + flux) / np.sqrt(own_weight + weight)
    return out.rename_axis(KEY).reset_index()
