"""A run's folder: one run at a time, a former result that stays until the new one is whole, no litter."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_survey import everything_in, write_unreadable

from lensspark import catalogue, config, lock, manifest, progress, promotion
from lensspark import run as runs
from lensspark.run import Run

ROOT = Path(__file__).resolve().parents[1]


def hold(out, **facts):
    """A lock as another process left it."""
    out.mkdir(exist_ok=True)
    holder = {"host": socket.gethostname(), "pid": 1, "birth": "?", "started": "2026-01-01", "run_id": "abc",
              "token": "theirs"} | facts
    (out / lock.NAME).write_text(json.dumps(holder))


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_lock_of_a_living_process_is_refused_and_a_dead_ones_taken_over(tmp_path, sleeper, caplog):
    hold(tmp_path, pid=sleeper.pid, birth=lock._birth(sleeper.pid), run_id="deadbeef")
    with pytest.raises(ValueError, match=f"run deadbeef of process {sleeper.pid} on {socket.gethostname()} .started"):
        lock.acquire(str(tmp_path), "mine")
    assert json.loads((tmp_path / lock.NAME).read_text())["token"] == "theirs"
    sleeper.kill()
    sleeper.wait()
    held = lock.acquire(str(tmp_path), "mine")
    assert "taken_over_from" in caplog.text and str(sleeper.pid) in caplog.text
    assert json.loads((tmp_path / lock.NAME).read_text())["run_id"] == "mine"
    held.release()
    assert not list(tmp_path.iterdir())


def test_a_process_that_only_has_the_number_of_the_holder_does_not_hold_the_lock(tmp_path, sleeper):
    hold(tmp_path, pid=sleeper.pid, birth="12")
    held = lock.acquire(str(tmp_path), "mine")
    assert json.loads((tmp_path / lock.NAME).read_text())["run_id"] == "mine"
    held.release()


@pytest.mark.parametrize("content", [None, ""], ids=["another_host", "cut_off"])
def test_a_lock_that_nobody_can_ask_about_is_taken_over_when_it_has_no_beat(tmp_path, content, caplog):
    hold(tmp_path, host="elsewhere")
    if content is not None:
        (tmp_path / lock.NAME).write_text(content)
    with pytest.raises(ValueError, match="elsewhere" if content is None else "an unknown run"):
        lock.acquire(str(tmp_path), "mine")
    past = os.stat(tmp_path / lock.NAME).st_mtime - lock.STALE_S - 1
    os.utime(tmp_path / lock.NAME, (past, past))
    held = lock.acquire(str(tmp_path), "mine")
    assert "no sign of life" in caplog.text
    os.utime(tmp_path / lock.NAME, (past, past))
    held.beat()
    assert os.stat(tmp_path / lock.NAME).st_mtime > past + lock.STALE_S
    held.release()


def test_who_lost_the_lock_does_not_go_on_and_does_not_remove_it(tmp_path):
    held = lock.acquire(str(tmp_path), "mine")
    hold(tmp_path)
    for act in (held.check, held.beat):
        with pytest.raises(RuntimeError, match="no longer held by this run, but by run abc"):
            act()
    held.release()
    assert json.loads((tmp_path / lock.NAME).read_text())["token"] == "theirs"


RACE = """
import os, sys, time
from lensspark import lock
for _ in range(8):
    if not os.fork():
        try:
            lock.acquire(sys.argv[1], "racer")
            os.write(1, b"won ")
            time.sleep(1)
        except ValueError:
            os.write(1, b"refused ")
        os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def test_of_many_that_find_a_stale_lock_one_wins(tmp_path):
    hold(tmp_path, pid=2**22 + 1)
    said = subprocess.run([sys.executable, "-c", RACE, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(said.stdout.split()) == ["refused"] * 7 + ["won"]


# --- The folder, without a search ---


@pytest.fixture
def tree(tmp_path):
    return write_unreadable(tmp_path / "redux")


def make(tree, out, *settings, model="m" * 64):
    chosen = config.load([], settings)
    listed = manifest.of_survey(str(tree), chosen.read)
    return Run(str(tree), str(out), None, chosen, listed.sha256, model, manifest=listed)


def stage_result(run, text):
    """Writes a result into the staging folder, as the stages of a search do."""
    for name in ("ledger/plate=1/part", "report/index.html", "_targets/part"):
        catalogue.write_file(run.path(name), text.encode())
    run.manifest.joined().write(run.path(manifest.NAME))
    card = run.card() | {"counts": {"n_input": 0}, "text": text}
    catalogue.write_file(run.path("run.json"), json.dumps(card).encode())
    catalogue.write_file(run.product(progress.NAME), b"{}")


def finish(run, text):
    assert runs.claim(run, incremental=True)
    stage_result(run, text)
    runs.promote(run)
    run.lock.release()
    return run


def test_a_killed_promotion_is_ended_by_the_next_run_whatever_it_wants(tree, tmp_path, monkeypatch):
    """Cut off at each of its steps; a run.json that is there always has the ledger that belongs to it."""
    move, killed_at = promotion._move, 0
    finish(make(tree, tmp_path / "old"), "old")
    while True:
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "old", out)
        (tree / "v5_7_0/4055/spZbest-4055-55359.fits").write_bytes(b"x" * (killed_at + 2))
        new = make(tree, out)
        assert runs.claim(new, incremental=True)
        stage_result(new, "new")
        left = [killed_at]

        def some(*args, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            move(*args)

        monkeypatch.setattr(promotion, "_move", some)
        try:
            runs.promote(new)
            break
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.setattr(promotion, "_move", move)
            new.lock.release()
        if (out / "run.json").exists():
            assert json.loads((out / "run.json").read_text())["text"] == (out / "ledger/plate=1/part").read_text()
        other = make(tree, out, model="n" * 64)
        with pytest.raises(ValueError, match="another model_sha256"):
            runs.claim(other)
        text = "old" if killed_at == 0 else "new"  # before the first step nothing was promised
        assert json.loads((out / "run.json").read_text())["text"] == (out / "ledger/plate=1/part").read_text() == text
        if killed_at:
            assert {path.name for path in out.iterdir()} == {
                "ledger", "report", "manifest.parquet", "run.json"}
        killed_at += 1
    assert killed_at == 1 + 2 * 4  # the commit, and each of four products out and in


def test_what_dead_runs_left_is_removed_and_what_others_put_there_is_not(tree, tmp_path):
    run = finish(make(tree, tmp_path / "run"), "old")
    out = tmp_path / "run"
    for name in ("_targets/part", "_scored/part", "_former/run.json", ".progress.json.x1", "evaluation.json"):
        catalogue.write_file(str(out / name), b"{}")
    catalogue.write_file(str(out / "run.started.json"), json.dumps(run.card()).encode())
    again = make(tree, out)
    assert runs.claim(again)
    assert {path.name for path in out.iterdir()} == {
        "ledger", "report", "manifest.parquet", "run.json", "run.lock", "_staging", "evaluation.json"}
    again.lock.release()


def test_former_results_are_kept_where_asked(tree, tmp_path):
    for i in range(4):
        (tree / "v5_7_0/4055/spZbest-4055-55359.fits").write_bytes(b"x" * (i + 2))
        finish(make(tree, tmp_path / "run", "limits.keep_former=2"), f"result {i}")
    kept = sorted((tmp_path / "run").glob("former-*"))
    assert {(path / "ledger/plate=1/part").read_text() for path in kept} == {"result 1", "result 2"}
    assert (tmp_path / "run/ledger/plate=1/part").read_text() == "result 3"


def test_an_unfinished_run_makes_room_for_its_like_and_no_other(tree, tmp_path):
    out, run = tmp_path / "run", make(tree, tmp_path / "run")
    assert runs.claim(run)
    stage_result(run, "half")
    catalogue.write_file(run.path("_blocks/1.json"), b"{}")
    run.lock.release()
    with pytest.raises(ValueError, match=r"another score.threshold \(0.945, this one's is 0.5\)"):
        runs.claim(make(tree, out, "score.threshold=0.5"), resume=True)
    assert (out / "_staging/_blocks/1.json").exists() and not (out / lock.NAME).exists()
    resumed = make(tree, out)
    assert runs.claim(resumed, resume=True)
    resumed.lock.release()
    assert sorted(path.name for path in (out / "_staging").iterdir()) == ["_blocks", "run.started.json"]
    anew = make(tree, out)
    assert runs.claim(anew)
    anew.lock.release()
    assert sorted(path.name for path in (out / "_staging").iterdir()) == ["run.started.json"]


def test_what_is_finished_or_in_use_or_another_version_s(tree, tmp_path, monkeypatch, sleeper):
    out = tmp_path / "run"
    finish(make(tree, out), "old")
    before = everything_in(out)
    assert not runs.claim(make(tree, out), resume=True) and not runs.claim(make(tree, out), incremental=True)
    assert everything_in(out) == before
    (tree / "v5_7_0/4055/spPlate-4055-55359.fits").write_bytes(b"xy")
    for how in ({}, {"resume": True}):
        with pytest.raises(ValueError, match="another run_id .*--incremental takes what is new or changed"):
            runs.claim(make(tree, out), **how)
    hold(out, pid=sleeper.pid, birth=lock._birth(sleeper.pid))
    with pytest.raises(ValueError, match="at work there"):
        runs.claim(make(tree, out), incremental=True)
    (out / lock.NAME).unlink()
    monkeypatch.setattr(runs, "__version__", "99")
    with pytest.raises(ValueError, match="another lensspark .*99.*take a new folder"):
        runs.claim(make(tree, out), incremental=True)
    monkeypatch.undo()
    (out / manifest.NAME).unlink()
    with pytest.raises(ValueError, match="no manifest.parquet"):
        runs.claim(make(tree, out), incremental=True)
    assert not (out / lock.NAME).exists()


def test_a_run_that_was_planned_and_never_made_does_not_lock_its_own_process_out(tree, tmp_path):
    first, second = make(tree, tmp_path / "run"), make(tree, tmp_path / "run")
    assert runs.claim(first) and runs.claim(second)
    with pytest.raises(RuntimeError, match="no longer held"):
        first.lock.check()
    second.lock.busy = True
    with pytest.raises(ValueError, match="at work there"):
        runs.claim(make(tree, tmp_path / "run"))
    second.lock.release()


# --- Progress ---


def test_progress_is_a_file_that_always_parses_and_says_how_a_run_failed(spark, tmp_path):
    with pytest.raises(RuntimeError), progress.Progress(str(tmp_path), "id", spark, lambda: None) as told:
        told.stage("score")
        told.blocks(plates=10, nbytes=1000, largest=400)
        told.block(4, 400, 4000, found=True)
        state = json.loads((tmp_path / progress.NAME).read_text())
        assert (state["done"], state["plates_done"], state["spectra_done"]) == (0.4, 4, 4000)
        assert state["spectra_per_second"] is None and state["seconds_left"] is None, "nothing was timed yet"
        told._begin -= 10
        told.block(3, 300, 3000)
        state = json.loads((tmp_path / progress.NAME).read_text())
        assert (state["done"], state["plates_done"], state["spectra_done"]) == (0.7, 7, 7000)
        assert state["spectra_per_second"] == pytest.approx(300, rel=0.1), "of this run, not of the one before"
        assert state["seconds_left"] == pytest.approx(10, abs=1)
        raise RuntimeError("s3://user:secret@store/x is gone")
    state = json.loads((tmp_path / progress.NAME).read_text())
    assert state["state"] == "failed" and "is gone" in state["reason"] and "secret" not in state["reason"]
    assert [path.name for path in tmp_path.iterdir()] == [progress.NAME]


def test_the_bar_and_the_log_s_line():
    state = {"stage": "score", "done": 0.25, "plates": 2500, "plates_done": 625, "spectra_per_second": 2310,
             "seconds_left": 3723}
    assert progress.bar(state, [], 8) == (
        "score     [##------]  25 %  625 of 2,500 plates  2,310 spectra/s  1:02:03 left")
    assert progress.line("score", seconds=12.345, spectra=64000, path="a b", none="") == (
        'stage=score seconds=12.3 spectra=64000 path="a b" none=""')


def test_a_run_id_names_input_model_and_configuration(tree, tmp_path):
    run = make(tree, tmp_path / "run")
    assert replace(run, out="elsewhere").run_id == run.run_id != replace(run, model_sha256="n").run_id
    assert make(tree, tmp_path / "run", "score.threshold=0.5").run_id != run.run_id
