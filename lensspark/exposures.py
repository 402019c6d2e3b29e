"""A line in single exposures: light of the sky is in all of them, a cosmic ray in one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lensspark.eigen import DLOGLAM
from lensspark.matched_filter import CLASSICAL_SIGMA

COLUMNS = ("n_exposures", "exposure_chi2", "exposure_tension", "exposure_rest_snr")
CUTOUT_PX = 28             # on each side of the line, in pixels of 1e-4 dex
BESIDE_PX, MIN_BESIDE = 9, 5  # usable pixels that the continuum needs at this distance or more
WIDTHS = 1.0, 5.0          # px; a width outside is that of a failed fit, or covers no continuum
MIN_SHARE = 0.5            # of the filter's information on usable pixels


def window(wave: float) -> tuple[float, float]:
    """(low, high) Angstrom of the pixels that `compare` uses about a line at `wave` Angstrom."""
    return tuple(float(wave * 10 ** (side * CUTOUT_PX * DLOGLAM)) for side in (-1, 1))


def line_flux(loglam: np.ndarray, flux: np.ndarray, ivar: np.ndarray, wave: float, width: float
              ) -> tuple[float, float] | None:
    """Flux of a Gaussian line and its error, 1e-17 erg/s/cm2, fitted with a straight continuum; None: not covered.

    loglam: rising log10 Angstrom of each pixel, of any steps; flux 1e-17 erg/s/cm2/A; ivar, 0 where unusable; (n_pix,).
    wave: Angstrom; width: sigma as observed, px of 1e-4 dex.
    """
    if len(loglam) < MIN_BESIDE:
        return None
    x = (np.asarray(loglam, np.float64) - np.log10(wave)) / DLOGLAM
    line = np.exp(-0.5 * (x / width) ** 2)
    usable = (np.abs(x) <= CUTOUT_PX) & (ivar > 0) & np.isfinite(ivar) & np.isfinite(flux)
    share = np.sum((line**2 * np.gradient(x))[usable]) / (np.sqrt(np.pi) * width)
    if share < MIN_SHARE or np.sum(usable & (np.abs(x) >= BESIDE_PX)) < MIN_BESIDE:
        return None
    x, line, y, weight = (values[usable].astype(np.float64) for values in (x, line, flux, ivar))
    columns = np.stack([line / (np.sqrt(2 * np.pi) * width * np.log(10) * DLOGLAM * wave), np.ones_like(x), x])
    covariance = np.linalg.pinv(columns * weight @ columns.T, hermitian=True)
    if not 0 < covariance[0, 0] < np.inf:
        return None
    return float(covariance[0] @ (columns @ (weight * y))), float(np.sqrt(covariance[0, 0]))


def compare(exposures: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], wave: float, width: float,
            flux_loss: float) -> dict[str, float]:
    """COLUMNS of one line from (loglam, flux, ivar) of each exposure, as `line_flux` takes them; NaN: not measured.

    A width that is not known is 2.2 px. The tension is that of the exposure which outshines the mean of the others
    most: ((1 - flux_loss) F - F_rest) / error, flux_loss being what calibration may have wrong between exposures.
    """
    width = float(np.clip(width, *WIDTHS)) if np.isfinite(width) else CLASSICAL_SIGMA
    found = [line_flux(*exposure, wave, width) for exposure in exposures] if wave > 0 else []
    measured = np.array([pair for pair in found if pair is not None]).reshape(-1, 2)
    out = dict.fromkeys(COLUMNS, np.nan) | {"n_exposures": float(len(measured))}
    if len(measured) < 2:
        return out
    flux, variance = measured[:, 0], measured[:, 1] ** 2
    weight, kept = 1 / variance, 1 - flux_loss
    mean = np.sum(weight * flux) / weight.sum()
    others = weight.sum() - weight
    rest = (np.sum(weight * flux) - weight * flux) / others
    tension = (kept * flux - rest) / np.sqrt(kept**2 * variance + 1 / others)
    one = int(tension.argmax())
    return out | {"exposure_chi2": float(np.sum(weight * (flux - mean) ** 2)), "exposure_tension": float(tension[one]),
                  "exposure_rest_snr": float(rest[one] * np.sqrt(others[one]))}
