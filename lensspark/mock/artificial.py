"""Artificial spectra made of a survey's own: galaxies drawn from its bins, in front of its sky and with its noise.

Li et al. (2018) add BOSS sky spectra and noise to galaxies made of eigenvectors. `noise = "paper"` is that: a sky
fibre's spectrum and Gaussian noise of a galaxy's errors on top, though the sky fibre has noise of its own. "sky" takes
the sky fibre's spectrum in units of its errors times the galaxy's errors: the noise once, as correlated, skewed and
spoilt by airglow as it is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from lensspark.config import Input, Mock, SurveyTraining
from lensspark.galaxy_bins import Bins, mean_flux, sound_ivar
from lensspark.mock import instrument, objects
from lensspark.mock.objects import KINDS, Objects
from lensspark.mock.survey import shine, truth_of
from lensspark.spectrum import pixel, wavelength

SPECTRA_AT_ONCE = 500  # per block: its planes and the pieces on the way are about 60 MB
_LOOK_ALIKES = 8  # a galaxy's error vector is that of one of so many galaxies of the plate about as bright
_N_UNIFORM = 64
_SKY_HAS = ("airglow", "crosstalk", "star")  # real sky fibres bring the first; the others need a neighbour or no galaxy


@dataclass(frozen=True)
class Backdrops:
    """Fibres of one plate on the window. First n_galaxy galaxies, faintest first, then n_sky fibres on blank sky.

    mjd, run2d (n,), mean flux density of the galaxies (n_galaxy,), planes (n, n_pix), and of the sky fibres flux and
    flux in units of its error, (n_sky, n_pix), NaN where unusable.
    """

    mjd: np.ndarray
    run2d: np.ndarray
    mean_flux: np.ndarray
    ivar: np.ndarray
    and_mask: np.ndarray
    wdisp: np.ndarray
    sky: np.ndarray
    residual: np.ndarray

    @classmethod
    def of(cls, columns: dict[str, np.ndarray], settings: Input, first: int) -> Backdrops:
        """From columns of schema.BACKDROPS of sound fibres, planes (n, n_pix) from pixel `first` on."""
        ivar = sound_ivar(columns["ivar"], columns["and_mask"], settings, first)
        mean = mean_flux(columns["flux"], ivar)
        is_sky = columns["is_sky"].astype(bool)
        galaxies = np.flatnonzero(~is_sky)
        galaxies = galaxies[np.argsort(mean[galaxies], kind="stable")]
        sky = np.flatnonzero(is_sky)
        rows = np.concatenate([galaxies, sky])
        blank = np.where(ivar[sky] > 0, columns["flux"][sky], np.float32(np.nan))
        wdisp = columns["wdisp"][rows]
        typical = np.array([np.median(row[row > 0]) if (row > 0).any() else 1.0 for row in wdisp], np.float32)
        return cls(columns["mjd"][rows], columns["run2d"][rows], mean[galaxies], columns["ivar"][rows],
                   columns["and_mask"][rows], np.where(wdisp > 0, wdisp, typical[:, None]), blank,
                   blank * np.sqrt(ivar[sky]))


def sound_fibres(flux: np.ndarray, ivar: np.ndarray, and_mask: np.ndarray, is_sky: np.ndarray, settings: Input,
                 first: int) -> np.ndarray:
    """Which fibres (n,) may be backdrops: enough usable pixels, and positive mean flux unless on blank sky."""
    good = sound_ivar(ivar, and_mask, settings, first)
    enough = (good > 0).mean(axis=1) >= settings.min_usable_fraction
    return enough & (is_sky | (np.nan_to_num(mean_flux(flux, good)) > 0))


def artificial(seed: int, plate: int, block: int, n: int, backdrops: Backdrops, bins: Bins, settings: SurveyTraining,
               mock: Mock, first: int) -> dict[str, np.ndarray]:
    """The first `n` spectra of `block` (at most SPECTRA_AT_ONCE) of a plate: columns of schema.TRAINING and truth.

    Kinds and lines are those of `mock`, but for airglow, crosstalk and stars, whose shares are clean galaxies: see
    _SKY_HAS. Spectrum i depends on (seed, plate, block, i), the bins and the plate's backdrops alone. Planes are
    (n, n_pix) float32 or int32 from pixel `first` on. Raises ValueError for kinds that add up to more than 1.
    """
    n_pix = backdrops.ivar.shape[1]
    u, normals, noise = (_stream(seed, plate, block, part, draw, (n, width)) for part, draw, width in (
        (0, "random", _N_UNIFORM), (1, "standard_normal", bins.k), (2, "standard_normal", n_pix)))
    z, flux, light = bins.draw(u[:, 40:43], normals, n_pix, settings.coefficients == "bootstrap")
    targets = _targets(u, z, plate, block, mock)
    sky = (u[:, 43] * len(backdrops.sky)).astype(int)
    is_sky = targets.kind == KINDS.index("sky")
    light = np.where(is_sky[:, None], np.float32(0), light)
    fibre = np.where(is_sky, len(backdrops.mean_flux) + sky, _alike(backdrops.mean_flux, flux, u[:, 44]))
    ivar = np.where(np.isnan(light), np.float32(0), backdrops.ivar[fibre])
    light = np.nan_to_num(light, copy=False)
    base = np.divide(1, ivar, out=np.ones_like(ivar), where=ivar > 0)
    conditions = instrument.observe_conditions(seed, plate, int(backdrops.mjd[0]))
    emitted = objects.emission(targets, mock, conditions, u[:, 48:56])
    sigma = np.zeros(len(emitted.rows))
    if settings.convolve_lines:
        centre = np.clip(np.rint(pixel(emitted.wave)).astype(int) - first, 0, n_pix - 1)
        sigma = backdrops.wdisp[fibre[emitted.rows], centre]
    # The published recipe leaves out the lines' own photon noise.
    response = instrument.variance_response(wavelength(first + np.arange(n_pix))) * (settings.noise == "sky")
    added = response * np.sqrt(base)
    line, other, factor = shine(targets, emitted, np.maximum(sigma, 0.01), mock, u[:, 45], ivar > 0, base, added, first)
    variance = base + added * (line + other)
    noise = _noise(settings.noise, backdrops, sky, noise, np.sqrt(variance))
    # Reported errors follow the noise, as those of the sky fibre do: its significances stay what they are. A spectrum
    # of blank sky has the fibre's own errors.
    raised = np.where(is_sky[:, None], np.float32(1), np.exp(0.5 * response * noise / np.sqrt(variance)))
    spectrum = light + line + other + raised * noise
    ivar = np.where(ivar > 0, 1 / (raised**2 * variance), np.float32(0))
    return {
        "plate": np.full(n, plate, np.int32), "mjd": backdrops.mjd[fibre], "run2d": backdrops.run2d[fibre],
        "fiberid": (block * SPECTRA_AT_ONCE + np.arange(1, n + 1)).astype(np.int32), "z": z,
        "flux": np.where(ivar > 0, spectrum, np.float32(0)), "ivar": ivar, "and_mask": backdrops.and_mask[fibre],
    } | truth_of(targets, emitted, line, ivar, factor)


def _stream(seed: int, plate: int, block: int, part: int, draw: str, shape: tuple[int, int]) -> np.ndarray:
    """Random numbers (n, width), row by row, so that a row does not depend on how many follow."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, plate, block, part]))
    return getattr(rng, draw)(shape, dtype=np.float32 if draw == "standard_normal" else np.float64)


def _targets(u: np.ndarray, z: np.ndarray, plate: int, block: int, mock: Mock) -> Objects:
    shares = dataclasses.replace(mock, **dict.fromkeys(_SKY_HAS, 0.0))
    edges = np.cumsum([getattr(shares, name) for name in KINDS[1:]])
    if edges[-1] > 1 + 1e-9:
        raise ValueError(f"mock_training: the fractions of the kinds add up to {edges[-1]:.3f}; expected at most 1")
    kind = (np.searchsorted(edges, u[:, 1], side="right") + 1) % len(KINDS)
    n = len(z)
    mine = u[:, :40].copy()
    mine[:, 9] = np.where(kind == KINDS.index("lens_line"), u[:, 9], 1.0)  # weak [OII] is in the measured galaxies
    unknown = np.full(n, np.nan)
    number = plate * 10**9 + block * SPECTRA_AT_ONCE + np.arange(1, n + 1)
    return Objects(kind, np.zeros(n, bool), number, np.zeros(n, bool), unknown, unknown, z, unknown, mine,
                   np.zeros((n, 0), np.float32))


def _alike(fluxes: np.ndarray, flux: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Index into ascending `fluxes` of one of the _LOOK_ALIKES nearest in rank to each `flux` (n,)."""
    count = min(_LOOK_ALIKES, len(fluxes))
    lowest = np.clip(np.searchsorted(fluxes, flux) - count // 2, 0, len(fluxes) - count)
    return lowest + (u * count).astype(int)


def _noise(kind: str, backdrops: Backdrops, sky: np.ndarray, normals: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Sky and noise (n, n_pix) of errors `sigma`; where a sky fibre is unusable, Gaussian noise alone."""
    if kind == "paper":
        return np.nan_to_num(backdrops.sky[sky]) + normals * sigma
    residual = backdrops.residual[sky]
    return np.where(np.isnan(residual), normals, residual) * sigma
