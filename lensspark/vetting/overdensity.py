"""Over-densities: too many lines at one wavelength, in one fibre, on one plate or in one night are no sources.

Wavelengths as in Shu et al. (2016, ApJ 833, 264) and Cao et al. (2020, MNRAS 499, 3610): histograms in log10
wavelength, first in the lens's rest frame (template residuals), then, without what is over-dense there, in the
observed frame (airglow); the excess of a bin over the running median. Fibres, plates, nights and one plate's
wavelengths: the Poisson probability of so many lines, given how many spectra were scored there.

What is counted does not depend on the threshold of a hit or on any cut, so that tighter ones never free a bin: lines
of `overdensity_min_p_line` and `overdensity_min_snr`, known lenses left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from scipy.ndimage import maximum_filter1d, median_filter
from scipy.special import gammainc, ndtri

from lensspark import schema
from lensspark.config import Vetting
from lensspark.eigen import DLOGLAM
from lensspark.vetting import census

MEDIAN_FLOOR = 1.0   # lines per bin; Shu et al. 2016: a pair in an empty part of a small run is no over-density
BETWEEN_FRAMES = 4.0  # sigma; lines above it in the lens's frame are not counted in the observed one (Shu et al. 2016)
KEY = [column.name for column in schema.KEY]
GROUPS = dict(zip(("p_fibre", "p_plate", "p_night"), census.GROUPS, strict=True))


def counted(vetting: Vetting) -> Column:
    """The lines that over-densities are made of."""
    line = (F.col("p_line") >= vetting.overdensity_min_p_line) & ~F.isnan("p_line")
    clear = (F.col("line_snr") >= vetting.overdensity_min_snr) & ~F.isnan("line_snr")
    return F.coalesce(line & clear, F.lit(False)) & F.col("known_lens").isNull()


def at_least(n: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Poisson probability of `n` or more where `expected` are expected; both >= 0, of one shape."""
    return np.where(np.asarray(n) > 0, gammainc(np.maximum(n, 1), expected), 1.0)


def excess(counts: np.ndarray, expected: np.ndarray, capped: bool = True) -> np.ndarray:
    """By how many sigma `counts` are above `expected`: (n - m) / sqrt(m), if `capped` no more than Poisson's tail says.

    The published 4 sigma over a median of 1 is 6 lines in a bin, which chance gives one bin in 1,700; the normal
    deviate of the same Poisson probability (8 lines) keeps the meaning of "4 sigma" where counts are small.
    """
    above = (counts - expected) / np.sqrt(expected)
    if not capped:
        return above
    tail = -ndtri(np.maximum(at_least(counts, expected), 1e-300))
    return np.where(counts > expected, np.minimum(above, tail), above)


def histogram(counts: dict[int, int], settings: Vetting, frame: str, span: tuple[int, int] | None = None
              ) -> pd.DataFrame:
    """schema.OVERDENSITY's rows from the number of lines in each occupied bin of log10 wavelength.

    `span`: the first and last bin where a line can be; without it the range is open, and half a running median of
    empty bins lies on each side of what is occupied.
    """
    if not counts:
        return group_excess(pd.Series(dtype=int), pd.Series(dtype=int), frame, settings)  # no rows
    beside = settings.overdensity_median_bins // 2 + settings.overdensity_grow
    low, high = span or (min(counts) - beside, max(counts) + beside)
    bins = np.arange(min(low, *counts), max(high, *counts) + 1)
    n = np.array([counts.get(int(b), 0) for b in bins])
    median = median_filter(n.astype(float), size=settings.overdensity_median_bins, mode="reflect")
    median = np.maximum(median, MEDIAN_FLOOR)
    above = excess(n, median, settings.overdensity_poisson)
    grown = maximum_filter1d(above, 2 * settings.overdensity_grow + 1, mode="nearest")
    width = settings.overdensity_bin_px * DLOGLAM
    return pd.DataFrame({
        "frame": frame, "bin": bins, "value": 10 ** ((bins + 0.5) * width), "n": n, "expected": median,
        "excess": grown, "probability": np.nan, "flagged": grown > settings.max_overdensity,
    })


def _bin(wave: Column, settings: Vetting) -> Column:
    return F.floor(F.log10(wave) / (settings.overdensity_bin_px * DLOGLAM)).cast("long")


_FRAMES = {"lens": lambda: F.col("line_wave") / (1 + F.col("z_lens")), "observed": lambda: F.col("line_wave")}


def with_wavelength_excess(lines: DataFrame, settings: Vetting, window: tuple[float, ...]
                           ) -> tuple[DataFrame, pd.DataFrame]:
    """`lines` with overdensity_lens and overdensity_observed, and the bins of both (schema.OVERDENSITY).

    `window`: the wavelengths that were searched, in Angstrom.
    Each is the largest excess among the line's bin and `overdensity_grow` bins on each side.
    """
    tables = []
    for frame, wave in _FRAMES.items():
        among = lines.where(counted(settings))
        if tables:
            among = among.where(F.coalesce(F.col("overdensity_lens") <= BETWEEN_FRAMES, F.lit(True)))
        at = _bin(wave(), settings)
        rows = among.where(at.isNotNull()).groupBy(at.alias("bin")).count().collect()  # a few hundred bins
        low, high = (int(np.log10(edge) / (settings.overdensity_bin_px * DLOGLAM)) for edge in window)
        span = (low, high) if frame == "observed" else None
        table = histogram({row["bin"]: row["count"] for row in rows}, settings, frame, span)
        tables.append(table)
        # Between and beyond the occupied bins there is no line but this one, which was not counted.
        empty = F.when(wave().isNotNull() & ~F.isnan(wave()), -np.sqrt(MEDIAN_FLOOR))
        lines = lines.withColumn(f"overdensity_{frame}", F.coalesce(_lookup(table, "excess")(at), empty))
    return lines, pd.concat(tables, ignore_index=True)


def _lookup(table: pd.DataFrame, value: str) -> Callable[[Column], Column]:
    """A function of a column of bins: their `value` in schema.OVERDENSITY's `table`, null where it has no such bin."""
    known = pd.Series(table[value].to_numpy(float), index=table["bin"].to_numpy(float))

    @F.pandas_udf("double")
    def look_up(bins: pd.Series) -> pd.Series:
        return bins.astype(float).map(known)

    return look_up


def with_group_excess(lines: DataFrame, scored: dict[str, pd.Series], settings: Vetting
                      ) -> tuple[DataFrame, pd.DataFrame]:
    """`lines` with p_fibre, p_plate, p_night, and the groups that were compared (schema.OVERDENSITY).

    Expected is the survey's mean rate times the `scored` spectra in the group (census.Census).
    """
    tables = []
    found = lines.where(counted(settings)).select(*GROUPS.values()).toPandas()
    for name, by in GROUPS.items():
        tables.append(table := group_excess(scored[by], found[by].value_counts(), by, settings))
        lines = lines.withColumn(name, _lookup(table, "probability")(F.col(by)))
    return lines, pd.concat(tables, ignore_index=True)


def group_excess(spectra: pd.Series, found: pd.Series, frame: str, settings: Vetting) -> pd.DataFrame:
    """schema.OVERDENSITY's rows of the groups in `spectra` (scored spectra by group), with `found` lines in them."""
    n = found.reindex(spectra.index, fill_value=0).to_numpy()
    expected = spectra.to_numpy() * (n.sum() / max(spectra.sum(), 1))
    probability = at_least(n, expected)
    above = np.where(expected > 0, excess(n, np.where(expected > 0, expected, 1.0), settings.overdensity_poisson), 0.0)
    return pd.DataFrame({
        "frame": frame, "bin": spectra.index.to_numpy(), "value": spectra.index.to_numpy().astype(float), "n": n,
        "expected": expected, "excess": above, "probability": probability,
        "flagged": probability < settings.min_p_overdensity,
    })


def with_same_wave(lines: DataFrame, settings: Vetting, n_pix: int) -> DataFrame:
    """`lines` with n_same_wave, lines within `same_wave_px` in other fibres of the plate and night, and p_same_wave.

    The probability of so many is Poisson's for the plate's other lines, without those at over-dense wavelengths, spread
    evenly over the window's `n_pix` pixels.
    """
    at = F.log10("line_wave") / DLOGLAM
    own = lines.select(*KEY, at.alias("at"))
    others = lines.where(counted(settings)).select(
        "plate", "mjd", F.col("fiberid").alias("other"), at.alias("other_at"),
        F.coalesce(F.col("overdensity_observed") <= BETWEEN_FRAMES, F.lit(True)).alias("ordinary"))
    near = F.abs(F.col("at") - F.col("other_at")) <= settings.same_wave_px
    together = (
        own.join(F.broadcast(others), on=["plate", "mjd"], how="left")
        .withColumn("is_other", F.col("other") != F.col("fiberid"))
        .groupBy(*KEY)
        .agg(F.coalesce(F.sum((F.col("is_other") & near).cast("int")), F.lit(0)).alias("n_same_wave"),
             F.coalesce(F.sum((F.col("is_other") & F.col("ordinary")).cast("int")), F.lit(0)).alias("n_others"))
    )
    width = (2 * settings.same_wave_px + 1e-9) / n_pix

    @F.pandas_udf("double")
    def probability(n: pd.Series, others: pd.Series) -> pd.Series:
        return pd.Series(at_least(n, others * width), index=n.index)

    counts = together.select(*KEY, F.col("n_same_wave").cast("int").alias("n_same_wave"),
                             probability("n_same_wave", "n_others").alias("p_same_wave"))
    return lines.join(counts, on=KEY, how="left")
