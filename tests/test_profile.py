"""The profile's fits: shapes against scipy, estimates against scipy's, and errors against simulated lines."""

import time

import measure_lines
import numpy as np
import pytest
from scipy import optimize, stats

from lensspark import profile
from lensspark.profile import shapes

EDGES = np.arange(-20, 22) - 0.5
X = np.arange(-20, 21)
FIRST = 35798


def cutouts(values, sigma=0.1, lsf=1.1):
    """Cutouts about pixel 50 of residuals (n, 41) per pixel, put into spectra of 101 pixels."""
    n = len(values)
    angstrom = np.log(10) * 1e-4 * 10 ** ((FIRST + np.arange(101)) * 1e-4)
    residual = np.zeros((n, 101))
    residual[:, 30:71] = values / angstrom[30:71]
    ivar = np.broadcast_to((angstrom / sigma) ** 2, (n, 101))
    return profile.cut(residual, ivar, np.full((n, 101), lsf), np.full(n, FIRST),
                       np.full(n, 10 ** ((FIRST + 50) * 1e-4)), 20)


@pytest.fixture(scope="module")
def population():
    """400 simulated Lya lines of S/N >= 10, their measures and the seconds of CPU that these took."""
    alpha, snr = measure_lines.population(400, np.random.default_rng(8))
    cuts, truth = measure_lines.simulate(alpha, snr, noise_correlation=0.18, seed=9)
    start = time.process_time()
    found = profile.measures(cuts, profile.fit_lines(cuts), 0.18)
    return found, truth, time.process_time() - start


@pytest.mark.parametrize("alpha", [-25, -3, -0.5, 0, 0.5, 3, 25])
def test_moments_and_shape_are_scipys(alpha):
    mean, variance, skewness = (float(v) for v in stats.skewnorm.stats(alpha, loc=0.7, scale=2.0, moments="mvs"))
    assert shapes.skewness_of(np.float64(alpha)) == pytest.approx(skewness, abs=1e-12)
    assert shapes.alpha_of(np.float64(skewness)) == pytest.approx(alpha, rel=1e-6, abs=1e-6)
    got = shapes.skew_normal(EDGES, *(np.float64(v) for v in (mean, np.sqrt(variance), skewness)))
    np.testing.assert_allclose(got, np.diff(stats.skewnorm.cdf(EDGES, alpha, 0.7, 2.0)), atol=1e-9)
    fine = np.linspace(-10, 10, 40001)
    peak = fine[stats.skewnorm.pdf(fine, alpha, 0.7, 2.0).argmax()]
    assert shapes.mode(np.float64(mean), np.sqrt(variance), np.float64(skewness)) == pytest.approx(peak, abs=2e-3)


@pytest.mark.parametrize("alpha", [0.5, 4, 25])
def test_the_lsf_leaves_a_skew_normal_of_the_third_moment(alpha):
    lsf, step = 1.3, 0.02
    shift = np.arange(-8, 8, step)
    weight = stats.norm.pdf(shift, 0, lsf) * step
    expected = np.diff(stats.skewnorm.cdf(EDGES[:, None] - shift, alpha, 0, 3.0) @ weight)
    mean, variance = (float(v) for v in stats.skewnorm.stats(alpha, scale=3.0))
    width = np.sqrt(variance + lsf**2)
    seen = shapes.seen_skewness(shapes.skewness_of(np.float64(alpha)), width, lsf)
    got = shapes.skew_normal(EDGES, np.float64(mean), width, seen)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_every_profile_finds_its_own_parameters():
    lines = np.stack([
        shapes.skew_normal(EDGES, *(np.float64(v) for v in (0.8, 3.0, 0.5))),
        shapes.two_gaussians(EDGES, *(np.float64(v) for v in (-1.2, 1.6, shapes.OII_SEPARATION, 0.55))),
        shapes.two_gaussians(EDGES, *(np.float64(v) for v in (0.0, 1.8, -7.0, 0.3))),
    ]) * 30 + 0.2
    fits = profile.fit_lines(cutouts(lines, sigma=0.01))
    np.testing.assert_allclose(fits.skew.theta[0], [0.8, np.log(3.0), 0.5], atol=5e-3)
    np.testing.assert_allclose(fits.oii.theta[1], [-1.2, np.log(1.6), 0.55], atol=5e-3)
    position, width, separation, share = fits.double.theta[2]
    pair = sorted([(position, 1 - share), (position + separation, share)])
    np.testing.assert_allclose(pair, [(-7.0, 0.3), (0.0, 0.7)], atol=0.01)
    for name, i in (("skew", 0), ("oii", 1), ("double", 2)):
        assert getattr(fits, name).amplitude[i] == pytest.approx(30, rel=2e-3)
        rivals = {"skew", "gauss", "oii", "double"} - {name} - ({"double"} if name == "oii" else set())  # contains it
        others = [getattr(fits, rival).chi2[i] for rival in rivals]
        assert getattr(fits, name).chi2[i] < 1 < 100 < min(others)


def test_best_fit_and_errors_are_scipys():
    rng = np.random.default_rng(2)
    truth = (40.0, 0.4, 3.2, 0.55, 0.1)

    def model(x, flux, mean, width, skewness, constant):
        return flux * shapes.skew_normal(EDGES, *(np.float64(v) for v in (mean, width, skewness))) + constant

    values = model(X, *truth) + 0.3 * rng.standard_normal((6, 41))
    cuts = cutouts(values, sigma=0.3)
    fits = profile.fit_lines(cuts)
    found = profile.measures(cuts, fits, 0.0)
    for i in range(6):
        best, covariance = optimize.curve_fit(model, X, values[i], truth, sigma=np.full(41, 0.3), absolute_sigma=True,
                                              bounds=([0, -5, 1.1, -0.9, -5], [99, 5, 9, 0.9, 5]))
        chi2 = np.sum(((values[i] - model(X, *best)) / 0.3) ** 2)
        assert fits.skew.chi2[i] == pytest.approx(chi2, abs=0.05)
        assert found["profile_flux_err"][i] == pytest.approx(np.sqrt(covariance[0, 0]), rel=0.15)
        assert found["profile_width_err"][i] == pytest.approx(np.sqrt(covariance[2, 2]), rel=0.15)


def test_rivals_are_nested(population):
    found, _, _ = population
    assert (found["dchi2_skew"] >= 0).all()
    assert (found["alpha_low"] <= found["alpha"] + 0.5).all() and (found["alpha"] - 0.5 <= found["alpha_high"]).all()
    assert (np.abs(found["alpha"]) <= shapes.ALPHA_MAX + 1e-6).all()
    assert np.median(found["profile_chi2"] / found["profile_dof"]) == pytest.approx(1, abs=0.1)


def test_pulls_are_unit_normal(population):
    """Mean within 0.1 and width 0.9-1.1 as docs/science.md has it for 3,000 lines, with three sigma for 400."""
    found, truth, _ = population
    for name, values in measure_lines.pulls(found, truth).items():
        assert np.isfinite(values).all(), name
        assert abs(values.mean()) < 0.1 + 3 / np.sqrt(400), name
        assert 0.9 - 0.11 < np.std(np.clip(values, -5, 5)) < 1.1 + 0.11, name
    covered = (found["alpha_low"] <= truth["alpha"]) & (truth["alpha"] <= found["alpha_high"])
    assert 0.66 < covered.mean() < 0.88


def test_a_symmetric_line_is_rarely_called_skewed():
    alpha = np.zeros(240)
    cuts, _ = measure_lines.simulate(alpha, np.linspace(10, 30, 240), seed=4)
    p = profile.measures(cuts, profile.fit_lines(cuts), 0.0)["p_skew_positive"]
    assert np.mean(p > 0.95) < 0.05 + 0.04 and np.mean(p < 0.05) < 0.05 + 0.04
    assert np.median(p) == pytest.approx(0.5, abs=0.05)


def test_mirrored_lines_have_mirrored_answers():
    alpha = np.full(40, 5.0)
    red, blue = (profile.measures(cuts, profile.fit_lines(cuts), 0.0) for cuts in (
        measure_lines.simulate(sign * alpha, np.full(40, 40.0), seed=5)[0] for sign in (1, -1)))
    assert np.mean(red["p_skew_positive"] > 0.95) > 0.7
    assert np.mean(blue["p_skew_positive"] < 0.05) > 0.7
    assert np.median(red["alpha"]) > 2 and np.median(blue["alpha"]) < -2


def test_a_thousand_lines_take_less_than_20_seconds_of_cpu(population):
    assert population[2] / 400 * 1000 < 20


def test_masked_pixels_do_not_count():
    rng = np.random.default_rng(6)
    residual = rng.standard_normal((3, 101))
    residual[:, 45:56] += 6 * np.exp(-0.5 * (np.arange(-5, 6) / 2.0) ** 2)
    ivar = np.ones((3, 101))
    ivar[0, 58:62] = 0
    ivar[1, 30] = np.nan
    ivar[2, 40] = -1
    wild = np.where((ivar > 0) & np.isfinite(ivar), residual, 1e6)
    wild[1, 30] = np.nan
    wave = np.full(3, 10 ** ((FIRST + 50) * 1e-4))
    outcomes = []
    for values in (residual, wild):
        cuts = profile.cut(values, ivar, np.full((3, 101), 1.1), np.full(3, FIRST), wave, 20)
        outcomes.append(profile.measures(cuts, profile.fit_lines(cuts), 0.0))
    for name, values in outcomes[0].items():
        np.testing.assert_array_equal(values, outcomes[1][name], err_msg=name)
    assert outcomes[0]["profile_dof"].tolist() == [32, 35, 35]


def test_an_unresolved_line_says_nothing_of_its_shape():
    line = shapes.gaussian(EDGES, np.full(2, 0.3), np.full(2, 0.5))
    cuts = cutouts(20 * line)
    found = profile.measures(cuts, profile.fit_lines(cuts), 0.0)
    np.testing.assert_allclose(found["p_skew_positive"], 0.5, atol=1e-3)
    np.testing.assert_allclose(found["alpha_high"], shapes.ALPHA_MAX)
    np.testing.assert_allclose(found["alpha_low"], -shapes.ALPHA_MAX)


def test_a_line_without_enough_pixels_is_left_out():
    residual, ivar = np.ones((5, 101)), np.ones((5, 101))
    ivar[0] = 0
    ivar[1, 48:53] = 0
    ivar[2, :43] = ivar[2, 56:] = 0
    wave = 10 ** ((FIRST + np.array([50, 50, 50, 200, 50])) * 1e-4)
    wave[4] = np.nan
    cuts = profile.cut(residual, ivar, np.ones((5, 101)), np.full(5, FIRST), wave, 20)
    assert cuts.rows.size == 0
    at_the_edge = profile.cut(residual[3:], ivar[3:], np.ones((2, 101)), np.full(2, FIRST),
                              10 ** ((FIRST + np.array([0, 100])) * 1e-4), 20)
    assert at_the_edge.rows.tolist() == [0, 1]
    found = profile.measures(at_the_edge, profile.fit_lines(at_the_edge), 0.0)
    assert np.isfinite(found["profile_chi2"]).all()


def test_a_spike_is_told_from_the_narrowest_line():
    rng = np.random.default_rng(7)
    n, lsf = 60, 1.2
    wide = shapes.gaussian(EDGES, rng.uniform(-0.5, 0.5, n), np.full(n, lsf))
    narrow = shapes.gaussian(EDGES, rng.uniform(-0.5, 0.5, n), rng.uniform(0.15, 0.6, n))
    noise = rng.standard_normal((n, 41))
    found = {}
    for name, shape in (("line", wide), ("spike", narrow)):
        snr = np.sqrt((shape**2).sum(axis=1, keepdims=True))
        cuts = cutouts(10 * shape / snr + noise, sigma=1.0, lsf=lsf)
        found[name] = profile.measures(cuts, profile.fit_lines(cuts), 0.0)
    assert np.mean(found["line"]["dchi2_spike"] < 4) > 0.95
    assert np.mean(found["spike"]["dchi2_spike"] > 4) > 0.95
    assert np.median(found["line"]["line_width_over_lsf"]) == pytest.approx(1, abs=0.06)
    assert np.median(found["spike"]["line_width_over_lsf"]) < 0.6
