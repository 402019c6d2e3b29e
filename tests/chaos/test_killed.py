"""Killed at three random points and resumed, ten times over: the ledger of an undisturbed search."""

import json
import random
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
    for point in points:
        search = Search(survey, out, model, "--resume")
        time.sleep(point * seconds)
        told.append(f"{100 * point:.0f} % {stage_of(out) if search.process.poll() is None else 'done before'}")
        search.kill()
    search = Search(survey, out, model, "--resume")
    assert search.wait() == 0, search.said
    print(f"seed {seed}, {seconds:.0f} s undisturbed, killed at {', '.join(told)}")
    assert ledger_hash(out) == expected


def stage_of(out):
    """What the search says that it is doing."""
    try:
        return json.loads((out / "progress.json").read_text())["stage"]
    except OSError:
        return "planning"
