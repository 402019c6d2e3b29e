"""Training: fits the network to the feed's spectra, watches it, calibrates it, and writes a model's folder.

A training keeps a checkpoint per epoch in MODEL/checkpoint and goes on from there with `resume`: every epoch's order of
spectra and dropout depend on the seed and the epoch alone. Beside the model lie `curves.png` (loss and accuracy by
epoch, as Li et al. 2018, Figure 6) and TensorBoard's logs; `lensspark.tracking` tells MLflow.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from lensspark import figures, metrics, network
from lensspark.config import Config
from lensspark.eigen import Basis
from lensspark.feed import count_rows, data_hash, dataset, learnable, part_files, row_groups
from lensspark.model import Model
from lensspark.spectrum import window_pixels
from lensspark.tracking import Tracker

log = logging.getLogger(__name__)

FALSE_HIT_RATE = 1e-3  # at which recall is reported
PROGRESS_SECONDS = 60
HIT = 0.5  # the reference's threshold, at which accuracy and completeness are reported


def train(data: str | Path, out: str | Path, settings: Config, basis: Path, name: str, resume: bool = False) -> Model:
    """Train on DATA/train, watch DATA/validation, measure DATA/test, and save the model in `out`.

    A set without a validation split (training.validation_plates = 0) is watched on its test split: nothing is chosen
    by what is seen there, and it cannot be calibrated. Raises ValueError if `out` holds something and `resume` is not
    asked for, or holds a run with other settings; if the spectra are not those that the set was made with; or if there
    is nothing to calibrate on.
    """
    import keras

    warnings.filterwarnings("ignore", module="keras")  # that a finite dataset ends, after every epoch
    data, out, uri = Path(data), Path(out), settings.training.mlflow
    settings = replace(settings, training=replace(settings.training, mlflow=""))
    files, eigenbasis = part_files(data / "train"), Basis.load(basis)
    validated = (data / "validation").exists()
    watched = part_files(data / ("validation" if validated else "test"))
    if settings.training.calibrate and not validated:
        raise ValueError(f"{data}: no validation plates to calibrate on; expected some, or training.calibrate=false")
    facts = json.loads((data / "data.json").read_text())
    if (found := data_hash(data)) != facts["sha256"]:
        raise ValueError(f"{data}: the spectra have sha256 {found}, data.json says {facts['sha256']}")
    fingerprint = _fingerprint(data, settings, basis)
    net = compiled(settings, count_rows(files))
    n_cells = net.output["heat"].shape[1]
    history = _restore(net, out, fingerprint, resume)
    tracker, progress = Tracker(uri, name, out, settings), _progress(settings, count_rows(files))
    for epoch in range(len(history), settings.training.epochs):
        keras.utils.set_random_seed(settings.training.seed + epoch)
        progress.epoch = epoch
        start = time.monotonic()
        feed = dataset(files, settings, eigenbasis, n_cells, settings.training.seed + epoch)
        fitted = net.fit(feed, verbose=0, callbacks=[progress]).history
        measured = {key: float(values[-1]) for key, values in fitted.items()}
        measured["spectra_per_second"] = count_rows(files) / (time.monotonic() - start)
        measured |= measure(judge(net, watched, settings, eigenbasis, n_cells), settings)
        history.append(measured)
        _checkpoint(net, out, fingerprint, history)
        tracker.epoch(epoch + 1, measured)
        log.info("epoch %d of %d: %s", epoch + 1, settings.training.epochs,
                 ", ".join(f"{key} {value:.4g}" for key, value in measured.items() if not isinstance(value, list)))
    weights, calibration = network.weights_of(net), None
    if settings.training.calibrate:
        weights, calibration = _calibrated(weights, judge(net, watched, settings, eigenbasis, n_cells))
        network.set_weights(net, weights)
    test = measure(judge(net, part_files(data / "test"), settings, eigenbasis, n_cells), settings)
    card = {"name": name, "training_data": facts, "fingerprint": fingerprint, "history": history,
            "calibration": calibration, "test": test, "n_weights": int(net.count_params()),
            "eigenbasis": eigenbasis.provenance}
    model = Model.make(weights, settings, basis.read_bytes(), card)
    model.save(out)
    if importlib.util.find_spec("matplotlib"):
        figures.training_curves(history, out / "curves.png")
    tracker.finish(out, model.card)
    return model


def compiled(settings: Config, n_spectra: int) -> Any:
    """The network ready to be trained on `n_spectra` per epoch: losses, AdamW, a warm-up and a cosine decay."""
    import keras

    keras.utils.set_random_seed(settings.training.seed)
    keras.config.set_dtype_policy({"f32": "float32", "bf16": "mixed_bfloat16"}[precision(settings.training.precision)])
    try:
        _, n_pix = window_pixels(settings.read.window)
        net = network.keras_model(settings.network, n_pix, len(settings.input.channels))
    finally:
        keras.config.set_dtype_policy("float32")
    chosen, steps = settings.training, -(-n_spectra // settings.training.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-2 * chosen.learning_rate, steps * chosen.epochs, chosen.final_learning_rate,
        warmup_target=chosen.learning_rate, warmup_steps=min(steps, chosen.warmup_steps))
    net.compile(keras.optimizers.AdamW(schedule, weight_decay=chosen.weight_decay),
                loss={"line": network.line_loss(settings.loss), "heat": network.position_loss},
                loss_weights={"line": 1.0, "heat": settings.loss.position_weight})
    return net


def precision(wanted: str) -> str:
    """`wanted`, or for "auto" bf16 where this machine has instructions for it (AMX, AVX512_BF16, a GPU), else f32."""
    if wanted != "auto":
        return wanted
    import tensorflow as tf

    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text().split()) if cpu.exists() else set()
    return "bf16" if tf.config.list_physical_devices("GPU") or {"amx_bf16", "avx512_bf16"} & flags else "f32"


def judge(net: Any, files: list[str], settings: Config, basis: Basis, n_cells: int) -> dict[str, np.ndarray]:
    """Of each spectrum of `files` that teaches: logit, label, snr (NaN without a line), kind, and placed: whether the
    hottest cell is the line's or the one beside it."""
    parts: dict[str, list] = {"logit": [], "label": [], "snr": [], "kind": [], "placed": []}
    for group in row_groups(files):
        channels, label, cells, rows = learnable(group, settings, basis, n_cells)
        out = net.predict_on_batch(channels)
        parts["logit"].append(out["line"])
        parts["label"].append(label)
        parts["snr"].append(group["line_snr"][rows])
        parts["kind"].append(group["kind"][rows])
        parts["placed"].append(cells[np.arange(len(rows)), out["heat"].argmax(axis=1)] != 0)
    return {key: np.concatenate(values) for key, values in parts.items()}


def measure(judged: dict[str, np.ndarray], settings: Config) -> dict[str, Any]:
    """Figures of `judge`'s spectra: loss, and at p > 0.5 accuracy and completeness, as Li et al. (2018) give them, the
    last by S/N too; recall by S/N at a false-hit rate of 1e-3; calibration error; rank correlation of the hits' scores
    with S/N."""
    logit, label, snr = (judged[key].astype(np.float64) for key in ("logit", "label", "snr"))
    line, p = label == 1, expit(logit)
    figures: dict[str, Any] = {
        "test_loss": float(np.mean(np.asarray(network.line_loss(settings.loss)(label, logit)))),
        "accuracy": float(np.mean((p > HIT) == line)),
        "completeness": float(np.mean(p[line] > HIT)),
        "completeness_by_snr": metrics.recall_by_snr(p[line] > HIT, snr[line], (0.0, 2.0, 3.0, *metrics.SNR_EDGES)),
        "purity": float(np.mean(line[p > HIT])) if (p > HIT).any() else float("nan"),
        "false_hits": float(np.mean(p[~line] > HIT)),
        "calibration_error": metrics.calibration_error(label, p),
        "rank_correlation": metrics.rank_correlation(logit[line & (p > HIT)], snr[line & (p > HIT)]),
        "placed_8": float(judged["placed"][line & (snr >= 8)].mean()) if (line & (snr >= 8)).any() else float("nan"),
    }
    if (~line).sum() * FALSE_HIT_RATE >= 1:
        cut = metrics.threshold_at(logit[~line], FALSE_HIT_RATE)
        figures["threshold"] = float(expit(cut))
        figures["recall"] = metrics.recall_by_snr(logit[line] > cut, snr[line])
        figures["recall_all"] = float(np.mean(logit[line] > cut))
    return figures


def _calibrated(weights: dict[str, np.ndarray], judged: dict[str, np.ndarray]
                ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The weights with Platt's scale and shift folded into the last layer, so that p_line is a probability for spectra
    mixed as the training set's."""
    scale, shift = metrics.platt(judged["label"], judged["logit"])
    last = {"line/kernel": weights["line/kernel"] * np.float32(scale),
            "line/bias": weights["line/bias"] * np.float32(scale) + np.float32(shift)}
    return weights | last, {"scale": scale, "shift": shift}


def _progress(settings: Config, n_spectra: int) -> Any:
    """A Keras callback that says once a minute how far the training is and how long it will take."""
    import keras

    steps = -(-n_spectra // settings.training.batch_size)

    class Progress(keras.callbacks.Callback):
        epoch = 0

        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            self.start = self.told = time.monotonic()

        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            now = time.monotonic()
            if now - self.told < PROGRESS_SECONDS:
                return
            self.told, rate = now, (batch + 1) / (now - self.start)
            left = (steps * (settings.training.epochs - self.epoch) - batch - 1) / rate
            log.info("epoch %d of %d, %.0f %%: loss %.4g, %.0f spectra/s, %.0f minutes left", self.epoch + 1,
                     settings.training.epochs, 100 * (batch + 1) / steps, (logs or {}).get("loss", float("nan")),
                     rate * settings.training.batch_size, left / 60)

    return Progress()


def _fingerprint(data: Path, settings: Config, basis: Path) -> str:
    """sha256 over what a training depends on: data, settings, basis."""
    parts = [(data / "data.json").read_bytes(), basis.read_bytes(),
             repr((settings.input, settings.network, settings.loss, settings.training, settings.read.window)).encode()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _restore(net: Any, out: Path, fingerprint: str, resume: bool) -> list[dict[str, Any]]:
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


def _checkpoint(net: Any, out: Path, fingerprint: str, history: list[dict[str, Any]]) -> None:
    """Save the state after the last epoch; the history names the state, so that a kill between both is harmless."""
    folder = out / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    variables = [*net.variables, *net.optimizer.variables]
    state = io.BytesIO()  # a Databricks Volume takes a file only from its first byte to its last
    np.savez(state, **{f"v{i}": np.asarray(v) for i, v in enumerate(variables)})
    (folder / f"{len(history)}.npz").write_bytes(state.getvalue())
    scratch = folder / "history.json.new"
    scratch.write_text(json.dumps({"fingerprint": fingerprint, "history": history}, indent=1))
    os.replace(scratch, folder / "history.json")
    (folder / f"{len(history) - 1}.npz").unlink(missing_ok=True)
    _summarise(out / "logs", len(history), history[-1])


def _summarise(folder: Path, epoch: int, measured: dict[str, Any]) -> None:
    """One point of each of TensorBoard's curves; written by TensorFlow alone, without the package tensorboard."""
    from tensorflow import Graph
    from tensorflow.compat.v1 import Summary
    from tensorflow.compat.v1.summary import FileWriter

    points = [Summary.Value(tag=name, simple_value=value) for name, value in measured.items()
              if isinstance(value, float)]
    with Graph().as_default(), FileWriter(str(folder)) as writer:
        writer.add_summary(Summary(value=points), epoch)
