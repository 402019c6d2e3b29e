"""From pixels to network input: the window, the masks, the galaxy's fit, the channels."""

import numpy as np
import pytest

from lensspark import config, matched_filter, spectrum

FIRST, N_PIX = spectrum.window_pixels((3800.0, 5000.0))


@pytest.fixture(scope="module")
def settings():
    return config.load().input


def galaxies(basis, z, scale=3.0):
    """Noiseless members of the basis' population at redshifts z, of about `scale` 1e-17 erg/s/cm2/A."""
    coefficients = basis.coefficients[: len(z), :7]
    flux = np.einsum("nk,nkp->np", coefficients, basis.at(z, FIRST, N_PIX, 7))
    return (scale * flux / np.abs(flux).mean(axis=1, keepdims=True)).astype(np.float32)


def test_the_window_is_the_published_one():
    assert (FIRST, N_PIX) == (35798, 1192)
    edges = spectrum.wavelength(np.array([FIRST, FIRST + N_PIX - 1]))
    assert 3800 <= edges[0] < 3800.9 and 4998.9 < edges[1] <= 5000
    assert spectrum.pixel(spectrum.wavelength(36000.25)) == pytest.approx(36000.25)


@pytest.mark.parametrize("window", [(5000, 3800), (0, 100), (-1, 5), (float("nan"), 2), (3800.0, 3800.1)])
def test_a_window_must_be_increasing_wavelengths(window):
    with pytest.raises(ValueError, match="window"):
        spectrum.window_pixels(window)


def test_usable_pixels(settings):
    n = 6
    ivar = np.ones((n, N_PIX), np.float32)
    mask = np.zeros((n, N_PIX), np.int32)
    ivar[0, 5], ivar[0, 6], ivar[0, 7] = np.nan, np.inf, -1
    for bit in settings.bad_pixel_bits:
        mask[1, 100 + bit] = 1 << bit
    mask[1, 50], mask[1, 51] = 1 << 19, np.int32(-(2**31))  # PARTIALREJECT and the unused bit 31 are harmless
    mask[2] = 1 << 1  # BADTRACE
    z = np.array([5.0, 5.0, 5.0, 0.2, 0.4, 5.0])
    good = spectrum.usable_ivar(ivar, mask, z, settings, FIRST) > 0
    sky = np.flatnonzero(~good[5])
    assert len(sky) == 2 * 5 or len(sky) == 2 * 4
    assert not good[0, [5, 6, 7]].any() and good[0, 8]
    assert set(np.flatnonzero(~good[1])) - set(sky) == {100 + bit for bit in settings.bad_pixel_bits}
    assert not good[2].any()
    for row, rest in ((3, 3727.09), (3, 3869.86), (4, 3346.79)):
        at = spectrum.pixel(rest * (1 + z[row])) - FIRST
        assert not good[row, int(np.ceil(at - 6)):int(at + 6) + 1].any()
        assert good[row, int(at) - 8]


def test_the_fit_gives_the_galaxy_back_and_leaves_the_line(settings, basis):
    z = np.linspace(0.31, 0.75, 8)
    truth = galaxies(basis, z)
    ivar = np.full_like(truth, 25.0)
    line = np.zeros_like(truth)
    line[:, 600:615] = 3 * matched_filter.kernel(2.2)
    found = spectrum.prepare(truth + line, ivar, np.zeros(truth.shape, np.int32), z, basis, settings, FIRST)
    good = found.ivar > 0
    assert np.abs(found.model - truth)[good].mean() < 0.01  # of 3
    filtered = matched_filter.snr(found.residual, found.ivar)
    expected = matched_filter.snr(line, found.ivar)
    clear = good[:, 600:615].all(axis=1)  # of the galaxy's own lines
    assert clear.sum() >= 6
    kept = filtered[clear].max(axis=1) / expected[clear].max(axis=1)
    assert np.median(kept) == pytest.approx(1.0, abs=0.03)
    assert kept.min() > 0.75  # a line that looks like the galaxy at that redshift is partly fitted away


def test_channels_are_what_their_names_say(settings, basis):
    z = np.array([0.5, 0.6])
    flux = galaxies(basis, z) + np.random.default_rng(0).normal(0, 0.3, (2, N_PIX)).astype(np.float32)
    ivar = np.full_like(flux, 1 / 0.09)
    names = ("flux", "residual", "sqrt_ivar", "model", "matched_2.2")
    chosen = config.load([], [f"input.channels={list(names)!r}"]).input
    found = spectrum.prepare(flux, ivar, np.zeros(flux.shape, np.int32), z, basis, chosen, FIRST)
    channel = dict(zip(names, found.channels.transpose(1, 0, 2), strict=True))
    good = found.ivar > 0
    assert found.channels.shape == (2, 5, N_PIX) and found.channels.dtype == np.float32
    scale = spectrum.SIGNIFICANCE_SCALE
    np.testing.assert_allclose(channel["residual"] * scale, found.residual * np.sqrt(found.ivar), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(channel["matched_2.2"] * scale, matched_filter.snr(found.residual, found.ivar),
                               rtol=1e-3, atol=1e-3)
    assert np.std((channel["residual"] * scale)[good]) == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(channel["sqrt_ivar"][good], 1.0, rtol=1e-4)
    for name in ("flux", "model"):
        assert np.abs(channel[name])[good].mean() == pytest.approx(1.0, abs=0.05)
    assert not channel["flux"][~good].any() and not channel["residual"][~good].any()


def test_spectra_with_bright_lines_are_scaled_down_as_a_whole(settings, basis):
    z = np.full(3, 0.5)
    flux = galaxies(basis, z) + np.random.default_rng(0).normal(0, 0.3, (3, N_PIX)).astype(np.float32)
    for row, snr in ((1, 9.0), (2, 60.0)):
        line = matched_filter.kernel(2.2)
        flux[row, 400:415] += snr * 0.3 * line / np.sqrt(np.sum(line**2))
    ivar, mask, scale = np.full_like(flux, 1 / 0.09), np.zeros(flux.shape, np.int32), spectrum.SIGNIFICANCE_SCALE
    dim, plain = (spectrum.prepare(flux, ivar, mask, z, basis, config.load([], [f"input.brightest_snr={limit}"]).input,
                                   FIRST) for limit in (10.0, 0.0))
    matched = [i for i, name in enumerate(settings.channels) if name.startswith("matched_")]
    assert dim.channels[2, matched].max() * scale == pytest.approx(10.0, rel=1e-5)
    np.testing.assert_array_equal(dim.channels[:2], plain.channels[:2])
    noise = slice(600, None)  # nothing is clipped there
    ratio = dim.channels[2, [0, *matched], noise] / plain.channels[2, [0, *matched], noise]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-3)
    np.testing.assert_array_equal(dim.residual, plain.residual)


def test_a_row_does_not_depend_on_its_neighbours(settings, basis):
    rng = np.random.default_rng(3)
    z = rng.uniform(0.3, 0.7, 9)
    flux = galaxies(basis, z) + rng.normal(0, 0.5, (9, N_PIX)).astype(np.float32)
    ivar, mask = np.full_like(flux, 4.0), np.zeros(flux.shape, np.int32)
    together = spectrum.prepare(flux, ivar, mask, z, basis, settings, FIRST)
    for i in (0, 4, 8):
        alone = spectrum.prepare(flux[i:i + 1], ivar[i:i + 1], mask[i:i + 1], z[i:i + 1], basis, settings, FIRST)
        np.testing.assert_allclose(alone.channels[0], together.channels[i], atol=2e-4)


@pytest.mark.parametrize("bit", [0, 22])
def test_a_spectrum_upside_down_is_fitted_by_the_same_model(settings, basis, bit):
    rng = np.random.default_rng(4)
    z = rng.uniform(0.3, 0.7, 20)
    flux = galaxies(basis, z) + rng.normal(0, 0.5, (20, N_PIX)).astype(np.float32)
    flux[:, 500] += rng.uniform(-20, 20, 20)  # glitches of either sign, which the fit clips
    ivar, mask = np.full_like(flux, 4.0), np.zeros(flux.shape, np.int32)
    mask[::2, 300:320] = 1 << bit  # 22 is a bad pixel's, 0 a bad fibre's if there are many
    found = spectrum.prepare(flux, ivar, mask, z, basis, settings, FIRST)
    mirrored = spectrum.prepare(2 * found.model - flux, ivar, mask, z, basis, settings, FIRST)
    upside_down = found.upside_down()
    np.testing.assert_allclose(upside_down.residual, -found.residual, atol=1e-4)
    np.testing.assert_allclose(upside_down.snr, -found.snr, atol=1e-3)
    good = found.ivar > 0
    assert np.std((mirrored.model - found.model)[good]) < 0.03 * 0.5  # of the noise; the fit's ridge is no projection
    np.testing.assert_array_equal(found[3:5].upside_down().channels, upside_down.channels[3:5])


def test_worthless_spectra_are_finite_and_not_scorable(settings, basis):
    flux = np.ones((3, N_PIX), np.float32)
    ivar = np.zeros_like(flux)
    ivar[1, :100] = 1.0  # 8 % of the window
    ivar[2] = 1.0
    found = spectrum.prepare(flux, ivar, np.zeros(flux.shape, np.int32), np.full(3, 0.5), basis, settings, FIRST)
    assert found.scorable.tolist() == [False, False, True]
    assert np.isfinite(found.channels).all() and np.isfinite(found.model).all()


def test_wrong_shapes_and_channels_are_named(settings, basis):
    flux = np.ones((2, N_PIX), np.float32)
    mask = np.zeros((2, N_PIX), np.int32)
    with pytest.raises(ValueError, match="shapes"):
        spectrum.prepare(flux, flux[:, 1:], mask, np.zeros(2), basis, settings, FIRST)
    for name in ("fluxx", "matched_", "matched_wide"):
        chosen = config.load([], [f"input.channels=['{name}']"]).input
        with pytest.raises(ValueError, match=name):
            _ = spectrum.prepare(flux, flux, mask, np.zeros(2), basis, chosen, FIRST).channels
