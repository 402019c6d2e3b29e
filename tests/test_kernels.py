"""The compiled loops against their formulas in double precision."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lensspark import kernels, matched_filter
from lensspark.eigen import legendre

N_PIX = 300


@pytest.mark.parametrize("length", [1, 3, 15, 2 * N_PIX + 1])
def test_a_row_is_correlated_as_if_zeros_lay_beyond_its_ends(length):
    rng = np.random.default_rng(1)
    values, kernel = rng.normal(size=(2, 3, N_PIX)).astype("f4"), rng.normal(size=length).astype("f4")
    found = kernels.correlate(values, kernel)
    wide = np.pad(values.astype(float), ((0, 0), (0, 0), (length // 2, length // 2)))
    for row in np.ndindex(2, 3):
        np.testing.assert_allclose(found[row], np.correlate(wide[row], kernel.astype(float), "valid"), atol=1e-3)
    np.testing.assert_array_equal(kernels.correlate(values[:, ::2], kernel), found[:, ::2])  # not contiguous


@pytest.mark.parametrize("width", [1, 41, 2 * N_PIX + 1])
def test_the_running_mean_is_a_mean(width):
    values = np.random.default_rng(2).normal(size=(4, N_PIX)).astype("f4")
    wide = np.pad(values.astype(float), ((0, 0), (width // 2, width // 2)))
    expected = np.lib.stride_tricks.sliding_window_view(wide, width, axis=1).mean(axis=2)
    np.testing.assert_allclose(kernels.running_mean(values, width), expected, atol=1e-5)


def problem(n=30, seed=3, size=500):
    """Spectra of three templates and a straight line, with noise and some unusable pixels, and where they begin."""
    rng = np.random.default_rng(seed)
    vectors, poly = rng.normal(size=(4, 3, size)).astype("f4"), legendre(N_PIX, 2)
    phase, start = rng.integers(0, 4, n), rng.integers(-400, 700, n)  # also templates that end within the window
    start[:2] = -N_PIX - 5, size + 5  # or do not reach it
    ivar = (rng.uniform(1, 4, (n, N_PIX)) * (rng.random((n, N_PIX)) > 0.1)).astype("f4")
    design = np.zeros((n, 5, N_PIX))
    for row in range(n):
        for p in range(N_PIX):
            if 0 <= start[row] + p < size:
                design[row, :3, p] = vectors[phase[row], :, start[row] + p]
        design[row, 3:] = poly
    flux = np.einsum("nk,nkp->np", rng.normal(size=(n, 5)), design) + rng.normal(size=(n, N_PIX))
    return flux.astype("f4"), ivar, vectors, phase, start, poly, design


def solved(design, flux, ivar):
    root = np.sqrt(ivar.astype(float))
    return design.T @ np.linalg.lstsq((design * root).T, flux * root, rcond=None)[0]


def fit(flux, ivar, *where, passes=1, clip=4.0):
    kernel = matched_filter.kernel(2.2)
    return kernels.fit(flux, ivar, matched_filter.weight(ivar), *where, kernel, passes, clip)


def test_the_fit_is_the_least_squares_solution():
    flux, ivar, *where, design = problem()
    found = fit(flux, ivar, *where)
    for row in range(len(flux)):
        np.testing.assert_allclose(found[row], solved(design[row], flux[row], ivar[row]), atol=2e-4)


def test_clipped_pixels_leave_the_next_pass_and_may_come_back():
    flux, ivar, *where, design = problem()
    flux[::2, 100:104] += 30
    flux[1::4, 200] -= 30
    kernel = matched_filter.kernel(2.2)
    for passes in (2, 3):
        found = fit(flux, ivar, *where, passes=passes)
        for row in range(len(flux)):
            kept = ivar[row]
            for _ in range(passes):
                model = solved(design[row], flux[row], kept)
                snr = np.correlate((flux[row] - model) * ivar[row], kernel, "same")
                snr /= np.sqrt(np.maximum(np.correlate(ivar[row], kernel**2, "same"), 1e-30))
                kept = np.where(np.abs(snr) > 4.0, 0, ivar[row])
            np.testing.assert_allclose(found[row], model, atol=1e-3)


def test_without_weight_the_fit_is_zero_and_a_degenerate_one_is_solved():
    ivar = np.stack([np.zeros(N_PIX), np.ones(N_PIX)]).astype("f4")
    twins = np.ones((1, 2, N_PIX), "f4")
    found = fit(np.full((2, N_PIX), 6, "f4"), ivar, twins, np.zeros(2, int), np.zeros(2, int), legendre(N_PIX, 1))
    assert not found[0].any()
    np.testing.assert_allclose(found[1], 6.0, rtol=1e-3)


def test_a_warm_worker_has_every_kernel_that_a_search_needs():
    """In a process of its own: this one has searched."""
    code = """
import json
import numpy as np
from lensspark import config, inference, kernels
from lensspark.model import Model

def loaded():
    return {name: len(each.signatures) for name, each in vars(kernels).items() if hasattr(each, "signatures")}

settings, model = config.load(), Model.named("default")
inference.warm()
warm = loaded()
rng, n = np.random.default_rng(1), 8
shape = n, 2 * model.pixels[1]
planes = rng.normal(5, 1, shape).astype("f4"), np.ones(shape, "f4"), np.zeros(shape, "i4")
role = np.array(["score", "both", "shifted", "null"] * 2)
inference.search(inference.scorer(model, settings),
                 lambda rows, step: [plane[rows, step:step + model.pixels[1]] for plane in planes],
                 rng.uniform(0.3, 0.7, n), np.full(n, 3.58), role, settings)
print(json.dumps([warm, loaded()]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    warm, searched = json.loads(done.stdout)
    assert any(warm.values()) and searched == warm
