"""Which spectra are searched: samples as lists of named keep-conditions.

A criterion that meets a null or NaN fails, with two deliberate exceptions: a blank or null SUBCLASS means "no
subclass" (the normal state of a passive galaxy), and what only a platelist knows (plate quality, sky chi2) is
checked where it is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lensspark import config, schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Criterion = tuple[str, np.ndarray]
_READS = ("class", "subclass", "z", "objtype", "class_noqso", "zwarning_noqso", "z_noqso", "plate_quality", "sky_chi2")
NAMES = [column.name for column in schema.SELECTION]


def text(values: pd.Series) -> pd.Series:
    """A catalogue string without the padding and the mixed case that FITS writers leave; '' for null."""
    codes, names = pd.factorize(values)  # a survey has few different ones; null has code -1
    names = np.array([*(str(name).strip(" ").upper() for name in names), ""], dtype=object)
    return pd.Series(names[codes], index=values.index)


def _number(values: pd.Series) -> np.ndarray:
    """float64, NaN for null and what is not finite."""
    numbers = pd.to_numeric(values).to_numpy(float, na_value=np.nan)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _published(rows: pd.DataFrame, selection: config.Selection) -> list[Criterion]:
    """Parent sample of Li et al. (2018): CLASS GALAXY without emission-line subclasses, Z above a limit."""
    subclass = text(rows["subclass"])
    return [
        ("class", text(rows["class"]) == "GALAXY"),
        *((f"subclass_{name.lower()}", ~subclass.str.contains(name, regex=False))
          for name in ("STARFORMING", "BROADLINE", "AGN")),
        ("z_min", _number(rows["z"]) > selection.z_min),
    ]


def _classical(rows: pd.DataFrame, selection: config.Selection) -> list[Criterion]:
    """Sample of Shu et al. (2016): galaxy targets with a clean redshift from galaxy templates, on good plates."""
    return [
        ("objtype", text(rows["objtype"]) == "GALAXY"),
        ("class_noqso", text(rows["class_noqso"]) == "GALAXY"),
        ("zwarning_noqso", _number(rows["zwarning_noqso"]) == 0),
        ("plate_quality", rows["plate_quality"].isna() | (text(rows["plate_quality"]) == "GOOD")),
        ("sky_chi2", rows["sky_chi2"].isna() | (_number(rows["sky_chi2"]) < selection.max_sky_chi2)),
        ("z_noqso", np.isfinite(_number(rows["z_noqso"]))),
    ]


def _all(rows: pd.DataFrame, selection: config.Selection) -> list[Criterion]:
    """Every spectrum that has a redshift."""
    return [("z", np.isfinite(_number(rows["z"])))]


# Per sample: its criteria and the redshift that it goes by.
_SAMPLES = {"published": (_published, "z"), "classical": (_classical, "z_noqso"), "all": (_all, "z")}


def criteria(rows: pd.DataFrame, selection: config.Selection) -> dict[str, np.ndarray]:
    """Name -> keep-condition (n,) bool of every criterion of the configured sample, in the order of the funnel.

    `rows`: n rows of schema.CATALOGUE.
    """
    build, _ = _SAMPLES[selection.sample]
    return {name: np.asarray(keep, bool) for name, keep in build(rows, selection)}


def selected(rows: pd.DataFrame, selection: config.Selection) -> pd.DataFrame:
    """Columns of schema.SELECTION for n readable `rows` of schema.CATALOGUE, with the index of `rows`.

    `z_lens` is NaN where the redshift is not finite.
    """
    _, redshift = _SAMPLES[selection.sample]
    keep = criteria(rows, selection)
    failed = ~np.stack(list(keep.values()), axis=1)
    names = np.array(list(keep))
    because = np.full(len(rows), None, dtype=object)
    for i in np.flatnonzero(failed.any(axis=1)):
        because[i] = ",".join(names[failed[i]])
    return pd.DataFrame({"z_lens": _number(rows[redshift]), "selected": ~failed.any(axis=1),
                         "not_selected_because": because}, index=rows.index)


def select(df: DataFrame, selection: config.Selection) -> DataFrame:
    """`df` (schema.SPECTRA) with `z_lens`, `selected` and `not_selected_because`; no row is dropped.

    `z_lens` is null where the redshift is not finite; `selected` is null for a row that carries a fault (`reason`).
    """
    from pyspark.sql import functions as F

    ddl = schema.Table("selection", schema.SELECTION).ddl

    @F.pandas_udf(ddl)
    def choose(*columns: pd.Series) -> pd.DataFrame:
        return selected(pd.concat(columns, axis=1, keys=_READS), selection)

    chosen = df.withColumn("_chosen", choose(*_READS))
    readable = F.col("reason").isNull()
    chosen = chosen.withColumns({name: F.col(f"_chosen.{name}") for name in NAMES})
    return chosen.withColumns({name: F.when(readable, F.col(name)) for name in NAMES[1:]}).drop("_chosen")
