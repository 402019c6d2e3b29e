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
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from lensspark import arrow, exposures, lensing, measure, schema, source
from lensspark.boss import UNREADABLE, Fault, Key, Survey, full_files, read_exposures
from lensspark.config import Config
from lensspark.counterpart import counterpart
from lensspark.model import Model
from lensspark.session import share, task_slots
from lensspark.spectrum import mask_bits
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


def is_hit(config: Config) -> Column:
    """The condition of a hit; null where nothing was scored."""
    return (F.col("p_line") > config.score.threshold) & ~F.isnan("p_line")


def targets(rows: DataFrame, hits: DataFrame, config: Config) -> DataFrame:
    """TARGETS: the `hits`, their neighbours and their repeats among `rows`, all readable spectra."""
    named = hits.select(*(F.col(name).alias(f"hit_{name}") for name in (*KEY, "path")), *OF_THE_HIT, "ra", "dec")
    own = named.withColumns({name: F.col(f"hit_{name}") for name in (*KEY, "path")}).withColumn("role", F.lit(HIT))
    every = rows.select(*KEY, "path", "ra", "dec")
    beside = every.drop("ra", "dec").join(F.broadcast(named), on=[
        F.col("plate") == F.col("hit_plate"), F.col("mjd") == F.col("hit_mjd"), F.col("run2d") == F.col("hit_run2d"),
        F.abs(F.col("fiberid") - F.col("hit_fiberid")).between(1, config.vetting.neighbour_fibres),
        _spectrograph("fiberid") == _spectrograph("hit_fiberid"),
    ], how="inner").withColumn("role", F.lit(NEIGHBOUR))
    again = sky.pairs(named, every, config.vetting.repeat_radius)
    again = again.where("plate != hit_plate OR mjd != hit_mjd").withColumn("role", F.lit(REPEAT))
    parts = [df.select(*TARGETS.names) for df in (own, beside, again)]
    return TARGETS.conform(parts[0].unionByName(parts[1]).unionByName(parts[2]))


def _spectrograph(fiberid: str) -> Column:
    fibres = F.when(F.col("run2d").isin(*SDSS_RUN2D), 320).otherwise(500)
    return F.floor((F.col(fiberid) - 1) / fibres)


def measured(spark: SparkSession, survey: Survey, wanted: DataFrame, model: Model, config: Config) -> DataFrame | None:
    """MEASURED of `wanted` (TARGETS): a task reads some files of the `survey`, and measures what is wanted of them.

    None if nothing is wanted. A spectrum that is broken outside the window of the search, or whose file is gone, has no
    row; a file that the system cannot read now, but could before, fails the task.
    """
    targets = wanted.toPandas()  # names and lines of spectra, a few for each hit
    if targets.empty:
        return None
    keys = [Key(*row) for row in targets[KEY].itertuples(index=False, name=None)]
    full = full_files(survey, {key for key, role in zip(keys, targets["role"], strict=True) if role == HIT})
    targets["full"] = [full.get(key) for key in keys]
    fibers = {path: tuple(of[["fiberid", "run2d"]].drop_duplicates().itertuples(index=False, name=None))
              for path, of in targets.groupby("path")}
    units = tuple(replace(unit, fibers=fibers[unit.path]) for unit in survey.units if unit.path in fibers)
    parts = source.blocks(units, TARGETS_PER_TASK, PARTS_PER_CORE * (task_slots(spark) or 1), lambda u: len(u.fibers))
    vetting = config.vetting
    shared = share(spark, (model.files, targets, lensing.distances(vetting.cosmology)))
    options = source.Options("", window=None, columns=PLANES, max_rows_per_batch=AT_ONCE)

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        files, its_targets, distances = shared.value
        own = Model(files)
        for rows in _apart(_readable(batch.to_pandas()).merge(its_targets, on=KEY) for batch in batches):
            yield arrow.from_pandas(_measure(rows, own, vetting, distances), MEASURED)

    return source.map_files(spark, parts, options, work, MEASURED)


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


def gathered(wanted: DataFrame, measured: DataFrame | None, config: Config) -> DataFrame:
    """One row per hit of `wanted` (TARGETS): its key and all that `measured` (MEASURED) says of it.

    A hit whose own spectrum could not be read again has nulls.
    """
    v = config.vetting
    joined = wanted.select(*KEY, *HIT_KEY, "role", "line_flux")
    if measured is None:
        measured = wanted.sparkSession.createDataFrame([], MEASURED.struct_type())
    joined = joined.join(measured.drop("role"), on=[*KEY, *HIT_KEY], how="left")
    own = joined.where(F.col("role") == HIT).select(
        *HIT_KEY, *COLUMNS, F.col("at_flux").alias("own_flux"), F.col("at_flux_err").alias("own_err"))
    beside = joined.where(F.col("role") == NEIGHBOUR)
    ratio = F.when(F.col("at_snr") >= v.neighbour_min_snr, F.col("at_flux") / F.col("line_flux")).when(
        F.col("at_snr").isNotNull(), 0.0)
    beside = beside.withColumn("ratio", ratio).groupBy(*HIT_KEY).agg(
        F.count("ratio").cast("int").alias("n_neighbour"), F.max("ratio").alias("neighbour_ratio"),
        F.max_by("fiberid", "ratio").alias("brightest"))
    again = joined.where(F.col("role") == REPEAT).join(
        own.select(*HIT_KEY, "own_flux", "own_err"), on=HIT_KEY, how="left")
    tension = ((1 - v.repeat_flux_loss) * F.col("own_flux") - F.col("at_flux")) / F.sqrt(
        F.pow("own_err", F.lit(2)) + F.pow("at_flux_err", F.lit(2)))
    again = again.groupBy(*HIT_KEY).agg(
        F.count("*").cast("int").alias("n_repeat"),
        F.sum((F.coalesce(F.col("at_snr") >= v.repeat_min_snr, F.lit(False))).cast("int")).cast("int")
        .alias("n_repeat_confirmed"),
        F.max(tension).alias("repeat_tension"),
        F.sum(F.col("at_flux") / F.pow("at_flux_err", F.lit(2))).alias("weighted"),
        F.sum(1 / F.pow("at_flux_err", F.lit(2))).alias("weight"))
    every = own.join(beside, on=HIT_KEY, how="left").join(again, on=HIT_KEY, how="left")
    none = F.col("n_repeat").isNull()
    together = (F.col("own_flux") / F.pow("own_err", F.lit(2)) + F.col("weighted")) / F.sqrt(
        F.pow("own_err", F.lit(-2)) + F.col("weight"))
    every = every.withColumns({
        "repeat_snr": together,
        "n_repeat": F.when(none, 0).otherwise(F.col("n_repeat")).cast("int"),
        "n_repeat_confirmed": F.when(none, 0).otherwise(F.col("n_repeat_confirmed")).cast("int"),
        "n_neighbour": F.coalesce("n_neighbour", F.lit(0)).cast("int"),
        "neighbour_fiber": F.when(F.col("neighbour_ratio") > 1, F.col("brightest")).cast("int"),
    }).drop("brightest", "weighted", "weight", "own_flux", "own_err")
    return every.withColumnsRenamed(dict(zip(HIT_KEY, KEY, strict=True)))
