"""From pixels to the network's input: window, masks, galaxy model, channels. Training and search share `prepare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lensspark import kernels, matched_filter
from lensspark.config import Input
from lensspark.eigen import DLOGLAM, Basis, legendre
from lensspark.matched_filter import CLASSICAL_SIGMA

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
    """n spectra as the search sees them: arrays (n, n_pix) float32 but for `scorable` (n,)."""

    flux: np.ndarray  # 0 where unusable
    ivar: np.ndarray  # 0 where unusable
    model: np.ndarray  # the foreground galaxy
    weight: np.ndarray  # matched_filter.weight of ivar
    scorable: np.ndarray  # bool: enough usable pixels
    settings: Input

    @cached_property
    def residual(self) -> np.ndarray:
        """flux - model, 0 where unusable."""
        return (self.flux - self.model) * (self.ivar > 0)

    @cached_property
    def _matched(self) -> tuple[np.ndarray, np.ndarray]:
        return matched_filter.matched(self.flux, self.model, self.ivar, self.weight)

    @property
    def signal(self) -> np.ndarray:
        """matched_filter.signal of the residual, in the classical filter."""
        return self._matched[0]

    @property
    def snr(self) -> np.ndarray:
        """Matched-filter S/N in the classical filter."""
        return self._matched[1]

    @cached_property
    def channels(self) -> np.ndarray:
        """The network's input, (n, n_channels, n_pix) float32. Raises ValueError if a channel is unknown.

        `settings.channels` chooses among flux and model (over their mean absolute value), sqrt_ivar (over its mean),
        error_level_W (the same, smoothed over W px), residual (significance of flux - model per pixel) and matched_S
        (matched-filter S/N for a line of width S px). Significances of a spectrum are scaled down so that no matched
        filter exceeds `settings.brightest_snr`.
        """
        names = self.settings.channels
        channels = np.empty((self.flux.shape[0], len(names), self.flux.shape[1]), dtype=np.float32)
        for i, name in enumerate(names):
            channels[:, i] = _channel(name, self)
        _dim(channels, self.settings)
        return channels

    def upside_down(self) -> Prepared:
        """The spectra mirrored about their galaxies' models: noise and template residuals look alike, no line does.

        No fit is needed: it is linear and clips both signs alike, so that the mirrored spectrum has the same model.
        """
        return dataclasses.replace(self, flux=(2 * self.model - self.flux) * (self.ivar > 0))

    @classmethod
    def together(cls, sets: Sequence[Prepared]) -> Prepared:
        """The spectra of all `sets`, one or more, in a row."""
        names = ("flux", "ivar", "model", "weight", "scorable")
        return cls(*(np.concatenate([getattr(one, name) for one in sets]) for name in names), sets[0].settings)

    def __getitem__(self, rows: np.ndarray) -> Prepared:
        """The spectra of `rows`."""
        planes = (self.flux, self.ivar, self.model, self.weight, self.scorable)
        return Prepared(*(plane[rows] for plane in planes), self.settings)


def mask_bits(numbers: tuple[int, ...]) -> np.int32:
    """The mask with the bits of these `numbers` (0 to 31) set, to be compared with an and_mask."""
    return np.array(sum(1 << n for n in numbers), dtype=np.uint32).view(np.int32)[()]


def kept(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """`values` (n, n_pix) where `good` and finite, else 0."""
    if np.isfinite(values).all():
        return values * good  # ten times as fast as a choice pixel by pixel
    return np.where(good & np.isfinite(values), values, np.float32(0))


def usable_ivar(ivar: np.ndarray, and_mask: np.ndarray, z_lens: np.ndarray, settings: Input, first: int) -> np.ndarray:
    """`ivar` (n, n_pix) with 0 wherever a pixel must not be used.

    Unusable are pixels with one of the configured mask bits, fibres with a bad-fibre bit in at least half of their
    pixels, the galaxy's own lines at z_lens (n,), sky lines, and non-finite or negative ivar.
    """
    half = np.array([settings.sky_line_half_width_px] * len(settings.sky_lines)
                    + [settings.lens_line_half_width_px] * len(settings.lens_lines), float)
    centres = np.empty((len(z_lens), len(half)))
    centres[:, :len(settings.sky_lines)] = pixel(np.array(settings.sky_lines))
    centres[:, len(settings.sky_lines):] = pixel(np.multiply.outer(1 + z_lens, settings.lens_lines))
    ends = np.stack([np.ceil(centres - first - half), np.floor(centres - first + half) + 1], axis=-1)
    ends = np.clip(np.nan_to_num(ends), 0, ivar.shape[1]).astype(np.int64)
    return kernels.usable(ivar, and_mask, mask_bits(settings.bad_pixel_bits), mask_bits(settings.bad_fibre_bits), ends)


def fit_galaxy(flux: np.ndarray, ivar: np.ndarray, z_lens: np.ndarray, basis: Basis, settings: Input, first: int,
               weight: np.ndarray | None = None) -> np.ndarray:
    """Model (n, n_pix) of the foreground galaxies: eigenspectra at z_lens plus a polynomial, weighted by ivar.

    Between passes, pixels under a matched-filter S/N beyond +-fit_clip_sigma leave the fit, so that neither a line nor
    a glitch bends the continuum (Shu et al. 2016 mask by hand instead). `weight` is matched_filter.weight of ivar,
    where it is at hand.
    """
    weight = matched_filter.weight(ivar) if weight is None else weight
    return kernels.fit(flux, ivar, weight, basis.table(settings.fit_components), *basis.place(z_lens, first),
                       legendre(flux.shape[1], settings.fit_poly_terms), matched_filter.kernel(CLASSICAL_SIGMA),
                       settings.fit_passes, settings.fit_clip_sigma)


def prepare(flux: np.ndarray, ivar: np.ndarray, and_mask: np.ndarray, z_lens: np.ndarray, basis: Basis,
            settings: Input, first: int, channels_only: bool = False) -> Prepared:
    """n spectra on the pixels first ... first + n_pix - 1 as the search sees them: masked, the galaxy fitted.

    flux [1e-17 erg/s/cm2/A], ivar, and_mask: (n, n_pix); z_lens (n,). With `channels_only` the galaxy is fitted only
    where a channel needs it, else model is 0. Raises ValueError if shapes disagree.
    """
    flux = np.asarray(flux, dtype=np.float32)
    if not (flux.ndim == 2 and flux.shape == ivar.shape == and_mask.shape and np.shape(z_lens) == flux.shape[:1]):
        shapes = [np.shape(x) for x in (flux, ivar, and_mask, z_lens)]
        raise ValueError(f"flux, ivar, and_mask, z_lens have shapes {shapes}; expected three times (n, n_pix) and (n,)")
    ivar = usable_ivar(np.asarray(ivar, dtype=np.float32), and_mask, np.asarray(z_lens), settings, first)
    good = ivar > 0
    flux = kept(flux, good)
    weight = matched_filter.weight(ivar)
    fitted = not channels_only or not all(name.startswith(UNFITTED) for name in settings.channels)
    model = fit_galaxy(flux, ivar, z_lens, basis, settings, first, weight) if fitted else np.zeros_like(flux)
    return Prepared(flux, ivar, model, weight, good.mean(axis=1) >= settings.min_usable_fraction, settings)


def _channel(name: str, spectra: Prepared) -> np.ndarray:
    flux, ivar, model = spectra.flux, spectra.ivar, spectra.model
    if name == "flux":
        return np.clip(flux / _scale(np.abs(flux), ivar > 0), -10, 30)
    if name == "residual":
        return spectra.residual * np.sqrt(ivar)
    if name == "sqrt_ivar":
        root = np.sqrt(ivar)
        return np.clip(root / _scale(root, ivar > 0), 0, 5)
    if name.startswith("error_level_"):
        return _error_level(ivar, int(name.removeprefix("error_level_")))
    if name == "model":
        return np.clip(model / _scale(np.abs(model), ivar > 0), -5, 5)
    if name.startswith("matched_"):
        try:
            sigma = float(name.removeprefix("matched_"))
            classical = sigma == CLASSICAL_SIGMA
            return spectra.snr if classical else matched_filter.snr(spectra.residual, ivar, sigma)
        except (ValueError, ZeroDivisionError):
            pass
    raise ValueError(f"input.channels: {name!r}; expected flux, residual, sqrt_ivar, error_level_<width "
                     "in px>, model or matched_<width in px>")


def _error_level(ivar: np.ndarray, width: int) -> np.ndarray:
    """sqrt_ivar as its mean over `width` px of usable pixels, 0 on the others: what a pixel's own light and noise do to
    its reported error (docs/science.md) is left out, lest it be taken for a line."""
    good = (ivar > 0).astype(np.float32)
    root = np.sqrt(ivar)
    share = kernels.running_mean(good, width)
    mean = kernels.running_mean(root, width) / np.maximum(share, np.float32(1e-6))
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
            channel = channels[:, i]
            channel *= factor
            np.minimum(channel, np.float32(SIGNIFICANCE_LIMIT), out=channel)  # twice as fast as np.clip
            np.maximum(channel, np.float32(-SIGNIFICANCE_LIMIT), out=channel)


def _scale(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Mean of `values` over good pixels of each row, (n, 1); 1 where that is not positive."""
    mean = (values * good).sum(axis=1, dtype=np.float64) / np.maximum(good.sum(axis=1), 1)
    return np.where(mean > 0, mean, 1.0).astype(np.float32)[:, None]
