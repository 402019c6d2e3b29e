"""The model that ships: what it promises on spectra it never saw, on every engine."""

import dataclasses
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


def test_asking_the_network_only_where_a_hit_can_be_loses_none(plate, model, settings):
    """Hits, over-densities' lines and null hits are the same; a score that is not known is 0 and has an S/N below."""
    role = np.array(["both", "score", "shifted", "score", "null"] * (N // 5), dtype=object)
    first, n_pix = model.pixels
    seen = {}

    def search(min_snr):
        chosen = config.over(settings, settings=[f"score.min_snr={min_snr}"])
        scorer = inference.scorer(model, chosen)
        rows = []
        counting = dataclasses.replace(scorer, run=lambda channels: rows.append(len(channels)) or scorer.run(channels))
        planes = [plate[name] for name in ("flux", "ivar", "and_mask")]
        found, _ = inference.search(counting, lambda at, step: [plane[at] for plane in planes], plate["z"],
                                           plate["loglam0"], role, chosen)
        seen[min_snr] = sum(rows)
        return found

    every, asked = search(0), search(4.5)
    threshold = settings.score.threshold
    for column, snr, wave in (("p_line", "line_snr", "line_wave"), ("null_p_line", "null_snr", "null_wave"),
                              ("shifted_p_line", "shifted_snr", "shifted_wave")):
        hit = every[column] > threshold
        np.testing.assert_array_equal(np.isnan(every[column]), np.isnan(asked[column]))
        np.testing.assert_array_equal(hit, asked[column] > threshold)
        for name in (column, snr, wave):
            np.testing.assert_allclose(asked[name][hit], every[name][hit], rtol=1e-5)
        unknown = asked[column] == 0
        assert unknown.any() and (asked[snr][unknown] < 4.5).all() and (every[snr][unknown] < 4.5).all()
    counted = (every["p_line"] >= settings.vetting.overdensity_min_p_line) & (every["line_snr"] >= 5)
    again = (asked["p_line"] >= settings.vetting.overdensity_min_p_line) & (asked["line_snr"] >= 5)
    np.testing.assert_array_equal(counted, again)
    assert counted.sum() > 100 and seen[4.5] < 0.7 * seen[0]  # a third of these spectra has a line, of a survey's few


@pytest.mark.parametrize(("change", "least"), [
    ([], 4.5), (["score.min_snr=3"], 3.0), (["score.threshold=0.5"], -np.inf),
    (["score.threshold=0.8"], 2 * np.log(4) - inference.MARGIN), (["vetting.overdensity_min_snr=4"], 4.0),
    (["vetting.overdensity_min_snr=0", "vetting.overdensity_min_p_line=0.9"], 2 * np.log(9)),
])
def test_what_a_run_asks_for_decides_how_faint_lines_the_network_sees(settings, change, least):
    assert inference.least_snr(config.over(settings, settings=change)) == pytest.approx(least)


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
