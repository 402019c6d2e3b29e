"""Positions on the sky: pairs within a radius, found by an equi-join on cells of a grid, never by a cross join.

Unit vectors are cut into cubes as wide as the radius (as a chord): two positions within it lie in the same cube or in
adjacent ones, at the poles and at 0 h as anywhere else.
"""

from __future__ import annotations

import itertools
import math

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

ARCSEC = math.radians(1 / 3600)


def unit_vector(ra: str, dec: str) -> tuple[Column, Column, Column]:
    """Cartesian coordinates of columns in degrees."""
    a, d = F.radians(ra), F.radians(dec)
    return F.cos(d) * F.cos(a), F.cos(d) * F.sin(a), F.sin(d)


def pairs(few: DataFrame, many: DataFrame, radius: float) -> DataFrame:
    """Every row of `few` with every row of `many` within `radius` arcsec: columns of both and `separation` (arcsec).

    Both have `ra`, `dec` (degrees; null or NaN matches nothing), which are dropped; no other name may be in both. `few`
    is broadcast, so that `many` is not shuffled.
    """
    chord = 2 * math.sin(radius * ARCSEC / 2)
    axes = ("x", "y", "z")

    def placed(df: DataFrame, side: str) -> DataFrame:
        vector = dict(zip(axes, unit_vector("ra", "dec"), strict=True))
        known = df.where(F.col("ra").between(-720, 720) & F.col("dec").between(-90, 90))  # NaN is above all numbers
        return known.withColumns({f"_{side}_{axis}": value for axis, value in vector.items()}).drop("ra", "dec")

    shifts = ", ".join("named_struct('x', {}, 'y', {}, 'z', {})".format(*steps)
                       for steps in itertools.product((-1, 0, 1), repeat=3))
    left = placed(few, "few").withColumn("_shift", F.expr(f"explode(array({shifts}))"))
    left = left.withColumns({f"_cell_{a}": (F.floor(F.col(f"_few_{a}") / chord) + F.col(f"_shift.{a}")) for a in axes})
    right = placed(many, "many").withColumns({f"_cell_{a}": F.floor(F.col(f"_many_{a}") / chord) for a in axes})
    cells = [f"_cell_{a}" for a in axes]
    joined = right.join(F.broadcast(left), on=cells, how="inner")
    squared = sum((F.pow(F.col(f"_few_{a}") - F.col(f"_many_{a}"), 2) for a in axes), F.lit(0.0))
    half = F.least(F.sqrt(squared) / 2, F.lit(1.0))
    joined = joined.withColumn("separation", 2 * F.asin(half) / ARCSEC).where(F.col("separation") <= radius)
    return joined.drop("_shift", *cells, *(f"_{side}_{a}" for side in ("few", "many") for a in axes))
