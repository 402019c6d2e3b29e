"""The model that ships: what it promises on spectra it never saw, on every engine."""

from pathlib import Path

import numpy as np
import pytest

from lensspark import config, detectors, engine, inference, mock
from lensspark.locate import measure_line
from lensspark.model import Model
from lensspark.spectrum import pixel

N = 600


@pytest.fixture(scope="module")
def model():
    return Model.named("default")


@pytest.fixture(scope="module")
def settings():
    return config.load([], ["mock.lya=0.3", "mock.line_snr=[8, 16]", "score.engine='openvino'"])


@pytest.fixture(scope="module")
def plate(basis, settings, model):
    first, n_pix = model.pixels
    return mock.observe_plate(77, 6000, 56000, np.arange(1, N + 1), settings.mock, basis, first, n_pix)


@pytest.fixture(scope="module")
def scored(plate, model, settings):
    return inference.scorer(model, settings)(plate["flux"], plate["ivar"], plate["and_mask"], plate["z"])


def test_its_card_says_what_it_is(model):
    card = model.card
    assert card["training_data"]["counts"]["train"] >= 20_000 and card["history"]
    assert card["eigenbasis"] == model.basis.provenance and "basis" not in card["name"]
    assert model.network == config.load().network and model.input == config.load().input


def test_the_papers_model_is_that_of_its_configuration(plate):
    settings = config.load([Path(__file__).resolve().parents[1] / "conf/paper.toml"], ["score.engine='openvino'"])
    model = Model.named(settings.score.model)
    assert (model.input, model.network) == (settings.input, settings.network) and len(model.card["history"]) == 20
    planes = [plate[name] for name in ("flux", "ivar", "and_mask", "z")]
    prepared, p_line, _ = inference.scorer(model, settings)(*planes)
    bright = (plate["kind"] == "lya") & (plate["line_snr"] > 12) & prepared.scorable
    assert bright.sum() > 30 and (p_line[bright] > settings.score.threshold).mean() > 0.5
    assert (p_line[plate["kind"] == "clean"] > settings.score.threshold).mean() < 0.02


def test_it_finds_bright_lines_where_they_are(plate, scored, settings):
    prepared, p_line, heat = scored
    found = measure_line(prepared, heat, plate["loglam0"], settings.vetting.line_hits_snr)
    lya = np.flatnonzero((plate["kind"] == "lya") & (plate["z"] > 0.3))
    at = np.clip(np.rint(pixel(plate["line_wave"][lya]) - 1e4 * plate["loglam0"][lya]).astype(int), 0, 1191)
    lya = lya[prepared.ivar[lya, at] > 0]
    assert len(lya) > 100
    near = np.abs(pixel(found["line_wave"]) - pixel(np.nan_to_num(plate["line_wave"], nan=1.0))) <= 3
    assert ((p_line > settings.score.threshold) & near)[lya].mean() >= 0.95


def test_the_brightest_lines_are_found_too(basis, model, settings):
    first, n_pix = model.pixels
    bright = detectors.only(settings, lya=1.0, line_snr=(15.0, 120.0))
    plate = mock.observe_plate(78, 6002, 56000, np.arange(1, 301), bright, basis, first, n_pix)
    planes = [plate[name] for name in ("flux", "ivar", "and_mask", "z")]
    prepared, p_line, heat = inference.scorer(model, settings)(*planes)
    found = measure_line(prepared, heat, plate["loglam0"], settings.vetting.line_hits_snr)
    at = np.rint(pixel(plate["line_wave"]) - first).astype(int)
    usable = (plate["z"] > 0.3) & (prepared.ivar[np.arange(300), at] > 0)
    near = np.abs(pixel(found["line_wave"]) - pixel(plate["line_wave"])) <= 3
    assert usable.sum() > 200 and ((p_line > settings.score.threshold) & near)[usable].mean() > 0.97


def test_it_leaves_clean_galaxies_alone(plate, scored, settings):
    _, p_line, _ = scored
    clean = (plate["kind"] == "clean") & (plate["z"] > 0.3)
    assert clean.sum() > 200
    assert (p_line[clean] > settings.score.threshold).sum() <= 2


@pytest.mark.parametrize(("name", "precision"), [("openvino", "bf16"), ("tensorflow", "f32")])
def test_engines_agree(model, scored, name, precision):
    pytest.importorskip(name, reason=f"needs {name}")
    prepared, p_line, heat = scored
    other_p, other_heat = engine.engine_for(model, name, precision)(prepared.channels[:200])
    assert np.abs(other_p - p_line[:200]).max() <= engine.TOLERANCE[precision]
    assert np.abs(other_heat - heat[:200]).max() <= engine.TOLERANCE[precision]
