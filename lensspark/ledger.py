"""The ledger: every readable spectrum of a run in one row, the hits with their verdicts.

The tasks that read the rows write them, plate by plate, so that of a survey nothing is shuffled and no row is made in
the JVM: what the cuts say of the few hits is brought to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from operator import itemgetter

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame

from lensspark import arrow, schema, store
from lensspark.run import Run
from lensspark.session import share
from lensspark.store import Rows

KEY = [column.name for column in schema.KEY]
BY, ONE_PLATE = "plate", ("plate", "mjd", "run2d")  # its folders; what is sorted and written at once
_FIELDS = arrow.schema_of(schema.LEDGER)


def write(rows: Rows, hits: DataFrame, run: Run) -> None:
    """Writes the ledger of `run`: all of `rows`, scored ones or those of a ledger, but the hits among them as in `hits`
    (schema.LEDGER), which fit into memory. A column of schema.LEDGER that `rows` have not is null."""
    judged, threshold, path = share(rows.spark, hits.toArrow()), run.config.score.threshold, run.path("ledger")
    told, written = {"run_id": run.run_id, "model_sha256": run.model_sha256}, store.writer(path, BY)

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        table = judged.value
        places = {key: i for i, key in enumerate(zip(*(table[name].to_pylist() for name in KEY), strict=True))}
        return written(with_verdicts(same, table, places, threshold, told) for same in plates(batches))

    kept = [name for name in rows.table.names if name != "is_hit"]
    store.finish(rows.map(work, store.FILES.ddl, kept), path)


def plates(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of each run of one plate, observed in one night and reduced once, however the batches cut it."""
    for _, same in itertools.groupby(store.runs(batches, *ONE_PLATE), itemgetter(0)):
        yield pa.concat_tables([table for _, table in same])


def with_verdicts(rows: pa.Table, hits: pa.Table, places: dict[tuple, int], threshold: float, told: dict[str, str]
                  ) -> pa.RecordBatch:
    """`rows`, one or more, as schema.LEDGER, in the order of their keys: `is_hit` where p_line is above `threshold`,
    those rows as in `hits` at `places` (KEY -> row), the others without a verdict; `told`: columns of one value.
    Raises KeyError for a hit without a place."""
    rest = rows.append_column("is_hit", pc.greater(rows["p_line"], threshold))  # null where that is; NaN is not greater
    at = pc.fill_null(rest["is_hit"], False)
    keys = rows.filter(at).select(KEY).to_pylist()
    if keys:
        rest = rest.filter(pc.invert(at))
    made = _conform(rest, told | {"veto": None, "z_source": None})
    if keys:
        made = pa.concat_tables([made, _conform(hits.take([places[tuple(key.values())] for key in keys]), told)])
    order = pc.sort_indices(made, sort_keys=[(name, "ascending") for name in KEY])
    (batch,) = made.take(order).combine_chunks().to_batches()
    return batch


def _conform(rows: pa.Table, told: dict[str, str | None]) -> pa.Table:
    """`rows` as schema.LEDGER: the columns of `told` have that one value, those that are lacking are null.

    Raises ValueError for a column that no ledger has.
    """
    if extra := sorted(set(rows.column_names) - set(_FIELDS.names)):
        raise ValueError(f"columns {extra} are not declared in table 'ledger'")

    def column(field: pa.Field) -> pa.ChunkedArray | pa.Array:
        if field.name in told:
            return pa.repeat(pa.scalar(told[field.name], field.type), len(rows))
        return rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)

    return pa.Table.from_arrays([column(field) for field in _FIELDS], schema=_FIELDS)
