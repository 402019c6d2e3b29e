"""Killed at three random points and resumed, ten times over: the ledger of an undisturbed search."""

import json
import random
import shutil
import time

import pytest
from searches import Search, ledger_hash

TIMES, KILLS = 10, 3
RANGE = 0.1, 0.9  # of the undisturbed search's duration


@pytest.fixture(scope="module")
def whole(survey, model, tmp_path_factory):
    """(hash of the ledger, seconds) of a search that nobody disturbed."""
    start = time.monotonic()
    search = Search(survey, tmp_path_factory.mktemp("whole") / "run", model)
    assert search.wait() == 0, search.said
    return ledger_hash(search.out), time.monotonic() - start


@pytest.mark.long
@pytest.mark.parametrize("seed", range(TIMES))
def test_a_search_that_is_killed_again_and_again(survey, model, whole, tmp_path, seed):
    expected, seconds = whole
    points = [random.Random(f"{seed} {kill}").uniform(*RANGE) for kill in range(KILLS)]
    out, told = tmp_path / "run", []
    while len(told) < KILLS:
        search, point = Search(survey, out, model, "--resume"), points[len(told)]
        time.sleep(point * seconds)
        if search.process.poll() is None:
            told.append(f"{100 * point:.0f} % ({stage_of(out)})")
        else:  # the machine was busier when the whole search was timed
            shutil.rmtree(out)
            told, seconds = [], 0.7 * seconds
        search.kill()
    search = Search(survey, out, model, "--resume")
    assert search.wait() == 0, search.said
    print(f"seed {seed}: killed at {', '.join(told)} of {seconds:.0f} s")
    assert ledger_hash(out) == expected


def stage_of(out):
    """What the search says that it is doing."""
    try:
        return json.loads((out / "progress.json").read_text())["stage"]
    except OSError:
        return "planning"
