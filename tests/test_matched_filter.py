"""The matched filter against its formula and its analytic answers; the position and flux that are measured with it."""

import numpy as np
import pytest
from small_model import prepared

from lensspark import matched_filter
from lensspark.locate import faintest, measure_line, ranked
from lensspark.spectrum import window_pixels

FIRST, N_PIX = window_pixels((3800.0, 5000.0))
CELLS = 298


def brute_force(residual, ivar, sigma):
    """Shu et al. (2016): S/N(x) = sum f ivar K / sqrt(sum ivar K^2), pixel by pixel."""
    k = matched_filter.kernel(sigma)
    half = len(k) // 2
    out = np.zeros(len(residual))
    for x in range(len(residual)):
        top = bottom = 0.0
        for i in range(-half, half + 1):
            if 0 <= x + i < len(residual):
                top += residual[x + i] * ivar[x + i] * k[half + i]
                bottom += ivar[x + i] * k[half + i] ** 2
        out[x] = top / np.sqrt(bottom) if bottom > 0 else 0.0
    return out


@pytest.mark.parametrize("sigma", [0.5, 1.4, 2.2, 3.5])
def test_snr_is_the_formula(sigma):
    rng = np.random.default_rng(0)
    residual, ivar = rng.normal(size=90).astype(np.float32), rng.uniform(0, 2, 90).astype(np.float32)
    ivar[40:60] = 0
    np.testing.assert_allclose(matched_filter.snr(residual, ivar, sigma), brute_force(residual, ivar, sigma), atol=1e-4)


def test_noise_has_unit_significance():
    residual = np.random.default_rng(1).normal(0, 0.5, (200, 500)).astype(np.float32)
    assert matched_filter.snr(residual, np.full_like(residual, 4.0)).std() == pytest.approx(1.0, abs=0.02)


def test_count_hits():
    significance = np.array([[0, 7, 8, 0, 7, 0, 7], [7, 0, 0, 0, 0, 0, 0], [0] * 7])
    assert matched_filter.count_hits(significance, 6).tolist() == [3, 1, 0]


def spectra(centres, amount, sigma=2.2, noise=0.0, error=0.2):
    """Residual spectra with one Gaussian each: `amount` is its sum over pixels."""
    x = np.arange(N_PIX) - np.asarray(centres)[:, None]
    residual = amount * np.exp(-0.5 * (x / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    residual = (residual + noise * np.random.default_rng(2).normal(size=residual.shape)).astype(np.float32)
    ivar = np.full_like(residual, error**-2)
    return prepared(residual, ivar)


def heat_at(centres):
    heat = np.zeros((len(centres), CELLS), np.float32)
    heat[np.arange(len(centres)), (np.asarray(centres) / 4).astype(int)] = 1
    return heat


def test_position_and_flux_of_a_noiseless_line():
    centres = np.array([100.0, 300.3, 555.5, 901.75, 1180.0])
    loglam0 = np.full(5, FIRST * 1e-4)
    found = measure_line(spectra(centres, 10.0), heat_at(centres + 5), loglam0, 6.0)
    wave = 10 ** (loglam0 + 1e-4 * centres)
    np.testing.assert_allclose(np.log10(found["line_wave"] / wave) / 1e-4, 0, atol=0.03)
    angstrom = wave * np.log(10) * 1e-4
    np.testing.assert_allclose(found["line_flux"], 10 * angstrom, rtol=0.03)
    np.testing.assert_allclose(found["line_peak"], 10 / (np.sqrt(2 * np.pi) * 2.2), rtol=0.03)
    np.testing.assert_allclose(found["line_snr"], found["line_flux"] / found["line_flux_err"], rtol=1e-5)
    assert found["n_line_hits"].tolist() == [1] * 5 and not found["line_mask_fraction"].any()


@pytest.mark.parametrize("width", [1.3, 2.2, 3.5])
def test_flux_of_a_line_of_another_width(width):
    found = measure_line(spectra([600.0], 10.0, width), heat_at([600.0]), np.array([FIRST * 1e-4]), 6.0)
    share = found["line_flux"][0] / (10 * found["line_wave"][0] * np.log(10) * 1e-4)
    assert share == pytest.approx(np.sqrt(2) * 2.2 / np.hypot(2.2, width), rel=0.01)


def test_flux_errors_are_the_scatter_of_fluxes():
    centres = np.full(500, 600.0)
    lines = spectra(centres, 5.0, noise=0.2)
    found = measure_line(lines, heat_at(centres), np.full(500, FIRST * 1e-4), 6.0)
    assert found["line_flux"].std() == pytest.approx(np.median(found["line_flux_err"]), rel=0.15)


def test_the_network_decides_between_two_lines():
    left, right = spectra([300.0], 20.0), spectra([800.0], 10.0)
    both = prepared(left.flux + right.flux, left.ivar)
    for at in (300, 800):
        found = measure_line(both, heat_at([float(at)]), np.array([FIRST * 1e-4]), 6.0)
        assert np.log10(found["line_wave"][0]) * 1e4 - FIRST == pytest.approx(at, abs=0.05)
        assert found["n_line_hits"][0] == 2


def test_masked_pixels_about_the_line_are_counted_and_nothing_is_nan_but_the_error():
    lines = spectra([600.0, 600.0], 10.0)
    lines.ivar[0, 596:599] = 0
    lines.ivar[1] = 0
    found = measure_line(prepared(lines.flux, lines.ivar), heat_at([600.0, 600.0]), np.full(2, FIRST * 1e-4), 6.0)
    assert found["line_mask_fraction"].tolist() == [3 / 15, 1.0]
    assert np.isnan(found["line_flux_err"][1]) and found["line_snr"][1] == 0
    assert np.isfinite(found["line_wave"]).all()


@pytest.mark.parametrize("cell", [0, CELLS - 1])
def test_lines_at_the_ends_of_the_window(cell):
    heat = np.zeros((1, CELLS), np.float32)
    heat[0, cell] = 1
    at = cell * 4 + (2.0 if cell == 0 else 1.0)
    found = measure_line(spectra([at], 10.0), heat, np.array([FIRST * 1e-4]), 6.0)
    assert np.log10(found["line_wave"][0]) * 1e4 - FIRST == pytest.approx(at, abs=0.6)


def test_a_wide_line_in_noise_is_placed_by_a_filter_of_its_width():
    centres = np.full(2000, 600.0)
    loglam0 = np.full(2000, FIRST * 1e-4)
    lines = spectra(centres, 5.0, 3.5, noise=0.3)
    found = measure_line(lines, heat_at(centres), loglam0, 6.0)
    beside = np.log10(found["line_wave"]) * 1e4 - FIRST - 600
    classical = lines.snr[:, 590:614].argmax(axis=1) - 10
    assert np.sum(np.abs(beside) > 3.5) < np.sum(np.abs(classical) > 3.5) and np.std(beside) < np.std(classical)
    # The S/N stays that of the classical filter, at its own maximum.
    np.testing.assert_allclose(found["line_snr"], lines.snr[:, 590:614].max(axis=1), rtol=1e-6)


def test_likely_lines_are_ranked_by_their_signal_to_noise_and_no_other_score_changes():
    p = np.array([0.0, 0.1, 0.3, 0.5])
    np.testing.assert_allclose(ranked(p, np.array([40.0, 5.0, 5.0, 9.0])), p, rtol=1e-12)
    snr = np.linspace(5, 70, 14)
    likely = ranked(np.full(14, 0.97), snr)
    assert (np.diff(likely) > 0).all() and (likely > 0.9).all() and (likely < 1).all()
    rising = ranked(1 - np.geomspace(0.5, 1e-12, 100), np.full(100, 8.0))
    assert (np.diff(rising) > 0).all()
    assert ranked(np.array([1 - 1e-9]), np.array([-3.0])) == 0.5
    # A sure line of S/N 6 has even odds times exp(6 / 2).
    assert ranked(np.array([1 - 1e-9]), np.array([6.0])) == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)


@pytest.mark.parametrize("p_line", [0.51, 0.7, 0.945, 0.999])
def test_no_line_below_the_faintest_has_the_score(p_line):
    least = faintest(p_line)
    sure = np.full(2, 1 - 1e-16)
    below, above = ranked(sure, np.array([least - 1e-3, least + 1e-3]))
    assert below < p_line < above
    assert faintest(0.5) == -np.inf == faintest(0.1)
