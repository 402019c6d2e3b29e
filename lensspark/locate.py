"""Where the line is: the network's position, refined on the spectrum, and what the matched filter measures there."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from lensspark import matched_filter
from lensspark.eigen import DLOGLAM
from lensspark.spectrum import Prepared

REFINE_PX = 12    # the network's cell is trusted to this many pixels on each side, or to one cell where that is more
RANK_PER_SNR = 0.5  # the order's scores are then probabilities still (docs/model.md), and apart up to S/N 70
MASK_HALF_PX = 7  # the classical filter is 15 px long (Shu et al. 2016)
PLACE_SIGMA = 2.6  # px: median width of the lensed emitters of Cao et al. (2020)
PLACE_PX = 3      # that filter's maximum is sought this far from the classical one's


def ranked(p_line: np.ndarray, snr: np.ndarray) -> np.ndarray:
    """`p_line` (n,), float64, in which likely lines are put in the order of their matched-filter S/N.

    Scores up to 0.5 stay as they are. Above that, where the best galaxies without a line score too, a network is less
    sure of a strong line beside a flaw than the line's S/N should make it (docs/model.md has what the order wins): the
    logit L becomes RANK_PER_SNR S/N (1 - exp(-L)); still rising with L, never below 0.
    """
    logits = logit(np.asarray(p_line, np.float64))
    likely = -np.expm1(-np.maximum(logits, 0))
    return expit(np.minimum(logits, 0) + likely * RANK_PER_SNR * np.maximum(snr, 0))


def faintest(p_line: float) -> float:
    """The S/N that a line must have at least for a score above `p_line` (`ranked`), whatever the network says of it;
    -inf up to 0.5, where the score is the network's alone."""
    return float(logit(p_line)) / RANK_PER_SNR if p_line > 0.5 else -np.inf


def measure_line(prepared: Prepared, heat: np.ndarray | None, loglam0: np.ndarray, min_snr: float
                 ) -> dict[str, np.ndarray]:
    """Columns of schema.LINE (but p_line) of n spectra, each (n,) float64 or int32.

    heat (n, n_cells): the network's probability that the line is in each cell; loglam0 (n,): log10 wavelength of the
    first pixel. The line is where the matched filter's S/N is highest within REFINE_PX of the hottest cell, or without
    `heat` anywhere; `line_wave` is the place of `_centre` there. Flux and error are the least-squares amplitude of a
    Gaussian of sigma 2.2 px (Shu et al. 2016) and `line_peak` that Gaussian's height; a line of another width gets
    sqrt(2) 2.2 / sqrt(2.2^2 + width^2) of its flux. `n_line_hits` counts peaks of at least `min_snr`.
    """
    snr = prepared.snr
    n, n_pix = snr.shape
    rows = np.arange(n)
    if heat is None:
        peak = snr.argmax(axis=1)
    else:
        cell = n_pix / heat.shape[1]
        hottest = (heat.argmax(axis=1) + 0.5) * cell - 0.5
        near = np.abs(np.arange(n_pix) - hottest[:, None]) <= max(REFINE_PX, cell)
        peak = np.where(near, snr, -np.inf).argmax(axis=1)
    wave = 10 ** (loglam0 + DLOGLAM * _centre(prepared, peak))
    pixel_width = wave * np.log(10) * DLOGLAM  # Angstrom
    signal, ivar = prepared.signal[rows, peak].astype(np.float64), prepared.weight[rows, peak].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, error = np.where(ivar > 0, [signal / ivar, 1 / np.sqrt(ivar)], [[0], [np.nan]])
    beside = np.clip(peak[:, None] + np.arange(-MASK_HALF_PX, MASK_HALF_PX + 1), 0, n_pix - 1)
    return {
        "line_wave": wave,
        "line_snr": snr[rows, peak].astype(np.float64),
        "line_flux": value * pixel_width,
        "line_flux_err": error * pixel_width,
        "line_peak": value * matched_filter.kernel(matched_filter.CLASSICAL_SIGMA).max(),
        "line_mask_fraction": (prepared.ivar[rows[:, None], beside] == 0).mean(axis=1),
        "n_line_hits": matched_filter.count_hits(snr, min_snr).astype(np.int32),
    }


def _centre(prepared: Prepared, peak: np.ndarray) -> np.ndarray:
    """Pixel (n,) of the highest S/N of a filter of PLACE_SIGMA within PLACE_PX of `peak` (n,), to a fraction of a pixel
    by the parabola through it and its neighbours.

    That filter is as wide as the lines are: noise and a second peak pull a narrower one off wide lines more often.
    """
    half = PLACE_PX + 1 + len(matched_filter.kernel(PLACE_SIGMA)) // 2
    at = peak[:, None] + np.arange(-half, half + 1)
    inside, at = (at >= 0) & (at < prepared.ivar.shape[1]), np.clip(at, 0, prepared.ivar.shape[1] - 1)
    rows = np.arange(len(peak))
    flux, model, ivar = (plane[rows[:, None], at] for plane in (prepared.flux, prepared.model, prepared.ivar))
    snr = matched_filter.snr(flux - model, ivar * inside, PLACE_SIGMA).astype(np.float64)
    near = np.where(inside, snr, -np.inf)[:, half - PLACE_PX:half + PLACE_PX + 1].argmax(axis=1) + half - PLACE_PX
    return peak + near - half + _parabola(*(snr[rows, near + step] for step in (-1, 0, 1)))


def _parabola(left: np.ndarray, centre: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Offset of the vertex from the centre, -0.5 to 0.5; 0 where the three points have no maximum."""
    curvature = left - 2 * centre + right
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.where(curvature < 0, 0.5 * (left - right) / curvature, 0.0)
    return np.clip(offset, -0.5, 0.5)
