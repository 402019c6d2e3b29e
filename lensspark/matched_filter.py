"""The classical search for an emission line: a Gaussian matched filter on the residual spectrum.

S/N(x) = sum(f ivar K) / sqrt(sum(ivar K^2)), K a unit-sum Gaussian; BELLS GALLERY takes sigma = 2.2 px and 15 px of
length (Shu et al. 2016, ApJ 833, 264; Bolton et al. 2004, AJ 127, 1860).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from lensspark import kernels

CLASSICAL_SIGMA = 2.2  # px; Shu et al. 2016
TINY = np.float32(1e-30)  # far below any inverse variance in (1e-17 erg/s/cm2/A)^-2, and no zero


@cache
def kernel(sigma: float) -> np.ndarray:
    """Unit-sum Gaussian of `sigma` px, 15 px long for sigma = 2.2 (7/2.2 sigma on each side), float32, read only."""
    half = max(int(np.ceil(3.0 * sigma)), 1)
    x = np.arange(-half, half + 1)
    values = np.exp(-0.5 * (x / sigma) ** 2)
    values = (values / values.sum()).astype(np.float32)
    values.flags.writeable = False
    return values


def weight(ivar: np.ndarray, sigma: float = CLASSICAL_SIGMA) -> np.ndarray:
    """Inverse variance of the flux of a line of width `sigma` px centred on each pixel; `ivar` (..., n_pix)."""
    k = kernel(sigma)
    return kernels.correlate(ivar, k * k)


def signal(weighted: np.ndarray, sigma: float = CLASSICAL_SIGMA) -> np.ndarray:
    """`weighted`, residual times ivar (..., n_pix), seen through the filter: the flux of a line times its `weight`."""
    return kernels.correlate(weighted, kernel(sigma))


def matched(flux: np.ndarray, model: np.ndarray, ivar: np.ndarray, weight: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
    """`signal` and `significance` (n, n_pix) of flux - model in the classical filter, whose `weight` is at hand; all
    float32, flux finite."""
    return kernels.matched(flux, model, ivar, weight, kernel(CLASSICAL_SIGMA), TINY)


def amplitude(residual: np.ndarray, ivar: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Flux of a line of width `sigma` px centred on each pixel, and its inverse variance.

    residual and ivar (..., n_pix); where ivar is 0 the residual is ignored. Returns two arrays (..., n_pix):
    the least-squares amplitude in (flux density) x (pixels), 0 where nothing constrains it, and its ivar.
    """
    inverse, found = weight(ivar, sigma), signal(residual * ivar, sigma)
    measured = inverse > 0
    return np.divide(found, inverse, out=np.zeros_like(found), where=measured), np.where(measured, inverse, 0)


def snr(residual: np.ndarray, ivar: np.ndarray, sigma: float = CLASSICAL_SIGMA) -> np.ndarray:
    """Matched-filter S/N at each pixel, shape of `residual`; 0 where nothing is measured."""
    return significance(signal(residual * ivar, sigma), weight(ivar, sigma))


def significance(found: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """S/N from `signal` and `weight`; 0 where nothing is measured, since the signal is 0 there."""
    return found / np.sqrt(np.maximum(inverse, TINY))


def count_hits(snr: np.ndarray, floor: float) -> np.ndarray:
    """Separate runs of contiguous pixels at or above `floor` in each row of (n, n_pix); returns (n,) int."""
    above = snr >= floor
    return above[:, 0].astype(int) + (above[:, 1:] & ~above[:, :-1]).sum(axis=1)
