"""What a singular isothermal sphere (SIS) makes of a velocity dispersion: Einstein radius, and how likely images are.

theta_E = 4 pi (sigma / c)^2 D_ls / D_s (Schneider, Ehlers & Falco 1992, Gravitational Lenses, sect. 8.1.4), D angular
diameter distances. sigma is the pipeline's stellar dispersion in the fibre as it is; lens models put it within 10 % of
the SIS's own (Bolton et al. 2008, ApJ 682, 964).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

C_KMS = 299792.458
ARCSEC = 180 * 3600 / np.pi
VDISP_RAIL = 840.0  # km/s: the pipeline's templates end at 850
_Z_MAX, _N_TABLE = 20.0, 4001
_DISPERSIONS = np.linspace(-4, 4, 41)  # in errors, for the average over the dispersion's error


class Distances(NamedTuple):
    """A cosmology's distances: redshifts, transverse comoving distances to them in units of the Hubble distance (n,),
    and the curvature parameter. Linear interpolation in ln(1 + z) gives ratios to 1e-5 for z > 0.01."""

    z: np.ndarray
    comoving: np.ndarray
    curvature: float


@functools.cache
def distances(cosmology: str) -> Distances:
    """Those of one of astropy's cosmologies. Importing these takes a second and 50 MB: workers are sent the result.

    Raises ValueError if astropy knows no such cosmology.
    """
    from astropy import cosmology as known

    try:
        model = getattr(known, cosmology) if cosmology in known.available else None
    except TypeError:  # an astropy without lazy names
        model = None
    if model is None:
        raise ValueError(f"cosmology {cosmology!r}: expected one of {', '.join(known.available)}")
    z = np.expm1(np.linspace(0, np.log1p(_Z_MAX), _N_TABLE))
    comoving = (model.comoving_transverse_distance(z) / model.hubble_distance).to_value("")
    return Distances(z, comoving, float(model.Ok0))


def distance_ratio(z_lens: np.ndarray, z_source: np.ndarray, known: Distances) -> np.ndarray:
    """D_ls / D_s of angular diameter distances; NaN unless 0 <= z_lens < z_source <= 20.

    D_ls follows from the two transverse comoving distances (Hogg 1999, astro-ph/9905116, eq. 19).
    """
    z_lens, z_source = np.broadcast_arrays(np.asarray(z_lens, np.float64), np.asarray(z_source, np.float64))
    good = (z_lens >= 0) & (z_source > z_lens) & (z_source <= _Z_MAX)
    grid = np.log1p(known.z)
    lens, source = (np.interp(np.log1p(np.where(good, x, 0)), grid, known.comoving) for x in (z_lens, z_source))
    between = source * np.sqrt(1 + known.curvature * lens**2) - lens * np.sqrt(1 + known.curvature * source**2)
    return np.divide(between, source, out=np.full(good.shape, np.nan), where=good)


def einstein_radius(z_lens: np.ndarray, z_source: np.ndarray, vdisp: np.ndarray, vdisp_err: np.ndarray,
                    known: Distances) -> tuple[np.ndarray, np.ndarray]:
    """theta_E and its error, arcsec, of dispersions in km/s. NaN where vdisp is not in 0 ... 840, a rail of the fit.

    The error is that of the dispersion alone, 2 theta_E vdisp_err / vdisp; NaN where vdisp_err is not positive.
    """
    vdisp, vdisp_err = np.asarray(vdisp, np.float64), np.asarray(vdisp_err, np.float64)
    vdisp = np.where((vdisp > 0) & (vdisp < VDISP_RAIL), vdisp, np.nan)
    theta_e = 4 * np.pi * (vdisp / C_KMS) ** 2 * distance_ratio(z_lens, z_source, known) * ARCSEC
    return theta_e, 2 * theta_e * np.where(vdisp_err > 0, vdisp_err, np.nan) / vdisp


def p_multiple(theta_e: np.ndarray, theta_e_err: np.ndarray, fibre_diameter: float) -> np.ndarray:
    """Probability that a source whose light is in the fibre is imaged more than once.

    The fibre (radius R) is centred on the lens, the source equally likely anywhere that puts an image into it: an image
    at theta > 0 comes from |beta| = |theta - theta_E|, so that these sources fill |beta| < max(R - theta_E, theta_E)
    where R >= theta_E; where R < theta_E the inner image is in the fibre from |beta| = theta_E - R to theta_E.
    Multiple are those with |beta| < theta_E:

        P = min(1, theta_E^2 / (R - theta_E)^2)  for theta_E < R,   1 otherwise,

    averaged over a dispersion of Gaussian error (theta_E goes as its square); without an error it is P of theta_E.
    Seeing, magnification bias (which raises P) and the width of the source are left out. NaN where theta_e is.
    """
    theta_e = np.asarray(theta_e, np.float64)[..., None]
    half = 0.5 * np.nan_to_num(np.asarray(theta_e_err, np.float64), nan=0.0)[..., None] / theta_e  # of the dispersion
    weight = np.exp(-0.5 * _DISPERSIONS**2) * (1 + half * _DISPERSIONS > 0)
    drawn = theta_e * np.maximum(1 + half * _DISPERSIONS, 0) ** 2
    rest = fibre_diameter / 2 - drawn
    single = np.where(rest > drawn, (drawn / np.where(rest > drawn, rest, 1)) ** 2, 1.0)
    total = weight.sum(axis=-1)
    known = np.isfinite(theta_e[..., 0]) & (total > 0)
    return np.divide((weight * single).sum(axis=-1), total, out=np.full(known.shape, np.nan), where=known)
