"""The gate: the shipped verdict is of the shipped model and gate; damaged models fail; production asks for one."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from lensspark import config, gate, pipeline
from lensspark.checked import ConfigError
from lensspark.model import Model
from lensspark.session import EXIT_ATTENTION, EXIT_DONE, EXIT_USAGE

ROOT = Path(__file__).resolve().parents[1]
PRODUCTION = [str(ROOT / "conf/production.toml")]
EVALUATE, PREDICT = (runpy.run_path(str(ROOT / f"jobs/{name}.py"))["main"] for name in ("evaluate", "predict"))
# Small enough for a test: what few spectra cannot prove is not asked for.
SMALL = """
[golden]
seed = 3
first_plate = 91000
mixed_plates = 2
clean_plates = 1
known_spectra = ""
known_lenses = ""

[limits]
confidence = 0.5
snr = [6.0, 8.0, 15.0]
min_recall = [0.5, 0.9]
max_null_rate = 5e-3
max_calibration_error = 0.05
min_known_recall = 0.8
"""


@pytest.fixture
def small(tmp_path):
    """(gate's file, settings that name it)."""
    path = tmp_path / "gate.toml"
    path.write_text(SMALL)
    return path, ["--set", f"run.gate={path}", "--set", "score.engine=openvino"]


def damaged(folder, change):
    """The shipped model with other weights, and a card that is true of them."""
    model, rng = Model.named("default"), np.random.default_rng(1)
    weights = change({name: value.copy() for name, value in model.weights.items()}, rng)
    settings = config.load()
    Model.make(weights, settings, model.files["basis.npz"], {"name": "damaged"}).save(folder)
    return Model.load(folder)


def shuffled(weights, rng):
    """One of its layers, in another order; a late one of a residual network would hardly be missed."""
    name = "block1_conv1/kernel"
    return weights | {name: rng.permutation(weights[name].ravel()).reshape(weights[name].shape)}


def scaled(weights, rng):
    """All kernels a tenth larger."""
    return {name: value * (1.1 if name.endswith("kernel") else 1) for name, value in weights.items()}


def certain(weights, rng):
    """One that calls everything a line."""
    return weights | {"line/bias": weights["line/bias"] + 9}


def test_the_shipped_verdict_is_of_the_shipped_model_gate_and_production_settings():
    settings = config.load(PRODUCTION)
    verdict = json.loads((Model.place("default") / gate.VERDICT).read_text())
    assert verdict["passed"] and settings.run.production
    gate.require(settings, Model.named("default"))
    names = [criterion["name"] for criterion in verdict["criteria"]]
    assert names == ["recall at S/N 6-8", "recall at S/N 8-10", "recall at S/N 10-15",
                     "false hits per line-free spectrum", "calibration"]
    assert verdict["spectra"]["clean"] > 30_000


def test_a_sound_model_passes_and_its_damaged_copies_fail(spark, tmp_path, small, capsys):
    folder, options = tmp_path / "sound", small[1]
    shutil.copytree(Model.place("default"), folder)
    assert EVALUATE(["--gate", *options, "--set", f"score.model={folder}"]) == EXIT_DONE, capsys.readouterr().out
    verdict = json.loads((folder / gate.VERDICT).read_text())
    assert verdict["passed"] and Model.load(folder).sha256 == verdict["model_sha256"]
    production = config.load([], [f"score.model={folder}", f"run.gate={small[0]}", "run.production=true"])
    gate.require(production, Model.load(folder))
    for change in (shuffled, scaled, certain):
        model = damaged(tmp_path / change.__name__, change)
        where = ["--set", f"score.model={tmp_path / change.__name__}"]
        assert EVALUATE(["--gate", *options, *where]) == EXIT_ATTENTION
        assert "FAILED" in capsys.readouterr().out
        refusing = config.load([], [where[1], f"run.gate={small[0]}", "run.production=true"])
        with pytest.raises(ValueError, match="not let through the gate: .*, asked at (least|most)"):
            gate.require(refusing, model)


def test_predict_refuses_a_production_run_without_a_fitting_verdict(tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(Model.place("default"), folder)
    shipped = json.loads((folder / gate.VERDICT).read_text())

    def refused(verdict, *settings):
        (folder / gate.VERDICT).write_text(verdict if isinstance(verdict, str) else json.dumps(verdict))
        given = [part for setting in (f"score.model={folder}", *settings) for part in ("--set", setting)]
        code = PREDICT(["--spectra", str(tmp_path), "--out", str(out), "--config", *PRODUCTION, *given])
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == EXIT_USAGE and not out.exists() and "run.production: model" in said
        return said

    assert "measured with threshold 0.945, this run has 0.5" in refused(shipped, "score.threshold=0.5")
    assert "measured with model_sha256" in refused(shipped | {"model_sha256": "0" * 64})
    assert "measured with gate_sha256" in refused(shipped | {"gate_sha256": "0" * 64})
    assert "no verdict" in refused("{") and "no verdict" in refused({"passed": True}) and "no verdict" in refused("[]")
    assert "no criterion was measured" in refused(shipped | {"criteria": []})
    failing = [shipped["criteria"][0] | {"passed": False}, *shipped["criteria"][1:]]
    assert shipped["criteria"][0]["text"] in refused(shipped | {"criteria": failing})
    (folder / gate.VERDICT).unlink()
    with pytest.raises(ValueError, match=r"gate.json: No such file.*evaluate.py --gate"):
        gate.require(config.load(PRODUCTION, [f"score.model={folder}"]), Model.load(folder))


def test_only_runs_marked_production_are_asked(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(Model.place("default"), folder)
    (folder / gate.VERDICT).unlink()
    gate.require(config.load([], [f"score.model={folder}"]), Model.load(folder))
    with pytest.raises(ValueError, match="expected an existing folder of spectra"):  # it gets as far as the survey
        pipeline.plan(str(tmp_path / "none"), str(tmp_path / "run"), config.load([], [f"score.model={folder}"]))


@pytest.mark.parametrize(("change", "message"), [
    (("seed = 3", "seed = 3\nplates = 7"), "unknown key golden.plates"),
    (("[limits]", "[limit]"), "unknown key limit.confidence"),
    (("snr = [6.0, 8.0, 15.0]", "snr = [6.0, 8.0]"), "expected 3 rising values"),
    (("snr = [6.0, 8.0, 15.0]", "snr = [8.0, 6.0, 15.0]"), "expected 3 rising values"),
    (("max_null_rate = 5e-3", "max_null_rate = 2.0"), "limits.max_null_rate = 2.0: expected 0 to 1"),
    (('known_lenses = ""', 'known_lenses = "x.csv"'), "expected both or none"),
    (("seed = 3\n", ""), "golden.seed is missing"), (("[golden]", "[golden"), "cannot be read as TOML")])
def test_a_gate_that_is_none_is_refused(tmp_path, change, message):
    path = tmp_path / "gate.toml"
    path.write_text(SMALL.replace(*change))
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        gate.load(str(path))


def test_another_limit_is_another_gate(tmp_path):
    path = tmp_path / "gate.toml"
    path.write_text(SMALL)
    other = tmp_path / "other.toml"
    other.write_text("# the same, but for this comment and one limit\n" + SMALL.replace("0.5, 0.9", "0.5, 0.8"))
    same = tmp_path / "same.toml"
    same.write_text("# a comment\n" + SMALL)
    assert gate.load(str(path)).sha256 == gate.load(str(same)).sha256 != gate.load(str(other)).sha256


def test_limits_of_a_share_hold_as_often_as_they_say():
    for k, n in ((0, 50), (3, 200), (199, 200)):
        low, high = gate.limit_of_share(k, n, 0.95, True), gate.limit_of_share(k, n, 0.95, False)
        assert low <= k / n <= high
        assert k == 0 or binom.sf(k - 1, n, low) == pytest.approx(0.05)
        assert binom.cdf(k, n, high) == pytest.approx(0.05)
    assert (gate.limit_of_share(0, 0, 0.95, True), gate.limit_of_share(0, 0, 0.95, False)) == (0.0, 1.0)


def test_criteria_from_scores():
    """A line counts where it is; what is masked does not count; calibration sees lines and the rest."""
    limits = gate.load("default").limits
    n = 4000
    lines = pd.DataFrame({"kind": "lya", "visible": True, "line_snr": np.linspace(6, 14.99, n), "line_at": 500.0,
                          "p_line": 0.99, "p_line_at": 501.0})
    found = gate.recalls(lines, limits, 0.95)
    assert [c["measured"] for c in found] == [1.0] * 3 and all(c["passed"] for c in found)
    assert [c["measured"] for c in gate.recalls(lines.assign(p_line_at=504.0), limits, 0.95)] == [0.0] * 3
    assert gate.recalls(lines.assign(visible=False), limits, 0.95)[0] | {"text": ""} == {
        "name": "recall at S/N 6-8", "n": 0, "measured": None, "bound": 0.0, "limit": 0.5, "passed": False, "text": ""}
    rest = lines.assign(kind="clean", p_line=0.01, visible=False)
    assert gate.calibration(pd.concat([lines, rest]), limits)["measured"] == pytest.approx(0.01)
    assert not gate.calibration(pd.concat([lines.assign(kind="clean"), rest]), limits)["passed"]
    few = pd.DataFrame({"p_line": np.r_[np.ones(3), np.zeros(9997)]})
    assert gate.null_rate(few, limits, 0.95)["passed"]
    assert not gate.null_rate(few.head(3000), limits, 0.95)["passed"], "1e-3 that is not proven"


def test_known_lenses_are_asked_for_where_spectra_are_named(spark, tmp_path, shared_data):
    """Real spectra, here of no lens: those that can be read are counted, and a recall of none fails."""
    inventory = pd.read_csv(shared_data / "spectra/inventory.csv")
    stars = inventory[(inventory["cls"] == "STAR") & inventory["file"].str.startswith("spectra/boss/")].head(5)
    table = pd.concat([stars[["plate", "mjd", "fiberid"]], pd.DataFrame([{"plate": 3, "mjd": 55000, "fiberid": 1}])])
    table.to_csv(tmp_path / "lenses.csv", index=False)
    text = SMALL
    for name, where in (("known_lenses", tmp_path / "lenses.csv"), ("known_spectra", shared_data / "spectra/boss")):
        text = text.replace(f'{name} = ""', f'{name} = "{where}"')
    (tmp_path / "gate.toml").write_text(text)
    chosen, settings = gate.load(str(tmp_path / "gate.toml")), config.load([], ["score.engine=openvino"])
    found = gate.known_recall(spark, Model.named("default"), settings, chosen)
    assert found["name"] == "recall of known lenses (5 of 6 readable)" and found["n"] == 5 and not found["passed"]
    table.tail(1).to_csv(tmp_path / "lenses.csv", index=False)
    with pytest.raises(ValueError, match="no spectrum of the known lenses can be read"):
        gate.known_recall(spark, Model.named("default"), settings, chosen)


def scores(p_line, snr):
    return pd.DataFrame({"p_line": p_line, "line_snr": snr})


@pytest.mark.parametrize(("other", "passed"), [
    ([0.99, 0.96, 0.1] + [0.99] * 200, True),
    ([0.80, 0.96, 0.1] + [0.99] * 200, False),           # a bright line is lost
    ([0.99, 0.80, 0.1] + [0.99] * 200, True),            # a faint one may be
    ([0.99, 0.80, 0.1] + [0.99] * 197 + [0.9] * 3, False),  # not too many
    ([0.99, 0.96, 0.4] + [0.99] * 200, False),           # a score is far off
])
def test_bf16_may_lose_no_bright_line(other, passed):
    snr = np.r_[9.0, 5.0, np.nan, np.full(200, 6.0)]
    found = gate.same_hits(scores([0.99, 0.96, 0.1] + [0.99] * 200, snr), scores(other, snr), 0.95)
    assert found["passed"] == passed and found["hits"] == 202


@pytest.mark.parametrize(("safe", "gain", "chosen"), [(True, 1.9, "bf16"), (True, 1.1, "f32"), (False, 1.9, "f32"),
                                                      (None, 1.9, "f32")])
def test_auto_takes_bf16_where_it_is_safe_and_faster(tmp_path, monkeypatch, safe, gain, chosen):
    folder = shutil.copytree(Model.place("default"), tmp_path / "model")
    settings = config.load([], [f"score.model={folder}", "score.precision=auto"])
    verdict = {"model_sha256": Model.load(folder).sha256, "threshold": settings.score.threshold}
    (folder / gate.VERDICT).write_text(json.dumps(verdict | ({} if safe is None else {"bf16": {"passed": safe}})))
    monkeypatch.setattr(gate.engine, "has_bf16", lambda name: True)
    monkeypatch.setattr(gate.engine, "gain_of_bf16", lambda model, batch: gain)
    assert gate.precision(settings, Model.load(folder)) == chosen
    other = config.load([], [f"score.model={folder}", "score.precision=auto", "score.threshold=0.9"])
    assert gate.precision(other, Model.load(folder)) == "f32", "the verdict is of another threshold"
