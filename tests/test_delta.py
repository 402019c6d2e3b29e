"""Runs as Delta tables: the log tells of exactly the Parquet files, and lensspark still reads them."""

import shutil

import pandas as pd
import pyarrow as pa
import pytest
from synthetic_run import write_run

from lensspark import config, delta, recut
from lensspark.config import ConfigError

deltalake = pytest.importorskip("deltalake", reason="Delta off Databricks needs the extra `delta`")


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent") / "run"
    assert write_run(folder, rows=2_000, plates=4, hit_rate=0.05) > 50
    return folder


@pytest.fixture(scope="module")
def recutted(spark, parent, tmp_path_factory):
    out = tmp_path_factory.mktemp("delta") / "run"
    run = recut.plan(str(parent), str(out), [], ["output.format=delta"])
    recut.recut(spark, run, str(parent))
    return out


def query(table, sql):
    builder = deltalake.QueryBuilder().register("t", deltalake.DeltaTable(str(table)))
    return pa.table(builder.execute(sql).read_all()).to_pandas()


def test_the_tables_are_delta_tables_with_the_same_rows(recutted):
    for name, column in delta.PARTITIONS.items():
        table = deltalake.DeltaTable(str(recutted / name))
        assert table.version() == 0 and table.metadata().partition_columns == ([column] if column else [])
        files = {str(path.relative_to(recutted / name)) for path in (recutted / name).rglob("*.parquet")}
        assert {uri.split(f"/{name}/", 1)[1] for uri in table.file_uris()} == files
    rows = pd.read_parquet(recutted / "ledger").astype({"plate": int})
    found = query(recutted / "ledger", "select plate, count(*) n, sum(line_snr) snr, max(veto) veto "
                                          "from t group by plate")
    expected = rows.groupby("plate").agg(n=("mjd", "size"), snr=("line_snr", "sum"), veto=("veto", "max"))
    found = found.set_index("plate").sort_index()
    pd.testing.assert_frame_equal(found.astype(float), expected.astype(float), check_names=False, rtol=1e-9,
                                  check_index_type=False)


def test_a_recut_of_a_delta_run_is_that_of_its_parquet(spark, parent, recutted, tmp_path):
    ledgers = []
    for source in (parent, recutted):
        run = recut.plan(str(source), str(tmp_path / source.parent.name), [], ["vetting.min_line_snr=7",
                                                                               "output.format=parquet"])
        recut.recut(spark, run, str(source))
        rows = pd.read_parquet(tmp_path / source.parent.name / "ledger").astype({"plate": int})
        ledgers.append(rows.sort_values(["plate", "mjd", "fiberid", "run2d"]).reset_index(drop=True))
    assert not (tmp_path / recutted.parent.name / "ledger" / delta.LOG).exists()
    assert 0 < (ledgers[0]["veto"] == 0).sum() < (pd.read_parquet(recutted / "ledger")["veto"] == 0).sum()
    pd.testing.assert_frame_equal(*(rows.drop(columns="run_id") for rows in ledgers))


def test_a_table_that_was_changed_is_refused(recutted, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(recutted, copy)
    deltalake.DeltaTable(str(copy / "ledger")).delete("fiberid < 10")
    with pytest.raises(ValueError, match="ledger: the Delta table was changed after the run"):
        recut.plan(str(copy), str(tmp_path / "out"), [], [])
    assert not (tmp_path / "out").exists()


def test_a_second_conversion_tells_of_the_files_that_are_there(recutted, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(recutted, copy)
    gone = sorted((copy / "ledger").glob("plate=*"))[0]
    shutil.rmtree(gone)
    delta.convert(None, str(copy))
    left = query(copy / "ledger", "select distinct plate from t")["plate"]
    assert len(left) == 3 and int(gone.name.removeprefix("plate=")) not in set(left)


def test_without_the_package_a_run_is_refused_before_it_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(delta.importlib.util, "find_spec", lambda name: None)
    settings = config.load([], ["output.format=delta", "score.engine=openvino"])
    with pytest.raises(ValueError, match=r"output.format = 'delta'.*lensspark\[delta\]"):
        delta.check(settings)
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")
    delta.check(settings)


def test_other_formats_are_refused():
    with pytest.raises(ConfigError, match="output.format = 'iceberg'"):
        config.load([], ["output.format=iceberg"])


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3 server on loopback; the environment names it as fsspec and delta-rs want."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
             "AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": f"http://{host}:{port}",
             "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    fsspec.config.set_conf_env(fsspec.config.conf)
    fs = fsspec.filesystem("s3")
    fs.mkdir("runs")
    yield fs, "s3://runs/one"
    server.stop()
    fsspec.config.conf.pop("s3", None)
    fs.clear_instance_cache()


def test_tables_on_an_object_store_are_converted_again_and_again(parent, bucket):
    """The log is written besides fsspec, which remembers listings."""
    fs, run = bucket
    for name in ("ledger", "quarantine"):
        fs.put(f"{parent / name}/", f"runs/one/{name}/", recursive=True)
    for _ in range(2):
        delta.convert(None, run)
        assert deltalake.DeltaTable(f"{run}/ledger").count() == 2_000
    deltalake.DeltaTable(f"{run}/ledger").delete("fiberid < 10")
    with pytest.raises(ValueError, match="changed after the run"):
        delta.check_final(run)
