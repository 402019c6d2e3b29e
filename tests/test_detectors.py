"""Detectors side by side: the oracle is a limit, errors are enlarged where needed, rates are what they are set to."""

import numpy as np
import pandas as pd
import pytest

from lensspark import config, detectors, matched_filter, mock
from lensspark.mock import instrument
from lensspark.mock.objects import KINDS

RNG = np.random.default_rng(8)
N_PIX = 1192


@pytest.fixture(scope="module")
def settings():
    return config.load()


@pytest.fixture(scope="module")
def plate(basis, settings):
    lines = detectors.only(settings, lya=1.0, line_snr=(6.0, 12.0), double_peaked=0.0)
    return mock.observe_plate(3, 7100, 58000, np.arange(1, 301), lines, basis, 35798, N_PIX, oracle=True)


def test_the_background_is_all_but_noise_and_line(plate, basis, settings):
    plain = mock.observe_plate(3, 7100, 58000, np.arange(1, 301), detectors.only(settings), basis, 35798, N_PIX,
                               oracle=True)
    # The flux calibration is off by some per cent, and that of the line's light stays in the background.
    left = np.abs(plate["background"] - plain["background"]).max(axis=1)
    assert (left <= 0.01 + 0.1 * plate["line_peak"]).all()
    pull = (plain["flux"] - plain["background"]) / plain["true_sigma"]
    assert pull.std() == pytest.approx(1.0, abs=0.02) and abs(pull.mean()) < 0.01


def test_the_oracle_sees_a_line_at_the_signal_to_noise_that_it_has(plate):
    line = plate["flux"] - plate["background"]
    usable, sigma = plate["ivar"] > 0, plate["true_sigma"]
    width = detectors.seen_width(plate["line_fwhm"], plate["wdisp"].mean(axis=1), RNG)
    snr, at = detectors.oracle_snr(plate["flux"], plate["background"], sigma, usable, width)
    assert np.median(np.abs(at - (1e4 * np.log10(plate["line_wave"]) - 35798))) < 1.5
    classical, _ = detectors.highest(
        matched_filter.snr(line, np.where(usable, sigma**-2.0, 0).astype("f4"), 2.2), usable.astype("f4"))
    assert np.mean(snr > classical) > 0.55  # its own width is better than one width for all


def test_errors_are_enlarged_by_their_scatter_and_never_made_smaller():
    residual = RNG.normal(size=(3, 5000)) * np.array([[0.5], [1.0], [2.0]])
    factor = detectors.error_factor(residual, np.ones_like(residual))
    np.testing.assert_allclose(factor, [1.0, 1.0, 1.96], rtol=0.05)
    assert detectors.error_factor(residual, np.zeros_like(residual)).tolist() == [1.0, 1.0, 1.0]


def test_errors_are_enlarged_where_the_night_sky_scatters():
    residual = RNG.normal(size=(400, 1000)) * np.where(np.arange(1000) % 200 == 100, 3.0, 1.2)
    ivar = np.ones_like(residual)
    ivar[:, 500] = 0
    factor = detectors.night_factor(residual, ivar)
    assert factor[[100, 300, 700]] == pytest.approx(2.5, rel=0.2) and np.median(factor) < 1.03 and factor[500] == 1


def test_masked_pixels_are_never_the_highest():
    snr, ivar = np.array([[1.0, 9.0, 3.0]]), np.array([[1.0, 0.0, 1.0]])
    assert [x.item() for x in detectors.highest(snr, ivar)] == [3.0, 2]


def test_the_mixture_has_the_rates_that_it_is_set_to(settings):
    table = pd.DataFrame({"kind": RNG.choice(KINDS, 5000)})
    weight = detectors.mixture(table, settings.evaluation, 3.0)
    share = pd.Series(weight).groupby(table["kind"]).sum()
    assert weight.sum() == pytest.approx(1.0) and share["lens_line"] == pytest.approx(3 * 1.45e-3)
    assert share["airglow"] == pytest.approx(3 * 1.2e-4) and share["sky"] == 0.0


def test_recall_asks_for_score_and_place():
    n = 4000
    lines = pd.DataFrame({"visible": True, "scorable": True, "line_snr": RNG.uniform(4, 12, n), "line_at": 500.0})
    lines["true_snr"] = lines["line_snr"]
    free = pd.DataFrame({name: RNG.random(20_000) for name in detectors.DETECTORS})
    for name, score, at in (("p_line", 2.0, 502.0), ("matched_filter", 2.0, 504.0), ("oracle", RNG.random(n), 500.0)):
        lines[name], lines[f"{name}_at"] = score, at
    found = detectors.recall_at(lines, free, np.ones(len(free)), 0.01)
    assert [b["recall"] for b in found["p_line"]["recall"]] == [1.0] * 6
    assert found["matched_filter"]["recall_8"] == 0.0
    assert found["oracle"]["recall_8"] == pytest.approx(0.01, abs=0.01)


def test_the_true_signal_to_noise_is_the_mean_of_what_a_filter_of_the_lines_shape_measures():
    x = np.arange(200.0)
    line = 0.8 * np.exp(-0.5 * ((x - 100) / 2.2) ** 2)
    white = RNG.normal(size=(20_000, 201)).astype("f4")
    noise = instrument.correlated(white)
    filtered = (line + noise) @ line
    expected = detectors.true_snr(line[None], np.ones((1, 200)), np.ones((1, 200), bool)).item()
    assert filtered.mean() / filtered.std() == pytest.approx(expected, rel=0.03)
    half = detectors.true_snr(line[None], np.ones((1, 200)), (x < 100)[None]).item()
    assert half < 0.75 * expected
