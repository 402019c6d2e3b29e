"""The ledgers of two runs, joined on the cluster: counts, and the rows of hits that changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lensspark import schema, store
from lensspark.catalogue import join
from lensspark.eigen import DLOGLAM

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

KEY = [column.name for column in schema.KEY]
FIBRE = KEY[:3]  # a spectrum, whatever its reduction
DECIDING = ("is_hit", "veto", "p_line", "line_wave")


@dataclass(frozen=True)
class Tolerance:
    """What a hit of both runs may change by without having moved: pixels of 1e-4 dex, and score."""

    wave_px: float = 0.5
    p_line: float = 0.01


@dataclass(frozen=True)
class Pair:
    """Ledger and quarantine of both runs."""

    ledger: tuple[DataFrame, DataFrame]
    quarantine: tuple[DataFrame, DataFrame]

    @classmethod
    def read(cls, spark: SparkSession, a: str, b: str) -> Pair:
        """Of the finished runs with products in `a` and `b`; columns that are younger than a run are null."""
        def of(table: schema.Table) -> tuple[DataFrame, DataFrame]:
            one, other = (store.read(spark, join(run, table.name), table.struct_type()) for run in (a, b))
            return one, other

        return cls(of(schema.LEDGER), of(schema.QUARANTINE))


def tally(pair: Pair, tolerance: Tolerance) -> tuple[dict[str, int], pd.DataFrame, pd.DataFrame]:
    """Spectra in both and in one run only; numbers `n` of hits by `hit`, `candidate`, `is_moved`; and what changed:
    schema.CHANGES' key, `hit`, `candidate`, `moved` and both sides' columns, `in_a`, `in_b`, `fate`, `reduction`.

    The ledgers are joined as a whole on what decides, a few columns; all columns are read of what changed alone.
    """
    every = judged(joined(pair, DECIDING), tolerance)
    changed = (F.col("hit") != "kept") | (F.col("moved") != "")
    groups = every.groupBy("in_a", "in_b", "hit", "candidate", (F.col("moved") != "").alias("is_moved")).agg(
        F.count(F.lit(1)).alias("n"), F.collect_list(F.when(changed, F.struct(*KEY))).alias("keys")).collect()
    spectra = {name: sum(row["n"] for row in groups if (row["in_a"], row["in_b"]) == where)
               for name, where in (("both", (True, True)), ("only_a", (True, False)), ("only_b", (False, True)))}
    keys = [tuple(key) for row in groups for key in row["keys"]]
    numbers = pd.DataFrame([row.asDict() for row in groups if row["hit"]],
                           columns=["hit", "candidate", "is_moved", "n"])
    if not keys:
        return spectra, numbers, pd.DataFrame()
    types = ", ".join(f"{column.name} {column.type}" for column in schema.KEY)
    wanted = F.broadcast(pair.ledger[0].sparkSession.createDataFrame(keys, types))
    rows = judged(joined(pair, schema.COMPARED, wanted), tolerance)
    return spectra, numbers, whereabouts(plain(rows.toPandas()), pair)


def joined(pair: Pair, names: tuple[str, ...], wanted: DataFrame | None = None) -> DataFrame:
    """Both ledgers, row by row: columns `names` of both sides, `in_a`, `in_b`; of the spectra `wanted`, else of all."""
    sides = []
    for ledger, side in zip(pair.ledger, "ab", strict=True):
        rows = ledger if wanted is None else ledger.join(wanted, on=KEY, how="left_semi")
        columns = [F.col(name).alias(f"{name}_{side}") for name in names]
        sides.append(rows.select(*KEY, *columns, F.lit(True).alias(f"in_{side}")))
    both = sides[0].join(sides[1], on=KEY, how="full_outer")
    return both.withColumns({f"in_{side}": F.coalesce(f"in_{side}", F.lit(False)) for side in "ab"})


def judged(rows: DataFrame, tolerance: Tolerance) -> DataFrame:
    """`rows` (`joined`) with `hit`, `candidate` and `moved`, as schema.CHANGES has them."""
    is_hit = [F.coalesce(f"is_hit_{side}", F.lit(False)) for side in "ab"]
    candidate = [F.coalesce(F.col(f"veto_{side}") == 0, F.lit(False)) for side in "ab"]
    shift = F.abs(F.log10(F.col("line_wave_b") / F.col("line_wave_a"))) / DLOGLAM
    moved = {
        "line_wave": shift > tolerance.wave_px,
        "p_line": F.abs(F.col("p_line_b") - F.col("p_line_a")) > tolerance.p_line,
        "veto": F.col("veto_a") != F.col("veto_b"),
    }
    names = F.concat_ws(",", *(F.when(condition, name) for name, condition in moved.items()))
    return rows.withColumns({"hit": _fate(*is_hit), "candidate": _fate(*candidate),
                             "moved": F.when(is_hit[0] & is_hit[1], names).otherwise("")})


def _fate(a: Column, b: Column) -> Column:
    return F.when(a & b, "kept").when(b, "appeared").when(a, "vanished")


def whereabouts(changed: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    """`changed` with what the run that lacks a spectrum has in its stead: `fate`, the reason in its quarantine (of the
    spectrum, or of its plate's file), and `reduction`, its run2d there; None where there is neither."""
    found = changed.assign(fate=None, reduction=None)
    for quarantine, ledger, side in zip(pair.quarantine, pair.ledger, "ab", strict=True):
        lacking = changed.loc[~changed[f"in_{side}"].astype(bool), KEY]
        if lacking.empty:
            continue
        types = ", ".join(f"{column.name} {column.type}" for column in schema.KEY)
        absent = F.broadcast(ledger.sparkSession.createDataFrame(lacking.to_dict("records"), types))
        for name, table in (("fate", faults(quarantine, absent)), ("reduction", reductions(ledger, absent))):
            told = {tuple(row[:4]): row[4] for row in table.collect()}  # at most one row per row of `changed`
            keys = found[KEY].itertuples(index=False, name=None)
            found[name] = [told.get(key, before) for key, before in zip(keys, found[name], strict=True)]
    return found


def faults(quarantine: DataFrame, absent: DataFrame) -> DataFrame:
    """KEY of `absent` and the reason why the spectrum, or the file of its plate, is in `quarantine`."""
    renamed = (F.col(name).alias(f"_{name}") for name in ("fiberid", "run2d"))
    listed = quarantine.select("plate", "mjd", "reason", *renamed)
    same = F.coalesce(F.col("_fiberid") == F.col("fiberid"), F.lit(True))
    same &= (F.coalesce("_run2d", F.lit("")) == "") | (F.col("_run2d") == F.col("run2d"))
    return listed.join(absent, on=["plate", "mjd"]).where(same).groupBy(*KEY).agg(F.min("reason"))


def reductions(ledger: DataFrame, absent: DataFrame) -> DataFrame:
    """KEY of `absent` and the run2d under which `ledger` has the spectrum."""
    others = ledger.select(*FIBRE, F.col("run2d").alias("_run2d")).join(absent, on=FIBRE)
    return others.where(F.col("_run2d") != F.col("run2d")).groupBy(*KEY).agg(F.min("_run2d"))


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with Python's own numbers and None for what is null: pandas turns integers with nulls into floats."""
    types = {column.name: column.type for column in schema.CHANGES.columns}
    out = frame.astype(object).where(frame.notna(), None)
    for name, kind in types.items():
        if name in out and kind in ("int", "long"):
            out[name] = pd.Series([None if v is None else int(v) for v in out[name]], out.index, dtype=object)
    return out
