"""A whole mock survey on Spark: one task per plate writes the plate's files, the driver writes what spans plates.

A survey's folder holds `simulate.json` (what it was made with, written first), the tree of files in BOSS's layout, and
`truth.parquet` (schema.TRUTH, written last: a folder without it is unfinished). All files depend on the plan alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lensspark import __version__, schema
from lensspark.arrow import TYPES, schema_of
from lensspark.catalogue import join, write_file
from lensspark.config import Mock
from lensspark.eigen import Basis
from lensspark.mock import files, observe_plate
from lensspark.mock.objects import N_FIBRES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

LAYOUTS = ("mixed", "spplate", "lite", "both")
CARD, TRUTH = "simulate.json", "truth.parquet"
PLATES_AT_ONCE = 64  # plates per Spark job, so that progress can be told
FIRST_MJD, LAST_MJD = 55176, 56837  # BOSS: December 2009 to June 2014

# What a task returns of each spectrum: the truth, and what spAll and platelist say.
_ROWS = schema.Table("mock", schema.TRUTH.columns + tuple(
    column for column in schema.CATALOGUE if column.name not in schema.TRUTH.names))
_NUMPY = {"int": np.int32, "long": np.int64, "double": np.float64, "string": str, "boolean": bool}


@dataclass(frozen=True)
class Plan:
    """What to simulate. `layout` mixed: spPlate + spZbest of all plates, lite files of the first one too.

    Broken files are lite files of a plate of their own, the one after the last, one fault of files.FAULTS after the
    other. Raises ValueError for a number out of range.
    """

    first_plate: int = 4000  # an even plate shares objects with the odd one after it
    plates: int = 2
    fibres: int = N_FIBRES
    seed: int = 1
    layout: str = "mixed"
    broken: int = 4

    def __post_init__(self) -> None:
        limits = {"first_plate": (1, 99_000), "plates": (1, 10_000), "fibres": (1, N_FIBRES), "seed": (0, 2**31),
                  "broken": (0, N_FIBRES)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected {low} to {high}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"--layout {self.layout!r}: expected one of {', '.join(LAYOUTS)}")

    def layouts_of(self, plate: int) -> tuple[str, ...]:
        """What a plate is written as; the first one is what the truth table names."""
        if self.layout == "both" or (self.layout == "mixed" and plate == self.first_plate):
            return ("spplate", "lite")
        return ("lite",) if self.layout == "lite" else ("spplate",)

    def mjd(self, plate: int) -> int:
        return FIRST_MJD + 7 * plate % (LAST_MJD - FIRST_MJD)


def simulate(spark: Callable[[], SparkSession], root: str, plan: Plan, settings: Mock, basis: Basis,
             partitions: int = PLATES_AT_ONCE) -> pa.Table:
    """Write the survey below `root`, a local path or fsspec URL that all workers reach; returns the truth.

    `spark` gives the session, and is called once `root` has proved to be usable; `partitions` is the number of Spark
    tasks at most. Writing over a survey made with the same arguments gives the same files. Raises ValueError if
    `root` cannot be written or holds anything else.
    """
    root = root if "://" in root else os.path.abspath(root)
    claim(root, {"plan": asdict(plan), "mock": asdict(settings), "basis": _digest(basis)})
    log.info("simulating %d plates of %d fibres in %s", plan.plates, plan.fibres, root)
    session, tables = spark(), []
    for start in range(0, plan.plates, PLATES_AT_ONCE):
        stop = min(start + PLATES_AT_ONCE, plan.plates)
        ids = session.range(start, stop, 1, min(partitions, stop - start))
        tables.append(ids.mapInArrow(_task(root, plan, settings, basis), _ROWS.ddl).toArrow())
        log.info("%d of %d plates written", stop, plan.plates)
    order = [(name, "ascending") for name in ("plate", "mjd", "fiberid")]
    rows = pa.concat_tables(tables).cast(schema_of(_ROWS)).sort_by(order)
    columns = {name: rows[name].to_numpy() for name in rows.column_names}
    write_file(join(root, files.SPALL_PATH), files.spall(columns))
    write_file(join(root, files.PLATELIST_PATH), files.platelist(columns))
    broken = _write_broken(root, plan, settings, basis)
    truth = pa.concat_tables([rows.select(schema.TRUTH.names), *broken]).sort_by(order)
    parquet = io.BytesIO()
    pq.write_table(truth, parquet)
    write_file(join(root, TRUTH), parquet.getvalue())
    log.info("%d spectra and %d broken files in %s", len(rows), plan.broken, root)
    return truth


def _digest(basis: Basis) -> str:
    return hashlib.sha256(basis.vectors.tobytes() + basis.coefficients.tobytes()).hexdigest()[:16]


def claim(root: str, made_with: dict) -> None:
    """Make `root` and leave CARD there. ValueError if that cannot be done or what is there was not `made_with` this."""
    import fsspec

    card = json.dumps({"lensspark": __version__} | made_with, indent=1, sort_keys=True).encode()
    try:
        fs, place = fsspec.core.url_to_fs(root)
        entries = fs.ls(place, detail=False) if fs.exists(place) else []
        there = {entry.rstrip("/").rpartition("/")[2] for entry in entries}
        if CARD in there:
            if fs.cat_file(join(place, CARD)) != card:
                raise ValueError("holds a survey that was made with other arguments; choose a new folder")
        elif there:
            raise ValueError(f"is not empty and not a mock survey (holds {sorted(there)[0]}); choose a new folder")
        else:
            write_file(join(root, CARD), card)
    except (OSError, ImportError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--out {root}: {reason}") from error


def _task(root: str, plan: Plan, settings: Mock, basis: Basis):
    def write_plates(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for i in batch.column(0).to_pylist():
                yield write_plate(root, plan, plan.first_plate + i, settings, basis)

    return write_plates


def write_plate(root: str, plan: Plan, plate: int, settings: Mock, basis: Basis) -> pa.RecordBatch:
    """Write the files of one plate; the rows of its spectra."""
    spectra = observe_plate(plan.seed, plate, plan.mjd(plate), np.arange(1, plan.fibres + 1), settings, basis)
    mjd, layouts = plan.mjd(plate), plan.layouts_of(plate)
    for layout in layouts:
        for path, data in (files.plate_files if layout == "spplate" else files.lite_files)(spectra):
            write_file(join(root, path), data)
    whole = layouts[0] == "spplate"
    spectra["path"] = np.array([files.spplate_path(plate, mjd) if whole else files.lite_path(plate, mjd, fiberid)
                                for fiberid in range(1, plan.fibres + 1)])
    return pa.RecordBatch.from_arrays([_arrow(spectra.get(c.name), c.type, plan.fibres) for c in _ROWS.columns],
                                      schema=schema_of(_ROWS))


def _write_broken(root: str, plan: Plan, settings: Mock, basis: Basis) -> list[pa.Table]:
    """Write the broken files; their rows of the truth, which know no more than the file's name and its fault."""
    if not plan.broken:
        return []
    plate = plan.first_plate + plan.plates
    fiberids = np.arange(1, plan.broken + 1)
    rows = {"fiberid": fiberids, "kind": ["broken"] * plan.broken, "plate": [plate] * plan.broken,
            "mjd": [plan.mjd(plate)] * plan.broken, "run2d": [files.RUN2D] * plan.broken, "fault": [], "path": []}
    spectra = observe_plate(plan.seed, plate, plan.mjd(plate), fiberids, settings, basis)
    for i in range(plan.broken):
        fault = files.FAULTS[i % len(files.FAULTS)]
        path, data = files.broken_file({name: values[i:i + 1] for name, values in spectra.items()}, fault)
        write_file(join(root, path), data)
        rows["fault"].append(fault)
        rows["path"].append(path)
    arrays = [_arrow(rows.get(c.name), c.type, plan.broken) for c in schema.TRUTH.columns]
    return [pa.Table.from_arrays(arrays, schema=schema_of(schema.TRUTH))]


def _arrow(values: np.ndarray | list | None, type_: str, n: int) -> pa.Array:
    """`values` as an Arrow array in which NaN is null, as is all of it where there are no values."""
    if values is None:
        return pa.nulls(n, TYPES[type_])
    return pa.array(np.asarray(values, dtype=_NUMPY[type_]), TYPES[type_], from_pandas=True)
