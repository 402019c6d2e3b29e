"""Galaxies in bins of redshift: what a survey's own spectra say about them, and artificial ones drawn from that.

The recipe of Li et al. (2018): in bins of dz = 0.0025 the spectra are brought to the bin's frame by whole pixels, their
first six principal components are found, and an artificial galaxy is a sum of these with coefficients like the measured
ones. Ours are weighted components (weighted_pca.py), and noise does not widen what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lensspark import weighted_pca
from lensspark.config import Input, SurveyTraining
from lensspark.eigen import DLOGLAM
from lensspark.spectrum import usable_ivar

COVERED = 2  # spectra per vector that a pixel needs for its values to be worth anything


def bin_of(z: np.ndarray, width: float) -> np.ndarray:
    """Number of the bin of each redshift: bin b is [b width, (b + 1) width)."""
    return np.floor(np.asarray(z) / width).astype(np.int64)


def shift_pixels(z_from: np.ndarray, z_to: np.ndarray) -> np.ndarray:
    """Whole pixels of 1e-4 dex that take a spectrum at redshift z_from to z_to."""
    return np.rint((np.log10(1 + np.asarray(z_to)) - np.log10(1 + np.asarray(z_from))) / DLOGLAM).astype(np.int64)


def half_bin_pixels(width: float) -> int:
    """The most pixels between a galaxy and its bin's centre, reached at z = 0."""
    return int(shift_pixels(0.0, width / 2)) + 1


def cut(planes: np.ndarray, start: np.ndarray, n_pix: int) -> np.ndarray:
    """Pixels start_i ... start_i + n_pix - 1 of each row of `planes` (n, wide); zero beyond their ends."""
    wide = planes.shape[1]
    padded = np.pad(planes, ((0, 0), (n_pix, n_pix)))
    windows = sliding_window_view(padded, n_pix, axis=1)
    return windows[np.arange(len(planes)), np.clip(np.asarray(start) + n_pix, 0, wide + n_pix)]


def sound_ivar(ivar: np.ndarray, and_mask: np.ndarray, settings: Input, first: int) -> np.ndarray:
    """`ivar` (n, n_pix) with 0 at bad pixels and fibres; the galaxies' own lines and the sky's stay."""
    bare = replace(settings, lens_lines=(), sky_lines=())
    return usable_ivar(ivar, and_mask, np.zeros(len(ivar)), bare, first)


def mean_flux(flux: np.ndarray, ivar: np.ndarray) -> np.ndarray:
    """Weighted mean of each spectrum (n, n_pix); NaN without weight."""
    total = ivar.sum(axis=1, dtype=np.float64)
    return np.divide((flux * ivar).sum(axis=1, dtype=np.float64), total, out=np.full(len(flux), np.nan),
                     where=total > 0)


def reaches(counts: dict[int, int], minimum: int, furthest: int) -> dict[int, int]:
    """Of each bin with galaxies: how many bins on each side it borrows from, as few as give `minimum` in all.

    counts: galaxies by bin. A bin that `furthest` neighbours on each side cannot help is left out.
    """
    found = {}
    for number in (number for number, count in sorted(counts.items()) if count):
        total, reach = counts[number], 0
        while total < minimum and reach < furthest:
            reach += 1
            total += counts.get(number - reach, 0) + counts.get(number + reach, 0)
        if total >= minimum:
            found[number] = reach
    return found


@dataclass(frozen=True)
class Half:
    """Half of a bin's galaxies without outliers: indices rows (n,), their ivar (n, n_pix), 0 at clipped pixels, and
    the vectors (k, n_pix) found from them."""

    rows: np.ndarray
    ivar: np.ndarray
    vectors: np.ndarray


def measure(number: int, z: np.ndarray, flux: np.ndarray, ivar: np.ndarray, held_out: np.ndarray, margin: int,
            settings: SurveyTraining) -> dict[str, np.ndarray] | None:
    """What bin `number` holds, from galaxies at z (n,): columns of schema.GALAXIES, arrays flattened.

    flux, ivar (n, n_pix + 2 margin): on the window with `margin` more pixels on each side, ivar 0 where unusable.
    held_out (n,): galaxies that only test the vectors. Vectors cover the window and half_bin_pixels on each side, NaN
    where too few spectra reach. None if too few galaxies are left to find the vectors.

    Every second galaxy makes one set of vectors, the others the second, and each galaxy is described by the set that it
    has no share in: where noise leads a vector, it does so in the other half alone, and the coefficients' own spread
    (weighted_pca.intrinsic) comes out as nothing.
    """
    k, width, edge = settings.eigenvectors, settings.z_bin, half_bin_pixels(settings.z_bin)
    start = margin - edge - shift_pixels(z, (number + 0.5) * width)
    n_pix = flux.shape[1] - 2 * (margin - edge)
    flux, ivar = (cut(plane, start, n_pix).astype(np.float64) for plane in (flux, ivar))
    scale = mean_flux(flux, ivar)
    sound = np.nan_to_num(scale) > 0
    own, others = np.flatnonzero(sound & ~held_out), np.flatnonzero(sound & held_out)
    seen = (ivar[own] > 0).sum(axis=0) >= 2 * COVERED * k
    if len(own) < 2 * COVERED * k or not seen.any():
        return None
    flux, ivar = flux[:, seen] / scale[:, None], ivar[:, seen] * scale[:, None] ** 2
    halves = [_half(own[i::2], flux, ivar, settings) for i in range(2)]
    if min(len(half.rows) for half in halves) < COVERED * k:
        return None
    rows = np.concatenate([half.rows for half in halves])
    fits = [weighted_pca.fit(halves[1 - i].vectors, flux[halves[i].rows], halves[i].ivar) for i in range(2)]
    mean, covariance, centre, spread = zip(*(weighted_pca.intrinsic(f.coefficients, f.precision) for f in fits),
                                           strict=True)
    vectors = np.full((2, k, n_pix), np.nan)
    for i in range(2):
        vectors[i][:, seen] = halves[1 - i].vectors
    tests = [weighted_pca.fit(half.vectors, flux[others], ivar[others]) for half in halves]
    numbers = {"z_bin": number, "z_low": number * width, "z_high": (number + 1) * width, "n_used": len(rows),
               "median_flux": np.median(scale[rows]), "n_held_out": len(others),
               "chi2": _typical_chi2(fits, [half.ivar for half in halves]),
               "chi2_held_out": _typical_chi2(tests, [ivar[others]] * 2)}
    arrays = {"vectors": vectors, "mean": np.stack(mean), "covariance": np.stack(covariance), "fluxes": scale[rows],
              "coefficients": np.concatenate(centre), "spreads": np.concatenate(spread),
              "halves": np.repeat([0.0, 1.0], [len(half.rows) for half in halves])}
    return numbers | {name: values.astype(np.float32).ravel() for name, values in arrays.items()}


def _half(rows: np.ndarray, flux: np.ndarray, ivar: np.ndarray, settings: SurveyTraining) -> Half:
    """Vectors found twice, the second time without outlying pixels and without spectra of another kind."""
    k, smooth = settings.eigenvectors, settings.smooth_px
    flux, ivar = flux[rows], ivar[rows]
    first = weighted_pca.weighted_pca(flux, ivar, k, smooth)
    pull = np.abs(flux - first.coefficients @ first.vectors) * np.sqrt(ivar)
    ivar = np.where(pull > settings.clip_sigma, 0.0, ivar)
    clipped = weighted_pca.fit(first.vectors, flux, ivar)
    reduced = clipped.chi2 / np.maximum((ivar > 0).sum(axis=1) - k, 1)
    kept = reduced < settings.max_chi2 * np.median(reduced)
    if kept.sum() < COVERED * k:
        return Half(rows[kept], ivar[kept], first.vectors)
    found = weighted_pca.weighted_pca(flux[kept], ivar[kept], k, smooth, vectors=first.vectors)
    return Half(rows[kept], ivar[kept], found.vectors)


def _typical_chi2(fits: list[weighted_pca.Components], ivars: list[np.ndarray]) -> float:
    """Median over spectra of chi2 per degree of freedom; NaN without any."""
    reduced = np.concatenate([fit.chi2 / np.maximum((ivar > 0).sum(axis=1) - len(fit.vectors), 1)
                              for fit, ivar in zip(fits, ivars, strict=True)])
    return float(np.median(reduced)) if len(reduced) else np.nan


@dataclass(frozen=True)
class Bins:
    """All bins of a survey, ready to draw from; members of bin i are offsets[i] ... offsets[i + 1] - 1 of the lists.

    Of each bin's two sets (see `measure`) vectors (n_bins, 2, k, n_pix + 2 edge), mean (n_bins, 2, k) and roots
    (n_bins, 2, k, k) of the covariances; of each member its set (n,), coefficients (n, k), spreads (n, k, k) and fluxes
    (n,); share (n_bins,) of the survey's galaxies.
    """

    z_low: np.ndarray
    z_high: np.ndarray
    share: np.ndarray
    vectors: np.ndarray
    mean: np.ndarray
    roots: np.ndarray
    offsets: np.ndarray
    halves: np.ndarray
    coefficients: np.ndarray
    spreads: np.ndarray
    fluxes: np.ndarray

    @classmethod
    def of(cls, rows: list[dict], k: int) -> Bins:
        """From rows of schema.GALAXIES. Raises ValueError if there is none."""
        if not rows:
            raise ValueError("no bin of redshift holds galaxies enough to draw from")
        rows = sorted(rows, key=lambda row: row["z_bin"])

        def arrays(name: str, *shape: int) -> list[np.ndarray]:
            return [np.asarray(row[name], np.float32).reshape(*shape) for row in rows]

        covariance = np.stack(arrays("covariance", 2, k, k)).astype(np.float64)
        value, axes = np.linalg.eigh(covariance)
        own = np.array([row["n_own"] for row in rows], float)
        fluxes = arrays("fluxes", -1)
        return cls(np.array([row["z_low"] for row in rows]), np.array([row["z_high"] for row in rows]),
                   own / own.sum(), np.stack(arrays("vectors", 2, k, -1)), np.stack(arrays("mean", 2, k)),
                   (axes * np.sqrt(np.maximum(value, 0))[..., None, :]).astype(np.float32),
                   np.cumsum([0, *map(len, fluxes)]), np.concatenate(arrays("halves", -1)).astype(int),
                   np.concatenate(arrays("coefficients", -1, k)), np.concatenate(arrays("spreads", -1, k, k)),
                   np.concatenate(fluxes))

    @property
    def k(self) -> int:
        return self.vectors.shape[2]

    def draw(self, u: np.ndarray, normals: np.ndarray, n_pix: int, bootstrap: bool = True
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(z (n,), flux (n,), light (n, n_pix) float32) of n artificial galaxies from u (n, 3) and normals (n, k).

        Redshifts are distributed as the survey's, uniform within a bin, and the light is shifted from the bin's centre
        by whole pixels. bootstrap: coefficients are those of a measured galaxy, scattered by their own error; else of
        the bin's Gaussian. `flux` is the mean flux of the measured galaxy. Light is NaN where the bin has no vectors.
        """
        chosen = np.minimum(np.searchsorted(self.share.cumsum(), u[:, 0], side="right"), len(self.share) - 1)
        z = self.z_low[chosen] + (self.z_high - self.z_low)[chosen] * u[:, 1]
        first, count = self.offsets[chosen], np.diff(self.offsets)[chosen]
        member = first + np.minimum((count * u[:, 2]).astype(int), count - 1)
        half = self.halves[member]
        centre, root = ((self.coefficients[member], self.spreads[member]) if bootstrap else
                        (self.mean[chosen, half], self.roots[chosen, half]))
        coefficients = centre + (root @ normals[:, :, None].astype(np.float32))[:, :, 0]
        edge = (self.vectors.shape[3] - n_pix) // 2
        shift = shift_pixels(0.5 * (self.z_low + self.z_high)[chosen], z)
        windows = sliding_window_view(self.vectors, n_pix, axis=3)
        vectors = windows[chosen, half, :, edge - shift]
        light = (coefficients[:, None, :] @ vectors)[:, 0] * self.fluxes[member][:, None]
        return z, self.fluxes[member], light
