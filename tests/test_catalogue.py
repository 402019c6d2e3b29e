"""Names, ranks, the four candidate files and the run card."""

import io
import json
import math
import os
import re
from fractions import Fraction

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import Angle
from astropy.io import fits
from astropy.io.votable import parse_single_table, validate
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st

from lensspark import catalogue, config, schema

CONFIGURATION = config.load().as_dict()


def test_published_name():
    # Li et al. (2018) print SDSS J142310.55+231928.1; its place in degrees, to the binary digit that falls just below
    ra = math.nextafter(15 * (14 + 23 / 60 + 10.55 / 3600), 0)
    dec = math.nextafter(23 + 19 / 60 + 28.1 / 3600, 0)
    assert catalogue.iau_name(ra, dec).item() == "SDSS J142310.55+231928.1"


@pytest.mark.parametrize(("ra", "dec", "name"), [
    (0.0, 0.0, "SDSS J000000.00+000000.0"),
    (0.0, -0.0, "SDSS J000000.00+000000.0"),
    (0.0, -1e-13, "SDSS J000000.00+000000.0"),  # binary dust below the equator
    (0.0, -0.00001, "SDSS J000000.00-000000.0"),  # 0.036 arcsec south is south
    (180.0, -0.5, "SDSS J120000.00-003000.0"),
    (359.99999999999994, 10.0, "SDSS J000000.00+100000.0"),  # 24 h is 0 h
    (360.0, 90.0, "SDSS J000000.00+900000.0"),
    (-15.0, -90.0, "SDSS J230000.00-900000.0"),
    (359.9999, 89.99999, "SDSS J235959.97+895959.9"),  # truncated; rounding would give 59.98 and 90
    (7.36412, 25.73383, "SDSS J002927.38+254401.7"),  # 29 m 27.3888 s, 44' 01.788"
])
def test_names_are_truncated(ra, dec, name):
    assert catalogue.iau_name(ra, dec).item() == name


@given(st.integers(0, 8_639_999), st.integers(-323_999, 323_999), st.floats(0, 0.99))
def test_names_agree_with_exact_arithmetic(hundredths, tenths, fraction):
    """Any point within a digit's cell has that cell's name; fractions of exact rationals are the oracle."""
    cell = Fraction(fraction)
    ra = float((hundredths + cell) / 24000)
    sign = -1 if tenths < 0 else 1
    dec = float(sign * (abs(tenths) + cell) / 36000)
    h, d = hundredths, abs(tenths)
    expected = (f"SDSS J{h // 360000:02}{h // 6000 % 60:02}{h % 6000 // 100:02}.{h % 100:02}"
                f"{'-' if tenths < 0 else '+'}{d // 36000:02}{d // 600 % 60:02}{d % 600 // 10:02}.{d % 10}")
    assert catalogue.iau_name(ra, dec).item() == expected


def test_names_lie_within_one_digit_of_the_position():
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 500), rng.uniform(-89.9, 89.9, 500)
    names = catalogue.iau_name(ra, dec)
    parts = [re.fullmatch(r"SDSS J(\d\d)(\d\d)(\d\d\.\d\d)([+-]\d\d)(\d\d)(\d\d\.\d)", name).groups() for name in names]
    named_ra = Angle([f"{h}h{m}m{s}s" for h, m, s, *_ in parts]).deg
    named_dec = Angle([f"{d}d{m}m{s}s" for *_, d, m, s in parts]).deg
    assert np.all((ra - named_ra >= -1e-9) & (ra - named_ra < 15 * 0.01 / 3600 + 1e-9))
    assert np.all((np.abs(dec) - np.abs(named_dec) >= -1e-9) & (np.abs(dec) - np.abs(named_dec) < 0.1 / 3600 + 1e-9))


def test_a_place_that_is_no_place_has_no_name():
    names = catalogue.iau_name([np.nan, 10.0, 10.0, np.inf], [0.0, np.nan, 90.1, 0.0])
    assert names.tolist() == [None] * 4


# plate, p_line, line_snr, veto
LEDGER = [(5, 0.9, 8.0, 0), (4, 0.99, 7.0, 0), (3, 0.99, 9.0, 0), (2, 0.99, 9.0, 0), (1, 1.0, 30.0, 3),
          (6, 0.1, 1.0, None)]


def ledger(spark, rows=LEDGER):
    made = [(plate, 55000, 7, "v5_7_0", 142.5, -0.25, p, snr, veto) for plate, p, snr, veto in rows]
    ddl = ("plate int, mjd int, fiberid int, run2d string, ra double, dec double, "
           "p_line double, line_snr double, veto int")
    return schema.LEDGER.conform(spark.createDataFrame(made, ddl))


def test_candidates_are_ranked_by_score_then_snr_then_key(spark):
    got = catalogue.candidates(ledger(spark).repartition(3))
    assert list(got.columns) == schema.CANDIDATES.names
    types = {"int": "int32", "long": "int64", "double": "float64", "boolean": "bool"}
    known = [column for column in schema.CANDIDATES.columns if column.type in types and got[column.name].notna().all()]
    assert {"rank", "plate", "veto", "ra", "p_line"} <= {column.name for column in known}
    assert all(got[column.name].dtype == types[column.type] for column in known), "pandas has no null in the others"
    assert got[["rank", "plate"]].to_numpy().tolist() == [[1, 2], [2, 3], [3, 4], [4, 5]]
    assert set(got["name"]) == {"SDSS J093000.00-001500.0"}
    none = catalogue.candidates(ledger(spark).where("veto > 0"))
    assert none.empty and list(none.columns) == schema.CANDIDATES.names


def table(n):
    """A pandas table as Spark's toPandas gives it: nulls in every type that can have them, text from outside."""
    rows = []
    for i in range(n):
        row = dict.fromkeys(schema.CANDIDATES.names)
        row.update(
            name=f"SDSS J0000{i:02}.00+000000.0", rank=i + 1, plate=3600 + i, mjd=55200, fiberid=i + 1, run2d="v5_7_0",
            ra=10.125 + i, dec=-0.5, z_lens=0.3 + 0.1 * i, selected=True, is_hit=True, veto=0, p_line=0.75,
            line_wave=4321.0 + 1 / 3, line_flux=None if i == 1 else 12.5, n_repeat=None if i else 2, zwarning=2**40 + i,
            subclass=None if i == 1 else 'a "quoted" <b>, comma', run_id="r", model_sha256="ab" * 32,
        )
        row["class"] = "GALAXY"
        rows.append(row)
    return pd.DataFrame(rows, columns=schema.CANDIDATES.names)


def read(run, name):
    if name == "candidates.ecsv":
        return Table.read(f"{run}/{name}", format="ascii.ecsv")
    return Table.read(f"{run}/{name}", format="votable" if name.endswith("vot") else "fits")


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("name", ["candidates.fits", "candidates.ecsv", "candidates.vot"])
def test_products_read_back_with_values_units_descriptions_and_ucds(tmp_path, n, name):
    made = table(n)
    catalogue.write_products(str(tmp_path), made)
    got = read(tmp_path, name)
    assert got.colnames == schema.CANDIDATES.names and len(got) == n
    for column in schema.CANDIDATES.columns:
        back = got[column.name]
        assert (back.unit or u.dimensionless_unscaled) == u.Unit(column.unit), column.name
        assert " ".join(back.description.split()) == column.description  # VOTable wraps
        assert back.meta.get("ucd", "") == column.ucd
        for was, value in zip(made[column.name], back, strict=True):
            if pd.isna(was):
                empty = np.ma.is_masked(value) or value in ("", b"")  # a null text is an empty one in these formats
                assert empty or (isinstance(value, float) and np.isnan(value)), (column.name, value)
            else:
                assert (value.decode() if isinstance(value, bytes) else value) == was, column.name


@pytest.mark.parametrize("n", [0, 3])
def test_parquet_holds_nulls_types_and_units(tmp_path, spark, n):
    made = table(n)
    catalogue.write_products(str(tmp_path), made)
    arrow = pq.read_table(f"{tmp_path}/candidates")
    assert arrow.to_pydict() == {name: [None if pd.isna(v) else v for v in made[name]] for name in made}
    assert arrow.schema.field("line_wave").metadata[b"unit"] == b"Angstrom"
    assert spark.read.parquet(f"{tmp_path}/candidates").schema == schema.CANDIDATES.struct_type()


def test_other_tools_find_ucds_and_a_valid_votable(tmp_path):
    catalogue.write_products(str(tmp_path), table(2))
    with fits.open(tmp_path / "candidates.fits", checksum=True) as hdus:
        header = hdus["CANDIDATES"].header
        hdus.verify("exception")
    i = schema.CANDIDATES.names.index("line_wave") + 1
    assert header[f"TUCD{i}"] == "em.wl.central;spect.line" and "wavelength" in header[f"TCOMM{i}"]
    assert header[f"TNULL{schema.CANDIDATES.names.index('n_repeat') + 1}"] == -(2**31)
    fields = {field.name: field for field in parse_single_table(str(tmp_path / "candidates.vot")).fields}
    assert fields["ra"].ucd == "pos.eq.ra;meta.main" and fields["ra"].unit == u.deg
    report = io.StringIO()
    validate(str(tmp_path / "candidates.vot"), output=report)
    assert not re.findall(r"\b[WE]\d\d\b", report.getvalue()), report.getvalue()


def test_products_need_every_column():
    with pytest.raises(ValueError, match=r"columns \['p_line'\] are missing"):
        catalogue.to_astropy(table(1).drop(columns="p_line"))


def test_files_are_written_to_urls_too():
    run = "memory://survey/run"
    catalogue.write_products(run, table(1))
    with fsspec.open(f"{run}/candidates.ecsv") as file:
        assert file.read().startswith(b"# %ECSV")
    assert len(fsspec.filesystem("memory").find("/survey/run")) == 4


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "run.json"
    catalogue.write_file(str(path), b"old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        catalogue.write_file(str(path), b"new")
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["run.json"]


def test_files_have_the_permissions_of_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        catalogue.write_file(str(tmp_path / "a"), b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


COUNTS = {"n_input": 10, "n_quarantined": 1, "n_not_selected": 2, "n_scored": 7, "n_hits": 3, "n_non_hits": 4,
          "n_candidates": 1, "n_vetoed": 2}


def test_counts_that_add_up_pass():
    catalogue.check_counts(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("wrong", [lambda n: n + 1, lambda n: -n, lambda n: None, lambda n: 0.5])
def test_any_wrong_count_is_found(name, wrong):
    with pytest.raises(RuntimeError, match="counts"):
        catalogue.check_counts({**COUNTS, name: wrong(COUNTS[name])})


def card(**changes):
    parts = {"funnel": {"counts": COUNTS, "not_selected": {"class": 2}, "cuts": []}, "configuration": CONFIGURATION,
             "model_sha256": "ab", "manifest_sha256": "cd", "timings": {"score": 1.23456}}
    return catalogue.run_card(**{**parts, **changes})


def test_run_card_is_written_and_holds_what_a_rerun_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    catalogue.write_run_card(str(tmp_path), card(spectra="s3://user:hunter2@mirror/dr12"))
    text = (tmp_path / "run.json").read_text()
    got = json.loads(text)
    assert "hunter2" not in text and got["spectra"] == "s3://mirror/dr12"
    assert got["counts"] == COUNTS and got["timings"] == {"score": 1.235}
    assert config.from_dict(got["configuration"]) == config.load()
    assert got["versions"]["pyspark"].startswith("4.") and got["versions"]["lensspark"]


def test_a_run_card_whose_counts_do_not_add_up_is_not_written(tmp_path):
    wrong = {**COUNTS, "n_vetoed": 1}
    with pytest.raises(RuntimeError, match=r"n_hits \(3\) is not n_candidates \(1\) \+ n_vetoed \(1\)"):
        card(funnel={"counts": wrong})
    with pytest.raises(RuntimeError, match="do not add up"):
        catalogue.write_run_card(str(tmp_path), {**card(), "counts": wrong})
    assert not (tmp_path / "run.json").exists()


def test_run_id_names_input_model_and_configuration():
    other = config.load(settings=["score.threshold=0.6"]).as_dict()
    ids = [catalogue.run_id(*parts) for parts in (
        (CONFIGURATION, "m", "i"), (other, "m", "i"), (CONFIGURATION, "n", "i"), (CONFIGURATION, "m", "j"))]
    assert len(set(ids)) == 4 and all(re.fullmatch("[0-9a-f]{16}", name) for name in ids)
    shuffled = dict(reversed(json.loads(json.dumps(CONFIGURATION)).items()))
    assert catalogue.run_id(shuffled, "m", "i") == ids[0]  # as a resumed run reads it from run.json


def test_names_agree_with_the_published_ones(shared_data):
    """Shu et al. (2016): names and positions, the latter with five decimals (0.018 arcsec), hence neighbours pass."""
    published = pd.read_csv(shared_data / "tables" / "lenscat_shu2016_bellsgallery.csv")
    names = published["name"].str.extract(r"SDSSJ(\d{6}\.\d\d[+-]\d{6}\.\d)(?!\d)")[0]
    near = []
    for name, ra, dec in zip(names, published["RA [deg]"], published["DEC [deg]"], strict=True):
        if isinstance(name, str):
            step = np.array([-6e-6, 0, 6e-6])
            near.append(f"SDSS J{name}" in catalogue.iau_name(ra + step[:, None], dec + step))
    assert len(near) >= 10 and np.mean(near) > 0.95, near
