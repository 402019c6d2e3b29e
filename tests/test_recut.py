"""A finished run is cut again from its ledger: only what may change changes, and tighter limits add no candidate."""

import json

import numpy as np
import pandas as pd
import pytest
from synthetic_run import write_run

from lensspark import catalogue, config, identity, recut, schema
from lensspark.vetting import CUTS, Veto

KEY = [column.name for column in schema.KEY]
LOOSE = ("vetting.max_sn_oii_veto=5", "vetting.min_line_snr=4", "vetting.max_neighbour_ratio=8")
TIGHT = ("vetting.max_sn_oii_veto=1", "vetting.min_line_snr=8", "vetting.max_overdensity=2", "score.threshold=0.97",
         "vetting.max_neighbour_ratio=0.5", "vetting.min_p_lya=0.2", "vetting.max_q_value=0.5")


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent") / "run"
    write_run(folder, rows=6000, plates=6, hit_rate=0.15)
    return folder


def cut(spark, parent, out, *settings, grades=None):
    run = recut.plan(str(parent), str(out), [], ["limits.max_quarantine_fraction=1", *settings], grades)
    recut.recut(spark, run, str(parent))
    ledger = pd.read_parquet(out / "ledger").astype({"plate": int}).sort_values(KEY).reset_index(drop=True)
    return ledger, json.loads((out / "run.json").read_text())


@pytest.fixture(scope="module")
def loose(spark, parent, tmp_path_factory):
    return cut(spark, parent, tmp_path_factory.mktemp("loose") / "run", *LOOSE)


def candidates(ledger):
    return set(ledger.loc[ledger["veto"] == 0, KEY].itertuples(index=False, name=None))


def test_a_recut_is_a_whole_run(parent, loose, tmp_path_factory):
    ledger, card = loose
    before = pd.read_parquet(parent / "ledger").astype({"plate": int}).sort_values(KEY).reset_index(drop=True)
    catalogue.check_counts(card["counts"])
    assert len(ledger) == len(before) == card["counts"]["n_input"] == 6000
    kept = ["p_line", "line_wave", "sn_oii_veto", "p_lya", "path", "z_lens"]
    pd.testing.assert_frame_equal(ledger[kept], before[kept])
    assert card["parent_run_id"] == "synthetic" != card["run_id"] == ledger["run_id"].unique().item()
    assert len(candidates(ledger)) == card["counts"]["n_candidates"] > 20
    assert ledger.loc[ledger["is_hit"] == True, ["q_value", "followup", "p_plate"]].notna().all(axis=None)  # noqa: E712
    sky = ledger[(ledger["is_hit"] == True) & (abs(ledger["line_wave"] - 4424) < 1)]  # noqa: E712
    assert len(sky) > 8 and (sky["veto"].astype(int) & Veto.OVERDENSITY_OBSERVED != 0).all()
    assert set(card["funnel"]["overdensity"]) == {"observed", "lens", "fiberid", "plate", "mjd"}
    assert {row["stage"] for row in card["funnel"]["cuts"]} >= {"over-densities", "identity", "people"}


def test_tighter_limits_never_add_a_candidate(spark, parent, loose, tmp_path, caplog):
    tight, card = cut(spark, parent, tmp_path / "run", *TIGHT, "report.blind_fakes=3")
    assert "report.blind_fakes = 3: no fakes, since the run's survey or model is not at hand" in caplog.text
    assert candidates(tight) < candidates(loose[0]) and card["run_id"] != loose[1]["run_id"]
    hits = loose[0].index[loose[0]["is_hit"] == True]  # noqa: E712
    both = loose[0].loc[hits, "veto"].astype(int), tight.loc[hits, "veto"].fillna(-1).astype(int)
    assert (both[0] & ~both[1] == 0).all(), "a looser limit set a bit that the tighter one did not"


def test_every_setting_is_the_limit_of_a_cut_or_made_of_the_ledger_or_needs_a_new_search():
    """A setting that is added cannot be re-cut until it is entered in FREE."""
    assert set(recut.FREE["vetting"]) - {""} < set(config.load().as_dict()["vetting"])
    assert {cut.threshold for cut in CUTS} <= recut.FREE["vetting"]


def test_identities_are_named_anew_from_their_probabilities():
    names = [f"p_{name}" for name in identity.NAMES]
    p = [[0.7, 0.3] + [0.0] * 8, [0.1, 0.85, 0.05] + [0.0] * 7, [0.0] * 9 + [0.6], [None] * 10]
    lines = pd.DataFrame(p, columns=names).assign(identity="old")
    got = {limit: recut.identified(lines, limit).tolist() for limit in (0.5, 0.8)}
    assert got == {0.5: ["lya", "oii", "cosmic", "old"], 0.8: ["undecided", "oii", "undecided", "old"]}


def test_grades_are_a_cut_and_stay(spark, loose, parent, tmp_path, caplog):
    caplog.set_level("INFO", "lensspark")
    ledger, _ = loose
    chosen = ledger[ledger["veto"] == 0].head(3)[KEY].assign(grade=["R", "A", "R"], comment=["ghost", "", ""])
    hosts = ledger[ledger["is_hit"] == False].head(2)[KEY].assign(grade="A", comment="a fake")  # noqa: E712
    pd.concat([chosen, hosts]).to_csv(tmp_path / "grades.csv", index=False)
    graded, card = cut(spark, parent, tmp_path / "run", *LOOSE, grades=str(tmp_path / "grades.csv"))
    assert "2 of 5 grades are of no hit" in caplog.text
    rejected = set(chosen[chosen["grade"] == "R"][KEY].itertuples(index=False, name=None))
    assert candidates(ledger) - candidates(graded) == rejected
    assert card["run_id"] != loose[1]["run_id"] and card["grades_sha256"]
    page = (tmp_path / "run/report/index.html").read_text(encoding="utf-8")
    assert f'const PAGE = {{"run_id":"{card["run_id"]}"' in page, "its grades would lie on another run's shelf"
    again, _ = cut(spark, tmp_path / "run", tmp_path / "again")
    assert candidates(again) == candidates(graded)
    for one in (graded, again):
        assert one["grade"].value_counts().to_dict() == {"R": 2, "A": 1}
        assert not (one["comment"] == "a fake").any(), "the grade of a fake is on its host's row"


@pytest.mark.parametrize(("setting", "message"), [
    ("selection.z_min=0.5", "selection.z_min = 0.5: the run was made with 0.3, .*needs a new search"),
    ("score.precision='bf16'", "needs a new search"), ("vetting.nothing=1", "unknown key vetting.nothing"),
    *((f"vetting.{setting}", rf"vetting\.{setting.split('=')[0]} = .*needs a new search") for setting in (
        "cosmology='WMAP9'", "fibre_diameter=3", "noise_correlation=0.1", "profile_half_width_px=15", "line_hits_snr=5",
        "identity_priors=[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]", "neighbour_fibres=1", "neighbour_max_px=2",
        "neighbour_min_snr=5", "repeat_radius=1", "repeat_min_snr=5", "repeat_flux_loss=0.5")),
    ("score.threshold=0.6", r"score.threshold = 0.6 .*scores of lines of S/N 0.81; .* from 4.5 on, .*new search"),
    ("vetting.known_lenses=['/nowhere.csv']", "cannot be read")])
def test_what_a_recut_cannot_do_is_refused(parent, tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        recut.plan(str(parent), str(tmp_path / "run"), [], [setting])
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_none_and_grades_that_are_none(parent, tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        recut.plan(str(tmp_path / "nothing"), str(tmp_path / "run"), [], [])
    with pytest.raises(ValueError, match="--grades .*nowhere"):
        recut.plan(str(parent), str(tmp_path / "run"), [], [], str(tmp_path / "nowhere.csv"))
    with pytest.raises(ValueError, match="holds a run with another parent_run_id"):
        recut.plan(str(parent), str(parent), [], ["vetting.min_line_snr=7"])


def test_synthetic_runs_are_of_the_ledgers_type(parent):
    frame = pd.read_parquet(parent / "ledger")
    assert set(frame.columns) == set(schema.LEDGER.names)
    assert np.isfinite(frame.loc[frame["selected"], "p_line"]).all()
