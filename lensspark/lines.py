"""Spectral lines and redshifts. Vacuum wavelengths in Angstrom (FACTS of the NIST and SDSS line lists)."""

from __future__ import annotations

import numpy as np

LIGHT_KMS = 299792.458  # speed of light

LYA = 1215.67
NV = 1240.81
SIIV = 1396.75  # with OIV], as in quasars (Vanden Berk et al. 2001, AJ 122, 549)
CIV = 1549.48
HEII_1640 = 1640.42
CIII = 1908.73
MGII = (2796.35, 2803.53)
FEII_FLUORESCENT = (2365.55, 2396.36, 2612.65, 2626.45)  # FeII*, Erb et al. 2012, ApJ 759, 26
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
