"""Tables are declared once: names, types, units and UCDs that other tools understand."""

import re

import pytest
from astropy import units as u
from astropy.io.votable.ucd import check_ucd

from lensspark import schema

TABLES = {table.name: table for table in vars(schema).values() if isinstance(table, schema.Table)}
# What readers of a run rely on; a name may be added here, never changed.
LEDGER = """plate mjd fiberid run2d ra dec z_lens class subclass selected p_line is_hit line_wave line_snr line_flux
    line_flux_err alpha alpha_err p_skew_positive dchi2_skew sn_oii_veto z_source theta_e n_repeat n_repeat_confirmed
    neighbour_fiber q_value veto known_lens run_id model_sha256""".split()  # noqa: SIM905
UNITS = {"ra": "deg", "dec": "deg", "line_wave": "Angstrom", "theta_e": "arcsec", "vdisp": "km / s", "mag_i": "mag",
         "line_flux": "1e-17 erg / (s cm2)", "line_peak": "1e-17 erg / (s cm2 Angstrom)"}


def test_every_table_is_tested():
    assert set(TABLES) >= {"spectra", "quarantine", "ledger", "scored", "candidates", "truth"}


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_declarations(table):
    assert len(set(table.names)) == len(table.names)
    for column in table.columns:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", column.name), column
        assert column.description and column.description == " ".join(column.description.split()), column
        unit = u.Unit(column.unit)  # raises for a unit that astropy cannot read
        assert u.Unit(unit.to_string("fits"), format="fits") == unit  # and FITS can say it
        assert not column.ucd or check_ucd(column.ucd, check_controlled_vocabulary=True), column


def test_ledger_has_the_columns_that_readers_rely_on():
    assert set(LEDGER) <= set(schema.LEDGER.names)
    assert sorted(schema.CANDIDATES.names) == sorted(["name", "rank", *schema.LEDGER.names])
    assert schema.CANDIDATES.names[:13] == ["name", "rank", "ra", "dec", "z_lens", "z_source", "mag_i", "profile_flux",
                                            "alpha", "plate", "mjd", "fiberid", "run2d"]
    by_name = {column.name: column for column in schema.LEDGER.columns}
    assert {name: u.Unit(by_name[name].unit) for name in UNITS} == {name: u.Unit(unit) for name, unit in UNITS.items()}


def test_one_name_means_one_thing():
    """A column keeps its type and unit from table to table."""
    seen = {}
    for table in TABLES.values():
        for column in table.columns:
            assert seen.setdefault(column.name, (column.type, column.unit)) == (column.type, column.unit), column.name


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_ddl_and_struct_type_agree(spark, table):
    from pyspark.sql import types as T

    parsed, built = T._parse_datatype_string(table.ddl), table.struct_type()
    assert [(f.name, f.dataType.simpleString()) for f in parsed] == [(f.name, f.dataType.simpleString()) for f in built]


def test_conform_orders_casts_and_fills_with_null(spark):
    df = spark.createDataFrame([("late", 7, 1.5)], "reason string, plate long, hdu double")
    got = schema.QUARANTINE.conform(df)
    assert got.schema == schema.QUARANTINE.struct_type()
    assert got.first().asDict() == {"path": None, "plate": 7, "mjd": None, "fiberid": None, "run2d": None, "hdu": 1,
                                    "reason": "late"}


def test_conform_refuses_what_is_not_declared(spark):
    df = spark.createDataFrame([(1, 2, 3)], "plate int, surprise int, another int")
    with pytest.raises(ValueError, match=r"columns \['another', 'surprise'\] are not declared in table 'quarantine'"):
        schema.QUARANTINE.conform(df)
