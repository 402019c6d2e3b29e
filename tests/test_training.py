"""Training sets and training: splits by plate, the feed loses nothing, a small training learns and resumes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

pytest.importorskip("petastorm", reason="training needs the extra `train`")
pytest.importorskip("tensorflow", reason="training needs the extra `train`")

from lensspark import config, engine, feed, schema, training, training_set  # noqa: E402
from lensspark.config import resource  # noqa: E402
from lensspark.eigen import Basis  # noqa: E402
from lensspark.model import Model  # noqa: E402
from lensspark.spectrum import prepare, wavelength  # noqa: E402

SMALL = ("network.channels=[4,4,8,8]", "network.heat_block=2", "training.epochs=3", "training.batch_size=32",
         "training.validation_plates=0.2", "training.test_plates=0.2")
BASIS = resource("data/eigenbasis.npz")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def settings():
    return config.load([], SMALL)


@pytest.fixture(scope="module")
def data(spark, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training") / "data"
    counts = training_set.from_templates(spark, folder, settings, list(range(20000, 20006)), 60)
    # Of 60 fibres on each of 4, 1 and 1 plates those at the searched redshifts.
    assert 160 < counts["train"] <= 240 and 40 < counts["validation"] <= 60 and 40 < counts["test"] <= 60
    return folder


def read(data, split):
    return pq.read_table(data / split).to_pandas()


def test_splits_are_by_plate_and_complete(data):
    plates = {split: set(read(data, split)["plate"]) for split in training_set.SPLITS}
    assert sorted(plate for group in plates.values() for plate in group) == list(range(20000, 20006))
    assert [len(plates[split]) for split in training_set.SPLITS] == [4, 1, 1]


@pytest.mark.parametrize(("n", "validation", "test"), [(2, 0.1, 0.1), (10, 0.5, 0.5)])
def test_a_split_without_training_plates_is_refused(n, validation, test):
    with pytest.raises(ValueError, match=f"{n} plates"):
        training_set.split_plates(list(range(n)), validation, test, 1)


def test_rows_are_what_they_are_declared_to_be(data):
    table = read(data, "train")
    assert list(table.columns) == schema.TRAINING.names
    assert {len(flux) for flux in table["flux"]} == {1192}
    assert (table["label"] == table["kind"].isin(["lya", "oii"])).all()
    assert table["line_pixel"].notna().eq(table["label"] == 1).all()
    assert table.loc[table["label"] == 1, "line_pixel"].between(0, 1192).all()


def test_labelled_lines_are_where_the_label_says(data):
    table = read(data, "train")
    bright = table[(table["line_snr"] > 11) & (table["kind"] == "lya")]
    assert len(bright) > 10
    planes = [np.stack(bright[name]) for name in ("flux", "ivar", "and_mask")]
    found = prepare(*planes, bright["z"].to_numpy(), Basis.load(BASIS), config.load().input, 35798)
    from lensspark import matched_filter

    peak = matched_filter.snr(found.residual, found.ivar).argmax(axis=1)
    assert (np.abs(peak - bright["line_pixel"]) <= 4).mean() > 0.85


def test_a_folder_in_use_is_refused(spark, data, settings):
    with pytest.raises(ValueError, match="not empty"):
        training_set.from_templates(spark, data, settings, [1, 2, 3], 10)


def test_the_feed_gives_every_spectrum_once_in_another_order_each_epoch(data, settings):
    files, basis = feed.part_files(data / "train"), Basis.load(BASIS)
    table = read(data, "train")
    epochs = []
    for seed in (1, 1, 2):
        parts = list(feed.batches(files, settings, basis, 75, seed))
        epochs.append(np.concatenate([x[:, :, 0].sum(axis=1) for x, _ in parts]))
        labels = np.concatenate([y["line"] for _, y in parts])
    assert np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[0], epochs[2])
    assert np.allclose(np.sort(epochs[0]), np.sort(epochs[2]))
    lost = len(table) - len(labels)  # lines under masks, and nothing else
    assert 0 <= lost <= 0.2 * table["label"].sum() and labels.sum() == table["label"].sum() - lost


def test_the_feeds_cells_are_where_the_lines_are(data, settings):
    basis = Basis.load(BASIS)
    for group in feed.row_groups(feed.part_files(data / "validation")):
        _, label, cells, rows = feed.learnable(group, settings, basis, 298)
        lines = np.flatnonzero(label)
        centre = cells[lines].argmax(axis=1) * 4 + 1.5
        assert np.abs(centre - group["line_pixel"][rows][lines]).max() <= 2.5
        assert (cells == 1).sum() == len(lines) and ((cells == -1).sum(axis=1)[lines] <= 2).all()


def test_rows_that_get_lost_are_noticed(data, monkeypatch):
    monkeypatch.setattr(feed, "count_rows", lambda files: 9999)
    with pytest.raises(RuntimeError, match="of 9999"):
        list(feed.row_groups(feed.part_files(data / "test")))


def test_pickled_metadata_is_refused(data, tmp_path):
    (tmp_path / "_common_metadata").write_bytes(b"")
    with pytest.raises(ValueError, match="pickled"):
        feed.part_files(tmp_path)
    with pytest.raises(ValueError, match="no Parquet"):
        feed.part_files(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def whole(data, settings, tmp_path_factory):
    """(folder, model) of a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    return folder, training.train(data, folder, settings, BASIS, "test")


def test_a_training_killed_after_any_epoch_resumes_to_the_same_model(data, settings, tmp_path, monkeypatch, whole):
    saved = training._checkpoint

    def killed(*arguments):
        saved(*arguments)
        raise KeyboardInterrupt

    cut = tmp_path / "cut"
    for resume in (False, True):  # once after the first epoch, once after the second
        monkeypatch.setattr(training, "_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(data, cut, settings, BASIS, "test", resume)
        monkeypatch.undo()
    with pytest.raises(ValueError, match="not empty"):
        training.train(data, cut, settings, BASIS, "test")
    with pytest.raises(ValueError, match="other settings"):
        training.train(data, cut, config.load([], (*SMALL, "loss.kind=focal")), BASIS, "test", resume=True)
    resumed = training.train(data, cut, settings, BASIS, "test", resume=True)
    for name, values in whole[1].weights.items():
        np.testing.assert_allclose(resumed.weights[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    for name in ("test_loss", "accuracy", "completeness", "calibration_error"):
        assert resumed.card["test"][name] == pytest.approx(whole[1].card["test"][name], abs=2e-3), name
    x = np.random.default_rng(0).normal(size=(8, 6, 1192)).astype("f4")
    scores = [engine.engine_for(model, "openvino")(x)[0] for model in (whole[1], resumed)]
    np.testing.assert_allclose(*scores, atol=1e-3)


def test_a_training_leaves_model_card_curves_and_logs(whole):
    folder, model = whole
    history = model.card["history"]
    assert len(history) == 3 and history[-1]["line_loss"] < history[0]["line_loss"]
    assert {"accuracy", "completeness", "test_loss", "calibration_error"} <= set(model.card["test"])
    assert Model.load(folder).sha256 == model.sha256
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "logs").glob("events.out.tfevents.*"))


def test_calibration_is_folded_into_the_last_layer():
    rng = np.random.default_rng(2)
    logit = rng.normal(size=50_000)
    labels = (rng.random(len(logit)) < expit(2 * logit - 1)).astype(float)
    weights = {"line/kernel": np.ones((3, 1), "f4"), "line/bias": np.ones(1, "f4"), "stem/kernel": np.ones(2, "f4")}
    folded, found = training._calibrated(weights, {"label": labels, "logit": logit})
    assert (found["scale"], found["shift"]) == (pytest.approx(2, abs=0.1), pytest.approx(-1, abs=0.1))
    assert folded["line/bias"].item() == pytest.approx(found["scale"] + found["shift"], rel=1e-5)
    assert np.allclose(folded["line/kernel"], found["scale"]) and folded["stem/kernel"] is weights["stem/kernel"]


def test_precision_is_what_is_asked_for_or_what_the_machine_has():
    cpu = Path("/proc/cpuinfo")
    capable = cpu.exists() and {"amx_bf16", "avx512_bf16"} & set(cpu.read_text().split())
    assert training.precision("bf16") == "bf16" and training.precision("f32") == "f32"
    if not pytest.importorskip("tensorflow").config.list_physical_devices("GPU"):
        assert training.precision("auto") == ("bf16" if capable else "f32")


def test_mixed_precision_trains(data, settings):
    chosen = config.load([], (*SMALL, "training.precision=bf16"))
    net = training.compiled(chosen, 240)
    feed_ = feed.dataset(feed.part_files(data / "train"), chosen, Basis.load(BASIS), net.output["heat"].shape[1], 1)
    assert np.isfinite(net.fit(feed_, verbose=0).history["loss"][0])
    assert net.get_layer("stem").compute_dtype == "bfloat16"
    assert {out.dtype for out in net.output.values()} == {"float32"}, "logits of eight bits would tie"


def test_changed_spectra_are_refused(data, tmp_path, settings):
    shutil.copytree(data, tmp_path / "data")
    part = sorted((tmp_path / "data/test").glob("*.parquet"))[0]
    pq.write_table(pq.read_table(part).slice(1), part)
    with pytest.raises(ValueError, match="the spectra have sha256"):
        training.train(tmp_path / "data", tmp_path / "model", settings, BASIS, "test")


def test_nothing_is_calibrated_on_the_test_plates(data, tmp_path, settings):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("validation"))
    with pytest.raises(ValueError, match="no validation plates"):
        training.train(tmp_path / "data", tmp_path / "model", settings, BASIS, "test")


@pytest.mark.parametrize("name", ["lenet", "alexnet", "plain"])
def test_the_references_other_networks_can_be_trained(data, name):
    files = [str(ROOT / "conf" / file) for file in ("paper.toml", f"{name}.toml")]
    chosen = config.load(files, ["training.batch_size=64"])
    net = training.compiled(chosen, 240)
    n_cells = net.output["heat"].shape[1]
    feed_ = feed.dataset(feed.part_files(data / "validation"), chosen, Basis.load(BASIS), n_cells, 1)
    assert np.isfinite(net.fit(feed_, verbose=0).history["loss"][0])


def test_the_data_describe_themselves(data):
    facts = json.loads((data / "data.json").read_text())
    assert facts["counts"]["train"] == len(read(data, "train")) and facts["n_pix"] == 1192
    assert read(data, "train")["z"].min() > 0.3 and wavelength(facts["first_pixel"]) >= 3800


def test_figures_are_those_counted_by_hand(settings):
    judged = {"logit": np.array([3.0, -1, 2, 0.1, -4]), "label": np.array([1, 1, 1, 0, 0]),
              "snr": np.array([9.0, 9, 5, np.nan, np.nan]), "placed": np.array([True, False, True, False, False])}
    figures = training.measure(judged, settings)
    assert figures["accuracy"] == pytest.approx(3 / 5) and figures["completeness"] == pytest.approx(2 / 3)
    assert figures["false_hits"] == pytest.approx(1 / 2) and figures["placed_8"] == pytest.approx(1 / 2)
    bins = [(b["snr"][0], b["n"], b["recall"]) for b in figures["completeness_by_snr"]]
    assert bins == [(5.0, 1, 1.0), (8.0, 2, 0.5)]
    assert "recall" not in figures, "two spectra cannot have a false-hit rate of 1e-3"
