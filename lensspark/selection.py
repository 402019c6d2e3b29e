"""Which spectra are searched: samples as lists of named keep-conditions.

A criterion that meets a null or NaN fails, with two deliberate exceptions: a blank or null SUBCLASS means "no
subclass" (the normal state of a passive galaxy), and what only a platelist knows (plate quality, sky chi2) is
checked where it is known.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lensspark import config

Criterion = tuple[str, Column]


def _text(name: str) -> Column:
    """A catalogue string without the padding and the mixed case that FITS writers leave."""
    return F.upper(F.trim(F.col(name)))


def _finite(name: str) -> Column:
    """False for NaN and the infinities, null for null."""
    return F.abs(F.col(name)) < float("inf")  # NaN sorts above infinity in Spark


def _published(selection: config.Selection) -> list[Criterion]:
    """Parent sample of Li et al. (2018): CLASS GALAXY without emission-line subclasses, Z above a limit."""
    subclass = F.coalesce(_text("subclass"), F.lit(""))
    return [
        ("class", _text("class") == "GALAXY"),
        *((f"subclass_{name.lower()}", ~subclass.contains(name)) for name in ("STARFORMING", "BROADLINE", "AGN")),
        ("z_min", _finite("z") & (F.col("z") > selection.z_min)),
    ]


def _classical(selection: config.Selection) -> list[Criterion]:
    """Sample of Shu et al. (2016): galaxy targets with a clean redshift from galaxy templates, on good plates."""
    good_plate = F.col("plate_quality").isNull() | (_text("plate_quality") == "GOOD")
    good_sky = F.col("sky_chi2").isNull() | (_finite("sky_chi2") & (F.col("sky_chi2") < selection.max_sky_chi2))
    return [
        ("objtype", _text("objtype") == "GALAXY"),
        ("class_noqso", _text("class_noqso") == "GALAXY"),
        ("zwarning_noqso", F.col("zwarning_noqso") == 0),
        ("plate_quality", good_plate),
        ("sky_chi2", good_sky),
        ("z_noqso", _finite("z_noqso")),
    ]


def _all(selection: config.Selection) -> list[Criterion]:
    """Every spectrum that has a redshift."""
    return [("z", _finite("z"))]


# Per sample: its criteria and the redshift that it goes by.
_SAMPLES = {"published": (_published, "z"), "classical": (_classical, "z_noqso"), "all": (_all, "z")}


def criteria(selection: config.Selection) -> list[Criterion]:
    """(name, keep-condition) of every criterion of the configured sample, in the order of the funnel."""
    build, _ = _SAMPLES[selection.sample]
    return build(selection)


def select(df: DataFrame, selection: config.Selection) -> DataFrame:
    """`df` (schema.SPECTRA) with `z_lens`, `selected` and `not_selected_because`; no row is dropped.

    `z_lens` is null where the redshift is not finite; `selected` is null for a row that carries a fault (`reason`).
    """
    _, redshift = _SAMPLES[selection.sample]
    failed = F.concat_ws(
        ",", *(F.when(~F.coalesce(keep, F.lit(False)), F.lit(name)) for name, keep in criteria(selection))
    )
    readable = F.col("reason").isNull()
    return df.withColumns({
        "z_lens": F.when(_finite(redshift), F.col(redshift)),
        "selected": F.when(readable, failed == ""),
        "not_selected_because": F.when(readable & (failed != ""), failed),
    })
