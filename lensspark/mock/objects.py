"""What the fibres of a mock plate look at: kinds, galaxies, stars, emission lines and artefacts that imitate lines.

An object belongs to its home (plate, fiberid) and is drawn from (seed, home plate) and its fibre alone. Plates come in
pairs: an odd plate looks at the same sky as the even plate before it and repeats some of its objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from lensspark import lines
from lensspark.config import Mock
from lensspark.eigen import Basis
from lensspark.mock import profiles
from lensspark.mock.instrument import FULL_FIRST, FULL_N, Plate, smooth_noise
from lensspark.spectrum import pixel, wavelength

N_FIBRES = 1000
KINDS = ("clean", "lya", "oii", "airglow", "cosmic", "lens_line", "crosstalk", "sky", "star", "broad")
REPEATABLE = ("clean", "lya", "oii", "lens_line")
_N_UNIFORM, _FEATURE_STEP, _MEAN_HALF_WIDTH = 40, 64, 75

# Emission of a galaxy, relative to its [OII] doublet: star formation; only strong emitters have the AGN-like share.
_NEBULAR = ((lines.NEIII, 0.12), (lines.HGAMMA, 0.14), (lines.HBETA, 0.32), (lines.OIII[0], 0.22),
            (lines.OIII[1], 0.66), (lines.HALPHA, 1.1), (lines.NII[0], 0.15), (lines.NII[1], 0.45),
            (lines.SII[0], 0.25), (lines.SII[1], 0.18))
_NUCLEAR = ((lines.NEV[0], 0.15), (lines.NEV[1], 0.4), (lines.NEIII, 0.25))
# MgII and fluorescent FeII* that star-forming galaxies emit (Erb et al. 2012, ApJ 759, 26): no galaxy template has it,
# and for z_lens > 0.36 they lie in the window. Their strengths, relative to [OII], are a choice.
_FLUORESCENT = ((lines.MGII[0], 0.12), (lines.MGII[1], 0.08), *((rest, 0.03) for rest in lines.FEII_FLUORESCENT))
_MGII_FWHM = 1500.0  # km/s
_BROAD_FWHM = (2000.0, 9000.0)  # km/s, lines of a nucleus or a quasar beside the galaxy
_LINE_TRIES = 24  # draws of a Lya line, of which the first that keeps to the limits is taken
_OII = float(np.mean(lines.OII))

# Redshift quantiles of LOWZ + CMASS; `draw` has the mean i magnitude with redshift (of Cao et al. 2020's lenses).
_Z_QUANTILES = ((0.0, 0.05, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 0.92, 0.98, 1.0),
                (0.15, 0.2, 0.3, 0.37, 0.44, 0.5, 0.545, 0.6, 0.66, 0.72, 0.8))
_APERTURE_LOSS = 0.45  # mag: total light to a 2" fibre
# (subclass, temperature in K, equivalent width of Balmer lines in A)
_STARS = (("F5", 6600.0, 4.0), ("A0", 9700.0, 12.0), ("G2", 5800.0, 2.0), ("K3", 4700.0, 0.7), ("WD", 14000.0, 30.0))


@dataclass(frozen=True)
class Objects:
    """Arrays (n,) unless said otherwise; `u` (n, 40) are uniform deviates and `g` (n, knots) unit normals of each."""

    kind: np.ndarray  # index into KINDS
    host: np.ndarray  # bright-line galaxy whose light leaks into the fibre before it
    object_id: np.ndarray
    is_repeat: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    z: np.ndarray
    mag_i: np.ndarray
    u: np.ndarray
    g: np.ndarray

    def __getitem__(self, rows: slice | np.ndarray) -> Objects:
        return Objects(**{name: value[rows] for name, value in vars(self).items()})


@dataclass
class Lines:
    """Emission lines: arrays (n_lines,); `primary` ones are those that the truth table describes."""

    rows: np.ndarray
    wave: np.ndarray
    flux: np.ndarray
    fwhm: np.ndarray
    alpha: np.ndarray
    primary: np.ndarray
    artefact: np.ndarray  # not light through the spectrograph: no line-spread function

    @staticmethod
    def join(parts: list[Lines]) -> Lines:
        return Lines(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])})


def _lines(rows, wave, flux, fwhm, alpha=0.0, primary=True, artefact=False) -> Lines:
    values = np.broadcast_arrays(rows, wave, flux, fwhm, alpha, primary, artefact)
    return Lines(*(np.array(v) for v in values))


def _base_kinds(u: np.ndarray, settings: Mock) -> tuple[np.ndarray, np.ndarray]:
    """Kind and host flag of fibres 0 ... 1001 of a plate; what a fibre is hit by decides what lies next to it."""
    edges = np.cumsum([getattr(settings, name) for name in KINDS[1:]])
    kind = (np.searchsorted(edges, u[:, 1], side="right") + 1) % len(KINDS)
    leaking = kind == KINDS.index("crosstalk")
    host = np.zeros(len(kind), dtype=bool)
    host[1:] = leaking[:-1]
    kind[host] = KINDS.index("lens_line")
    kind[N_FIBRES] = np.where(leaking[N_FIBRES] & ~host[N_FIBRES], 0, kind[N_FIBRES])  # the last fibre has no next one
    host[N_FIBRES + 1] = False
    return kind, host


def _plate_draws(seed: int, plate: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(np.random.SeedSequence([seed, plate]))
    u = rng.random((N_FIBRES + 2, _N_UNIFORM))
    return u, rng.standard_normal((N_FIBRES + 2, FULL_N // _FEATURE_STEP + 2), dtype=np.float32)


def draw(seed: int, plate: int, fiberids: np.ndarray, settings: Mock) -> Objects:
    """The objects in `fiberids` (1 ... 1000) of a plate."""
    u, g = _plate_draws(seed, plate)
    kind, host = _base_kinds(u, settings)
    repeatable = np.isin(kind, [KINDS.index(name) for name in REPEATABLE]) & ~host
    home = np.full(len(u), plate)
    is_repeat = repeatable & (u[:, 0] < settings.repeat) & (plate % 2 == 0)
    if plate % 2:
        u0, g0 = _plate_draws(seed, plate - 1)
        kind0, host0 = _base_kinds(u0, settings)
        again = np.isin(kind0, [KINDS.index(name) for name in REPEATABLE]) & ~host0 & (u0[:, 0] < settings.repeat)
        again &= repeatable
        u, g = np.where(again[:, None], u0, u), np.where(again[:, None], g0, g)
        kind, home, is_repeat = np.where(again, kind0, kind), np.where(again, plate - 1, home), again
    centre = np.random.default_rng(np.random.SeedSequence([seed, plate // 2 * 2, 1])).random(2)
    u, g, kind, host, home, is_repeat = (a[fiberids] for a in (u, g, kind, host, home, is_repeat))
    ra, dec = _positions(centre, u[:, 2], u[:, 3])
    z = np.where(host, 0.03 + 0.25 * u[:, 4], np.interp(u[:, 4], *_Z_QUANTILES))
    mag = np.interp(z, (0.15, 0.3, 0.5, 0.7), (17.7, 18.3, 19.3, 19.9)) + 0.42 * ndtri(u[:, 5])
    star = kind == KINDS.index("star")
    mag = np.where(star, 16.5 + 3.0 * u[:, 5], np.clip(mag, 17.5, 20.2))
    z = np.where(star, 2e-4 * ndtri(u[:, 4]), z)
    return Objects(kind, host, home.astype(np.int64) * 10_000 + fiberids, is_repeat, ra, dec, z, mag, u, g)


def _positions(centre: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Uniform within 1.49 degrees of the plate's centre, which lies in the north galactic cap; degrees."""
    ra0, dec0 = 130 + 110 * centre[0], np.degrees(np.arcsin(0.8 * centre[1]))
    radius, angle = 1.49 * np.sqrt(u), 2 * np.pi * v
    dec = dec0 + radius * np.sin(angle)
    return ra0 + radius * np.cos(angle) / np.cos(np.radians(dec)), dec


def continua(objects: Objects, basis: Basis, first_pixel: int, n_pix: int) -> tuple[np.ndarray, np.ndarray]:
    """(simple, real) continua, (n, n_pix) float32 each: what a pipeline's templates can fit, and what is there.

    They differ by features that no basis holds: the depth of the absorption lines wanders along the spectrum by 10 %.
    """
    n = len(objects.z)
    margin = _MEAN_HALF_WIDTH + 1  # so that the running mean does not depend on the pixels that are asked for
    first_pixel, n_pix = first_pixel - margin, n_pix + 2 * margin
    simple = np.zeros((n, n_pix), dtype=np.float32)
    star = objects.kind == KINDS.index("star")
    galaxy = ~star & (objects.kind != KINDS.index("sky"))
    rows = np.flatnonzero(galaxy)
    simple[rows] = _galaxies(objects[rows], basis, first_pixel, n_pix)
    rows = np.flatnonzero(star)
    simple[rows] = _stars(objects[rows], first_pixel, n_pix)
    start = first_pixel + margin - FULL_FIRST
    wander = smooth_noise(objects.g, FULL_N, _FEATURE_STEP)[:, start:start + n_pix - 2 * margin]
    inner = simple[:, margin:-margin]
    return inner, inner + np.float32(0.10) * wander * (inner - _running_mean(simple))


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over 151 px of (n, n_pix): (n, n_pix - 152), float32, from the pixel _MEAN_HALF_WIDTH + 1 on."""
    width = 2 * _MEAN_HALF_WIDTH + 1
    total = values.cumsum(axis=1, dtype=np.float64)
    return ((total[:, width:-1] - total[:, :-width - 1]) / width).astype(np.float32)


def _galaxies(objects: Objects, basis: Basis, first_pixel: int, n_pix: int) -> np.ndarray:
    """Mixtures of two members of the basis' population, scaled to the i magnitude (AB, 6900-8200 A) in the fibre."""
    sample = basis.coefficients
    first, second = ((objects.u[:, k] * len(sample)).astype(int) for k in (6, 7))
    share = 0.3 * objects.u[:, 8:9]
    coefficients = ((1 - share) * sample[first] + share * sample[second]).astype(np.float32)
    rest = [np.rint(pixel(wave / (1 + objects.z))).astype(int) - basis.first_pixel for wave in (6900.0, 8200.0)]
    sums = np.pad(np.cumsum(basis.vectors, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    low, high = (np.clip(r, 0, basis.vectors.shape[1]) for r in rest)
    mean = np.einsum("nk,kn->n", coefficients, sums[:, high] - sums[:, low]) / np.maximum(high - low, 1)
    scale = _flux_of_mag(objects.mag_i + _APERTURE_LOSS, 7500.0) / mean
    vectors = basis.at(objects.z, first_pixel, n_pix)
    spectra = (coefficients[:, None, :] @ vectors)[:, 0] * scale[:, None].astype(np.float32)
    return np.maximum(spectra, 0)


def _flux_of_mag(mag: np.ndarray, wave: float) -> np.ndarray:
    """Flux density of an AB magnitude, 1e-17 erg/s/cm2/A (Oke & Gunn 1983)."""
    return 10 ** (-0.4 * (mag + 2.408)) / wave**2 * 1e17


def _stars(objects: Objects, first_pixel: int, n_pix: int) -> np.ndarray:
    """Black bodies with Balmer absorption and, for the cool ones, the H and K lines."""
    wave = wavelength(first_pixel + np.arange(n_pix))
    type_ = (objects.u[:, 6] * len(_STARS)).astype(int)
    temperature = np.array([s[1] for s in _STARS])[type_, None]
    width = np.array([s[2] for s in _STARS])[type_]

    def planck(x: np.ndarray | float) -> np.ndarray:
        return x**-5.0 / np.expm1(1.4388e8 / (x * temperature))

    spectra = planck(wave) / planck(7500.0) * _flux_of_mag(objects.mag_i, 7500.0)[:, None]
    absorbed = np.zeros_like(spectra)
    rows = np.arange(len(type_))
    calcium = np.array([0.0, 0.0, 6.0, 12.0, 0.0])[type_] + np.where(type_ == 0, 3.0, 0.0)
    for rest, strength in ((lines.HALPHA, width), (lines.HBETA, width), (lines.HGAMMA, width), (lines.HDELTA, width),
                           (lines.CAII_K, calcium), (lines.CAII_H, calcium + width)):
        profiles.add_lines(absorbed, rows, np.full(len(rows), rest), 0.6 * strength, 300 + 50 * strength,
                           np.zeros(len(rows)), np.ones(len(rows)), first_pixel)
    return (spectra * np.exp(-absorbed)).astype(np.float32)


def star_subclass(objects: Objects) -> np.ndarray:
    return np.array([s[0] for s in _STARS])[(objects.u[:, 6] * len(_STARS)).astype(int)]


def emission(objects: Objects, settings: Mock, plate: Plate, observed: np.ndarray) -> Lines:
    """All lines of n objects; `observed` (n, 8) are uniform deviates of this observation, for the artefacts."""
    kinds = {name: np.flatnonzero(objects.kind == i) for i, name in enumerate(KINDS)}
    parts = [
        own_lines(objects, np.flatnonzero(~np.isin(objects.kind, [KINDS.index("sky"), KINDS.index("star")]))),
        lyman_alpha(objects.u, kinds["lya"], settings),
        _oii_interlopers(objects.u, kinds["oii"], settings),
        _airglow(observed, kinds["airglow"], plate),
        _cosmic_rays(observed, kinds["cosmic"], settings),
        _broad(objects.u, kinds["broad"], settings),
    ]
    return Lines.join(parts)


def own_lines(objects: Objects, rows: np.ndarray) -> Lines:
    """A galaxy's own emission: weak [OII] and company in a third, strong in lens_line, very strong in hosts."""
    u, host = objects.u[rows], objects.host[rows]
    strong = objects.kind[rows] == KINDS.index("lens_line")
    nuclear = strong & ~host & (u[:, 10] < 0.5)
    oii = np.where(strong, 10 ** (0.5 + 1.2 * u[:, 9]), np.where(u[:, 9] < 0.35, 10 ** (-0.5 + 3 * u[:, 9]), 0))
    oii = np.where(host, 250 + 700 * u[:, 9], oii)
    fwhm = np.where(host, 180.0, 250 + 250 * u[:, 11])
    stretch = 1 + objects.z[rows]
    parts = [_lines(rows, rest * stretch, 0.5 * oii, fwhm, 0.0, strong) for rest in lines.OII]
    parts += [_lines(rows, rest * stretch, ratio * oii, fwhm, 0.0, False) for rest, ratio in _NEBULAR]
    parts += [_lines(rows, rest * stretch, ratio * oii * nuclear, fwhm, 0.0, False) for rest, ratio in _NUCLEAR]
    forming = strong & ~host & ~nuclear
    parts += [_lines(rows, rest * stretch, ratio * oii * forming, fwhm, 0.0, False) for rest, ratio in _FLUORESCENT]
    parts += [_lines(rows, rest * stretch, 0.5 * oii * nuclear, _MGII_FWHM, 0.0, False) for rest in lines.MGII]
    return Lines.join(parts)


def _line_flux(u: np.ndarray, settings: Mock) -> np.ndarray:
    """Fluxes by the quantiles `line_flux`, evenly spaced in probability and interpolated in the logarithm."""
    quantiles = np.log(settings.line_flux)
    return np.exp(np.interp(u, np.linspace(0, 1, len(quantiles)), quantiles))


def _in_window(u: np.ndarray, settings: Mock) -> np.ndarray:
    low, high = settings.line_window
    return low + 5 + (high - low - 10) * u


def _flux_and_width(wave: np.ndarray, u: np.ndarray, v: np.ndarray, settings: Mock) -> tuple[np.ndarray, np.ndarray]:
    """Flux and intrinsic FWHM [km/s] of Gaussian draws that keep to min_line_fwhm [A] and min_line_peak.

    Draws outside the limits are drawn again (Li et al. 2018 select their artificial lines so); the peak is that of
    the line before the spectrograph. The uniform deviates u and v (n,) are the first draw and seed all further ones.
    """
    flux = _line_flux(_redrawn(u), settings)
    mean, scatter = settings.line_fwhm
    fwhm = mean + scatter * ndtri(np.clip(_redrawn(v), 1e-9, 1 - 1e-9))
    angstrom = fwhm / lines.LIGHT_KMS * wave
    peak = flux * profiles.FWHM_OF_SIGMA / (np.sqrt(2 * np.pi) * np.maximum(angstrom, 1e-9))
    kept = (angstrom >= max(settings.min_line_fwhm, 1e-3)) & (peak >= settings.min_line_peak)
    chosen = np.where(kept.any(axis=0), kept.argmax(axis=0), peak.argmax(axis=0)), np.arange(len(wave))
    return flux[chosen], np.maximum(fwhm, lines.LIGHT_KMS * settings.min_line_fwhm / wave)[chosen]


def _redrawn(u: np.ndarray) -> np.ndarray:
    """(_LINE_TRIES, n) independent uniform deviates, the first row u (n,), the others mixed from its bits (splitmix64,
    Steele et al. 2014, OOPSLA)."""
    tries = np.arange(_LINE_TRIES, dtype=np.uint64)[:, None]
    x = (u * 2.0**53).astype(np.uint64) * np.uint64(2048) + tries * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    mixed[0] = u
    return mixed


def lyman_alpha(u: np.ndarray, rows: np.ndarray, settings: Mock) -> Lines:
    """Skew-normal lines; double-peaked ones get a fainter symmetric peak 250-700 km/s bluewards."""
    u = u[rows]
    wave = _in_window(u[:, 20], settings)
    flux, fwhm = _flux_and_width(wave, u[:, 21], u[:, 22], settings)
    alpha = np.where(u[:, 23] < settings.symmetric, 0.0, 8.0 * u[:, 24])
    double = u[:, 25] < settings.double_peaked
    ratio = np.where(double, 0.1 + 0.6 * u[:, 26], 0.0)
    blue = wave * (1 - (250 + 450 * u[:, 27]) / lines.LIGHT_KMS)
    return Lines.join([
        _lines(rows, wave, flux / (1 + ratio), fwhm, alpha),
        _lines(rows[double], blue[double], (flux * ratio / (1 + ratio))[double], 0.8 * fwhm[double]),
    ])


def _broad(u: np.ndarray, rows: np.ndarray, settings: Mock) -> Lines:
    """One broad line anywhere in the window; the S/N sets its flux later."""
    low, high = _BROAD_FWHM
    return _lines(rows, _in_window(u[rows, 20], settings), 1.0, low + (high - low) * u[rows, 22])


def _oii_interlopers(u: np.ndarray, rows: np.ndarray, settings: Mock) -> Lines:
    """[OII] at z = 0.02-0.34, barely resolved, and the lines that give it away redwards."""
    u = u[rows]
    flux, fwhm = _line_flux(u[:, 21], settings), 120 + 200 * u[:, 22]
    stretch = _in_window(u[:, 20], settings) / _OII
    ratio = 0.7 + 0.75 * u[:, 23]  # 3730 / 3727 between the density limits
    oiii, balmer = 0.2 + 1.8 * u[:, 24], 0.25 + 0.3 * u[:, 25]
    parts = [_lines(rows, rest * stretch, flux * share, fwhm)
             for rest, share in zip(lines.OII, (1 / (1 + ratio), ratio / (1 + ratio)), strict=True)]
    for rest, relative in ((lines.HBETA, balmer), (lines.OIII[0], oiii / 3), (lines.OIII[1], oiii),
                           (lines.HALPHA, 3.1 * balmer), (lines.NII[1], balmer)):
        parts.append(_lines(rows, rest * stretch, flux * relative, fwhm, 0.0, False))
    return Lines.join(parts)


def _airglow(observed: np.ndarray, rows: np.ndarray, plate: Plate) -> Lines:
    """One of the plate's three wavelengths, half a pixel of jitter, unresolved; the S/N sets the flux later."""
    u = observed[rows]
    wave = plate.airglow[(3 * u[:, 0]).astype(int)] * 10 ** (1e-4 * (u[:, 1] - 0.5))
    return _lines(rows, wave, np.ones(len(rows)), 1.0)


def _cosmic_rays(observed: np.ndarray, rows: np.ndarray, settings: Mock) -> Lines:
    """Spikes of 1-3 px, narrower than the line-spread function."""
    u = observed[rows]
    fwhm = profiles.PIXEL_KMS * profiles.FWHM_OF_SIGMA * (0.15 + 0.45 * u[:, 1])
    return _lines(rows, _in_window(u[:, 0], settings), np.ones(len(rows)), fwhm, 0.0, True, True)
