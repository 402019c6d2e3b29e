"""Reading a survey once: of each plate, galaxies and sky fibres are kept as backdrops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds

from lensspark import schema
from lensspark.config import Config
from lensspark.mock.artificial import Backdrops, sound_fibres
from lensspark.selection import select
from lensspark.training_set.common import KEY, Frame, by_hash, plane, split_plates

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

MANY_OUTLIERS = 1 << 4  # the one warning that says nothing against a redshift


def read_survey(spark: SparkSession, spectra: str, config: Config, frame: Frame) -> DataFrame:
    """Every spectrum of the survey in the frame's pixels, with the selection's columns; faults as rows."""
    read, (low, high) = config.read, frame.window
    options = {"layout": read.layout, "window": f"{low!r},{high!r}", "columns": "flux,ivar,and_mask,wdisp",
               "target_partition_mb": read.target_partition_mb, "max_rows_per_batch": read.max_rows_per_batch}
    return select(spark.read.format("boss").options(**options).load(spectra), config.selection)


def keep_backdrops(spectra: DataFrame, path: Path, config: Config, frame: Frame) -> dict[str, int]:
    """Write the sample's galaxies and the sky fibres as schema.BACKDROPS by plate, at most so many of each; counts.

    A galaxy needs a known objtype other than SKY and a redshift without warnings (but MANY_OUTLIERS).
    """
    from pyspark.sql import Observation, Window
    from pyspark.sql import functions as F

    settings, seen = config.survey_training, Observation("read")
    warning = "zwarning_noqso" if config.selection.sample == "classical" else "zwarning"
    kind = F.upper(F.trim("objtype"))
    is_sky = (kind == "SKY") & F.col("reason").isNull()
    is_galaxy = F.col("selected") & (kind != "SKY") & (F.col(warning).bitwiseAND(~MANY_OUTLIERS) == 0)
    spectra = spectra.observe(seen, F.count(F.lit(1)).alias("n_input"), F.count("reason").alias("n_quarantined"))
    spectra = spectra.withColumn("is_sky", is_sky).withColumn("z", F.when(~is_sky, F.col("z_lens")))
    kept = spectra.where(is_sky | is_galaxy).select(*schema.BACKDROPS.names)
    kept = kept.mapInArrow(_sound_only(config, frame), schema.BACKDROPS.struct_type())
    order = Window.partitionBy("plate", "is_sky").orderBy(*by_hash(config))
    limit = F.when(F.col("is_sky"), settings.sky_per_plate).otherwise(settings.galaxies_per_plate)
    kept = kept.withColumn("rank", F.row_number().over(order)).where(F.col("rank") <= limit)
    kept.drop("rank").write.partitionBy("plate").parquet(str(path))
    return {name: int(value) for name, value in seen.get.items()}


def _sound_only(config: Config, frame: Frame) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    inner = slice(frame.margin, frame.margin + frame.n_pix)

    def sound(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in filter(len, batches):
            flux, ivar, and_mask = (plane(batch.column(name))[:, inner] for name in ("flux", "ivar", "and_mask"))
            is_sky = batch.column("is_sky").to_numpy(zero_copy_only=False).astype(bool)
            yield batch.filter(pa.array(sound_fibres(flux, ivar, and_mask, is_sky, config.input, frame.first)))

    return sound


def usable_plates(backdrops: DataFrame, spectra: str, config: Config) -> dict[int, str]:
    """The split of each plate that has both galaxies and sky fibres. Raises ValueError if there are too few."""
    from pyspark.sql import functions as F

    n_sky, n_galaxy = (F.count(F.when(F.col("is_sky") == wanted, 1)) for wanted in (True, False))
    counts = backdrops.groupBy("plate").agg(n_sky.alias("sky"), n_galaxy.alias("galaxies")).toPandas()
    total = counts[["sky", "galaxies"]].sum()
    sample = config.selection.sample
    if not total["galaxies"]:
        raise ValueError(f"{spectra}: no galaxy of the sample {sample!r} with a trusted redshift to learn from")
    if not total["sky"]:
        raise ValueError(f"{spectra}: no sky fibre (OBJTYPE SKY); expected some on every plate")
    usable = sorted(counts.loc[(counts["sky"] > 0) & (counts["galaxies"] > 0), "plate"].tolist())
    log.info("%d galaxies and %d sky fibres kept; %d of %d plates have both", total["galaxies"], total["sky"],
             len(usable), len(counts))
    return split_plates(usable, config.training.validation_plates, config.training.test_plates, config.training.seed)


def load_backdrops(folder: Path, plate: int, config: Config, frame: Frame) -> Backdrops:
    """The backdrops of one plate, in the order of their keys."""
    table = ds.dataset(str(folder / f"plate={plate}"), format="parquet").to_table()
    table = table.sort_by([(name, "ascending") for name in KEY if name in table.column_names])
    columns = {name: table[name].to_numpy() for name in ("mjd", "run2d", "is_sky")}
    inner = slice(frame.margin, frame.margin + frame.n_pix)
    columns |= {name: plane(table[name])[:, inner] for name in ("flux", "ivar", "and_mask", "wdisp")}
    return Backdrops.of(columns, config.input, frame.first)
