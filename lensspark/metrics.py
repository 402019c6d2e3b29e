"""Figures of merit of scores whose truth is known, and their calibration. Arrays are (n,) unless said otherwise."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

SNR_EDGES = (4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, np.inf)
CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv:1706.04599


def threshold_at(free: np.ndarray, rate: float, weights: np.ndarray | None = None) -> float:
    """The score that a share `rate` of the line-free scores `free` exceeds; `weights` say how much each counts.

    Raises ValueError if `rate` of them is less than one spectrum: no threshold can then be measured.
    """
    order = np.argsort(-free, kind="stable")
    weights = np.ones(len(free)) if weights is None else weights[order]
    above = np.cumsum(weights) / weights.sum()
    at = int(np.searchsorted(above, rate, side="right"))
    if len(free) * rate < 1 or at >= len(free):
        raise ValueError(f"{len(free)} line-free scores: too few for a false-hit rate of {rate:g}")
    return float(free[order][at])


def recall_by_snr(found: np.ndarray, snr: np.ndarray, edges: tuple[float, ...] = SNR_EDGES) -> list[dict]:
    """Share of lines `found` (bool) in bins of S/N: dicts of `snr` (low, high or None), n, recall; no empty bins."""
    bins = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        chosen = (snr >= low) & (snr < high)
        if chosen.any():
            bins.append({"snr": [low, None if np.isinf(high) else high], "n": int(chosen.sum()),
                         "recall": round(float(found[chosen].mean()), 4)})
    return bins


def platt(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """(scale, shift) that make expit(scale * logit + shift) the likeliest probabilities of `labels` in {0, 1}.

    Platt (1999), without his smoothing of the labels, which matters for tens of examples only. Raises ValueError if
    one of the two labels is missing.
    """
    if not 0 < labels.mean() < 1:
        raise ValueError(f"labels have the mean {labels.mean():g}: expected both 0 and 1 among them to calibrate on")
    logits, labels = logits.astype(np.float64), labels.astype(np.float64)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scale, shift = parameters
        x = scale * logits + shift
        error = expit(x) - labels
        return float(np.mean(np.logaddexp(0, x) - labels * x)), np.array([np.mean(error * logits), np.mean(error)])

    scale, shift = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return float(scale), float(shift)


def calibration_error(labels: np.ndarray, p: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: mean |share of labels - mean score| over bins of the score, by their numbers.

    Guo et al. (2017), Eq. 3: `bins` of equal width.
    """
    which = np.minimum((p * bins).astype(int), bins - 1)
    n = np.bincount(which, minlength=bins)
    gap = np.bincount(which, weights=labels - p, minlength=bins)
    return float(np.abs(gap).sum() / n.sum())


def rank_correlation(scores: np.ndarray, snr: np.ndarray) -> float:
    """Spearman's rank correlation; NaN for fewer than three."""
    from scipy.stats import spearmanr  # a second of imports that no search needs

    return float(spearmanr(scores, snr).statistic) if len(scores) > 2 else float("nan")
