"""What dossiers draw is what the search saw; fakes depend on key and seed, and are measured as hits are."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lensspark import config, schema
from lensspark.eigen import DLOGLAM
from lensspark.mock.survey import observe_plate
from lensspark.model import Model
from lensspark.report import blind, spectra
from lensspark.report.spectra import Pixels


@pytest.fixture(scope="module")
def mock(basis):
    """(run, pixels, table) of eight mock galaxies: what needs no Spark."""
    settings = config.load([], ["score.engine='openvino'"])
    columns = observe_plate(1, 4000, 56600, np.arange(1, 9), settings.mock, basis)
    keys = [(4000, 56600, i, "v5_7_0") for i in range(1, 9)]
    first = round(columns["loglam0"][0] / DLOGLAM)
    pixels = Pixels(keys, first, {name: columns[name] for name in spectra.PLANES})
    table = pd.DataFrame({name: columns.get(name) for name in schema.CANDIDATES.names}, index=range(8))
    table = table.assign(z_lens=columns["z_noqso"], line_wave=4321.0)
    return SimpleNamespace(model=Model.named("default"), config=settings), pixels, table


def test_dossiers_show_the_search(mock):
    run, pixels, table = mock
    found = spectra.shown(run, pixels, table)
    assert list(found) == pixels.keys
    low, high = run.model.window
    for i, one in enumerate(found.values()):
        inside = (one["wave"] > low) & (one["wave"] < high) & np.isfinite(one["sigma"] + one["model"])
        pull = (one["flux"] - one["model"])[inside] / one["sigma"][inside]
        assert inside.sum() > 900 and np.median(np.abs(pull)) < 1  # the model is this galaxy's
        assert len(one["heat"][0]) == len(one["heat"][1])
        np.testing.assert_array_equal(one["flux"], pixels.planes["flux"][i][np.isin(pixels.wave, one["wave"])])
    one = found[pixels.keys[0]]
    assert {"wave", "residual", "sigma", "skew", "gauss"} <= set(one["fit"]) and one["companions"]
    assert abs(np.median(one["fit"]["wave"]) - 4321) < 2
    shares = [np.isfinite(one["model"]).mean() for one in found.values()]
    assert np.median(shares) > 0.95  # outside the window the pipeline's model, which a sky fibre does not have


def test_fakes_are_measured_as_hits_are(mock):
    run, pixels, table = mock
    injected, truth = blind.inject(pixels, 1, run.config.mock)
    rows = blind._measured(run, injected, table)
    assert list(rows.columns) == schema.CANDIDATES.names and rows["q_value"].isna().all()
    bright = (truth["line_snr"] > 10) & rows["p_lya"].notna()
    found = bright & (rows["p_line"] > 0.5)
    assert bright.sum() >= 4 and found.sum() >= 0.75 * bright.sum()
    np.testing.assert_allclose(rows["line_wave"][found], truth["line_wave"][found], rtol=5e-4)
    assert rows["theta_e"].notna().any() and rows["name"].str.startswith("SDSS J").all()


def blank(n, first=35500, n_pix=4600):
    planes = {"flux": np.zeros((n, n_pix), np.float32), "ivar": np.ones((n, n_pix), np.float32),
              "wdisp": np.full((n, n_pix), 1.1, np.float32)}
    return Pixels([(4000, 55000, i + 1, "v5_7_0") for i in range(n)], first, planes)


def test_an_injected_line_is_the_one_of_the_key():
    settings = config.load().mock
    pixels, truth = blind.inject(blank(200), 5, settings)
    width = np.gradient(pixels.wave)
    np.testing.assert_allclose(pixels.planes["flux"] @ width, truth["line_flux"], rtol=0.01)
    np.testing.assert_allclose(truth["line_snr"], np.linalg.norm(pixels.planes["flux"], axis=1), rtol=1e-5)
    peak = pixels.wave[pixels.planes["flux"].argmax(axis=1)]
    assert np.mean(np.abs(peak / truth["line_wave"] - 1) < 3e-4) > 0.9  # a few double peaks have a steeper second one
    low, high = settings.line_window
    assert truth["line_wave"].between(low, high).all() and truth["line_wave"].std() > 200
    assert np.median(truth["line_flux"]) == pytest.approx(np.median(settings.line_flux), rel=0.2)


def test_a_fake_depends_on_its_key_and_seed_alone():
    settings = config.load().mock
    all_of_them, truth = blind.inject(blank(9), 5, settings)
    some, again = blind.inject(blank(9)[np.array([7, 2])], 5, settings)
    np.testing.assert_array_equal(some.planes["flux"], all_of_them.planes["flux"][[7, 2]])
    pd.testing.assert_frame_equal(again, truth.iloc[[7, 2]].reset_index(drop=True))
    other, _ = blind.inject(blank(9), 6, settings)
    assert not np.array_equal(other.planes["flux"], all_of_them.planes["flux"])
    shifted, same = blind.inject(blank(9, first=35600, n_pix=4000), 5, settings)
    pd.testing.assert_series_equal(same["line_wave"], truth["line_wave"])
    np.testing.assert_allclose(shifted.planes["flux"], all_of_them.planes["flux"][:, 100:4100], atol=1e-6)


def test_every_repeat_and_the_brighter_neighbour_are_drawn():
    own, run2d = (4000, 55000, 50), "v5_7_0"
    beside = [(4000, 55000, 50 + step, "neighbour") for step in range(-6, 7) if step]
    again = [(5000 - i, 55100 + i, 7, "repeat") for i in range(4)]
    pairs = pd.DataFrame([{"plate": p, "mjd": m, "fiberid": f, "run2d": run2d, "hit_plate": own[0], "hit_mjd": own[1],
                           "hit_fiberid": own[2], "hit_run2d": run2d, "role": role}
                          for p, m, f, role in beside + again])
    table = pd.DataFrame([{"plate": own[0], "mjd": own[1], "fiberid": own[2], "run2d": run2d, "neighbour_fiber": 56}])
    found = spectra.drawn(pairs.sample(frac=1, random_state=1), table)
    assert found["fiberid"].tolist() == [49, 51, 48, 56, 7, 7, 7, 7]  # nearest first, then repeats by date
    assert found["mjd"].tolist()[4:] == [55100, 55101, 55102, 55103]
    none = spectra.drawn(pairs, table.assign(neighbour_fiber=None))
    assert none["fiberid"].tolist() == [49, 51, 48, 52, 7, 7, 7, 7]
    many = pd.concat([pairs[pairs["role"] == "repeat"].assign(mjd=56000 + i) for i in range(4)])
    assert len(spectra.drawn(pd.concat([pairs, many]), table)) == 20 + 1
    assert spectra.drawn(pairs.iloc[:0], table).empty


def test_pixels_are_cut_and_padded():
    pixels = Pixels([(1, 2, 3, "x")], 100, {"flux": np.arange(5, dtype=np.float32)[None]})
    for first, n_pix, expected in ((99, 3, [0, 0, 1]), (102, 6, [2, 3, 4, 0, 0, 0]), (0, 2, [0, 0]), (300, 1, [0])):
        (found,) = pixels.within(first, n_pix, ["flux"])
        assert found.tolist() == [expected]
