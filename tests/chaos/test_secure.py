"""A cluster that only those may join who know its secret, and what a search tells of secrets."""

import secrets
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cluster import standalone_cluster
from searches import Search, until

CLOSED = """spark.authenticate            true
spark.authenticate.secret     {secret}
spark.network.crypto.enabled  true
spark.io.encryption.enabled   true
"""


@pytest.fixture(scope="module")
def secret():
    return secrets.token_hex(16)


@pytest.fixture(scope="module")
def closed(secret, tmp_path_factory):
    """The folder of configuration that opens the cluster, and the cluster."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "spark-defaults.conf").write_text(CLOSED.format(secret=secret))
    (folder / "spark-defaults.conf").chmod(0o600)
    with standalone_cluster(tmp_path_factory.mktemp("closed"), SPARK_CONF_DIR=str(folder)) as running:
        yield str(folder), running


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().decode(errors="replace")
        except OSError:
            continue


def text_of(path: Path) -> str:
    """What a file holds; of Parquet, unpacked."""
    if path.suffix == ".parquet":
        return repr(pq.read_table(path).to_pylist()) + repr(pq.read_schema(path).metadata)
    return path.read_bytes().decode(errors="replace")


@pytest.mark.long
def test_a_search_on_a_closed_cluster_tells_no_secret(survey, model, closed, secret, tmp_path):
    conf, cluster = closed
    planted = {"AWS_SECRET_ACCESS_KEY": "planted-in-aws", "FSSPEC_S3_SECRET": "planted-in-fsspec",
               "FSSPEC_ABFS": '{"account_key": "planted-in-json"}'}
    keys = {"spark.hadoop.fs.s3a.secret.key": "planted-in-spark",
            "spark.executorEnv.AWS_SECRET_ACCESS_KEY": "planted-in-aws"}
    search = Search(survey, tmp_path / "run", model, "--verbose", master=cluster.url, spark=keys, SPARK_CONF_DIR=conf,
                    **planted)
    until((search.out / "_staging/_scored").exists, search)
    processes = list(command_lines())
    assert any("CoarseGrainedExecutorBackend" in line for line in processes)
    assert not any(secret in line for line in processes)
    assert search.wait() == 0, search.said
    written = {str(path): text_of(path) for folder in (search.out, cluster.folder) for path in folder.rglob("*")
               if path.is_file() and path.suffix != ".jar"}
    assert any(path.endswith("run.json") for path in written)
    for word in (secret, *planted.values(), *keys.values(), "planted-in-json"):
        assert word not in search.said
        assert [path for path, text in written.items() if word in text] == []


@pytest.mark.long
def test_who_does_not_know_the_secret_stays_out(survey, model, closed, tmp_path):
    _, cluster = closed
    search = Search(survey, tmp_path / "run", model, master=cluster.url)
    assert search.wait() == 1
    assert "Traceback" not in search.said and not (search.out / "ledger").exists()
