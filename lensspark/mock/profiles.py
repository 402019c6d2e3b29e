"""Emission-line profiles on the pixel grid, seen through the line-spread function.

A skew normal convolved with a Gaussian is again a skew normal: with delta = alpha / sqrt(1 + alpha^2), the sum of a
skew normal of width omega and a Gaussian of width s has omega' = sqrt(omega^2 + s^2) and delta' = delta omega / omega'
(Azzalini 1985, Scand. J. Statist. 12, 171).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import erf

from lensspark.eigen import DLOGLAM
from lensspark.spectrum import wavelength

PIXEL_KMS = 69.03
FWHM_OF_SIGMA = 2 * np.sqrt(2 * np.log(2))
HALF_WIDTH = 40  # px on each side of the peak that a profile is evaluated on; more where that is less than REACH widths
REACH = 5


def gaussian_lines(centres: np.ndarray, sigma: np.ndarray, amounts: np.ndarray, n_pix: int) -> np.ndarray:
    """(n_pix,) sum of Gaussians with `amounts` as their sums over pixels; centres and sigma in px."""
    x = np.arange(n_pix)[None, :] - np.asarray(centres)[:, None]
    shapes = np.exp(-0.5 * (x / np.asarray(sigma)[:, None]) ** 2) / (np.sqrt(2 * np.pi) * np.asarray(sigma)[:, None])
    return np.asarray(amounts) @ shapes


def _skew_normal(t: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * t**2) / np.sqrt(2 * np.pi) * (1 + erf(alpha * t / np.sqrt(2)))


@cache
def _shape_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mode and FWHM of the unit skew normal for alpha = 0 ... 25."""
    alpha = np.concatenate([np.linspace(0, 2, 81), np.linspace(2.05, 25, 230)])
    t = np.linspace(-4, 4, 8001)
    values = _skew_normal(t[None, :], alpha[:, None])
    above = values >= values.max(axis=1, keepdims=True) / 2
    return alpha, t[values.argmax(axis=1)], above.sum(axis=1) * (t[1] - t[0])


def add_lines(
    spectra: np.ndarray, rows: np.ndarray, wave: np.ndarray, flux: np.ndarray, fwhm: np.ndarray, alpha: np.ndarray,
    lsf: np.ndarray, first_pixel: int,
) -> None:
    """Add lines to `spectra` (n, n_pix) in place.

    rows: spectrum of each line; wave: Angstrom of the peak as observed; flux: 1e-17 erg/s/cm2, over all wavelengths;
    fwhm: intrinsic, km/s; alpha: skew-normal shape, >= 0; lsf (n_lines,): sigma in px. The flux density is averaged
    over each pixel (Simpson's rule). A line may lie partly or wholly outside the pixels.
    """
    alphas, _, fwhms = _shape_table()
    omega = np.maximum(fwhm, 1.0) / PIXEL_KMS / np.interp(alpha, alphas, fwhms)
    width = np.hypot(omega, lsf)
    delta = alpha / np.sqrt(1 + alpha**2) * omega / width
    alpha = delta / np.sqrt(1 - delta**2)
    rows, peak_pixel = np.asarray(rows), np.log10(wave) / DLOGLAM - first_pixel
    wide = REACH * width > HALF_WIDTH
    for chosen in (~wide, wide):
        if chosen.any():
            half_width = max(HALF_WIDTH, int(REACH * width[chosen].max()))
            _add(spectra, rows[chosen], peak_pixel[chosen], flux[chosen], width[chosen], alpha[chosen], half_width,
                 first_pixel)


def _add(spectra: np.ndarray, rows: np.ndarray, peak_pixel: np.ndarray, flux: np.ndarray, width: np.ndarray,
         alpha: np.ndarray, half_width: int, first_pixel: int) -> None:
    """`add_lines` of skew normals of `width` px, evaluated within half_width px of the peak."""
    grid = np.rint(peak_pixel).astype(int)[:, None] + np.arange(-half_width, half_width + 1)
    alphas, modes, _ = _shape_table()
    t = (grid - peak_pixel[:, None]) / width[:, None] + np.interp(alpha, alphas, modes)[:, None]
    half, a = 0.5 / width[:, None], alpha[:, None]
    values = (_skew_normal(t - half, a) + 4 * _skew_normal(t, a) + _skew_normal(t + half, a)) / (6 * width[:, None])
    angstrom = np.log(10) * DLOGLAM * wavelength(grid + first_pixel)  # width of a pixel
    values *= flux[:, None] / angstrom
    inside = (grid >= 0) & (grid < spectra.shape[1])
    which = np.broadcast_to(rows[:, None], grid.shape)
    np.add.at(spectra, (which[inside], grid[inside]), values[inside].astype(spectra.dtype))
