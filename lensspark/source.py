"""`spark.read.format("boss")`: BOSS survey trees as a Spark 4 Python data source.

    register(spark)
    spark.read.format("boss").option("window", "3800,5000").load("s3a-or-any-fsspec-url/redux")

| option | default | meaning |
|---|---|---|
| layout | auto | auto, spplate, lite or full (lensspark.boss.survey_files) |
| window | 3800,5000 | low,high in Angstrom (vacuum, observed), or full |
| beyond | 0,0 | share,seed: this share of the spectra, drawn by key, has as many pixels again redwards of the window |
| columns | flux,ivar,and_mask | pixel planes, of schema.PIXELS |
| packed | false | true: planes as bytes of little-endian float32 or int32 (`arrow.unpack`), which Spark moves faster |
| plates | all | comma list of plate numbers |
| keys | all | comma list of plate-mjd-fiberid[-run2d]: only these spectra |
| absent | error | or skip: what to do about plates and keys that have no file |
| target_partition_mb | 512 | bytes of input per partition; small inputs give each core of the driver one |
| max_rows_per_batch | 512 | rows per Arrow batch |

A good row has a null `reason`; a spectrum or file that cannot be trusted is one row with a `reason` and null pixels.
Credentials and endpoints of remote stores are fsspec's own configuration: FSSPEC_* and the store's variables in the
environment of driver and executors (`spark.executorEnv.NAME`).
"""

from __future__ import annotations

import functools
import gc
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition

from lensspark import schema
from lensspark.arrow import Work, faults_to_arrow, to_arrow
from lensspark.boss import LAYOUTS, PLANES, Key, Spectra, Unit, join_catalogues, read_unit, survey_files
from lensspark.session import map_tasks
from lensspark.spectrum import wavelength, window_pixels

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

KEY_TEXT = re.compile(r"(\d+)-(\d+)-(\d+)(?:-(.+))?")


@dataclass(frozen=True)
class Options:
    """The data source's options, checked."""

    root: str
    layout: str = "auto"
    window: tuple[float, float] | None = (3800.0, 5000.0)
    beyond: tuple[float, int] = (0.0, 0)
    columns: tuple[str, ...] = ("flux", "ivar", "and_mask")
    packed: bool = False
    plates: frozenset[int] | None = None
    keys: frozenset[Key] | None = None
    absent: str = "error"
    target_partition_mb: int = 512
    max_rows_per_batch: int = 512

    @property
    def read_window(self) -> tuple[float, float] | None:
        """`window`, or where some spectra are read beyond it the double one."""
        if self.window is None or not self.beyond[0]:
            return self.window
        first, n_pix = window_pixels(self.window)
        return float(wavelength(first - 0.5)), float(wavelength(first + 2 * n_pix - 0.5))

    @property
    def table(self) -> schema.Table:
        """The columns that are read with these options."""
        pixels = tuple(replace(c, type="binary") if self.packed and c.name != "loglam0" else c for c in schema.PIXELS
                       if c.name == "loglam0" or c.name in self.columns)
        return schema.Table("boss", schema.KEY + schema.CATALOGUE + pixels + schema.PROVENANCE + schema.FAULT)


def parse_options(options: Mapping[str, str]) -> Options:
    """Options from their texts; ValueError names option, value and what is allowed."""
    given = {name.lower(): str(value).strip() for name, value in options.items()}
    root = given.pop("path", "")
    if not root:
        raise ValueError("path is missing: expected .load(root) with a folder or fsspec URL of spectra")
    unknown = sorted(set(given) - set(_PARSERS))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}: expected one of {sorted(_PARSERS)}")
    return Options(root, **{name: _PARSERS[name](name, text) for name, text in given.items()})


def _layout(name: str, text: str) -> str:
    if text not in LAYOUTS:
        raise ValueError(f"{name} = {text!r}: expected one of {list(LAYOUTS)}")
    return text


def _window(name: str, text: str) -> tuple[float, float] | None:
    if text == "full":
        return None
    try:
        low, high = map(float, text.split(","))
        if 1000 <= low < high <= 30_000 and window_pixels((low, high))[1] > 0:
            return low, high
    except ValueError:
        pass
    raise ValueError(f"{name} = {text!r}: expected 'full' or 'low,high' in Angstrom, 1000 <= low < high <= 30000, "
                     "with a pixel of 1e-4 dex between them")


def _beyond(name: str, text: str) -> tuple[float, int]:
    share, _, seed = text.partition(",")
    try:
        if 0 <= float(share) <= 1:
            return float(share), int(seed)
    except ValueError:
        pass
    raise ValueError(f"{name} = {text!r}: expected 'share,seed', as '0.02,1', with a share from 0 to 1")


def _columns(name: str, text: str) -> tuple[str, ...]:
    planes = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(planes) <= set(PLANES):
        raise ValueError(f"{name} = {text!r}: expected a comma list of {list(PLANES)}")
    return planes


def _plates(name: str, text: str) -> frozenset[int]:
    try:
        return frozenset(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} = {text!r}: expected a comma list of plate numbers, as '4055,7102'") from None


def _keys(name: str, text: str) -> frozenset[Key]:
    matches = [KEY_TEXT.fullmatch(part.strip()) for part in text.split(",")]
    if not all(matches):
        wrong = text.split(",")[matches.index(None)]
        raise ValueError(f"{name}: {wrong!r}, expected plate-mjd-fiberid or plate-mjd-fiberid-run2d, comma separated")
    return frozenset(Key(*map(int, match.groups()[:3]), match[4]) for match in matches)


def _absent(name: str, text: str) -> str:
    if text not in ("error", "skip"):
        raise ValueError(f"{name} = {text!r}: expected error or skip")
    return text


def _packed(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{name} = {text!r}: expected true or false")
    return text == "true"


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} = {text!r}: expected a whole number >= 1")
    return int(text)


_PARSERS: dict[str, Any] = {
    "layout": _layout, "window": _window, "beyond": _beyond, "columns": _columns, "packed": _packed, "plates": _plates,
    "keys": _keys, "absent": _absent, "target_partition_mb": _count,
    "max_rows_per_batch": _count,
}


def register(spark: SparkSession) -> None:
    """Make `spark.read.format("boss")` known to `spark`."""
    spark.dataSource.register(BossDataSource)


def load(spark: SparkSession, root: str, **options: str) -> DataFrame:
    """What `spark.read.format("boss").options(**options).load(root)` gives, planned in this process.

    Spark plans a Python data source in three Python processes of its own, one after the other: seconds, each time.
    """
    reader = BossReader(parse_options({"path": root, **options}))
    return map_files(spark, [part.units for part in reader.partitions()], reader.options, lambda rows: rows,
                     reader.options.table)


def map_files(spark: SparkSession, parts: Sequence[tuple[Unit, ...]], options: Options, work: Work,
              table: schema.Table) -> DataFrame:
    """`work` of the spectra (`batches`) in the files of each of `parts`, one task each; its rows are those of `table`.

    They are worked on where they are read: what `work` does not give back never reaches the JVM.
    """
    def task(chosen: Iterator[tuple[Unit, ...]]) -> Iterator[pa.RecordBatch]:
        yield from work(batch for units in chosen for batch in batches(units, options))
        _settle()

    return map_tasks(spark, parts, task, table.ddl)


@functools.cache
def _settle() -> None:
    """What a worker has loaded by the end of its first task it keeps: lest Spark, which has the garbage collected after
    each task, look through all of it every time (0.05 s)."""
    gc.collect()
    gc.freeze()


@dataclass
class Files(InputPartition):
    """One partition: the files that one task reads."""

    units: tuple[Unit, ...]


class BossDataSource(DataSource):
    """Survey trees of spec files or spPlate + spZbest pairs; see the module's docstring."""

    @classmethod
    def name(cls) -> str:
        return "boss"

    def schema(self) -> StructType:
        return parse_options(self.options).table.struct_type()

    def reader(self, schema: StructType) -> BossReader:
        return BossReader(parse_options(self.options))


class BossReader(DataSourceReader):
    """Plans in the driver's Python worker, reads in the executors'; carries nothing but the options."""

    def __init__(self, options: Options):
        self.options = options

    def partitions(self) -> list[Files]:
        o = self.options
        survey = survey_files(o.root, o.layout, o.plates, o.keys, o.absent == "skip")
        units = join_catalogues(survey.units, survey.catalogues)
        return [Files(block) for block in blocks(units, o.target_partition_mb * 1_000_000, os.cpu_count() or 1)]

    def read(self, partition: Files) -> Iterator[pa.RecordBatch]:
        return batches(partition.units, self.options)


def _nbytes(unit: Unit) -> int:
    return unit.nbytes + 1000  # opening costs something too


def blocks(units: tuple[Unit, ...], target: int, at_least: int, weight: Callable[[Unit], int] = _nbytes
           ) -> list[tuple[Unit, ...]]:
    """`units` in order, cut into runs of about equal weight, in bytes: `target` or less, give or take a file.

    There are at least `at_least` blocks of files alike, or one per file where there are fewer; a file that outweighs
    several blocks' share is one block alone. No block is empty.
    """
    if not units:
        return [()]
    weights = np.array([weight(unit) for unit in units], float)
    n = min(max(math.ceil(weights.sum() / target), at_least), len(units))
    block = ((weights.cumsum() - weights / 2) / weights.sum() * n).astype(int)
    cuts = np.flatnonzero(np.diff(block)) + 1
    return [units[i:j] for i, j in zip([0, *cuts], [*cuts, len(units)], strict=True)]


def batches(units: tuple[Unit, ...], options: Options) -> Iterator[pa.RecordBatch]:
    """The spectra of `units` as Arrow batches of at most `max_rows_per_batch` rows, faults in batches of their own."""
    pending: list[Spectra] = []
    faults: list[dict] = []
    limit, table = options.max_rows_per_batch, options.table
    for part in _parts(units, options, faults):
        if sum(map(len, pending)) + len(part) > limit:
            yield to_arrow(pending, table)
            pending = []
        pending.append(part)
        del part  # lest the pixels of a plate are kept while the next one is read
    if pending:
        yield to_arrow(pending, table)
    for first in range(0, len(faults), limit):
        yield faults_to_arrow(faults[first:first + limit], table)


def _parts(units: tuple[Unit, ...], options: Options, faults: list[dict]) -> Iterator[Spectra]:
    """The spectra of `units`, at most `max_rows_per_batch` at a time; `faults` gets theirs."""
    for unit in units:
        for alike in spectra_of(unit, options):
            faults += alike.faults
            if len(alike):
                yield alike
            del alike


def spectra_of(unit: Unit, options: Options) -> Iterator[Spectra]:
    """The spectra of `unit` in the window, then those drawn to have the pixels beyond it, read once more with them; at
    most `max_rows_per_batch` at a time, the faults with the first."""
    spectra, limit = read_unit(unit, options.columns, options.window), options.max_rows_per_batch
    drawn = draw(spectra.columns, *options.beyond) if len(spectra) else np.zeros(0, bool)
    chosen = tuple((spectra.columns["fiberid"][i], None) for i in np.flatnonzero(drawn))
    yield from _pieces(spectra, np.flatnonzero(~drawn) if chosen else None, limit)
    del spectra
    if chosen:
        yield from _pieces(read_unit(replace(unit, fibers=chosen), options.columns, options.read_window), None, limit)


def _pieces(spectra: Spectra, rows: np.ndarray | None, limit: int) -> Iterator[Spectra]:
    """The `spectra`, or those of the indices `rows`, in one copy."""
    faults = spectra.faults
    for first in range(0, max(len(spectra) if rows is None else len(rows), 1), limit):
        at = slice(first, first + limit)
        piece = spectra[at] if rows is None else spectra.rows(rows[at])
        piece.faults, faults = faults, []
        yield piece


def draw(columns: Mapping[str, list], share: float, seed: int | str) -> np.ndarray:
    """(n,) bool: which spectra of these key `columns` are among a random `share` of all; the same in every run."""
    text = (f"{seed}-{plate}-{mjd}-{fiberid}".encode() for plate, mjd, fiberid in
            zip(*(columns[name] for name in ("plate", "mjd", "fiberid")), strict=True))
    return np.fromiter(map(crc32, text), np.uint32, len(columns["plate"])) < share * 2**32
