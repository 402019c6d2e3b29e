"""Artificial spectra beside the real ones that they are made of, and what they cost: figures of docs/science.md.

    python tests/compare_artificial.py DATA [--config FILE] [--spectra 2000]

DATA is a folder of `jobs/build_training.py --spectra`; only its galaxies, backdrops and plates are read. Galaxies are
drawn anew, without lines, in front of the validation and test plates, in each way that noise and coefficients can be
drawn, and fitted as in a search, as are the real galaxies of those plates.
"""

import argparse
import dataclasses
import io
import json
import resource as limits
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from lensspark import config, matched_filter
from lensspark.config import resource
from lensspark.eigen import Basis
from lensspark.galaxy_bins import Bins
from lensspark.mock.artificial import SPECTRA_AT_ONCE, artificial
from lensspark.spectrum import prepare
from lensspark.training_set.backdrops import load_backdrops
from lensspark.training_set.common import Frame, labelled, plane

WAYS = (("sky", "bootstrap"), ("sky", "gaussian"), ("paper", "bootstrap"), ("paper", "gaussian"))
PLANES = ("flux", "ivar", "and_mask")


def describe(name, flux, ivar, and_mask, z, basis, settings, first):
    """One row: S/N per pixel, chi2 per pixel in thirds of the window, correlation of neighbours, matched filter."""
    made = prepare(flux, ivar, and_mask, z, basis, settings.input, first)
    good = made.ivar > 0
    pull = np.clip(made.residual * np.sqrt(made.ivar), -8, 8)
    snr = matched_filter.snr(made.residual, made.ivar)
    thirds = [np.sum(p**2) / g.sum() for p, g in
              zip(np.array_split(pull, 3, axis=1), np.array_split(good, 3, axis=1), strict=True)]
    pairs = good[:, 1:] & good[:, :-1]
    correlation = np.mean((pull[:, 1:] * pull[:, :-1])[pairs]) / np.mean(pull[good] ** 2)
    cells = [np.median(flux * np.sqrt(ivar)), *thirds, correlation, *np.percentile(snr.max(axis=1), (50, 90)),
             *np.percentile(-snr.min(axis=1), (50, 90))]
    print(f"| {name} | {len(flux)} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--spectra", type=int, default=2000)
    args = parser.parse_args()
    facts = json.loads((args.data / "data.json").read_text())
    settings = config.from_dict(config.load(args.config).as_dict() | {"survey_training": facts["survey_training"]})
    frame, basis = Frame.of(settings), Basis.load(resource("data/eigenbasis.npz"))
    bins = Bins.of(pq.read_table(args.data / "galaxies").to_pylist(), settings.survey_training.eigenvectors)
    plates = facts["plates"]["validation"] + facts["plates"]["test"]
    print("| spectra | n | S/N | chi2 blue | middle | red | correlation | S/N > 50 % | 90 % | S/N < 50 % | 90 % |")
    inner = slice(frame.margin, frame.margin + frame.n_pix)
    real = pa.concat_tables([ds.dataset(str(args.data / "backdrops" / f"plate={p}")).to_table() for p in plates])
    real = real.filter(pa.compute.invert(real["is_sky"]))
    describe("real", *(plane(real[name])[:, inner] for name in PLANES), real["z"].to_numpy(), basis, settings,
             frame.first)
    held = {plate: load_backdrops(args.data / "backdrops", plate, settings, frame) for plate in plates}
    plain = dataclasses.replace(settings.mock_training, lya=0.0, oii=0.0, airglow=0.0, cosmic=0.0, lens_line=0.0,
                                sky=0.0, broad=0.0)
    each = args.spectra // len(plates)
    for noise, coefficients in WAYS:
        how = dataclasses.replace(settings.survey_training, noise=noise, coefficients=coefficients)
        blocks = [(plate, block, min(each - block * SPECTRA_AT_ONCE, SPECTRA_AT_ONCE))
                  for plate in plates for block in range(-(-each // SPECTRA_AT_ONCE))]
        parts = [artificial(1, *block, held[block[0]], bins, how, plain, frame.first) for block in blocks]
        columns = [np.concatenate([part[name] for part in parts]) for name in (*PLANES, "z")]
        describe(f"{noise}, {coefficients}", *columns, basis, settings, frame.first)
    start = time.process_time()
    for block in range(4):
        drawn = artificial(1, plates[0], block, SPECTRA_AT_ONCE, held[plates[0]], bins, settings.survey_training,
                           settings.mock_training, frame.first)
        pq.write_table(pa.Table.from_batches([labelled(drawn, frame.first)]), io.BytesIO(), compression="snappy")
    seconds = (time.process_time() - start) / (4 * SPECTRA_AT_ONCE) * 1000
    print(f"{seconds:.2f} CPU seconds per 1,000 spectra, lines and Parquet included; bins "
          f"{sum(values.nbytes for values in vars(bins).values()) / 1e6:.0f} MB; peak memory of this process "
          f"{limits.getrusage(limits.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
