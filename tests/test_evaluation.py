"""Figures of merit from tables whose answer can be counted by hand."""

import numpy as np
import pandas as pd
import pytest

from lensspark import config, evaluation

INPUT = config.load().input


def tables(rows):
    """(ledger, truth) from (kind, p_line, true wave, true S/N, found wave) rows; None: not scored."""
    n = len(rows)
    key = {"plate": np.full(n, 1), "mjd": np.full(n, 55000), "fiberid": np.arange(n), "run2d": ["v5_7_0"] * n}
    kind, p_line, wave, snr, found = (list(column) for column in zip(*rows, strict=True))
    ledger = pd.DataFrame({**key, "p_line": np.array(p_line, float), "line_wave": np.array(found, float),
                           "line_snr": 5 + 10 * np.array(p_line, float), "z_lens": np.full(n, 0.5)})
    truth = pd.DataFrame({**key, "kind": kind, "line_wave": np.array(wave, float), "line_snr": np.array(snr, float),
                          "z_lens": np.full(n, 0.5)})
    return ledger, truth


def test_counted_by_hand():
    px = 4200 * np.log(10) * 1e-4
    rows = [
        ("lya", 0.9, 4200, 9, 4200 + 2.9 * px),   # found
        ("lya", 0.9, 4200, 9, 4200 + 3.2 * px),   # hit, but elsewhere
        ("lya", 0.4, 4200, 9, 4200),              # missed
        ("lya", 0.9, 4300, 5.5, 4300),            # found, faint
        ("lya", 0.9, 4359.6, 20, 4359.6),         # under the mask of a lamp
        ("lya", None, 4200, 20, None),            # not scored
        ("oii", 0.9, 4100, 9, 4100),
        ("clean", 0.6, None, None, 4000), ("clean", 0.1, None, None, 4000), ("cosmic", 0.1, 4000, 9, 4000),
        ("star", 0.1, None, None, 4000),
    ]
    figures = evaluation.evaluate(*tables(rows), 0.5, INPUT)
    at = figures["at"]["configured"]
    assert figures["n_scored"] == 10 and figures["n_lya"] == 5 and figures["n_line_free"] == 4
    assert at["recall_snr_8"] == pytest.approx(1 / 3, abs=1e-5)
    assert at["placed_snr_8"] == pytest.approx(2 / 3, abs=1e-5)
    assert at["recall_of_all_snr_8"] == pytest.approx(2 / 4)
    assert at["false_hit_rate"] == pytest.approx(1 / 4)
    assert at["rank_correlation"] == 1.0
    assert {tuple(b["snr"]): (b["n"], b["recall"]) for b in at["recall"]} == {(5.0, 6.0): (1, 1.0), (8.0, 10.0):
                                                                              (3, 0.3333)}
    assert at["kinds"]["oii"] == {"n": 1, "hits": 1} and at["offset_px_rms"] == pytest.approx(2.9, abs=0.01)
    assert set(figures["at"]) == {"configured"}, "4 spectra cannot have a false-hit rate of 1e-3"
    assert "recall of S/N >= 8 0.333" in evaluation.summary(figures)


def test_the_threshold_of_a_false_hit_rate_has_that_rate():
    rng = np.random.default_rng(0)
    rows = [("clean", p, None, None, 4000) for p in rng.random(5000)] + [("lya", 0.9995, 4200, 9, 4200)]
    at = evaluation.evaluate(*tables(rows), 0.5, INPUT)["at"]["false_hit_rate_0.001"]
    assert at["false_hit_rate"] == pytest.approx(5 / 5000)


def test_a_truth_of_another_survey_is_refused():
    ledger, truth = tables([("clean", 0.1, None, None, 4000)])
    with pytest.raises(ValueError, match="truth of this survey"):
        evaluation.evaluate(ledger, truth.assign(plate=2), 0.5, INPUT)


def test_what_the_cuts_do_counted_by_hand():
    from lensspark.vetting import Veto

    px = 4200 * np.log(10) * 1e-4
    rows = [
        ("lya", 0.9, 4200, 9, 4200), ("lya", 0.9, 4200, 9, 4200), ("lya", 0.9, 4200, 9, 4200 + 4 * px),
        ("lya", 0.1, 4200, 9, 4200), ("oii", 0.9, 4100, 9, 4100 + 4 * px), ("oii", 0.9, 4100, 7, 4100),
        ("clean", 0.9, None, None, 4000), ("airglow", 0.9, 4100, 9, 4100), ("cosmic", 0.1, 4000, 9, 4000),
        ("clean", 0.05, None, None, 4010),                       # a peak of noise below S/N 6
        ("clean", 0.9, None, None, 1.5 * 2797.3 + px),           # on the galaxy's own Mg II
        ("clean", 0.9, None, None, 1.5 * 2626.45 + 10 * px),     # beside all its lines, but its redshift is wrong
        ("lens_line", 0.9, 5590.6, 30, 1.5 * 2803.53 + 5 * px), ("cosmic", 0.9, 4000, 9, 4210),
    ]
    ledger, truth = tables(rows)
    truth["line_alpha"] = 3.0
    truth.loc[11, "z_lens"] = 0.4
    veto = [0, Veto.NIGHT | Veto.OII, 0, np.nan, Veto.OII, Veto.OII, 0, Veto.SAME_WAVE, np.nan, Veto.LINE_SNR,
            Veto.OVERDENSITY_LENS, 0, 0, 0]
    ledger["veto"] = [float(v) for v in veto]
    ledger["q_value"] = [0.01, 0.01, 0.01, np.nan, 0.01, 0.2, 0.05, 1, np.nan, 1, 1, 1, 1, 1]
    figures = evaluation.evaluate_vetting(ledger, truth, INPUT)
    groups = figures["groups"]
    assert groups["lya, S/N >= 8, alpha >= 2"] == {"n": 4, "hits": 2, "vetoed": 1, "by": {"night": 1, "oii": 1}}
    assert groups["oii, S/N >= 8"] == {"n": 1, "hits": 1, "vetoed": 1, "by": {"oii": 1}}
    # The lya line that was found 4 px from its place is nothing else.
    assert groups["template residuals"] == {"n": 12, "hits": 3, "vetoed": 1, "by": {"overdensity_lens": 1}}
    assert groups["noise peaks"] == {"n": 12, "hits": 3, "vetoed": 1, "by": {"line_snr": 1}}
    assert groups["noise peaks, S/N >= 6"]["hits"] == 2 and groups["airglow"]["by"] == {"same_wave": 1}
    assert (groups["cosmic"]["n"], groups["cosmic"]["hits"]) == (2, 0)
    q = figures["q"]
    assert (q["n"], q["false"]) == (5, 2), "the lya line elsewhere and the clean galaxy; [OII] is a doublet"
    assert "oii 1" in evaluation.vetting_summary(figures)
