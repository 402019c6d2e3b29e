"""Spectra and tables as Arrow batches: what Spark moves, and numpy gets without a copy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from lensspark import schema
from lensspark.boss import PLANES, Spectra

if TYPE_CHECKING:
    import pandas as pd

TYPES = {"int": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(), "string": pa.string(),
         "boolean": pa.bool_(), "binary": pa.binary(),
         "array<float>": pa.list_(pa.field("element", pa.float32(), nullable=False)),
         "array<int>": pa.list_(pa.field("element", pa.int32(), nullable=False))}
Work = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]  # what mapInArrow takes


def schema_of(table: schema.Table) -> pa.Schema:
    """The columns of `table` as Arrow has them."""
    return pa.schema([(column.name, TYPES[column.type]) for column in table.columns])


def to_arrow(parts: list[Spectra], table: schema.Table) -> pa.RecordBatch:
    """One Arrow batch with the columns of `table`; pixel planes become lists or bytes, without a copy per row."""
    arrays = []
    for column in table.columns:
        if column.name in PLANES:
            planes = [part.planes[column.name] for part in parts]
            lengths = np.repeat([plane.shape[1] for plane in planes], [len(plane) for plane in planes])
            offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
            values = planes[0].ravel() if len(planes) == 1 else np.concatenate([plane.ravel() for plane in planes])
            if column.type == "binary":
                values = values.astype(values.dtype.newbyteorder("<"), copy=False)
                buffers = [None, pa.py_buffer(offsets * np.int32(values.itemsize)), pa.py_buffer(values)]
                arrays.append(pa.Array.from_buffers(pa.binary(), len(lengths), buffers))
            else:
                arrays.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=TYPES[column.type]))
        else:
            arrays.append(pa.array([v for part in parts for v in part.columns[column.name]], TYPES[column.type]))
    return pa.RecordBatch.from_arrays(arrays, names=table.names)


@dataclass(frozen=True)
class Packed:
    """The pixels of n spectra one after the other: where each begins in `pixels`, and how many it has."""

    pixels: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    n_pix: int

    def of(self, rows: np.ndarray, step: int = 0) -> np.ndarray:
        """(len(rows), n_pix): from the pixel `step` on, of each of `rows`."""
        if not len(rows):
            return np.zeros((0, self.n_pix), self.pixels.dtype)
        return sliding_window_view(self.pixels, self.n_pix)[self.first[rows] + step]


def unpack(plane: str, column: pa.Array, n_pix: int) -> Packed:
    """The pixels of a column of option `packed`, float32 or int32, without a copy.

    Raises ValueError for a column that is not packed, and for a spectrum without `n_pix` pixels, or twice as many.
    """
    if column.type != pa.binary():
        raise ValueError(f"{plane}: column of {column.type}, expected binary (option packed = true)")
    _, offsets, data = column.buffers()
    dtype = np.dtype(PLANES[plane]).newbyteorder("<")
    ends = np.frombuffer(offsets, np.int32)[column.offset:column.offset + len(column) + 1] // dtype.itemsize
    lengths = np.diff(ends)
    wrong = set(lengths[column.is_valid().to_numpy(zero_copy_only=False)].tolist()) - {n_pix, 2 * n_pix}
    if wrong:
        raise ValueError(f"{plane}: spectra of {sorted(wrong)} pixels, expected {n_pix}, or twice as many")
    return Packed(np.frombuffer(data or b"", dtype), ends[:-1], lengths, n_pix)


def conform(batch: pa.RecordBatch, table: schema.Table, columns: Mapping[str, np.ndarray]) -> pa.RecordBatch:
    """`batch` with the columns of `table`: its own, or in their place `columns`, NaN and None of which become null."""
    arrays = [pa.array(columns[column.name], from_pandas=True).cast(TYPES[column.type]) if column.name in columns
              else batch.column(column.name) for column in table.columns]
    return pa.RecordBatch.from_arrays(arrays, names=table.names)


def from_pandas(rows: pd.DataFrame, table: schema.Table) -> pa.RecordBatch:
    """`rows` with the columns of `table`, NaN and None of which become null."""
    return pa.RecordBatch.from_pandas(rows, schema=schema_of(table), preserve_index=False)


def at_once(batches: Iterator[pa.RecordBatch], number: int = 32) -> Iterator[pd.DataFrame]:
    """The rows of `batches`, of so many of them at a time: pandas takes long for each call, whatever the rows."""
    for some in iter(lambda: list(itertools.islice(batches, number)), []):
        yield pa.Table.from_batches(some).to_pandas()


def faults_to_arrow(faults: list[dict], table: schema.Table) -> pa.RecordBatch:
    """One Arrow batch of fault rows: key, path, hdu, reason; everything else null."""
    arrays = [pa.array([fault.get(column.name) for fault in faults], TYPES[column.type]) for column in table.columns]
    return pa.RecordBatch.from_arrays(arrays, names=table.names)
