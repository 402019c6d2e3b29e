"""jobs/vet.py through its main, on a finished run of 20,000 spectra: tighter settings add no candidate; exit codes."""

import json
import runpy
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import write_run

from lensspark import catalogue, schema
from lensspark.session import EXIT_DONE, EXIT_USAGE

MAIN = runpy.run_path(str(Path(__file__).resolve().parents[1] / "jobs/vet.py"))["main"]
KEY = [column.name for column in schema.KEY]
# (setting, loose, tight) of each chain; what over-densities count has no tight end and stays as it is.
CHAINS = {
    "line": (("score.threshold", 0.95, 0.99), ("vetting.min_line_snr", 4, 7), ("vetting.min_line_peak", 0.5, 1.5),
             ("vetting.max_line_hits", 9, 1), ("vetting.max_dchi2_spike", 3, -6)),
    "others": (("vetting.max_overdensity", 6, 2), ("vetting.min_p_overdensity", 1e-9, 1e-3),
               ("vetting.min_p_same_wave", 1e-6, 0.01), ("vetting.max_neighbour_ratio", 5, 1),
               ("vetting.max_repeat_tension", 9, 2)),
    "identity": (("vetting.max_sn_oii_veto", 4, 1), ("vetting.min_p_lya", 0, 0.3), ("vetting.min_dchi2_skew", 0, 3),
                 ("vetting.min_p_skew_positive", 0, 0.4), ("vetting.max_q_value", 1, 0.9)),
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent") / "run"
    assert write_run(folder, rows=20_000, plates=8, hit_rate=0.05) > 500
    return folder


def vet(parent, out, *settings):
    return MAIN(["--run", str(parent), "--out", str(out), *(part for text in settings for part in ("--set", text))])


def candidates(run):
    """The keys of the candidates, in the ledger and in the product alike."""
    ledger = pd.read_parquet(run / "ledger").astype({"plate": int})
    card = json.loads((run / "run.json").read_text())
    catalogue.check_counts(card["counts"])
    assert card["counts"]["n_input"] == len(ledger) == 20_000
    kept = set(ledger.loc[ledger["veto"] == 0, KEY].itertuples(index=False, name=None))
    table = pd.read_parquet(run / "candidates/candidates.parquet")
    assert set(table[KEY].itertuples(index=False, name=None)) == kept
    return kept


@pytest.mark.parametrize("chain", CHAINS)
def test_tighter_settings_never_add_a_candidate(spark, parent, tmp_path, chain):
    """A re-cut with loose settings, and that one cut again with tight ones."""
    loose, tight = ([f"{name}={values[i]}" for name, *values in CHAINS[chain]] for i in (0, 1))
    assert vet(parent, tmp_path / "loose", *loose) == EXIT_DONE
    assert vet(tmp_path / "loose", tmp_path / "tight", *tight) == EXIT_DONE
    assert candidates(tmp_path / "tight") < candidates(tmp_path / "loose")


@pytest.mark.parametrize("setting", ["vetting.cosmology='WMAP7'", "vetting.neighbour_min_snr=5", "input.fit_passes=1",
                                     "vetting.min_line_snr=high", "vetting.nothing=1"])
def test_what_cannot_be_applied_is_exit_code_2_and_named(parent, tmp_path, capsys, setting):
    assert vet(parent, tmp_path / "run", setting) == EXIT_USAGE
    assert setting.split("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_no_run_is_exit_code_2(tmp_path, capsys):
    assert vet(tmp_path / "none", tmp_path / "run") == EXIT_USAGE
    assert "no finished run" in capsys.readouterr().err
