"""The residual network of the search, defined once for every engine, and its losses.

`forward` describes the network in terms of a few operations; `KerasOps` builds it for training and for the TensorFlow
engine, `lensspark.engine` builds the same graph for OpenVINO. With the default eight blocks it has the reference's 28
convolutions (Li et al. 2018, MNRAS 482, 313; how they are split is not printed): a stem, three in each block, and a
projection on the three shortcuts whose number of feature maps changes. Importing this module does not load TensorFlow.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

    from lensspark.config import Loss, Network

# TensorFlow leaves oneDNN off on CPUs without AVX512, where it is twice as fast all the same.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

BN_EPSILON = 1e-3
BN_MOMENTUM = 0.97


def forward(ops: Any, x: Any, settings: Network) -> tuple[Any, Any]:
    """Logits of a spectrum (n,) and of its positions (n, n_cells) from network input `x`, through `ops`.

    The positions are those of a head on the features of block `heat_block`, if the last layer sees "heat"; else the
    class-activation map of the last features: the last layer applied to each position. A network that flattens its
    features or has hidden layers after them has no such map: its one cell is the whole window.
    """
    x = ops.conv("stem", x, settings.channels[0], settings.kernel, stride=settings.stem_stride)
    if settings.position_offsets:
        x = ops.offsets("position", x)
    heat = None
    for i, channels in enumerate(settings.channels, start=1):
        x = _block(ops, f"block{i}", x, channels, settings)
        if i < len(settings.channels):
            x = ops.pool(x)
        if i == settings.heat_block and "heat" in settings.pooled:
            heat = ops.dense("heat", ops.conv("heat_features", x, 2 * channels, settings.kernel), 1)
    pooled = {"mean": ops.mean, "max": ops.max, "flatten": ops.flatten}
    seen = [pooled[name](x) for name in settings.pooled if name in pooled]
    if heat is not None:
        seen.append(ops.max(heat))
    features = ops.concat(seen)
    for i, width in enumerate(settings.hidden, start=1):
        features = ops.relu(ops.dense(f"hidden{i}", ops.dropout(features, settings.dropout), width))
    line = ops.dense("line", ops.dropout(features, settings.dropout), 1)
    if heat is None:
        mapped = not settings.hidden and "flatten" not in settings.pooled
        heat = ops.dense("line", ops.concat([x] * len(seen)), 1) if mapped else ops.one_cell(line)
    return ops.squeeze(line), ops.squeeze(heat)


def _block(ops: Any, name: str, x: Any, channels: int, settings: Network) -> Any:
    y = x
    for k in range(1, settings.convolutions_per_block + 1):
        last = k == settings.convolutions_per_block
        y = ops.conv(f"{name}_conv{k}", y, channels, settings.kernel, relu=not (last and settings.shortcuts))
    if not settings.shortcuts:
        return y
    if ops.channels(x) != channels:
        x = ops.conv(f"{name}_shortcut", x, channels, 1, relu=False)
    return ops.relu(ops.add(x, y))


class KerasOps:
    """Builds a Keras graph; tensors are (n, n_pix, channels). Without `normalise`, convolutions have a bias instead."""

    def __init__(self, normalise: bool = True) -> None:
        self.normalise = normalise
        self.dense_layers: dict[str, Any] = {}

    def conv(self, name: str, x: Any, filters: int, kernel: int, relu: bool = True, stride: int = 1) -> Any:
        from keras import layers

        x = layers.Conv1D(filters, kernel, strides=stride, padding="same", use_bias=not self.normalise, name=name)(x)
        if self.normalise:
            x = _batch_normalisation()(epsilon=BN_EPSILON, momentum=BN_MOMENTUM, name=f"{name}_bn")(x)
        return layers.ReLU()(x) if relu else x

    def offsets(self, name: str, x: Any) -> Any:
        return _offsets()(name=name)(x)

    def dense(self, name: str, x: Any, width: int) -> Any:
        from keras import initializers, layers

        if name not in self.dense_layers:
            # Of 298 cells one has the line at most: begin at that rarity instead of learning it.
            rare = initializers.Constant(-4.0) if name == "heat" else "zeros"
            # Logits in bf16 have eight bits: scores would tie.
            dtype = "float32" if width == 1 else None
            self.dense_layers[name] = layers.Dense(width, name=name, bias_initializer=rare, dtype=dtype)
        return self.dense_layers[name](x)

    def pool(self, x: Any) -> Any:
        from keras import layers

        return layers.MaxPooling1D(2, padding="same")(x)

    def mean(self, x: Any) -> Any:
        from keras import layers

        return layers.GlobalAveragePooling1D()(x)

    def max(self, x: Any) -> Any:
        from keras import layers

        return layers.GlobalMaxPooling1D()(x)

    def flatten(self, x: Any) -> Any:
        """(n, n_pix, channels) to (n, n_pix * channels), pixel by pixel."""
        from keras import layers

        return layers.Flatten()(x)

    def concat(self, parts: list) -> Any:
        from keras import layers

        return layers.Concatenate()(parts) if len(parts) > 1 else parts[0]

    def dropout(self, x: Any, rate: float) -> Any:
        from keras import layers

        return layers.Dropout(rate, seed=1)(x)

    def squeeze(self, x: Any) -> Any:
        """(n, 1) to (n,), (n, n_cells, 1) to (n, n_cells)."""
        from keras import ops

        return ops.squeeze(x, axis=-1)

    def one_cell(self, x: Any) -> Any:
        """(n, 1) to (n, 1, 1)."""
        from keras import ops

        return ops.expand_dims(x, axis=-1)

    def add(self, x: Any, y: Any) -> Any:
        from keras import layers

        return layers.Add()([x, y])

    def relu(self, x: Any) -> Any:
        from keras import layers

        return layers.ReLU()(x)

    def channels(self, x: Any) -> int:
        return x.shape[-1]


@cache
def _batch_normalisation() -> type:
    """Keras' batch normalisation; under TensorFlow trained by its fused kernel, which takes half the time on CPUs."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return keras.layers.BatchNormalization
    import tensorflow as tf

    class FusedBatchNormalization(keras.layers.BatchNormalization):
        def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            if not training:
                return super().call(inputs, training=False, mask=mask)
            scale, offset = (tf.cast(weight, tf.float32) for weight in (self.gamma, self.beta))
            normalised, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=tf.expand_dims(inputs, 1), scale=scale, offset=offset, mean=tf.zeros(0), variance=tf.zeros(0),
                epsilon=self.epsilon, is_training=True)
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
            return tf.squeeze(normalised, 1)

    return FusedBatchNormalization


@cache
def _offsets() -> type:
    """A layer that adds a trained offset (n_pix, channels) to every spectrum."""
    import keras

    class Offsets(keras.layers.Layer):
        def build(self, shape: tuple) -> None:
            self.offset = self.add_weight(shape=shape[1:], initializer="zeros", name="offset")

        def call(self, inputs: Any) -> Any:
            return inputs + keras.ops.cast(self.offset, inputs.dtype)

    return Offsets


def keras_model(settings: Network, n_pix: int, n_channels: int) -> keras.Model:
    """The network as a Keras model: input (n, n_pix, n_channels), outputs "line" (n,) and "heat" (n, n_cells) logits.

    Raises ValueError if the head or the pooling asks for what the blocks do not have.
    """
    import keras

    if settings.heat_block > len(settings.channels):
        raise ValueError(f"network.heat_block = {settings.heat_block}: expected 1 to {len(settings.channels)} blocks")
    if not {"mean", "max", "flatten"} & set(settings.pooled):
        raise ValueError(f"network.pooled = {list(settings.pooled)}: expected at least one of mean, max and flatten")
    x = keras.Input((n_pix, n_channels), name="channels")
    line, heat = forward(KerasOps(settings.normalise), x, settings)
    return keras.Model(x, {"line": line, "heat": heat})


def weights_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Weights by "layer/weight" name: kernels (k, in, out), vectors (out,), dense kernels (in, out), offsets."""
    return {f"{layer.name}/{weight.name}": weight.numpy() for layer in model.layers for weight in layer.weights
            if "seed_generator" not in weight.path}


def set_weights(model: keras.Model, weights: dict[str, np.ndarray]) -> None:
    """The inverse of `weights_of`; raises ValueError where names or shapes disagree."""
    variables = {f"{layer.name}/{weight.name}": weight for layer in model.layers for weight in layer.weights
                 if "seed_generator" not in weight.path}
    if set(variables) != set(weights):
        differing = sorted(set(variables) ^ set(weights))
        raise ValueError(f"weights do not fit the network: {differing[:4]} are only in one of both")
    for name, variable in variables.items():
        if tuple(variable.shape) != weights[name].shape:
            raise ValueError(f"weight {name} has shape {weights[name].shape}; the network has {tuple(variable.shape)}")
        variable.assign(weights[name])


def line_loss(settings: Loss):
    """The configured loss of labels (n,) in {0, 1} and logits (n,): a function (labels, logits) -> (n,).

    focal is Lin et al. (2017, arXiv:1708.02002), Eq. 5: -alpha_t (1 - p_t)^gamma log p_t, alpha_t = 1 - alpha for
    label 0. literal takes Eq. 1 of Li et al. (2018) as printed, whose exponent is the label y where gamma must be
    meant: alpha (1 - p) for label 1, and no factor but 1 - alpha for label 0.
    """
    from keras import ops

    def loss(labels: Any, logits: Any) -> Any:
        labels, logits = ops.cast(labels, "float32"), ops.cast(logits, "float32")
        entropy = ops.relu(logits) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
        if settings.kind == "cross_entropy":
            return entropy
        missed = ops.sigmoid(logits * (1 - 2 * labels))  # 1 - p_t
        weight = settings.alpha * labels + (1 - settings.alpha) * (1 - labels)
        factor = missed**settings.gamma if settings.kind == "focal" else labels * missed + 1 - labels
        return weight * factor * entropy

    return loss


def position_loss(targets: Any, logits: Any) -> Any:
    """Cross-entropy over the cells (n, n_cells): targets are 1 (the line's cell), 0, or -1 where a cell is left out."""
    from keras import ops

    targets, logits = ops.cast(targets, "float32"), ops.cast(logits, "float32")
    used = ops.cast(targets >= 0, "float32")
    labels = ops.maximum(targets, 0.0)
    entropy = ops.relu(logits) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
    return ops.sum(entropy * used, axis=-1)
