"""What a line is: companions at the redshift of each identity, and a posterior over identities.

Identities are those of lines.IDENTITIES and three that need no other redshift: a line of the lens itself, a line of the
night sky, a cosmic ray. Companions are measured by a matched filter on the spectrum's residual, as Shu et al. (2016,
ApJ 833, 264) do for [OII], whose veto is S/N >= 2.5 at Hbeta, [OIII] or Halpha.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import logsumexp

from lensspark import lines
from lensspark.eigen import DLOGLAM
from lensspark.profile import Cutouts, Fits, shapes
from lensspark.profile.fits import GRID
from lensspark.spectrum import pixel, wavelength

NAMES = (*(identity.name for identity in lines.IDENTITIES), "lens", "sky", "cosmic")
UNDECIDED = "undecided"
PIXEL_KMS = 299792.458 * np.log(10) * DLOGLAM
_NEAR, _HALF = 90, 15  # px on each side that the local noise, and the filter, are taken from
_CLIP = 4.0  # sigma; other lines leave the fit of the local continuum beyond it
_MIN_SEEN = 0.5  # of the filter's weight must lie on usable pixels
_LENS_LINE_PX, _LENS_MASK_PX, _SKY_PX = 3.0, 6.0, 1.0  # px: kinematics and redshift of the lens; jitter of the sky
_WINDOW_PX = 1192  # pixels of 3800-5000 A: a foreign line is equally likely on each of them
_OUTLIER, _OUTLIER_WIDTH = 0.03, 10.0  # share of companions measured wrong, and by how many errors
_RATIO_ERROR = 0.1  # of the expected flux: calibration, and the line's own flux
_NODES = np.linspace(-3, 3, 25)
_PER_PARAMETER = 0.5 * np.log(12)  # Schwarz's penalty for a line's dozen pixels
_LEAST = -15.0  # ln of the least relative evidence a profile gives: real lines follow none of the shapes exactly
_DOUBLE_PEAKED = 0.2  # of Lya lines: 80 of 361 in Cao et al. 2020, MNRAS 499, 3610


@dataclass(frozen=True)
class Spectra:
    """Residuals of n whole spectra (n, n_pix): 1e-17 erg/s/cm2/A; ivar 0 where unusable; LSF sigma in px."""

    residual: np.ndarray
    ivar: np.ndarray
    lsf: np.ndarray
    first_pixel: np.ndarray  # (n,) on the grid log10 wavelength = pixel * 1e-4


def measure(spectra: Spectra, position: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flux and its error, 1e-17 erg/s/cm2, (n,) each, of a Gaussian line of rms `width` px at grid pixel `position`.

    A straight line fitted to the pixels around is taken off first. Where the filter's S/N scatters by more than 1
    there (sky residuals, correlated noise) the error grows by as much. NaN where less than half of the filter is seen.
    """
    n, n_pix = spectra.residual.shape
    place = position - spectra.first_pixel
    there = np.isfinite(place) & (place >= 0) & (place <= n_pix - 1) & np.isfinite(width)
    middle = np.rint(np.where(there, place, 0)).astype(np.int64)
    x = np.arange(-_NEAR - _HALF, _NEAR + _HALF + 1)
    index = middle[:, None] + x
    inside = (index >= 0) & (index < n_pix) & there[:, None]
    index = np.clip(index, 0, n_pix - 1)
    angstrom = np.log(10) * DLOGLAM * wavelength(spectra.first_pixel[:, None] + index)
    ivar = np.where(inside, np.take_along_axis(spectra.ivar, index, axis=1), 0) / angstrom**2
    flux = np.where(ivar > 0, np.take_along_axis(spectra.residual, index, axis=1), 0) * angstrom
    width = np.clip(np.where(there, width, 1.0), 0.5, 6.0)
    flux = flux - _continuum(flux, ivar, x, np.maximum(4 * width, 8.0))
    edges = np.arange(-_HALF, _HALF + 2) - 0.5
    kernel = shapes.gaussian(edges, np.where(there, place - middle, 0), width)
    weight = np.einsum("njk,nk->nj", sliding_window_view(ivar, 2 * _HALF + 1, axis=1), kernel**2)
    signal = np.einsum("njk,nk->nj", sliding_window_view(flux * ivar, 2 * _HALF + 1, axis=1), kernel)
    snr = np.divide(signal, np.sqrt(weight), out=np.full_like(signal, np.nan), where=weight > 0)
    around = np.where(np.abs(x[_HALF:-_HALF]) > _HALF, snr, np.nan)
    core = ivar[:, _NEAR:-_NEAR] > 0
    seen = (core * kernel**2).sum(axis=1) >= _MIN_SEEN * (kernel**2).sum(axis=1)
    good = there & seen & (weight[:, _NEAR] > 0)
    scale = np.maximum(1, _scatter(around))
    with np.errstate(divide="ignore", invalid="ignore"):
        value, error = signal[:, _NEAR] / weight[:, _NEAR], scale / np.sqrt(weight[:, _NEAR])
    return np.where(good, value, np.nan), np.where(good, error, np.nan)


def _continuum(flux: np.ndarray, ivar: np.ndarray, x: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Weighted straight line (n, n_x) through the pixels more than `gap` (n,) from the middle, outliers clipped."""
    weight = np.where(np.abs(x) > gap[:, None], ivar, 0)
    for _ in range(2):
        total = np.maximum(weight.sum(axis=1, keepdims=True), 1e-30)
        centre = (weight * x).sum(axis=1, keepdims=True) / total
        mean = (weight * flux).sum(axis=1, keepdims=True) / total
        spread = np.maximum((weight * (x - centre) ** 2).sum(axis=1, keepdims=True), 1e-30)
        line = mean + (weight * flux * (x - centre)).sum(axis=1, keepdims=True) / spread * (x - centre)
        weight = np.where(np.abs(flux - line) * np.sqrt(ivar) < _CLIP, weight, 0)
    return line


def _scatter(values: np.ndarray) -> np.ndarray:
    """1.48 x median absolute deviation of each row, NaN ignored; 1 for a row without values."""
    empty = np.isnan(values).all(axis=1)
    values = np.where(empty[:, None], 0.0, values)
    median = np.nanmedian(values, axis=1, keepdims=True)
    return np.where(empty, 1.0, 1.4826 * np.nanmedian(np.abs(values - median), axis=1))


def companions(spectra: Spectra, cuts: Cutouts, fits: Fits) -> dict[str, dict[str, np.ndarray]]:
    """Flux, error and wavelength (n,) of every companion of every identity, by "identity/line".

    `spectra` are those that `cuts` were made from, row by row. The filter has the width of the line freed of its LSF
    and seen through the companion's. [OII] is taken at the doublet's fit, other lines at the Gaussian's.
    """
    out = {}
    for identity in lines.IDENTITIES:
        found = fits.oii if identity.name == "oii" else fits.gauss
        shift = 0.5 * shapes.OII_SEPARATION if identity.name == "oii" else -identity.blueshift / PIXEL_KMS
        line = cuts.pixel + found.theta[:, 0] + shift
        own = shapes.width_of(found.theta) * np.sqrt(shapes.own_share(shapes.width_of(found.theta), cuts.lsf))
        for companion in identity.companions:
            position = line + np.log10(companion.rest / identity.rest) / DLOGLAM
            width = np.hypot(own, _lsf_at(spectra, position, cuts.lsf))
            flux, error = measure(spectra, position, width)
            out[f"{identity.name}/{companion.name}"] = {"flux": flux, "error": error, "wave": wavelength(position)}
    return out


def _lsf_at(spectra: Spectra, position: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    index = np.rint(position - spectra.first_pixel).astype(np.int64)
    index = np.clip(index, 0, spectra.lsf.shape[1] - 1)
    lsf = np.take_along_axis(spectra.lsf, index[:, None], axis=1)[:, 0]
    return np.where(np.isfinite(lsf) & (lsf > 0), lsf, fallback)


def masked(spectra: Spectra, z_lens: np.ndarray) -> Spectra:
    """`spectra` without the pixels where the lens's own emission or the strongest sky would pass for a companion."""
    grid = spectra.first_pixel[:, None] + np.arange(spectra.ivar.shape[1])
    bad = np.zeros(spectra.ivar.shape, dtype=bool)
    for low, high in lines.SKY_BANDS:
        bad |= (grid >= pixel(low)) & (grid <= pixel(high))
    known = np.where(z_lens > -1, z_lens, np.nan)
    for rest in lines.LENS_EMISSION:
        bad |= np.abs(grid - pixel(rest * (1 + known))[:, None]) <= _LENS_MASK_PX
    return Spectra(spectra.residual, np.where(bad, 0, spectra.ivar), spectra.lsf, spectra.first_pixel)


def largest_snr(found: dict[str, dict[str, np.ndarray]], identity: str) -> np.ndarray:
    """(n,): the largest S/N among an identity's companions; NaN where none of them can be measured."""
    values = np.stack([line["flux"] / line["error"] for name, line in found.items()
                       if name.partition("/")[0] == identity])
    best = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    return np.where(np.isfinite(best), best, np.nan)


def posterior(cuts: Cutouts, fits: Fits, found: dict[str, dict[str, np.ndarray]], z_lens: np.ndarray,
              priors: tuple[float, ...], noise_correlation: float) -> np.ndarray:
    """Probability (n, len(NAMES)) of each identity; `priors` are their rates among hits, up to a factor.

    Product of prior, evidence of the line's profile, of each companion, and of the place for lines of lens and sky;
    chi2 counts by 1 / (1 + 2 x correlation), as correlated noise asks for.
    """
    if len(priors) != len(NAMES):
        raise ValueError(f"identity_priors has {len(priors)} values; expected {len(NAMES)}: {', '.join(NAMES)}")
    line = cuts.pixel + fits.gauss.theta[:, 0]
    log = _profile_evidence(cuts, fits, 1 + 2 * noise_correlation)
    for k, identity in enumerate(lines.IDENTITIES):
        for companion in identity.companions:
            measured = found[f"{identity.name}/{companion.name}"]
            log[:, k] += _companion_evidence(measured, fits.skew.amplitude, companion)
        log[:, k] = np.where(wavelength(line) >= identity.rest * 0.999, log[:, k], -np.inf)  # no redshift below 0
    log[:, NAMES.index("lens")] += _place(line, np.array(lines.LENS_LINES), 1 + z_lens, _LENS_LINE_PX)
    log[:, NAMES.index("sky")] += _place(line, np.array(lines.NIGHT_SKY), np.ones_like(line), _SKY_PX)
    with np.errstate(divide="ignore"):
        log += np.log(priors)
    return np.exp(log - logsumexp(log, axis=1, keepdims=True))


def _profile_evidence(cuts: Cutouts, fits: Fits, scale: float) -> np.ndarray:
    """ln evidence (n, len(NAMES)) of the profile against the best one, a Gaussian's free width and place in common."""
    gauss = -0.5 * fits.gauss.chi2 / scale
    log = np.repeat(gauss[:, None], len(NAMES), axis=1)
    skewed = -0.5 * np.ascontiguousarray(fits.grid_chi2[:, GRID >= 0]) / scale
    double = -0.5 * fits.double.chi2 / scale - 2 * _PER_PARAMETER
    single = np.log((1 - _DOUBLE_PEAKED) / skewed.shape[1]) + logsumexp(skewed, axis=1)
    log[:, NAMES.index("lya")] = np.logaddexp(single, np.log(_DOUBLE_PEAKED) + double)
    log[:, NAMES.index("oii")] = -0.5 * fits.oii.chi2 / scale - _PER_PARAMETER
    # An unresolved line has a parameter less than a Gaussian of free width: that pays where it is as wide as the LSF.
    resolved = 2 * np.log(shapes.width_of(fits.free.theta) / cuts.lsf) / 0.2
    log[:, NAMES.index("sky")] = gauss + _PER_PARAMETER - 0.5 * np.maximum(resolved, 0) ** 2
    log[:, NAMES.index("cosmic")] = np.where(cuts.lsf_known, -0.5 * fits.spike.chi2 / scale, -np.inf)
    return np.maximum(log - log.max(axis=1, keepdims=True), np.where(np.isfinite(log), _LEAST, -np.inf))


def _companion_evidence(measured: dict[str, np.ndarray], line_flux: np.ndarray, companion: lines.Companion
                        ) -> np.ndarray:
    """ln of the measured flux's likelihood if the companion is there over that if it is not; 0 where not measured."""
    seen = np.isfinite(measured["flux"])
    flux, error = (np.where(seen, measured[name], 1.0)[:, None] for name in ("flux", "error"))
    weight = np.exp(-0.5 * _NODES**2)
    expected = line_flux[:, None] * companion.ratio * 10 ** (companion.scatter * _NODES)
    width = np.hypot(error, _RATIO_ERROR * expected)
    with_line = (weight / weight.sum() * _normal(flux - expected, width)).sum(axis=1)
    without = _normal(flux, error)[:, 0]
    wrong = _OUTLIER * _normal(flux, _OUTLIER_WIDTH * error)[:, 0]
    floor = 1e-300
    ratio = np.log((1 - _OUTLIER) * with_line + wrong + floor) - np.log((1 - _OUTLIER) * without + wrong + floor)
    return np.where(seen, ratio, 0)


def _normal(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * np.square(x / sigma)) / (np.sqrt(2 * np.pi) * sigma)


def _place(line: np.ndarray, rest: np.ndarray, stretch: np.ndarray, width: float) -> np.ndarray:
    """ln of the density of lines at grid pixel `line` (n,), all of `rest` alike, over that of a foreign line."""
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = line[:, None] - np.log10(rest * stretch[:, None]) / DLOGLAM
    density = np.where(np.isfinite(distance), _normal(distance, np.float64(width)), 0).mean(axis=1)
    with np.errstate(divide="ignore"):
        return np.log(_WINDOW_PX * density)
