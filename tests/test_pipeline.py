"""The whole search on a small mock survey with broken files: every spectrum gets its verdict, however partitioned."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_model import make_model
from small_survey import simulate_mixed

from lensspark import catalogue, config, inference, manifest, pipeline, schema, source
from lensspark.boss import survey_files
from lensspark.session import EXIT_DONE, EXIT_QUARANTINE

ROOT = Path(__file__).resolve().parents[1]
KEY = [column.name for column in schema.KEY]


@pytest.fixture(scope="module")
def survey(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "redux"
    simulate_mixed(spark, folder, 2, 30)
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The configuration of a run with a small random model, at a threshold that makes about half of them hits."""
    folder = tmp_path_factory.mktemp("model") / "small"
    make_model().save(folder)
    return (f"score.model='{folder}'", "score.threshold=0.5", "score.engine='openvino'")


def search(spark, spectra, out, *settings):
    run = pipeline.plan(str(spectra), str(out), config.load([], settings))
    return pipeline.predict(spark, run), run


@pytest.fixture(scope="module")
def finished(spark, survey, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    code, run = search(spark, survey, out, *settings)
    return out, code, run


def ledger_of(out):
    return pd.read_parquet(out / "ledger").astype({"plate": int}).sort_values(KEY).reset_index(drop=True)


def test_every_input_has_one_verdict(finished, survey):
    out, code, _ = finished
    truth = pd.read_parquet(survey / "truth.parquet")
    ledger, quarantine = ledger_of(out), pd.read_parquet(out / "quarantine")
    assert set(ledger.columns) == set(schema.LEDGER.names)
    assert list(quarantine.columns) == schema.QUARANTINE.names
    sound = truth[truth["kind"] != "broken"]
    assert len(sound) == 60 and len(quarantine) == 4 == len(truth) - 60
    assert not ledger.duplicated(KEY).any()
    both = ledger.merge(sound, on=KEY, suffixes=("", "_true"))
    assert len(both) == len(ledger) == 60
    np.testing.assert_allclose(both["ra"], both["ra_true"], atol=1e-6)
    np.testing.assert_allclose(both["dec"], both["dec_true"], atol=1e-6)
    assert quarantine["reason"].str.len().gt(5).all() and quarantine["path"].str.contains("redux").all()
    assert code == EXIT_QUARANTINE  # 4 of 64


def test_the_run_card_adds_up(finished, survey):
    out, _, run = finished
    card, ledger = json.loads((out / "run.json").read_text()), ledger_of(out)
    catalogue.check_counts(card["counts"])
    counts = card["counts"]
    assert counts["n_input"] == 64 and counts["n_quarantined"] == 4
    assert counts["n_scored"] == ledger["p_line"].notna().sum() == ledger["selected"].sum()
    assert counts["n_not_selected"] == ledger["not_selected_because"].notna().sum() > 0
    assert counts["n_hits"] == (ledger["is_hit"] == True).sum()  # noqa: E712
    assert counts["n_candidates"] == (ledger["veto"] == 0).sum() == len(pd.read_parquet(out / "candidates"))
    assert card["model_sha256"] == run.model.sha256 == ledger["model_sha256"].unique().item()
    assert card["run_id"] == run.run_id == ledger["run_id"].unique().item()
    assert card["configuration"]["input"] == json.loads(run.model.files["config.json"])["input"]


def test_nothing_of_the_work_is_left_behind(finished):
    out, _, _ = finished
    assert sorted(path.name for path in out.iterdir()) == [
        "candidates", "candidates.ecsv", "candidates.fits", "candidates.vot", "ledger", "manifest.parquet",
        "overdensity", "quarantine", "report", "run.json"]


def test_scores_are_those_of_the_pure_functions(finished, survey):
    """What Spark gives is what prepare, engine and measure_line give on the file's own pixels."""
    from lensspark.boss import read_unit
    from lensspark.locate import measure_line, ranked

    out, _, run = finished
    ledger = ledger_of(out)
    score = inference.scorer(run.model, run.config)
    scored = ledger[ledger["p_line"].notna() & (ledger["plate"] == 4001)]
    unit = next(unit for unit in survey_files(str(survey)).units if unit.plate == 4001)
    spectra = read_unit(unit, ("flux", "ivar", "and_mask"), run.model.window)
    rows = np.searchsorted(spectra.columns["fiberid"], scored["fiberid"])
    planes = [spectra.planes[name][rows] for name in ("flux", "ivar", "and_mask")]
    prepared, p_line, heat = score(*planes, np.array(spectra.columns["z"])[rows])
    found = measure_line(prepared, heat, np.array(spectra.columns["loglam0"])[rows], run.config.vetting.line_hits_snr)
    np.testing.assert_allclose(scored["p_line"], ranked(p_line, found["line_snr"]), atol=1e-5)
    for name in ("line_wave", "line_snr", "line_flux", "line_flux_err", "line_peak", "line_mask_fraction"):
        np.testing.assert_allclose(scored[name], found[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_null_searches_fill_their_own_columns_and_are_those_of_the_spectrum_upside_down(finished, survey):
    from lensspark.boss import read_unit
    from lensspark.locate import measure_line, ranked

    out, _, run = finished
    ledger = ledger_of(out)
    sky = ledger["objtype"] == "SKY"
    both = ledger["p_line"].notna() & ledger["null_p_line"].notna()
    share = both.sum() / ledger["p_line"].notna().sum()
    assert 0.05 < share < 0.6
    blank = sky & ~ledger["selected"]  # a sky fibre that the pipeline takes for a galaxy of the sample is scored as one
    assert blank.any() and ledger.loc[blank, "null_p_line"].notna().all() and ledger.loc[blank, "p_line"].isna().all()
    chosen = ledger[both & (ledger["plate"] == 4001)]
    unit = next(unit for unit in survey_files(str(survey)).units if unit.plate == 4001)
    spectra = read_unit(unit, ("flux", "ivar", "and_mask"), run.model.window)
    rows = np.searchsorted(spectra.columns["fiberid"], chosen["fiberid"])
    flux, ivar, mask = (spectra.planes[name][rows] for name in ("flux", "ivar", "and_mask"))
    z, score = np.array(spectra.columns["z"])[rows], inference.scorer(run.model, run.config)
    prepared = score(flux, ivar, mask, z)[0].upside_down()
    p_line, heat = score.run(prepared.channels)
    found = measure_line(prepared, heat, np.array(spectra.columns["loglam0"])[rows], 6.0)
    np.testing.assert_allclose(chosen["null_p_line"], ranked(p_line, found["line_snr"]), atol=1e-4)
    np.testing.assert_allclose(chosen["null_snr"], found["line_snr"], rtol=1e-3, atol=1e-3)
    nulls = json.loads((out / "run.json").read_text())["funnel"]["nulls"]
    assert nulls["n_null"] == both.sum() and nulls["n_sky"] == sky.sum()


def test_spectra_that_pass_through_spark_are_scored_as_those_that_do_not(spark, survey, finished):
    """predict's tasks read what they score; a DataFrame of the data source gives the same."""
    out, _, run = finished
    source.register(spark)
    spectra = spark.read.format("boss").options(**inference.reading(run.model, run.config)).load(str(survey))
    rows = inference.score(spectra, run.model, run.config).toPandas()
    good = rows[rows["reason"].isna()].sort_values(KEY).reset_index(drop=True)
    names = [name for name in schema.SCORED.names if name not in ("reason", "hdu")]
    pd.testing.assert_frame_equal(good[names], ledger_of(out)[names], rtol=1e-4, atol=1e-5, check_dtype=False)
    assert len(rows) - len(good) == len(pd.read_parquet(out / "quarantine"))


@pytest.mark.parametrize("rows", [1, 7])
def test_partitions_and_batches_do_not_matter(spark, survey, settings, finished, tmp_path, rows):
    search(spark, survey, tmp_path / "run", *settings, f"read.max_rows_per_batch={rows}", "read.target_partition_mb=1")
    one, other = ledger_of(finished[0]).drop(columns="run_id"), ledger_of(tmp_path / "run").drop(columns="run_id")
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-5)


def test_a_second_run_replaces_the_first(spark, survey, settings, finished):
    out, _, _ = finished
    before = ledger_of(out)
    search(spark, survey, out, *settings)
    pd.testing.assert_frame_equal(ledger_of(out), before)


def test_a_higher_threshold_never_adds_hits(spark, survey, settings, finished, tmp_path):
    ledger = ledger_of(finished[0])
    threshold = float(ledger["p_line"].median())
    _, run = search(spark, survey, tmp_path / "run", *settings, f"score.threshold={threshold}")
    hits = [set(frame.loc[frame["is_hit"] == True, KEY].itertuples(index=False, name=None))  # noqa: E712
            for frame in (ledger, ledger_of(tmp_path / "run"))]
    low, high = (hits[0], hits[1]) if threshold > 0.5 else (hits[1], hits[0])
    assert high <= low and hits[0] != hits[1]
    assert run.run_id != finished[2].run_id


def test_a_higher_line_snr_never_adds_a_candidate(spark, survey, settings, tmp_path):
    """Peaks are counted by a floor of their own: the limit of the S/N must not loosen that of their number."""
    loose = ("vetting.max_line_hits=1", "vetting.min_line_peak=-1e6", "vetting.max_mask_fraction=1")
    low, high = (search(spark, survey, tmp_path / f"{limit}", *settings, *loose, f"vetting.min_line_snr={limit}")
                 and ledger_of(tmp_path / f"{limit}") for limit in (3, 8))
    pd.testing.assert_series_equal(low["n_line_hits"], high["n_line_hits"])
    assert low["n_line_hits"].max() > 0 and not (high["veto"].eq(0) & low["veto"].ne(0)).any()


def test_the_shifted_search_is_that_of_the_pixels_redwards(spark, survey, settings, finished, tmp_path):
    from lensspark.boss import read_unit
    from lensspark.locate import measure_line, ranked

    share = ("score.null_fraction=0.3", "score.null_shift_fraction=0.3")
    _, run = search(spark, survey, tmp_path / "run", *settings, *share)
    ledger, first, n_pix = ledger_of(tmp_path / "run"), *run.model.pixels
    shifted = ledger["shifted_p_line"].notna()
    assert 5 < shifted.sum() < 0.6 * ledger["p_line"].notna().sum()
    assert ledger.loc[shifted, "null_p_line"].isna().all(), "a spectrum is searched anew in one way"
    assert (ledger.loc[shifted, "shifted_wave"] > 4999).all() and ledger["line_wave"].max() < 5001
    nulls = json.loads((tmp_path / "run/run.json").read_text())["funnel"]["nulls"]
    assert nulls["n_shifted"] == shifted.sum() and nulls["n_null"] == (ledger["p_line"] * ledger["null_p_line"]).count()
    assert nulls["n_shifted_hits"] == (ledger["shifted_p_line"] > 0.5).sum()
    same = ["p_line", "line_wave", "line_snr", "line_flux", "line_peak", "n_line_hits"]
    search(spark, survey, tmp_path / "off", *settings, "score.null_shift_fraction=0")
    off = ledger_of(tmp_path / "off")
    pd.testing.assert_frame_equal(ledger[same], off[same], rtol=1e-4, atol=1e-5)
    assert off["shifted_p_line"].isna().all()

    chosen = ledger[shifted & (ledger["plate"] == 4001)]
    unit = next(unit for unit in survey_files(str(survey)).units if unit.plate == 4001)
    at = (first + n_pix) * 1e-4
    spectra = read_unit(unit, ("flux", "ivar", "and_mask"), (10 ** (at - 5e-5), 10 ** (at + (n_pix - 0.5) * 1e-4)))
    rows = np.searchsorted(spectra.columns["fiberid"], chosen["fiberid"])
    planes = [spectra.planes[name][rows] for name in ("flux", "ivar", "and_mask")]
    prepared, p_line, heat = inference.scorer(run.model, run.config)(*planes, chosen["z_lens"].to_numpy(), shifted=True)
    found = measure_line(prepared, heat, np.full(len(chosen), at), 6.0)
    np.testing.assert_allclose(chosen["shifted_p_line"], ranked(p_line, found["line_snr"]), atol=1e-4)
    np.testing.assert_allclose(chosen["shifted_snr"], found["line_snr"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(chosen["shifted_wave"], found["line_wave"], rtol=1e-6)


def test_the_classical_sample(spark, survey, settings, tmp_path):
    search(spark, survey, tmp_path / "run", *settings, "selection.sample='classical'")
    ledger = ledger_of(tmp_path / "run")
    assert (ledger["objtype"][ledger["selected"]] == "GALAXY").all()
    assert ledger["not_selected_because"].str.contains("objtype").sum() > 0


def test_spectra_with_too_few_pixels_are_not_selected_and_say_so(spark, survey, settings, tmp_path):
    search(spark, survey, tmp_path / "run", *settings[1:], f"score.model='{_strict_model(tmp_path)}'")
    ledger = ledger_of(tmp_path / "run")
    few = ledger["not_selected_because"] == inference.TOO_FEW_PIXELS
    assert few.sum() > 5 and not ledger["selected"].any() and ledger["p_line"].isna().all()
    assert json.loads((tmp_path / "run/run.json").read_text())["counts"]["n_scored"] == 0


def _strict_model(tmp_path):
    make_model("input.min_usable_fraction=1.0").save(tmp_path / "strict")
    return tmp_path / "strict"


def test_a_model_with_wrong_bytes_never_scores():
    model = make_model()
    with pytest.raises(ValueError, match="expected 0000 as on the driver"):
        inference._scorer_once(model.files, "0000", config.load())
    with pytest.raises(ValueError, match="weights.npz has sha256"):
        inference._scorer_once({**model.files, "weights.npz": b""}, model.sha256, config.load())


def test_the_real_files(spark, shared_data, settings, tmp_path):
    code, _ = search(spark, shared_data / "spectra", tmp_path / "run", *settings)
    counts = json.loads((tmp_path / "run/run.json").read_text())["counts"]
    ledger = ledger_of(tmp_path / "run")
    inventory = pd.read_csv(shared_data / "spectra/inventory.csv")
    assert code == EXIT_DONE and counts["n_input"] == len(ledger) == len(inventory) == 274
    known = ledger.merge(inventory, on=["plate", "mjd", "fiberid"], suffixes=("", "_inventory"))
    assert len(known) == 274
    np.testing.assert_allclose(known["z"], known["z_inventory"], atol=1e-4)


def test_a_moved_survey_is_the_same_survey(survey, tmp_path, monkeypatch):
    shutil.copytree(survey, tmp_path / "moved")
    read = config.load().read
    known = manifest.of_survey(str(survey), read).sha256
    assert manifest.of_survey(str(tmp_path / "moved"), read).sha256 == known
    monkeypatch.chdir(tmp_path)
    assert manifest.of_survey("moved/", read).sha256 == known
    assert manifest.of_survey("moved/v5_7_0", read).sha256 == known
    next((tmp_path / "moved").rglob("spec-4000*.fits")).unlink()
    next((tmp_path / "moved").rglob("spPlate-4001*.fits")).unlink()
    assert manifest.of_survey("moved", read).sha256 != known


def refused(*arguments):
    done = subprocess.run([sys.executable, "jobs/predict.py", *map(str, arguments)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 600
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def one_spectrum(survey, tmp_path):
    lite = sorted((survey / "v5_7_0/spectra/lite/4000").glob("*.fits"))[0]
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / lite.name).write_bytes(lite.read_bytes())
    return tmp_path / "tree"


def test_wrong_arguments_write_nothing(one_spectrum, settings, tmp_path):
    sets = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    assert "no spectra" in refused("--spectra", tmp_path / "empty", "--out", out, *sets)
    assert "nowhere" in refused("--spectra", tmp_path / "nowhere", "--out", out, *sets)
    assert "score.treshold" in refused("--spectra", one_spectrum, "--out", out, "--set", "score.treshold=1")
    assert "no_model" in refused("--spectra", one_spectrum, "--out", out, "--set", "score.model=no_model")
    assert "--outt" in refused("--spectra", one_spectrum, "--out", out, "--outt", out)
    assert not out.exists()


def test_an_output_that_cannot_be_used_is_refused(one_spectrum, settings, tmp_path):
    sets = [part for setting in settings for part in ("--set", setting)]
    (tmp_path / "file").write_text("not a folder")
    assert "cannot be written" in refused("--spectra", one_spectrum, "--out", tmp_path / "file/run", *sets)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("precious")
    assert "holds no run" in refused("--spectra", one_spectrum, "--out", tmp_path / "full", *sets)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_another_run_is_never_overwritten(survey, settings, finished):
    out, _, _ = finished
    with pytest.raises(ValueError, match=r"another score.threshold \(0.5, this one's is 0.9\)"):
        pipeline.plan(str(survey), str(out), config.load([], [*settings, "score.threshold=0.9"]))
    other = ("score.engine='openvino'", "score.threshold=0.5")
    with pytest.raises(ValueError, match="holds a run with another model_sha256"):
        pipeline.plan(str(survey), str(out), config.load([], [*other, f"score.model='{_strict_model(out.parent)}'"]))
