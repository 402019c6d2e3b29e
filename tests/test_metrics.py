"""Figures of merit: analytic truth."""

import numpy as np
import pytest
from scipy.special import expit, logit

from lensspark import metrics

RNG = np.random.default_rng(3)


def test_the_threshold_lets_its_share_through():
    free = RNG.normal(size=100_000)
    cut = metrics.threshold_at(free, 1e-3)
    assert (free > cut).sum() == 100
    with pytest.raises(ValueError, match="too few"):
        metrics.threshold_at(free[:500], 1e-3)


def test_weights_count_as_copies_would():
    free, copies = RNG.normal(size=2000), RNG.integers(1, 6, 2000)
    weighted = metrics.threshold_at(free, 0.01, copies.astype(float))
    assert weighted == metrics.threshold_at(np.repeat(free, copies), 0.01)


def test_recall_is_counted_in_its_bin():
    bins = metrics.recall_by_snr(np.array([True, False, True, True]), np.array([4.0, 4.9, 5.0, 99.0]))
    assert bins == [{"snr": [4.0, 5.0], "n": 2, "recall": 0.5}, {"snr": [5.0, 6.0], "n": 1, "recall": 1.0},
                    {"snr": [12.0, None], "n": 1, "recall": 1.0}]


def test_platt_finds_the_distortion_of_true_probabilities():
    p = RNG.uniform(0.01, 0.99, 200_000)
    labels = (RNG.random(len(p)) < p).astype(float)
    distorted = (logit(p) - 0.7) / 1.8  # so that scale 1.8 and shift 0.7 undo it
    scale, shift = metrics.platt(labels, distorted)
    assert (scale, shift) == (pytest.approx(1.8, abs=0.03), pytest.approx(0.7, abs=0.03))
    assert metrics.calibration_error(labels, expit(distorted)) > 0.05
    assert metrics.calibration_error(labels, expit(scale * distorted + shift)) < 0.01
    with pytest.raises(ValueError, match="expected both"):
        metrics.platt(np.ones(5), np.zeros(5))


def test_calibration_error_of_a_constant_is_its_distance_from_the_share():
    labels = np.repeat([0.0, 1.0], [700, 300])
    assert metrics.calibration_error(labels, np.full(1000, 0.5)) == pytest.approx(0.2)
    assert metrics.calibration_error(labels, labels) == 0.0


def test_ranks_do_not_mind_the_scale():
    snr = RNG.uniform(4, 20, 500)
    assert metrics.rank_correlation(expit(snr), snr) == pytest.approx(1.0)
    assert np.isnan(metrics.rank_correlation(snr[:2], snr[:2]))
