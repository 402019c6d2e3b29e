"""Spark's tables on any store: Spark's own Parquet where its JVM has a file system for the path, else through fsspec.

Without a file system of the JVM (`s3://…` without hadoop-aws), or where no row should pass through the JVM (`map_rows`,
`writer`), each task reads with pyarrow, or writes its rows with it and uploads them:

    TABLE/_files.json                        the table's files, written last: what is not named there is not in it
    TABLE/[plate=4055/]part-ATTEMPT-N.parquet

A file has the name of the attempt that wrote it, and the list holds those of the attempts whose result Spark took, so
that a task that was tried again, or run twice, is in the table once. Whoever lists the folder instead sees the same
rows: what is not in the list is removed. Tables without a list, Spark's for instance, are read by listing them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lensspark.arrow import Work, schema_of
from lensspark.boss import absolute
from lensspark.catalogue import join, write_file
from lensspark.schema import FAULT, Column, Table
from lensspark.session import map_tasks, task_slots

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

INDEX = "_files.json"
NULL = "__HIVE_DEFAULT_PARTITION__"  # Spark's name for the folder of null
ROW_GROUP_BYTES = 8_000_000  # a task holds that much of the file that it writes, whatever the size of its batches
READ_AT_ONCE_BYTES = 16_000_000  # larger files are fetched in ranges
READ_ROWS = 4096
TASK_BYTES = (4_000_000, 128_000_000)  # of files for one task to read: at least, at most
SLOTS = 64  # tasks at once where Spark does not tell: more tasks than cores cost less than cores without one
_NAME = re.compile(r"(\w+=[^/]+/)*[\w.-]+\.parquet")  # what a list of files may name: nothing outside of its table
_NO_FILE_SYSTEM = re.compile(r"No FileSystem for scheme|ClassNotFoundException: Class \S*fs\S* not found")


# What a task tells of the files that it has written.
FILES = Table("files", (Column("name", "string", "path below the table's folder"),
                        Column("size", "long", "its size", "byte"), Column("rows", "long", "its rows")))


class Part(NamedTuple):
    """A file of a table: the table's URL, the file's name below it, its size in bytes and, where it was just written,
    its number of rows."""

    table: str
    name: str
    size: int
    rows: int = 0

    @property
    def values(self) -> dict[str, str | None]:
        """Columns that the name gives: `plate=4055/part-0.parquet`."""
        pairs = (folder.split("=", 1) for folder in self.name.split("/")[:-1] if "=" in folder)
        return {key: None if value == NULL else unquote(value) for key, value in pairs}


def spark_path(path: str) -> str:
    """`path` as Spark takes it: a local path stays local where the cluster's default file system is another.

    Not Path.as_uri: Hadoop takes what that quotes, a space for instance, for the folder's name.
    """
    return path if "://" in path or "DATABRICKS_RUNTIME_VERSION" in os.environ else f"file://{Path(path).resolve()}"


def is_sparks(spark: SparkSession, path: str) -> bool:
    """Whether Spark can read and write `path` by itself."""
    return "://" not in path or _has_file_system(spark, path.partition("://")[0], path)


_known: dict[str, bool] = {}  # by scheme


def _has_file_system(spark: SparkSession, scheme: str, path: str) -> bool:
    # Asked by reading: Spark Connect has no other way to ask. Any other failure is one of a file system that is there.
    if scheme not in _known:
        try:
            spark.read.schema("x int").parquet(path).schema  # noqa: B018
            _known[scheme] = True
        except Exception as error:
            _known[scheme] = not _NO_FILE_SYSTEM.search(str(error))
    return _known[scheme]


# --- Writing ---


def write(df: DataFrame, path: str, by: str = "") -> None:
    """Writes `df` as the Parquet table in the folder or URL `path`, in place of the one that is there.

    by: a column whose values become folders, as with Spark's partitionBy; for few files, sort the partitions by it.
    Raises what Spark raises for a failed job, OSError where the store does.
    """
    if is_sparks(df.sparkSession, path):
        saved = df.write.mode("overwrite")
        (saved.partitionBy(by) if by else saved).parquet(spark_path(path))
    else:
        finish(df.mapInArrow(writer(path, by), FILES.ddl), path, None if by else df.schema)


def writer(path: str, by: str = "") -> Work:
    """What a task does with its rows so that they come into the table in `path`: writes them, and tells its FILES."""
    path = absolute(path)  # the workers have folders of their own

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parts = [part._asdict() for part in write_parts(batches, path, by)]
        yield pa.RecordBatch.from_pylist(parts, schema_of(FILES))

    return work


def finish(made: DataFrame, path: str, schema: StructType | None = None) -> int:
    """Runs the tasks of `made`, FILES by `writer`, and makes what they wrote the table in `path`; its number of rows.

    `schema`: as Spark does, a table without rows gets a file, which tells its columns.
    """
    parts = [Part(path, *row) for row in made.collect()]
    if not parts and schema is not None:
        parts = list(write_parts([pa.RecordBatch.from_pylist([], _arrow_schema(schema))], path))
    publish(path, parts)
    return sum(part.rows for part in parts)


def write_parts(batches: Iterable[pa.RecordBatch], path: str, by: str = "") -> Iterator[Part]:
    """The rows of one attempt of a task in files of its own, a new one wherever the value of `by` is another.

    A file is made on the local disk and uploaded when it is whole. Yields those that are uploaded.
    """
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    fs, place = fsspec.core.url_to_fs(path)
    attempt = uuid.uuid4().hex
    for number, (folder, tables) in enumerate(itertools.groupby(_by_folder(batches, by), itemgetter(0))):
        name = f"{folder}part-{attempt}-{number:05d}.parquet"
        if isinstance(fs, LocalFileSystem):
            os.makedirs(f"{place}/{folder}", exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix="lensspark-", suffix=".parquet") as file:
            rows = _write_file(file, map(itemgetter(1), tables))
            fs.put_file(file.name, f"{place}/{name}")
            yield Part(path, name, os.stat(file.name).st_size, rows)


def _by_folder(batches: Iterable[pa.RecordBatch], by: str) -> Iterator[tuple[str, pa.Table]]:
    """(folder, rows) of each run of rows with one value of `by`; the folder's name tells it, the rows do not."""
    if not by:
        yield from (("", pa.Table.from_batches([batch])) for batch in batches)
        return
    for (value,), rows in runs(batches, by):
        yield f"{by}={NULL if value is None else quote(str(value), safe='')}/", rows.drop([by])


def runs(batches: Iterable[pa.RecordBatch], *by: str) -> Iterator[tuple[tuple, pa.Table]]:
    """(values, rows) of each run of rows with the same values of the columns `by` in one of `batches`."""
    for batch in batches:
        columns = [batch.column(name) for name in by]
        codes = [column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False) for column in columns]
        edges = [0, *(np.flatnonzero(np.any([np.diff(one) for one in codes], axis=0)) + 1).tolist(), len(batch)]
        for start, stop in itertools.pairwise(edges):
            if stop > start:
                yield tuple(column[start].as_py() for column in columns), pa.Table.from_batches([batch[start:stop]])


def _write_file(file: Any, tables: Iterable[pa.Table]) -> int:
    """Writes the rows of `tables`, one or more; how many they are."""
    first, *_ = held = [next(iter(tables := iter(tables)))]
    with pq.ParquetWriter(file, first.schema) as parquet:
        rows, nbytes = len(first), first.nbytes
        for table in tables:
            if nbytes >= ROW_GROUP_BYTES:
                parquet.write_table(pa.concat_tables(held))
                held, nbytes = [], 0
            held.append(table)
            rows += len(table)
            nbytes += table.nbytes
        parquet.write_table(pa.concat_tables(held))
    file.flush()
    return rows


def publish(path: str, parts: Sequence[Part]) -> None:
    """Makes `parts` the table in `path`, in one step, and removes all other files there."""
    write_file(join(path, INDEX), json.dumps({"files": [[part.name, part.size] for part in parts]}).encode())
    tidy(path)


def tidy(path: str) -> None:
    """Removes what is not in the list of the table in `path`: an attempt that came late may have left it."""
    import fsspec

    fs, place = fsspec.core.url_to_fs(path)
    (parts,) = _lists([path])
    fs.invalidate_cache()
    known = {f"{place}/{name}" for name in (INDEX, *(part.name for part in parts))}
    if strays := sorted(set(fs.find(place)) - known):
        fs.rm(strays)


# --- Reading ---


def read(spark: SparkSession, paths: str | Sequence[str], schema: StructType | None = None) -> DataFrame:
    """The rows of the Parquet tables in `paths`, folders, files or URLs on one store, with the columns of `schema`
    (None: those of the first file).

    A column that a file lacks is null. Off Spark's own file systems all columns are read whatever is selected, and the
    files of a folder (`plate=4055`) are read by one task. Raises FileNotFoundError, or what Spark raises, where a table
    is not there; ValueError if its list of files cannot be one.
    """
    paths = [paths] if isinstance(paths, str) else list(paths)
    if paths and is_sparks(spark, paths[0]):
        return _sparks(spark, paths, schema)
    parts = parts_of(paths)
    schema = _schema_of(parts) if schema is None else schema
    if not parts:
        return spark.createDataFrame([], schema)
    return _map_parts(spark, parts, schema, lambda rows: rows, schema)


def map_rows(spark: SparkSession, paths: Sequence[str], schema: StructType, work: Work, ddl: str) -> DataFrame:
    """What `read(spark, paths, schema).mapInArrow(work, ddl)` gives, but the tasks read the files themselves.

    Of a whole survey that is several times faster: the JVM would hand over every value of every row by itself.
    """
    return _map_parts(spark, parts_of([absolute(path) for path in paths]), schema, work, ddl)


@dataclass(frozen=True)
class Rows:
    """The rows of the Parquet tables in `paths`, with the columns of `table`, but the faults among them."""

    spark: SparkSession
    paths: Sequence[str]
    table: Table

    def columns(self, names: Iterable[str] | None = None) -> Table:
        """Those of `names`, or all, but the ones that tell of faults."""
        wanted = set(self.table.names if names is None else names) - {column.name for column in FAULT}
        return Table(self.table.name, tuple(column for column in self.table.columns if column.name in wanted))

    def map(self, work: Work, ddl: str, names: Iterable[str] | None = None) -> DataFrame:
        """What `work` makes of their `columns` of these `names`, as columns `ddl`; see `map_rows`."""
        kept, reason = self.columns(names), [column for column in self.table.columns if column.name == "reason"]

        def readable(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                yield batch.filter(pc.is_null(batch["reason"])).select(kept.names) if reason else batch

        read = Table(kept.name, (*kept.columns, *reason)).struct_type()
        return map_rows(self.spark, self.paths, read, lambda batches: work(readable(batches)), ddl)


def _map_parts(spark: SparkSession, parts: Sequence[Part], schema: StructType, work: Work, made: StructType | str
               ) -> DataFrame:
    arrow = _arrow_schema(schema)

    def task(chosen: Iterator[list[Part]]) -> Iterator[pa.RecordBatch]:
        yield from work(batch for parts in chosen for part in parts for batch in read_part(part, arrow))

    return map_tasks(spark, _tasks(parts, task_slots(spark) or SLOTS), task, made)


def _sparks(spark: SparkSession, paths: Sequence[str], schema: StructType | None) -> DataFrame:
    """`read` by Spark itself: in place of a table with a list the files in it, as a late attempt may leave others."""
    lists = _lists(paths)
    files = [file for path, parts in zip(map(spark_path, paths), lists, strict=True)
             for file in ([path] if parts is None else [join(path, part.name) for part in parts])]
    if not files and schema is not None:
        return spark.createDataFrame([], schema)
    reader = spark.read if schema is None else spark.read.schema(schema)
    if len(paths) == 1 and lists[0] is not None:  # the folders of its files are columns
        reader = reader.option("basePath", spark_path(paths[0]))
    return reader.parquet(*files)


def parts_of(paths: Sequence[str]) -> list[Part]:
    """The files of the tables in `paths`, in order. Raises FileNotFoundError and ValueError as `read`."""
    import fsspec

    if not paths:
        return []
    fs, _ = fsspec.core.url_to_fs(paths[0])
    fs.invalidate_cache()
    found = zip(paths, _lists(paths), strict=True)
    return [part for path, parts in found for part in (_listed(fs, path) if parts is None else parts)]


def _lists(paths: Sequence[str]) -> list[list[Part] | None]:
    """Per table the files that its list names, None where it has none. Raises ValueError, and what the store does."""
    import fsspec

    fs, _ = fsspec.core.url_to_fs(paths[0])
    places = [f"{fsspec.core.url_to_fs(path)[1].rstrip('/')}/{INDEX}" for path in paths]
    found = fs.cat(places, on_error="return")
    lists: list[list[Part] | None] = []
    for path, place in zip(paths, places, strict=True):
        index = found.get(place, FileNotFoundError())
        if isinstance(index, Exception) and not isinstance(index, (FileNotFoundError, NotADirectoryError)):
            raise index
        lists.append(_indexed(path, index) if isinstance(index, bytes) else None)
    return lists


def _indexed(path: str, index: bytes) -> list[Part]:
    try:
        parts = [Part(path, str(name), int(size)) for name, size in json.loads(index)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{join(path, INDEX)}: not a list of files: {error}") from error
    for part in parts:
        if not _NAME.fullmatch(part.name):
            raise ValueError(f"{join(path, INDEX)}: names {part.name!r}; expected files of the table")
    return parts


def _listed(fs: Any, path: str) -> list[Part]:
    """Those of a table that something else wrote, or the one file that `path` is."""
    import fsspec

    place = fsspec.core.url_to_fs(path)[1].rstrip("/")
    found = fs.find(place, detail=True)
    if set(found) == {place}:
        folder, _, name = path.rstrip("/").rpartition("/")
        return [Part(folder, name, found[place]["size"])]
    names = {file[len(place) + 1:]: info["size"] for file, info in sorted(found.items())}
    parts = [Part(path, name, size) for name, size in names.items()
             if name.endswith(".parquet") and not any(part[0] in "._" for part in name.split("/"))]
    if not parts and not any(name.endswith("_SUCCESS") for name in names):  # Spark's, of a table without rows
        raise FileNotFoundError(f"{path}: no Parquet table there")
    return parts


def _tasks(parts: Sequence[Part], slots: int) -> list[list[Part]]:
    """`parts` in order, cut into tasks of about equal bytes; the files of a folder stay together."""
    least, most = TASK_BYTES
    target = min(max(sum(part.size for part in parts) / slots, least), most)
    tasks: list[list[Part]] = [[]]
    nbytes = 0
    folders = itertools.groupby(parts, lambda part: (part.table, part.name.rpartition("/")[0] or part.name))
    for files in (list(group) for _, group in folders):
        size = sum(part.size for part in files)
        if tasks[-1] and nbytes + size > target:
            tasks.append([])
            nbytes = 0
        tasks[-1] += files
        nbytes += size
    return tasks


def read_part(part: Part, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of one file with the columns and types of `schema`; null where the file has no such column."""
    import fsspec

    fs, place = fsspec.core.url_to_fs(join(part.table, part.name))
    at_once = part.size <= READ_AT_ONCE_BYTES
    with pa.BufferReader(fs.cat_file(place)) if at_once else fs.open(place, "rb") as file:
        parquet, values = pq.ParquetFile(file), part.values
        present = [name for name in parquet.schema_arrow.names if name in schema.names and name not in values]
        for batch in parquet.iter_batches(READ_ROWS, columns=present, use_threads=False):  # a task has one core
            given = dict(zip(batch.schema.names, batch.columns, strict=True))
            columns = [_column(field, given.get(field.name), values.get(field.name), len(batch)) for field in schema]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(field: pa.Field, given: pa.Array | None, value: str | None, n: int) -> pa.Array:
    if given is not None:
        return given if given.type == field.type else given.cast(field.type)
    return pa.nulls(n, field.type) if value is None else pa.repeat(pa.scalar(value), n).cast(field.type)


def _schema_of(parts: Sequence[Part]) -> StructType:
    import fsspec
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import StructType

    if not parts:
        return StructType()
    with fsspec.open(join(parts[0].table, parts[0].name)) as file:
        return from_arrow_schema(pq.read_schema(file))


def _arrow_schema(schema: StructType) -> pa.Schema:
    from pyspark.sql.pandas.types import to_arrow_schema

    return to_arrow_schema(schema)
