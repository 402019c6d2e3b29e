"""The wavelength window: where a file's pixels fall on BOSS's common grid of k * 1e-4 in log10 of Angstrom.

All BOSS and SDSS spectra lie on one grid, log10 wavelength = COEFF0 + i * 1e-4 with COEFF0 a multiple of 1e-4
(https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/PLATE4/spPlate.html), so a window needs no resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lensspark.boss.stream import Fault
from lensspark.eigen import DLOGLAM
from lensspark.spectrum import window_pixels

STEP_TOLERANCE = 1e-9    # 4,600 pixels of it are 0.05 pixel
LOGLAM_TOLERANCE = 2e-6  # float32 log10 wavelengths near 3.9 are good to 2.4e-7


@dataclass(frozen=True)
class Placement:
    """File pixels [first, stop) become output pixels [at, at + stop - first) of `n_pix`; the rest is empty."""

    n_pix: int
    first: int
    stop: int
    at: int
    loglam0: float

    def place(self, pixels: np.ndarray) -> np.ndarray:
        """`pixels` (n, stop - first) on the output grid (n, n_pix), zero where the file has none."""
        if pixels.shape[1] == self.n_pix:
            return pixels
        out = np.zeros((len(pixels), self.n_pix), pixels.dtype)
        out[:, self.at:self.at + pixels.shape[1]] = pixels
        return out


def placement(coeff0: float, n_file: int, window: tuple[float, float] | None) -> Placement:
    """Where `n_file` pixels that begin at log10 wavelength `coeff0` fall in `window` (None: the file's own pixels).

    `loglam0` is the true log10 wavelength of the first output pixel: a grid off by a fraction of a pixel is placed
    to the nearest pixel and keeps its offset there.
    """
    if window is None:
        return Placement(n_file, 0, n_file, 0, round(coeff0, 10))
    k_first, n_pix = window_pixels(window)
    k0 = round(coeff0 / DLOGLAM)
    first = min(max(k_first - k0, 0), n_file)
    stop = min(max(k_first + n_pix - k0, first), n_file)
    at = min(max(k0 + first - k_first, 0), n_pix)
    return Placement(n_pix, first, stop, at, round(coeff0 + (k_first - k0) * DLOGLAM, 10))


def check_step(coeff1: float, hdu: int = 0) -> None:
    """Fault if the header's step is not 1e-4 dex."""
    if not abs(coeff1 - DLOGLAM) <= STEP_TOLERANCE:
        raise Fault(f"COEFF1 = {coeff1!r}, expected {DLOGLAM}", hdu)


def check_coeff0(coeff0: float, hdu: int = 0) -> None:
    """Fault if the header's first log10 wavelength is not one (3 to 4.5 is 1,000 to 31,600 Angstrom)."""
    if not 3.0 <= coeff0 <= 4.5:
        raise Fault(f"COEFF0 = {coeff0!r}, expected log10 of a wavelength in Angstrom, 3 to 4.5", hdu)


def grid_start(loglam: np.ndarray, coeff0: float | None) -> float:
    """log10 wavelength of the first pixel of a spec file, from its column `loglam` (n,), checked to be the grid.

    Spec files drop pixels at the ends of the header's grid, so their column decides; it is float32, so the header's
    COEFF0 plus whole pixels is preferred where both agree. Raises Fault for a grid that is not one.
    """
    loglam = loglam.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(np.diff(loglam) - DLOGLAM) <= LOGLAM_TOLERANCE))
    if not len(loglam) or not np.isfinite(loglam[0]):
        raise Fault(f"loglam begins with {loglam[:1]}, expected a finite log10 wavelength", 1)
    if len(bad):
        i = int(bad[0])
        raise Fault(f"loglam is no grid of {DLOGLAM} dex: {loglam[i]:.7g} then {loglam[i + 1]:.7g} at pixel {i}", 1)
    start = float(loglam[0])
    check_coeff0(start, 1)
    if coeff0 is not None:
        check_coeff0(coeff0)
        exact = coeff0 + round((start - coeff0) / DLOGLAM) * DLOGLAM
        if abs(exact - start) <= LOGLAM_TOLERANCE:
            return exact
    return start
