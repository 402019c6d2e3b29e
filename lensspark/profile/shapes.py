"""Shapes of an emission line on pixels: unit flux, integrated over each pixel, described by their moments as observed.

The skew normal f = (2/omega) phi(t) Phi(alpha t), t = (x - xi)/omega (Azzalini 1985, Scand. J. Statist. 12, 171) is
taken here by mean, rms width and moment skewness, its "centred" parameters: xi and alpha are degenerate at alpha = 0,
these are not (Arellano-Valle & Azzalini 2008, J. Multivariate Anal. 99, 1362). They also make the line-spread function
simple: a convolution with a Gaussian of width s adds s^2 to the variance, leaves mean and third moment, and is a skew
normal again.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import ndtr, owens_t

from lensspark.eigen import DLOGLAM
from lensspark.lines import OII

ALPHA_MAX = 25.0  # Shu et al. 2016; beyond, the profile no longer changes
OII_SEPARATION = np.log10(OII[1] / OII[0]) / DLOGLAM  # px
_B = np.sqrt(2 / np.pi)
_CUBE = (4 - np.pi) / 2


def skewness_of(alpha: np.ndarray) -> np.ndarray:
    """Moment skewness of a skew normal of shape `alpha`, -0.9953 to 0.9953."""
    mean = _B * alpha / np.sqrt(1 + np.square(alpha))
    return _CUBE * mean**3 / (1 - mean**2) ** 1.5


SKEWNESS_MAX = float(skewness_of(np.float64(ALPHA_MAX)))


def _mean_of(skewness: np.ndarray) -> np.ndarray:
    """Mean of the unit skew normal (xi = 0, omega = 1) of moment skewness `skewness`."""
    third = np.cbrt(np.asarray(skewness) / _CUBE)
    return third / np.sqrt(1 + third**2)


def alpha_of(skewness: np.ndarray) -> np.ndarray:
    """Shape of the skew normal of moment skewness `skewness`; the inverse of `skewness_of`, within +-ALPHA_MAX."""
    delta = _mean_of(np.clip(skewness, -SKEWNESS_MAX, SKEWNESS_MAX)) / _B
    return delta / np.sqrt(1 - delta**2)


def seen_skewness(intrinsic: np.ndarray, width: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    """Moment skewness as observed of a line whose own is `intrinsic`; rms `width` as observed, LSF sigma `lsf`, px."""
    return intrinsic * own_share(width, lsf) ** 1.5


def own_share(width: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    """Share of the line's own in its variance as observed, 0 for an unresolved line."""
    return np.clip(1 - np.square(lsf / width), 0, 1)


def width_of(theta: np.ndarray) -> np.ndarray:
    """Rms width, px, of theta (n, k), whose second column is its logarithm.

    The column is copied because numpy takes the exponential of a strided one by another routine, which differs in the
    last digit, whenever the result happens to lie beside it in memory: a search shall give the same digits twice.
    """
    return np.exp(theta[:, 1].copy())


def skew_normal(edges: np.ndarray, mean: np.ndarray, width: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Share of a line's flux between neighbouring `edges` (..., n + 1), px; the rest (...,). Returns (..., n)."""
    unit_mean = _mean_of(skewness)
    omega = width / np.sqrt(1 - unit_mean**2)
    delta = np.clip(unit_mean / _B, -0.9999, 0.9999)
    alpha = delta / np.sqrt(1 - delta**2)
    t = (edges - (mean - unit_mean * omega)[..., None]) / omega[..., None]
    return np.diff(ndtr(t) - 2 * owens_t(t, alpha[..., None]), axis=-1)


def gaussian(edges: np.ndarray, mean: np.ndarray, width: np.ndarray) -> np.ndarray:
    """As `skew_normal` without skewness; exact at any width."""
    return np.diff(ndtr((edges - mean[..., None]) / width[..., None]), axis=-1)


def two_gaussians(edges: np.ndarray, mean: np.ndarray, width: np.ndarray, separation: np.ndarray, share: np.ndarray
                  ) -> np.ndarray:
    """Two Gaussians of one `width`: `share` of the flux lies `separation` px redwards of the other, at `mean`."""
    second = gaussian(edges, mean + separation, width)
    return gaussian(edges, mean, width) * (1 - share)[..., None] + second * share[..., None]


@cache
def _mode_table() -> tuple[np.ndarray, np.ndarray]:
    """Moment skewness, and (mean - mode) / rms width, of skew normals of alpha = 0 ... 99."""
    alpha = np.concatenate([[0.0], np.geomspace(0.2, 99.0, 400)])
    t = np.linspace(-0.5, 1.0, 15001)  # the mode of a unit skew normal lies in 0 ... 0.53
    gauss = np.exp(-0.5 * t**2)
    peak = t[[(gauss * ndtr(one * t)).argmax() for one in alpha]]  # one by one: all together they take 100 MB
    mean = _B * alpha / np.sqrt(1 + alpha**2)
    return skewness_of(alpha), (mean - peak) / np.sqrt(1 - mean**2)


def mode(mean: np.ndarray, width: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Where the skew normal peaks, px."""
    return mean - np.sign(skewness) * width * np.interp(np.abs(skewness), *_mode_table())
