"""The two published samples, criterion by criterion, on rows that fail exactly one of them."""

import dataclasses

import pandas as pd
import pytest

from lensspark import config, schema
from lensspark.selection import criteria, select

SELECTION = config.load().selection
NAN, INF = float("nan"), float("inf")
GALAXY = {
    "class": "GALAXY", "subclass": "", "z": 0.5, "objtype": "GALAXY", "class_noqso": "GALAXY", "zwarning_noqso": 0,
    "z_noqso": 0.51, "plate_quality": "good", "sky_chi2": 1.1,
}

# (changes to a good galaxy, criteria that fail)
PUBLISHED = [
    ({}, None),
    ({"class": "GALAXY   "}, None),
    ({"subclass": None}, None),
    ({"subclass": "STARBURST"}, None),
    ({"z": 0.3000001}, None),
    ({"z": 0.3}, "z_min"),
    ({"z": NAN}, "z_min"),
    ({"z": INF}, "z_min"),
    ({"z": None}, "z_min"),
    ({"class": "QSO"}, "class"),
    ({"class": None}, "class"),
    ({"subclass": "STARFORMING"}, "subclass_starforming"),
    ({"subclass": "agn"}, "subclass_agn"),
    ({"subclass": "AGN BROADLINE"}, "subclass_broadline,subclass_agn"),
    ({"class": "STAR", "subclass": "K5", "z": -0.0001}, "class,z_min"),
    ({"zwarning_noqso": 4, "objtype": "QSO", "sky_chi2": 9.0}, None),
]
CLASSICAL = [
    ({}, None),
    ({"class": "QSO", "subclass": "AGN", "z": NAN}, None),
    ({"plate_quality": None, "sky_chi2": None}, None),
    ({"objtype": "QSO"}, "objtype"),
    ({"objtype": None}, "objtype"),
    ({"class_noqso": None}, "class_noqso"),
    ({"zwarning_noqso": 4}, "zwarning_noqso"),
    ({"zwarning_noqso": None}, "zwarning_noqso"),
    ({"plate_quality": "marginal"}, "plate_quality"),
    ({"sky_chi2": 1.4}, "sky_chi2"),
    ({"sky_chi2": NAN}, None),
    ({"sky_chi2": INF}, "sky_chi2"),
    ({"z_noqso": NAN}, "z_noqso"),
    ({"z_noqso": None, "sky_chi2": 2.0}, "sky_chi2,z_noqso"),
]
ALL = [({}, None), ({"class": None, "z": -0.0004}, None), ({"z": NAN}, "z"), ({"z": None}, "z")]


def spectra(spark, changes):
    """One schema.SPECTRA row per dict of changes; fiberid is the row's number."""
    names = [name for name in schema.SPECTRA.names if name in GALAXY or name in ("fiberid", "reason")]
    simple = {column.name: column.type for column in schema.SPECTRA.columns}
    rows = [[{**GALAXY, "reason": None, "fiberid": i, **change}[name] for name in names]
            for i, change in enumerate(changes)]
    df = spark.createDataFrame(rows, ", ".join(f"`{name}` {simple[name]}" for name in names))
    return schema.SPECTRA.conform(df)


@pytest.mark.parametrize(("sample", "cases"), [("published", PUBLISHED), ("classical", CLASSICAL), ("all", ALL)])
def test_every_criterion_rejects_what_it_should_and_nothing_else(spark, sample, cases):
    settings = dataclasses.replace(SELECTION, sample=sample)
    got = select(spectra(spark, [change for change, _ in cases]), settings).orderBy("fiberid").collect()
    assert [(row.selected, row.not_selected_because) for row in got] == [(why is None, why) for _, why in cases]
    redshift = "z_noqso" if sample == "classical" else "z"
    for (change, _), row in zip(cases, got, strict=True):
        z = {**GALAXY, **change}[redshift]
        assert row.z_lens == (z if z is not None and abs(z) < INF else None)  # NaN and infinity become null
    named = {name for _, why in cases if why for name in why.split(",")}
    assert named == set(criteria(pd.DataFrame([GALAXY]), settings)), "a criterion without a case"


def test_rows_with_a_fault_are_neither_selected_nor_not(spark):
    (row,) = select(spectra(spark, [{"reason": "HDU 1: CHECKSUM differs"}]), SELECTION).collect()
    assert (row.selected, row.not_selected_because) == (None, None)


def test_limits_come_from_the_configuration(spark):
    df = spectra(spark, [{"z": z} for z in (0.1, 0.2, 0.4)])
    counts = [select(df, dataclasses.replace(SELECTION, z_min=z)).where("selected").count() for z in (0.0, 0.15, 0.3)]
    assert counts == [3, 2, 1]


def test_selecting_keeps_every_row_and_column(spark):
    df = spectra(spark, [{}, {"z": None}, {"reason": "empty file"}])
    chosen = select(df, SELECTION)
    assert chosen.count() == 3
    assert chosen.columns == [*df.columns, "z_lens", "selected", "not_selected_because"]
