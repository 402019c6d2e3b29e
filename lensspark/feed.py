"""The feed of the training: Parquet through petastorm into tf.data, prepared by the function that the search uses.

Nothing that is read can run code: part files are named one by one, and the pickled metadata that petastorm would load
is refused. Every epoch's rows are counted against the Parquet footers, since petastorm's newer releases lose some.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lensspark.config import Config
from lensspark.eigen import Basis
from lensspark.spectrum import prepare, window_pixels

COLUMNS = ("plate", "fiberid", "kind", "z", "label", "line_pixel", "line_snr", "flux", "ivar", "and_mask")
SPLITS = ("train", "validation", "test")  # folders of a training set
POOLED_GROUPS = 6  # row groups that are shuffled together: about 4,000 spectra, 60 MB
PREFETCH = 8  # batches that wait for the network
PREPARED_AT_ONCE = 512


def part_files(folder: str | Path) -> list[str]:
    """The Parquet files of `folder`, in order. Raises ValueError if there is none, or metadata that petastorm would
    unpickle: `_common_metadata` is code in disguise."""
    folder = Path(folder)
    if (folder / "_common_metadata").exists():
        raise ValueError(f"{folder}/_common_metadata: refused, it may hold pickled code; delete it")
    files = sorted(str(path) for path in folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"{folder}: no Parquet files; expected a folder made by build_training")
    return files


def data_hash(folder: str | Path) -> str:
    """sha256 of the sha256 of all part files of a training set's splits, in the order of their names."""
    digests = []
    for split in SPLITS:
        for path in sorted((Path(folder) / split).glob("*.parquet")):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
    return hashlib.sha256(b"".join(digests)).hexdigest()


def count_rows(files: list[str]) -> int:
    """Rows of Parquet files by their footers."""
    return sum(pq.ParquetFile(file).metadata.num_rows for file in files)


def row_groups(files: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """The row groups of `files` in order, as dicts of arrays, read by petastorm; its only use.

    Raises RuntimeError if fewer or more rows come than the footers announce.
    """
    warnings.filterwarnings("ignore", module="petastorm")  # of pyarrow's deprecations, ten at each opening
    with contextlib.redirect_stdout(io.StringIO()):
        from petastorm import make_batch_reader

        reader = make_batch_reader([Path(file).resolve().as_uri() for file in files], schema_fields=list(COLUMNS),
                                   workers_count=1, num_epochs=1, shuffle_row_groups=False)
    seen = 0
    with reader:
        for group in reader:
            columns = group._asdict()
            seen += len(columns["label"])
            yield columns
    if seen != count_rows(files):
        raise RuntimeError(f"petastorm gave {seen} rows of {count_rows(files)} in {len(files)} files")


def learnable(group: dict[str, np.ndarray], settings: Config, basis: Basis, n_cells: int) -> tuple[np.ndarray, ...]:
    """(channels (n, n_pix, n_channels), labels (n,), cells (n, n_cells), rows) of a group's spectra that teach.

    Left out are spectra with too few usable pixels and lines whose peak falls on unusable ones. cells is 1 where the
    line is, -1 beside it (no loss there), else 0; rows are the indices into the group.
    """
    first, n_pix = window_pixels(settings.read.window)
    line_pixel, label = group["line_pixel"], group["label"]
    prepared = prepare(group["flux"], group["ivar"], group["and_mask"], group["z"], basis, settings.input, first,
                       channels_only=True)
    at = np.where(np.isnan(line_pixel), 0, np.clip(np.rint(line_pixel), 0, n_pix - 1)).astype(int)
    visible = prepared.ivar[np.arange(len(at)), at] > 0
    rows = np.flatnonzero(prepared.scorable & (visible | (label == 0)))
    cells = np.zeros((len(rows), n_cells), np.float32)
    lines = np.flatnonzero(label[rows] == 1)
    cell = np.clip((line_pixel[rows][lines] + 0.5) * n_cells / n_pix, 0, n_cells - 1).astype(int)
    for beside, value in ((-1, -1), (1, -1), (0, 1)):
        cells[lines, np.clip(cell + beside, 0, n_cells - 1)] = value
    return prepared.channels[rows].transpose(0, 2, 1), label[rows], cells, rows


def batches(files: list[str], settings: Config, basis: Basis, n_cells: int, seed: int) -> Iterator[tuple]:
    """One epoch of (channels, {"line", "heat"}) batches, shuffled by `seed`: files, then spectra of row groups."""
    rng = np.random.default_rng(seed)
    pool: list[dict[str, np.ndarray]] = []
    size = settings.training.batch_size

    def drain() -> Iterator[tuple]:
        joined = {name: np.concatenate([group[name] for group in pool]) for name in COLUMNS}
        pool.clear()
        order = rng.permutation(len(joined["label"]))
        step = max(PREPARED_AT_ONCE // size, 1) * size
        for i in range(0, len(order), step):
            part = {name: values[order[i : i + step]] for name, values in joined.items()}
            channels, labels, cells, _ = learnable(part, settings, basis, n_cells)
            for j in range(0, len(labels), size):
                yield channels[j : j + size], {"line": labels[j : j + size], "heat": cells[j : j + size]}

    for group in row_groups([files[i] for i in rng.permutation(len(files))]):
        pool.append(group)
        if len(pool) == POOLED_GROUPS:
            yield from drain()
    if pool:
        yield from drain()


def dataset(files: list[str], settings: Config, basis: Basis, n_cells: int, seed: int) -> Any:
    """`batches` as a tf.data.Dataset that prepares ahead of the network in a thread of its own."""
    import tensorflow as tf

    _, n_pix = window_pixels(settings.read.window)
    signature = (
        tf.TensorSpec((None, n_pix, len(settings.input.channels)), tf.float32),
        {"line": tf.TensorSpec((None,), tf.float32), "heat": tf.TensorSpec((None, n_cells), tf.float32)},
    )
    return tf.data.Dataset.from_generator(
        lambda: batches(files, settings, basis, n_cells, seed), output_signature=signature
    ).prefetch(PREFETCH)
