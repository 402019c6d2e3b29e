"""A small model with random weights, made without TensorFlow: for tests of everything but its judgement."""

import numpy as np

from lensspark import config, matched_filter, network
from lensspark.config import resource
from lensspark.model import Model
from lensspark.spectrum import Prepared

PIXELS, CHANNELS = 1192, 6


def settings(*extra):
    return config.load([], ["network.channels=[4,4,8,8,8,8,16,16]", *extra])


def random_weights(shapes):
    """Weights with batch-norm statistics far from their start, so that a wrong folding shows."""
    rng = np.random.default_rng(1)
    return {name: rng.uniform(0.5, 1.5, shape).astype("f4") if name.endswith(("gamma", "variance"))
            else rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype("f4") for name, shape in shapes.items()}


def make_model(*extra):
    """A small model with random weights, made without TensorFlow."""
    chosen = settings(*extra)
    ops = ShapeOps(chosen.network.normalise)
    network.forward(ops, (PIXELS, CHANNELS), chosen.network)
    basis = resource("data/eigenbasis.npz").read_bytes()
    return Model.make(random_weights(ops.shapes), chosen, basis, {"name": "test"})


class ShapeOps:
    """A third implementation of the network's operations: tensors are (pixels, channels), and work is counted."""

    def __init__(self, normalise=True):
        self.normalise = normalise
        self.shapes, self.convolutions, self.pools, self.multiply_adds = {}, [], 0, 0

    def conv(self, name, x, filters, kernel, relu=True, stride=1):
        pixels = -(-x[0] // stride)
        self.convolutions.append(name)
        self.multiply_adds += pixels * kernel * x[1] * filters
        self.shapes[f"{name}/kernel"] = (kernel, x[1], filters)
        for part in ("gamma", "beta", "moving_mean", "moving_variance") if self.normalise else ():
            self.shapes[f"{name}_bn/{part}"] = (filters,)
        if not self.normalise:
            self.shapes[f"{name}/bias"] = (filters,)
        return pixels, filters

    def offsets(self, name, x):
        self.shapes[f"{name}/offset"] = x
        return x

    def dense(self, name, x, width):
        self.shapes[f"{name}/kernel"], self.shapes[f"{name}/bias"] = (x[-1], width), (width,)
        return (*x[:-1], width)

    def pool(self, x):
        self.pools += 1
        return -(-x[0] // 2), x[1]

    def mean(self, x):
        return (x[1],)

    max = mean

    def concat(self, parts):
        return (*parts[0][:-1], sum(part[-1] for part in parts))

    def dropout(self, x, rate):
        return x

    def flatten(self, x):
        return (x[0] * x[1],)

    def squeeze(self, x):
        return x[:-1]

    def one_cell(self, x):
        return (*x, 1)

    def add(self, x, y):
        assert x == y
        return x

    def relu(self, x):
        return x

    def channels(self, x):
        return x[1]


def prepared(residual, ivar):
    """Spectra whose galaxies are 0, all of them scorable."""
    return Prepared(residual, ivar, 0 * residual, matched_filter.weight(ivar), np.ones(len(ivar), bool),
                    config.load().input)
