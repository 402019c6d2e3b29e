"""What one core does in each stage, and what all cores do at once without Spark: the limits of a whole job."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lensspark import engine, inference, network, source
from lensspark.boss import Spectra, read_unit, survey_files
from lensspark.config import Config, over, resource
from lensspark.eigen import Basis
from lensspark.locate import measure_line
from lensspark.model import Model
from lensspark.spectrum import prepare

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PLANES = ("flux", "ivar", "and_mask")


@dataclass(frozen=True)
class Stage:
    """Some `work` on `n` spectra."""

    work: Callable[[], Any]
    n: int


def batch(folder: Path, config: Config, model: Model) -> dict[str, np.ndarray]:
    """The selected spectra of one plate in the model's window, 512 at most: PLANES and z."""
    unit = survey_files(str(folder / "spplate")).units[0]
    spectra = read_unit(unit, PLANES, model.window)
    rows = selected(spectra, config)[:512]
    return {name: spectra.planes[name][rows] for name in PLANES} | {"z": np.array(spectra.columns["z"], float)[rows]}


def selected(spectra: Spectra, config: Config) -> np.ndarray:
    """Rows of the published parent sample, to within the few that emit lines."""
    z = np.array(spectra.columns["z"], float)
    return np.flatnonzero((z > config.selection.z_min) & (np.array(spectra.columns["class"]) == "GALAXY"))


def stages(folder: Path, config: Config, model: Model) -> dict[str, Stage]:
    """Stage by stage, on one core."""
    plate = survey_files(str(folder / "spplate")).units[0]
    lite = survey_files(str(folder / "lite")).units
    window, data = model.window, batch(folder, config, model)
    first, n = model.pixels[0], len(data["z"])
    planes = [data[name] for name in PLANES]
    prepared = prepare(*planes, data["z"], model.basis, model.input, first)
    channels = prepared.channels

    def prepare_all() -> np.ndarray:
        return prepare(*planes, data["z"], model.basis, model.input, first).channels

    def classical() -> np.ndarray:
        made = prepare(*planes, data["z"], model.basis, model.input, first)
        return made.snr.max(axis=1)

    found = {
        "read plate": Stage(lambda: read_unit(plate, PLANES, window), 1000),
        "pread": Stage(lambda: _pread(plate.path, model.pixels[1]), 1000),
        "read lite": Stage(lambda: [read_unit(unit, PLANES, window) for unit in lite], len(lite)),
        "astropy": Stage(lambda: [astropy_read(unit.path) for unit in lite[:50]], 50),
        "prepare": Stage(prepare_all, n),
        "matched filter": Stage(classical, n),
        "locate": Stage(lambda: measure_line(prepared, np.zeros((n, 298)), np.full(n, 3.58), 6.0), n),
    }
    for name, precision in (("openvino", "f32"), ("openvino", "bf16")):
        run = engine.engine_for(model, name, precision, config.score.batch_size)
        found[f"{name} {precision}"] = Stage(lambda run=run: run(channels), n)
    return found


def keras(folder: Path, config: Config, model: Model) -> Stage:
    """keras.Model.predict, which uses all cores."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    data = batch(folder, config, model)
    channels = prepare(*(data[name] for name in (*PLANES, "z")), model.basis, model.input,
                       model.pixels[0]).channels.transpose(0, 2, 1)
    net = network.keras_model(model.network, model.pixels[1], len(model.input.channels))
    network.set_weights(net, model.weights)
    return Stage(lambda: net.predict(channels, batch_size=64, verbose=0), len(channels))


def astropy_read(path: str) -> dict[str, np.ndarray]:
    """A lite file's flux, ivar, mask and redshift as most scripts read them."""
    from astropy.io import fits

    with fits.open(path) as hdus:
        table, row = hdus[1].data, hdus[2].data
        return {"flux": np.array(table["flux"]), "ivar": np.array(table["ivar"]),
                "and_mask": np.array(table["and_mask"]), "z": np.array(row["Z"])}


def _pread(path: str, n_pix: int) -> None:
    fd, size = os.open(path, os.O_RDONLY), os.path.getsize(path)
    step = size // 7000  # of about six planes
    for i in range(3000):
        os.pread(fd, 4 * n_pix, 2880 + i * step)
    os.close(fd)


def training(data: Path, config: Config) -> dict[str, Stage]:
    """The training's feed on one core, and its steps on all of them where the feed costs nothing, f32 and bf16."""
    from lensspark import feed
    from lensspark import training as learning

    files, basis = feed.part_files(data / "train")[:12], Basis.load(resource("data/eigenbasis.npz"))
    n_rows, found = feed.count_rows(files), {}
    nets = {name: learning.compiled(over(config, settings=[f"training.precision={name}"]), n_rows)
            for name in ("f32", "bf16")}
    cells = nets["f32"].output["heat"].shape[1]

    def batches() -> Iterator:
        return feed.batches(files, config, basis, cells, 1)

    def spectra(fed: Iterable) -> int:
        return sum(len(labels["line"]) for _, labels in fed)

    some = list(itertools.islice(batches(), 12))
    found["feed of the training"] = Stage(lambda: spectra(batches()), spectra(batches()))
    for precision, net in nets.items():
        found[f"training step {precision}"] = Stage(
            lambda net=net: [net.train_on_batch(*batch) for batch in some], spectra(some))
    return found


def alternate(measured: dict[str, Stage], rounds: int, seconds: float = 0.3) -> dict[str, list[float]]:
    """Spectra per second of each stage, `rounds` values: all of them in turn, each for `seconds` at least."""
    rates: dict[str, list[float]] = {name: [] for name in measured}
    for stage in measured.values():
        stage.work()
    for _ in range(rounds):
        for name, stage in measured.items():
            rates[name].append(_rate(stage, seconds))
    return rates


def _rate(stage: Stage, seconds: float) -> float:
    start, done = time.perf_counter(), 0
    while True:
        stage.work()
        done += stage.n
        if (took := time.perf_counter() - start) >= seconds:
            return done / took


def together(folder: Path, config: Config, cores: int, seconds: float = 4.0) -> dict[str, float]:
    """Spectra per second of all cores at once, one process each, without Spark: the limits of a whole job.

    `read`: of plates; `infer`: selected ones, from arrays to the measured line, null searches included; `search`: of
    plates, both; `selected`: the share that is.
    """
    context = multiprocessing.get_context("spawn")
    kept = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # what the processes begin with
    try:
        with context.Manager() as manager, context.Pool(cores) as pool:
            barrier = manager.Barrier(cores)
            rates = pool.starmap(_alone, [(folder, config, barrier, seconds)] * cores, chunksize=1)
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return {name: sum(rate[name] for rate in rates) for name in rates[0]}


def _alone(folder: Path, config: Config, barrier: Any, seconds: float) -> dict[str, float]:
    model = Model.named(config.score.model)
    scorer, units = inference.scorer(model, config), survey_files(str(folder / "spplate")).units
    n_pix, score = model.pixels[1], config.score
    beyond = score.null_shift_fraction, score.null_seed
    options = source.Options("", window=model.window, columns=PLANES, beyond=beyond)
    spectra = read_unit(units[0], PLANES, options.read_window)
    z, rows, turn = np.array(spectra.columns["z"], float), selected(spectra, config), itertools.cycle(units)
    drawn, loglam0 = np.random.default_rng(0).random((2, len(rows))), np.full(len(rows), 3.58)
    role = np.where(drawn[0] < score.null_fraction, "both",
                    np.where(drawn[1] < score.null_shift_fraction, "shifted", "score")).astype(object)
    planes = [spectra.planes[name][rows] for name in PLANES]

    def infer() -> None:
        inference.search(scorer, lambda at, step: [plane[at][:, step:step + n_pix] for plane in planes], z[rows],
                         loglam0, role, config)

    def read() -> None:
        for _ in source.spectra_of(next(turn), options):
            pass

    def search() -> None:
        read()
        infer()

    work = {"read": Stage(read, 1000), "infer": Stage(infer, len(rows)), "search": Stage(search, 1000)}
    found = {"selected": len(rows) / 1000 / barrier.parties}
    for name, stage in work.items():
        stage.work()
        barrier.wait()
        found[name] = _rate(stage, seconds)
    return found
