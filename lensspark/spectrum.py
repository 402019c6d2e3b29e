"""From pixels to the network's input: window, masks, galaxy model, channels. Training and search share `prepare`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter1d

from lensspark import matched_filter
from lensspark.config import Input
from lensspark.eigen import DLOGLAM, Basis, legendre, weighted_fit

# Significances are divided by the scale and clipped at +-limit: about unit variance, and a bright line stays bright.
SIGNIFICANCE_SCALE, SIGNIFICANCE_LIMIT = 3.0, 10.0
UNFITTED = ("flux", "sqrt_ivar", "error_level")  # channels that need no model of the galaxy, by the head of their name


def window_pixels(window: tuple[float, ...]) -> tuple[int, int]:
    """(first_pixel, n_pix) of the fixed grid inside `window` Angstrom: 3800-5000 gives 35798 and 1192.

    Raises ValueError if the window holds no pixel.
    """
    low, high = window
    if not 0 < low < high:
        raise ValueError(f"window {list(window)}: expected two increasing wavelengths in Angstrom")
    first, last = int(np.ceil(np.log10(low) / DLOGLAM)), int(np.floor(np.log10(high) / DLOGLAM))
    if last < first:
        raise ValueError(f"window {list(window)}: no pixel of {DLOGLAM} dex lies in it")
    return first, last - first + 1


def wavelength(pixel: np.ndarray) -> np.ndarray:
    """Wavelength in Angstrom of (fractional) pixels of the grid log10 wavelength = pixel * 1e-4."""
    return 10.0 ** (np.asarray(pixel, dtype=np.float64) * DLOGLAM)


def pixel(wave: np.ndarray) -> np.ndarray:
    """Fractional pixel of wavelengths in Angstrom; the inverse of `wavelength`."""
    return np.log10(np.asarray(wave, dtype=np.float64)) / DLOGLAM


@dataclass(frozen=True)
class Prepared:
    """What `prepare` makes of n spectra: all arrays (n, n_pix) float32 but for `channels` (n, n_channels, n_pix)."""

    channels: np.ndarray
    residual: np.ndarray  # flux - model
    ivar: np.ndarray  # 0 where unusable
    model: np.ndarray  # the foreground galaxy
    scorable: np.ndarray  # (n,) bool: enough usable pixels


def mask_bits(numbers: tuple[int, ...]) -> np.int32:
    """The mask with the bits of these `numbers` (0 to 31) set, to be compared with an and_mask."""
    return np.array(sum(1 << n for n in numbers), dtype=np.uint32).view(np.int32)[()]


def usable_ivar(ivar: np.ndarray, and_mask: np.ndarray, z_lens: np.ndarray, settings: Input, first: int) -> np.ndarray:
    """`ivar` (n, n_pix) with 0 wherever a pixel must not be used.

    Unusable are pixels with one of the configured mask bits, fibres with a bad-fibre bit in at least half of their
    pixels, the galaxy's own lines at z_lens (n,), sky lines, and non-finite or negative ivar.
    """
    good = (ivar > 0) & np.isfinite(ivar) & ((and_mask & mask_bits(settings.bad_pixel_bits)) == 0)
    bad_fibre = ((and_mask & mask_bits(settings.bad_fibre_bits)) != 0).mean(axis=1) >= 0.5
    good &= ~bad_fibre[:, None]
    n_pix = ivar.shape[1]
    grid = np.arange(n_pix)
    for wave in settings.sky_lines:
        good &= np.abs(grid - (pixel(wave) - first)) > settings.sky_line_half_width_px
    for rest in settings.lens_lines:
        centre = pixel(rest * (1 + z_lens)) - first
        inside = (centre > -settings.lens_line_half_width_px) & (centre < n_pix + settings.lens_line_half_width_px)
        rows = np.flatnonzero(inside)
        good[rows] &= np.abs(grid - centre[rows, None]) > settings.lens_line_half_width_px
    return np.where(good, ivar, np.float32(0))


def fit_galaxy(flux: np.ndarray, ivar: np.ndarray, z_lens: np.ndarray, basis: Basis, settings: Input, first: int
               ) -> np.ndarray:
    """Model (n, n_pix) of the foreground galaxies: eigenspectra at z_lens plus a polynomial, weighted by ivar.

    Between passes, pixels under a matched-filter S/N beyond +-fit_clip_sigma leave the fit, so that neither a line nor
    a glitch bends the continuum (Shu et al. 2016 mask by hand instead).
    """
    n, n_pix = flux.shape
    eigen = basis.at(z_lens, first, n_pix, settings.fit_components)
    poly = np.broadcast_to(legendre(n_pix, settings.fit_poly_terms), (n, settings.fit_poly_terms, n_pix))
    design = np.concatenate([eigen, poly], axis=1)
    weights = ivar
    for step in range(settings.fit_passes):
        coefficients = weighted_fit(design, flux, weights)
        model = (coefficients.astype(np.float32)[:, None, :] @ design)[:, 0]
        if step + 1 < settings.fit_passes:
            outlying = np.abs(matched_filter.snr(flux - model, ivar)) > settings.fit_clip_sigma
            weights = np.where(outlying, np.float32(0), ivar)
    return model


def prepare(flux: np.ndarray, ivar: np.ndarray, and_mask: np.ndarray, z_lens: np.ndarray, basis: Basis,
            settings: Input, first: int, channels_only: bool = False) -> Prepared:
    """Network input and residuals of n spectra on the pixels first ... first + n_pix - 1.

    flux [1e-17 erg/s/cm2/A], ivar, and_mask: (n, n_pix); z_lens (n,). `settings.channels` chooses among flux and model
    (over their mean absolute value), sqrt_ivar (over its mean), error_level_W (the same, smoothed over W px), residual
    (significance of flux - model per pixel) and matched_S (matched-filter S/N for a line of width S px). Significances
    of a spectrum are scaled down so that no matched filter exceeds `settings.brightest_snr`. With
    `channels_only` the galaxy is fitted only where a channel needs it, else model is 0. Raises ValueError if shapes
    disagree or a channel is unknown.
    """
    flux = np.asarray(flux, dtype=np.float32)
    if not (flux.ndim == 2 and flux.shape == ivar.shape == and_mask.shape and np.shape(z_lens) == flux.shape[:1]):
        shapes = [np.shape(x) for x in (flux, ivar, and_mask, z_lens)]
        raise ValueError(f"flux, ivar, and_mask, z_lens have shapes {shapes}; expected three times (n, n_pix) and (n,)")
    ivar = usable_ivar(np.asarray(ivar, dtype=np.float32), and_mask, np.asarray(z_lens), settings, first)
    good = ivar > 0
    flux = np.where(good & np.isfinite(flux), flux, np.float32(0))
    fitted = not channels_only or not all(name.startswith(UNFITTED) for name in settings.channels)
    model = fit_galaxy(flux, ivar, z_lens, basis, settings, first) if fitted else np.zeros_like(flux)
    residual = np.where(good, flux - model, np.float32(0))
    channels = np.empty((flux.shape[0], len(settings.channels), flux.shape[1]), dtype=np.float32)
    for i, name in enumerate(settings.channels):
        channels[:, i] = _channel(name, flux, residual, ivar, model)
    _dim(channels, settings)
    scorable = good.mean(axis=1) >= settings.min_usable_fraction
    return Prepared(channels, residual, ivar, model, scorable)


def _channel(name: str, flux: np.ndarray, residual: np.ndarray, ivar: np.ndarray, model: np.ndarray) -> np.ndarray:
    if name == "flux":
        return np.clip(flux / _scale(np.abs(flux), ivar > 0), -10, 30)
    if name == "residual":
        return residual * np.sqrt(ivar)
    if name == "sqrt_ivar":
        root = np.sqrt(ivar)
        return np.clip(root / _scale(root, ivar > 0), 0, 5)
    if name.startswith("error_level_"):
        return _error_level(ivar, int(name.removeprefix("error_level_")))
    if name == "model":
        return np.clip(model / _scale(np.abs(model), ivar > 0), -5, 5)
    if name.startswith("matched_"):
        try:
            return matched_filter.snr(residual, ivar, float(name.removeprefix("matched_")))
        except (ValueError, ZeroDivisionError):
            pass
    raise ValueError(f"input.channels: {name!r}; expected flux, residual, sqrt_ivar, error_level_<width "
                     "in px>, model or matched_<width in px>")


def _error_level(ivar: np.ndarray, width: int) -> np.ndarray:
    """sqrt_ivar as its mean over `width` px of usable pixels, 0 on the others: what a pixel's own light and noise do to
    its reported error (docs/science.md) is left out, lest it be taken for a line."""
    good = (ivar > 0).astype(np.float32)
    root = np.sqrt(ivar)
    share = uniform_filter1d(good, width, axis=1, mode="constant")
    mean = uniform_filter1d(root, width, axis=1, mode="constant") / np.maximum(share, np.float32(1e-6))
    return np.clip(good * mean / _scale(root, good > 0), 0, 5)


def _dim(channels: np.ndarray, settings: Input) -> None:
    """Significances among `channels` (n, n_channels, n_pix), in place: scaled down together where a matched filter's
    S/N exceeds brightest_snr, divided by SIGNIFICANCE_SCALE, clipped.

    A network knows lines of the S/N that it was trained on. A brighter one looks like those with less noise.
    """
    matched = [i for i, name in enumerate(settings.channels) if name.startswith("matched_")]
    factor = np.full((len(channels), 1), 1 / SIGNIFICANCE_SCALE, dtype=np.float32)
    if matched and settings.brightest_snr > 0:
        peak = np.max([channels[:, i].max(axis=1) for i in matched], axis=0)
        factor /= np.maximum(peak / np.float32(settings.brightest_snr), 1)[:, None]
    for i, name in enumerate(settings.channels):
        if i in matched or name == "residual":
            np.clip(channels[:, i] * factor, -SIGNIFICANCE_LIMIT, SIGNIFICANCE_LIMIT, out=channels[:, i])


def _scale(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Mean of `values` over good pixels of each row, (n, 1); 1 where that is not positive."""
    mean = np.where(good, values, 0).sum(axis=1, dtype=np.float64) / np.maximum(good.sum(axis=1), 1)
    return np.where(mean > 0, mean, 1.0).astype(np.float32)[:, None]
