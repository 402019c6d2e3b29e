"""Cuts flag and never drop; the funnel accounts for every row."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lensspark import catalogue, config, schema
from lensspark.vetting import CUTS, STAGES, Veto, evidence, funnel, funnel_text, vet

CONFIG = config.load([], ["score.threshold=0.5"])
NAN = float("nan")
LINE = {"p_line": 0.9, "line_peak": 3.0, "line_snr": 9.0, "line_mask_fraction": 0.0, "n_line_hits": 1}
# What the other cuts read, of a hit that passes them all.
CLEAR = {"overdensity_lens": 0.0, "overdensity_observed": 0.0, "p_fibre": 0.5, "p_plate": 0.5, "p_night": 0.5,
         "p_same_wave": 1.0, "p_skew_positive": 0.5, "dchi2_skew": 0.0, "sn_oii_veto": 0.0, "p_lya": 0.5,
         "lens_line_px": 300.0, "p_sky": 0.0, "profile_chi2": 30.0, "dchi2_spike": -9.0, "n_neighbour": 4,
         "neighbour_ratio": 0.0, "n_repeat": 0, "repeat_tension": None, "exposure_tension": None, "q_value": 0.01,
         "grade": None, "known_lens": None, "zwarning": 0, "zwarning_noqso": None, "z_lens": 0.5, "z_noqso": None}
STATE = {"selected": True, "not_selected_because": None, "reason": None}
TYPES = {column.name: column.type for column in schema.SCORED.columns + schema.VETTING}
WHOLE = schema.Table("whole", schema.SCORED.columns + schema.VETTING)


def scored(spark, changes):
    """A frame of scored and measured rows: a clear line, with the changes of each dict; fiberid is the row's number."""
    rows = [{**LINE, **CLEAR, **STATE, "fiberid": i, **change} for i, change in enumerate(changes)]
    names = [*LINE, *CLEAR, *STATE, "fiberid"]
    ddl = ", ".join(f"{name} {TYPES[name]}" for name in names)
    return WHOLE.conform(spark.createDataFrame([[row[name] for name in names] for row in rows], ddl))


def with_(p_line=None, **limits):
    """The default configuration with other limits."""
    score = CONFIG.score if p_line is None else dataclasses.replace(CONFIG.score, threshold=p_line)
    return dataclasses.replace(CONFIG, score=score, vetting=dataclasses.replace(CONFIG.vetting, **limits))


CASES = [
    ({}, True, 0),
    ({"line_peak": 1.0, "line_snr": 6.0, "line_mask_fraction": 0.3, "n_line_hits": 5}, True, 0),  # limits are inclusive
    ({"line_peak": 0.99}, True, Veto.LINE_PEAK),
    ({"line_peak": None}, True, Veto.LINE_PEAK),
    ({"line_peak": NAN}, True, Veto.LINE_PEAK),
    ({"line_snr": 5.99}, True, Veto.LINE_SNR),
    ({"line_snr": NAN}, True, Veto.LINE_SNR),
    ({"line_mask_fraction": 0.31}, True, Veto.MASK_FRACTION),
    ({"line_mask_fraction": None}, True, Veto.MASK_FRACTION),
    ({"n_line_hits": 6}, True, Veto.LINE_HITS),
    ({"n_line_hits": None}, True, Veto.LINE_HITS),
    ({"line_peak": NAN, "line_snr": None, "n_line_hits": 9}, True, Veto.LINE_PEAK | Veto.LINE_SNR | Veto.LINE_HITS),
    ({"overdensity_observed": 4.0, "overdensity_lens": 4.0, "p_plate": 1e-5, "neighbour_ratio": 3.0}, True, 0),
    ({"overdensity_observed": 4.1}, True, Veto.OVERDENSITY_OBSERVED),
    ({"overdensity_observed": None}, True, Veto.OVERDENSITY_OBSERVED),
    ({"overdensity_lens": 40.0}, True, Veto.OVERDENSITY_LENS),
    ({"overdensity_observed": 40.0, "overdensity_lens": 40.0, "p_fibre": 0.0, "p_plate": 0.0, "p_night": None,
      "p_same_wave": 0.0, "known_lens": "J0029+2544"}, True, 0),  # a known lens is no artefact
    ({"sn_oii_veto": 9.0, "known_lens": "J0029+2544"}, True, Veto.OII),  # but its line may be [OII]
    ({"lens_line_px": 2.0}, True, Veto.LENS_LINE),
    ({"lens_line_px": None}, True, Veto.LENS_LINE),
    ({"p_sky": 0.6}, True, Veto.SKY),
    ({"zwarning": 4}, True, Veto.REDSHIFT),
    ({"zwarning": 16}, True, 0),  # MANY_OUTLIERS: a background line can set it
    ({"zwarning": 128 | 16, "known_lens": "J0029+2544"}, True, 0),
    ({"zwarning": 4, "zwarning_noqso": 0, "z_lens": 0.5, "z_noqso": 0.5}, True, 0),  # a quasar was as likely
    ({"zwarning": 4, "zwarning_noqso": 0, "z_lens": 0.5, "z_noqso": 0.6}, True, Veto.REDSHIFT),
    ({"zwarning": 4, "zwarning_noqso": 4, "z_lens": 0.5, "z_noqso": 0.5}, True, Veto.REDSHIFT),
    ({"zwarning": None}, True, 0),
    ({"p_fibre": 9e-6}, True, Veto.FIBRE),
    ({"p_plate": 9e-6, "p_night": 0.0}, True, Veto.PLATE | Veto.NIGHT),
    ({"p_same_wave": 9e-4}, True, Veto.SAME_WAVE),
    ({"sn_oii_veto": 3.0}, True, Veto.OII),
    ({"sn_oii_veto": None, "profile_chi2": None, "p_skew_positive": None, "dchi2_skew": None, "p_lya": None,
      "p_sky": None, "n_neighbour": None, "n_repeat": None}, True,  # a spectrum that could not be read again
     Veto.OII | Veto.SKY | Veto.COSMIC_RAY | Veto.EXPOSURES | Veto.SKEWNESS | Veto.SKEW_CHI2 | Veto.IDENTITY
     | Veto.NEIGHBOUR | Veto.REPEAT),
    ({"dchi2_spike": -2.4}, True, Veto.COSMIC_RAY),
    ({"dchi2_spike": None}, True, 0),  # no line-spread function, no spike test
    ({"exposure_tension": 4.1}, True, Veto.EXPOSURES),
    ({"neighbour_ratio": 3.1}, True, Veto.NEIGHBOUR),
    ({"n_neighbour": 0, "neighbour_ratio": None}, True, 0),
    ({"n_repeat": 1, "repeat_tension": 4.1}, True, Veto.REPEAT),
    ({"q_value": None}, True, Veto.FALSE_ALARM),
    ({"grade": "R"}, True, Veto.HUMAN),
    ({"grade": "C"}, True, 0),
    ({"p_line": 0.5}, False, None),  # a hit lies above the threshold
    ({"p_line": NAN}, False, None),
    ({"p_line": None, "selected": False, "not_selected_because": "class"}, None, None),
]


def test_bits_of_every_cut(spark):
    got = vet(scored(spark, [change for change, _, _ in CASES]), CONFIG).orderBy("fiberid").collect()
    assert [(row.is_hit, row.veto) for row in got] == [(hit, veto) for _, hit, veto in CASES]


def test_each_cut_has_its_own_published_bit():
    bits = [cut.bit for cut in CUTS]
    assert len(set(bits)) == len(bits) and set(bits) == set(Veto)
    assert all(bit.value.bit_count() == 1 and bit < 2**31 for bit in bits)  # fits the ledger's signed int
    assert {bit.name: bit.value.bit_length() - 1 for bit in Veto} == {
        "LINE_PEAK": 0, "LINE_SNR": 1, "MASK_FRACTION": 2, "LINE_HITS": 3, "OVERDENSITY_OBSERVED": 5,
        "OVERDENSITY_LENS": 6, "FIBRE": 7, "PLATE": 8, "NIGHT": 9, "OII": 10, "IDENTITY": 11,
        "LENS_LINE": 12, "SKY": 13, "REDSHIFT": 14, "SKEWNESS": 15, "SKEW_CHI2": 16, "NEIGHBOUR": 18, "REPEAT": 19,
        "COSMIC_RAY": 20, "SAME_WAVE": 21, "EXPOSURES": 22, "FALSE_ALARM": 23, "HUMAN": 26}
    assert [cut.describe(CONFIG.vetting) for cut in CUTS][1] == "matched-filter S/N at least 6"
    assert {name for cut in CUTS for name in cut.columns} <= set(schema.LEDGER.names)


def test_vetting_again_forgets_the_first_verdict(spark):
    once = vet(scored(spark, [change for change, _, _ in CASES]), CONFIG)
    again = vet(vet(once, with_(p_line=0.95, min_line_snr=100.0)), CONFIG)
    assert again.columns == once.columns
    verdicts = [df.select("fiberid", "is_hit", "veto").orderBy("fiberid").collect() for df in (once, again)]
    assert verdicts[0] == verdicts[1]


maybe = st.one_of(st.none(), st.just(NAN))
rows = st.lists(
    st.fixed_dictionaries({
        "p_line": st.floats(0, 1), "line_peak": st.one_of(maybe, st.floats(-2, 5)),
        "line_snr": st.one_of(maybe, st.floats(-2, 20)), "line_mask_fraction": st.one_of(maybe, st.floats(0, 1)),
        "n_line_hits": st.one_of(st.none(), st.integers(0, 12)),
        **{name: st.one_of(maybe, st.floats(0, 1)) for name in ("p_plate", "p_same_wave", "p_lya", "p_skew_positive",
                                                                "q_value")},
        **{name: st.one_of(maybe, st.floats(-10, 10)) for name in ("overdensity_lens", "overdensity_observed",
                                                                   "sn_oii_veto", "dchi2_spike", "repeat_tension",
                                                                   "exposure_tension")},
        "neighbour_ratio": st.one_of(maybe, st.floats(0, 10)), "known_lens": st.sampled_from([None, None, "x"]),
        "n_repeat": st.integers(0, 2),
    }), min_size=30, max_size=30)
pair = {"p_line": st.floats(0, 1), "min_line_peak": st.floats(-2, 5), "min_line_snr": st.floats(-2, 20),
        "max_mask_fraction": st.floats(0, 1), "max_line_hits": st.integers(1, 12),
        **{name: st.floats(0, 1) for name in ("min_p_overdensity", "min_p_same_wave", "min_p_lya",
                                              "min_p_skew_positive", "max_q_value")},
        **{name: st.floats(0, 10) for name in ("max_overdensity", "max_sn_oii_veto", "max_dchi2_spike",
                                               "max_neighbour_ratio", "max_repeat_tension",
                                               "max_exposure_tension")}}


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=rows, one=st.fixed_dictionaries(pair), two=st.fixed_dictionaries(pair))
def test_tighter_thresholds_never_add_a_candidate(spark, rows, one, two):
    pick = {name: (min, max)[name.startswith("max")] for name in pair}
    loose = {name: choose(one[name], two[name]) for name, choose in pick.items()}
    tight = {name: one[name] + two[name] - value for name, value in loose.items()}
    df = scored(spark, rows).select(*LINE, *CLEAR)
    loosely = vet(df, with_(**loose)).withColumnsRenamed({"is_hit": "loose_hit", "veto": "loose_veto"})
    both = vet(loosely, with_(**tight)).collect()
    assert len(both) == len(rows)
    for row in both:
        assert row.loose_hit or not row.is_hit
        if row.veto is not None:
            assert row.loose_veto & ~row.veto == 0, "a looser limit set a bit that the tighter one did not"


FATES = [
    {"reason": "empty file", "selected": None, "p_line": None},
    {"selected": False, "not_selected_because": "class,z_min", "p_line": None},
    {"selected": False, "not_selected_because": "z_min", "p_line": None},
    {"selected": False, "not_selected_because": "class", "p_line": None},
    {"p_line": 0.1}, {"p_line": 0.2}, {"p_line": 0.3},
    {"line_peak": 0.1}, {"line_peak": 0.1, "line_snr": 1.0}, {"line_snr": 1.0}, {"n_line_hits": 7},
    {}, {},
]


@pytest.mark.parametrize("partitions", [1, 5])
def test_funnel_accounts_for_every_row(spark, partitions):
    got = funnel(vet(scored(spark, FATES).repartition(partitions), CONFIG), CONFIG)
    catalogue.check_counts(got["counts"])
    assert got["counts"] == {
        "n_input": 13, "n_quarantined": 1, "n_not_selected": 3, "n_scored": 9, "n_hits": 6, "n_non_hits": 3,
        "n_candidates": 2, "n_vetoed": 4,
    }
    assert got["not_selected"] == {"class": 2, "z_min": 1}  # each row once, under the first criterion
    assert [(cut["name"], cut["failed"], cut["left"]) for cut in got["cuts"]][:4] == [
        ("line_peak", 2, 4), ("line_snr", 2, 3), ("mask_fraction", 0, 3), ("line_hits", 1, 2),
    ]
    assert {(cut["failed"], cut["left"]) for cut in got["cuts"][4:]} == {(0, 2)}
    rows = [line.split() for line in funnel_text(got).splitlines()[1:]]
    assert rows[0] == ["hits", "6", "536"] and rows[1] == ["line", "quality", "2", "124"]
    assert rows[-1] == ["people", "2"]


def test_the_funnel_takes_its_stages_in_order_and_its_counts_only_fall(spark):
    failing = [{"p_same_wave": 0.0}, {"p_plate": 0.0}, {"p_skew_positive": -1.0}, {"sn_oii_veto": 9.0},
               {"neighbour_ratio": 9.0}, {"q_value": None}, {"grade": "R"}, {"line_snr": 1.0}, {}]
    got = funnel(vet(scored(spark, failing), CONFIG), CONFIG)
    assert list(dict.fromkeys(cut["stage"] for cut in got["cuts"])) == list(STAGES)
    text = funnel_text(got).splitlines()[1:]
    assert [line[:20].strip() for line in text] == ["hits", *STAGES]
    assert [line[20:].split() for line in text] == [
        ["9", "536"], ["8", "124"], ["6", "47"], ["5", "21"], ["4", "5"], ["3"], ["2"], ["1"]]


def test_funnel_of_a_ledger_counts_the_quarantine_beside_it(spark):
    whole = vet(scored(spark, FATES), CONFIG)
    ledger = whole.where("reason IS NULL").drop("reason")
    assert funnel(ledger, CONFIG, n_quarantined=1) == funnel(whole, CONFIG)


def test_funnel_of_nothing(spark):
    got = funnel(vet(scored(spark, FATES).where("false"), CONFIG), CONFIG)
    assert set(got["counts"].values()) == {0} and all(cut["left"] == 0 for cut in got["cuts"])


def test_a_row_without_a_verdict_is_an_error(spark):
    with pytest.raises(RuntimeError, match="1 rows have no verdict"):
        funnel(vet(scored(spark, [{}, {"p_line": None}]), CONFIG), CONFIG)


def test_the_distance_from_the_galaxys_mg_ii_is_that_of_its_nearer_line():
    waves = [1.5 * 2796.35 * 10**3e-4, 1.5 * 2803.53 * 10**-2e-4, 1.5 * 2803.53 * 10**0.02, None]
    found = evidence.lens_line_px(pd.DataFrame({"line_wave": waves, "z_lens": 0.5}))
    assert found[:3] == pytest.approx([3.0, 2.0, 200.0]) and np.isnan(found[3])


def test_the_priority_is_a_product_of_probabilities_and_what_was_not_measured_counts_half():
    hits = pd.DataFrame({"q_value": [0.1, 0.1, 1.0, None], "n_repeat_confirmed": [0, 1, None, None],
                         "p_lya": [0.8, 0.8, 1.0, None], "p_multiple": [0.5, 0.5, None, 1.0]})
    assert evidence.followup(hits).tolist() == pytest.approx([0.9 * 0.4, 0.99 * 0.4, 0.5 * 0.5, 0.5 * 0.5])
