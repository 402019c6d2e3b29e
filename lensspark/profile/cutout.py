"""The pixels about a line that its profile is fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lensspark.eigen import DLOGLAM
from lensspark.spectrum import wavelength

MIN_PIXELS = 15  # usable ones; the richest model has six parameters
CORE_HALF_PX, MIN_CORE = 3, 4  # of the seven pixels at the line's centre at least four are needed to see a shape
FALLBACK_LSF = 1.1  # px, BOSS's median in 3800-5000 A (docs/science.md); taken where wdisp is not given


@dataclass(frozen=True)
class Cutouts:
    """Residuals about n lines, (n, m) each but where said; positions in px from the middle pixel."""

    rows: np.ndarray  # (n,) rows of the spectra that they were cut from: those that can be fitted
    pixel: np.ndarray  # (n,) middle pixel of the grid log10 wavelength = pixel * 1e-4
    offset: np.ndarray  # (n,) the hit's position
    flux: np.ndarray  # per pixel, 1e-17 erg/s/cm2
    ivar: np.ndarray  # of that; 0 where unusable
    angstrom: np.ndarray  # width of a pixel
    lsf: np.ndarray  # (n,) sigma in px
    lsf_known: np.ndarray  # (n,) bool

    @property
    def edges(self) -> np.ndarray:
        """(m + 1,) edges of the pixels."""
        half = self.flux.shape[1] // 2
        return np.arange(-half, half + 2) - 0.5

    def wave(self, position: np.ndarray) -> np.ndarray:
        """Wavelength in Angstrom of `position` (n,) or (n, m) px from the middle pixel."""
        return wavelength((self.pixel + position.T).T)


def cut(residual: np.ndarray, ivar: np.ndarray, wdisp: np.ndarray, first_pixel: np.ndarray, line_wave: np.ndarray,
        half_width: int) -> Cutouts:
    """The pixels within `half_width` of line_wave (n,) Angstrom in residual, ivar and wdisp (n, n_pix).

    first_pixel (n,): of each row on the grid log10 wavelength = pixel * 1e-4. Rows without enough usable pixels, or
    whose line is not on them, are left out.
    """
    n, n_pix = residual.shape
    with np.errstate(invalid="ignore", divide="ignore"):
        position = np.log10(line_wave) / DLOGLAM - first_pixel
    inside = (position >= 0) & (position <= n_pix - 1)
    middle = np.rint(np.where(inside, position, 0)).astype(np.int64)
    index = middle[:, None] + np.arange(-half_width, half_width + 1)
    there = (index >= 0) & (index < n_pix) & inside[:, None]
    index = np.clip(index, 0, n_pix - 1)
    weight, width = (np.take_along_axis(plane, index, axis=1).astype(np.float64) for plane in (ivar, wdisp))
    values = np.take_along_axis(residual, index, axis=1).astype(np.float64)
    weight = np.where(there & np.isfinite(values) & (weight > 0) & np.isfinite(weight), weight, 0)
    core = slice(half_width - CORE_HALF_PX, half_width + CORE_HALF_PX + 1)
    lsf = np.where(np.isfinite(width) & (width > 0) & there, width, np.nan)[:, core]
    known = np.isfinite(lsf).any(axis=1)
    mean = np.nansum(lsf, axis=1) / np.maximum(np.isfinite(lsf).sum(axis=1), 1)
    fit = ((weight > 0).sum(axis=1) >= MIN_PIXELS) & ((weight[:, core] > 0).sum(axis=1) >= MIN_CORE)
    rows = np.flatnonzero(fit)
    pixel = (first_pixel + middle)[rows]
    angstrom = np.log(10) * DLOGLAM * wavelength(pixel[:, None] + np.arange(-half_width, half_width + 1))
    return Cutouts(rows, pixel, (position - middle)[rows], np.where(weight > 0, values, 0)[rows] * angstrom,
                   weight[rows] / angstrom**2, angstrom, np.where(known, mean, FALLBACK_LSF)[rows], known[rows])
