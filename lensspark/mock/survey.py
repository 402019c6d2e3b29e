"""`observe_plate`: the spectra, catalogue and truth of some fibres of a mock plate.

Every number is drawn from (seed, plate), (seed, plate, mjd) or (seed, plate, mjd, fiberid): a spectrum does not depend
on which others are made with it, on where, nor on the wavelength range that is asked for.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from lensspark import lines, schema
from lensspark.config import Mock
from lensspark.eigen import DLOGLAM, Basis
from lensspark.mock import instrument, objects, profiles
from lensspark.mock.instrument import FULL_FIRST, FULL_N
from lensspark.mock.objects import KINDS, N_FIBRES, Objects
from lensspark.spectrum import pixel, wavelength

RUN2D = "v5_7_0"
_CHUNK = 250  # fibres at a time: 10 eigenspectra of each over the whole range are 47 MB
_N_SCALARS = 32
_ARTEFACT_SNR = {"airglow": (4.0, 20.0), "cosmic": (4.0, 40.0), "broad": (4.0, 60.0)}
_CROSSTALK = 0.03  # of the next fibre's light
_SCALE_STEPS = 8  # each at least halves the error in ln S/N
_CALIBRATION_WIGGLE = 0.012  # of a fibre's flux calibration beside the plate's, over about 90 px
_WRONG_REDSHIFT = 0.006  # of the galaxies; the pipeline's model then has none of their lines
_SKY_ERROR, _SKY_SHIFT = 0.006, 0.015  # sky subtraction: of the sky's flux, and px of wavelength


def observe_plate(
    seed: int, plate: int, mjd: int, fiberids: np.ndarray, settings: Mock, basis: Basis,
    first_pixel: int | None = None, n_pix: int | None = None, oracle: bool = False,
) -> dict[str, np.ndarray]:
    """Columns of n = len(fiberids) mock spectra: schema's KEY, CATALOGUE, PIXELS and TRUTH (but path and fault).

    fiberids: 1 ... 1000, any order. Pixels first_pixel ... first_pixel + n_pix - 1 of the 1e-4 dex grid (default: the
    plate's own 4600-4660); planes are (n, n_pix) float32 or int32, the rest (n,). Truth that does not exist is NaN.
    line_flux sums a double line's peaks; line_fwhm and line_alpha are the brighter peak's; sn_median, line_peak and
    line_snr are those of the pixels asked for, and a line drawn by its S/N has it there. `oracle` adds what nobody can
    know, (n, n_pix) each: `background`, the flux without noise and line, `line`, and `true_sigma` of the noise.
    Raises ValueError for fibres or pixels out of range, kinds that add up to more than 1, or a basis without a sample
    of galaxies.
    """
    fiberids = np.asarray(fiberids, dtype=np.int64)
    if fiberids.size and not (fiberids.min() >= 1 and fiberids.max() <= N_FIBRES):
        raise ValueError(f"fiberids {fiberids.min()} ... {fiberids.max()}: expected 1 to {N_FIBRES}")
    if (total := sum(getattr(settings, name) for name in KINDS[1:])) > 1 + 1e-9:
        raise ValueError(f"mock: the fractions of the kinds add up to {total:.3f}; expected at most 1")
    if not len(basis.coefficients):
        raise ValueError("basis: holds eigenspectra only; expected one with a sample of galaxies to draw from")
    conditions = instrument.observe_conditions(seed, plate, mjd)
    first = conditions.first_pixel if first_pixel is None else first_pixel
    n_pix = conditions.n_pix if n_pix is None else n_pix
    if not (first >= FULL_FIRST and first + n_pix <= FULL_FIRST + FULL_N):
        raise ValueError(f"pixels {first} ... {first + n_pix - 1}: expected {FULL_FIRST} to {FULL_FIRST + FULL_N - 1}")
    chunks = [
        _observe(seed, plate, mjd, fiberids[i : i + _CHUNK], settings, basis, conditions, first, n_pix,
                 oracle)
        for i in range(0, max(len(fiberids), 1), _CHUNK)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _randoms(seed: int, plate: int, mjd: int, fiberids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scalars (n, 32), normals (n, FULL_N + 1) and uniforms (n, FULL_N) of each observation, one stream per fibre."""
    scalars = np.empty((len(fiberids), _N_SCALARS))
    normals = np.empty((len(fiberids), FULL_N + 1), dtype=np.float32)
    uniforms = np.empty((len(fiberids), FULL_N), dtype=np.float32)
    for i, fiberid in enumerate(fiberids):
        rng = np.random.Generator(np.random.Philox(key=[seed, plate << 40 | mjd << 16 | int(fiberid)]))
        rng.random(out=scalars[i])
        rng.standard_normal(out=normals[i], dtype=np.float32)
        rng.random(out=uniforms[i], dtype=np.float32)
    return scalars, normals, uniforms


def _observe(seed, plate, mjd, fiberids, settings, basis, conditions, first, n_pix, oracle) -> dict[str, np.ndarray]:
    pixels = slice(first - FULL_FIRST, first - FULL_FIRST + n_pix)
    targets = objects.draw(seed, plate, fiberids, settings)
    scalars, normals, uniforms = _randoms(seed, plate, mjd, fiberids)
    lsf = instrument.lsf_of_fibres(conditions, fiberids[:, None], np.arange(FULL_N)[None, pixels])
    simple, light = objects.continua(targets, basis, first, n_pix)
    emitted = objects.emission(targets, settings, conditions, scalars[:, :8])
    leaking = np.flatnonzero(targets.kind == KINDS.index("crosstalk"))
    leaked, leaked_light = _leaked(seed, plate, fiberids, leaking, settings, basis, first, n_pix)
    light[leaking] += leaked_light
    emitted = objects.Lines.join([emitted, leaked])
    centre = np.clip(np.rint(pixel(emitted.wave)).astype(int) - FULL_FIRST, 0, FULL_N - 1)
    sigma = instrument.lsf_of_fibres(conditions, fiberids[emitted.rows], centre)

    scale = np.exp(instrument.FIBRE_SCALE_SCATTER * ndtri(scalars[:, 8])).astype(np.float32)[:, None]
    sky = scale * conditions.sky[pixels].astype(np.float32)
    measured, and_mask, or_mask = instrument.masks(conditions, uniforms, scalars[:, 9:14], pixels)

    def variance(flux: np.ndarray) -> np.ndarray:
        per_flux, per_sky = (getattr(conditions, f"{k}_variance")[pixels].astype(np.float32) for k in ("object", "sky"))
        return scale * (per_flux * np.maximum(flux, 0) + per_sky * sky)

    response = instrument.variance_response(wavelength(first + np.arange(n_pix)))
    plain = variance(light)
    added = response * np.sqrt(plain)  # variance per flux of a line
    line, other, factor = shine(targets, emitted, sigma, settings, scalars[:, 15], measured, plain, added, first)
    light += other + line
    true_variance = plain + added * (other + line)
    noise = instrument.correlated(normals[:, pixels.start : pixels.stop + 1])
    # Reported variances follow the noise, and scatter as variances estimated from a few exposures do.
    spread = np.float32(np.sqrt(12) * instrument.VARIANCE_SCATTER) * (uniforms[:, pixels] - np.float32(0.5))
    ivar = np.where(measured, np.exp(spread - response * noise) / true_variance, np.float32(0))
    true_sigma = np.sqrt(true_variance) * conditions.true_over_reported[pixels].astype(np.float32)
    noise *= true_sigma
    flux = light * _calibration(conditions, scalars[:, 16:32], n_pix, pixels)
    flux += scale * _sky_residual(conditions.sky, scalars[:, 20:22], pixels)
    columns = _catalogue(seed, plate, mjd, fiberids, targets, scalars, conditions)
    columns |= truth_of(targets, emitted, line, ivar, factor)
    own_lines = np.isin(targets.kind, [KINDS.index("lens_line"), KINDS.index("clean")])
    own_lines &= scalars[:, 17] >= _WRONG_REDSHIFT
    simple[own_lines] += (other + line)[own_lines]
    columns |= {
        "loglam0": np.full(len(fiberids), first * DLOGLAM),
        "flux": flux + noise, "ivar": ivar, "and_mask": and_mask, "or_mask": or_mask, "wdisp": lsf, "sky": sky,
        "model": simple,
    }
    if oracle:
        columns |= {"background": flux - line, "line": line, "true_sigma": true_sigma}
    columns["sn_median"] = np.median(columns["flux"] * np.sqrt(ivar), axis=1).astype(np.float64)
    return columns


def shine(targets: Objects, emitted: objects.Lines, sigma: np.ndarray, settings: Mock, u: np.ndarray,
          measured: np.ndarray, variance: np.ndarray, added: np.ndarray, first: int
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectra (n, n_pix) of the primary lines and of all others, and the factor (n,) that scaled lines to their S/N.

    sigma (n_lines,): line-spread function at each line, px; u (n,): uniform deviates; measured (n, n_pix): where there
    is a measurement; variance (n, n_pix): without any line, and `added` what each unit of a line's light adds to it.
    """
    line, other = _render(emitted, np.where(emitted.artefact, 0.01, sigma), first, measured.shape)
    factor = _line_scale(targets, settings, u, line * measured, variance + added * other, added)
    line *= factor[:, None].astype(np.float32)
    own = np.isin(targets.kind, [KINDS.index("oii")])
    other[own] *= factor[own, None].astype(np.float32)
    return line, other, factor


def _render(emitted: objects.Lines, sigma: np.ndarray, first: int, shape: tuple[int, int]
            ) -> tuple[np.ndarray, np.ndarray]:
    """Spectra (n, n_pix) of the primary lines and of all others, seen through an LSF of `sigma` px (n_lines,)."""
    line, other = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for spectra, chosen in ((line, emitted.primary), (other, ~emitted.primary)):
        chosen = chosen & (emitted.flux > 0)
        args = [getattr(emitted, name)[chosen] for name in ("rows", "wave", "flux", "fwhm", "alpha")]
        profiles.add_lines(spectra, *args, sigma[chosen], first)
    return line, other


def _leaked(seed: int, plate: int, fiberids: np.ndarray, rows: np.ndarray, settings: Mock, basis: Basis, first: int,
            n_pix: int) -> tuple[objects.Lines, np.ndarray]:
    """What the fibres `rows`, of kind crosstalk, receive from the bright-line galaxies in the fibres after them."""
    hosts = objects.draw(seed, plate, fiberids[rows] + 1, settings)
    emitted = objects.own_lines(hosts, np.arange(len(rows)))
    emitted.rows, emitted.flux = rows[emitted.rows], _CROSSTALK * emitted.flux
    return emitted, np.float32(_CROSSTALK) * objects.continua(hosts, basis, first, n_pix)[1]


def _line_scale(targets: Objects, settings: Mock, u: np.ndarray, line: np.ndarray, variance: np.ndarray,
                added: np.ndarray) -> np.ndarray:
    """Factor (n,) on each spectrum's primary lines that gives those drawn by S/N the S/N they were drawn with.

    The noise is that of `variance` without the lines and, in proportion `added`, of the lines' own light: the factor
    solves factor = S/N / sqrt(sum line^2 / (variance + factor added line)) by iteration.
    """
    factor = np.ones(len(line))
    ranges = dict(_ARTEFACT_SNR)
    if settings.line_snr:
        ranges |= dict.fromkeys(("lya", "oii"), settings.line_snr)
    for name, (low, high) in ranges.items():
        rows = np.flatnonzero((targets.kind == KINDS.index(name)) & line.any(axis=1))
        for _ in range(_SCALE_STEPS):
            noise = variance[rows] + factor[rows, None].astype(np.float32) * added[rows] * line[rows]
            unit = np.sqrt(np.sum(line[rows] ** 2 / noise, axis=1, dtype=np.float64))
            wanted = low + (high - low) * u[rows]
            # Of a spike on lost pixels a tail may be left that is too faint for single precision: it stays as it is.
            factor[rows] = np.divide(wanted, unit, out=np.ones(len(rows)), where=unit > 1e-12)
    return factor


def _calibration(conditions, u: np.ndarray, n_pix: int, pixels: slice) -> np.ndarray:
    """Error of the flux calibration, (n, n_pix) about 1: the plate's, and the fibre's own slow waves."""
    x = np.linspace(0, 1, FULL_N, dtype=np.float32)[pixels]
    wave = np.ones((len(u), n_pix), dtype=np.float32)
    for k in range(4):
        turns = 4.0 + 3.0 * k + 3.0 * u[:, 2 * k + 8]
        phase = (turns[:, None] * x + u[:, 2 * k + 9, None]).astype(np.float32)
        wave += np.float32(_CALIBRATION_WIGGLE / np.sqrt(2)) * np.sin(np.float32(2 * np.pi) * phase)
    return wave + conditions.calibration[pixels].astype(np.float32)


def _sky_residual(sky: np.ndarray, u: np.ndarray, pixels: slice) -> np.ndarray:
    """What imperfect subtraction leaves of the plate's sky (FULL_N,), (n, n_pix)."""
    amount, shift = (ndtri(u) * (_SKY_ERROR, _SKY_SHIFT)).astype(np.float32).T[:, :, None]
    return amount * sky[pixels].astype(np.float32) + shift * np.gradient(sky)[pixels].astype(np.float32)


def _catalogue(seed, plate, mjd, fiberids, targets: Objects, s: np.ndarray, conditions) -> dict[str, np.ndarray]:
    """KEY and CATALOGUE columns; a few redshifts, classes and dispersions are wrong, as in any pipeline."""
    n = len(fiberids)
    sky, star = (targets.kind == KINDS.index(name) for name in ("sky", "star"))
    u = targets.u
    z_err = 4e-5 * 10 ** (0.35 * (targets.mag_i - 18.5) / 2 + 0.15 * ndtri(s[:, 16]))
    wrong = (s[:, 17] < _WRONG_REDSHIFT) & ~star
    z = targets.z + z_err * ndtri(s[:, 18])
    z = np.where(sky | wrong, 0.05 + 0.9 * s[:, 19], z)
    zwarning = np.where(sky, 1 | 4, np.where(wrong, 4, np.where(s[:, 17] > 0.98, 16, 0))).astype(np.int64)
    vdisp_err = 15 + 45 * s[:, 22] * (targets.mag_i - 16.5) / 3
    vdisp = np.clip(230 + 45 * ndtri(u[:, 12]) + vdisp_err * ndtri(s[:, 23]), 0, 850)
    vdisp = np.where(s[:, 9] < 0.02, 850.0, np.where(s[:, 9] > 0.99, 0.0, vdisp))
    vdisp, vdisp_err = (np.where(star | sky, 0.0, v) for v in (vdisp, vdisp_err))
    class_noqso = np.where(star, "STAR", "GALAXY")
    lens_line = targets.kind == KINDS.index("lens_line")
    subclass = np.where(star, objects.star_subclass(targets), "")
    subclass = np.where(targets.host, "STARFORMING", subclass)
    active = np.where(u[:, 10] < 0.3, "BROADLINE", np.where(u[:, 10] < 0.6, "AGN", "STARFORMING"))
    subclass = np.where(lens_line & ~targets.host & (u[:, 13] < 0.3), active, subclass)
    standard = star & (u[:, 14] < 0.6)
    kind = np.where(sky, "SKY", np.where(standard, "SPECTROPHOTO_STD", "GALAXY"))
    return {
        "plate": np.full(n, plate, np.int32), "mjd": np.full(n, mjd, np.int32), "fiberid": fiberids.astype(np.int32),
        "run2d": np.full(n, RUN2D), "ra": targets.ra, "dec": targets.dec, "objtype": kind,
        "class": np.where((s[:, 24] < 0.005) & ~star, "QSO", class_noqso), "subclass": subclass,
        "z": z, "z_err": z_err, "zwarning": zwarning,
        "class_noqso": class_noqso, "subclass_noqso": subclass, "z_noqso": z, "z_err_noqso": z_err,
        "zwarning_noqso": zwarning, "vdisp": vdisp, "vdisp_err": vdisp_err,
        "mag_i": np.where(sky, np.nan, targets.mag_i), "plate_quality": np.full(n, "good"),
        "sky_chi2": np.full(n, conditions.sky_chi2),
    }


def truth_of(targets: Objects, emitted: objects.Lines, line: np.ndarray, ivar: np.ndarray, factor: np.ndarray
             ) -> dict[str, np.ndarray]:
    """TRUTH columns beside KEY; NaN where there is no injected line."""
    n = len(targets.z)
    truth = {name: np.full(n, np.nan) for name in ("line_wave", "line_flux", "line_fwhm", "line_alpha")}
    chosen = np.flatnonzero(emitted.primary)
    order = chosen[np.argsort(emitted.flux[chosen], kind="stable")]  # the brightest line of a spectrum is written last
    rows = emitted.rows[order]
    truth["line_wave"][rows], truth["line_fwhm"][rows] = emitted.wave[order], emitted.fwhm[order]
    truth["line_alpha"][rows] = emitted.alpha[order]
    truth["line_flux"][rows] = (np.bincount(rows, weights=emitted.flux[order], minlength=n) * factor)[rows]
    injected = ~np.isnan(truth["line_wave"])
    truth["line_peak"] = np.where(injected, line.max(axis=1), np.nan)
    snr = np.sqrt(np.einsum("np,np,np->n", line, line, ivar, dtype=np.float64))
    truth["line_snr"] = np.where(injected, snr, np.nan)
    galaxy = ~np.isin(targets.kind, [KINDS.index("sky"), KINDS.index("star")])
    rest = {KINDS.index("lya"): lines.LYA, KINDS.index("oii"): float(np.mean(lines.OII))}
    wave_rest = np.array([rest.get(k, np.nan) for k in range(len(KINDS))])[targets.kind]
    return truth | {
        "kind": np.array(KINDS)[targets.kind], "object_id": targets.object_id, "is_repeat": targets.is_repeat,
        "z_lens": np.where(galaxy, targets.z, np.nan), "z_source": truth["line_wave"] / wave_rest - 1,
    }


def truth_columns() -> list[str]:
    """Names of the TRUTH columns that `observe_plate` gives."""
    return [name for name in schema.TRUTH.names if name not in ("path", "fault")]
