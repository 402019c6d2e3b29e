"""The foreground galaxy: a basis of eigenspectra, and how it looks at a redshift.

All grids are BOSS's: pixel k lies at log10(wavelength / Angstrom) = k * 1e-4, vacuum (FACTS of the SDSS data model,
https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/PLATE4/spPlate.html), so that a redshift is a shift.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

DLOGLAM = 1e-4  # dex per pixel, 69.03 km/s
PHASES = 4  # sub-pixel shifts that are tabulated: redshifts are rounded to a quarter pixel, 17 km/s


@dataclass(frozen=True)
class Basis:
    """Eigenspectra on the rest-frame pixel grid.

    first_pixel: index of the first pixel; vectors: (n_vectors, n_pix) float32, most important first;
    coefficients: (n_sample, n_vectors) float32, a sample of the population that the basis was made from;
    provenance: where it came from.
    """

    first_pixel: int
    vectors: np.ndarray
    coefficients: np.ndarray
    provenance: str = field(default="", compare=False)

    @classmethod
    def load(cls, source: str | Path | bytes) -> Basis:
        """From a file or its bytes: an .npz that `save` wrote, or a spEigenGal FITS file. Else raises ValueError.

        A spEigenGal file has vectors only: `coefficients` is then empty, and no galaxies can be drawn from the basis.
        """
        name = "the given bytes" if isinstance(source, bytes) else source
        try:
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
            if content.startswith(b"SIMPLE  ="):
                return cls._from_fits(content, Path(name).name)
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                basis = cls(int(file["first_pixel"]), file["vectors"], file["coefficients"], str(file["provenance"]))
        except (KeyError, ValueError, OSError, EOFError) as error:
            raise ValueError(f"{name}: not a basis of eigenspectra: {error}") from error
        if basis.vectors.ndim != 2 or basis.coefficients.shape[1:] != basis.vectors.shape[:1]:
            shapes = f"{basis.vectors.shape} and {basis.coefficients.shape}"
            raise ValueError(f"basis: vectors and coefficients have shapes {shapes}; expected (K, n) and (M, K)")
        return basis

    @classmethod
    def _from_fits(cls, content: bytes, name: str) -> Basis:
        """spEigenGal: a primary image (k, n_pix), log10 rest-frame wavelength COEFF0 + i COEFF1 of pixel i, vacuum."""
        from astropy.io import fits

        with fits.open(io.BytesIO(content)) as file:
            header, image = file[0].header, file[0].data
        if image is None or image.ndim != 2 or not np.isfinite(image).all():
            raise ValueError("expected a finite image (k, n_pix) in the primary HDU")
        if abs(header["COEFF1"] - DLOGLAM) > 1e-9:
            raise ValueError(f"COEFF1 = {header['COEFF1']}, expected {DLOGLAM}")
        rms = np.sqrt(np.mean(np.square(image, dtype=np.float64), axis=1, keepdims=True))
        vectors = (image / np.where(rms > 0, rms, 1.0)).astype(np.float32)
        return cls(round(header["COEFF0"] / DLOGLAM), vectors, np.zeros((0, len(vectors)), np.float32), name)

    def save(self, path: str | Path) -> None:
        np.savez_compressed(
            path,
            first_pixel=np.int64(self.first_pixel),
            vectors=self.vectors.astype(np.float32),
            coefficients=self.coefficients.astype(np.float32),
            provenance=np.str_(self.provenance),
        )

    def mixed_like(self, other: Basis) -> Basis:
        """With coefficients that mix these vectors into what `other`'s galaxies look like where both reach.

        Least squares, every pixel weighted by 1 / its rms over the sample, as in `pca`. Raises ValueError if they do
        not overlap or `other` has no sample.
        """
        first = max(self.first_pixel, other.first_pixel)
        end = min(basis.first_pixel + basis.vectors.shape[1] for basis in (self, other))
        if end <= first or not len(other.coefficients):
            raise ValueError(f"{other.provenance or 'basis'}: expected a sample of galaxies on pixels in common")
        mine, others = (b.vectors[:, first - b.first_pixel : end - b.first_pixel] for b in (self, other))
        spectra = other.coefficients @ others
        weight = 1 / np.maximum(np.sqrt(np.mean(np.square(spectra, dtype=np.float64), axis=0)), 1e-9)
        found, *_ = np.linalg.lstsq((mine * weight).T, (spectra * weight).T, rcond=None)
        return replace(self, coefficients=found.T.astype(np.float32),
                       provenance=f"{self.provenance}, mixed like {other.provenance}")

    @cached_property
    def _phased(self) -> np.ndarray:
        here = self.vectors
        following = np.concatenate([here[:, 1:], here[:, -1:]], axis=1)
        steps = (np.arange(PHASES) / PHASES)[:, None, None]
        return ((1 - steps) * here + steps * following).astype(np.float32)

    def table(self, n_vectors: int | None = None) -> np.ndarray:
        """(PHASES, n_vectors, n_pix) float32: the first vectors, sampled 0, 1/4, 1/2 and 3/4 pixel redwards."""
        if n_vectors not in self._tables:
            self._tables[n_vectors] = np.ascontiguousarray(self._phased[:, :n_vectors])
        return self._tables[n_vectors]

    @cached_property
    def _tables(self) -> dict[int | None, np.ndarray]:
        return {}

    def place(self, z: np.ndarray, first_pixel: int) -> tuple[np.ndarray, np.ndarray]:
        """(phase, start), int64 like `z` (n,): pixel first_pixel + i, seen at z, is table()[phase, :, start + i]."""
        quarters = np.rint((first_pixel - self.first_pixel - np.log10(1 + np.asarray(z)) / DLOGLAM) * PHASES)
        start, phase = np.divmod(quarters.astype(np.int64), PHASES)
        return phase, start

    def at(self, z: np.ndarray, first_pixel: int, n_pix: int, n_vectors: int | None = None) -> np.ndarray:
        """The vectors as observed at redshifts `z` (n,) on pixels first_pixel ... first_pixel + n_pix - 1.

        Returns (n, n_vectors, n_pix) float32; zero where the basis does not reach.
        """
        table, (phase, start) = self.table(n_vectors), self.place(z, first_pixel)
        size = table.shape[2]
        # Zeros on both sides make every start valid, also for a redshift that leaves the basis' range altogether.
        padded = np.pad(table, ((0, 0), (0, 0), (n_pix, n_pix)))
        windows = sliding_window_view(padded, n_pix, axis=2)
        return windows[phase, :, np.clip(start + n_pix, 0, size + n_pix)]


@cache
def legendre(n_pix: int, n_terms: int) -> np.ndarray:
    """Legendre polynomials 0 ... n_terms - 1 across the window, (n_terms, n_pix) float32, read only."""
    x = np.linspace(-1, 1, n_pix)
    terms = np.polynomial.legendre.legvander(x, max(n_terms - 1, 0)).T[:n_terms].astype(np.float32, order="C")
    terms.flags.writeable = False
    return terms


def pca(spectra: np.ndarray, n_vectors: int) -> tuple[np.ndarray, np.ndarray]:
    """Non-centred principal components of `spectra` (n, n_pix), every pixel weighted by 1 / its rms over the sample.

    The weight makes a relative error count the same in the faint ultraviolet as in the bright optical; without
    centring the first vector is the mean spectrum's shape, so that the first k vectors alone can fit a galaxy.
    Returns vectors (n_vectors, n_pix), each of rms 1, and coefficients (n, n_vectors), both float64.
    """
    rms = np.sqrt(np.mean(np.square(spectra, dtype=np.float64), axis=0))
    weighted = spectra / np.where(rms > 0, rms, 1.0)
    if len(weighted) < weighted.shape[1]:  # the smaller of the two Gram matrices has the same eigenvalues
        _, left = np.linalg.eigh(weighted @ weighted.T)
        right = left[:, ::-1][:, :n_vectors].T @ weighted
    else:
        right = np.linalg.eigh(weighted.T @ weighted)[1][:, ::-1][:, :n_vectors].T
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    coefficients = weighted @ right.T
    sign = np.sign(coefficients.sum(axis=0))
    vectors = right * rms * sign[:, None]
    scale = np.sqrt(np.mean(vectors**2, axis=1))
    return vectors / scale[:, None], coefficients * sign * scale
