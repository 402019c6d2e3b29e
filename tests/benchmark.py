"""Speed of each stage on one core, beside the limit that the machine sets, in one run.

    python tests/benchmark.py [--spectra 2000] [--training DATA]

Stages: reading the window of an spPlate and of lite files (limit: reading the same bytes or files), preparing the
network's input, the network on each engine (limit: a large float32 matrix product on one thread, in the same
floating-point operations), locating and measuring the line. With a training set also the training's: the feed (reading
by petastorm, preparing), and what the network learns from when the feed is free (limit: six times the multiply-adds).
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy: one Spark worker has one core

import argparse  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from small_model import ShapeOps  # noqa: E402

from lensspark import config, engine, mock, network  # noqa: E402
from lensspark.boss import read_unit, survey_files  # noqa: E402
from lensspark.config import resource  # noqa: E402
from lensspark.eigen import Basis  # noqa: E402
from lensspark.locate import measure_line  # noqa: E402
from lensspark.mock import files  # noqa: E402
from lensspark.model import Model  # noqa: E402
from lensspark.spectrum import prepare  # noqa: E402


def best(work, repeats=5):
    """Shortest of some times of `work()`, in seconds, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def row(stage, n, seconds, limit=None, what=""):
    ratio = f"{seconds / limit:8.2f}   {what}" if limit else ""
    print(f"{stage:34s} {n / seconds:12,.0f} {1e6 * seconds / n:10.1f} {ratio}")


def write(folder, contents):
    for path, content in contents:
        (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / path).write_bytes(content)


def reading(settings):
    """Time to read a plate's window, and to read the same bytes and do nothing; returns its planes and redshifts."""
    basis = Basis.load(resource("data/eigenbasis.npz"))
    plate = mock.observe_plate(1, 4000, 55500, np.arange(1, 1001), settings.mock, basis)
    with tempfile.TemporaryDirectory() as folder:
        write(folder, files.plate_files(plate))
        unit = survey_files(folder).units[0]
        spectra = read_unit(unit, window=settings.read.window)
        wanted, width = 4 * 1192, 4 * plate["flux"].shape[1]

        def raw():
            fd = os.open(unit.path, os.O_RDONLY)
            for i in range(3000):
                os.pread(fd, wanted, 2880 + i * width)
            os.close(fd)

        row("read spPlate, window, 3 planes", 1000, best(lambda: read_unit(unit, window=settings.read.window)),
            best(raw), "of pread")
    with tempfile.TemporaryDirectory() as folder:
        write(folder, files.lite_files({name: values[:300] for name, values in plate.items()}))
        units = survey_files(folder).units
        row("read lite files, window, 3 planes", len(units),
            best(lambda: [read_unit(unit, window=settings.read.window) for unit in units]),
            best(lambda: [Path(unit.path).read_bytes() for unit in units]), "of reading the files")
    return spectra


def learning(data, settings, flops_per_second, multiply_adds):
    """Spectra per second of the training's feed on one core, and of the network's steps on all of them."""
    from lensspark import feed, training

    files, basis = feed.part_files(Path(data) / "train")[:12], Basis.load(resource("data/eigenbasis.npz"))
    net = training.compiled(settings, feed.count_rows(files))
    n_cells = net.output["heat"].shape[1]
    n = sum(len(labels["line"]) for _, labels in feed.batches(files, settings, basis, n_cells, 1))  # and warm up
    start = time.perf_counter()
    batches = list(feed.batches(files, settings, basis, n_cells, 1))[:12]
    row("feed of the training", n, time.perf_counter() - start)
    seconds = best(lambda: [net.train_on_batch(*batch) for batch in batches], 3)
    n = sum(len(labels["line"]) for _, labels in batches)
    row("training step, all cores", n, seconds, 6 * n * multiply_adds / flops_per_second, "of the matrix product")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spectra", type=int, default=2000, help="spectra that are scored per repeat")
    parser.add_argument("--training", metavar="DATA", help="folder of build_training: measure the training as well")
    args = parser.parse_args()
    settings, model = config.load(), Model.named("default")
    print(f"{'stage':34s} {'spectra/s':>12s} {'us each':>10s} {'times':>8s}   the limit")
    spectra = reading(settings)
    rows = np.arange(args.spectra) % len(spectra)
    planes = [spectra.planes[name][rows] for name in ("flux", "ivar", "and_mask")]
    z, first = np.array(spectra.columns["z"])[rows], model.pixels[0]

    def batches(work):
        return lambda: [work(slice(i, i + 512)) for i in range(0, args.spectra, 512)]

    seconds = best(batches(lambda s: prepare(*(p[s] for p in planes), z[s], model.basis, model.input, first)))
    row("prepare", args.spectra, seconds)
    prepared = prepare(*planes, z, model.basis, model.input, first)
    counter = ShapeOps(model.network.normalise)
    network.forward(counter, (1192, len(model.input.channels)), model.network)
    a = np.random.default_rng(0).normal(size=(1536, 1536)).astype(np.float32)
    peak = 2 * 1536**3 / best(lambda: a @ a)
    limit = args.spectra * 2 * counter.multiply_adds / peak
    print(f"network: {2e-6 * counter.multiply_adds:.1f} MFLOP per spectrum; matrix product: {peak / 1e9:.0f} GFLOP/s")
    for name, precision in (("openvino", "f32"), ("openvino", "bf16"), ("tensorflow", "f32")):
        try:
            run = engine.engine_for(model, name, precision, settings.score.batch_size)
        except ValueError as error:
            print(f"{name}: {error}")
            continue
        seconds = best(lambda run=run: run(prepared.channels), 3)
        row(f"{name} {precision}" + (", all cores" if name == "tensorflow" else ""), args.spectra, seconds, limit,
            "of the matrix product")
    heat, loglam0 = np.zeros((args.spectra, 298), np.float32), np.full(args.spectra, 3.5798)
    row("locate and measure", args.spectra, best(lambda: measure_line(prepared, heat, loglam0, 6.0)))
    if args.training:
        learning(args.training, settings, peak, counter.multiply_adds)


if __name__ == "__main__":
    main()
