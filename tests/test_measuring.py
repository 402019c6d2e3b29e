"""Hits, neighbours and repeats are read again and measured; what cannot be read stays null and stops nothing."""

import dataclasses
import shutil

import boss_files as bf
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy.io import fits
from small_model import make_model

from lensspark import config, exposures, measure, mock, schema, store
from lensspark.boss import survey_files
from lensspark.config import resource
from lensspark.eigen import Basis
from lensspark.mock import files
from lensspark.vetting import Veto, evidence, measuring, vet

SETTINGS = config.load([], ["score.threshold=0.5", "read.layout=lite"])
PLATE, MJD = 4100, 55300
WAVE, FLUX, WIDTH = 4300.0, 30.0, 2.2  # a line in fibre 10; four times as bright in 11; again on the next plate


def light(flux, loglam0, n_pix, at=WAVE):
    x = np.arange(n_pix) - (np.log10(at) - loglam0) * 1e4
    return flux * np.exp(-0.5 * (x / WIDTH) ** 2) / (WIDTH * np.sqrt(2 * np.pi)) / (at * np.log(10) * 1e-4)


def plate(number, fibres, added):
    """Mock spectra of clean galaxies, with lines of `added` {fibre: flux}."""
    kinds = ("lya", "oii", "airglow", "cosmic", "lens_line", "crosstalk", "sky", "star")
    quiet = dataclasses.replace(SETTINGS.mock, **dict.fromkeys(kinds, 0))
    basis = Basis.load(resource("data/eigenbasis.npz"))
    spectra = mock.observe_plate(5, number, MJD, np.array(fibres), quiet, basis)
    for i, fibre in enumerate(fibres):
        spectra["flux"][i] += light(added.get(fibre, 0.0), spectra["loglam0"][i], spectra["flux"].shape[1])
    return spectra


def add_exposures(lite, path, fluxes):
    """`path`: the full file of the bytes of a lite one, with an exposure for each flux of the line."""
    rng, loglam = np.random.default_rng(len(fluxes)), 3.5578 + 0.97e-4 * np.arange(2500)
    x, px = (loglam - np.log10(WAVE)) * 1e4, WAVE * np.log(10) * 1e-4
    line = np.exp(-0.5 * (x / WIDTH) ** 2) / (WIDTH * np.sqrt(2 * np.pi) * px)
    hdus = [bf.exposure_hdu(f"B1-0000000{i}-00000000-00000000", 2 + flux * line + rng.normal(0, 1, len(x)), loglam,
                            np.ones(len(x))) for i, flux in enumerate(fluxes)]
    return bf.write(path, [*fits.HDUList.fromstring(lite), *hdus])


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Lite files of two plates; fibre 13 of the first is a hit whose file is gone.

    Fibres 10 and 500 have full files too: the line of 10 is in every exposure, that of 500 in one.
    """
    root = tmp_path_factory.mktemp("survey")
    for number, added in ((PLATE, {10: FLUX, 11: 4 * FLUX, 500: FLUX, 501: 4 * FLUX}), (PLATE + 2, {10: FLUX})):
        fibres = [9, 10, 11, 13, 500, 501]
        for path, data in files.lite_files(plate(number, fibres, added)):
            if number == PLATE and "-0013." in path:
                continue
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
            for fibre, fluxes in ((10, (FLUX, FLUX, FLUX)), (500, (0, 3 * FLUX, 0))):
                if number == PLATE and f"-{fibre:04d}." in path:
                    add_exposures(data, root / path.replace("/lite/", "/full/"), fluxes)
    return root


# What the cuts read beside what is measured.
OF_THE_SEARCH = ("0.9D p_line", "3D line_peak", "9D line_snr", "0D line_mask_fraction", "1 n_line_hits", "0.45D z_lens",
                 "0L zwarning", "0L zwarning_noqso", "0.45D z_noqso")


@pytest.fixture(scope="module")
def gathered(spark, survey, tmp_path_factory):
    """measuring.gathered of three hits, as the scoring stage would have found them."""
    rows = [(number, MJD, fibre, "v5_7_0", 150.0 + fibre, 10.0, 0.45, 0.45, 220.0, 20.0,
             0.9 if number == PLATE and fibre in (10, 13, 500) else 0.1, WAVE, FLUX,
             f"{survey}/{files.lite_path(number, MJD, fibre)}", None)
            for number in (PLATE, PLATE + 2) for fibre in (9, 10, 11, 13, 500, 501)]
    names = ["plate", "mjd", "fiberid", "run2d", "ra", "dec", "z", "z_lens", "vdisp", "vdisp_err", "p_line",
             "line_wave", "line_flux", "path", "reason"]
    types = {column.name: column.type for column in schema.SCORED.columns}
    scored = spark.createDataFrame(rows, ", ".join(f"{name} {types[name]}" for name in names))
    scored = schema.SCORED.conform(scored)
    wanted = measuring.targets(*stored(scored, tmp_path_factory.mktemp("scored")), SETTINGS)
    measured = measuring.measured(spark, survey_files(str(survey)), wanted, make_model(), SETTINGS)
    return wanted, measuring.gathered(wanted, measured, SETTINGS)


@pytest.fixture(scope="module")
def vetted(spark, gathered):
    """The cuts' verdicts on those hits, by fibre."""
    hits = evidence.attach(pa.Table.from_pandas(gathered[1][measuring.KEY], preserve_index=False), gathered[1])
    hits = spark.createDataFrame(hits.drop_columns(["z_source"])).selectExpr("*", *OF_THE_SEARCH)
    return vet(hits, SETTINGS).toPandas().set_index("fiberid")


def stored(scored, folder):
    """The rows of `scored` and the hits among them."""
    store.write(scored, str(folder))
    return store.Rows(scored.sparkSession, [str(folder)], schema.SCORED), scored.where("p_line > 0.5").toPandas()


def test_targets_are_the_hits_their_neighbours_and_repeats(gathered):
    wanted, _ = gathered
    found = {(row.role, row.plate, row.fiberid, row.hit_fiberid) for row in wanted.itertuples()}
    hits = {("hit", PLATE, fibre, fibre) for fibre in (10, 13, 500)}
    pairs = ((9, 10), (11, 10), (11, 13))  # 501 is beside 500 in number only, on the other spectrograph
    beside = {("neighbour", PLATE, fibre, hit) for fibre, hit in pairs}
    again = {("repeat", PLATE + 2, fibre, fibre) for fibre in (10, 13, 500)}
    assert found == hits | beside | again


def test_neighbours_repeats_and_vanished_spectra(gathered):
    got = gathered[1].set_index("fiberid")
    assert len(got) == 3 and set(got.columns) >= {*measure.COLUMNS, "n_repeat", "neighbour_ratio", "repeat_snr"}
    bright = got.loc[10]
    assert bright["neighbour_fiber"] == 11 and bright["n_neighbour"] == 2
    np.testing.assert_allclose(bright["neighbour_ratio"], 4, rtol=0.2)
    assert bright["n_repeat"] == 1 and bright["n_repeat_confirmed"] == 1 and bright["repeat_tension"] < 1
    np.testing.assert_allclose(bright["z_source"], WAVE / 1215.67 - 1)
    lonely = got.loc[500]
    assert lonely["n_neighbour"] == 0 and pd.isna(lonely["neighbour_ratio"]) and pd.isna(lonely["neighbour_fiber"])
    assert lonely["n_repeat"] == 1 and lonely["n_repeat_confirmed"] == 0 and lonely["repeat_tension"] > 4
    gone = got.loc[13]
    assert gone[list(measure.COLUMNS)].isna().all() and gone["n_repeat"] == 1 and pd.isna(gone["repeat_tension"])


def test_a_hit_that_could_not_be_read_again_fails_and_a_contradicted_one_too(vetted):
    veto = vetted["veto"]
    assert veto[13] & Veto.OII and veto[13] & Veto.SKEWNESS and not veto[13] & Veto.REPEAT
    assert veto[500] & Veto.REPEAT and veto[10] & Veto.NEIGHBOUR and not veto[10] & Veto.REPEAT


def test_repeats_of_nothing_add_nothing_and_neighbours_are_the_maximum():
    """Pure noise: S/N 0 on average at the hit's own wavelength, +0.7 as the maximum within 3 px."""
    n, n_pix = 600, 400
    rng = np.random.default_rng(3)
    batch = pd.DataFrame({name: [0] * n for name in (*measuring.KEY, *measuring.HIT_KEY)})
    batch = batch.assign(role=np.where(np.arange(n) < n // 2, measuring.REPEAT, measuring.NEIGHBOUR), loglam0=3.58,
                         line_wave=10 ** (3.58 + 0.02003), line_flux=10.0, z_lens=0.5, vdisp=200.0, vdisp_err=20.0)
    batch["class"], batch["full"] = "GALAXY", None
    for name in measuring.PLANES:
        fill = {"flux": rng.normal(size=(n, n_pix)), "ivar": np.ones((n, n_pix)), "wdisp": np.ones((n, n_pix))}
        batch[name] = list(fill.get(name, np.zeros((n, n_pix))).astype("i4" if name == "and_mask" else "f4"))
    snr = measuring._measure(batch, make_model(), SETTINGS.vetting).groupby(batch["role"])["at_snr"].mean()
    assert abs(snr[measuring.REPEAT]) < 0.2 and snr[measuring.NEIGHBOUR] > 0.5


def test_a_stars_absorption_lines_are_no_line_between_them_and_a_galaxys_emission_line_is_one():
    n_pix, x = 400, np.arange(400)
    dips = 40 - 20 * (np.exp(-0.5 * ((x - 190) / 5) ** 2) + np.exp(-0.5 * ((x - 212) / 5) ** 2))
    line = 10 * np.exp(-0.5 * ((x - 201) / 2.2) ** 2)
    rows = [("STAR", dips, dips), ("GALAXY", dips, dips), ("GALAXY", 40 + line, 40 + line), ("STAR", 40 + line, 0 * x)]
    batch = pd.DataFrame({name: [0] * 4 for name in (*measuring.KEY, *measuring.HIT_KEY)})
    batch = batch.assign(role=measuring.NEIGHBOUR, loglam0=3.58, line_wave=10 ** (3.58 + 0.0201), line_flux=10.0,
                         z_lens=0.5, vdisp=200.0, vdisp_err=20.0)
    batch["class"], batch["flux"], batch["model"] = (list(part) for part in zip(*rows, strict=True))
    batch["full"] = None
    for name in ("ivar", "wdisp", "and_mask"):
        batch[name] = [np.full(n_pix, name != "and_mask", dtype="i4" if name == "and_mask" else "f4")] * 4
    snr = measuring._measure(batch, make_model(), SETTINGS.vetting)["at_snr"].to_numpy()
    assert abs(snr[0]) < 0.1 and snr[1] > 6, "without its model the star has a line"
    assert snr[2] > 10 and snr[3] > 10, "what leaks must not go with the model"


def test_a_line_of_one_exposure_is_vetoed_and_one_of_all_is_not(vetted):
    got = vetted
    assert got.loc[[10, 500], "n_exposures"].tolist() == [3, 3] and got.loc[[13], "n_exposures"].isna().all()
    real, spike = got.loc[10], got.loc[500]
    assert not real["veto"] & Veto.EXPOSURES and real["exposure_tension"] < 1 and real["exposure_rest_snr"] > 8
    assert spike["veto"] & Veto.EXPOSURES and spike["exposure_tension"] > 10 and spike["exposure_rest_snr"] < 4


@pytest.mark.parametrize("fault", ["truncated", "lite", "gone"])
def test_a_full_file_without_good_exposures_says_nothing(survey, tmp_path, fault):
    path = next((survey / "v5_7_0/spectra/full").rglob(f"*-{MJD}-0010.fits"))
    data = path.read_bytes() if fault == "truncated" else (
        survey / str(path).replace("/full/", "/lite/")).read_bytes()
    if fault != "gone":
        (tmp_path / path.name).write_bytes(data[:-9000] if fault == "truncated" else data)
    hit = pd.Series({"plate": PLATE, "mjd": MJD, "fiberid": 10, "run2d": "v5_7_0", "line_wave": WAVE,
                     "full": str(tmp_path / path.name)})
    assert measuring._exposures(hit, 2.2, make_model(), SETTINGS.vetting) == {}
    there = measuring._exposures(pd.Series({**hit, "full": str(path)}), 2.2, make_model(), SETTINGS.vetting)
    assert set(there) == set(exposures.COLUMNS)


def test_a_file_that_the_system_can_no_longer_read_stops_the_search(spark, survey, gathered, tmp_path):
    root = shutil.copytree(survey, tmp_path / "survey")
    path = next((root / "v5_7_0/spectra/lite").rglob(f"*{PLATE}-{MJD}-0011.fits"))
    path.unlink()
    path.symlink_to(path)
    wanted = gathered[0].assign(path=gathered[0]["path"].str.replace(str(survey), str(root)))
    with pytest.raises(Exception, match="0011.fits: cannot be read: OSError: Too many levels"):
        measuring.measured(spark, survey_files(str(root)), wanted, make_model(), SETTINGS)


def test_no_hits_no_reading(spark, survey, tmp_path):
    scored = schema.SCORED.conform(spark.createDataFrame([], schema.SCORED.struct_type()))
    wanted = measuring.targets(*stored(scored, tmp_path), SETTINGS)
    measured = measuring.measured(spark, survey_files(str(survey)), wanted, make_model(), SETTINGS)
    got = measuring.gathered(wanted, measured, SETTINGS)
    assert measured.empty and got.empty and {*measure.COLUMNS, "n_repeat"} <= set(got.columns)


def test_a_spectrum_that_a_mirror_holds_twice_is_one_hit(spark, tmp_path):
    twice = pd.DataFrame({"plate": 7, "mjd": MJD, "fiberid": 10, "run2d": "v5_7_0", "ra": 150.0, "dec": 10.0,
                          "p_line": 0.9, "line_wave": WAVE, "line_flux": FLUX, "z_lens": 0.5, "path": ["a", "b"]})
    scored = schema.SCORED.conform(spark.createDataFrame(twice))
    wanted = measuring.targets(*stored(scored, tmp_path), SETTINGS)
    assert wanted["role"].tolist() == ["hit"]
    found = pd.concat([wanted.reindex(columns=measuring.MEASURED.names)] * 2).assign(at_flux=3.0, at_flux_err=1.0)
    got = measuring.gathered(wanted, found, SETTINGS)
    assert len(got) == 1 and got["n_repeat"].item() == got["n_neighbour"].item() == 0
