"""The counterpart of a line in another spectrum: is there light at this wavelength in a neighbour or a repeat?

The continuum is a straight line through the pixels around, so that galaxies and sky fibres are measured alike; what is
known better, as a star's absorption lines, is taken off before.
"""

from __future__ import annotations

import numpy as np

from lensspark import matched_filter
from lensspark.eigen import DLOGLAM
from lensspark.spectrum import pixel

CUTOUT_PX = 32         # on each side of the line
CONTINUUM_PX = (9, 28)  # distances from the line between which the continuum is fitted: 600-1900 km/s


def counterpart(flux: np.ndarray, ivar: np.ndarray, loglam0: np.ndarray, wave: np.ndarray,
                half_px: float | np.ndarray) -> dict[str, np.ndarray]:
    """The strongest line within `half_px` pixels of `wave` in each of n spectra: at_flux, at_flux_err, at_snr, (n,).

    half_px, (n,) or one for all: 0 measures at `wave` itself; the maximum within 3 px of noise alone is +0.7.
    flux, ivar (n, n_pix), ivar 0 where unusable; loglam0 (n,): log10 wavelength of the first pixel; wave (n,):
    Angstrom. A Gaussian of sigma 2.2 px above a straight continuum, fluxes in 1e-17 erg/s/cm2 as `line_flux`; NaN
    where nothing is measured at `wave`, or no continuum beside it.
    """
    n, n_pix = flux.shape
    where = pixel(wave) - np.asarray(loglam0, float) / DLOGLAM
    known = np.isfinite(where) & (where > -0.5) & (where < n_pix - 0.5)
    centre = np.where(known, np.rint(np.where(known, where, 0)), 0).astype(int)
    offset = np.arange(-CUTOUT_PX, CUTOUT_PX + 1)
    at = centre[:, None] + offset
    inside = (at >= 0) & (at < n_pix) & known[:, None]
    rows = np.arange(n)[:, None]
    at = np.clip(at, 0, n_pix - 1)
    cut = np.where(inside, flux[rows, at], 0).astype(np.float64)
    weight = np.where(inside & np.isfinite(cut) & np.isfinite(ivar[rows, at]), ivar[rows, at], 0).astype(np.float64)
    cut = np.where(weight > 0, cut, 0.0)
    residual = cut - _continuum(cut, weight, offset)
    amplitude, inverse = matched_filter.amplitude(residual, weight, matched_filter.CLASSICAL_SIGMA)
    snr = amplitude * np.sqrt(inverse)
    reach = np.broadcast_to(np.maximum(half_px, 0.5), n)[:, None]
    near = np.abs(offset + (centre - np.where(known, where, 0))[:, None]) <= reach
    usable = near & (weight > 0)  # a masked pixel is not a place where no line is
    best = np.where(usable, snr, -np.inf).argmax(axis=1)
    rows = np.arange(n)
    measured = known & usable.any(axis=1) & np.isfinite(residual).all(axis=1) & (inverse[rows, best] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        width = np.where(measured, wave * np.log(10) * DLOGLAM, np.nan)  # Angstrom per pixel
        error = inverse[rows, best] ** -0.5
    return {"at_flux": amplitude[rows, best] * width, "at_flux_err": error * width,
            "at_snr": np.where(measured, snr[rows, best], np.nan)}


def _continuum(flux: np.ndarray, weight: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Weighted straight line (n, m) through the pixels at CONTINUUM_PX from the centre; NaN with fewer than 5."""
    low, high = CONTINUUM_PX
    w = np.where((np.abs(offset) >= low) & (np.abs(offset) <= high), weight, 0.0)
    total = w.sum(axis=1, keepdims=True)
    enough = ((w > 0).sum(axis=1, keepdims=True) >= 5) & (total > 0)
    total = np.where(enough, total, 1.0)
    mean_x = (w * offset).sum(axis=1, keepdims=True) / total
    mean_y = (w * flux).sum(axis=1, keepdims=True) / total
    x = offset - mean_x
    spread = (w * x**2).sum(axis=1, keepdims=True)
    slope = np.where(spread > 0, (w * x * flux).sum(axis=1, keepdims=True) / np.where(spread > 0, spread, 1.0), 0.0)
    return np.where(enough, mean_y + slope * x, np.nan)
