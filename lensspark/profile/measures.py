"""What the fits say of each line: flux, position, width, shape with errors, and how its rivals compare."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator

from lensspark.eigen import DLOGLAM
from lensspark.profile import shapes
from lensspark.profile.cutout import Cutouts
from lensspark.profile.fits import GRID, STEPS, Fits, Models
from lensspark.profile.least_squares import bias, covariance

_FINE = np.arange(-200, 201) / 200 * GRID[-1]


def measures(cuts: Cutouts, fits: Fits, noise_correlation: float) -> dict[str, np.ndarray]:
    """Columns of schema.VETTING about the profile, each (n,); the errors allow for neighbouring pixels' correlation.

    Fluxes 1e-17 erg/s/cm2, widths px as observed, wavelengths Angstrom. chi2 differences are rival - skew normal.
    """
    models, theta = Models(cuts), fits.skew.theta
    possible = shapes.seen_skewness(shapes.SKEWNESS_MAX, shapes.width_of(theta), cuts.lsf)
    spread = covariance(models.skew, fits.data, fits.skew, STEPS[:3], noise_correlation, possible)
    excess = bias(models.skew, fits.data, fits.skew, STEPS[:3], spread)
    width = shapes.width_of(theta)
    peak = shapes.mode(theta[:, 0], width, theta[:, 2])
    wave = cuts.wave(peak)
    out = {
        "profile_flux": fits.skew.amplitude - excess[:, 0],
        "profile_flux_err": _root(spread[:, 0, 0]),
        "profile_wave": wave,
        "profile_wave_err": np.log(10) * DLOGLAM * wave * _peak_error(theta, spread[:, 1:, 1:]),
        "profile_width": width * np.exp(-excess[:, 2] - 0.5 * np.nan_to_num(spread[:, 2, 2]).clip(0, 0.25)),
        "profile_width_err": width * _root(spread[:, 2, 2]),
        "profile_chi2": fits.skew.chi2,
        "profile_dof": (cuts.ivar > 0).sum(axis=1) - 5.0,
        "dchi2_skew": fits.gauss.chi2 - fits.skew.chi2,
        "dchi2_oii": fits.oii.chi2 - fits.skew.chi2,
        "dchi2_double": fits.double.chi2 - fits.skew.chi2,
    }
    out |= _alpha(cuts, fits, noise_correlation)
    return out | _spike(cuts, fits, models, noise_correlation)


def _root(variance: np.ndarray) -> np.ndarray:
    """Error from a variance; NaN where the data leave it undetermined."""
    return np.sqrt(np.where(variance > 0, variance, np.nan))


def _peak_error(theta: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Error of the mode, px, from the covariance (n, 3, 3) of mean, ln width and skewness."""
    def peak(values: np.ndarray) -> np.ndarray:
        return shapes.mode(values[:, 0], shapes.width_of(values), values[:, 2])

    slope = np.empty_like(theta)
    for k, size in enumerate(STEPS[:3]):
        step = np.where(theta[:, k] > 0, -size, size)
        moved = theta.copy()
        moved[:, k] += step
        slope[:, k] = (peak(moved) - peak(theta)) / step
    # Two sums: the order in which an einsum of three adds up depends on how many lines are fitted together.
    return _root(((slope[:, :, None] * spread).sum(axis=1) * slope).sum(axis=1))


def _alpha(cuts: Cutouts, fits: Fits, noise_correlation: float) -> dict[str, np.ndarray]:
    """Shape parameter, its 68 % interval and P(alpha > 0) from the profile likelihood over the intrinsic skewness.

    The interval is where chi2 rises by less than 1, the prior of the probability is flat in the skewness, and chi2 is
    divided by 1 + 2 x correlation, the factor by which correlated noise scatters a line's smooth parameters more.
    """
    # In rows: the order in which a transposed array is summed depends on how many lines are fitted together.
    chi2 = np.ascontiguousarray(PchipInterpolator(GRID, fits.grid_chi2, axis=1)(_FINE))
    chi2 = np.minimum(chi2, np.where(_nearest(fits, cuts), fits.skew.chi2[:, None], np.inf))
    rise = (chi2 - chi2.min(axis=1, keepdims=True)) / (1 + 2 * noise_correlation)
    likelihood = np.exp(-0.5 * rise)
    positive = (likelihood * np.heaviside(_FINE, 0.5)).sum(axis=1)
    within = rise <= 1
    low, high = _FINE[within.argmax(axis=1)], _FINE[len(_FINE) - 1 - within[:, ::-1].argmax(axis=1)]
    low, high = shapes.alpha_of(low), shapes.alpha_of(high)
    return {
        "alpha": shapes.alpha_of(_intrinsic(fits, cuts)), "alpha_err": (high - low) / 2,
        "alpha_low": low, "alpha_high": high, "p_skew_positive": positive / likelihood.sum(axis=1),
    }


def _intrinsic(fits: Fits, cuts: Cutouts) -> np.ndarray:
    """Moment skewness of the line before the LSF; 0 for an unresolved one."""
    share = shapes.own_share(shapes.width_of(fits.skew.theta), cuts.lsf) ** 1.5
    return np.divide(fits.skew.theta[:, 2], share, out=np.zeros_like(share), where=share > 0)


def _nearest(fits: Fits, cuts: Cutouts) -> np.ndarray:
    """(n, len(_FINE)): the point nearest to the best fit, whose chi2 is known exactly."""
    return np.abs(_FINE - _intrinsic(fits, cuts)[:, None]).argmin(axis=1)[:, None] == np.arange(len(_FINE))


def _spike(cuts: Cutouts, fits: Fits, models: Models, noise_correlation: float) -> dict[str, np.ndarray]:
    """Width over that of the LSF by a Gaussian of any width, and chi2(as wide as the LSF or wider) - chi2(spike)."""
    spread = covariance(models.gauss, fits.data, fits.free, STEPS[:2], noise_correlation)
    ratio = np.where(cuts.lsf_known, shapes.width_of(fits.free.theta) / cuts.lsf, np.nan)
    return {
        "line_width_over_lsf": ratio,
        "line_width_over_lsf_err": ratio * _root(spread[:, 2, 2]),
        "dchi2_spike": np.where(cuts.lsf_known, fits.gauss.chi2 - fits.spike.chi2, np.nan),
    }
