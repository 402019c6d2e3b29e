"""Over-densities: too many lines at one wavelength, in one fibre, on one plate or in one night are no sources.

Wavelengths as in Shu et al. (2016, ApJ 833, 264) and Cao et al. (2020, MNRAS 499, 3610): histograms in log10
wavelength, first in the lens's rest frame (template residuals), then, without what is over-dense there, in the
observed frame (airglow); the excess of a bin over the running median. Fibres, plates, nights and one plate's
wavelengths: the Poisson probability of so many lines, given how many spectra were scored there.

What is counted does not depend on the threshold of a hit or on any cut, so that tighter ones never free a bin: lines
of `overdensity_min_p_line` and `overdensity_min_snr`, known lenses left out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.ndimage import maximum_filter1d, median_filter
from scipy.special import gammainc, ndtri

from lensspark.config import Vetting
from lensspark.eigen import DLOGLAM
from lensspark.vetting import census

MEDIAN_FLOOR = 1.0   # lines per bin; Shu et al. 2016: a pair in an empty part of a small run is no over-density
BETWEEN_FRAMES = 4.0  # sigma; lines above it in the lens's frame are not counted in the observed one (Shu et al. 2016)
GROUPS = dict(zip(("p_fibre", "p_plate", "p_night"), census.GROUPS, strict=True))


def counted(lines: pd.DataFrame, vetting: Vetting) -> np.ndarray:
    """Which of `lines` over-densities are made of."""
    line = (lines["p_line"] >= vetting.overdensity_min_p_line) & (lines["line_snr"] >= vetting.overdensity_min_snr)
    return (line & lines["known_lens"].isna()).to_numpy(bool)


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


def with_wavelength_excess(lines: pd.DataFrame, settings: Vetting, window: tuple[float, ...]
                           ) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`lines` with overdensity_lens and overdensity_observed, and the bins of both (schema.OVERDENSITY).

    `window`: the wavelengths that were searched, in Angstrom.
    Each is the largest excess among the line's bin and `overdensity_grow` bins on each side.
    """
    tables, among = [], counted(lines, settings)
    for frame, wave in (("lens", lines["line_wave"] / (1 + lines["z_lens"])), ("observed", lines["line_wave"])):
        at = _bin(wave, settings)
        bins, n = np.unique(at[among & at.notna()].astype(int), return_counts=True)
        span = tuple(_bin(pd.Series(window), settings).astype(int)) if frame == "observed" else None
        table = histogram(dict(zip(bins.tolist(), n.tolist(), strict=True)), settings, frame, span)
        tables.append(table)
        # Between and beyond the occupied bins there is no line but this one, which was not counted.
        empty = pd.Series(np.where(at.notna(), -np.sqrt(MEDIAN_FLOOR), np.nan), index=lines.index)
        excess_there = at.map(pd.Series(table["excess"].to_numpy(float), index=table["bin"].to_numpy(float)))
        lines = lines.assign(**{f"overdensity_{frame}": excess_there.fillna(empty)})
        among = among & ~(lines[f"overdensity_{frame}"] > BETWEEN_FRAMES).to_numpy()
    return lines, pd.concat(tables, ignore_index=True)


def _bin(wave: pd.Series, settings: Vetting) -> pd.Series:
    """The bin of log10 wavelength of each `wave` in Angstrom; NaN where there is none."""
    return np.floor(np.log10(wave.where(wave > 0)) / (settings.overdensity_bin_px * DLOGLAM))


def with_group_excess(lines: pd.DataFrame, scored: dict[str, pd.Series], settings: Vetting
                      ) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`lines` with p_fibre, p_plate, p_night, and the groups that were compared (schema.OVERDENSITY).

    Expected is the survey's mean rate times the `scored` spectra in the group (census.Census).
    """
    tables, found = [], lines[counted(lines, settings)]
    for name, by in GROUPS.items():
        tables.append(table := group_excess(scored[by], found[by].value_counts(), by, settings))
        lines = lines.assign(**{name: lines[by].map(table.set_index("bin")["probability"])})
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


def with_same_wave(lines: pd.DataFrame, settings: Vetting, n_pix: int) -> pd.DataFrame:
    """`lines` with n_same_wave, lines within `same_wave_px` in other fibres of the plate and night, and p_same_wave.

    The probability of so many is Poisson's for the plate's other lines, without those at over-dense wavelengths, spread
    evenly over the window's `n_pix` pixels.
    """
    at, fibre = np.log10(lines["line_wave"].to_numpy(float)) / DLOGLAM, lines["fiberid"].to_numpy()
    among = counted(lines, settings)
    ordinary = among & ~(lines["overdensity_observed"] > BETWEEN_FRAMES).to_numpy()
    n, others = np.zeros(len(lines), int), np.zeros(len(lines), int)
    for own in lines.groupby(["plate", "mjd"]).indices.values():
        apart = fibre[own][:, None] != fibre[own]
        near = np.abs(at[own][:, None] - at[own]) <= settings.same_wave_px
        n[own], others[own] = (apart & near & among[own]).sum(axis=1), (apart & ordinary[own]).sum(axis=1)
    width = (2 * settings.same_wave_px + 1e-9) / n_pix
    return lines.assign(n_same_wave=n, p_same_wave=at_least(n, others * width))
