"""A finished run without a survey: a ledger of as many rows as wanted, drawn from a seed, for re-cuts at survey size.

    python tests/synthetic_run.py --out RUN [--rows 1000000] [--plates 1000] [--hit-rate 0.002] [--seed 1]
    time python jobs/vet.py --run RUN --out RUN2 --set vetting.min_line_snr=7
    time python jobs/compare.py RUN RUN2

Hits are as frequent as in a survey; some gather at sky wavelengths, some are [OII], some are faint.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark import catalogue, config, schema  # noqa: E402
from lensspark.arrow import schema_of  # noqa: E402

SKY = np.array([3915.5, 4079.0, 4424.0, 4661.2])


def ledger(rng, plate, n, hit_rate, threshold):
    """The ledger of one plate, as columns of schema.LEDGER; what is not measured is null."""
    scored = rng.random(n) < 0.8
    hit = scored & (rng.random(n) < hit_rate)
    p_line = np.where(scored, np.where(hit, 1 - (1 - threshold) * rng.random(n) * 0.999, threshold * rng.random(n)**9),
                      np.nan)
    wave = rng.uniform(3800, 5000, n)
    sky = hit & (rng.random(n) < 0.2)
    wave[sky] = rng.choice(SKY, sky.sum()) + rng.normal(0, 0.2, sky.sum())
    snr, oii, skew = 6 * rng.weibull(1.5, n), rng.normal(0, 3, n), rng.random(n)

    def of(rows, values):
        return np.where(rows, values, np.nan)

    columns = {
        "mjd": 55000 + plate % 1500, "fiberid": np.arange(1, n + 1), "run2d": "v5_7_0",
        "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-10, 60, n), "objtype": "GALAXY", "class": "GALAXY",
        "subclass": "", "z": rng.uniform(0.3, 0.8, n), "z_lens": rng.uniform(0.3, 0.8, n), "selected": scored,
        "not_selected_because": np.where(scored, None, "z_min"), "p_line": p_line,
        "line_wave": of(scored, wave), "line_snr": of(scored, snr), "line_flux": of(scored, snr),
        "line_flux_err": of(scored, 1.0), "line_peak": of(scored, snr / 4),
        "line_mask_fraction": of(scored, 0.0), "n_line_hits": pd.array(np.where(scored, 1, None), "Int32"),
        "null_p_line": of(scored & (rng.random(n) < 0.25), threshold * rng.random(n)), "null_snr": of(scored, 4.0),
        "is_hit": np.where(scored, hit, None), "sn_oii_veto": of(hit, oii), "p_skew_positive": of(hit, skew),
        "dchi2_skew": of(hit, 10 * skew), "profile_chi2": of(hit, 30.0), "p_lya": of(hit, skew), "p_sky": of(hit, 0.0),
        "dchi2_spike": of(hit, -5.0), "n_neighbour": pd.array(np.where(hit, 4, None), "Int32"),
        "neighbour_ratio": of(hit, 4 * rng.random(n) ** 3), "n_repeat": pd.array(np.where(hit, 0, None), "Int32"),
        "n_repeat_confirmed": pd.array(np.where(hit, 0, None), "Int32"), "p_multiple": of(hit, skew),
        "veto": pd.array(np.where(hit, np.where(snr < 6, 2, 0), None), "Int32"),  # bit 1: line_snr
        "run_id": "synthetic", "model_sha256": "0" * 64, "path": f"/nowhere/spPlate-{plate}-55000.fits",
    }
    return pd.DataFrame(columns, index=range(n))


def write_run(out, rows, plates, hit_rate, seed=1):
    """RUN with a ledger, an empty quarantine and a run card; returns the number of hits."""
    out, settings, rng, n_hits = Path(out), config.load(), np.random.default_rng(seed), 0
    fields = [field for field in schema_of(schema.LEDGER) if field.name != "plate"]
    for plate in range(1000, 1000 + plates):
        frame = ledger(rng, plate, rows // plates, hit_rate, settings.score.threshold)
        n_hits += int((frame["is_hit"] == True).sum())  # noqa: E712
        arrays = [pa.array(frame[f.name], f.type, from_pandas=True) if f.name in frame else pa.nulls(len(frame), f.type)
                  for f in fields]
        folder = out / f"ledger/plate={plate}"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), folder / "part-0.parquet")
    (out / "quarantine").mkdir()
    empty = schema_of(schema.QUARANTINE).empty_table()
    pq.write_table(empty, out / "quarantine/part-0.parquet")
    card = {"run_id": "synthetic", "spectra": "/nowhere", "model": settings.score.model, "model_sha256": "0" * 64,
            "input_manifest_sha256": "0" * 64, "configuration": settings.as_dict(), "versions": catalogue.versions()}
    (out / "run.json").write_text(json.dumps(card))
    return n_hits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--plates", type=int, default=1000)
    parser.add_argument("--hit-rate", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    hits = write_run(args.out, args.rows, args.plates, args.hit_rate, args.seed)
    print(f"{args.out}: {args.rows:,} rows, {hits:,} hits")
