"""Why two runs differ: each cause from hand-made rows, and none claimed to be proven where another is possible."""

import fnmatch

import pytest

from lensspark import compare, config, schema
from lensspark.compare import causes
from lensspark.compare.causes import explain
from lensspark.compare.facts import Differences
from lensspark.vetting import CUTS, Veto

CARD = {"model_sha256": "a" * 64, "input_manifest_sha256": "1" * 64, "versions": {"lensspark": "1", "numpy": "1.26"},
        "configuration": config.load().as_dict()}
MEASURED = {"ra": 150.0, "dec": 2.0, "class": "GALAXY", "z": 0.5, "zwarning": 0, "sn_median": 5.0, "z_lens": 0.5,
            "selected": True, "p_line": 0.99, "line_wave": 4300.0, "line_snr": 8.0, "line_flux": 20.0, "line_peak": 4.0,
            "line_mask_fraction": 0.0, "n_line_hits": 1, "is_hit": True, "profile_chi2": 30.0, "p_skew_positive": 0.9,
            "dchi2_skew": 3.0, "dchi2_spike": -5.0, "p_lya": 0.7, "sn_oii_veto": 1.0, "overdensity_lens": 0.5,
            "overdensity_observed": 0.5, "p_fibre": 0.5, "p_plate": 0.5, "p_night": 0.5, "p_same_wave": 0.5,
            "n_repeat": 0, "n_neighbour": 4, "neighbour_ratio": 0.1, "q_value": 0.01, "veto": 0,
            "path": "spPlate-4055-55359.fits"}


def row(change=None, **facts):
    """A hit of both runs, alike but for `change`: column -> (in A, in B)."""
    made = {f"{name}_{side}": MEASURED.get(name) for name in schema.COMPARED for side in "ab"}
    for name, values in (change or {}).items():
        made |= {f"{name}_a": values[0], f"{name}_b": values[1]}
    return made | {"in_a": True, "in_b": True, "hit": "kept", "moved": "", "fate": None, "reduction": None} | facts


def other(**changes):
    """A run card that differs from CARD: `section__key` for a setting."""
    card = CARD | {"configuration": {part: dict(keys) for part, keys in CARD["configuration"].items()}}
    for name, value in changes.items():
        part, dunder, key = name.partition("__")
        if dunder:
            assert key in card["configuration"][part]
            card["configuration"][part][key] = value
        else:
            card[name] = value
    return Differences.between(CARD, card)


def told(made, runs):
    found = explain(made, runs, compare.CUT_FACTS)
    return found.causes, found.proven, found.why


def test_a_spectrum_that_the_other_run_has_not():
    gone = {name: (value, None) for name, value in MEASURED.items()}
    absent = {"hit": "vanished", "in_b": False}
    names, proven, why = told(row(gone, **absent, fate="HDU 2: bad CHECKSUM"), other(input_manifest_sha256="2"))
    assert (names, proven) == (["data"], True) and "no row in B: quarantined there: HDU 2: bad CHECKSUM" in why
    names, proven, why = told(row(gone, **absent, reduction="v5_10_0"), other(input_manifest_sha256="2"))
    assert (names, proven) == (["data"], True) and "run2d v5_10_0" in why
    assert told(row(gone, **absent), other(input_manifest_sha256="2"))[:2] == (["data"], True)
    assert "both runs list the same files" in told(row(gone, **absent), other())[2]
    stricter = told(row(gone, **absent, fate="ragged"), other(versions={"lensspark": "2", "numpy": "1.26"}))
    assert stricter[:2] == (["data", "versions"], False), "a newer reader may have become stricter"


def test_a_limit_is_named_with_its_cut_and_both_values():
    vetoed = {"veto": (0, int(Veto.LINE_SNR))}
    names, proven, why = told(row(vetoed, moved="veto"), other(vetting__min_line_snr=9.0))
    assert (names, proven) == (["limit"], True)
    assert why == "line_snr fails: vetting.min_line_snr 6 → 9 (line_snr 8)"
    doubted = {"veto": (0, int(Veto.REDSHIFT)), "zwarning": (16, 16)}
    names, proven, why = told(row(doubted, moved="veto"), other(vetting__bad_zwarning_bits=[2, 4]))
    assert (names, proven) == (["limit"], True) and why.endswith("→ [2, 4] (zwarning 16)")
    hit = {"is_hit": (True, False), "veto": (0, None), "p_line": (0.96, 0.96)}
    names, proven, why = told(row(hit, hit="vanished"), other(score__threshold=0.97))
    assert (names, proven, why) == (["limit"], True, "below the threshold: score.threshold 0.945 → 0.97 (p_line 0.96)")


@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut.threshold], ids=lambda cut: cut.name)
def test_every_cut_that_is_tightened_is_told_as_a_limit(cut):
    """For each cut: a value between both limits, the same on both sides."""
    name = cut.shown or cut.columns[0]
    limits = (1.0, 3.0) if cut.threshold.startswith("min_") else (3.0, 1.0)
    before, after = ({**CARD["configuration"]["vetting"], cut.threshold: limit} for limit in limits)
    cards = [CARD | {"configuration": CARD["configuration"] | {"vetting": v}} for v in (before, after)]
    change = {"veto": (0, int(cut.bit)), name: (2.0, 2.0)}
    found = explain(row(change, moved="veto"), Differences.between(*cards), compare.CUT_FACTS)
    assert (found.causes, found.proven) == (["limit"], True)
    assert f"{cut.name} fails: vetting.{cut.threshold}" in found.why


def test_a_value_that_moved_is_not_laid_to_a_limit_that_moved_too():
    change = {"veto": (0, int(Veto.LINE_SNR)), "line_snr": (8.0, 3.0)}
    names, proven, _ = told(row(change, moved="veto"), other(vetting__min_line_snr=7.0, model_sha256="b" * 64))
    assert (names, proven) == (["model"], True)
    change["line_snr"] = (8.0, 6.5)  # S/N 8 passes both limits and 6.5 the old one: it took both
    names, proven, _ = told(row(change, moved="veto"), other(vetting__min_line_snr=7.0, model_sha256="b" * 64))
    assert (set(names), proven) == ({"model", "limit"}, False)


MOVED = {"p_line": (0.99, 0.96), "line_wave": (4300.0, 4310.0)}


@pytest.mark.parametrize(("changes", "names", "proven"), [
    ({"model_sha256": "b" * 64}, ["model"], True), ({"input_manifest_sha256": "2"}, ["data"], True),
    ({"versions": {"lensspark": "1", "numpy": "2.0"}}, ["versions"], True),
    ({"score__precision": "bf16"}, ["configuration"], True),
    ({"model_sha256": "b" * 64, "input__fit_passes": 3}, ["model"], True),  # the model's own input
    ({"model_sha256": "b" * 64, "input_manifest_sha256": "2"}, ["data", "model"], False),
    ({"model_sha256": "b" * 64, "score__precision": "bf16"}, ["model", "configuration"], False),
    ({"report__max_candidates": 7, "vetting__min_line_snr": 1.0, "limits__max_quarantine_fraction": 0.5,
      "versions": {"lensspark": "1", "numpy": "1.26", "fsspec": "9"}}, ["unknown"], False)])
def test_what_could_have_moved_a_score_and_a_line(changes, names, proven):
    assert told(row(MOVED, moved="line_wave,p_line"), other(**changes))[:2] == (names, proven)


def test_values_of_the_catalogue_prove_other_data_only_where_nothing_else_could():
    change = MOVED | {"z_lens": (0.5, 0.52), "z": (0.5, 0.52)}
    names, proven, why = told(row(change, moved="line_wave,p_line"), other())
    assert (names, proven) == (["data"], True) and "z_lens 0.5 → 0.52" in why
    assert told(row(change, moved="p_line"), other(model_sha256="b"))[:2] == (["data", "model"], False)
    alone = MOVED | {"z_lens": (0.5, 0.52)}  # the sample takes another of the catalogue's redshifts
    names, proven, why = told(row(alone, moved="p_line"), other(selection__sample="classical"))
    assert (names, proven) == (["configuration"], True) and "selection.sample published → classical" in why


def test_the_file_of_a_spectrum_tells_more_than_the_list_of_files():
    runs = other(input_manifest_sha256="2", model_sha256="b" * 64)
    assert told(row(MOVED, moved="p_line", file=""), runs)[:2] == (["model"], True)
    names, proven, why = told(row(MOVED, moved="p_line", file="size 5 → 6"), other(input_manifest_sha256="2"))
    assert (names, proven) == (["data"], True) and "its file differs: size 5 → 6" in why
    neighbours = {"neighbour_ratio": (0.1, 9.0), "veto": (0, int(Veto.NEIGHBOUR))}
    names, proven, _ = told(row(neighbours, moved="veto", file=""), other(input_manifest_sha256="2"))
    assert (names, proven) == (["data"], True), "the neighbours' files may differ where its own does not"


def test_another_mask_about_the_line():
    change = {"line_mask_fraction": (0.0, 0.6), "veto": (0, int(Veto.MASK_FRACTION))}
    names, proven, why = told(row(change, moved="veto"), other(input_manifest_sha256="2"))
    assert (names, proven) == (["mask", "data"], True) and "line_mask_fraction 0 → 0.6" in why
    names, proven, _ = told(row(change, moved="veto"), other(input_manifest_sha256="2", model_sha256="b"))
    assert (names, proven) == (["mask", "data", "model"], False)


def test_a_spectrum_that_is_not_scored_any_more():
    change = {"selected": (True, False), "p_line": (0.99, None), "is_hit": (True, None), "veto": (0, None),
              "not_selected_because": (None, "z_min")}
    names, proven, why = told(row(change, hit="vanished"), other(selection__z_min=0.55))
    assert (names, proven) == (["configuration"], True) and "not scored in B (z_min)" in why
    moved = change | {"z": (0.5, 0.1), "z_lens": (0.5, 0.1)}
    assert told(row(moved, hit="vanished"), other())[:2] == (["data"], True)


def test_what_the_other_hits_did():
    change = {"overdensity_observed": (0.5, 6.0), "veto": (0, int(Veto.OVERDENSITY_OBSERVED))}
    names, proven, why = told(row(change, moved="veto"), other(model_sha256="b"))
    assert (names, proven) == (["population"], True) and "overdensity_observed 0.5 → 6" in why
    names, proven, _ = told(row(change, moved="veto"), other(vetting__overdensity_bin_px=5))
    assert (names, proven) == (["population", "configuration"], False)
    itself = change | {"line_wave": (4300.0, 4310.0)}
    names, proven, _ = told(row(itself, moved="line_wave,veto"), other(model_sha256="b"))
    assert (names, proven) == (["model", "population"], False), "a line that moved lies among others"


def test_people_and_known_lenses():
    names, proven, why = told(row({"grade": (None, "R"), "veto": (0, int(Veto.HUMAN))}, moved="veto"),
                              other(grades_sha256="9"))
    assert (names, proven) == (["people"], True) and "grade none → R" in why
    change = {"known_lens": (None, "J0143"), "veto": (int(Veto.FIBRE), 0)}
    assert told(row(change, moved="veto"), other(vetting__known_lenses=["x.csv"]))[:2] == (["known_lenses"], True)


def test_the_same_values_and_another_verdict_is_the_codes_doing_or_unknown():
    change = {"veto": (0, int(Veto.OII))}
    assert told(row(change, moved="veto"), other(versions={"lensspark": "2"}))[:2] == (["versions"], True)
    assert told(row(change, moved="veto"), other())[:2] == (["unknown"], False)


def test_a_model_that_differs_is_no_cause_of_what_neighbours_and_limits_do_alone():
    change = {"neighbour_ratio": (0.1, 9.0), "veto": (0, int(Veto.NEIGHBOUR))}
    names, proven, _ = told(row(change, moved="veto"), other(vetting__neighbour_max_px=5.0))
    assert (names, proven) == (["configuration"], True)


def test_several_cuts_are_told_each_with_its_own_cause():
    change = {"veto": (0, int(Veto.LINE_SNR | Veto.FALSE_ALARM)), "q_value": (0.01, 0.3)}
    names, proven, why = told(row(change, moved="veto"), other(vetting__min_line_snr=9.0))
    assert (names, proven) == (["limit", "population"], True)
    assert why.startswith("line_snr fails: vetting.min_line_snr 6 → 9") and "; false_alarm fails (q_value" in why


def test_every_setting_of_the_search_is_a_limit_or_can_be_a_cause():
    """A setting that is added is no cause of anything until it is entered in causes.SETTINGS or NO_VERDICT."""
    patterns = {pattern for names in causes.SETTINGS.values() for pattern in names} | set(causes.NO_VERDICT)
    limits = {cut.setting for cut in compare.CUT_FACTS}
    left = [key for key in config.load().as_dict()["vetting"] if f"vetting.{key}" not in limits
            and not any(fnmatch.fnmatch(f"vetting.{key}", pattern) for pattern in patterns)]
    assert not left
    assert {name for cut in compare.CUT_FACTS for name in (*cut.columns, cut.value) if name} <= set(schema.COMPARED)
    names = [f"{part}.{key}" for part, keys in config.load().as_dict().items() for key in keys]
    for pattern in patterns | set(causes.SEARCH):
        assert any(fnmatch.fnmatch(name, pattern) for name in names), f"{pattern}: no such setting"
