"""Training: Parquet through petastorm into tf.data, Keras, and out comes a model's folder.

The feed reads raw pixels and calls `spectrum.prepare`, the same function as the search, in the background of the
training. A run keeps a checkpoint per epoch in MODEL/checkpoint and goes on from there with `resume`: every epoch's
order of spectra and dropout depend on the seed and the epoch alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lensspark import network
from lensspark.config import Config
from lensspark.eigen import Basis
from lensspark.model import Model
from lensspark.spectrum import prepare, window_pixels

log = logging.getLogger(__name__)

COLUMNS = ("plate", "fiberid", "kind", "z", "label", "line_pixel", "line_snr", "flux", "ivar", "and_mask")
POOLED_GROUPS = 6  # row groups that are shuffled together: about 4,000 spectra, 60 MB
PREFETCH = 8  # batches that wait for the network
PREPARED_AT_ONCE = 512
FALSE_HIT_RATE = 1e-3  # at which validation recall is reported


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


def count_rows(files: list[str]) -> int:
    """Rows of Parquet files by their footers."""
    return sum(pq.ParquetFile(file).metadata.num_rows for file in files)


def row_groups(files: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """The row groups of `files` in order, as dicts of arrays, read by petastorm; its only use.

    Raises RuntimeError if fewer or more rows come than the footers announce: petastorm's newer releases lose some.
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
    prepared = prepare(group["flux"], group["ivar"], group["and_mask"], group["z"], basis, settings.input, first)
    at = np.where(np.isnan(line_pixel), 0, np.clip(np.rint(line_pixel), 0, n_pix - 1)).astype(int)
    visible = prepared.ivar[np.arange(len(at)), at] > 0
    rows = np.flatnonzero(prepared.scorable & (visible | (label == 0)))
    cells = np.zeros((len(rows), n_cells), np.float32)
    lines = np.flatnonzero(label[rows] == 1)
    cell = np.clip(line_pixel[rows][lines] * n_cells / n_pix, 0, n_cells - 1).astype(int)
    for beside, value in ((-1, -1), (1, -1), (0, 1)):
        cells[lines, np.clip(cell + beside, 0, n_cells - 1)] = value
    return prepared.channels[rows].transpose(0, 2, 1), label[rows], cells, rows


def batches(files: list[str], settings: Config, basis: Basis, n_cells: int, seed: int) -> Iterator[tuple]:
    """One epoch of (channels, {"line", "heat"}) batches, shuffled by `seed`: files, then spectra within row groups."""
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


def train(data: str | Path, out: str | Path, settings: Config, basis: Path, name: str, resume: bool = False) -> Model:
    """Train on DATA/train, watch DATA/validation after each epoch, and save the model in `out`.

    Raises ValueError if `out` holds something and `resume` is not asked for, or holds a run with other settings.
    """
    import keras

    warnings.filterwarnings("ignore", module="keras")  # that a finite dataset ends, after every epoch
    data, out = Path(data), Path(out)
    files = part_files(data / "train")
    eigenbasis = Basis.load(basis)
    fingerprint = _fingerprint(data, settings, basis)
    keras.utils.set_random_seed(settings.training.seed)
    _, n_pix = window_pixels(settings.read.window)
    net = network.keras_model(settings.network, n_pix, len(settings.input.channels))
    n_cells = net.output["heat"].shape[1]
    steps = -(-count_rows(files) // settings.training.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-2 * settings.training.learning_rate, steps * settings.training.epochs, 1e-2,
        warmup_target=settings.training.learning_rate, warmup_steps=min(steps, 200))
    net.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-4),
                loss={"line": network.line_loss(settings.loss), "heat": network.position_loss},
                loss_weights={"line": 1.0, "heat": settings.loss.position_weight})
    history = _restore(net, out, fingerprint, resume)
    for epoch in range(len(history), settings.training.epochs):
        keras.utils.set_random_seed(settings.training.seed + epoch)
        feed = dataset(files, settings, eigenbasis, n_cells, settings.training.seed + epoch)
        fitted = net.fit(feed, verbose=0).history
        measured = {key: float(values[-1]) for key, values in fitted.items()}
        measured |= validate(net, part_files(data / "validation"), settings, eigenbasis, n_cells)
        history.append(measured)
        _checkpoint(net, out, fingerprint, history)
        log.info("epoch %d of %d: %s", epoch + 1, settings.training.epochs,
                 ", ".join(f"{key} {value:.4g}" for key, value in measured.items()))
    facts = json.loads((data / "data.json").read_text())
    card = {"name": name, "training_data": facts, "fingerprint": fingerprint, "history": history,
            "n_weights": int(net.count_params()), "eigenbasis": eigenbasis.provenance}
    model = Model.make(network.weights_of(net), settings, basis.read_bytes(), card)
    model.save(out)
    return model


def validate(net: Any, files: list[str], settings: Config, basis: Basis, n_cells: int) -> dict[str, float]:
    """Recall of lines at a false-hit rate of 1e-3, by S/N, the threshold for it, and the share of lines placed right.

    Placed right means the cell of highest heat is the line's cell or the one beside it.
    """
    logits, labels, snr, placed = [], [], [], []
    for group in row_groups(files):
        channels, label, cells, rows = learnable(group, settings, basis, n_cells)
        out = net.predict_on_batch(channels)
        logits.append(out["line"])
        labels.append(label)
        snr.append(group["line_snr"][rows])
        placed.append(cells[np.arange(len(rows)), out["heat"].argmax(axis=1)] != 0)
    logit, label, snr, placed = (np.concatenate(parts) for parts in (logits, labels, snr, placed))
    cut = float(np.quantile(logit[label == 0], 1 - FALSE_HIT_RATE))
    found = {f"recall_{low}_{high}": float((logit[(snr >= low) & (snr < high)] > cut).mean())
             for low, high in ((4, 5), (5, 6), (6, 7), (7, 8), (8, 30))}
    return {"threshold": float(1 / (1 + np.exp(-cut))), **found,
            "placed_8": float(placed[(label == 1) & (snr >= 8)].mean())}


def _fingerprint(data: Path, settings: Config, basis: Path) -> str:
    """sha256 over what a training depends on: data, settings, basis."""
    parts = [(data / "data.json").read_bytes(), basis.read_bytes(),
             repr((settings.input, settings.network, settings.loss, settings.training, settings.read.window)).encode()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _restore(net: Any, out: Path, fingerprint: str, resume: bool) -> list[dict[str, float]]:
    """The history of the epochs that `out` has seen, their state put into `net`; an empty list for a new run."""
    state = out / "checkpoint/history.json"
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty: expected a new folder, or --resume")
        return []
    if not state.exists():
        return []
    saved = json.loads(state.read_text())
    if saved["fingerprint"] != fingerprint:
        raise ValueError(f"{out}: was trained on other data or with other settings; expected the same for --resume")
    stored = np.load(out / f"checkpoint/{len(saved['history'])}.npz", allow_pickle=False)
    net.optimizer.build(net.trainable_variables)
    for i, variable in enumerate([*net.variables, *net.optimizer.variables]):
        variable.assign(stored[f"v{i}"])
    return saved["history"]


def _checkpoint(net: Any, out: Path, fingerprint: str, history: list[dict[str, float]]) -> None:
    """Save the state after the last epoch; the history names the state, so that a kill between both is harmless."""
    folder = out / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    variables = [*net.variables, *net.optimizer.variables]
    np.savez(folder / f"{len(history)}.npz", **{f"v{i}": v.numpy() for i, v in enumerate(variables)})
    scratch = folder / "history.json.new"
    scratch.write_text(json.dumps({"fingerprint": fingerprint, "history": history}, indent=1))
    os.replace(scratch, folder / "history.json")
    (folder / f"{len(history) - 1}.npz").unlink(missing_ok=True)
