"""Spectral lines and redshifts. Vacuum wavelengths in Angstrom (FACTS of the NIST and SDSS line lists)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LYA = 1215.67
NV = 1240.81
CIV = 1549.48
HEII_1640 = 1640.42
CIII = 1908.73
MGII = (2796.35, 2803.53)
NEV = (3346.79, 3426.85)
OII = (3727.09, 3729.88)
NEIII = 3869.86
CAII_K, CAII_H = 3934.78, 3969.59
HDELTA, HGAMMA, HBETA, HALPHA = 4102.89, 4341.68, 4862.68, 6564.61
OIII = (4960.30, 5008.24)
NII = (6549.86, 6585.27)
SII = (6718.29, 6732.68)

# Night-sky lamps and airglow inside 3800-5000 Angstrom (Hg I).
SKY_HG = (4047.7, 4079.0, 4340.4, 4348.7, 4359.6)


def source_redshift(line_wave: np.ndarray, rest: float = LYA) -> np.ndarray:
    """Redshift at which a line of rest wavelength `rest` is observed at `line_wave`."""
    return line_wave / rest - 1


def geometric_mean(doublet: tuple[float, float]) -> float:
    return float(np.sqrt(doublet[0] * doublet[1]))


@dataclass(frozen=True)
class Companion:
    """A line that comes with another: its flux over that line's is log-normal, `ratio` its median, `scatter` in dex."""

    name: str
    rest: float
    ratio: float
    scatter: float


@dataclass(frozen=True)
class Identity:
    """What an observed line could be; `rest` is its wavelength, `blueshift` km/s of the companions against it."""

    name: str
    rest: float
    companions: tuple[Companion, ...]
    blueshift: float = 0.0


# Broad priors of companions' observed fluxes. lya: Shapley et al. 2003 (ApJ 588, 65) and Nakajima et al. 2018 (A&A 612,
# A94), whose offset of Lya from the systemic redshift is the blueshift. oii, hbeta, oiii: Kewley, Geller & Jansen 2004
# (AJ 127, 2002) and Moustakas, Kennicutt & Tremonti 2006 (ApJ 642, 775), with case B and A_V = 0.5 mag between Balmer
# lines; [OIII] 4960/5008: Storey & Zeippen 2000 (MNRAS 312, 813). ciii, civ: the quasar composite of Vanden Berk et al.
# 2001 (AJ 122, 549), wide enough for galaxies. mgii: Feltre et al. 2018 (A&A 617, A62).
IDENTITIES = (
    Identity("lya", LYA, (Companion("NV", NV, 0.02, 0.5), Companion("CIV", CIV, 0.03, 0.5),
                          Companion("HeII", HEII_1640, 0.02, 0.5), Companion("CIII]", CIII, 0.04, 0.5)), 200.0),
    Identity("oii", geometric_mean(OII), (Companion("Hb", HBETA, 0.35, 0.25), Companion("[OIII]", OIII[1], 0.6, 0.4),
                                          Companion("Ha", HALPHA, 1.2, 0.25))),
    Identity("ciii", CIII, (Companion("CIV", CIV, 1.0, 0.5), Companion("MgII", geometric_mean(MGII), 0.7, 0.5),
                            Companion("[OII]", geometric_mean(OII), 0.5, 0.6))),
    Identity("civ", CIV, (Companion("CIII]", CIII, 0.7, 0.4), Companion("MgII", geometric_mean(MGII), 0.6, 0.5))),
    Identity("mgii", geometric_mean(MGII), (Companion("[OII]", geometric_mean(OII), 2.0, 0.5),
                                            Companion("Hb", HBETA, 0.8, 0.5), Companion("[OIII]", OIII[1], 1.2, 0.6))),
    Identity("hbeta", HBETA, (Companion("[OIII]", OIII[1], 1.0, 0.5), Companion("Ha", HALPHA, 3.5, 0.15))),
    Identity("oiii", OIII[1], (Companion("Hb", HBETA, 0.5, 0.4), Companion("[OIII]4960", OIII[0], 0.335, 0.03),
                               Companion("Ha", HALPHA, 1.7, 0.45))),
)

# Where a galaxy's own lines, and the residuals that its absorption lines leave, imitate a foreign line: rest frame.
# Shu et al. 2016 (ApJ 833, 264, sect. 3) mask all but [OII], Hdelta and Hgamma for the search.
LENS_LINES = (2424.0, 2776.7, 2789.1, 2797.3, 2804.2, 2812.8, *NEV, *OII, NEIII, 3889.6, CAII_K, CAII_H, HDELTA, HGAMMA)
LENS_EMISSION = (*OII, HBETA, *OIII, *NII, HALPHA, *SII)  # strong enough to pass for a companion

# Night sky, vacuum: Hg I, N2+ aurora, Na, [NI] within 3800-5300 A (Osterbrock & Martel 1992, PASP 104, 76; FACTS above).
NIGHT_SKY = (3915.5, *SKY_HG, 4166.0, 4279.3, 4424.0, 4661.2, 4710.2, 4985.4, 5200.4)
# Observed-frame bands that eBOSS masks for the strength of the sky in them (DR16 Lya catalogue, redwards of 5000 A).
SKY_BANDS = ((5456.8, 5467.3), (5570.5, 5590.0), (5883.3, 5903.3), (6294.8, 6316.8))
