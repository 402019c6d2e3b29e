"""Evidence: everything that follows from the ledger's own columns, anew for every re-cut; no spectrum is read.

The lines at stake (hits, and what over-densities count) are few; they alone are joined and shuffled. Spectra that are
not hits are only counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lensspark import schema
from lensspark.config import Config
from lensspark.eigen import DLOGLAM
from lensspark.lines import MGII
from lensspark.spectrum import window_pixels
from lensspark.vetting import census, known, nulls, overdensity
from lensspark.vetting.cuts import completed
from lensspark.vetting.measuring import is_hit

KEY = [column.name for column in schema.KEY]
# What this module makes of the ledger; the rest of schema.VETTING was measured in spectra or given by people.
COLUMNS = ("lens_line_px", "overdensity_lens", "overdensity_observed", "p_fibre", "p_plate", "p_night", "n_same_wave",
           "p_same_wave", "known_lens", "q_value", "followup")
_LINE = ("ra", "dec", "z_lens", *(column.name for column in schema.LINE))
Keep = Callable[[DataFrame, str], DataFrame]
NEUTRAL = 0.5  # a factor of the follow-up rank that could not be measured


@dataclass(frozen=True)
class Evidence:
    """`hits`: key and COLUMNS, one row per hit; `overdensity`: schema.OVERDENSITY; `nulls`: Census.facts."""

    hits: DataFrame
    overdensity: pd.DataFrame
    nulls: dict[str, int]


def at_stake(ledger: DataFrame, config: Config) -> DataFrame:
    """The few rows of `ledger` with a line that is a hit, or that over-densities may count."""
    counted = (F.col("p_line") >= config.vetting.overdensity_min_p_line) & ~F.isnan("p_line")
    return ledger.where(is_hit(config) | counted)


def gather(ledger: DataFrame, few: DataFrame, known_lenses: pd.DataFrame, config: Config, keep: Keep) -> Evidence:
    """The evidence for every hit of `ledger` (readable spectra with LINE and NULLS).

    `few`: its rows `at_stake`, hits with what was measured of them, columns of schema.VETTING. `keep(df, name)` stores
    a small table and gives it back, so that it is made once, whatever machine is lost later.
    """
    v = config.vetting
    measured = few.where(is_hit(config)).select(
        *KEY, *(name for name in schema.VETTING_NAMES if name in few.columns and name not in COLUMNS))
    lines = keep(known.match_known(few.select(*KEY, *_LINE), known_lenses, v.known_lens_radius), "matched")
    lines, bins = overdensity.with_wavelength_excess(lines, v, config.read.window)
    survey = census.take(ledger, config.score.threshold)
    lines, groups = overdensity.with_group_excess(lines, survey.scored, v)
    _, n_pix = window_pixels(config.read.window)
    lines = overdensity.with_same_wave(lines, v, n_pix)
    hits = keep(completed(lines.where(is_hit(config)).join(measured, on=KEY, how="left")), "hits")
    hits = nulls.with_q_value(hits, survey, config)
    hits = hits.withColumns({"lens_line_px": lens_line_px(), "followup": followup()})
    return Evidence(hits.select(*KEY, *COLUMNS), pd.concat([bins, groups], ignore_index=True), survey.facts)


def lens_line_px() -> Column:
    """Pixels between `line_wave` and the nearer line of Mg II at `z_lens`; null where that is not known."""
    rest = F.log10(F.col("line_wave") / (1 + F.col("z_lens")))
    return F.least(*(F.abs(rest - math.log10(line)) / DLOGLAM for line in MGII))


def followup() -> Column:
    """Priority for follow-up, 0-1: probability that the line is there, is Lya, and is multiply imaged.

    (1 - q_value^(1 + n_repeat_confirmed)) x p_lya x p_multiple; a factor that was not measured counts 0.5, q of 1
    gives 0.5 too, since a run too small to tell a rate must still be ranked.
    """
    real = 1 - F.pow(F.least(F.coalesce("q_value", F.lit(1.0)), F.lit(NEUTRAL)),
                     1 + F.coalesce(F.col("n_repeat_confirmed"), F.lit(0)))
    for name in ("p_lya", "p_multiple"):
        real *= F.coalesce(F.nanvl(name, F.lit(NEUTRAL)), F.lit(NEUTRAL))
    return real


def attach(ledger: DataFrame, *tables: DataFrame) -> DataFrame:
    """`ledger` with the columns of each of `tables` (a row per hit, by key) in place of its own of that name."""
    for table in tables:
        names = [name for name in table.columns if name not in KEY]
        ledger = ledger.drop(*names).join(F.broadcast(table), on=KEY, how="left")
    return ledger


def overdensity_ranges(table: pd.DataFrame, bin_px: int) -> dict[str, list[Any]]:
    """What is flagged: frame -> [low, high] in Angstrom of its runs of bins; fiberid, plate and mjd -> numbers."""
    flagged = table[table["flagged"].astype(bool)]
    out: dict[str, list[Any]] = {by: sorted(map(int, flagged.loc[flagged["frame"] == by, "bin"]))
                                 for by in overdensity.GROUPS.values()}
    for frame in ("observed", "lens"):
        bins = flagged.loc[flagged["frame"] == frame, "bin"].to_numpy(int)
        breaks = [i for i in range(1, len(bins)) if bins[i] != bins[i - 1] + 1]
        runs = zip([0, *breaks], [*breaks, len(bins)], strict=True) if len(bins) else ()
        edge = lambda b: round(float(10 ** (b * bin_px * 1e-4)), 3)  # noqa: E731
        out[frame] = [[edge(bins[i]), edge(bins[j - 1] + 1)] for i, j in runs]
    return out
