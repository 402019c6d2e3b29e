"""Weighted PCA: a known subspace comes back from noise and gaps, better than without weights."""

import numpy as np
import pytest

from lensspark import eigen, weighted_pca

N, PIXELS, K = 200, 300, 3


def smooth(rng, rows):
    x = np.linspace(0, 1, PIXELS)
    return np.stack([sum(rng.normal() * np.sin(2 * np.pi * (f * x + rng.random())) for f in (1, 2, 4, 8))
                     for _ in range(rows)])


@pytest.fixture(scope="module")
def sample():
    """Spectra of a known subspace: errors that differ by 30 from pixel to pixel, a fifth of the pixels missing."""
    rng = np.random.default_rng(3)
    truth = smooth(rng, K)
    coefficients = rng.normal(size=(N, K)) * (3, 2, 1) + (10, 0, 0)
    clean = coefficients @ truth
    sigma = 10 ** rng.uniform(-0.5, 1.0, PIXELS) * 10 ** rng.uniform(-0.2, 0.2, (N, 1))
    ivar = np.where(rng.random((N, PIXELS)) < 0.2, 0.0, sigma**-2.0)
    flux = np.where(ivar > 0, clean + sigma * rng.normal(size=clean.shape), 0.0)
    return truth, clean, flux, ivar


def sine(vectors, truth):
    """Sine of the largest angle between two subspaces: 0 for the same."""
    a, b = (np.linalg.qr(v.T)[0] for v in (vectors, truth))
    return np.sqrt(max(1 - np.linalg.svd(a.T @ b, compute_uv=False).min() ** 2, 0))


def test_a_known_subspace_is_recovered_exactly_without_noise(sample):
    truth, clean, _, ivar = sample
    found = weighted_pca.weighted_pca(np.where(ivar > 0, clean, -99.0), ivar, K, iterations=200)
    assert sine(found.vectors, truth) < 0.05
    np.testing.assert_allclose((found.coefficients @ found.vectors)[ivar == 0], clean[ivar == 0], atol=0.5)


def test_noise_and_gaps_hurt_less_than_without_weights(sample):
    truth, clean, flux, ivar = sample
    weighted = weighted_pca.weighted_pca(flux, ivar, K)
    mean = flux.sum(axis=0) / (ivar > 0).sum(axis=0)
    vectors, coefficients = eigen.pca(np.where(ivar > 0, flux, mean), K)
    assert sine(weighted.vectors, truth) < 0.8 * sine(vectors, truth)
    errors = [np.std(c @ v - clean) for c, v in ((weighted.coefficients, weighted.vectors), (coefficients, vectors))]
    assert errors[0] < errors[1] / 2


def test_chi2_is_that_of_the_noise(sample):
    _, _, flux, ivar = sample
    found = weighted_pca.weighted_pca(flux, ivar, K)
    freedom = (ivar > 0).sum() - N * K - K * PIXELS
    assert found.chi2.sum() / freedom == pytest.approx(1, abs=0.03)


def test_no_other_subspace_fits_better(sample):
    """The minimum: turning the vectors towards anything raises chi2."""
    _, _, flux, ivar = sample
    found = weighted_pca.weighted_pca(flux, ivar, K, iterations=300)
    rng = np.random.default_rng(4)
    for _ in range(5):
        other = found.vectors + 0.02 * rng.normal(size=found.vectors.shape) / np.sqrt(PIXELS)
        assert weighted_pca.fit(other, flux, ivar).chi2.sum() > found.chi2.sum()


def test_vectors_are_orthonormal_and_ordered(sample):
    _, _, flux, ivar = sample
    found = weighted_pca.weighted_pca(flux, ivar, K)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(K), atol=1e-10)
    assert (np.diff(np.mean(found.coefficients**2, axis=0)) < 0).all()


def test_equal_weights_give_the_plain_components(sample):
    _, clean, _, _ = sample
    spectra = clean + 0.1 * np.random.default_rng(5).normal(size=clean.shape)
    found = weighted_pca.weighted_pca(spectra, np.ones_like(spectra), K)
    expected = np.linalg.svd(spectra, full_matrices=False)[2][:K]
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * expected, axis=1)), 1, atol=1e-6)


def test_sums_of_parts_are_sums_of_all(sample):
    _, _, flux, ivar = sample
    c = np.random.default_rng(6).normal(size=(N, K))
    whole = weighted_pca.vector_sums(c, flux, ivar)
    parts = [weighted_pca.vector_sums(c[i::3], flux[i::3], ivar[i::3]) for i in range(3)]
    for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(sum(apart), together, rtol=1e-10, atol=1e-12)


def test_smoothing_keeps_what_is_broad_and_removes_noise(sample):
    truth, _, flux, ivar = sample
    rough, even = (sine(weighted_pca.weighted_pca(flux, ivar, K, width).vectors, truth) for width in (0.0, 1.5))
    assert even < 0.7 * rough


def test_a_pixel_that_nothing_measures_is_zero(sample):
    _, _, flux, ivar = sample
    ivar = np.where(np.arange(PIXELS) < 5, 0, ivar)
    for width in (0.0, 1.5):
        found = weighted_pca.weighted_pca(flux, ivar, K, width)
        assert np.abs(found.vectors[:, :5]).max() < 1e-12 and np.isfinite(found.vectors).all()


def test_fewer_spectra_than_vectors_are_refused(sample):
    _, _, flux, ivar = sample
    with pytest.raises(ValueError, match="2 spectra: expected at least 3"):
        weighted_pca.weighted_pca(flux[:2], ivar[:2], K)


def test_the_intrinsic_distribution_is_found_behind_the_noise():
    """Coefficients scattered by known errors: mean and covariance come back, and posterior draws have them."""
    rng = np.random.default_rng(7)
    n, mean, root = 3000, np.array([5.0, 0.0]), np.array([[1.0, 0.0], [0.6, 0.3]])
    true = mean + rng.normal(size=(n, 2)) @ root.T
    sigma = rng.uniform(0.3, 2.0, (n, 2))
    measured = true + sigma * rng.normal(size=(n, 2))
    precision = np.zeros((n, 2, 2))
    precision[:, [0, 1], [0, 1]] = sigma**-2.0
    found, covariance, centre, spread = weighted_pca.intrinsic(measured, precision, 100)
    np.testing.assert_allclose(found, mean, atol=0.08)
    np.testing.assert_allclose(covariance, root @ root.T, atol=0.08)
    assert np.cov(measured.T)[1, 1] > 3 * covariance[1, 1]  # what a bootstrap of the measured values would draw
    drawn = centre + (spread @ rng.normal(size=(n, 2, 1)))[:, :, 0]
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.08)
