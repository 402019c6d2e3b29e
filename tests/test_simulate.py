"""The mock survey as a job: the same files whatever the partitions, truth for every spectrum, folders kept safe."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lensspark import boss, config, schema
from lensspark.eigen import Basis
from lensspark.mock import files
from lensspark.simulate import CARD, TRUTH, Plan, simulate
from lensspark.source import register

JOB = Path(__file__).resolve().parent.parent / "jobs" / "simulate.py"
SMALL = Plan(plates=3, fibres=5, broken=6, layout="mixed")


@pytest.fixture(scope="module")
def basis():
    return Basis.load(config.resource("data/eigenbasis.npz"))


@pytest.fixture(scope="module")
def survey(spark, basis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    simulate(lambda: spark, str(folder), SMALL, config.load().mock, basis, partitions=1)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_spark():
    raise AssertionError("no session is needed to refuse a folder")


def test_partitions_do_not_change_a_byte(spark, survey, basis, tmp_path):
    simulate(lambda: spark, f"file://{tmp_path}", SMALL, config.load().mock, basis, partitions=3)
    assert contents(tmp_path) == contents(survey)


def test_again_with_the_same_arguments_is_the_same_survey(spark, survey, basis):
    before = contents(survey)
    (survey / files.spzbest_path(4001, SMALL.mjd(4001))).unlink()
    simulate(lambda: spark, str(survey), SMALL, config.load().mock, basis)
    assert contents(survey) == before


def test_layout_mixed_writes_lite_files_of_the_first_plate(survey):
    assert len(list(survey.glob("v5_7_0/*/spPlate-*.fits"))) == 3
    assert len(list(survey.glob("v5_7_0/*/v5_7_0/spZbest-*.fits"))) == 3
    lite = Counter(path.parent.name for path in survey.glob("v5_7_0/spectra/lite/*/spec-*.fits"))
    assert lite == {"4000": 5, "4003": 6}  # 4003: the broken ones
    assert (survey / files.SPALL_PATH).exists() and (survey / files.PLATELIST_PATH).exists()


@pytest.mark.parametrize("layout, first", [("both", ("spplate", "lite")), ("lite", ("lite",)),
                                           ("spplate", ("spplate",))])
def test_other_layouts_write_all_plates_alike(layout, first):
    plan = replace(SMALL, layout=layout)
    assert {plan.layouts_of(plate) for plate in (4000, 4001, 4002)} == {first}


def test_truth_has_a_row_for_every_file_and_spectrum(spark, survey):
    truth = spark.read.parquet(str(survey / TRUTH))
    declared = schema.TRUTH.struct_type()
    assert [(f.name, f.dataType) for f in truth.schema] == [(f.name, f.dataType) for f in declared]
    rows = truth.toPandas()
    assert len(rows) == 3 * 5 + 6
    assert list(zip(rows["plate"], rows["fiberid"], strict=True)) == sorted(
        [(p, f) for p in (4000, 4001, 4002) for f in range(1, 6)] + [(4003, f) for f in range(1, 7)])
    assert all((survey / path).is_file() for path in rows["path"])
    assert rows[rows["plate"] < 4003]["path"].str.contains("spPlate").all()
    broken = rows[rows["kind"] == "broken"]
    assert broken["fault"].tolist() == list(files.FAULTS)
    assert set(rows["fault"].isna()) == {True, False} and rows[rows["kind"] != "broken"]["fault"].isna().all()


def test_what_does_not_exist_is_null(survey):
    table = pq.read_table(survey / TRUTH)
    for name in ("line_wave", "line_flux", "line_snr", "z_source", "z_lens"):
        values = table[name].drop_null().to_numpy()
        assert not np.isnan(values).any(), name
    clean = np.array(table["kind"].to_pylist()) == "clean"
    assert clean.any()
    assert table["line_wave"].filter(clean).null_count == clean.sum()
    assert table["z_lens"].filter(clean).null_count == 0


def test_the_search_reads_what_was_written(spark, survey):
    register(spark)
    rows = spark.read.format("boss").load(str(survey)).select("plate", "fiberid", "reason", "mag_i", "flux").collect()
    good = [row for row in rows if row.reason is None]
    assert sorted((row.plate, row.fiberid) for row in good) == [(p, f) for p in (4000, 4001, 4002) for f in range(1, 6)]
    assert sorted(row.fiberid for row in rows if row.reason is not None) == [1, 2, 3, 4, 5, 6]
    assert all(len(row.flux) == 1192 for row in good)
    assert any(15 < row.mag_i < 22 for row in good if row.mag_i is not None)  # from spAll


def test_both_layouts_of_a_plate_hold_the_same(survey):
    whole, = (boss.read_unit(u) for u in boss.survey_files(str(survey), "spplate", plates={4000}).units)
    single = [boss.read_unit(unit) for unit in boss.survey_files(str(survey), "lite", plates={4000}).units]
    for plane in ("flux", "ivar", "and_mask"):
        np.testing.assert_array_equal(np.concatenate([part.planes[plane] for part in single]), whole.planes[plane])


# --- Refusals ---


def test_a_folder_with_something_else_is_refused(basis, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not empty and not a mock survey .holds thesis.tex"):
        simulate(no_spark, str(tmp_path), SMALL, config.load().mock, basis)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_a_survey_made_with_other_arguments_is_refused(survey, basis):
    before = contents(survey)
    for plan, settings in ((replace(SMALL, seed=2), config.load().mock), (SMALL, config.load().mock_training)):
        with pytest.raises(ValueError, match="made with other arguments"):
            simulate(no_spark, str(survey), plan, settings, basis)
    assert contents(survey) == before


def test_a_folder_that_cannot_be_made_is_refused(basis, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--out .*file/below: "):
        simulate(no_spark, str(tmp_path / "file" / "below"), SMALL, config.load().mock, basis)
    with pytest.raises(ValueError, match="--out nowhere://x: "):
        simulate(no_spark, "nowhere://x", SMALL, config.load().mock, basis)


@pytest.mark.parametrize("option, value", [("plates", 0), ("fibres", 0), ("fibres", 1001), ("first_plate", 0),
                                           ("seed", -1), ("broken", -1), ("layout", "fits")])
def test_numbers_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} {value!r}: expected"):
        Plan(**{option: value})


# --- Job ---


def job():
    spec = importlib.util.spec_from_file_location("jobs.simulate", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_job_writes_the_survey_and_says_so(spark, tmp_path, caplog):
    with caplog.at_level("INFO", logger="lensspark"):
        arguments = ["--out", str(tmp_path / "new"), "--plates", "1", "--fibres", "6", "--broken", "1", "--preset",
                     "training", "--layout", "lite", "--set", "mock_training.sky=0.03", "--first-plate", "77"]
        assert job().main(arguments) == 0
    assert "6 spectra and 1 broken files" in caplog.text
    truth = pq.read_table(tmp_path / "new" / TRUTH).to_pylist()
    assert [row["plate"] for row in truth] == [77] * 6 + [78]
    assert all(row["path"].endswith(f"{row['fiberid']:04d}.fits") for row in truth)
    assert b'"sky": 0.03' in (tmp_path / "new" / CARD).read_bytes()


@pytest.mark.parametrize("arguments, said", [
    ([], "--out"), (["--out", "{new}", "--plates", "0"], "--plates 0: expected 1"),
    (["--out", "{new}", "--basis", "{new}.npz"], "not a basis of eigenspectra"), (["--out", __file__], "not empty"),
])
def test_wrong_arguments_end_with_2_and_one_line(tmp_path, arguments, said):
    arguments = [text.replace("{new}", str(tmp_path / "new")) for text in arguments]
    done = subprocess.run([sys.executable, JOB, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()
