"""A search on a cluster, while machines, processes, disks and files fail: the same ledger, or a clear end."""

import os
import signal

import pytest
from searches import Search, content, ledger_hash, parents, pid_in, rows_of, until


def test_a_killed_python_worker_is_replaced(survey, model, cluster, undisturbed, tmp_path):
    mark = tmp_path / "mark"
    search = Search(survey, tmp_path / "run", model, master=cluster.url, sabotage=f"kill:spPlate-4001:{mark}")
    assert search.wait() == 0, search.said
    assert pid_in(mark)
    assert ledger_hash(search.out) == ledger_hash(undisturbed)


def test_a_lost_machine_is_replaced(survey, model, cluster, undisturbed, tmp_path):
    """SIGKILL of a worker and its executor while it reads a plate."""
    mark = tmp_path / "mark"
    search = Search(survey, tmp_path / "run", model, master=cluster.url, sabotage=f"wait:spPlate-4001:{mark}")
    above = parents(until(lambda: pid_in(mark), search))
    doomed = [pid for pid, command in above if "CoarseGrainedExecutorBackend" in command or "worker.Worker" in command]
    assert len(doomed) == 2
    for pid in reversed(doomed):  # the worker first, lest it starts another executor
        os.kill(pid, signal.SIGKILL)
    assert search.wait() == 0, search.said
    assert ledger_hash(search.out) == ledger_hash(undisturbed)
    number = next(i for i, process in enumerate(cluster.processes) if process.pid == doomed[-1])
    cluster.restart(number)
