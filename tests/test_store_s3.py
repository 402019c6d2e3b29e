"""Runs on an object store: the ledger of a local run, and no half result, whatever is killed."""

import json
import logging
import runpy
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds
import pytest
import s3_server
from small_survey import KEY, ledger_of, search, settings, write_plates, write_unreadable
from test_run import make, stage_result

from lensspark import lock, promotion, store
from lensspark import run as runs

ROOT = Path(__file__).resolve().parents[1]
REDUX, ONE = "s3://survey/redux", "s3://runs/one"


class Killed(BaseException):
    """What no code of a run catches, as a signal."""


def killed(*_, **__):
    raise Killed


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    return settings(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tree(basis, tmp_path_factory):
    """Plates 4000 to 4002, of which the last cannot be read."""
    return write_plates(tmp_path_factory.mktemp("survey") / "redux", basis, (4000, 4001, 4002), broken=4002)


@pytest.fixture(scope="module")
def s3(spark):
    """The file system of an empty store with the bucket `runs`; Spark's workers find it by their environment."""
    import fsspec

    with s3_server.server() as names:
        environment = spark.sparkContext.environment
        environment.update(names)
        fs = fsspec.filesystem("s3")
        fs.mkdir("runs")
        yield fs
        for name in names:
            environment.pop(name)


@pytest.fixture(scope="module")
def first(s3, tree, chosen):
    """The survey on the store, and a run there."""
    s3.mkdir("survey")
    s3.put(f"{tree}/", "survey/redux/", recursive=True)
    assert predict(ONE, chosen) == 0
    return ONE


def job(name, *arguments):
    return runpy.run_path(str(ROOT / f"jobs/{name}.py"))["main"]([*map(str, arguments)])


def predict(out, chosen, *options):
    return job("predict", "--spectra", REDUX, "--out", out, *options,
               *(part for text in chosen for part in ("--set", text)))


def place_of(fs, out):
    """Where the products lie that run.json points to; fails if they are not all there, or something else is."""
    fs.invalidate_cache()
    return f"{out}/{json.loads(fs.cat_file(f'{out}/run.json'))['products']}".removeprefix("s3://")


def table(fs, out, name):
    """The rows of a table as those see it who list its folder, and know no list of files."""
    rows = ds.dataset(f"{place_of(fs, out)}/{name}", filesystem=fs, partitioning="hive").to_table().to_pandas()
    return rows.sort_values([*KEY, *rows.columns[:1]]).reset_index(drop=True)


def same(fs, out, local):
    """Whether the tables of two runs are the same to the last bit."""
    ledger = ledger_of(local)
    other = table(fs, out, "ledger").astype({"plate": int})
    pd.testing.assert_frame_equal(other[ledger.columns], ledger, check_exact=True)
    pd.testing.assert_frame_equal(table(fs, out, "quarantine"), pd.read_parquet(Path(local) / "quarantine"))
    return True


def tops(fs, place):
    fs.invalidate_cache()
    return {path.rpartition("/")[2] for path in fs.ls(place.removeprefix("s3://"), detail=False)}


# --- Searches, by their jobs ---


def test_a_run_on_a_store_is_that_on_a_disk(spark, s3, first, chosen, tmp_path):
    search(spark, REDUX, tmp_path / "run", chosen)
    assert same(s3, first, tmp_path / "run")
    assert tops(s3, first) == {"run.json", "_results"} and len(tops(s3, f"{first}/_results")) == 1
    products = {path.name for path in (tmp_path / "run").iterdir()}
    assert tops(s3, place_of(s3, first)) == products
    cards = [json.loads(text) for text in (s3.cat_file(f"{first}/run.json"), (tmp_path / "run/run.json").read_bytes())]
    assert cards[0]["counts"] == cards[1]["counts"] and cards[0]["counts"]["n_hits"] > 5
    before = s3.find("runs/one", detail=True)
    assert predict(first, chosen, "--resume", "--incremental") == 0, "nothing new"
    s3.invalidate_cache()
    assert s3.find("runs/one", detail=True) == before


def test_a_changed_plate_in_a_run_that_was_killed_and_resumed(basis, s3, first, tree, chosen, tmp_path, monkeypatch,
                                                             caplog):
    """Killed before the one step that shows the result: the former one is whole until then; nothing is scored again."""
    caplog.set_level(logging.INFO, "lensspark")
    s3.cp("runs/one/", "runs/two/", recursive=True)
    shutil.copytree(tree, tmp_path / "redux")
    write_plates(tmp_path / "redux", basis, (4001,), seed=8)
    shutil.rmtree(next((tmp_path / "redux").rglob("spPlate-4002-*.fits")).parent)
    s3.rm("survey/redux", recursive=True)
    s3.put(f"{tmp_path / 'redux'}/", "survey/redux/", recursive=True)
    before = s3.cat(s3.find(place_of(s3, "s3://runs/two")))
    try:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(promotion, "write_file", killed)
            predict("s3://runs/two", chosen, "--incremental", "--resume")
        assert s3.cat(s3.find(place_of(s3, "s3://runs/two"))) == before
        assert len(tops(s3, "runs/two/_results")) == 2
        assert predict("s3://runs/two", chosen, "--incremental", "--resume") == 0
        assert "blocks_resumed=1" in caplog.text and len(tops(s3, "runs/two/_results")) == 2
        card = json.loads(s3.cat_file("runs/two/run.json"))
        assert {name: card["incremental"][f"n_{name}"] for name in ("changed", "removed", "same")} == {
            "changed": 1, "removed": 1, "same": 1}
        assert sorted(table(s3, "s3://runs/two", "ledger")["plate"].unique()) == [4000, 4001]
        assert not any(name.startswith("_") for name in tops(s3, place_of(s3, "s3://runs/two")))
        assert tops(s3, "runs/two") == {"run.json", "_results"}
        assert job("compare", first, "s3://runs/two", "--out", "s3://runs/changes") == 0
    finally:
        s3.rm("survey/redux", recursive=True)
        s3.put(f"{tree}/", "survey/redux/", recursive=True)
    facts = json.loads(s3.cat_file("runs/changes/compare.json"))
    assert facts["spectra"] == {"both": 50, "only_a": 0, "only_b": 0} and set(facts["causes"]) == {"data"}


def test_a_re_cut_of_a_run_on_a_store(s3, first):
    deltalake = pytest.importorskip("deltalake", reason="Delta off Databricks needs the extra `delta`")
    settings = ("--set", "vetting.min_line_snr=100", "--set", "output.format='delta'")
    assert job("vet", "--run", first, "--out", "s3://runs/cut", *settings) == 0
    cards = [json.loads(s3.cat_file(f"runs/{name}/run.json")) for name in ("one", "cut")]
    assert cards[1]["parent_run_id"] == cards[0]["run_id"]
    assert cards[1]["counts"]["n_hits"] == cards[0]["counts"]["n_hits"] and cards[1]["counts"]["n_candidates"] == 0
    assert len(table(s3, "s3://runs/cut", "ledger")) == 50
    assert deltalake.DeltaTable(f"s3://{place_of(s3, 's3://runs/cut')}/ledger").count() == 50


# --- The folder, without a search ---


@pytest.fixture
def small(tmp_path):
    return write_unreadable(tmp_path / "redux")


def staged(small, out, text, *settings):
    """A run that has made its result and not shown it; the survey is another each time."""
    zbest = small / "v5_7_0/4055/spZbest-4055-55359.fits"
    zbest.write_bytes(zbest.read_bytes() + b"x")
    run = make(small, out, *settings)
    assert runs.claim(run, incremental=True)
    stage_result(run, text)
    return run


def read(fs, out):
    """What readers see, run.json first, then the products that it points to."""
    place = promotion.products(out)
    text = fs.cat_file(f"{place}/ledger/plate=1/part").decode()
    assert runs.finished_card(out)["text"] == runs.finished_card(place)["text"] == text
    assert fs.cat_file(f"{place}/report/index.html").decode() == text
    return text


def test_a_promotion_that_is_killed_shows_the_former_or_the_new_result_whole(s3, small, monkeypatch):
    """Killed before each of its steps; the next run clears away what it left."""
    out, steps, seen = "s3://runs/killed", ("pipe_file", "rm", "rm_file"), []
    run = staged(small, out, "result -1")
    runs.promote(run)
    run.lock.release()
    for killed_at in range(20):
        run = staged(small, out, f"result {killed_at}")
        left = [killed_at]

        def counted(step, left=left):
            def act(*args, **kwargs):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return step(*args, **kwargs)
            return act

        with monkeypatch.context() as patch:
            for name in steps:
                patch.setattr(s3, name, counted(getattr(s3, name)))
            try:
                runs.promote(run)
                ended = True
            except Killed:
                ended = False
        seen.append(read(s3, out))
        run.lock.release()
        assert seen[-1] == ("result -1" if killed_at == 0 else f"result {killed_at}")
        if ended:
            break
    assert ended and killed_at >= 4
    assert tops(s3, out) == {"run.json", "_results"}
    shown = promotion.products(out).removeprefix("s3://")
    assert tops(s3, shown) == {"ledger", "report", "manifest.parquet", "run.json"}
    assert len(tops(s3, "runs/killed/_results")) == 2, "the former one is left for those that read it"


def test_former_results_are_kept_where_asked_and_are_runs(s3, small):
    out = "s3://runs/kept"
    for i in range(5):
        run = staged(small, out, f"result {i}", "limits.keep_former=2")
        runs.promote(run)
        run.lock.release()
    kept = {f"{out}/_results/{name}" for name in tops(s3, f"{out}/_results")}
    assert {read(s3, folder) for folder in kept} == {"result 2", "result 3", "result 4"}
    assert read(s3, out) == "result 4"


def test_a_pointer_out_of_the_run_is_refused(s3):
    for folder in ("../other", "_results/../..", "s3://elsewhere/x", "/etc"):
        s3.pipe_file("runs/planted/run.json", json.dumps({"products": folder}).encode())
        with pytest.raises(ValueError, match="expected _results/NAME"):
            promotion.products("s3://runs/planted")


def test_of_two_that_find_no_lock_one_gets_it(s3, monkeypatch):
    first, second = lock.Lock("s3://runs/locked", "a"), lock.Lock("s3://runs/locked", "b")
    exists = s3.exists
    found = [False, False]  # both asked before either wrote
    monkeypatch.setattr(s3, "exists", lambda path: found.pop() if found else exists(path))
    assert first.create() and not second.create()
    first.check()
    first.release()
    assert second.create()
    second.release()


# --- Tables ---


def test_a_task_that_is_tried_again_is_in_the_table_once(spark, s3, monkeypatch):
    """It fails after it has uploaded a file; whoever lists the folder sees the same rows."""
    def rows(batches):
        import time

        import fsspec
        import pyarrow as pa
        from pyspark import TaskContext

        for _ in batches:
            for plate in (1, 2, 2, 3, None):
                end = time.monotonic() + 60
                while plate == 3 and TaskContext.get().attemptNumber() == 0:
                    fs = fsspec.filesystem("s3", skip_instance_cache=True)
                    if fs.glob("runs/table/plate=1/*") or time.monotonic() > end:
                        raise OSError("lost")
                    time.sleep(0.1)
                yield pa.RecordBatch.from_pydict({"plate": pa.array([plate] * n, pa.int32()), "x": pa.array([1.0] * n)})

    n = 50_000  # rows of a batch, more than Spark holds back
    uploaded, publish = [], store.publish
    monkeypatch.setattr(store, "publish", lambda path, parts: uploaded.extend(s3.find("runs/table")) or publish(
        path, parts))
    path = "s3://runs/table"
    s3.pipe_file("runs/table/plate=9/part-old.parquet", b"of a former write")
    store.write(spark.range(0, 1, 1, 1).mapInArrow(rows, "plate int, x double"), path, by="plate")
    assert len(uploaded) > 4 + 1, "the first try left a file"
    s3.invalidate_cache()
    files = sorted(name.removeprefix("runs/table/") for name in s3.find("runs/table"))
    assert [name.split("/")[0] for name in files] == [
        "_files.json", "plate=1", "plate=2", "plate=3", f"plate={store.NULL}"]
    got = store.read(spark, path, spark.createDataFrame([], "x double, plate int, younger string").schema)
    assert got.columns == ["x", "plate", "younger"]
    assert dict(map(tuple, got.groupBy("plate").agg({"x": "sum"}).collect())) == {1: n, 2: 2 * n, 3: n, None: n}


def test_tables_without_rows_or_without_a_list_or_not_there(spark, s3):
    empty = spark.createDataFrame([], "a int, b string")
    store.write(empty, "s3://runs/empty")
    assert store.read(spark, "s3://runs/empty", empty.schema).collect() == []
    assert store.read(spark, "s3://runs/empty").dtypes == empty.dtypes
    store.write(spark.createDataFrame([(1, "x"), (2, None)], "a int, b string"), "s3://runs/both")
    s3.rm_file("runs/both/_files.json")  # as Spark's own, written as s3a://
    assert sorted(store.read(spark, ["s3://runs/both", "s3://runs/empty"], empty.schema).collect()) == [
        (1, "x"), (2, None)]
    files = [f"s3://{name}" for name in s3.find("runs/both")]
    assert sorted(store.read(spark, files).collect()) == [(1, "x"), (2, None)]
    with pytest.raises(FileNotFoundError, match="no Parquet table"):
        store.read(spark, "s3://runs/never", empty.schema)
    for name in ("../one/run.json", "/etc/x.parquet", "a/../b.parquet"):
        s3.pipe_file("runs/planted/_files.json", json.dumps({"files": [[name, 1]]}).encode())
        with pytest.raises(ValueError, match="expected files of the table"):
            store.read(spark, "s3://runs/planted", empty.schema)
