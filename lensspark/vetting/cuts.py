"""The cuts: named conditions that flag hits and never drop them, so that a finished run can be cut again.

Every cut is a keep-condition on measured columns of the ledger: a null or NaN measurement fails it. `CUTS` is the one
list, in the order of the funnel and its STAGES; the bits, the ledger's `veto` and the funnel all follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lensspark import config, schema
from lensspark.spectrum import mask_bits

REJECT = "R"


class Veto(IntFlag):
    """Bits of the ledger's `veto`; a published bit never changes its meaning.

    Ranges: 0-4 quality of the line itself; 5-9 and 21 over-densities (observed frame, lens frame, fibre, plate, night;
    the plate's own lines); 10-14 other identities of the line ([OII], a line of the galaxy, any of its lines where its
    redshift is not sure, ...); 15-17 profile (skewness); 18-22 but 21 evidence from elsewhere (neighbour fibres,
    repeats, cosmic rays); 23-25 false-alarm rate; 26-29 human verdicts.
    """

    LINE_PEAK = 1 << 0
    LINE_SNR = 1 << 1
    MASK_FRACTION = 1 << 2
    LINE_HITS = 1 << 3
    OVERDENSITY_OBSERVED = 1 << 5
    OVERDENSITY_LENS = 1 << 6
    FIBRE = 1 << 7
    PLATE = 1 << 8
    NIGHT = 1 << 9
    OII = 1 << 10
    IDENTITY = 1 << 11
    LENS_LINE = 1 << 12
    SKY = 1 << 13
    REDSHIFT = 1 << 14
    SKEWNESS = 1 << 15
    SKEW_CHI2 = 1 << 16
    NEIGHBOUR = 1 << 18
    REPEAT = 1 << 19
    COSMIC_RAY = 1 << 20
    SAME_WAVE = 1 << 21
    EXPOSURES = 1 << 22
    FALSE_ALARM = 1 << 23
    HUMAN = 1 << 26


# Steps of the funnel, in its order, and the numbers of their bits.
STAGES = {"line quality": range(5), "over-densities": (*range(5, 10), 21), "profile": range(15, 18),
          "identity": range(10, 15), "other spectra": (18, 19, 20, 22), "false-alarm rate": range(23, 26),
          "people": range(26, 30)}
# What Li et al. (2018) had left of their 536 hits that were not known before, by the same steps.
REFERENCE = {"hits": 536, "line quality": 124, "over-densities": 47, "profile": 21, "identity": 5}


@dataclass(frozen=True)
class Cut:
    """One cut: its bit, a phrase for people (`{threshold}` stands for the limit), what it needs, when it keeps.

    `shown`: the column that the limit is about, where it is not the one needed. A known lens always passes a cut with
    `spares_known`.
    """

    bit: Veto
    phrase: str
    columns: tuple[str, ...]
    threshold: str
    keep: Callable[[config.Vetting], Column]
    spares_known: bool = False
    shown: str = ""

    @property
    def name(self) -> str:
        return self.bit.name.lower()

    @property
    def stage(self) -> str:
        """The step of the funnel that it belongs to, by its bit."""
        return next(name for name, bits in STAGES.items() if self.bit.bit_length() - 1 in bits)

    def passes(self, vetting: config.Vetting) -> Column:
        """True or False for every row; False where a measured column is null or NaN."""
        kept = F.coalesce(self.keep(vetting), F.lit(False))
        if self.columns:
            kept &= F.expr(" AND ".join(f"`{name}` IS NOT NULL AND NOT isnan(CAST(`{name}` AS DOUBLE))"
                                        for name in self.columns))
        return kept | F.col("known_lens").isNotNull() if self.spares_known else kept

    def describe(self, vetting: config.Vetting) -> str:
        limit = getattr(vetting, self.threshold) if self.threshold else ""
        return self.phrase.format(threshold=f"{limit:g}" if isinstance(limit, (int, float)) else limit)


def _at_least(bit: Veto, phrase: str, column: str, threshold: str, **options: Any) -> Cut:
    """Keeps what is at or above the limit."""
    return Cut(bit, phrase, (column,), threshold, lambda v: F.col(column) >= getattr(v, threshold), **options)


def _at_most(bit: Veto, phrase: str, column: str, threshold: str, **options: Any) -> Cut:
    """Keeps what is at or below the limit."""
    return Cut(bit, phrase, (column,), threshold, lambda v: F.col(column) <= getattr(v, threshold), **options)


def _at_most_where_known(bit: Veto, phrase: str, column: str, threshold: str) -> Cut:
    """Keeps a fitted line whose `column` is at or below the limit, null or NaN."""
    return Cut(bit, phrase, ("profile_chi2",), threshold, lambda v: F.coalesce(
        F.nanvl(column, F.lit(-math.inf)), F.lit(-math.inf)) <= getattr(v, threshold), shown=column)


def _sure_of_redshift(v: config.Vetting) -> Column:
    """No warning of `bad_zwarning_bits` about the galaxy's redshift, or none when quasars are left out and it stays."""
    bits = F.lit(int(mask_bits(v.bad_zwarning_bits)))
    ours, without_quasars = (F.col(name).bitwiseAND(bits) == 0 for name in ("zwarning", "zwarning_noqso"))
    same = without_quasars & (F.col("z_lens") == F.col("z_noqso"))
    return F.coalesce(ours, F.lit(True)) | F.coalesce(same, F.lit(False))


CUTS = (
    # Li et al. (2018): lines with a peak below 1e-17 erg/s/cm2/A do not survive inspection.
    _at_least(Veto.LINE_PEAK, "peak flux density at least {threshold}", "line_peak", "min_line_peak"),
    # Shu et al. (2016): matched-filter S/N of at least 6.
    _at_least(Veto.LINE_SNR, "matched-filter S/N at least {threshold}", "line_snr", "min_line_snr"),
    # A line that rests on few pixels is the usual face of a cosmic ray or a bad column.
    _at_most(Veto.MASK_FRACTION, "masked about the line at most {threshold}", "line_mask_fraction",
             "max_mask_fraction"),
    # Shu et al. (2016): more than 5 hits in one spectrum mean a bad spectrum or a bad continuum.
    _at_most(Veto.LINE_HITS, "line-like peaks at most {threshold}", "n_line_hits", "max_line_hits"),
    # Template residuals gather in the lens's frame, airglow in the observer's (Shu et al. 2016, Cao et al. 2020).
    _at_most(Veto.OVERDENSITY_LENS, "over-density in the lens frame at most {threshold} sigma", "overdensity_lens",
             "max_overdensity", spares_known=True),
    _at_most(Veto.OVERDENSITY_OBSERVED, "over-density in observed wavelength at most {threshold} sigma",
             "overdensity_observed", "max_overdensity", spares_known=True),
    _at_least(Veto.SAME_WAVE, "same line in other fibres of the plate: probability at least {threshold}", "p_same_wave",
              "min_p_same_wave", spares_known=True),
    _at_least(Veto.FIBRE, "lines in the fibre number: probability at least {threshold}", "p_fibre",
              "min_p_overdensity", spares_known=True),
    _at_least(Veto.PLATE, "lines on the plate: probability at least {threshold}", "p_plate", "min_p_overdensity",
              spares_known=True),
    _at_least(Veto.NIGHT, "lines in the night: probability at least {threshold}", "p_night", "min_p_overdensity",
              spares_known=True),
    # Li et al. (2018) ask for alpha > 0; the shipped limits only ask that a profile could be fitted.
    _at_least(Veto.SKEWNESS, "probability of a red tail at least {threshold}", "p_skew_positive",
              "min_p_skew_positive"),
    _at_least(Veto.SKEW_CHI2, "chi2 gained by skewness at least {threshold}", "dchi2_skew", "min_dchi2_skew"),
    # Shu et al. (2016): a line at the implied Hbeta, [OIII] or Halpha.
    Cut(Veto.OII, "S/N at [OII]'s companions below {threshold}", ("sn_oii_veto",), "max_sn_oii_veto",
        lambda v: F.col("sn_oii_veto") < v.max_sn_oii_veto),
    # Few galaxies have Mg II emission, and a plate's airglow is in few of its fibres: over-densities tell late.
    _at_least(Veto.LENS_LINE, "at least {threshold} px from the galaxy's own Mg II", "lens_line_px", "min_lens_line_px",
              spares_known=True),
    _at_most(Veto.SKY, "probability of a line of the night sky at most {threshold}", "p_sky", "max_p_sky",
             spares_known=True),
    # Shu et al. (2016) search none with ZWARNING_NOQSO, Li et al. (2018) all: then the galaxy's own lines lie anywhere.
    Cut(Veto.REDSHIFT, "the galaxy's redshift without a warning", (), "bad_zwarning_bits", _sure_of_redshift,
        spares_known=True, shown="zwarning"),
    _at_least(Veto.IDENTITY, "probability of Lya at least {threshold}", "p_lya", "min_p_lya"),
    # Where the line-spread function is not known nothing is too narrow.
    _at_most_where_known(Veto.COSMIC_RAY, "a spike fits better by at most {threshold} in chi2", "dchi2_spike",
                         "max_dchi2_spike"),
    # Without two exposures of a full file nothing is known of them.
    _at_most_where_known(Veto.EXPOSURES, "brighter in one exposure than in the others by at most {threshold} sigma",
                         "exposure_tension", "max_exposure_tension"),
    # Where no neighbour could be measured (a mirror of single spectra) none can tell.
    Cut(Veto.NEIGHBOUR, "neighbour's line at most {threshold} times brighter", ("n_neighbour",), "max_neighbour_ratio",
        lambda v: F.coalesce("neighbour_ratio", F.lit(0.0)) <= v.max_neighbour_ratio, shown="neighbour_ratio"),
    # No repeat, no contradiction; a repeat that could not be measured says nothing either.
    Cut(Veto.REPEAT, "in repeats too faint by at most {threshold} sigma", ("n_repeat",), "max_repeat_tension",
        lambda v: F.coalesce("repeat_tension", F.lit(float("-inf"))) <= v.max_repeat_tension,
        shown="repeat_tension"),
    # Storey (2002): the expected share of false alarms among hits at least as significant.
    _at_most(Veto.FALSE_ALARM, "false-discovery rate at most {threshold}", "q_value", "max_q_value"),
    # A person's "reject" is final; what nobody has looked at stays.
    Cut(Veto.HUMAN, "not rejected by a person", (), "", lambda v: F.coalesce("grade", F.lit("")) != REJECT),
)


def completed(df: DataFrame) -> DataFrame:
    """`df` with the columns of schema.VETTING that it lacks, null: not measured."""
    present = set(df.columns)
    lacking = [F.lit(None).cast(column.type).alias(column.name) for column in schema.VETTING
               if column.name not in present]
    return df.select("*", *lacking)


def vet(df: DataFrame, settings: config.Config, cuts: Iterable[Cut] = CUTS) -> DataFrame:
    """`df` with `is_hit` (null where nothing was scored) and `veto` (null where there is no hit), computed anew."""
    is_hit = (F.col("p_line") > settings.score.threshold) & ~F.isnan("p_line")
    veto = F.lit(0)
    for cut in cuts:
        veto = veto.bitwiseOR(F.when(cut.passes(settings.vetting), 0).otherwise(int(cut.bit)))
    return completed(df).withColumn("is_hit", is_hit).withColumn("veto", F.when(F.col("is_hit"), veto))


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
            "stage": cut.stage,
            "columns": list(cut.columns),
            "failed": total(lambda fate, veto, bit=cut.bit: fate == "scored" and bool((veto or 0) & bit)),
            "left": total(lambda fate, veto, bits=so_far: fate == "scored" and veto is not None and not veto & bits),
        })
    return {"counts": counts, "not_selected": not_selected, "cuts": cuts}


def funnel_text(funnel: dict[str, Any]) -> str:
    """`funnel` for people: hits left after each step, beside the numbers of Li et al. (2018)."""
    left = {"hits": funnel["counts"]["n_hits"]} | {cut["stage"]: cut["left"] for cut in funnel["cuts"]}
    rows = [f"  {name:<18}{n:>12,}{REFERENCE.get(name, ''):>14}" for name, n in left.items()]
    return "\n".join(["  left after                here   Li+ 2018", *rows])
