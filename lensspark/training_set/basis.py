"""An eigenbasis for the foreground fit from a survey's own galaxies, all redshifts together, found on the cluster.

Each pass over the galaxies fits the present vectors and returns one sum per partition; the driver solves every
rest-frame pixel for better vectors (weighted_pca.py). No spectrum comes to the driver.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lensspark import weighted_pca
from lensspark.config import Config, SurveyTraining, resource
from lensspark.eigen import Basis
from lensspark.galaxy_bins import COVERED, cut, mean_flux, shift_pixels, sound_ivar
from lensspark.training_set.common import KEY, Frame, by_hash, plane, plates_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger(__name__)

PARTITIONS = 32  # at most: each returns about 3 MB per pass
ROWS_AT_ONCE = 500  # 500 x 3,000 rest-frame pixels x 8 bytes are 12 MB, six times at once
SAMPLE = 2000  # galaxies whose coefficients the basis keeps
CLIP_AFTER = 3  # passes without clipping: the first vectors are another survey's
SUMS = ("normal", "right", "moment", "seen", "chi2")


def survey_basis(backdrops: DataFrame, splits: dict[int, str], config: Config, frame: Frame, provenance: str) -> Basis:
    """The basis of the training plates' galaxies, at most survey_training.basis_galaxies of them.

    It covers the rest-frame wavelengths that the window shows of them and no others: enough to fit galaxies in that
    window. Raises ValueError if there are too few galaxies.
    """
    from pyspark.sql import functions as F

    settings = config.survey_training
    galaxies = backdrops.where(~F.col("is_sky") & F.col("plate").isin(plates_of(splits, "train")))
    chosen = galaxies.select(*KEY).orderBy(*by_hash(config)).limit(settings.basis_galaxies)
    sample = galaxies.join(chosen, KEY).select(*KEY, "z", "flux", "ivar", "and_mask")
    n, low, high = sample.agg(F.count(F.lit(1)), F.min("z"), F.max("z")).first()
    k = settings.basis_vectors
    if n < COVERED * k:
        raise ValueError(f"--make-basis: {n} galaxies on the training plates; expected at least {COVERED * k} for "
                         f"survey_training.basis_vectors = {k}")
    first = frame.first - frame.margin - int(shift_pixels(0.0, high))
    n_pix = frame.n_pix + 2 * frame.margin + int(shift_pixels(0.0, high) - shift_pixels(0.0, low))
    sample = sample.repartition(min(PARTITIONS, -(-n // ROWS_AT_ONCE)), *KEY).persist()
    try:
        vectors, chi2 = _iterate(sample, _start(k, first, n_pix), first, config, frame)
        coefficients = _coefficients(sample, vectors, first, config, frame)
    finally:
        sample.unpersist()
    log.info("basis of %d galaxies at z = %.2f-%.2f: chi2 per degree of freedom %.3f", n, low, high, chi2)
    scale = np.sqrt(np.mean(vectors**2, axis=1))
    provenance = (f"{provenance}: {n} galaxies at z = {low:.3f}-{high:.3f}, {k} vectors, chi2 per degree of freedom "
                  f"{chi2:.3f}; made by lensspark's jobs/build_training.py")
    return Basis(first, (vectors / scale[:, None]).astype(np.float32), (coefficients * scale).astype(np.float32),
                 provenance)


def _start(k: int, first: int, n_pix: int) -> np.ndarray:
    """Vectors (k, n_pix) to begin with: the shipped ones, and waves if more are wanted."""
    shipped = Basis.load(resource("data/eigenbasis.npz")).at(np.zeros(1), first, n_pix)[0, :k].astype(np.float64)
    waves = np.cos(np.pi * np.arange(1, k - len(shipped) + 1)[:, None] * np.arange(n_pix) / n_pix)
    return np.concatenate([shipped, waves])


def _iterate(sample: DataFrame, vectors: np.ndarray, first: int, config: Config, frame: Frame
             ) -> tuple[np.ndarray, float]:
    settings, before = config.survey_training, np.inf
    k = len(vectors)
    for step in range(settings.basis_iterations):
        table = sample.mapInArrow(_summing(vectors, first, step >= CLIP_AFTER, config, frame),
                                  ", ".join(f"{name} binary" for name in SUMS)).toArrow()
        sums = {name: sum(np.frombuffer(value) for value in table[name].to_pylist()) for name in SUMS}
        n = sums["chi2"][1]
        chi2 = sums["chi2"][0] / max(sums["seen"].sum() - k * n, 1)
        log.debug("pass %d: chi2 per degree of freedom %.5f", step + 1, chi2)
        if step > CLIP_AFTER and chi2 > before * (1 - weighted_pca.TOLERANCE):
            break
        before = chi2
        moment, seen = sums["moment"].reshape(k, k) / n, sums["seen"] >= COVERED * k
        new = weighted_pca.vectors_from(sums["normal"].reshape(-1, k, k) * seen[:, None, None],
                                        sums["right"].reshape(-1, k) * seen[:, None], settings.smooth_px)
        vectors, _ = weighted_pca.orthonormal(new, moment)
    return vectors, chi2


def _rest_frame(batch: pa.RecordBatch, first: int, n_pix: int, config: Config, frame: Frame
                ) -> tuple[np.ndarray, np.ndarray]:
    """flux and ivar (n, n_pix) from rest-frame pixel `first` on, in units of each galaxy's mean flux."""
    flux, ivar, and_mask = (plane(batch.column(name)) for name in ("flux", "ivar", "and_mask"))
    observed = frame.first - frame.margin
    ivar = sound_ivar(ivar, and_mask, config.input, observed)
    scale = mean_flux(flux, ivar)[:, None]
    bright = np.nan_to_num(scale) > 0
    start = first + shift_pixels(0.0, batch.column("z").to_numpy()) - observed
    flux, ivar = (cut(values, start, n_pix).astype(np.float64) for values in (flux, ivar))
    return flux / np.where(bright, scale, 1.0), np.where(bright, ivar * scale**2, 0.0)


def _batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for i in range(0, len(batch), ROWS_AT_ONCE):
            yield batch.slice(i, ROWS_AT_ONCE)


def _fitted(batch: pa.RecordBatch, vectors: np.ndarray, first: int, clip: bool, config: Config, frame: Frame
            ) -> tuple[weighted_pca.Components, np.ndarray, np.ndarray]:
    flux, ivar = _rest_frame(batch, first, vectors.shape[1], config, frame)
    found = weighted_pca.fit(vectors, flux, ivar)
    if clip:
        pull = np.abs(flux - found.coefficients @ vectors) * np.sqrt(ivar)
        ivar = np.where(pull > config.survey_training.clip_sigma, 0.0, ivar)
        found = weighted_pca.fit(vectors, flux, ivar)
    return found, flux, ivar


def _summing(vectors: np.ndarray, first: int, clip: bool, config: Config, frame: Frame) -> Callable:
    def add_up(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = None
        for batch in _batches(batches):
            found, flux, ivar = _fitted(batch, vectors, first, clip, config, frame)
            kept = _ordinary(found, ivar, config.survey_training)
            c, flux, ivar = found.coefficients[kept], flux[kept], ivar[kept]
            parts = [*weighted_pca.vector_sums(c, flux, ivar), c.T @ c, (ivar > 0).sum(axis=0).astype(float),
                     np.array([found.chi2[kept].sum(), len(c)])]
            totals = parts if totals is None else [total + part for total, part in zip(totals, parts, strict=True)]
        if totals is not None:
            yield pa.RecordBatch.from_arrays([pa.array([total.tobytes()], pa.binary()) for total in totals], list(SUMS))

    return add_up


def _ordinary(found: weighted_pca.Components, ivar: np.ndarray, settings: SurveyTraining) -> np.ndarray:
    """Rows of spectra whose chi2 is not beyond max_chi2 times the median of those beside them."""
    reduced = found.chi2 / np.maximum((ivar > 0).sum(axis=1) - found.coefficients.shape[1], 1)
    return np.flatnonzero(reduced <= settings.max_chi2 * np.median(reduced))


def _coefficients(sample: DataFrame, vectors: np.ndarray, first: int, config: Config, frame: Frame) -> np.ndarray:
    """(n, k) coefficients of up to SAMPLE galaxies, their own errors taken out."""
    k = len(vectors)

    def fit(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in _batches(batches):
            found, _, ivar = _fitted(batch, vectors, first, True, config, frame)
            rows = pa.array(_ordinary(found, ivar, config.survey_training))
            values = [pa.array([row.tobytes() for row in part], pa.binary())
                      for part in (found.coefficients, found.precision)]
            yield pa.RecordBatch.from_arrays([*(batch.column(name) for name in KEY), *values],
                                             [*KEY, "coefficients", "precision"]).take(rows)

    chosen = sample.orderBy(*by_hash(config)).limit(SAMPLE)
    types = "plate int, mjd int, fiberid int, run2d string, coefficients binary, precision binary"
    table = chosen.mapInArrow(fit, types).toArrow().sort_by([(name, "ascending") for name in KEY])
    coefficients, precision = (np.stack([np.frombuffer(value) for value in table[name].to_pylist()])
                               for name in ("coefficients", "precision"))
    *_, centre, spread = weighted_pca.intrinsic(coefficients, precision.reshape(-1, k, k))
    normals = np.random.default_rng(config.training.seed).standard_normal((len(centre), k, 1))
    return centre + (spread @ normals)[:, :, 0]
