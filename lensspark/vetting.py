"""Vetting: named cuts that flag hits and never drop them, so that a finished run can be cut again from its ledger.

Every cut is a keep-condition on measured columns: a null or NaN measurement fails it. `CUTS` is the one list; the
bits, the ledger's `veto` and the funnel all follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lensspark import config


class Veto(IntFlag):
    """Bits of the ledger's `veto`; a published bit never changes its meaning.

    Ranges: 0-4 quality of the line itself; 5-9 over-densities (observed frame, lens frame, fibre, plate, night);
    10-14 other identities of the line ([OII], a line of the galaxy, ...); 15-17 profile (skewness); 18-22 evidence
    from elsewhere (neighbour fibres, repeats, cosmic rays); 23-25 false-alarm rate; 26-29 human verdicts.
    """

    LINE_PEAK = 1 << 0
    LINE_SNR = 1 << 1
    MASK_FRACTION = 1 << 2
    LINE_HITS = 1 << 3


@dataclass(frozen=True)
class Cut:
    """One cut: its bit, a phrase for people (`{threshold}` stands for the limit), what it reads, when it keeps."""

    bit: Veto
    phrase: str
    columns: tuple[str, ...]
    threshold: str
    keep: Callable[[config.Vetting], Column]

    @property
    def name(self) -> str:
        return self.bit.name.lower()

    def passes(self, vetting: config.Vetting) -> Column:
        """True or False for every row; False where a measured column is null or NaN."""
        measured = F.lit(True)
        for name in self.columns:
            measured &= F.col(name).isNotNull() & ~F.isnan(F.col(name).cast("double"))
        return measured & F.coalesce(self.keep(vetting), F.lit(False))

    def describe(self, vetting: config.Vetting) -> str:
        return self.phrase.format(threshold=f"{getattr(vetting, self.threshold):g}")


CUTS = (
    # Li et al. (2018): lines with a peak below 1e-17 erg/s/cm2/A do not survive inspection.
    Cut(Veto.LINE_PEAK, "peak flux density at least {threshold}", ("line_peak",), "min_line_peak",
        lambda v: F.col("line_peak") >= v.min_line_peak),
    # Shu et al. (2016): matched-filter S/N of at least 6.
    Cut(Veto.LINE_SNR, "matched-filter S/N at least {threshold}", ("line_snr",), "min_line_snr",
        lambda v: F.col("line_snr") >= v.min_line_snr),
    # A line that rests on few pixels is the usual face of a cosmic ray or a bad column.
    Cut(Veto.MASK_FRACTION, "masked about the line at most {threshold}", ("line_mask_fraction",),
        "max_mask_fraction", lambda v: F.col("line_mask_fraction") <= v.max_mask_fraction),
    # Shu et al. (2016): more than 5 hits in one spectrum mean a bad spectrum or a bad continuum.
    Cut(Veto.LINE_HITS, "line-like peaks at most {threshold}", ("n_line_hits",), "max_line_hits",
        lambda v: F.col("n_line_hits") <= v.max_line_hits),
)


def vet(df: DataFrame, settings: config.Config, cuts: Iterable[Cut] = CUTS) -> DataFrame:
    """`df` with `is_hit` (null where nothing was scored) and `veto` (null where there is no hit), computed anew."""
    is_hit = (F.col("p_line") > settings.score.threshold) & ~F.isnan("p_line")
    veto = F.lit(0)
    for cut in cuts:
        veto = veto.bitwiseOR(F.when(cut.passes(settings.vetting), 0).otherwise(int(cut.bit)))
    return df.withColumn("is_hit", is_hit).withColumn("veto", F.when(F.col("is_hit"), veto))


def funnel(df: DataFrame, settings: config.Config, n_quarantined: int = 0) -> dict[str, Any]:
    """What became of every row of a vetted `df`, from one aggregation on the cluster.

    `df` is the vetted schema.SCORED, or a ledger with the number of rows in its quarantine as `n_quarantined`.
    Returns `counts` (the run card's n_... numbers), `not_selected` (criterion -> rows for which it is the first to
    fail) and `cuts` (per cut in turn: name, phrase, `failed` = hits that fail it, `left` = hits after it).
    Raises RuntimeError for rows that were neither quarantined, nor left out by the selection, nor scored.
    """
    fault = F.col("reason").isNotNull() if "reason" in df.columns else F.lit(False)
    fate = F.when(fault, "quarantined").when(~F.col("selected"), "not_selected")
    fate = fate.when(F.col("p_line").isNotNull(), "scored")
    criterion = F.substring_index("not_selected_because", ",", 1)
    groups = (
        df.groupBy(fate.alias("fate"), F.when(fate == "not_selected", criterion).alias("criterion"), "veto")
        .count().collect()  # a handful of rows: one per combination of failing cuts
    )
    return _tally([tuple(group) for group in groups], settings.vetting, n_quarantined)


def _tally(groups: list[tuple[str | None, str | None, int | None, int]], vetting: config.Vetting,
           n_quarantined: int) -> dict[str, Any]:
    """The funnel from (fate, first failing criterion, veto, number of rows) groups; see `funnel`."""
    def total(keep: Callable[[str | None, int | None], bool]) -> int:
        return sum(n for fate, _, veto, n in groups if keep(fate, veto))

    lost = total(lambda fate, veto: fate is None)
    if lost:
        raise RuntimeError(f"{lost} rows have no verdict: expected each to be quarantined, not selected or scored")
    not_selected: dict[str, int] = {}
    for fate, criterion, _, n in sorted(groups, key=str):
        if fate == "not_selected":
            not_selected[criterion or "unnamed"] = not_selected.get(criterion or "unnamed", 0) + n
    counts = {
        "n_input": total(lambda fate, veto: True) + n_quarantined,
        "n_quarantined": total(lambda fate, veto: fate == "quarantined") + n_quarantined,
        "n_not_selected": sum(not_selected.values()),
        "n_scored": total(lambda fate, veto: fate == "scored"),
        "n_hits": total(lambda fate, veto: fate == "scored" and veto is not None),
        "n_non_hits": total(lambda fate, veto: fate == "scored" and veto is None),
        "n_candidates": total(lambda fate, veto: fate == "scored" and veto == 0),
        "n_vetoed": total(lambda fate, veto: fate == "scored" and bool(veto)),
    }
    cuts, so_far = [], 0
    for cut in CUTS:
        so_far |= cut.bit
        cuts.append({
            "name": cut.name,
            "phrase": cut.describe(vetting),
            "failed": total(lambda fate, veto, bit=cut.bit: fate == "scored" and bool((veto or 0) & bit)),
            "left": total(lambda fate, veto, bits=so_far: fate == "scored" and veto is not None and not veto & bits),
        })
    return {"counts": counts, "not_selected": not_selected, "cuts": cuts}
