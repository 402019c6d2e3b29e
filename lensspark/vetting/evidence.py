"""Evidence: everything that follows from the ledger's own columns, anew for every re-cut; no spectrum is read.

The lines at stake (hits, and what over-densities count) are a few in a thousand spectra: they are gathered, and
compared in memory. Of the others a census is taken where they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lensspark import arrow, schema
from lensspark.config import Config
from lensspark.eigen import DLOGLAM
from lensspark.lines import MGII
from lensspark.spectrum import window_pixels
from lensspark.store import Rows
from lensspark.vetting import census, known, nulls, overdensity
from lensspark.vetting.measuring import is_hit

# What this module makes of the ledger; the rest of schema.VETTING was measured in spectra or given by people.
COLUMNS = ("lens_line_px", "overdensity_lens", "overdensity_observed", "p_fibre", "p_plate", "p_night", "n_same_wave",
           "p_same_wave", "known_lens", "q_value", "followup")
NEUTRAL = 0.5  # a factor of the follow-up rank that could not be measured


@dataclass(frozen=True)
class Evidence:
    """`hits`: the hits with all of schema.VETTING; `overdensity`: schema.OVERDENSITY; `nulls`: Census.facts."""

    hits: pa.Table
    overdensity: pd.DataFrame
    nulls: dict[str, int]


def at_stake(rows: Rows, config: Config) -> pa.Table:
    """The few of `rows`, scored ones or a ledger's, with a line that is a hit, or that over-densities may count."""
    threshold, counted = config.score.threshold, config.vetting.overdensity_min_p_line

    def few(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            p = batch["p_line"]  # NaN is neither, and null is left out
            found = batch.filter(pc.or_(pc.greater(p, threshold), pc.greater_equal(p, counted)))
            if len(found):
                yield found

    return rows.map(few, rows.columns().ddl).toArrow()


def gather(rows: Rows, few: pa.Table, known_lenses: pd.DataFrame, config: Config) -> Evidence:
    """The evidence for every hit of `rows`, scored ones or a ledger's.

    `few`: those `at_stake`, hits with what was measured of them, columns of schema.VETTING.
    """
    v, lines = config.vetting, few.to_pandas()
    lines["known_lens"] = known.match_known(lines, known_lenses, v.known_lens_radius)
    survey = census.take(rows, config.score.threshold)
    lines, bins = overdensity.with_wavelength_excess(lines, v, config.read.window)
    lines, groups = overdensity.with_group_excess(lines, survey.scored, v)
    lines = overdensity.with_same_wave(lines, v, window_pixels(config.read.window)[1])
    chosen = is_hit(lines, config)
    hits, own = lines[chosen].assign(lens_line_px=lens_line_px), few.filter(pa.array(chosen))
    numbered = attach(own, hits[list(COLUMNS)]).append_column("number", pa.array(range(len(own)), pa.int64()))
    cut = rows.spark.createDataFrame(numbered).select("number", nulls.is_artefact(config).alias("artefact")).toArrow()
    artefact = cut.sort_by("number")["artefact"].to_numpy()
    hits["q_value"] = nulls.false_discovery(hits, artefact, survey, v.q_snr_edge)
    hits["followup"] = followup(hits)
    return Evidence(attach(own, hits[list(COLUMNS)]), pd.concat([bins, groups], ignore_index=True), survey.facts)


def lens_line_px(hits: pd.DataFrame) -> np.ndarray:
    """Pixels between `line_wave` and the nearer line of Mg II at `z_lens`, (n,); NaN where that is not known."""
    rest = np.log10((hits["line_wave"] / (1 + hits["z_lens"])).to_numpy(float))
    return np.min([np.abs(rest - math.log10(line)) / DLOGLAM for line in MGII], axis=0)


def followup(hits: pd.DataFrame) -> pd.Series:
    """Priority for follow-up, 0-1: probability that the line is there, is Lya, and is multiply imaged.

    (1 - q_value^(1 + n_repeat_confirmed)) x p_lya x p_multiple; a factor that was not measured counts 0.5, q of 1
    gives 0.5 too, since a run too small to tell a rate must still be ranked.
    """
    times = 1 + hits["n_repeat_confirmed"].astype(float).fillna(0)
    real = 1 - hits["q_value"].fillna(1.0).clip(upper=NEUTRAL) ** times
    return real * hits["p_lya"].astype(float).fillna(NEUTRAL) * hits["p_multiple"].astype(float).fillna(NEUTRAL)


def attach(rows: pa.Table, found: pd.DataFrame) -> pa.Table:
    """`rows` with the columns of `found`, of as many rows, in place of their own of that name, and with all of
    schema.VETTING; NaN and None become null."""
    fields = arrow.schema_of(schema.LEDGER)
    columns = {name: rows[name] for name in rows.column_names}
    columns |= {name: pa.array(found[name], from_pandas=True).cast(fields.field(name).type) for name in found.columns}
    columns |= {name: pa.nulls(len(rows), fields.field(name).type)
                for name in schema.VETTING_NAMES if name not in columns}
    return pa.table(columns)


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
