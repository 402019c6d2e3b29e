"""The network is the published one, its engines agree, its losses are their formulas, its folder is verified."""

import numpy as np
import pytest
from small_model import CHANNELS, PIXELS, ShapeOps, make_model, settings

from lensspark import config, engine, network
from lensspark.config import resource
from lensspark.model import Model

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("files", [[], [resource("conf/paper.toml")]], ids=["default", "paper"])
def test_the_trunk_is_the_published_one(files):
    chosen = config.load([str(file) for file in files]).network
    ops = ShapeOps()
    network.forward(ops, (PIXELS, CHANNELS), chosen)
    trunk = [name for name in ops.convolutions if not name.startswith("heat")]
    assert len(trunk) == 28 and len(chosen.channels) == 8 and ops.pools == 7
    assert sum(name.endswith("shortcut") for name in trunk) == 3


def test_positions_come_from_the_head_or_the_activation_map():
    x = RNG.normal(size=(3, CHANNELS, PIXELS)).astype("f4")
    p_line, heat = engine.engine_for(make_model(), "openvino")(x)
    assert p_line.shape == (3,) and heat.shape == (3, 298)
    p_line, heat = engine.engine_for(make_model("network.pooled=['mean']"), "openvino")(x)
    logit = np.log(heat / (1 - heat)).mean(axis=1)  # of a network that sees the mean: the mean of its map
    np.testing.assert_allclose(np.log(p_line / (1 - p_line)), logit, rtol=1e-3, atol=1e-3)
    assert heat.shape == (3, 5)


@pytest.mark.parametrize("extra", [
    (), ("network.pooled=['mean','max']",), ("network.shortcuts=false",), ("network.normalise=false",),
    ("network.pooled=['flatten']", "network.hidden=[12,7]", "network.stem_stride=1"),
], ids=["head", "map", "plain", "no_norm", "flatten"])
def test_engines_agree(extra):
    pytest.importorskip("tensorflow", reason="the tensorflow engine needs the extra `train`")
    model = make_model(*extra)
    x = (RNG.normal(size=(33, CHANNELS, PIXELS)) * np.linspace(0.1, 3, 33)[:, None, None]).astype("f4")
    (p_ov, heat_ov), (p_tf, heat_tf) = (engine.engine_for(model, name)(x) for name in ("openvino", "tensorflow"))
    assert heat_ov.std() > 1e-3
    np.testing.assert_allclose(p_ov, p_tf, atol=engine.TOLERANCE["f32"])
    np.testing.assert_allclose(heat_ov, heat_tf, atol=engine.TOLERANCE["f32"])


def test_keras_weights_go_round_and_names_are_checked():
    pytest.importorskip("keras", reason="needs the extra `train`")
    model = make_model()
    net = network.keras_model(model.network, PIXELS, CHANNELS)
    network.set_weights(net, model.weights)
    back = network.weights_of(net)
    assert set(back) == set(model.weights) and all(np.array_equal(back[k], model.weights[k]) for k in back)
    some = dict(model.weights)
    some.pop("stem/kernel")
    with pytest.raises(ValueError, match="stem/kernel"):
        network.set_weights(net, some)
    with pytest.raises(ValueError, match="shape"):
        network.set_weights(net, model.weights | {"stem/kernel": np.zeros((1, 1, 1), "f4")})


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_do_not_matter(batch):
    model = make_model()
    x = RNG.normal(size=(20, CHANNELS, PIXELS)).astype("f4")
    whole = engine.engine_for(model, "openvino", batch_size=20)(x)
    parts = engine.engine_for(model, "openvino", batch_size=batch)(x)
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-6)
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-6)


def test_no_spectra_no_scores():
    p_line, heat = engine.engine_for(make_model(), "openvino")(np.zeros((0, CHANNELS, PIXELS), "f4"))
    assert p_line.shape == (0,) and heat.shape == (0, 298)


def test_unknown_engines_are_named():
    with pytest.raises(ValueError, match="teapot"):
        engine.choose("teapot")


@pytest.mark.parametrize("setting", ["network.heat_block=8", "network.pooled=['heat']"])
def test_networks_that_cannot_be(setting):
    pytest.importorskip("keras", reason="needs the extra `train`")
    with pytest.raises(ValueError, match="network"):
        network.keras_model(config.load([], ["network.channels=[4,4]", setting]).network, PIXELS, CHANNELS)


def oracle(kind, p, y, gamma=2.0, alpha=0.25):
    """The losses as printed in the papers, from the probability."""
    p_t, a_t = (p, alpha) if y else (1 - p, 1 - alpha)
    exponent = {"cross_entropy": 0.0, "focal": gamma, "literal": float(y)}[kind]
    return (1.0 if kind == "cross_entropy" else a_t) * (1 - p_t) ** exponent * -np.log(p_t)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "literal"])
def test_losses(kind):
    pytest.importorskip("keras", reason="needs the extra `train`")
    p = np.array([0.01, 0.3, 0.5, 0.97] * 2)
    y = np.repeat([0.0, 1.0], 4)
    loss = network.line_loss(config.load([], [f"loss.kind={kind}"]).loss)(y, np.log(p / (1 - p)))
    np.testing.assert_allclose(loss, [oracle(kind, *row) for row in zip(p, y, strict=True)], rtol=1e-5)


def test_losses_stay_finite():
    pytest.importorskip("keras", reason="needs the extra `train`")
    for kind in ("cross_entropy", "focal", "literal"):
        loss = network.line_loss(config.load([], [f"loss.kind={kind}"]).loss)
        assert np.isfinite(loss(np.array([0.0, 1.0, 0.0, 1.0]), np.array([80.0, 80.0, -80.0, -80.0]))).all()


def test_losses_have_gradients_everywhere():
    tf = pytest.importorskip("tensorflow", reason="needs the extra `train`")
    labels = np.array([0.0, 1.0, 0.0, 1.0], "f4")
    for kind in ("cross_entropy", "focal", "literal"):
        loss = network.line_loss(config.load([], [f"loss.kind={kind}"]).loss)
        logits = tf.Variable(np.array([200.0, 200.0, -200.0, -200.0], "f4"))
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(loss(labels, logits))
        assert np.isfinite(tape.gradient(total, logits)).all(), kind


def test_position_loss_leaves_cells_out():
    pytest.importorskip("keras", reason="needs the extra `train`")
    logits = np.array([[5.0, 0.0, -1.0]])
    loss = np.asarray(network.position_loss(np.array([[-1.0, 1.0, 0.0]]), logits))
    assert loss[0] == pytest.approx(np.log(2) + np.log1p(np.exp(-1)), rel=1e-5)


def test_a_models_folder(tmp_path):
    model = make_model()
    model.save(tmp_path / "m")
    loaded = Model.named(str(tmp_path / "m"))
    assert loaded.sha256 == model.sha256 and loaded.pixels == (35798, 1192)
    assert loaded.input == settings().input and loaded.network == settings().network
    for name in ("weights.npz", "basis.npz", "config.json"):
        content = bytearray(model.files[name])
        content[len(content) // 2] ^= 1
        (tmp_path / "m" / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} has sha256"):
            Model.load(tmp_path / "m")
        (tmp_path / "m" / name).write_bytes(model.files[name])
    (tmp_path / "m" / "card.json").unlink()
    with pytest.raises(ValueError, match="card.json"):
        Model.load(tmp_path / "m")


def test_unknown_models_are_named():
    with pytest.raises(ValueError, match="no_such_model"):
        Model.named("no_such_model")
