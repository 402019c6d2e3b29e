"""Principal components of spectra with errors and gaps: weighted low-rank factorisation by alternating least squares.

minimises chi2 = sum_ij ivar_ij (flux_ij - sum_k coefficient_ik vector_kj)^2. With the vectors fixed every spectrum is a
small weighted fit, with the coefficients fixed every pixel is one, so that a pixel without weight in one spectrum is
filled by the others (Srebro & Jaakkola 2003, ICML; Bailey 2012, PASP 124, 1015; Tsalmantza & Hogg 2012, ApJ 753,
122). The sums of the second step add up over spectra, wherever those are: `vector_sums` serves a cluster as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

_RIDGE = 1e-9  # of the mean diagonal: keeps a degenerate fit solvable
TOLERANCE = 1e-4  # of chi2 above its expectation per step: converged


@dataclass(frozen=True)
class Components:
    """vectors (k, n_pix), orthonormal, most important first; coefficients (n, k); precision (n, k, k), the inverse
    covariance of each spectrum's coefficients; chi2 (n,) of each spectrum over its pixels with weight."""

    vectors: np.ndarray
    coefficients: np.ndarray
    precision: np.ndarray
    chi2: np.ndarray


def _solve(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """x (m, k) of normal (m, k, k) x = right (m, k); zeros where there is no weight."""
    k = normal.shape[-1]
    scale = np.trace(normal, axis1=1, axis2=2) / k
    ridge = np.where(scale > 0, _RIDGE * scale, 1.0)[:, None, None] * np.eye(k)
    return np.linalg.solve(normal + ridge, right[..., None])[..., 0]


def fit(vectors: np.ndarray, flux: np.ndarray, ivar: np.ndarray) -> Components:
    """The weighted least-squares fit of spectra (n, n_pix) by given `vectors` (k, n_pix)."""
    k = len(vectors)
    precision = (ivar @ (vectors[:, None] * vectors).reshape(k * k, -1).T).reshape(-1, k, k)
    coefficients = _solve(precision, (ivar * flux) @ vectors.T)
    chi2 = np.einsum("np,np->n", ivar, (flux - coefficients @ vectors) ** 2)
    return Components(vectors, coefficients, precision, chi2)


def vector_sums(coefficients: np.ndarray, flux: np.ndarray, ivar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(normal (n_pix, k, k), right (n_pix, k)) of every pixel's fit; sums over spectra, so that parts may be added."""
    n, k = coefficients.shape
    normal = ivar.T @ (coefficients[:, :, None] * coefficients[:, None]).reshape(n, k * k)
    return normal.reshape(-1, k, k), (ivar * flux).T @ coefficients


def vectors_from(normal: np.ndarray, right: np.ndarray, smooth_px: float = 0.0) -> np.ndarray:
    """The vectors (k, n_pix) of `vector_sums`, smoothed by a Gaussian of `smooth_px` px; zero where nothing was seen.

    Smoothing is right where what the vectors describe is broader than a pixel: a galaxy's lines are broadened by its
    stars (200 km/s are 2.9 px), noise is not.
    """
    vectors = _solve(normal, right).T
    if not smooth_px:
        return vectors
    seen = (normal[:, 0, 0] > 0).astype(float)
    share = gaussian_filter1d(seen, smooth_px, mode="constant")
    return gaussian_filter1d(vectors, smooth_px, axis=1, mode="constant") / np.maximum(share, 1e-12) * (seen > 0)


def orthonormal(vectors: np.ndarray, second_moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(vectors, turn): orthonormal ones of the same span, ordered by the mean square of their coefficients.

    second_moment (k, k): mean of coefficient coefficient^T. Old coefficients @ turn are those of the new vectors; signs
    are such that the sum of each new vector is positive.
    """
    q, r = np.linalg.qr(vectors.T)  # coefficients @ vectors = (coefficients @ r.T) @ q.T
    _, axes = np.linalg.eigh(r @ second_moment @ r.T)
    axes = axes[:, ::-1]
    turned = axes.T @ q.T
    sign = np.where(turned.sum(axis=1) < 0, -1.0, 1.0)
    return turned * sign[:, None], (r.T @ axes) * sign


def start(flux: np.ndarray, ivar: np.ndarray, k: int) -> np.ndarray:
    """Vectors (k, n_pix) to begin with: components of the spectra (n, n_pix) with gaps filled by the mean spectrum.

    Every pixel is weighted by the root of its mean ivar, so that noisy pixels do not lead. Raises ValueError if there
    are fewer spectra than vectors.
    """
    if len(flux) < k:
        raise ValueError(f"{len(flux)} spectra: expected at least {k}, one for each vector")
    total = ivar.sum(axis=0)
    mean = np.divide((ivar * flux).sum(axis=0), total, out=np.zeros_like(total), where=total > 0)
    root = np.sqrt(total / len(flux))
    scaled = np.where(ivar > 0, flux, mean) * root
    _, left = np.linalg.eigh(scaled @ scaled.T)
    vectors = left[:, ::-1][:, :k].T @ scaled
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, root, out=np.zeros_like(vectors), where=root > 0)


def weighted_pca(flux: np.ndarray, ivar: np.ndarray, k: int, smooth_px: float = 0.0, iterations: int = 30,
                 vectors: np.ndarray | None = None) -> Components:
    """The first `k` components of spectra flux (n, n_pix) with inverse variances ivar (n, n_pix), 0 where not measured.

    Not centred: the first vector is about the mean spectrum. Begins with `vectors` if given, and ends when chi2 falls
    by less than TOLERANCE of itself, or after `iterations`. The same input gives the same output.
    """
    flux, ivar = np.asarray(flux, dtype=np.float64), np.asarray(ivar, dtype=np.float64)
    vectors = start(flux, ivar, k) if vectors is None else vectors
    before = np.inf
    for _ in range(iterations):
        found = fit(vectors, flux, ivar)
        if found.chi2.sum() > (1 - TOLERANCE) * before:
            break
        before = found.chi2.sum()
        moment = found.coefficients.T @ found.coefficients / len(flux)
        vectors, turn = orthonormal(vectors, moment)
        vectors = vectors_from(*vector_sums(found.coefficients @ turn, flux, ivar), smooth_px)
    vectors, _ = orthonormal(vectors, found.coefficients.T @ found.coefficients / len(flux))
    return fit(vectors, flux, ivar)


def intrinsic(coefficients: np.ndarray, precision: np.ndarray, steps: int = 50
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The distribution behind noisy `coefficients` (n, k) of inverse covariances `precision` (n, k, k).

    Returns mean (k,), covariance (k, k), and of each spectrum the posterior mean (n, k) and a root (n, k, k) of the
    posterior covariance. Maximum likelihood of one Gaussian by expectation maximisation (Bovy, Hogg & Roweis 2011,
    Ann. Appl. Stat. 5, 1657); at its fixed point, posterior draws of all spectra have this mean and covariance.
    """
    n, k = coefficients.shape
    mean = coefficients.mean(axis=0)
    covariance = (coefficients - mean).T @ (coefficients - mean) / n + 1e-12 * np.eye(k) * (mean @ mean + 1e-300)
    floor = 1e-6 * np.trace(covariance) / k * np.eye(k)
    pull = (precision @ coefficients[:, :, None])[:, :, 0]
    for _ in range(steps):
        prior = np.linalg.inv(covariance + floor)
        spread = np.linalg.inv(precision + prior)
        centre = (spread @ (pull + prior @ mean)[:, :, None])[:, :, 0]
        mean = centre.mean(axis=0)
        away = centre - mean
        covariance = away.T @ away / n + spread.mean(axis=0)
    return mean, covariance, centre, np.linalg.cholesky(spread)
