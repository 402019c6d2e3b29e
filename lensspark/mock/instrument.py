"""The BOSS spectrograph and the sky above it, as numbers: sky spectrum, noise, line-spread function, masks.

The constants are medians over the fibres of public BOSS plates of 2010-2015, rounded; wavelengths in Angstrom (vacuum),
fluxes in 1e-17 erg/s/cm2/A, one pixel is 1e-4 dex. docs/science.md compares mock and real spectra.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lensspark.mock.profiles import gaussian_lines
from lensspark.spectrum import pixel, wavelength

FULL_FIRST, FULL_N = 35480, 4720  # the pixels that randomness is drawn for: 3532-10471 A, more than any plate covers

_KNOTS = np.array([3560, 3650, 3750, 3850, 3950, 4100, 4350, 4650, 4900, 5250, 5750, 6250, 6750, 7250, 7750, 8250, 8750,
                   9250, 9750, 10150, 10400])
# Sky continuum of a dark site at airmass 1.2.
_CONTINUUM = (4.2, 4.0, 3.75, 3.1, 2.95, 3.7, 3.15, 3.2, 3.05, 2.65, 3.8, 2.95, 2.3, 2.4, 3.05, 3.05, 2.9, 3.0, 3.9,
              5.0, 7.0)
# variance = OBJECT * flux + SKY * sky: Poisson noise of both, the second with the readout noise in it.
_OBJECT_VARIANCE = (1.8, 0.8, 0.33, 0.17, 0.105, 0.08, 0.048, 0.036, 0.031, 0.029, 0.0345, 0.032, 0.0225, 0.022, 0.025,
                    0.026, 0.026, 0.027, 0.055, 0.2, 0.5)
_SKY_VARIANCE = (1.9, 0.8, 0.28, 0.16, 0.096, 0.053, 0.033, 0.0255, 0.0225, 0.0175, 0.0178, 0.0165, 0.0108, 0.0085,
                 0.0088, 0.0088, 0.0084, 0.0120, 0.0200, 0.055, 0.12)
# True scatter over the scatter that ivar promises.
_TRUE_OVER_REPORTED = (1.16, 1.16, 1.155, 1.15, 1.14, 1.095, 1.05, 1.015, 1.00, 0.985, 0.95, 0.955, 0.96, 0.95, 0.94,
                       0.93, 0.93, 0.93, 0.93, 0.93, 0.94)
# The pipeline takes a pixel's variance from its own counts, so that light and noise of one sigma raise the reported
# variance by this share (ln), at three wavelengths; without it a network could tell light from noise by its errors.
_VARIANCE_PER_SIGMA = ((3900.0, 4150.0, 4650.0), (0.063, 0.052, 0.047))
VARIANCE_SCATTER = 0.05  # ln, of the reported variance from pixel to pixel beside that
NOISE_CORRELATION = 0.2  # of neighbouring pixels' noise, from the resampling of the exposures
_LSF_SIGMA = (1.36, 1.33, 1.28, 1.24, 1.19, 1.13, 1.06, 1.01, 0.97, 0.94, 0.91, 0.96, 0.92, 0.88, 0.85, 0.82, 0.79,
              0.78, 0.80, 0.84, 0.84)  # px
FIBRE_SCALE_SCATTER = 0.27  # ln; flux calibration of a fibre scales its sky and its noise alike
PLATE_NOISE_SCATTER, PLATE_SKY_SCATTER = 0.12, 0.18  # ln; exposure time and transparency; moon and airmass

# Sky lines: wavelength, flux summed over pixels. Hg and Na of the cities, then [OI], Na, OH.
SKY_LINES = np.fromstring("""
3617.4 13 3636.6 21 3650.9 24 3664.4 15 3701.7 12 3742.0 18 3751.5 6 3774.0 6 3792.3 5 3815.0 6 3831.8 18 3846.8 7
3908.4 13 3943.7 7 4013.3 6 4021.6 8 4047.7 31 4066.3 8 4079.0 8 4165.8 9 4316.2 5 4348.7 3 4359.6 48 4408.6 6
4421.8 5 4661.2 4 4672.0 5 4985.4 10 5087.4 6 5155.8 4 5200.4 4 5462.3 28 5578.9 549 5674.1 8 5691.1 28 5771.7 9
5791.6 8 5868.1 15 5891.5 91 5917.0 12 5934.7 16 5955.3 13 5978.6 10 6237.3 16 6260.4 13 6289.3 10 6302.0 79 6331.4 11
6365.5 25 6467.0 9 6501.3 12 6535.8 9 6555.4 11 6579.6 9 6831.2 26 6865.9 30 6924.7 17 6951.8 21 6980.7 13 7242.7 69
7277.8 65 7306.3 15 7318.1 45 7331.6 21 7343.4 55 7360.4 21 7372.2 45 7404.6 28 7440.5 14 7481.7 18 7526.6 31
7573.6 21 7601.5 24 7631.3 20 7719.7 86 7753.5 77 7782.2 16 7796.5 55 7810.9 23 7823.5 68 7843.3 21 7856.0 83
7872.3 35 7892.2 43 7915.9 81 7952.4 17 7967.1 57 7981.8 31 7996.5 64 8027.9 50 8064.9 25 8105.9 12 8300.4 76
8313.8 20 8346.4 139 8367.6 22 8384.9 36 8402.3 97 8417.8 42 8433.3 117 8454.7 37 8468.4 85 8507.5 50 8550.7 24
8629.8 112 8661.6 107 8780.1 121 8794.3 35 8828.8 211 8853.2 25 8869.5 57 8887.9 144 8906.4 67 8922.8 173 8945.4 61
8959.8 130 8990.8 49 9003.3 82 9053.2 43 9105.4 22 9164.3 14 9315.4 317 9341.1 62 9377.8 403 9405.9 51 9423.2 89
9442.8 291 9462.4 137 9479.8 229 9506.0 108 9521.4 170 9556.5 70 9569.7 153 9625.0 60 9685.0 71 9702.9 63 9723.0 80
9740.9 44 9794.9 185 9851.4 43 9876.4 142 9896.9 63 9917.4 155 9949.5 360 10016.1 325 10064.7 87 10085.6 178
10106.5 80 10127.4 251 10155.5 119 10174.2 266 10193.0 137 10214.1 225 10228.2 159 10289.6 463
""", sep=" ").reshape(-1, 2)
# Where residuals of the sky subtraction imitate a line: lamps, Na, auroral N2+, [NI].
AIRGLOW = np.array([3915.5, 4047.7, 4079.0, 4166.0, 4279.3, 4348.7, 4359.6, 4424.0, 4661.2, 4710.2, 4985.4, 5200.4])

NEARBADPIXEL, LOWFLAT, FULLREJECT, PARTIALREJECT = (np.int32(1 << bit) for bit in (16, 17, 18, 19))
NOSKY, BRIGHTSKY, NODATA, COMBINEREJ, BADFLUXFACTOR = (np.int32(1 << bit) for bit in (22, 23, 24, 25, 26))


def _curve(values: tuple[float, ...], wave: np.ndarray) -> np.ndarray:
    return np.exp(np.interp(wave, _KNOTS, np.log(values)))


@dataclass(frozen=True)
class Plate:
    """One night's instrument over the FULL pixels: arrays (FULL_N,) but for the grid and the fibres' common numbers."""

    first_pixel: int  # of the plate's files
    n_pix: int
    sky: np.ndarray
    object_variance: np.ndarray
    sky_variance: np.ndarray
    true_over_reported: np.ndarray
    lsf: np.ndarray  # px
    lsf_curve: float  # how much wider the LSF is at a spectrograph's outer fibres
    calibration: np.ndarray  # smooth error of the flux calibration that the plate's fibres share
    airglow: np.ndarray  # (3,) wavelengths of the plate's residuals
    sky_chi2: float


def smooth_noise(normals: np.ndarray, n_pix: int, step: int) -> np.ndarray:
    """Unit normals at knots `step` px apart, (n, n_knots), linearly interpolated to (n, n_pix) float32."""
    position = np.arange(n_pix) / step
    left = position.astype(int)
    share = (position - left).astype(np.float32)
    normals = normals.astype(np.float32)
    return normals[:, left] * (1 - share) + normals[:, left + 1] * share


def observe_conditions(seed: int, plate: int, mjd: int) -> Plate:
    """What all fibres of (plate, mjd) share, drawn from (seed, plate, mjd) alone."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, plate, mjd]))
    wave = wavelength(FULL_FIRST + np.arange(FULL_N))
    # Older plates' blue arm was less well focused: up to 50 % wider at 4000 A.
    blue = 0.5 * rng.uniform(0, 1) ** 3 * np.exp(-0.5 * ((wave - 4050) / 900) ** 2)
    lsf = _curve(_LSF_SIGMA, wave) * (1 + blue)
    strengths = SKY_LINES[:, 1] * np.exp(0.25 * rng.standard_normal(len(SKY_LINES)))
    centres = pixel(SKY_LINES[:, 0]) - FULL_FIRST
    lines = gaussian_lines(centres, np.interp(centres, np.arange(FULL_N), lsf), strengths, FULL_N)
    depth = np.exp(PLATE_NOISE_SCATTER * rng.standard_normal())
    brightness = np.exp(PLATE_SKY_SCATTER * rng.standard_normal())
    first = int(rng.integers(35510, 35561))
    return Plate(
        first_pixel=first,
        n_pix=min(int(rng.integers(4600, 4661)), FULL_FIRST + FULL_N - first),
        sky=brightness * (_curve(_CONTINUUM, wave) + lines),
        object_variance=_curve(_OBJECT_VARIANCE, wave) * depth,
        sky_variance=_curve(_SKY_VARIANCE, wave) * depth,
        true_over_reported=_curve(_TRUE_OVER_REPORTED, wave) * np.exp(0.03 * rng.standard_normal()),
        lsf=lsf,
        lsf_curve=0.12 * rng.uniform(),
        calibration=0.012 * smooth_noise(rng.standard_normal((1, FULL_N // 90 + 2)), FULL_N, 90)[0],
        airglow=rng.choice(AIRGLOW, 3, replace=False),
        sky_chi2=float(rng.normal(1.12, 0.07)),
    )


def lsf_of_fibres(plate: Plate, fiberids: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """LSF sigma in px, float32, at pixels `grid` of the FULL ones; the two arrays are broadcast against each other.

    It is widest at both ends of each spectrograph's slit of 500 fibres.
    """
    slit = ((fiberids - 1) % 500 - 249.5) / 249.5
    return (plate.lsf[grid] * (1 + plate.lsf_curve * slit**4)).astype(np.float32)


def correlated(white: np.ndarray) -> np.ndarray:
    """Unit noise with NOISE_CORRELATION between neighbours from white noise (n, n_pix + 1): (n, n_pix)."""
    share = (1 - np.sqrt(1 - 4 * NOISE_CORRELATION**2)) / (2 * NOISE_CORRELATION)  # q / (1 + q^2) = correlation
    return (white[:, :-1] + np.float32(share) * white[:, 1:]) / np.float32(np.sqrt(1 + share**2))


def variance_response(wave: np.ndarray) -> np.ndarray:
    """By how much (ln) light of one sigma raises a pixel's variance, float32, at wavelengths in Angstrom."""
    return np.interp(wave, *_VARIANCE_PER_SIGMA).astype(np.float32)


def with_light(flux: np.ndarray, ivar: np.ndarray, light: np.ndarray, wave: np.ndarray
               ) -> tuple[np.ndarray, np.ndarray]:
    """(flux, ivar), (n, n_pix), of spectra to which `light` is added, as the pipeline would have reported them.

    wave (n_pix,) in Angstrom. The light's own photon noise is not drawn.
    """
    raised = 1 + variance_response(wave) * np.maximum(light, 0) * np.sqrt(np.maximum(ivar, 0))
    return flux + light, (ivar / raised).astype(ivar.dtype)


def _runs(starts: np.ndarray, length: np.ndarray, longest: int) -> np.ndarray:
    """Boolean (n, n_pix): runs of `length` pixels (same shape, read at the starts) from each start."""
    out = starts.copy()
    for step in range(1, longest):
        out[:, step:] |= starts[:, :-step] & (length[:, :-step] > step)
    return out


def masks(plate: Plate, uniforms: np.ndarray, fibre: np.ndarray, pixels: slice) -> tuple[np.ndarray, ...]:
    """(measured, and_mask, or_mask), each (n, n_pix), from uniform deviates (n, FULL_N) and `fibre` (n, 5).

    Cosmic rays lost in single exposures set OR bits only; a few fibres lose a run of pixels altogether, most lose the
    core of 5578.9 A; bright sky lines set BRIGHTSKY in both; where only one arm's end reaches, OR bits tell so.
    """
    wave = wavelength(FULL_FIRST + np.arange(FULL_N))[pixels]
    grid = np.arange(FULL_N)[pixels]
    margin = min(pixels.start, 6)  # a run may begin before the first pixel
    wide = uniforms[:, pixels.start - margin:pixels.stop]
    uniforms = uniforms[:, pixels]
    ray = _runs(wide < 0.011, wide * (6 / 0.011) + 1, 6)
    or_mask = ray * (PARTIALREJECT | COMBINEREJ)
    or_mask |= _runs((wide > 0.5) & (wide < 0.5035), np.full_like(wide, 4.0), 4) * NEARBADPIXEL
    or_mask = or_mask[:, margin:]
    # A lost run in every twelfth fibre, 2-24 px long, anywhere.
    start = FULL_N * fibre[:, 0] / 0.085
    lost = (grid >= start[:, None]) & (grid < (start + 2 + 22 * fibre[:, 1] ** 2)[:, None])
    core = pixel(5578.9) - FULL_FIRST + 6 * (fibre[:, 2] - 0.5)
    lost |= (np.abs(grid - core[:, None]) < 0.5 + 4 * fibre[:, 3:4]) & (fibre[:, 4:5] < 0.15)
    excess = plate.sky[pixels] / _curve(_CONTINUUM, wave)
    lost |= (uniforms > 1 - 0.004 * np.clip((excess - 8) / 8, 0, 1)) & (wave > 8000)
    and_mask = lost * (FULLREJECT | NEARBADPIXEL)
    red_line = (wave > 7200) & (excess > 1.45)
    and_mask |= (red_line & (uniforms < 0.75)) * BRIGHTSKY
    or_mask |= and_mask | ((wave > 7150) & (excess > 1.15)) * BRIGHTSKY
    or_mask |= ((wave > 5230) & (wave < 6050)) * (LOWFLAT | NOSKY | BADFLUXFACTOR)
    or_mask |= ((wave > 6480) & (wave < 7150)) * (NODATA | BADFLUXFACTOR)
    return ~lost, and_mask.astype(np.int32), or_mask.astype(np.int32)
