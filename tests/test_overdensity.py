"""Over-densities, sky pairs, null tests and known lenses, against brute force and analytic truth."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.stats import poisson

from lensspark import config, schema, store
from lensspark.vetting import census, known, nulls, overdensity, sky
from lensspark.vetting.evidence import overdensity_ranges

SETTINGS = config.load().vetting
WINDOW = (3800.0, 5000.0)
PX = np.log(10) * 1e-4  # relative width of a pixel


def lines(rows):
    """Lines of S/N 9 and p 0.9 from dicts."""
    base = {"plate": 1, "mjd": 55000, "run2d": "v5", "ra": 0.0, "dec": 0.0, "z_lens": 0.5, "p_line": 0.9,
            "line_wave": 4200.0, "line_snr": 9.0, "known_lens": None}
    return pd.DataFrame([{**base, "fiberid": i + 1, **row} for i, row in enumerate(rows)])


def counted(frame, folder, threshold):
    """The census of `frame`, stored in `folder`."""
    store.write(schema.LEDGER.conform(frame), str(folder))
    return census.take(store.Rows(frame.sparkSession, [str(folder)], schema.LEDGER), threshold)


def test_the_excess_is_the_published_one_where_counts_are_large_and_poissons_where_they_are_small():
    n, m = np.array([0, 1, 2, 6, 140, 500]), np.array([1.0, 1, 1, 1, 100, 100])
    got = overdensity.excess(n, m)
    np.testing.assert_allclose(got[:2], [-1, 0])
    assert got[3] < 4 < (6 - 1) / 1, "6 lines in a bin are no 4 sigma over 1"
    np.testing.assert_allclose(got[4], 4, rtol=0.1)
    assert (np.diff(got) > 0).all()
    np.testing.assert_allclose(overdensity.excess(n, m, capped=False), (n - m) / np.sqrt(m))


def test_chance_flags_hardly_any_bin_whatever_the_size_of_a_run():
    rng = np.random.default_rng(1)
    published = dataclasses.replace(SETTINGS, overdensity_poisson=False)
    flagged = {}
    for mean in (0.02, 0.3, 1.0, 3.0, 30.0):
        counts = {i: int(n) for i, n in enumerate(rng.poisson(mean, 20_000)) if n}
        flagged[mean] = [overdensity.histogram(counts, settings, "observed")["flagged"].sum()
                         for settings in (SETTINGS, published)]
    # 20,000 bins at 3.2e-5: 0.6 are expected at most, and four or more in one case of 250.
    assert all(ours <= 3 for ours, _ in flagged.values()), flagged
    assert flagged[1.0][1] > 4, "as published it is 12 above a median of 1 (6 lines or more)"


def test_a_small_run_needs_more_than_a_few_lines_at_one_wavelength():
    flagged = [overdensity.histogram({100: n, 110: 1}, SETTINGS, "observed")["flagged"].any() for n in range(1, 12)]
    assert flagged == [False] * 7 + [True] * 4


def test_a_peak_at_the_end_of_the_range_is_no_median():
    for span, at in (((12000, 12330), 12330), ((12000, 12330), 12000), (None, 5)):
        table = overdensity.histogram({at: 50, 12100: 1}, SETTINGS, "observed", span).set_index("bin")
        assert table.index[table["flagged"]].tolist() == [at]
        assert span is None or (table.index[0], table.index[-1]) == span


def test_a_flagged_bin_takes_its_neighbours_along_and_the_median_runs():
    counts = dict.fromkeys(range(300), 4) | {150: 40}
    grown = dataclasses.replace(SETTINGS, overdensity_grow=1)
    table = overdensity.histogram(counts, grown, "observed").set_index("bin")
    alone = overdensity.histogram(counts, SETTINGS, "observed").set_index("bin")
    assert alone.index[alone["flagged"]].tolist() == [150]
    assert table.index[table["flagged"]].tolist() == [149, 150, 151]
    assert table.loc[100, "expected"] == 4
    ranges = overdensity_ranges(table.reset_index(), SETTINGS.overdensity_bin_px)
    np.testing.assert_allclose(ranges["observed"], [[10 ** (149 * 3e-4), 10 ** (152 * 3e-4)]], atol=1e-3)
    assert ranges["lens"] == []


def test_template_residuals_and_airglow_are_told_apart_and_known_lenses_do_not_count():
    rng = np.random.default_rng(2)
    z = rng.uniform(0.3, 0.7, 120)
    template = [{"z_lens": z[i], "line_wave": 2800 * (1 + z[i])} for i in range(40)]  # one lens-frame wavelength
    sky_line = [{"z_lens": z[40 + i], "line_wave": 4424.0} for i in range(30)]
    known_ones = [{"z_lens": z[70 + i], "line_wave": 4700.0, "known_lens": "a lens"} for i in range(30)]
    alone = [{"line_wave": 4250.0, "z_lens": 0.41}]
    frame = lines(template + sky_line + known_ones + alone + [{"line_wave": None}])
    got, table = overdensity.with_wavelength_excess(frame, SETTINGS, WINDOW)
    assert got.pop("overdensity_lens").isna().tolist() == [False] * 101 + [True]
    got, table = overdensity.with_wavelength_excess(frame[:-1], SETTINGS, WINDOW)
    assert (got["overdensity_lens"][:40] > 4).all() and (got["overdensity_lens"][40:] <= 4).all()
    assert (got["overdensity_observed"][40:70] > 4).all() and (got["overdensity_observed"][70:] <= 4).all()
    assert set(table.columns) == set(schema.OVERDENSITY.names)
    total = table[table["frame"] == "observed"]["n"].sum()
    assert total == 30 + 1, "over-dense in the lens frame or known: not counted in the observed frame"


def test_fibres_plates_and_nights_against_the_mean_rate():
    spectra = pd.Series(np.full(1000, 100), index=np.arange(1000))
    found = pd.Series({7: 12, 8: 3})
    table = overdensity.group_excess(spectra, found, "fiberid", SETTINGS).set_index("bin")
    expected = 15 / 1000
    np.testing.assert_allclose(table.loc[7, "probability"], poisson.sf(11, expected))
    np.testing.assert_allclose(table.loc[9, "probability"], 1)
    assert table["flagged"].sum() == 2 and table.loc[[7, 8], "flagged"].all()
    assert overdensity_ranges(table.reset_index(), 3)["fiberid"] == [7, 8]
    half = overdensity.group_excess(spectra // 2, pd.Series({8: 1}), "fiberid", SETTINGS)
    assert not half["flagged"].any(), "one line is no over-density"


def test_groups_of_a_survey(spark, tmp_path):
    rows = [{"plate": 1 + i % 2, "mjd": 55000 + i % 2} for i in range(40)] + [{"plate": 9, "mjd": 56000}] * 30
    frame = lines(rows)
    quiet = spark.range(5000).selectExpr("int(1 + id % 2) plate", "int(55000 + id % 2) mjd", "int(id) fiberid",
                                         "0.1D p_line")
    quiet = quiet.unionByName(spark.range(100).selectExpr("9 plate", "56000 mjd", "int(id) fiberid", "0.1D p_line"))
    scored = quiet.unionByName(spark.createDataFrame(frame[["plate", "mjd", "fiberid", "p_line"]]))
    nulls_of = ["'GALAXY' objtype", *(f"double(NULL) {name}" for name in (
        "line_snr", "null_p_line", "null_snr", "shifted_p_line", "shifted_snr"))]
    scored = counted(scored.selectExpr("*", *nulls_of), tmp_path, 0.5).scored
    got, table = overdensity.with_group_excess(frame, scored, SETTINGS)
    assert (got.loc[got["plate"] == 9, ["p_plate", "p_night"]] < 1e-5).all(axis=None)
    assert (got.loc[got["plate"] != 9, "p_night"] > 1e-5).all()
    assert table.groupby("frame")["n"].sum().eq(70).all()


def test_the_same_line_in_other_fibres_of_the_plate():
    px = 4200 * PX
    rows = [{"line_wave": 4200 + step * px} for step in (-1.4, 0, 1.4, 2.9)]
    rows += [{"plate": 2, "line_wave": 4200.0}, {"mjd": 55001, "line_wave": 4200.0},
             {"line_wave": 4200.0, "p_line": 0.1, "fiberid": 900}]  # no line: not counted, but measured
    frame = lines(rows).assign(overdensity_observed=0.0)
    got = overdensity.with_same_wave(frame, SETTINGS, 1192).sort_values(["plate", "mjd", "fiberid"])
    assert got["n_same_wave"].tolist() == [1, 2, 2, 1, 3, 0, 0]
    np.testing.assert_allclose(got["p_same_wave"].iloc[1], poisson.sf(1, 3 * 3 / 1192), rtol=1e-6)
    assert (got["p_same_wave"].iloc[-2:] == 1).all()


def test_pairs_on_the_sky_are_those_of_brute_force():
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 300), np.degrees(np.arcsin(rng.uniform(-1, 1, 300)))
    ra[:4], dec[:4] = (0.0, 359.9999, 10.0, 190.0), (0.0, 0.0, 89.9999, 89.9999)  # 0 h; across the pole
    ra, dec = np.r_[ra, ra + rng.normal(0, 3e-4, 300)], np.r_[dec, np.clip(dec + rng.normal(0, 3e-4, 300), -90, 90)]
    few = pd.DataFrame({"ra": ra[:300], "dec": dec[:300]})
    nowhere = pd.DataFrame({"ra": [np.nan, None, 0.0], "dec": [0.0, None, 91.0]})
    many = pd.concat([nowhere, pd.DataFrame({"ra": ra % 360, "dec": dec})], ignore_index=True)
    a, b, apart = sky.pairs(few, many, 2.0)
    from astropy import units as u
    from astropy.coordinates import SkyCoord
    one, other = SkyCoord(ra[:300], dec[:300], unit="deg"), SkyCoord(ra, dec, unit="deg")
    i, j, separation, _ = other.search_around_sky(one, 2 * u.arcsec)
    assert len(a) == len(i) > 400 and (apart == 0).sum() >= 300, "each with itself"
    found = dict(zip(zip(a, b - 3, strict=True), apart, strict=True))
    np.testing.assert_allclose([found[pair] for pair in zip(i, j, strict=True)], separation.arcsec, atol=1e-5)
    assert not len(sky.pairs(few, nowhere, 2.0)[0]) and not len(sky.pairs(few[:0], many, 2.0)[0])


def test_null_searches_are_counted_by_hand(spark, tmp_path):
    rows = pd.DataFrame([
        # objtype, p_line, line_snr, null_p_line, null_snr, shifted_p_line, shifted_snr
        ("GALAXY", 0.99, 9.0, 0.1, 2.0, None, None),  # searched upside down
        ("GALAXY", 0.10, 2.0, 0.97, 7.0, None, None),  # and a hit there
        ("GALAXY", 0.20, 2.0, 0.96, 3.0, None, None),  # a faint one
        ("GALAXY", 0.20, 2.0, None, None, 0.99, None),  # redwards, a hit without S/N
        ("GALAXY", None, None, None, None, None, None),  # not scored
        ("Sky ", None, None, 0.99, 6.0, None, None),  # a sky fibre, not selected: its spectrum is the null
        ("SKY", 0.98, 5.0, 0.99, 9.0, None, None),  # one that was selected: its own score counts
    ], columns=["objtype", "p_line", "line_snr", "null_p_line", "null_snr", "shifted_p_line", "shifted_snr"])
    expected = {"n_scored": 5, "n_null": 4, "n_null_hits": 3, "n_null_hits_snr_6": 2, "n_shifted": 1,
                "n_shifted_hits": 1, "n_shifted_hits_snr_6": 0, "n_sky": 2, "n_sky_hits": 2, "n_sky_hits_snr_6": 1}
    assert census.counted(rows, 0.9).tolist() == [*expected.values()]
    frame = spark.createDataFrame(rows.assign(plate=[1, 1, 1, 2, 2, 2, 2], mjd=3, fiberid=range(7)))
    got = counted(frame.repartition(3), tmp_path / "all", 0.9)
    assert got.facts == expected
    assert got.scored["plate"].to_dict() == {1: 3, 2: 2} and got.scored["mjd"].to_dict() == {3: 5}
    assert got.scored["fiberid"].to_dict() == {0: 1, 1: 1, 2: 1, 3: 1, 6: 1}
    assert sorted(got.null_hits["null_p_line"]) == [0.96, 0.97, 0.99], "not that of the sky fibre beside"
    none = counted(frame.where("p_line > 2"), tmp_path / "none", 0.9)
    assert set(none.facts.values()) == {0} and none.null_hits.empty
    assert all(spectra.empty for spectra in none.scored.values())


def test_q_values_by_hand():
    q = nulls.q_values([0.99, 0.98, 0.97, 0.6], [0.5], weight=1.0)
    upper = nulls.upper_limit(0)
    np.testing.assert_allclose(upper, -np.log(1 - nulls.CONFIDENCE))  # Poisson: no event
    np.testing.assert_allclose(q, np.full(4, upper / 4))  # the lowest threshold keeps four and has no null
    noisy = nulls.q_values([0.99, 0.98, 0.97, 0.6], [0.7, 0.7, 0.8], weight=1.0)
    np.testing.assert_allclose(noisy, [upper / 3] * 3 + [1.0])
    assert nulls.q_values([0.9], [], np.inf).tolist() == [1.0] and len(nulls.q_values([], [0.5], 1.0)) == 0


def test_q_values_bound_the_false_discovery_rate_and_never_rise_with_the_score():
    rng = np.random.default_rng(4)
    below = []
    for _ in range(40):
        false, true, null = rng.beta(2, 4, 3000), rng.beta(8, 1.5, 150), rng.beta(2, 4, 750)
        scores = np.r_[false, true]
        q = nulls.q_values(scores, null, weight=4.0)
        assert (np.diff(q[np.argsort(scores)]) <= 1e-12).all()
        kept = q <= 0.1
        below.append(kept[:3000].sum() / max(kept.sum(), 1))
    assert np.mean(below) <= 0.1
    tighter = nulls.q_values(scores[scores > 0.8], null, 4.0)
    assert (tighter >= q[scores > 0.8] - 1e-12).all(), "a higher threshold never lowers q"


def test_known_lenses_of_any_table(shared_data, tmp_path):
    cao = known.read_table(str(shared_data / "tables/cao2020_361_laes.csv"))
    bells = known.read_table(str(shared_data / "tables/bells_gallery21.csv"))
    lenscat = known.read_table(str(shared_data / "tables/lenscat_shu2016_bellsgallery.csv"))
    assert len(cao) == 361 and cao["plate"].min() > 3000 and cao["ra"].notna().all()
    assert len(bells) == 21 and bells["ra"].between(0, 360).sum() == 18 and (lenscat["dec"].abs() <= 90).all()
    from astropy.table import Table
    for name in ("a.fits", "a.ecsv"):
        Table({"RAJ2000": [1.5], "DEJ2000": [-2.5], "Name": ["x"]}).write(tmp_path / name)
        assert known.read_table(str(tmp_path / name)).iloc[0].tolist() == ["x", 1.5, -2.5, -1, -1, -1]


def test_a_table_without_rows_is_an_empty_one(tmp_path):
    from astropy.table import Table

    (tmp_path / "a.csv").write_text("name,ra,dec\n")
    Table({"ra": np.zeros(0), "dec": np.zeros(0), "name": np.zeros(0, "U1")}).write(tmp_path / "a.fits")
    for name in ("a.csv", "a.fits"):
        empty = known.read_table(str(tmp_path / name))
        assert list(empty.columns) == known.COLUMNS and empty.empty
    (tmp_path / "b.csv").write_text("name,ra,dec\nx,1,2\n")
    both = known.read_known((str(tmp_path / "a.csv"), str(tmp_path / "b.csv")))
    assert (both["name"] == "x").sum() == 1


def test_lenscat_is_read_where_it_is_installed_and_never_imported(tmp_path, monkeypatch):
    package = tmp_path / "lenscat"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('lenscat must not be imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert known.installed() is None, "a package without its table"
    (package / "data/catalog.csv").write_text("name,RA [deg],DEC [deg],type\nJ0029+2544,7.36417,25.73383,galaxy\n")
    assert known.installed() == str(package / "data/catalog.csv")
    got = known.read_known(())
    assert got[["name", "ra", "dec"]].to_numpy().tolist() == [["J0029+2544", 7.36417, 25.73383]]


def test_sexagesimal_positions_and_spectra_in_names(tmp_path):
    (tmp_path / "a.csv").write_text("name,ra,dec\n6281-56295-811 | J0029,00:29:27.4,+25:44:01.8\nno spectrum,,\n")
    got = known.read_table(str(tmp_path / "a.csv"))
    np.testing.assert_allclose(got[["ra", "dec"]].iloc[0], [7.36417, 25.73383], atol=1e-5)
    assert got[["plate", "mjd", "fiberid"]].to_numpy().tolist() == [[6281, 56295, 811], [-1, -1, -1]]


def test_tables_that_name_no_lens_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("name,z\nx,1\n")
    with pytest.raises(ValueError, match="expected positions"):
        known.read_known((str(tmp_path / "a.csv"),))
    with pytest.raises(ValueError, match="known_lenses: .*nowhere.csv: cannot be read"):
        known.read_known((str(tmp_path / "nowhere.csv"),))


def test_lenses_are_matched_by_position_and_by_spectrum():
    rows = [{"ra": 10.0, "dec": 5.0}, {"ra": 10.0, "dec": 5.0 + 3 / 3600}, {"plate": 7}, {"ra": None, "dec": None}]
    table = pd.DataFrame({"name": ["far", "near", "spectrum"], "ra": [10.0, 10.0, np.nan],
                          "dec": [5.0 - 1.5 / 3600, 5.0 + 0.5 / 3600, np.nan], "plate": [-1, -1, 7],
                          "mjd": [-1, -1, 55000], "fiberid": [-1, -1, 3]})
    got = known.match_known(lines(rows), table, 2.0)
    assert got.tolist() == ["near", None, "spectrum", None]
    assert known.match_known(lines(rows), table.head(0), 2.0).tolist() == [None] * 4
    nothing = known.match_known(lines(rows)[:0], known.read_known(()), 2.0)
    assert nothing.empty


def test_bins_can_be_wider():
    wide = dataclasses.replace(SETTINGS, overdensity_bin_px=10, overdensity_grow=0)
    table = overdensity.histogram({100: 50, 101: 1}, wide, "lens")
    np.testing.assert_allclose(table["value"], 10 ** ((table["bin"] + 0.5) * 1e-3))
    assert table["bin"][table["flagged"]].tolist() == [100]
