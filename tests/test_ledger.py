"""The ledger: rows of a survey as they come, the verdicts of its hits in their places."""

import numpy as np
import pyarrow as pa
import pytest

from lensspark import arrow, ledger, schema

TOLD = {"run_id": "a", "model_sha256": "b"}


def scored(plates, seed=0):
    """One row per number in `plates`, fibres in any order; every fifth is a hit, every seventh was not scored."""
    rng = np.random.default_rng(seed)
    n = len(plates)
    p_line = np.where(np.arange(n) % 5 == 0, 0.99, 0.1)
    return pa.RecordBatch.from_pydict({
        "plate": pa.array(plates, pa.int32()), "mjd": pa.array([55000] * n, pa.int32()),
        "fiberid": pa.array(rng.permutation(n) + 1, pa.int32()), "run2d": ["v5_7_0"] * n,
        "z": rng.random(n), "selected": [True] * n,
        "p_line": pa.array([None if i % 7 == 6 else p for i, p in enumerate(p_line)], pa.float64())})


def judged(rows):
    """The hits of `rows` as schema.LEDGER, each with its fibre as its veto."""
    rows = rows.filter(pa.array([p is not None and p > 0.5 for p in rows.column("p_line").to_pylist()]))
    given = {name: rows.column(name).to_pylist() for name in rows.schema.names}
    given |= {"is_hit": [True] * len(rows), "veto": given["fiberid"], "z_source": [2.5] * len(rows)}
    given |= {name: [value] * len(rows) for name, value in TOLD.items()}
    fields = arrow.schema_of(schema.LEDGER)
    table = pa.table({field.name: pa.array(given.get(field.name, [None] * len(rows)), field.type) for field in fields})
    return table, {key: i for i, key in enumerate(zip(*(table[name].to_pylist() for name in ledger.KEY), strict=True))}


def test_runs_of_a_plate_are_whole_however_batches_cut_them():
    rows = scored([3] * 10 + [1] * 4 + [3] * 2)
    for size in (1, 3, 7, 16):
        pieces = [rows.slice(first, size) for first in range(0, len(rows), size)] + [rows.slice(0, 0)]
        found = list(ledger.plates(pieces))
        assert [(set(table["plate"].to_pylist()), len(table)) for table in found] == [({3}, 10), ({1}, 4), ({3}, 2)]
        assert pa.concat_tables(found).equals(pa.Table.from_batches([rows]))


def test_hits_have_their_verdicts_and_all_rows_are_there_in_order():
    rows = scored([4] * 40)
    hits, places = judged(rows)
    made = ledger.with_verdicts(pa.Table.from_batches([rows]), hits, places, 0.5, TOLD)
    assert made.schema.names == schema.LEDGER.names and len(made) == 40
    got = made.to_pandas().set_index("fiberid")
    assert got.index.is_monotonic_increasing and set(got["run_id"]) == {"a"}
    before = rows.to_pandas().set_index("fiberid")
    np.testing.assert_array_equal(got["p_line"], before["p_line"].reindex(got.index))
    np.testing.assert_array_equal(got["z"], before["z"].reindex(got.index))
    is_hit = got["p_line"] > 0.5
    assert 5 < is_hit.sum() < 9
    assert (got["veto"][is_hit] == got.index[is_hit]).all() and got["veto"][~is_hit].isna().all()
    assert (got["z_source"][is_hit] == 2.5).all() and got["z_source"][~is_hit].isna().all()
    unscored = got["p_line"].isna()
    assert got["is_hit"][unscored].isna().all() and got["is_hit"][~unscored].astype(bool).equals(is_hit[~unscored])


def test_a_score_that_is_no_number_is_no_hit():
    rows = pa.Table.from_batches([scored([4] * 2)])
    rows = rows.set_column(rows.schema.get_field_index("p_line"), "p_line", pa.array([float("nan"), 0.2]))
    made = ledger.with_verdicts(rows, *judged(scored([4])), 0.5, TOLD)
    assert made.column("is_hit").to_pylist() == [False, False]


def test_a_hit_without_a_verdict_and_a_column_of_no_ledger_are_errors():
    rows, (hits, places) = pa.Table.from_batches([scored([4] * 10)]), judged(scored([5] * 10))
    with pytest.raises(KeyError):
        ledger.with_verdicts(rows, hits, places, 0.5, TOLD)
    with pytest.raises(ValueError, match="'flux'"):
        ledger.with_verdicts(rows.append_column("flux", rows["z"]), hits, places, 1.0, TOLD)


@pytest.mark.parametrize("name", ["run", "a run = 100 % of it"])
def test_what_is_written_is_read_again_by_whoever_reads_it(spark, tmp_path, name):
    """By the list of its files; a file that a late attempt left is no part of it. Its folders are a column."""
    import pandas as pd

    from lensspark import store

    place = tmp_path / name / "ledger"
    rows = pa.Table.from_batches([scored([4] * 12 + [5] * 8)]).to_pandas()
    hits, places = judged(scored([4] * 12 + [5] * 8))
    batches = [pa.RecordBatch.from_pandas(rows.iloc[first:first + 6], preserve_index=False) for first in (0, 6, 12, 18)]

    def work(numbers):
        made = (ledger.with_verdicts(table, hits, places, 0.5, TOLD) for table in ledger.plates(batches))
        yield from store.writer(str(place), "plate")(made)

    store.finish(spark.range(0, 1, 1, 1).mapInArrow(work, store.FILES.ddl), str(place))
    assert sorted(path.name for path in place.iterdir()) == ["_files.json", "plate=4", "plate=5"]
    whole = pd.read_parquet(place).astype({"plate": int})
    (file,) = (place / "plate=4").iterdir()
    (place / "plate=4/part-late.parquet").write_bytes(file.read_bytes())
    got = store.read(spark, str(place), schema.LEDGER.struct_type())
    assert {*got.schema} == {*schema.LEDGER.struct_type()} and got.where("plate = 5").count() == 8
    got = got.toPandas()
    store.tidy(str(place))
    assert len(list((place / "plate=4").iterdir())) == 1 and pd.read_parquet(place).shape == whole.shape
    for frame in (whole, got):
        assert (len(frame), set(frame["plate"]), int(frame["is_hit"].sum())) == (20, {4, 5}, len(hits))
