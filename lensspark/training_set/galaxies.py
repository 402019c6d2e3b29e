"""Galaxies in bins of redshift on the cluster: one task per bin, bounded in spectra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa

from lensspark import schema
from lensspark.arrow import schema_of
from lensspark.config import Config
from lensspark.galaxy_bins import measure, reaches, sound_ivar
from lensspark.training_set.common import KEY, Frame, by_hash, plane, plates_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def measure_galaxies(backdrops: DataFrame, splits: dict[int, str], path: Path, config: Config, frame: Frame
                     ) -> tuple[list[dict], dict[int, int]]:
    """Write schema.GALAXIES of the training plates, one task per bin; the rows, and galaxies by bin left out.

    Raises ValueError if no bin holds or can borrow as many galaxies as survey_training.min_galaxies.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    settings = config.survey_training
    galaxies = backdrops.where(~F.col("is_sky")).withColumn("bin", F.floor(F.col("z") / settings.z_bin).cast("int"))
    own, tests = (galaxies.where(F.col("plate").isin(plates_of(splits, split))) for split in ("train", "validation"))
    counts = {row["bin"]: row["count"] for row in own.groupBy("bin").count().collect()}
    reach = reaches(counts, settings.min_galaxies, settings.max_borrowed_bins)
    if not reach:
        raise ValueError(
            f"{sum(counts.values())} galaxies on the training plates in {len(counts)} bins of redshift: none reaches "
            f"survey_training.min_galaxies = {settings.min_galaxies} with {settings.max_borrowed_bins} neighbours on "
            "each side; give more spectra, wider bins (survey_training.z_bin) or fewer galaxies per bin")
    spark = backdrops.sparkSession
    lent = [(number + step, number) for number, far in reach.items() for step in range(-far, far + 1)]
    lent = spark.createDataFrame(pd.DataFrame(lent, columns=["bin", "target"]))
    kept = spark.createDataFrame(pd.DataFrame({"bin": list(reach), "target": list(reach)}))
    keys = [F.broadcast(kept).join(tests.select(*KEY, "bin"), "bin").withColumn("held_out", F.lit(True)),
            F.broadcast(lent).join(own.select(*KEY, "bin"), "bin").withColumn("held_out", F.lit(False))]
    order = Window.partitionBy("target", "held_out").orderBy(*by_hash(config))
    chosen = (keys[0].unionByName(keys[1]).withColumn("rank", F.row_number().over(order))
              .where(F.col("rank") <= settings.max_galaxies).select(*KEY, "target", "held_out"))
    measured = (galaxies.join(chosen, KEY).select(*KEY, "target", "held_out", "z", "flux", "ivar", "and_mask")
                .groupBy("target").applyInArrow(_measurer(config, frame), schema.GALAXIES.struct_type()))
    facts = pd.DataFrame({"z_bin": list(reach), "n_own": [counts[b] for b in reach], "reach": list(reach.values())})
    facts = spark.createDataFrame(facts.astype("int32"))
    measured = measured.drop("n_own", "reach").join(F.broadcast(facts), "z_bin")
    schema.GALAXIES.conform(measured).write.parquet(str(path))
    rows = spark.read.parquet(str(path)).toArrow().to_pylist()
    found = {row["z_bin"] for row in rows}
    return rows, {number: count for number, count in counts.items() if number not in found}


def _measurer(config: Config, frame: Frame) -> Callable[[pa.Table], pa.Table]:
    settings, inputs, first = config.survey_training, config.input, frame.first - frame.margin
    types = schema_of(schema.GALAXIES)

    def measure_bin(group: pa.Table) -> pa.Table:
        group = group.sort_by([(name, "ascending") for name in KEY])
        flux, ivar, and_mask = (plane(group[name]) for name in ("flux", "ivar", "and_mask"))
        ivar = sound_ivar(ivar, and_mask, inputs, first)
        row = measure(group["target"][0].as_py(), group["z"].to_numpy(), flux, ivar, group["held_out"].to_numpy(),
                      frame.margin, settings)
        rows = [] if row is None else [dict.fromkeys(types.names) | row]
        return pa.Table.from_pylist([r | {"n_own": 0, "reach": 0} for r in rows], schema=types)

    return measure_bin
