"""The counterpart of a line in another spectrum: analytic lines on straight continua."""

import numpy as np
import pytest

from lensspark.counterpart import counterpart
from lensspark.spectrum import wavelength

FIRST, N = 35800, 400
X = np.arange(N)


def spectra(flux=0.0, at=200.0, sigma=2.2, continuum=(5.0, 0.01), noise=0.0, n=1):
    """n spectra with a Gaussian line of `flux` (1e-17 erg/s/cm2) at pixel `at`, and ivar 4."""
    width = wavelength(FIRST + at) * np.log(10) * 1e-4
    profile = np.exp(-0.5 * ((X - at) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)) / width
    light = continuum[0] + continuum[1] * X + flux * profile
    return light + noise * np.random.default_rng(0).normal(size=(n, N)), np.full((n, N), 4.0)


def measure(flux, ivar, at=200.0, half_px=3.0):
    n = len(flux)
    return counterpart(flux, ivar, np.full(n, FIRST * 1e-4), np.full(n, wavelength(FIRST + at)), half_px)


@pytest.mark.parametrize("shift", [0.0, 2.0, -3.0])
def test_a_line_within_reach_is_measured_over_any_straight_continuum(shift):
    flux, ivar = spectra(30.0, 200 + shift)
    got = measure(flux, ivar)
    np.testing.assert_allclose(got["at_flux"], 30, rtol=0.01)
    expected = 30 / got["at_flux_err"]
    np.testing.assert_allclose(got["at_snr"], expected, rtol=0.01)
    width = wavelength(FIRST + 200) * np.log(10) * 1e-4
    np.testing.assert_allclose(got["at_flux_err"], 0.5 * np.sqrt(2 * 2.2 * np.sqrt(np.pi)) * width, rtol=0.02)


def test_a_line_elsewhere_is_not_this_one():
    flux, ivar = spectra(30.0, 212)
    assert measure(flux, ivar)["at_snr"] < 3


def test_noise_alone_has_unit_scatter():
    flux, ivar = spectra(noise=0.5, n=2000)
    snr = measure(flux, ivar, half_px=0)["at_snr"]
    assert abs(snr.mean()) < 0.1 and abs(snr.std() - 1) < 0.15  # the continuum's own error adds a little


@pytest.mark.parametrize("fault", ["masked", "outside", "nan_wave", "no_continuum", "nan_flux"])
def test_what_cannot_be_measured_is_nan(fault):
    flux, ivar = spectra(30.0)
    at = {"outside": 900.0, "nan_wave": np.nan}.get(fault, 200.0)
    if fault == "masked":
        ivar[:, 190:211] = 0
    if fault == "no_continuum":
        ivar[:, :190], ivar[:, 211:] = 0, 0
    if fault == "nan_flux":
        flux[:, 190:211] = np.nan
    got = measure(flux, ivar, at)
    assert all(np.isnan(values).all() for values in got.values())
