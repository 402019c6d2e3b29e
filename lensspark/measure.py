"""All that vetting measures of a hit, from its whole spectrum, so that cuts can be made later from a table alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lensspark import identity, lensing, profile
from lensspark.config import Input, Vetting
from lensspark.eigen import DLOGLAM, Basis
from lensspark.identity import Spectra
from lensspark.lines import source_redshift
from lensspark.spectrum import fit_galaxy, usable_ivar, window_pixels

CHUNK = 256  # hits at a time: the fits of 21 skewnesses of each take 60 MB
_OF_PROFILE = (
    "profile_flux", "profile_flux_err", "profile_wave", "profile_wave_err", "profile_width", "profile_width_err",
    "profile_chi2", "profile_dof", "alpha", "alpha_err", "alpha_low", "alpha_high", "p_skew_positive", "dchi2_skew",
    "dchi2_oii", "dchi2_double", "line_width_over_lsf", "line_width_over_lsf_err", "dchi2_spike",
)
_P_OTHER = tuple(f"p_{name}" for name in identity.NAMES if name not in ("lya", "oii"))
_SNR = {"sn_oii_veto" if line.name == "oii" else f"sn_{line.name}": line.name for line in identity.lines.IDENTITIES}
COLUMNS = ("z_source", *_OF_PROFILE, "identity", "p_lya", "p_oii", "p_other", *_P_OTHER, *_SNR, "theta_e",
           "theta_e_err", "p_multiple", "image_separation")


class _Examined(NamedTuple):
    rows: slice
    spectra: Spectra
    cuts: profile.Cutouts
    fits: profile.Fits
    companions: dict[str, dict[str, np.ndarray]]


def pad(arrays: Sequence[np.ndarray | None], fill: float = 0) -> np.ndarray:
    """1-D `arrays` of any lengths as rows (n, longest), filled up at their ends with `fill`; None is a row of it."""
    arrays = [np.empty(0) if array is None else np.asarray(array) for array in arrays]
    dtype = np.result_type(*(array for array in arrays if array.size)) if any(a.size for a in arrays) else float
    out = np.full((len(arrays), max((len(array) for array in arrays), default=0)), fill, dtype=dtype)
    for row, array in zip(out, arrays, strict=True):
        row[:len(array)] = array
    return out


def measure_hits(flux: np.ndarray, ivar: np.ndarray, and_mask: np.ndarray, wdisp: np.ndarray | None,
                 model: np.ndarray | None, loglam0: np.ndarray, z_lens: np.ndarray, line_wave: np.ndarray,
                 vdisp: np.ndarray, vdisp_err: np.ndarray, *, basis: Basis, window: tuple[float, ...],
                 input_settings: Input, settings: Vetting, distances: lensing.Distances | None = None
                 ) -> dict[str, np.ndarray]:
    """The columns COLUMNS of schema.VETTING of n hits, each (n,) float64, `identity` of str; NaN: not measured.

    flux [1e-17 erg/s/cm2/A], ivar, and_mask, wdisp [px], model [as flux]: (n, n_pix), whole spectra of which row i
    starts at log10 wavelength loglam0[i]; shorter ones are padded at their ends with ivar 0 (`pad`). Without wdisp the
    LSF is taken as 1.1 px and nothing is said about spikes; without model (None, not finite, or 0 throughout) nothing
    is measured outside `window`. z_lens, line_wave [A], vdisp, vdisp_err [km/s]: (n,), NaN where not known.
    distances: those of settings.cosmology, where somebody has them already.
    Raises ValueError for shapes that disagree.
    """
    n = len(flux)
    out = {name: np.full(n, np.nan) for name in COLUMNS}
    out["identity"] = np.full(n, identity.UNDECIDED, dtype=object)
    planes = (flux, ivar, and_mask, wdisp, model)
    z_lens, line_wave = np.asarray(z_lens, np.float64), np.asarray(line_wave, np.float64)
    for part in _examine(planes, loglam0, z_lens, line_wave, basis, window, input_settings, settings):
        rows = part.rows.start + part.cuts.rows
        columns = profile.measures(part.cuts, part.fits, settings.noise_correlation)
        columns |= _identities(part, z_lens[rows], settings)
        for name, values in columns.items():
            out[name][rows] = values
    out["z_source"] = source_redshift(line_wave)
    out["theta_e"], out["theta_e_err"] = lensing.einstein_radius(z_lens, out["z_source"], vdisp, vdisp_err,
                                                                 distances or lensing.distances(settings.cosmology))
    out["p_multiple"] = lensing.p_multiple(out["theta_e"], out["theta_e_err"], settings.fibre_diameter)
    out["image_separation"] = 2 * out["theta_e"]
    return out


def _identities(part: _Examined, z_lens: np.ndarray, settings: Vetting) -> dict[str, np.ndarray]:
    p = identity.posterior(part.cuts, part.fits, part.companions, z_lens, settings.identity_priors,
                           settings.noise_correlation)
    best = np.array(identity.NAMES, dtype=object)[p.argmax(axis=1)]
    columns = {f"p_{name}": p[:, k] for k, name in enumerate(identity.NAMES)}
    columns["p_other"] = sum(columns[name] for name in _P_OTHER)
    columns["identity"] = np.where(p.max(axis=1) >= settings.min_p_identity, best, identity.UNDECIDED)
    return columns | {column: identity.largest_snr(part.companions, name) for column, name in _SNR.items()}


def line_curves(*args: Any, **settings: Any) -> list[dict[str, np.ndarray] | None]:
    """What a plot of each hit's line shows; arguments as for `measure_hits`. None where the line cannot be fitted.

    `wave` (m,) Angstrom, `residual` and `sigma` (NaN where masked) 1e-17 erg/s/cm2/A, and there the best `skew`,
    `gauss`, `oii` and `double`, each with its constant.
    """
    out: list[dict[str, np.ndarray] | None] = [None] * len(args[0])
    for part in _examine(args[:5], *args[5:8], **settings):
        cuts = part.cuts
        grid = np.arange(cuts.flux.shape[1]) - cuts.flux.shape[1] // 2
        with np.errstate(divide="ignore"):
            sigma = np.where(cuts.ivar > 0, cuts.ivar**-0.5, np.nan) / cuts.angstrom
        planes = {"wave": cuts.wave(np.broadcast_to(grid, cuts.flux.shape)), "residual": cuts.flux / cuts.angstrom,
                  "sigma": sigma, **profile.curves(cuts, part.fits)}
        for i, row in enumerate(cuts.rows):
            out[part.rows.start + row] = {name: plane[i] for name, plane in planes.items()}
    return out


def companions(*args: Any, **settings: Any) -> list[dict[str, tuple[float, float]]]:
    """"identity/line" -> (wavelength in Angstrom, S/N) of each hit's companions that are measured; as `line_curves`."""
    out: list[dict[str, tuple[float, float]]] = [{} for _ in range(len(args[0]))]
    for part in _examine(args[:5], *args[5:8], **settings):
        for name, line in part.companions.items():
            snr = line["flux"] / line["error"]
            for i in np.flatnonzero(np.isfinite(snr)):
                out[part.rows.start + part.cuts.rows[i]][name] = float(line["wave"][i]), float(snr[i])
    return out


def _examine(planes: Sequence[np.ndarray | None], loglam0: np.ndarray, z_lens: np.ndarray, line_wave: np.ndarray,
             basis: Basis, window: tuple[float, ...], input_settings: Input, settings: Vetting) -> Iterator[_Examined]:
    """Residual, fits and companions, CHUNK hits at a time; hits whose line cannot be fitted are not among `cuts`."""
    shapes = {np.shape(plane) for plane in planes if plane is not None}
    sizes = {np.shape(values) for values in (loglam0, z_lens, line_wave)}
    if len(shapes) != 1 or sizes != {next(iter(shapes))[:1]}:
        raise ValueError(f"planes of shapes {sorted(shapes)} and columns of {sorted(sizes)}: expected (n, n_pix), (n,)")
    for start in range(0, len(planes[0]), CHUNK):
        rows = slice(start, start + CHUNK)
        z = np.asarray(z_lens[rows], np.float64)
        spectra = residuals(*(None if plane is None else np.asarray(plane[rows]) for plane in planes),
                            np.asarray(loglam0[rows]), z, basis, window, input_settings)
        cuts = profile.cut(spectra.residual, spectra.ivar, spectra.lsf, spectra.first_pixel,
                           np.asarray(line_wave[rows], np.float64), settings.profile_half_width_px)
        if not cuts.rows.size:
            continue
        fits = profile.fit_lines(cuts)
        chosen = Spectra(*(plane[cuts.rows] for plane in vars(spectra).values()))
        found = identity.companions(identity.masked(chosen, z[cuts.rows]), cuts, fits)
        yield _Examined(rows, spectra, cuts, fits, found)


def residuals(flux: np.ndarray, ivar: np.ndarray, and_mask: np.ndarray, wdisp: np.ndarray | None,
              model: np.ndarray | None, loglam0: np.ndarray, z_lens: np.ndarray, basis: Basis,
              window: tuple[float, ...], input_settings: Input) -> Spectra:
    """Whole spectra without their galaxy: fitted as the search does within `window`, the pipeline's model outside."""
    first_pixel = np.rint(loglam0 / DLOGLAM).astype(np.int64)
    z = np.nan_to_num(z_lens)
    anywhere = dataclasses.replace(input_settings, lens_lines=(), sky_lines=())
    good = usable_ivar(ivar, and_mask, z, anywhere, 0) > 0
    model = np.zeros_like(flux) if model is None else model
    modelled = np.isfinite(model) & (model != 0).any(axis=1, keepdims=True) & np.isfinite(flux)
    residual = np.where(modelled, flux - np.where(modelled, model, 0), 0).astype(np.float64)
    weight = np.where(good & modelled, ivar, 0).astype(np.float64)

    first, n_pix = window_pixels(window)
    index = first - first_pixel[:, None] + np.arange(n_pix)
    inside = (index >= 0) & (index < flux.shape[1])
    index = np.clip(index, 0, flux.shape[1] - 1)
    part = [np.take_along_axis(plane, index, axis=1) for plane in (flux, ivar, and_mask)]
    inner_ivar = usable_ivar(np.where(inside, part[1], 0).astype(np.float32), part[2], z, input_settings, first)
    inner_ivar = np.where(np.isfinite(part[0]), inner_ivar, np.float32(0))
    inner = np.where(inner_ivar > 0, part[0], 0).astype(np.float32)
    inner -= fit_galaxy(inner, inner_ivar, z, basis, input_settings, first)
    row = np.broadcast_to(np.arange(len(flux))[:, None], index.shape)
    residual[row[inside], index[inside]] = np.where(inner_ivar > 0, inner, 0)[inside]
    weight[row[inside], index[inside]] = inner_ivar[inside]
    lsf = np.full(flux.shape, np.nan) if wdisp is None else wdisp
    return Spectra(residual, weight, lsf, first_pixel)
