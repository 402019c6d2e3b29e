"""Fits of one line by each profile: skew normal, Gaussian, spike, [OII] doublet, two peaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lensspark.profile import shapes
from lensspark.profile.cutout import Cutouts
from lensspark.profile.least_squares import Data, Fit, fit

GRID = np.arange(-10, 11) / 10 * shapes.SKEWNESS_MAX  # intrinsic skewness of the profile likelihood; 0 is among it
MAX_SHIFT, MAX_WIDTH, MIN_WIDTH = 10.0, 12.0, 0.1  # px; of the line from the hit; rms widths
SPIKE = 0.7  # of the LSF's width: a spike is at most this wide
# F(3730)/F(3727) between the limits of high and low density: Sanders et al. 2016, ApJ 816, 23, eq. 6.
OII_RATIO = (0.3771, 1.4578)
DOUBLE_SEPARATION = (2.5, 15.0)  # px: 170-1040 km/s
# Numerical steps, and the longest step of an iteration, of (position, ln width, the others).
STEPS, _LONGEST = np.array([0.02, 0.01, 0.02, 0.02]), np.array([2.0, 0.4, 0.4, 0.4])


@dataclass(frozen=True)
class Fits:
    """Fits of n lines: theta starts with position (px from the middle pixel) and ln of the rms width in px."""

    data: Data
    skew: Fit  # position is the mean; third: moment skewness as observed
    gauss: Fit  # at least as wide as the LSF
    free: Fit  # Gaussian of any width
    spike: Fit  # Gaussian narrower than the LSF
    oii: Fit  # position of the bluer line; third: share of the redder
    double: Fit  # third: separation of the second peak, px; fourth: its share
    grid_chi2: np.ndarray  # (n, len(GRID)): chi2 of the best skew normal of each intrinsic skewness


class Models:
    """The profiles as functions of theta on the pixels of `cuts`, and the limits of theta."""

    def __init__(self, cuts: Cutouts):
        self.edges, self.lsf, self.offset = cuts.edges, cuts.lsf, cuts.offset

    def skew(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return shapes.skew_normal(self.edges, theta[:, 0], shapes.width_of(theta), theta[:, 2])

    def gauss(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return shapes.gaussian(self.edges, theta[:, 0], shapes.width_of(theta))

    def oii(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        separation = np.full(len(theta), shapes.OII_SEPARATION)
        return shapes.two_gaussians(self.edges, theta[:, 0], shapes.width_of(theta), separation, theta[:, 2])

    def double(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return shapes.two_gaussians(self.edges, theta[:, 0], shapes.width_of(theta), theta[:, 2], theta[:, 3])

    def on_grid(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Skew normals of fixed intrinsic skewness: row i of the data, repeated, is line i // len(GRID)."""
        line, point = np.divmod(rows, len(GRID))
        width = shapes.width_of(theta)
        seen = shapes.seen_skewness(GRID[point], width, self.lsf[line])
        return shapes.skew_normal(self.edges, theta[:, 0], width, seen)

    def limits(self, theta: np.ndarray, rows: np.ndarray, low: np.ndarray | float, high: np.ndarray | float = MAX_WIDTH
               ) -> np.ndarray:
        theta = theta.copy()
        theta[:, 0] = np.clip(theta[:, 0], self.offset[rows] - MAX_SHIFT, self.offset[rows] + MAX_SHIFT)
        theta[:, 1] = np.clip(theta[:, 1], np.log(low), np.log(high))
        return theta

    def wide(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.limits(theta, rows, self.lsf[rows])

    def any_width(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.limits(theta, rows, MIN_WIDTH)

    def narrow(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.limits(theta, rows, MIN_WIDTH, np.maximum(SPIKE * self.lsf[rows], 1.01 * MIN_WIDTH))

    def wide_on_grid(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.wide(theta, rows // len(GRID))

    def skewed(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        theta = self.wide(theta, rows)
        limit = shapes.seen_skewness(shapes.SKEWNESS_MAX, shapes.width_of(theta), self.lsf[rows])
        theta[:, 2] = np.clip(theta[:, 2], -limit, limit)
        return theta

    def doublet(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        theta = self.wide(theta, rows)
        theta[:, 2] = np.clip(theta[:, 2], *(ratio / (1 + ratio) for ratio in OII_RATIO))
        return theta

    def apart(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        theta = self.wide(theta, rows)
        theta[:, 2] = np.copysign(np.clip(np.abs(theta[:, 2]), *DOUBLE_SEPARATION), theta[:, 2])
        theta[:, 3] = np.clip(theta[:, 3], 0, 1)
        return theta


def fit_lines(cuts: Cutouts) -> Fits:
    """All profiles, each plus a constant, fitted to every line of `cuts`."""
    models, data = Models(cuts), Data.of(cuts.flux, cuts.ivar, cuts.angstrom)

    def best(shape, clip, start: list[np.ndarray]) -> Fit:
        k = len(start)
        theta = np.stack(np.broadcast_arrays(*start), axis=1)
        return fit(shape, data, theta, clip, STEPS[:k], _LONGEST[:k])

    gauss = best(models.gauss, models.wide, [cuts.offset, np.log(np.full_like(cuts.lsf, 2.2))])
    position, width = gauss.theta[:, 0], shapes.width_of(gauss.theta)
    spike = best(models.gauss, models.narrow, [position, np.log(0.5 * cuts.lsf)])
    start = gauss.better(spike).theta
    free = best(models.gauss, models.any_width, [start[:, 0], start[:, 1]]).better(gauss).better(spike)
    grid = _fit_grid(models, data, position, width)
    oii_width = np.sqrt(np.maximum(width**2 - shapes.OII_SEPARATION**2 / 4, cuts.lsf**2))
    oii = best(models.oii, models.doublet, [position - shapes.OII_SEPARATION / 2, np.log(oii_width), np.float64(0.5)])
    double = None
    for separation in (-4.0, 4.0, -8.0, 8.0):
        found = best(models.double, models.apart,
                     [position, np.log(0.8 * width), np.float64(separation), np.float64(0.3)])
        double = found if double is None else double.better(found)
    return Fits(data, _best_skew(models, data, gauss, grid), gauss, free, spike, oii, double,
                np.minimum(grid.chi2.reshape(-1, len(GRID)), np.where(GRID == 0, gauss.chi2[:, None], np.inf)))


def _fit_grid(models: Models, data: Data, position: np.ndarray, width: np.ndarray) -> Fit:
    """The best skew normal of each intrinsic skewness in GRID, rows line by line."""
    repeated = Data(*(np.repeat(plane, len(GRID), axis=0) for plane in (data.root, data.unit, data.y)))
    # Above the LSF's width, where the shape shows, so that the fit can leave its lower limit.
    start = np.stack([position, np.log(np.maximum(width, 1.15 * models.lsf))], axis=1)
    return fit(models.on_grid, repeated, np.repeat(start, len(GRID), axis=0), models.wide_on_grid, STEPS[:2],
               _LONGEST[:2])


def _best_skew(models: Models, data: Data, gauss: Fit, grid: Fit) -> Fit:
    """From the best point of the grid on; never worse than the Gaussian that it contains."""
    n, size = len(models.lsf), len(GRID)
    point = grid.chi2.reshape(n, size).argmin(axis=1)
    theta = grid.theta.reshape(n, size, 2)[np.arange(n), point]
    seen = shapes.seen_skewness(GRID[point], shapes.width_of(theta), models.lsf)
    found = fit(models.skew, data, np.column_stack([theta, seen]), models.skewed, STEPS[:3], _LONGEST[:3])
    symmetric = np.column_stack([gauss.theta, np.zeros(n)])
    return found.better(Fit(symmetric, gauss.amplitude, gauss.chi2))


def curves(cuts: Cutouts, fits: Fits) -> dict[str, np.ndarray]:
    """Best flux densities of each profile with its constant, 1e-17 erg/s/cm2/A, (n, m): skew, gauss, oii, double."""
    models, everything = Models(cuts), np.arange(len(cuts.lsf))
    out = {}
    for name in ("skew", "gauss", "oii", "double"):
        found = getattr(fits, name)
        line = found.amplitude[:, None] * getattr(models, name)(found.theta, everything) / cuts.angstrom
        weight = cuts.ivar * cuts.angstrom**2
        constant = np.sum(weight * (cuts.flux / cuts.angstrom - line), axis=1) / weight.sum(axis=1)
        out[name] = line + constant[:, None]
    return out
