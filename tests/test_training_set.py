"""Training sets of a survey's own spectra, end to end on a small mock survey: nothing leaks between plates."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lensspark import config, matched_filter, schema, training_set
from lensspark.config import resource
from lensspark.eigen import Basis
from lensspark.simulate import Plan, simulate
from lensspark.spectrum import fit_galaxy, prepare
from lensspark.training_set.backdrops import load_backdrops, usable_plates
from lensspark.training_set.common import Frame
from lensspark.training_set.galaxies import measure_galaxies

JOB = Path(__file__).resolve().parents[1] / "jobs/build_training.py"
FIRST, N_PIX = 35798, 1192
SMALL = ("survey_training.z_bin=0.05", "survey_training.eigenvectors=3", "survey_training.min_galaxies=40",
         "survey_training.max_borrowed_bins=1", "survey_training.galaxies_per_plate=150",
         "survey_training.basis_vectors=7", "survey_training.basis_iterations=6",
         "training.validation_plates=0.25", "training.test_plates=0.25")


@pytest.fixture(scope="module")
def survey(spark, tmp_path_factory):
    """Four plates of 260 fibres, with a broken file."""
    root = tmp_path_factory.mktemp("survey") / "redux"
    simulate(lambda: spark, str(root), Plan(plates=4, fibres=260, layout="spplate", broken=1, seed=2),
             config.load().mock, Basis.load(resource("data/eigenbasis.npz")))
    return root


@pytest.fixture(scope="module")
def data(spark, survey, tmp_path_factory):
    out = tmp_path_factory.mktemp("training") / "data"
    counts = training_set.from_survey(spark, str(survey), out, config.load([], SMALL), 1203, make_basis=True)
    assert sum(counts.values()) == 1203 and 601 <= counts["train"] <= 602  # two plates of four
    return out


@pytest.fixture(scope="module")
def facts(data):
    return json.loads((data / "data.json").read_text())


def read(data, split):
    table = pd.concat(pd.read_parquet(path) for path in sorted((data / split).glob("*.parquet")))
    return table.sort_values(["plate", "fiberid"]).reset_index(drop=True)


def planes(table):
    return [np.stack(table[name]) for name in ("flux", "ivar", "and_mask")]


def test_rows_are_what_they_are_declared_to_be(data, facts):
    for split, count in facts["counts"].items():
        table = read(data, split)
        assert list(table.columns) == schema.TRAINING.names and len(table) == count
        assert not table.duplicated(["plate", "fiberid"]).any()
        assert {len(flux) for flux in table["flux"]} == {N_PIX}
        assert (table["label"] == table["kind"].isin(["lya", "oii"])).all()
        assert np.isfinite(np.stack(table["flux"])).all() and (np.stack(table["ivar"]) >= 0).all()
        assert table["z"].between(facts["bins"]["z_low"], facts["bins"]["z_high"]).all()


def test_no_plate_is_in_two_splits_and_its_sky_stays_with_it(data, facts):
    plates = {split: set(read(data, split)["plate"]) for split in training_set.SPLITS}
    assert sorted(plate for group in plates.values() for plate in group) == [4000, 4001, 4002, 4003]
    assert {split: sorted(group) for split, group in plates.items()} == facts["plates"]
    assert [len(plates[split]) for split in training_set.SPLITS] == [2, 1, 1]
    galaxies = pd.read_parquet(data / "galaxies")
    backdrops = pd.read_parquet(data / "backdrops", columns=["plate", "is_sky", "z"])
    trained = backdrops[backdrops["plate"].astype(int).isin(plates["train"]) & ~backdrops["is_sky"]]
    bins = np.floor(trained["z"] / 0.05).astype(int).value_counts()
    assert galaxies.set_index("z_bin")["n_own"].to_dict() == {b: n for b, n in bins.items() if b in set(galaxies.z_bin)}


def test_what_is_left_out_is_said(facts, survey):
    truth = pd.read_parquet(survey / "truth.parquet")
    assert facts["n_input"] == len(truth) and facts["n_quarantined"] == 1
    assert facts["bins"]["n_borrowing"] > 0 and facts["bins"]["max_reach"] == 1
    assert facts["bins"]["galaxies_left_out"] >= 0 and facts["survey_training"]["z_bin"] == 0.05


def test_vectors_explain_the_galaxies_of_other_plates(data, facts):
    """chi2 per degree of freedom of the mock's own noise is 1.1 in the window (docs/science.md)."""
    assert facts["bins"]["chi2"] < 1.3 and facts["bins"]["chi2_held_out"] < 1.3
    galaxies = pd.read_parquet(data / "galaxies")
    assert galaxies["n_held_out"].sum() > 60
    assert list(galaxies.columns) == schema.GALAXIES.names


def test_artificial_spectra_are_fitted_as_well_as_real_ones(data, survey):
    """The galaxies' residuals: chi2 per pixel and the matched filter's scatter, artificial against real."""
    settings = config.load([], SMALL)
    frame, shipped = Frame.of(settings), Basis.load(resource("data/eigenbasis.npz"))
    fake = pd.concat(read(data, split) for split in training_set.SPLITS)
    fake = fake[fake["kind"] == "clean"]
    real = pd.read_parquet(data / "backdrops")
    real = real[~real["is_sky"]]
    inner = slice(frame.margin, frame.margin + N_PIX)
    found = []
    for table, where in ((fake, slice(None)), (real, inner)):
        flux, ivar, mask = (values[:, where] for values in planes(table))
        made = prepare(flux, ivar, mask, table["z"].to_numpy(), shipped, settings.input, FIRST)
        good = made.ivar > 0
        pull = (made.residual * np.sqrt(made.ivar))[good]
        snr = matched_filter.snr(made.residual, made.ivar)
        found.append([np.mean(np.clip(pull, -5, 5) ** 2), np.percentile(np.abs(snr[good]), 90)])
    np.testing.assert_allclose(found[0], found[1], rtol=0.1)


def test_labelled_lines_are_where_the_label_says(data):
    table = pd.concat(read(data, split) for split in training_set.SPLITS)
    bright = table[(table["line_snr"] > 11) & (table["kind"] == "lya")]
    assert len(bright) > 30
    found = prepare(*planes(bright), bright["z"].to_numpy(), Basis.load(data / "basis.npz"), config.load().input, FIRST)
    peak = matched_filter.snr(found.residual, found.ivar).argmax(axis=1)
    assert (np.abs(peak - bright["line_pixel"]) <= 4).mean() > 0.85


def test_partitions_do_not_matter(spark, survey, data, tmp_path):
    """Files, batches and shuffles cut otherwise: the same spectra but for the rounding of sums."""
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        settings = config.load([], (*SMALL, "read.max_rows_per_batch=41", "read.target_partition_mb=1"))
        training_set.from_survey(spark, str(survey), tmp_path / "again", settings, 1203)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
    for split in training_set.SPLITS:
        one, other = read(data, split), read(tmp_path / "again", split)
        scalars = [name for name in one.columns if name not in ("flux", "ivar", "and_mask")]
        pd.testing.assert_frame_equal(one[scalars], other[scalars], rtol=1e-3)
        for mine, theirs in zip(planes(one), planes(other), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=2e-3)


def test_the_basis_fits_galaxies_of_plates_that_it_has_not_seen(data, facts):
    """As well as the shipped one, which the mock's galaxies are made of: chi2 per pixel of the test plates."""
    settings = config.load([], SMALL)
    frame, own = Frame.of(settings), Basis.load(data / "basis.npz")
    assert len(own.vectors) == 7 and len(own.coefficients) > 100 and "galaxies of" in own.provenance
    plate = facts["plates"]["test"][0]
    table = pd.read_parquet(data / "backdrops")
    table = table[(table["plate"].astype(int) == plate) & ~table["is_sky"]]
    flux, ivar, _ = (values[:, frame.margin:frame.margin + N_PIX] for values in planes(table))
    chi2 = []
    for basis in (own, Basis.load(resource("data/eigenbasis.npz"))):
        model = fit_galaxy(flux, ivar, table["z"].to_numpy(), basis, settings.input, FIRST)
        chi2.append(np.median(np.mean((flux - model) ** 2 * ivar, axis=1)))
    assert chi2[0] < 1.05 * chi2[1]


def test_backdrops_are_bounded_and_sound(data):
    frame = Frame.of(config.load([], SMALL))
    plate = load_backdrops(data / "backdrops", 4000, config.load([], SMALL), frame)
    assert len(plate.mean_flux) <= 150 and 5 <= len(plate.sky) <= 200
    assert (np.diff(plate.mean_flux) >= 0).all() and (plate.wdisp > 0.5).all()


# --- Refusals ---


def kept(spark, data):
    return spark.read.schema(schema.BACKDROPS.struct_type()).parquet(str(data / "backdrops"))


@pytest.mark.parametrize(("rows", "extra", "said"), [
    ("is_sky", (), "no galaxy of the sample 'published'"),
    ("NOT is_sky", (), "no sky fibre"),
    ("true", ("training.validation_plates=0.5", "training.test_plates=0.5"), "4 plates cannot be split"),
])
def test_a_survey_without_galaxies_sky_or_plates_is_refused(spark, data, rows, extra, said):
    with pytest.raises(ValueError, match=said):
        usable_plates(kept(spark, data).where(rows), "redux", config.load([], (*SMALL, *extra)))


def test_too_few_galaxies_are_refused(spark, data, tmp_path):
    settings = config.load([], (*SMALL, "survey_training.min_galaxies=90000"))
    with pytest.raises(ValueError, match="none reaches survey_training.min_galaxies = 90000"):
        measure_galaxies(kept(spark, data), {4000: "train"}, tmp_path / "galaxies", settings, Frame.of(settings))


def test_a_refusal_leaves_nothing_behind(spark, tmp_path):
    simulate(lambda: spark, str(tmp_path / "redux"), Plan(plates=1, fibres=12, layout="spplate", broken=0),
             config.load([], ["mock.sky=0.0"]).mock, Basis.load(resource("data/eigenbasis.npz")))
    with pytest.raises(ValueError, match="no sky fibre"):
        training_set.from_survey(spark, str(tmp_path / "redux"), tmp_path / "new", config.load([], SMALL), 10)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("arguments", "said"), [
    (["--spectra", "{empty}", "--n", "0"], "--n 0: expected at least 1"),
    (["--spectra", "{empty}"], "{empty}"), (["--spectra", "{empty}", "--templates"], "not allowed with"),
    ([], "required"),
])
def test_wrong_arguments_end_with_2_and_one_line(tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    words = [word.replace("{empty}", str(tmp_path / "empty")) for word in arguments]
    done = subprocess.run([sys.executable, JOB, "--out", str(tmp_path / "new"), *words], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 2, done.stderr
    assert said.replace("{empty}", str(tmp_path / "empty")) in done.stderr
    assert not (tmp_path / "new").exists()
    shutil.rmtree(tmp_path / "empty")
