"""Training sets and training: splits by plate, the feed loses nothing, a small training learns and resumes."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

pytest.importorskip("petastorm", reason="training needs the extra `train`")
pytest.importorskip("tensorflow", reason="training needs the extra `train`")

from lensspark import config, engine, feed, schema, training, training_set  # noqa: E402
from lensspark.config import resource  # noqa: E402
from lensspark.eigen import Basis  # noqa: E402
from lensspark.model import Model  # noqa: E402
from lensspark.spectrum import prepare, wavelength  # noqa: E402

SMALL = ("network.channels=[4,4,8,8]", "network.heat_block=2", "training.epochs=2", "training.batch_size=32",
         "training.validation_plates=0.2", "training.test_plates=0.2")
BASIS = resource("data/eigenbasis.npz")


@pytest.fixture(scope="module")
def settings():
    return config.load([], SMALL)


@pytest.fixture(scope="module")
def data(spark, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training") / "data"
    counts = training_set.from_templates(spark, folder, settings, list(range(20000, 20006)), 60)
    assert counts == {"train": 240, "validation": 60, "test": 60}
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


def test_training_resumes_to_the_same_model(data, settings, tmp_path, monkeypatch):
    whole = training.train(data, tmp_path / "whole", settings, BASIS, "test")
    assert [epoch["line_loss"] for epoch in whole.card["history"]][1] < whole.card["history"][0]["line_loss"]
    assert Model.load(tmp_path / "whole").sha256 == whole.sha256

    saved = training._checkpoint

    def killed(*arguments):
        saved(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(data, tmp_path / "cut", settings, BASIS, "test")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="not empty"):
        training.train(data, tmp_path / "cut", settings, BASIS, "test")
    with pytest.raises(ValueError, match="other settings"):
        other = config.load([], (*SMALL, "loss.kind=focal"))
        training.train(data, tmp_path / "cut", other, BASIS, "test", resume=True)
    resumed = training.train(data, tmp_path / "cut", settings, BASIS, "test", resume=True)
    for name, values in whole.weights.items():
        np.testing.assert_allclose(resumed.weights[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    x = np.random.default_rng(0).normal(size=(8, 6, 1192)).astype("f4")
    scores = [engine.engine_for(model, "openvino")(x)[0] for model in (whole, resumed)]
    np.testing.assert_allclose(*scores, atol=1e-3)


def test_the_data_describe_themselves(data):
    facts = json.loads((data / "data.json").read_text())
    assert facts["counts"]["train"] == len(read(data, "train")) and facts["n_pix"] == 1192
    assert isinstance(read(data, "train"), pd.DataFrame) and wavelength(facts["first_pixel"]) >= 3800
