"""Error-weighted least squares of amplitude x shape(theta) + constant, for many spectra at once.

Amplitude and constant are solved for exactly at every step (variable projection: Golub & Pereyra 1973, SIAM J.
Numer. Anal. 10, 413, with Kaufman's approximation of the Jacobian), theta by Levenberg-Marquardt; each row has its own
damping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]  # theta (n, k), rows of the data (n,) -> unit flux (n, n_pix)
Clip = Callable[[np.ndarray, np.ndarray], np.ndarray]  # theta (n, k), rows (n,) -> theta within its limits
CONVERGED, MAX_STEPS, MAX_DAMPING = 1e-3, 40, 1e7  # fall of chi2 in an accepted step; steps; damping of a hopeless row


@dataclass(frozen=True)
class Data:
    """Flux per pixel over its error (n, n_pix), the constant freed of: `y`; and what frees a model likewise."""

    root: np.ndarray  # 1 / error, 0 where there is none
    unit: np.ndarray  # the constant over the errors, normalised
    y: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, ivar: np.ndarray, constant: np.ndarray) -> Data:
        """values, ivar and the shape of the constant: (n, n_pix); every row needs a positive ivar."""
        root = np.sqrt(ivar)
        unit = constant * root
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        data = cls(root, unit, np.empty(0))
        everything = np.arange(len(values))
        return cls(root, unit, data.freed(values, everything))

    def freed(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        scaled = values * self.root[rows]
        unit = self.unit[rows]
        return scaled - unit * np.einsum("np,np->n", scaled, unit)[:, None]


@dataclass
class Fit:
    """Best theta (n, k), amplitude (n,) and chi2 (n,)."""

    theta: np.ndarray
    amplitude: np.ndarray
    chi2: np.ndarray

    def better(self, other: Fit) -> Fit:
        first = self.chi2 <= other.chi2
        return Fit(np.where(first[:, None], self.theta, other.theta),
                   np.where(first, self.amplitude, other.amplitude), np.minimum(self.chi2, other.chi2))


def _amplitude(data: Data, rows: np.ndarray, model: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Amplitude (never negative), its weight, and chi2 of the freed `model`."""
    y = data.y[rows]
    weight = np.maximum(np.einsum("np,np->n", model, model), 1e-30)
    amplitude = np.maximum(np.einsum("np,np->n", model, y) / weight, 0)
    residual = y - amplitude[:, None] * model
    return amplitude, weight, np.einsum("np,np->n", residual, residual)


def gradients(shape: Shape, data: Data, theta: np.ndarray, rows: np.ndarray, steps: np.ndarray,
              model: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Freed `model` (n, n_pix), where it is not known yet, and its derivatives (n, k, n_pix) by differences of `steps`
    towards smaller |theta|."""
    model = data.freed(shape(theta, rows), rows) if model is None else model
    slopes = np.empty((len(rows), theta.shape[1], model.shape[1]))
    for k, size in enumerate(steps):
        step = np.where(theta[:, k] > 0, -size, size)
        moved = theta.copy()
        moved[:, k] += step
        np.subtract(data.freed(shape(moved, rows), rows), model, out=slopes[:, k])
        slopes[:, k] /= step[:, None]
    return model, slopes


def fit(shape: Shape, data: Data, theta: np.ndarray, clip: Clip, steps: np.ndarray, longest: np.ndarray) -> Fit:
    """The least-squares theta of every row, from the start `theta` (n, k), which is clipped first.

    steps (k,): of the numerical derivatives; longest (k,): what one iteration may move theta by.
    """
    everything = np.arange(len(theta))
    theta = clip(theta.astype(np.float64), everything)
    model = data.freed(shape(theta, everything), everything)
    amplitude, _, chi2 = _amplitude(data, everything, model)
    damping, active = np.full(len(theta), 1e-2), everything
    for _ in range(MAX_STEPS):
        if not active.size:
            break
        move = _step(shape, data, theta[active], active, steps, damping[active], model[active])
        trial = clip(theta[active] + np.clip(move, -longest, longest), active)
        there = data.freed(shape(trial, active), active)
        a, _, value = _amplitude(data, active, there)
        fall = chi2[active] - value
        good = fall > 0
        rows = active[good]
        theta[rows], amplitude[rows], chi2[rows], model[rows] = trial[good], a[good], value[good], there[good]
        damping[active] *= np.where(good, 0.2, 8.0)
        stuck = (damping[active] > MAX_DAMPING) | ((trial == theta[active]).all(axis=1) & ~good)
        active = active[~(stuck | (good & (fall < CONVERGED)))]
    return Fit(theta, amplitude, chi2)


def _step(shape: Shape, data: Data, theta: np.ndarray, rows: np.ndarray, steps: np.ndarray, damping: np.ndarray,
          model: np.ndarray) -> np.ndarray:
    model, slopes = gradients(shape, data, theta, rows, steps, model)
    amplitude, weight, _ = _amplitude(data, rows, model)
    along = np.einsum("nkp,np->nk", slopes, model) / weight[:, None]
    jacobian = np.maximum(amplitude, 1e-12)[:, None, None] * (slopes - along[:, :, None] * model[:, None, :])
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    right = np.einsum("nkp,np->nk", jacobian, data.y[rows] - amplitude[:, None] * model)
    k = np.arange(theta.shape[1])
    diagonal = normal[:, k, k]
    floor = 1e-12 * np.maximum(diagonal.max(axis=1, keepdims=True), 1e-30)
    normal[:, k, k] += damping[:, None] * diagonal + floor
    return np.linalg.solve(normal, right[:, :, None])[:, :, 0]


def covariance(shape: Shape, data: Data, found: Fit, steps: np.ndarray, correlation: float,
               limits: np.ndarray | None = None) -> np.ndarray:
    """Covariance (n, 1 + k, 1 + k) of amplitude and theta where neighbouring pixels' noise has `correlation`.

    The estimate is the uncorrelated one's, its error is not: F^-1 (J S J^T) F^-1 with S the noise's correlation. The
    last theta may be clipped to +-`limits` (n,): the square of that, the most it can scatter by, enters F. NaN where
    the data do not constrain a parameter.
    """
    jacobian, scale, known = _jacobian(found, *gradients(shape, data, found.theta, np.arange(len(found.theta)), steps))
    prior = np.zeros((jacobian.shape[1],) * 2 + (len(jacobian),)).T
    if limits is not None:
        prior[:, -1, -1] = 1 / np.maximum(limits * scale[:, -1], 1e-3) ** 2
    inverse = _inverse(jacobian, prior)
    shifted = jacobian[:, :, 1:] @ jacobian[:, :, :-1].transpose(0, 2, 1)
    spread = jacobian @ jacobian.transpose(0, 2, 1) + prior + correlation * (shifted + shifted.transpose(0, 2, 1))
    out = inverse @ spread @ inverse / (scale[:, :, None] * scale[:, None, :])
    return np.where(known[:, None, None], out, np.nan)


def bias(shape: Shape, data: Data, found: Fit, steps: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """First-order bias (n, 1 + k) of amplitude and theta of covariance `spread`, at most half an error each.

    A fit that is free to move and widen finds more flux than there is: -F^-1 J^T tr(spread H) / 2, H the second
    derivatives of the model (Box 1971, J. R. Statist. Soc. B 33, 171).
    """
    rows = np.arange(len(found.theta))
    model, slopes = gradients(shape, data, found.theta, rows, steps)
    curvature = np.zeros_like(model)
    for k, size in enumerate(steps):
        step = np.where(found.theta[:, k] > 0, -size, size)
        moved = found.theta.copy()
        moved[:, k] += step
        there, slopes_there = gradients(shape, data, moved, rows, steps)
        curvature += 2 * (spread[:, 0, 1 + k] / step)[:, None] * (there - model)
        second = (slopes_there - slopes) / step[:, None, None]
        curvature += found.amplitude[:, None] * np.einsum("nl,nlp->np", spread[:, 1 + k, 1:], second)
    jacobian, scale, known = _jacobian(found, model, slopes)
    shift = -0.5 * np.einsum("nij,njp,np->ni", _inverse(jacobian), jacobian, curvature) / scale
    limit = 0.5 * np.sqrt(np.einsum("nii->ni", spread))
    return np.where(known[:, None] & np.isfinite(shift), np.clip(shift, -limit, limit), 0)


def _jacobian(found: Fit, model: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Derivatives by amplitude and theta, each of norm 1 (n, 1 + k, n_pix), their norms, and rows where none is 0."""
    jacobian = np.concatenate([model[:, None, :], found.amplitude[:, None, None] * slopes], axis=1)
    scale = np.linalg.norm(jacobian, axis=2)
    known = (scale > 0).all(axis=1)
    scale = np.where(known[:, None], scale, 1.0)
    return jacobian / scale[:, :, None], scale, known


def _inverse(jacobian: np.ndarray, prior: np.ndarray | float = 0.0) -> np.ndarray:
    normal = jacobian @ jacobian.transpose(0, 2, 1) + prior
    k = np.arange(normal.shape[1])
    normal[:, k, k] += 1e-9
    return np.linalg.inv(normal)
