"""Bins of redshift: shifts are whole pixels and undone, neighbours help where needed, noise makes no galaxies."""

import numpy as np
import pytest

from lensspark import config
from lensspark.galaxy_bins import Bins, bin_of, cut, half_bin_pixels, measure, reaches, shift_pixels, sound_ivar

WIDTH, PIXELS, NUMBER = 0.0025, 300, 200
EDGE = half_bin_pixels(WIDTH)
MARGIN = 4 * EDGE


def settings(*extra):
    return config.load([], [f"survey_training.{text}" for text in ("eigenvectors=3", "smooth_px=1.5", *extra)]
                       ).survey_training


def rest_frame(x):
    """Three smooth spectra on pixels x of the bin's frame: a bright one and two that come and go."""
    return np.stack([1 + 0.2 * np.sin(x / 40), np.sin(x / 25), np.exp(-0.5 * ((x - 150) / 4) ** 2)])


@pytest.fixture(scope="module")
def sample():
    """Galaxies of bin NUMBER on the wide grid: z, light, flux and ivar at S/N about 3, a tenth of pixels missing."""
    rng = np.random.default_rng(1)
    n, n_wide = 360, PIXELS + 2 * MARGIN
    z = (NUMBER + rng.random(n)) * WIDTH
    shift = shift_pixels((NUMBER + 0.5) * WIDTH, z)
    grid = np.arange(n_wide) - MARGIN
    coefficients = np.stack([np.ones(n), 0.2 * rng.normal(size=n), 0.1 * rng.normal(size=n)], axis=1)
    bright = rng.uniform(2, 6, n)
    light = np.stack([b * c @ rest_frame(grid - s) for b, c, s in zip(bright, coefficients, shift, strict=True)])
    sigma = rng.uniform(0.5, 1.5, (n, n_wide))
    ivar = np.where(rng.random(light.shape) < 0.1, 0, sigma**-2.0)
    flux = np.where(ivar > 0, light + sigma * rng.normal(size=light.shape), 0)
    return z, light, flux.astype(np.float32), ivar.astype(np.float32)


@pytest.fixture(scope="module")
def row(sample):
    z, _, flux, ivar = sample
    return measure(NUMBER, z, flux, ivar, np.arange(len(z)) >= 300, MARGIN, settings())


@pytest.fixture(scope="module")
def bins(row):
    return Bins.of([row | {"n_own": 300}], 3)


def test_bins_hold_their_redshifts():
    z = np.array([0.0, 0.0024, 0.0026, 0.5012])
    assert bin_of(z, WIDTH).tolist() == [0, 0, 1, 200]


def test_shifts_are_whole_pixels_of_the_common_grid():
    assert shift_pixels(0.0, 10 ** (1500e-4) - 1) == 1500
    assert shift_pixels(0.4, 0.3) == -shift_pixels(0.3, 0.4)
    z = np.linspace(0, WIDTH, 50, endpoint=False)
    assert np.abs(shift_pixels(z, WIDTH / 2)).max() < EDGE


def test_cut_takes_each_row_from_its_own_start():
    planes = np.arange(20.0).reshape(2, 10)
    np.testing.assert_array_equal(cut(planes, [2, -1], 4), [[2, 3, 4, 5], [0, 10, 11, 12]])
    np.testing.assert_array_equal(cut(planes, [8, 40], 4), [[8, 9, 0, 0], [0, 0, 0, 0]])


def test_own_lines_and_sky_lines_stay_but_bad_pixels_go():
    inputs = config.load().input
    mask = np.zeros((1, 1192), np.int32)
    mask[0, 7] = 1 << 25
    good = sound_ivar(np.ones((1, 1192), np.float32), mask, inputs, 35798)
    assert np.flatnonzero(good[0] == 0).tolist() == [7]


def test_neighbours_help_as_few_as_needed_on_both_sides():
    counts = {10: 100, 11: 3, 12: 50, 20: 4, 21: 0}
    assert reaches(counts, 60, 5) == {10: 0, 11: 1, 12: 2}  # 12 needs 10; 20 finds nobody
    assert reaches(counts, 4, 5)[20] == 0
    assert reaches(counts, 1000, 5) == {}
    for minimum in (5, 60, 150):
        for number, reach in reaches(counts, minimum, 5).items():
            inside = sum(count for other, count in counts.items() if abs(other - number) <= reach)
            fewer = sum(count for other, count in counts.items() if abs(other - number) < reach)
            assert inside >= minimum > fewer or not reach


def test_vectors_explain_galaxies_that_they_have_not_seen(row):
    assert row["n_held_out"] == 60 and row["n_used"] >= 295
    assert row["chi2_held_out"] == pytest.approx(1, abs=0.04) and row["chi2"] == pytest.approx(1, abs=0.04)


def test_drawn_galaxies_vary_as_the_real_ones_and_not_as_their_noise(sample, bins):
    """Each against its own mean: the scatter of artificial light is that of the noiseless galaxies."""
    z, light, flux, _ = sample
    rng = np.random.default_rng(2)
    drawn_z, _, drawn = bins.draw(rng.random((2000, 3)), rng.normal(size=(2000, 3)), PIXELS)
    assert (bin_of(drawn_z, WIDTH) == NUMBER).all()

    def scatter(spectra):
        return np.std(spectra / spectra.mean(axis=1, keepdims=True), axis=0).mean()

    true, noisy = scatter(light[:, MARGIN:-MARGIN]), scatter(flux[:, MARGIN:-MARGIN])
    assert noisy > 2 * true
    assert scatter(drawn) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("bootstrap", [True, False])
def test_drawn_light_is_that_of_its_redshift(bins, bootstrap):
    """The line of the third spectrum, at pixel 150 of the bin's frame, moves with the redshift."""
    u = np.array([[0.5, share, 0.3] for share in (0.0, 0.5, 0.999)])
    z, flux, light = bins.draw(u, np.zeros((3, 3)), PIXELS, bootstrap)
    shift = shift_pixels((NUMBER + 0.5) * WIDTH, z)
    assert shift.tolist() == [-4, 0, 4] or np.ptp(shift) >= 6
    np.testing.assert_allclose(np.roll(light[0], shift[2] - shift[0])[20:-20], light[2, 20:-20])
    np.testing.assert_allclose(light.mean(axis=1), flux, rtol=0.1)


def test_outliers_do_not_bend_the_vectors(sample, row):
    z, _, flux, ivar = sample
    spoilt = flux.copy()
    spoilt[:6] = 8 * np.abs(np.random.default_rng(3).normal(size=spoilt[:6].shape))  # spectra of another kind
    spoilt[10, 200:203] += 300  # a cosmic ray
    held_out = np.arange(len(z)) >= 300
    found = measure(NUMBER, z, spoilt, ivar, held_out, MARGIN, settings())
    assert found["n_used"] <= row["n_used"] - 6
    assert found["chi2_held_out"] == pytest.approx(row["chi2_held_out"], abs=0.02)


def test_the_order_of_arrays_in_memory_does_not_matter(sample, row):
    z, _, flux, ivar = sample
    flux = np.asfortranarray(flux)
    again = measure(NUMBER, z.copy(), flux, ivar.copy(), np.arange(len(z)) >= 300, MARGIN, settings())
    np.testing.assert_allclose(again["coefficients"], row["coefficients"], rtol=1e-4, atol=1e-4)


def test_too_few_galaxies_give_nothing(sample):
    z, _, flux, ivar = (values[:10] for values in sample)
    assert measure(NUMBER, z, flux, ivar, np.zeros(10, bool), MARGIN, settings()) is None
    with pytest.raises(ValueError, match="no bin of redshift"):
        Bins.of([], 3)


def test_pixels_that_nothing_covers_are_nan(sample):
    z, _, flux, ivar = sample
    dark = np.where(np.arange(ivar.shape[1]) < MARGIN + 30, 0, ivar)
    row = measure(NUMBER, z, flux, dark, np.zeros(len(z), bool), MARGIN, settings())
    light = Bins.of([row | {"n_own": 1}], 3).draw(np.full((1, 3), 0.5), np.zeros((1, 3)), PIXELS)[2]
    assert np.isnan(light[0, :25]).all() and np.isfinite(light[0, 40:]).all()
