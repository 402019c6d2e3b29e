"""A mock survey of a few small plates, a small model and what a run over them leaves: for tests of runs."""

import hashlib
import os
from pathlib import Path

import pandas as pd
from small_model import make_model

from lensspark import config, pipeline, schema
from lensspark.config import resource
from lensspark.eigen import Basis
from lensspark.simulate import Plan, simulate, write_plate

FIBRES = 25
KEY = [column.name for column in schema.KEY]
MOCK = ("mock.lya=0.3", "mock.line_snr=[8, 20]", "mock.repeat=0.4")


def write_plates(redux, basis, plates, seed=7, broken=None):
    """spPlate + spZbest of `plates`, numbers from 4000 to 4009; plates of one pair share objects; `redux`.

    The plate `broken` is no FITS file.
    """
    plan, mock = Plan(4000, 10, FIBRES, seed, "spplate", 0), config.load([], MOCK).mock
    for plate in plates:
        write_plate(str(redux), plan, plate, mock, basis)
    if broken:
        next(redux.rglob(f"spPlate-{broken}-*.fits")).write_bytes(b"not FITS")
    return redux


def write_unreadable(redux):
    """The files of one plate, for what lists them and reads none; `redux`."""
    folder = redux / "v5_7_0/4055"
    folder.mkdir(parents=True)
    for name in ("spPlate-4055-55359.fits", "spZbest-4055-55359.fits"):
        (folder / name).write_bytes(b"x")
    return redux


def simulate_mixed(spark, folder, plates, fibres):
    """`folder` with plates, lite files and four broken files, by jobs/simulate.py's own work; many lines."""
    mock = config.load([], ["mock.lya=0.3", "mock.line_snr=[8, 20]"]).mock
    basis = Basis.load(resource("data/eigenbasis.npz"))
    simulate(lambda: spark, str(folder), Plan(4000, plates, fibres, 7, "mixed", 4), mock, basis)


def settings(folder):
    """Of a run with a small random model, at a threshold that makes a third of the spectra hits."""
    make_model().save(folder / "small")
    return (f"score.model='{folder / 'small'}'", "score.threshold=0.72", "score.engine='openvino'",
            "report.max_candidates=0", "limits.max_quarantine_fraction=1")


def plan(spectra, out, chosen, **how):
    return pipeline.plan(str(spectra), str(out), config.load([], chosen), **how)


def search(spark, spectra, out, chosen, **how):
    """The run; None if there was nothing to do."""
    run = plan(spectra, out, chosen, **how)
    if run is not None:
        pipeline.predict(spark, run)
    return run


def ledger_of(out):
    return pd.read_parquet(Path(out) / "ledger").astype({"plate": int}).sort_values(KEY).reset_index(drop=True)


def ledger_hash(out):
    """Of the sorted rows, to the last bit."""
    return hashlib.sha256(ledger_of(out).to_csv(index=False).encode()).hexdigest()


def everything_in(folder):
    """Path -> size and time of each file and folder: what shows that nothing was written."""
    return {path: (os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in [folder, *Path(folder).rglob("*")]}
