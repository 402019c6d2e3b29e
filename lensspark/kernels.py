"""The inner loops of the search, compiled by numba: masks, filters along spectra, the weighted fit of a galaxy.

numpy does the same by passing over the whole batch once per operation; here a spectrum stays in the core's cache, which
is five to ten times as fast (docs/benchmarks.md). Arrays are float32 and contiguous, sums of products single precision.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

# Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "nsz", "arcp"}
RIDGE = 1e-6  # of the normal matrix's mean diagonal: keeps degenerate designs solvable


def _compiled(function: Callable) -> Callable:
    """`function` compiled at its first call, and kept beside this file or in the user's cache where that can be."""
    options = {"nopython": True, "fastmath": _FAST, "nogil": True, "error_model": "numpy"}
    try:
        return numba.jit(cache=True, **options)(function)
    except RuntimeError:  # neither place can be written
        return numba.jit(**options)(function)


@_compiled
def _usable(ivar, mask, bad_pixel, bad_fibre, blanked, out):
    n, n_pix = ivar.shape
    for row in range(n):
        n_bad = 0
        for p in range(n_pix):
            n_bad += (mask[row, p] & bad_fibre) != 0
        if 2 * n_bad >= n_pix:
            out[row] = 0.0
            continue
        for p in range(n_pix):
            value = ivar[row, p]
            good = (value > 0) & (value < np.inf) & ((mask[row, p] & bad_pixel) == 0)
            out[row, p] = value if good else np.float32(0)
        for i in range(blanked.shape[1]):
            out[row, blanked[row, i, 0]:blanked[row, i, 1]] = 0.0


def usable(ivar: np.ndarray, mask: np.ndarray, bad_pixel: np.int32, bad_fibre: np.int32, blanked: np.ndarray
           ) -> np.ndarray:
    """`ivar` (n, n_pix), with 0 where it is not finite and positive, where `mask` (n, n_pix) has one of the bits
    `bad_pixel`, in the pixels blanked[i, j, 0] to blanked[i, j, 1] - 1 of spectrum i, and in all of a spectrum where
    half of the pixels or more have one of the bits `bad_fibre`."""
    out = np.empty(ivar.shape, np.float32)
    _usable(np.ascontiguousarray(ivar, np.float32), np.ascontiguousarray(mask, np.int32), bad_pixel, bad_fibre, blanked,
            out)
    return out


@_compiled
def _filter(padded, kernel, out):
    """`out` (n_pix) becomes `padded`, which has half a kernel more on each side, seen through `kernel`."""
    out[:] = 0.0
    for k in range(len(kernel)):
        for p in range(len(out)):
            out[p] += kernel[k] * padded[p + k]


@_compiled
def _correlate(values, kernel, out, padded):
    half, n_pix = len(kernel) // 2, values.shape[1]
    for row in range(len(values)):
        padded[half:half + n_pix] = values[row]
        _filter(padded, kernel, out[row])


def correlate(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Rows of `values` (..., n_pix) correlated with `kernel` (odd length), as if zeros lay beyond their ends."""
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    out = np.empty_like(rows)
    _correlate(rows, kernel.astype(np.float32), out, np.zeros(rows.shape[1] + len(kernel) - 1, np.float32))
    return out.reshape(values.shape)


@_compiled
def _signal(flux, model, ivar, kernel, out, padded):
    """`out` (n_pix) becomes (flux - model) ivar of one spectrum, seen through `kernel`."""
    half = len(kernel) // 2
    for p in range(len(flux)):
        padded[half + p] = (flux[p] - model[p]) * ivar[p]
    _filter(padded, kernel, out)


@_compiled
def _matched(flux, model, ivar, weight, kernel, tiny, signal, snr, padded):
    for row in range(len(flux)):
        _signal(flux[row], model[row], ivar[row], kernel, signal[row], padded)
        for p in range(flux.shape[1]):
            snr[row, p] = signal[row, p] / np.sqrt(max(weight[row, p], tiny))


def matched(flux: np.ndarray, model: np.ndarray, ivar: np.ndarray, weight: np.ndarray, kernel: np.ndarray,
            tiny: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """(flux - model) ivar correlated with `kernel`, and that over the root of `weight`, which is at least `tiny`; all
    of them (n, n_pix)."""
    signal, snr = np.empty_like(flux), np.empty_like(flux)
    _matched(flux, model, ivar, weight, kernel, tiny, signal, snr,
             np.zeros(flux.shape[1] + len(kernel) - 1, np.float32))
    return signal, snr


@_compiled
def _running_mean(values, width, out):
    half, n_pix = width // 2, values.shape[1]
    for row in range(len(values)):
        total = 0.0  # in double precision: what is added is taken away again
        for p in range(min(half, n_pix)):
            total += values[row, p]
        for p in range(n_pix):
            if p + half < n_pix:
                total += values[row, p + half]
            if p > half:
                total -= values[row, p - half - 1]
            out[row, p] = total / width


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of each row of `values` (n, n_pix) over `width` (odd) pixels, as if zeros lay beyond its ends."""
    rows = np.ascontiguousarray(values, np.float32)
    out = np.empty_like(rows)
    _running_mean(rows, width, out)
    return out


@_compiled
def _solve(normal, right):
    """Solves normal x = right in place, by elimination without pivots: `normal` (k, k) is positive definite."""
    k = len(right)
    for i in range(k):
        for j in range(i + 1, k):
            factor = normal[j, i] / normal[i, i]
            for m in range(i, k):
                normal[j, m] -= factor * normal[i, m]
            right[j] -= factor * right[i]
    for i in range(k - 1, -1, -1):
        for j in range(i + 1, k):
            right[i] -= normal[i, j] * right[j]
        right[i] /= normal[i, i]


@_compiled
def _fit(design, weighted, flux, ivar, normal, right, model):
    """`model` becomes the weighted least-squares fit of `flux` by the rows of `design` (k, n_pix)."""
    k, n_pix = design.shape
    for i in range(k):
        for p in range(n_pix):
            weighted[i, p] = design[i, p] * ivar[p]
    trace = 0.0
    for i in range(k):
        for j in range(i + 1):
            total = np.float32(0)
            for p in range(n_pix):
                total += weighted[i, p] * design[j, p]
            normal[i, j] = normal[j, i] = total
        total = np.float32(0)
        for p in range(n_pix):
            total += weighted[i, p] * flux[p]
        right[i] = total
        trace += normal[i, i]
    ridge = RIDGE * trace / k if trace > 0 else 1.0
    for i in range(k):
        normal[i, i] += ridge
    _solve(normal, right)
    model[:] = 0.0
    for i in range(k):
        coefficient = np.float32(right[i])
        for p in range(n_pix):
            model[p] += coefficient * design[i, p]


@_compiled
def _fit_all(flux, ivar, weight, vectors, phase, start, poly, kernel, passes, clip, model):
    n, n_pix = flux.shape
    k, size, n_poly = vectors.shape[1], vectors.shape[2], len(poly)
    design, weighted = np.zeros((k + n_poly, n_pix), np.float32), np.empty((k + n_poly, n_pix), np.float32)
    design[k:] = poly
    normal, right = np.empty((k + n_poly, k + n_poly)), np.empty(k + n_poly)
    padded, found = np.zeros(n_pix + len(kernel) - 1, np.float32), np.empty(n_pix, np.float32)
    kept = np.empty(n_pix, np.float32)
    for row in range(n):
        begin = start[row]
        first, last = min(max(-begin, 0), n_pix), max(min(size - begin, n_pix), 0)
        for i in range(k):
            design[i, :first] = 0.0
            design[i, last:] = 0.0
            if first < last:
                design[i, first:last] = vectors[phase[row], i, begin + first:begin + last]
        kept[:] = ivar[row]
        _fit(design, weighted, flux[row], kept, normal, right, model[row])
        for _ in range(passes - 1):
            _signal(flux[row], model[row], ivar[row], kernel, found, padded)
            changed = False
            for p in range(n_pix):
                limit = clip * np.sqrt(weight[row, p])
                value = np.float32(0) if abs(found[p]) > limit else ivar[row, p]
                changed |= value != kept[p]
                kept[p] = value
            if not changed:
                break
            _fit(design, weighted, flux[row], kept, normal, right, model[row])


def fit(flux: np.ndarray, ivar: np.ndarray, weight: np.ndarray, vectors: np.ndarray, phase: np.ndarray,
        start: np.ndarray, poly: np.ndarray, kernel: np.ndarray, passes: int, clip: float) -> np.ndarray:
    """Models (n, n_pix) of the spectra `flux`, weighted by `ivar`, by eigenvectors and polynomials.

    vectors (n_phases, k, size): spectrum i takes those of phase[i] from pixel start[i] on, zeros beyond their ends;
    poly (n_poly, n_pix). Between the `passes`, pixels where the residual's matched-filter S/N with `kernel`, whose
    inverse variance is `weight` (n, n_pix), is beyond +-`clip` leave the fit. A spectrum without weight gives zeros.
    """
    model = np.empty_like(flux)
    _fit_all(flux, ivar, weight, vectors, phase, start, poly, kernel, passes, np.float32(clip), model)
    return model
