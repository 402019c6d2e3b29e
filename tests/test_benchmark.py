"""The benchmark's own arithmetic and its parts that take no minutes."""

import json

import pytest

from lensspark import benchmark, config
from lensspark.benchmark import core, report, survey


def results():
    """Searches that take 20 s and 2 ms per spectrum, on a machine whose limit is 1 ms."""
    runs = [{"plates": n, "search": precision, "seconds": 20 + 2e-3 * 1000 * n, "to_first_task": 6.0,
             "timings": {"score": 3 + 1.5e-3 * 1000 * n, "measure": 1.0, "vet": 2.0, "publish": 3.0, "report": 4.0},
             "counts": {"n_input": 1000 * n}, "memory_mb": {"driver": 100.0, "jvm": 900.0, "worker": 300.0}}
            for precision in ("f32", "bf16") for n in (8, 16, 16, 16)]
    limit = {"read": 90_000.0, "infer": 900.0, "search": 1000.0, "selected": 0.8}
    return {"machine": {"cpu": "one", "cores": 2, "memory_gb": 8, "units": []},
            "scale": {"limits": {"f32": [limit] * 3, "bf16": [limit] * 3}, "runs": runs},
            "partitions": [{"partition_mb": 512, **runs[0]}]}


def test_what_does_not_grow_with_the_survey_is_no_part_of_the_steady_rate():
    found = report.steady(results(), "f32")
    assert found["steady"] == pytest.approx(500) and found["score"] == pytest.approx(1000 / 1.5)
    assert found["whole"] == pytest.approx(16_000 / 52)
    assert found["infer"] == pytest.approx(900 / 0.8) and found["of_search"] == pytest.approx(0.5)
    assert found["of_published"] == pytest.approx(500 / 229.96, rel=1e-3)


def test_the_tables_hold_what_was_measured(tmp_path):
    text = report.table(results())
    assert "| 16 | f32 | 52.0 | 6.0 | 27.0 |" in text and "| partition_mb | 512 |" in text
    report.plot(results(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_trees_double_up_to_the_largest():
    assert benchmark.sizes(64) == [8, 16, 32, 64] and benchmark.sizes(20) == [8, 16, 20]


def test_too_small_a_benchmark_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--plates 4"):
        benchmark.measure(tmp_path, config.load(), 4, 3, (), None)


def test_stages_are_measured_in_turn():
    seen = []
    rates = core.alternate({name: core.Stage(lambda name=name: seen.append(name), 10) for name in "ab"}, 3, 0.0)
    assert seen == list("abababab") and all(len(values) == 3 for values in rates.values())


def test_plates_are_written_once_and_read_as_a_survey(tmp_path):
    from lensspark.boss import read_unit, survey_files

    settings = config.load()
    survey.write(tmp_path, settings, 3, distinct=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.fits")}
    survey.write(tmp_path, settings, 3, distinct=2)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.fits")}
    units = survey_files(str(survey.part(tmp_path, 2))).units
    assert [unit.plate for unit in units] == [5000, 5001]
    twice = survey_files(str(survey.many(tmp_path, 2))).units
    versions = ("v6_0_0", "v6_1_0")
    assert sorted((unit.plate, unit.run2d) for unit in twice) == [
        (plate, run2d) for plate in (5000, 5001, 5002) for run2d in versions]
    copies = [read_unit(unit) for unit in twice]
    assert not any(copy.faults for copy in copies) and {*copies[0].columns["run2d"]} < {*versions}
    third = read_unit(next(u for u in survey_files(str(tmp_path / "spplate")).units if u.plate == 5002))
    assert len(third) == 1000 and not third.faults and set(third.columns["plate"]) == {5002}
    json.dumps(benchmark.machine(2))
