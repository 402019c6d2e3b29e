"""The empirical false-alarm rate: what the same search finds where no line can be.

A keyed-random part of the scored spectra is searched upside down as well (inference.py): noise and template residuals
are about symmetric, emission lines are not. Every such spectrum stands for n_scored / n_null. The false-discovery rate
of "all hits of score t or more" is (expected number of null hits) / (number of hits) (Storey 2002, J. R. Stat. Soc. B
64, 479, with all spectra taken as null), and a hit's q-value is the smallest rate among thresholds that keep it
(Storey & Tibshirani 2003, PNAS 100, 9440). Few null hits are replaced by their Poisson upper limit of 84.1 % confidence
(Gehrels 1986, ApJ 303, 336), so that a small run does not claim a rate that it cannot know.

Another part is searched in the pixels redwards of the window (inference.py), where Lya is rare. Other lines of
background galaxies are not, [OII] first of all: its hits bound the rate of noise and model from above, and make no q.

The rate is that of noise and of the galaxy's model, hence hits that an over-density, a neighbour or a cosmic ray
explains are not counted among hits and get 1. Lines above and below `q_snr_edge` have rates of their own (Efron 2008,
Ann. Appl. Stat. 2, 197: separate classes).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from pyspark.sql import Column
from pyspark.sql import functions as F
from scipy.special import gammaincinv

from lensspark import config
from lensspark.vetting.census import Census
from lensspark.vetting.cuts import CUTS, Veto

CONFIDENCE = 0.8413  # one sigma, one-sided; Gehrels 1986
# Bits that name an artefact: an explanation of the hit that no sign flip can know of.
ARTEFACT = (Veto.MASK_FRACTION | Veto.LINE_HITS | Veto.OVERDENSITY_LENS | Veto.OVERDENSITY_OBSERVED | Veto.SAME_WAVE
            | Veto.FIBRE | Veto.PLATE | Veto.NIGHT | Veto.NEIGHBOUR | Veto.REPEAT | Veto.COSMIC_RAY
            | Veto.EXPOSURES)


def upper_limit(n: np.ndarray) -> np.ndarray:
    """The expectation that gives `n` or fewer events with probability 1 - CONFIDENCE; 1.84 for none."""
    return gammaincinv(np.asarray(n) + 1, CONFIDENCE)


def q_values(scores: np.ndarray, nulls: np.ndarray, weight: float) -> np.ndarray:
    """q of hits with `scores` (n,): smallest rate among the thresholds that keep each; 0-1, never rising with score.

    nulls (m,): scores of null spectra; `weight`: scored spectra per null spectrum, infinite where there is no null.
    """
    scores, nulls = np.asarray(scores, float), np.sort(np.asarray(nulls, float))
    if not len(scores):
        return np.zeros(0)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits = np.searchsorted(-ranked, -ranked, side="right")  # hits of this score or more
    false = upper_limit(len(nulls) - np.searchsorted(nulls, ranked, side="left")) * weight
    rate = np.minimum(np.nan_to_num(false / hits, nan=1.0, posinf=1.0), 1.0)
    q = np.empty(len(scores))
    q[order] = np.minimum.accumulate(rate[::-1])[::-1]
    return q


def is_artefact(settings: config.Config) -> Column:
    """Whether an over-density, a neighbour, a repeat, a cosmic ray or bad pixels explain the hit."""
    explained = F.lit(False)
    for cut in CUTS:
        if cut.bit & ARTEFACT:
            explained |= ~cut.passes(settings.vetting)
    return explained


def false_discovery(hits: pd.DataFrame, artefact: np.ndarray, survey: Census, edge: float) -> np.ndarray:
    """q_value (n,) of `hits` (p_line, line_snr), 1 for each `artefact`; S/N `edge` and above has a rate of its own."""
    facts, nulls = survey.facts, survey.null_hits
    weight = facts["n_scored"] / facts["n_null"] if facts["n_null"] else np.inf
    q, bright = np.ones(len(hits)), (hits["line_snr"] >= edge).to_numpy()
    for side in (False, True):
        rows = ~artefact & (bright == side)
        q[rows] = q_values(hits["p_line"][rows], nulls["null_p_line"][(nulls["null_snr"] >= edge) == side], weight)
    return q
