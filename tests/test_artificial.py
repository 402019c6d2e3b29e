"""Artificial spectra: the survey's sky and noise as they are, lines where the truth says, each spectrum on its own."""

import dataclasses

import numpy as np
import pytest

from lensspark import config
from lensspark.galaxy_bins import Bins
from lensspark.mock.artificial import Backdrops, artificial, sound_fibres
from lensspark.spectrum import pixel

FIRST, PIXELS, K, EDGE = 35798, 1192, 2, 6
N_GALAXY, N_SKY = 12, 9


@pytest.fixture(scope="module")
def settings():
    return config.load()


@pytest.fixture(scope="module")
def bins():
    """One bin of five galaxies without any variation: light is flat, 2 for each unit of flux."""
    vectors = np.zeros((1, 2, K, PIXELS + 2 * EDGE), np.float32)
    vectors[:, :, 0] = 1
    return Bins(np.array([0.5]), np.array([0.5025]), np.array([1.0]), vectors, np.tile([2.0, 0.0], (1, 2, 1)),
                np.zeros((1, 2, K, K)), np.array([0, 5]), np.zeros(5, int), np.tile([2.0, 0.0], (5, 1)),
                np.zeros((5, K, K)), np.linspace(0.5, 2.5, 5))


@pytest.fixture(scope="module")
def columns():
    """Fibres of a plate: ivar of each galaxy tells which it is; the sky's noise is skewed, of errors that differ."""
    rng = np.random.default_rng(1)
    n = N_GALAXY + N_SKY
    is_sky = np.arange(n) >= N_GALAXY
    sigma = np.where(is_sky, rng.uniform(0.5, 3, n), 0.3 + 0.01 * np.arange(n))[:, None] * np.ones(PIXELS)
    ivar = np.where(rng.random((n, PIXELS)) < 0.03, 0, sigma**-2.0).astype(np.float32)
    flux = np.where(is_sky[:, None], 0, np.linspace(1, 5, n)[:, None]) + sigma * (rng.gamma(4, 0.5, (n, PIXELS)) - 2)
    mask = np.zeros((n, PIXELS), np.int32)
    mask[0, 100] = 1 << 25
    return {"mjd": np.full(n, 55555, np.int32), "run2d": np.full(n, "v5_7_0", object), "is_sky": is_sky,
            "flux": np.where(ivar > 0, flux, 0).astype(np.float32), "ivar": ivar, "and_mask": mask,
            "wdisp": np.where(ivar > 0, 1.3, 0).astype(np.float32)}


@pytest.fixture(scope="module")
def backdrops(columns, settings):
    return Backdrops.of(columns, settings.input, FIRST)


def draw(backdrops, bins, settings, n=400, block=0, survey=(), **kinds):
    mock = dataclasses.replace(settings.mock_training, **(dict.fromkeys(
        ("lya", "oii", "airglow", "cosmic", "lens_line", "crosstalk", "sky", "star", "broad"), 0.0) | kinds))
    changed = dataclasses.replace(settings.survey_training, **dict(survey))
    return artificial(3, 4000, block, n, backdrops, bins, changed, mock, FIRST)


def test_noise_is_the_sky_fibres_in_units_of_the_galaxys_errors(backdrops, bins, settings):
    drawn = draw(backdrops, bins, settings)
    good = drawn["ivar"] > 0
    light = np.median(drawn["flux"], axis=1, keepdims=True)
    pull = ((drawn["flux"] - light) * np.sqrt(drawn["ivar"]))[good]
    assert np.std(pull) == pytest.approx(1, abs=0.03)
    assert np.mean(pull - pull.mean()) == pytest.approx(0, abs=1e-3)
    assert np.mean((pull - pull.mean()) ** 3) == pytest.approx(1, abs=0.15)  # a gamma of shape 4 is skewed by 1


def test_the_published_noise_counts_the_sky_fibres_noise_on_top(backdrops, bins, settings):
    drawn = draw(backdrops, bins, settings, survey={"noise": "paper"}.items())
    good = drawn["ivar"] > 0
    pull = (drawn["flux"] - np.median(drawn["flux"], axis=1, keepdims=True)) * np.sqrt(drawn["ivar"])
    assert np.std(pull[good]) > 2


def test_errors_are_those_of_galaxies_about_as_bright(backdrops, bins, settings):
    drawn = draw(backdrops, bins, settings)
    number = np.rint((1 / np.sqrt(np.median(drawn["ivar"], axis=1)) - 0.3) / 0.01).astype(int)
    assert set(number) <= set(range(N_GALAXY)) and len(set(number)) > 6
    brightness = np.median(drawn["flux"], axis=1)
    assert number[brightness < 1.5].max() < number[brightness > 4.5].max()


def test_a_sky_spectrum_is_a_sky_fibre(columns, backdrops, bins, settings):
    drawn = draw(backdrops, bins, settings, n=20, sky=1.0)
    sky = columns["flux"][columns["is_sky"]]
    for flux, ivar in zip(drawn["flux"], drawn["ivar"], strict=True):
        apart = np.abs(np.where(ivar > 0, flux - sky, 0)).max(axis=1)
        assert apart.min() < 1e-4
    assert (drawn["kind"] == "sky").all() and np.isnan(drawn["line_wave"]).all()


def test_a_spectrum_does_not_depend_on_how_many_are_drawn(backdrops, bins, settings):
    many, few = (draw(backdrops, bins, settings, n=n, lya=0.5, lens_line=0.2) for n in (50, 7))
    for name, values in few.items():
        np.testing.assert_array_equal(values, many[name][:7], err_msg=name)
    other = draw(backdrops, bins, settings, n=7, block=1, lya=0.5, lens_line=0.2)
    assert not np.array_equal(other["flux"], few["flux"])
    assert other["fiberid"].min() == 501


@pytest.mark.parametrize(("convolve", "sigma"), [(True, np.hypot(2.0, 1.3)), (False, 2.0)])
def test_lines_have_their_place_width_and_significance(backdrops, bins, settings, convolve, sigma):
    """A Gaussian line of 2 px before the spectrograph, with and without its line-spread function of 1.3 px."""
    quiet = dataclasses.replace(backdrops, residual=np.zeros_like(backdrops.residual))
    fwhm = 2.0 * 2.3548 * 69.03
    mock = {"lya": 1.0, "symmetric": 1.0, "double_peaked": 0.0, "line_fwhm": (fwhm, 0.0)}
    drawn = draw(quiet, bins, settings, n=60, survey={"convolve_lines": convolve}.items(), **mock)
    x = np.arange(PIXELS) - (pixel(drawn["line_wave"]) - FIRST)[:, None]
    inside = (np.abs(pixel(drawn["line_wave"]) - FIRST - 596) < 560) & (
        (drawn["ivar"] > 0) | (np.abs(x) > 12)).all(axis=1)
    line = (drawn["flux"] - np.median(drawn["flux"], axis=1, keepdims=True)) * (np.abs(x) < 12) * (drawn["ivar"] > 0)
    assert inside.sum() > 5
    moments = [(line * x**p).sum(axis=1)[inside] / line.sum(axis=1)[inside] for p in (1, 2)]
    np.testing.assert_allclose(moments[0], 0, atol=0.05)
    np.testing.assert_allclose(np.sqrt(moments[1]), sigma, rtol=0.05)
    snr = np.sqrt(np.sum(line**2 * drawn["ivar"], axis=1))
    np.testing.assert_allclose(snr[inside], drawn["line_snr"][inside], rtol=0.05)
    assert drawn["line_snr"].min() > 2.9 and drawn["line_snr"].max() < 15.1


def test_a_lines_own_photons_add_noise_unless_the_recipe_is_the_papers(backdrops, bins, settings):
    real, paper = (draw(backdrops, bins, settings, n=400, survey={"noise": noise}.items(), lya=1.0)
                   for noise in ("sky", "paper"))
    with np.errstate(divide="ignore", invalid="ignore"):
        raised = -np.log(real["ivar"] / paper["ivar"])
    at = np.rint(pixel(real["line_wave"])).astype(int) - FIRST
    inside = (at >= 0) & (at < PIXELS)
    assert np.nanmean(raised[np.flatnonzero(inside), at[inside]]) > 0.05  # by 5 % per sigma of the line's light
    assert abs(np.nanmedian(raised)) < 0.01  # the noise itself raises and lowers it


def test_reported_variances_follow_the_noise_by_5_percent_per_sigma(backdrops, bins, settings):
    drawn, paper = (draw(backdrops, bins, settings, survey={"noise": noise}.items()) for noise in ("sky", "paper"))
    good = (drawn["ivar"] > 0) & (paper["ivar"] > 0)
    pull = ((drawn["flux"] - np.median(drawn["flux"], axis=1, keepdims=True)) * np.sqrt(drawn["ivar"]))[good]
    slope = np.polyfit(pull, -np.log(drawn["ivar"][good] / paper["ivar"][good]), 1)[0]
    assert slope == pytest.approx(0.05, abs=0.01)


def test_kinds_come_in_their_shares_and_those_of_neighbours_are_clean(backdrops, bins, settings):
    drawn = draw(backdrops, bins, settings, n=500, lya=0.4, star=0.3, crosstalk=0.1, airglow=0.1)
    kinds, counts = np.unique(drawn["kind"], return_counts=True)
    assert kinds.tolist() == ["clean", "lya"] and counts[1] == pytest.approx(200, abs=45)
    with pytest.raises(ValueError, match="mock_training: the fractions"):
        draw(backdrops, bins, settings, n=5, lya=0.7, oii=0.5)


def test_pixels_without_vectors_are_unusable(backdrops, bins, settings):
    vectors = bins.vectors.copy()
    vectors[..., :30] = np.nan
    drawn = draw(backdrops, dataclasses.replace(bins, vectors=vectors), settings, n=10)
    assert not drawn["ivar"][:, :15].any() and not drawn["flux"][:, :15].any()
    assert np.isfinite(drawn["flux"]).all()


def test_which_fibres_are_sound(columns, settings):
    ivar = columns["ivar"].copy()
    ivar[3, 200:] = 0
    flux = columns["flux"].copy()
    flux[5], flux[-1] = -1, -1  # a galaxy of negative flux; blank sky may be negative
    sound = sound_fibres(flux, ivar, columns["and_mask"], columns["is_sky"], settings.input, FIRST)
    assert np.flatnonzero(~sound).tolist() == [3, 5]
