"""A search on a cluster, while machines, processes, disks and files fail: the same ledger, or a clear end."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from searches import KEY, Search, content, ledger_hash, parents, pid_in, rows_of, until

from lensspark.session import EXIT_QUARANTINE

LIMITED = {"spark.executor.pyspark.memory": "3g"}  # of a Python worker
EAGER = {"spark.speculation": "true", "spark.speculation.interval": "200ms", "spark.speculation.multiplier": "1.1",
         "spark.speculation.quantile": "0.5", "spark.speculation.minTaskRuntime": "1s"}


@pytest.fixture
def mark(tmp_path):
    """Where the saboteur leaves the number of the process that it met; a stopped one is ended with the test."""
    yield tmp_path / "mark"
    if pid := pid_in(tmp_path / "mark"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def own_survey(survey, tmp_path):
    """A copy of the survey, for breaking."""
    return Path(shutil.copytree(survey, tmp_path / "redux"))


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a file system of a folder, then changes its size."""
    folder = tmp_path / "disk"

    def sized(kilobytes):
        how = f"{'remount,' if os.path.ismount(folder) else ''}size={kilobytes}k"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "lensspark-test", folder], capture_output=True,
                              text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return folder

    yield sized
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_lost_machine_is_replaced(survey, model, cluster, undisturbed, mark, tmp_path):
    """SIGKILL of a worker and its executor while it reads a plate."""
    search = Search(survey, tmp_path / "run", model, master=cluster.url, sabotage=f"wait:spPlate-4001:{mark}")
    above = parents(until(lambda: pid_in(mark), search))
    doomed = [pid for pid, command in above if "CoarseGrainedExecutorBackend" in command or "worker.Worker" in command]
    assert len(doomed) == 2
    for pid in reversed(doomed):  # the worker first, lest it starts another executor
        os.kill(pid, signal.SIGKILL)
    assert search.wait() == 0, search.said
    assert ledger_hash(search.out) == ledger_hash(undisturbed)
    cluster.restart(next(i for i, process in enumerate(cluster.processes) if process.pid == doomed[-1]))


def ledger_after_sabotage(search, mark):
    """The ledger's hash of a search that ends well after the sabotage, which did happen."""
    assert search.wait() == 0, search.said
    assert pid_in(mark)
    return ledger_hash(search.out)


@pytest.mark.long
def test_a_killed_python_worker_is_replaced(survey, model, cluster, undisturbed, mark, tmp_path):
    search = Search(survey, tmp_path / "run", model, master=cluster.url, sabotage=f"kill:spPlate-4001:{mark}")
    assert ledger_after_sabotage(search, mark) == ledger_hash(undisturbed)


@pytest.mark.long
def test_a_task_out_of_memory_is_tried_again(survey, model, cluster, undisturbed, mark, tmp_path):
    search = Search(survey, tmp_path / "run", model, master=cluster.url, spark=LIMITED,
                    sabotage=f"memory:spPlate-4001:{mark}")
    assert ledger_after_sabotage(search, mark) == ledger_hash(undisturbed)


@pytest.mark.long
def test_a_task_always_out_of_memory_ends_the_search(survey, model, cluster, undisturbed, mark, tmp_path):
    """And leaves the former result of the same run as it was."""
    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    search = Search(survey, out, model, master=cluster.url, spark=LIMITED,
                    sabotage=f"always-memory:spPlate-4001:{mark}")
    assert search.wait() == 1, search.said
    assert "predict.py: failed: MemoryError" in search.said and "Traceback" not in search.said
    assert content(out) == content(undisturbed)


@pytest.mark.long
def test_a_stopped_worker_is_overtaken(survey, model, cluster, undisturbed, mark, tmp_path):
    """A straggler, SIGSTOP of a Python worker: Spark's speculation starts the task again on the other host."""
    search = Search(survey, tmp_path / "run", model, master=cluster.url, spark=EAGER,
                    sabotage=f"stop:spPlate-4001:{mark}")
    assert ledger_after_sabotage(search, mark) == ledger_hash(undisturbed)


@pytest.mark.long
def test_a_full_disk_ends_the_search_and_leaves_the_former_result(survey, model, cluster, undisturbed, small_disk):
    out = Path(shutil.copytree(undisturbed, small_disk(100_000) / "run"))
    used = shutil.disk_usage(out).used // 1024
    small_disk(used + 150)
    search = Search(survey, out, model, master=cluster.url)
    assert search.wait() == 1, search.said
    assert "No space left on device" in search.said and "Traceback" not in search.said
    assert content(out) == content(undisturbed)
    small_disk(100_000)
    search = Search(survey, out, model, master=cluster.url)
    assert search.wait() == 0, search.said
    assert ledger_hash(out) == ledger_hash(undisturbed)


@pytest.mark.long
def test_a_killed_search_resumes(survey, model, cluster, undisturbed, tmp_path):
    """SIGKILL of the driver while it writes the ledger."""
    search = Search(survey, tmp_path / "run", model, master=cluster.url)
    until((search.out / "_staging/ledger").exists, search)
    search.kill()
    assert not (search.out / "run.json").exists() and not (search.out / "ledger").exists()
    search = Search(survey, search.out, model, "--resume", master=cluster.url)
    assert search.wait() == 0, search.said
    assert re.search(r" blocks=(\d+) blocks_resumed=\1", search.said), search.said
    assert ledger_hash(search.out) == ledger_hash(undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("how", ["unlink", "cut"])
def test_a_plate_that_goes_or_changes_after_the_listing_ends_the_search(own_survey, model, cluster, undisturbed, mark,
                                                                        tmp_path, how):
    """And --resume searches what is there now."""
    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    os.utime(next(own_survey.rglob("spPlate-4001*")))  # changed since, so that it is read
    search = Search(str(own_survey), out, model, "--incremental", master=cluster.url,
                    sabotage=f"{how}:spPlate-4001:{mark}")
    assert search.wait() == 1, search.said
    assert re.search("failed: RuntimeError: 1 files of .* changed or went while they were searched", search.said)
    assert content(out) == content(undisturbed)
    search = Search(str(own_survey), out, model, "--incremental", "--resume", master=cluster.url)
    assert search.wait() == (EXIT_QUARANTINE if how == "cut" else 0), search.said
    faults = pd.read_parquet(out / "quarantine").to_dict("records")
    assert [(fault["plate"], "truncated" in fault["reason"]) for fault in faults] == [(4001, True)] * (how == "cut")
    expected = rows_of(undisturbed)
    assert rows_of(out)[KEY].equals(expected.loc[expected["plate"] != 4001, KEY].reset_index(drop=True))
