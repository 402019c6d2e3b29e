"""Engines: one interface to run a model's network, on OpenVINO or on TensorFlow.

    run = engine_for(model, "openvino")
    p_line, heat = run(channels)      # (n,), (n, n_cells) from (n, n_channels, n_pix)

OpenVINO's graph is built from the model's weights with batch normalisation folded into the convolutions, which brings
it to the speed of a plain matrix product (docs/benchmarks.md). It uses one thread, since Spark runs one worker per
core. Neither library is loaded before an engine is made.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit

from lensspark import network
from lensspark.model import Model

ENGINES = ("openvino", "tensorflow")
# Largest difference of probabilities from TensorFlow's: fp32 sums in another order, bf16 has 8 bits of mantissa.
TOLERANCE = {"f32": 1e-4, "bf16": 0.2}
WORTH_IT = 1.2  # times as fast must bf16 be: less is within what one measurement tells
FILL = 8  # for each new number of rows both engines make their plan anew, which costs more than a few rows too many

Engine = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def choose(name: str) -> str:
    """`name`, or for "auto" the fastest engine that is installed. Raises ValueError if there is no such engine."""
    available = [engine for engine in ENGINES if importlib.util.find_spec(engine)]
    if name == "auto" and available:
        return available[0]
    if name not in available:
        raise ValueError(f"score.engine = {name!r}: not installed here; installed are {available or 'none'}")
    return name


def engine_for(model: Model, name: str = "auto", precision: str = "f32", batch_size: int = 64) -> Engine:
    """A function from network input (n, n_channels, n_pix) float32 to p_line (n,) and heat (n, n_cells), float64.

    p_line is the score, 0-1; heat is the probability that the line is in each cell of n_pix / n_cells pixels. The
    input is cut into calls of `batch_size`, each filled up to a multiple of FILL rows; every row's result is
    independent of the others'.
    """
    make = {"openvino": _openvino, "tensorflow": _tensorflow}[choose(name)]
    score = make(model, "f32" if precision == "auto" else precision)  # who searches has resolved auto (gate.precision)

    def run(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for first in range(0, len(channels) or 1, batch_size):
            piece = channels[first : first + batch_size]
            parts.append([values[: len(piece)] for values in score(_filled(piece))])
        line, heat = (np.concatenate(values) for values in zip(*parts, strict=True))
        return _sigmoid(line), _sigmoid(heat)

    return run


def _filled(channels: np.ndarray) -> np.ndarray:
    """`channels` and rows of zeros after them, so that there are a multiple of FILL."""
    n = len(channels)
    missing = -n % FILL or FILL * (not n)
    return np.concatenate([channels, np.zeros((missing, *channels.shape[1:]), np.float32)]) if missing else channels


def has_bf16(name: str = "auto") -> bool:
    """Whether the engine is OpenVINO, on a CPU that multiplies bf16."""
    if choose(name) != "openvino":
        return False
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def gain_of_bf16(model: Model, batch_size: int = 64, rounds: int = 5) -> float:
    """Times as fast as in f32 is `model` in bf16 on a core of this machine, by the best of `rounds` turns of both."""
    channels = np.random.default_rng(0).normal(size=(batch_size, len(model.input.channels), model.pixels[1]))
    runs = {precision: engine_for(model, "openvino", precision, batch_size) for precision in ("f32", "bf16")}
    best = dict.fromkeys(runs, np.inf)
    for i in range(rounds + 1):
        for precision, run in runs.items():
            start = time.perf_counter()
            run(channels.astype(np.float32))
            if i:  # the first call makes plans
                best[precision] = min(best[precision], time.perf_counter() - start)
    return best["f32"] / best["bf16"]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """Double precision, in which logits up to 36 stay apart from 1: the score ranks the brightest lines too."""
    return expit(logits.astype(np.float64))


def _tensorflow(model: Model, precision: str) -> Engine:
    import tensorflow as tf

    if precision != "f32":
        raise ValueError(f"score.precision = {precision!r}: the tensorflow engine has f32 only")
    _, n_pix = model.pixels
    keras_model = network.keras_model(model.network, n_pix, len(model.input.channels))
    network.set_weights(keras_model, model.weights)
    call = tf.function(lambda x: keras_model(x, training=False), reduce_retracing=True)

    def score(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = call(np.ascontiguousarray(channels.transpose(0, 2, 1)))
        return out["line"].numpy(), out["heat"].numpy()

    return score


def _openvino(model: Model, precision: str) -> Engine:
    import openvino as ov
    from openvino import opset13 as op

    _, n_pix = model.pixels
    x = op.parameter([-1, len(model.input.channels), n_pix], ov.Type.f32, name="channels")
    line, heat = network.forward(OpenVINOOps(model.weights), x, model.network)
    graph = ov.Model([line, heat], [x], "lensspark")
    # Without ENABLE_CPU_PINNING off, every process of a machine is pinned to the same core.
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": precision}
    request = ov.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def score(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        request.infer([np.ascontiguousarray(channels, dtype=np.float32)])
        return tuple(request.get_output_tensor(i).data.copy() for i in (0, 1))

    return score


class OpenVINOOps:
    """Builds an OpenVINO graph from a model's weights; tensors are (n, channels, n_pix)."""

    def __init__(self, weights: dict[str, np.ndarray]):
        from openvino import opset13

        self.op, self.weights = opset13, weights

    def conv(self, name: str, x: Any, filters: int, kernel: int, relu: bool = True, stride: int = 1) -> Any:
        weight = self.weights[f"{name}/kernel"]
        if f"{name}_bn/gamma" in self.weights:
            norm = {part: self.weights[f"{name}_bn/{part}"] for part in
                    ("gamma", "beta", "moving_mean", "moving_variance")}
            scale = norm["gamma"] / np.sqrt(norm["moving_variance"] + network.BN_EPSILON)
            weight, bias = weight * scale, norm["beta"] - norm["moving_mean"] * scale
        else:
            bias = self.weights[f"{name}/bias"]
        y = self.op.convolution(x, self._constant(weight.transpose(2, 1, 0)),  # (k, in, out) -> (out, in, k)
                                strides=[stride], pads_begin=[0], pads_end=[0], dilations=[1], auto_pad="same_upper")
        y = self.op.add(y, self._constant(bias.reshape(1, -1, 1)))
        return self.relu(y) if relu else y

    def offsets(self, name: str, x: Any) -> Any:
        return self.op.add(x, self._constant(self.weights[f"{name}/offset"].T[None]))

    def _constant(self, values: np.ndarray) -> Any:
        return self.op.constant(np.ascontiguousarray(values, dtype=np.float32))

    def dense(self, name: str, x: Any, width: int) -> Any:
        """(n, channels) -> (n, width), or of every cell: (n, channels, n_cells) -> (n, width, n_cells)."""
        kernel, bias = self.weights[f"{name}/kernel"], self.weights[f"{name}/bias"]
        if len(x.get_output_partial_shape(0)) == 2:
            return self.op.add(self.op.matmul(x, self._constant(kernel), False, False), self._constant(bias))
        y = self.op.matmul(self._constant(kernel.T[None]), x, False, False)
        return self.op.add(y, self._constant(bias[:, None]))

    def pool(self, x: Any) -> Any:
        from openvino import opset1  # later operation sets give a second output, the indices

        return opset1.max_pool(x, strides=[2], pads_begin=[0], pads_end=[0], kernel_shape=[2], auto_pad="same_upper")

    def mean(self, x: Any) -> Any:
        return self.op.reduce_mean(x, np.array([2]), keep_dims=False)

    def max(self, x: Any) -> Any:
        return self.op.reduce_max(x, np.array([2]), keep_dims=False)

    def concat(self, parts: list) -> Any:
        return self.op.concat(parts, axis=1)

    def dropout(self, x: Any, rate: float) -> Any:
        return x

    def flatten(self, x: Any) -> Any:
        return self.op.reshape(self.op.transpose(x, np.array([0, 2, 1])), np.array([0, -1]), True)

    def squeeze(self, x: Any) -> Any:
        return self.op.squeeze(x, np.array([1]))

    def one_cell(self, x: Any) -> Any:
        return self.op.unsqueeze(x, np.array([2]))

    def add(self, x: Any, y: Any) -> Any:
        return self.op.add(x, y)

    def relu(self, x: Any) -> Any:
        return self.op.relu(x)

    def channels(self, x: Any) -> int:
        return x.get_output_partial_shape(0)[1].get_length()
