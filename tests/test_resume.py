"""A killed run, resumed, ends with the ledger of an undisturbed one, to the last bit, and repeats only what it must."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_survey import FIBRES, everything_in, ledger_hash, ledger_of, plan, search, settings, write_plates

from lensspark import blocks, catalogue, manifest, pipeline
from lensspark.boss import Unit

ROOT = Path(__file__).resolve().parents[1]
PLATES = (4000, 4001, 4002)


class Killed(BaseException):
    """What no code of a run catches, as a signal."""


@pytest.fixture(scope="module")
def survey(basis, tmp_path_factory):
    redux = tmp_path_factory.mktemp("survey") / "redux"
    write_plates(redux, basis, PLATES)
    return redux


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """One file to a block: 2 x 1 MB for one core, and a plate has 2.8 MB."""
    return (*settings(tmp_path_factory.mktemp("model")), "read.block_mb=1", "read.target_partition_mb=1")


@pytest.fixture(scope="module")
def undisturbed(spark, survey, chosen, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "block_bytes", lambda *_: 1)
        out = tmp_path_factory.mktemp("run") / "run"
        search(spark, survey, out, chosen)
    return out


def kill_at(monkeypatch, place, number=1):
    """`place` (module, function) is a kill at its `number`-th call."""
    function, calls = getattr(*place), []

    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(*place, deadly)


def test_killed_three_times_and_resumed_is_undisturbed(spark, survey, chosen, undisturbed, tmp_path, monkeypatch,
                                                       caplog):
    caplog.set_level(logging.INFO, "lensspark")
    monkeypatch.setattr(blocks, "block_bytes", lambda *_: 1)
    out, write, written = tmp_path / "run", blocks.write_block, []
    monkeypatch.setattr(blocks, "write_block", lambda *args: written.append(args[2]) or write(*args))
    for place, number in (((blocks, "write_block"), 3), ((pipeline, "measure"), 1), ((pipeline, "write_ledger"), 1)):
        with monkeypatch.context() as patch:
            kill_at(patch, place, number)
            with pytest.raises(Killed):
                search(spark, survey, out, chosen, resume=True)
        assert not (out / "run.json").exists() and not (out / "run.lock").exists()
        assert json.loads((out / "progress.json").read_text())["state"] == "failed"
    search(spark, survey, out, chosen, resume=True)
    assert 3 <= len(written) <= 4, "of the first two blocks one may have been in work"
    assert len({block.name for block in written}) == 3 and caplog.text.count("blocks_resumed=3") >= 1
    assert ledger_hash(out) == ledger_hash(undisturbed)
    assert {path.name for path in out.iterdir()} == {path.name for path in undisturbed.iterdir()}


def test_blocks_hold_each_file_once_and_do_not_depend_on_those_after_them():
    units = [Unit(f"/r/{i}", "plate", plate=i // 2, mjd=1, size=size) for i, size in enumerate([5, 9, 1, 20, 1, 1, 3])]
    stamps = {unit: unit.path for unit in units}
    whole = blocks.cut(units, stamps, 10)
    assert [len(block.units) for block in whole] == [2, 2, 3] and sum(block.plates for block in whole) == 4
    assert [unit for block in whole for unit in block.units] == units
    without = blocks.cut([unit for unit in units if unit not in whole[1].units], stamps, 10)
    assert without == [whole[0], whole[2]]
    assert blocks.cut([], {}, 10) == []
    assert {block.name for block in blocks.cut(units, stamps | {units[0]: "changed"}, 10)} - {
        block.name for block in whole} == {blocks.cut(units, stamps | {units[0]: "changed"}, 10)[0].name}


def test_a_block_with_a_file_that_is_another_now_is_not_taken_up(survey, chosen, tmp_path):
    run = plan(survey, tmp_path / "run", chosen)
    stamps = sorted(manifest.stamps_of(run.manifest).values())
    for name, held in (("a", stamps[:1]), ("b", [stamps[1], "gone"])):
        catalogue.write_file(run.path(f"_blocks/{name}.json"), json.dumps({"stamps": held}).encode())
    assert list(blocks.finished(run, set(stamps))) == ["a"]
    assert not Path(run.path("_blocks/b.json")).exists()
    run.lock.release()


def test_resuming_nothing_is_a_start_and_what_is_finished_is_left(spark, survey, chosen, undisturbed, tmp_path):
    before = everything_in(undisturbed)
    assert search(spark, survey, undisturbed, chosen, resume=True) is None
    assert everything_in(undisturbed) == before
    run = plan(survey, tmp_path / "empty", chosen, resume=True)
    assert run is not None and not list(Path(run.path("")).glob("_*"))
    run.lock.release()
    with pytest.raises(ValueError, match="another score.threshold"):
        plan(survey, undisturbed, [*chosen, "score.threshold=0.6"], resume=True)


def test_a_killed_process_is_resumed_by_the_next(survey, chosen, undisturbed, tmp_path):
    """SIGKILL of jobs/predict.py between two of its blocks: lock, progress and blocks are as it left them."""
    out = tmp_path / "run"
    command = [sys.executable, "jobs/predict.py", "--spectra", survey, "--out", out, "--master", "local[1]", "--resume",
               *(part for text in chosen for part in ("--set", text))]
    killed = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 120
    while not finished_blocks(out) and time.monotonic() < end and killed.poll() is None:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and 0 < finished_blocks(out) < 3
    assert (out / "run.lock").exists() and not (out / "run.json").exists()
    state = json.loads((out / "progress.json").read_text())
    assert (state["state"], state["stage"], state["plates"]) == ("running", "score", 3)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "taken_over_from" in done.stderr and "blocks_resumed=" in done.stderr
    assert ledger_hash(out) == ledger_hash(undisturbed)
    assert len(ledger_of(out)) == 3 * FIBRES


def finished_blocks(out):
    return len(list(out.glob("_staging/_blocks/*.json")))
