"""spark.read.format("boss"): options, partitions, batches, remote stores; the arrays themselves: test_boss.py."""

import os
import uuid

import boss_files as bf
import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from lensspark import schema
from lensspark.boss import Key, Unit, survey_files
from lensspark.source import Options, batches, blocks, parse_options, register


@pytest.fixture(scope="module")
def boss(spark):
    """A function (root, **options) -> DataFrame."""
    register(spark)
    return lambda root, **options: spark.read.format("boss").options(**options).load(str(root))


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Two trees, one of plates and one of lite files, with two broken files: 12 good rows, 2 faults."""
    root = tmp_path_factory.mktemp("survey")
    for number in (3586, 3587):
        bf.write_plate(root / "v5_7_0", bf.make_plate(3, plate=number))
    bf.write_specs(root / "v5_7_2" / "spectra" / "lite" / "10000", bf.make_plate(7, plate=10000, run2d="v5_7_2"))
    (root / "v5_7_2" / "spectra" / "lite" / "10000" / "spec-10000-55181-0002.fits").write_bytes(b"")
    (root / "v5_7_0" / "3588").mkdir()
    (root / "v5_7_0" / "3588" / "spPlate-3588-55181.fits").write_text("<html>")
    return root


def rows(df):
    """Rows as comparable tuples, in the order of path and fibre."""
    return sorted(map(tuple, df.select("path", "fiberid", *sorted(set(df.columns) - {"path", "fiberid"})).collect()),
                  key=lambda row: (row[0], row[1] or 0))


def test_every_real_spectrum(boss, shared_data):
    df = boss(shared_data / "spectra", columns="flux,ivar").select("reason", F.size("flux").alias("n"), "loglam0")
    assert df.groupBy(*df.columns).count().collect() == [(None, 1192, 3.5798, 274)]


def test_schema_is_the_declared_one(boss, survey):
    every = boss(survey, columns="flux,ivar,and_mask,or_mask,wdisp,sky,model")
    assert every.schema == schema.SPECTRA.struct_type()
    assert [name for name in boss(survey).columns if name in ("loglam0", "wdisp", "flux")] == ["loglam0", "flux"]


def test_values_arrive_as_read(boss, survey):
    plate = bf.make_plate(3, plate=3587)
    row, = boss(survey, keys="3587-55181-2", window="full", columns="flux,or_mask").collect()
    assert row.flux == plate.planes["flux"][1].tolist() and row.or_mask == plate.planes["or_mask"][1].tolist()
    assert (row.plate, row.mjd, row.fiberid, row.run2d, row.loglam0) == (3587, 55181, 2, "v5_7_0", 3.5529)
    assert row.z == float(plate.catalogue["Z"][1]) and row.hdu is None and row.mag_i is None


def test_faults_are_rows_with_null_pixels(boss, survey):
    df = boss(survey).cache()
    assert df.where("reason is null").count() == 12
    faults = {(f.plate, f.fiberid): f for f in df.where("reason is not null").collect()}
    assert set(faults) == {(10000, 2), (3588, None)}
    assert "empty file" in faults[10000, 2].reason and "no spZbest" in faults[3588, None].reason
    assert all(f.flux is None and f.ivar is None and f.loglam0 is None and f.z is None for f in faults.values())
    df.unpersist()


def test_partitions_and_batches_do_not_change_the_result(boss, survey, monkeypatch):
    reference = rows(boss(survey))
    assert len(reference) == 14
    many = boss(survey, target_partition_mb="1", max_rows_per_batch="2")
    assert many.rdd.getNumPartitions() > boss(survey).rdd.getNumPartitions()
    assert rows(many) == reference


def test_plates_and_keys_prune(boss, survey):
    assert {r.plate for r in boss(survey, plates="3586, 10000").select("plate").collect()} == {3586, 10000}
    found = boss(survey, keys="3586-55181-1, 10000-55181-7-v5_7_2, 10000-55181-6-v5_7_0")
    assert sorted((r.plate, r.fiberid) for r in found.collect()) == [(3586, 1), (10000, 7)]


@pytest.mark.parametrize(("option", "value", "expected"), [
    ("layot", "auto", "unknown option 'layot': expected one of .*layout"),
    ("layout", "plates", "layout = 'plates': expected one of .*spplate"),
    ("window", "5000,3800", "window = '5000,3800': expected 'full' or 'low,high'"),
    ("window", "3800", "window = '3800'"),
    ("window", "nan,nan", "window = 'nan,nan'"),
    ("window", "3800,3800.1", "window = '3800,3800.1'.*with a pixel"),
    ("columns", "flux,flx", "columns = 'flux,flx': expected a comma list of .*wdisp"),
    ("columns", "", "columns = ''"),
    ("plates", "4055;7102", "plates = '4055;7102': expected a comma list of plate numbers"),
    ("keys", "4055-55359", "keys: '4055-55359', expected plate-mjd-fiberid"),
    ("target_partition_mb", "0", "target_partition_mb = '0': expected a whole number >= 1"),
    ("max_rows_per_batch", "many", "max_rows_per_batch = 'many'"),
])
def test_wrong_options_are_named(option, value, expected):
    with pytest.raises(ValueError, match=expected):
        parse_options({"path": "/survey", option: value})


def test_wrong_options_reach_sparks_user(boss, survey):
    with pytest.raises(Exception, match="unknown option 'layot'"):
        boss(survey, layot="auto")
    with pytest.raises(Exception, match="expected an existing folder of spectra"):
        boss(survey / "nowhere").count()


def test_options_are_parsed():
    given = {"Path": "s3://b", "WINDOW": "full", "columns": "ivar,flux", "keys": "1-2-3-v5_7_0,4-5-6"}
    keys = frozenset({Key(1, 2, 3, "v5_7_0"), Key(4, 5, 6)})
    assert parse_options(given) == Options("s3://b", window=None, columns=("ivar", "flux"), keys=keys)
    with pytest.raises(ValueError, match="path is missing"):
        parse_options({})


def test_blocks_are_balanced_and_complete():
    units = tuple(Unit(str(i), "plate", size=size) for i, size in enumerate([100, 1, 1, 1, 50, 50, 90, 10] * 9))
    units = tuple(Unit(u.path, "plate", size=u.size * 1_000_000) for u in units)
    for target, at_least in ((100_000_000, 1), (10**12, 1), (10**12, 5), (1, 1)):
        cut = blocks(units, target, at_least)
        assert tuple(u for block in cut for u in block) == units and all(cut)
    assert len(blocks(units, 10**12, 1)) == 1
    sizes = [sum(u.nbytes for u in block) for block in blocks(units, 304_000_000, 1)]
    assert len(sizes) == 9 and max(sizes) <= 304e6 + 100e6
    assert len(blocks(units[1:4], 10**12, 8)) == 3  # no more than files
    assert [len(block) for block in blocks(units[1:4] + units[:1], 10**12, 3)] == [3, 1]
    assert blocks((), 1, 8) == [()]


def test_batches_respect_their_limit(survey):
    units = survey_files(str(survey)).units
    for limit in (1, 2, 5, 512):
        options = Options(str(survey), max_rows_per_batch=limit)
        found = list(batches(units, options))
        assert all(0 < batch.num_rows <= limit for batch in found)
        table = pa.Table.from_batches(found)
        assert table.num_rows == 14 and table.column_names == options.table.names
        first = table.filter(pa.compute.equal(table["path"], units[0].path))
        assert np.array_equal(np.stack(first["flux"].to_numpy()), bf.make_plate(3).planes["flux"][:, 269:269 + 1192])


def test_ragged_full_spectra_share_a_batch(tmp_path):
    for number, n_pix in ((3586, 1500), (3587, 1400)):
        bf.write_specs(tmp_path, bf.make_plate(1, n_pix, plate=number))
    batch, = batches(survey_files(str(tmp_path)).units, Options(str(tmp_path), window=None))
    assert [len(flux) for flux in batch["flux"].to_pylist()] == [1500, 1400]


@pytest.fixture(scope="module")
def s3(survey):
    """The survey in a bucket of an S3 server on loopback; the environment names it as fsspec wants."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
             "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    fsspec.config.set_conf_env(fsspec.config.conf)
    bucket = f"survey-{uuid.uuid4().hex[:8]}"
    fs = fsspec.filesystem("s3")
    fs.mkdir(bucket)
    fs.put(f"{survey}/", f"{bucket}/redux/", recursive=True)
    yield f"s3://{bucket}/redux", names
    server.stop()
    fsspec.config.conf.pop("s3", None)
    fs.clear_instance_cache()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def test_s3_gives_the_same_rows(survey, s3):
    root, _ = s3
    local, remote = (
        {(row["plate"], row["fiberid"]): row for batch in batches(survey_files(r).units, Options(r))
         for row in batch.to_pylist()}
        for r in (str(survey), root)
    )
    assert set(local) == set(remote) and len(local) == 14
    for key, row in local.items():
        assert row | {"path": ""} == remote[key] | {"path": ""}
        assert remote[key]["path"].startswith(root)


def test_s3_in_ranges(s3, monkeypatch):
    """Files above the limit are fetched in ranges; small ones were above."""
    root, _ = s3
    whole = list(batches(survey_files(root, plates={3586}).units, Options(root)))
    monkeypatch.setattr("lensspark.boss.stream.READ_AT_ONCE_BYTES", 0)
    for rows_by_seek in (16, 0):
        monkeypatch.setattr("lensspark.boss.fits.ROWS_BY_SEEK", rows_by_seek)
        assert list(batches(survey_files(root, plates={3586}).units, Options(root))) == whole


def test_s3_through_spark(spark, s3, monkeypatch):
    """Workers learn the store's place and credentials from their environment: spark.executorEnv.* ends in this one."""
    root, names = s3
    for name, value in names.items():
        monkeypatch.setitem(spark.sparkContext.environment, name, value)
    register(spark)
    df = spark.read.format("boss").option("columns", "flux").load(root)
    assert df.groupBy(F.col("reason").isNull()).count().sort("count").collect() == [(False, 2), (True, 12)]


def test_a_missing_bucket_is_named(s3):
    with pytest.raises(ValueError, match="s3://nowhere-at-all/x: expected an existing folder"):
        survey_files("s3://nowhere-at-all/x")
