"""Fixtures of the tests of faults: a small survey, a small model, a cluster, and a run that nobody disturbed."""

from pathlib import Path

import pytest
import searches
from cluster import standalone_cluster
from searches import Search, write_survey
from small_model import make_model


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.chaos)


@pytest.fixture(scope="session", autouse=True)
def no_search_outlives_the_tests():
    yield
    for search in searches.STARTED:
        if search.process.poll() is None:
            search.kill()


@pytest.fixture(scope="session")
def survey(basis, tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "redux", basis)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    make_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one core, on hosts of their own: speculation wants another host."""
    with standalone_cluster(tmp_path_factory.mktemp("cluster"), ("127.0.0.1", "127.0.0.2")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(survey, model, cluster, tmp_path_factory):
    """The folder of a run on the cluster that nobody disturbed."""
    search = Search(survey, tmp_path_factory.mktemp("undisturbed") / "run", model, master=cluster.url)
    assert search.wait() == 0, search.said
    return search.out
