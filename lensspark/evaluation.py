"""How good a run is where the truth is known: recall by S/N, position, false hits; from a ledger and a truth table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from lensspark import schema
from lensspark.config import Input
from lensspark.spectrum import pixel

KEY = [column.name for column in schema.KEY]
POSITION_PX = 3.0  # a line is found if line_wave is this close
SNR_EDGES = (4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, np.inf)
LINE_KINDS = ("lya", "oii", "crosstalk", "airglow")  # kinds that have an emission line which is not the galaxy's own
FALSE_HIT_RATES = (1e-3, 1e-4)


def of_run(spark: Any, run: str, truth: str) -> str:
    """`evaluate` of the finished run in the folder or URL `run`, written to its evaluation.json; returns `summary`."""
    from lensspark import pipeline
    from lensspark.catalogue import join, write_file

    finished = pipeline.finished_run(run)
    ledger = spark.read.parquet(pipeline.spark_path(join(run, "ledger"))).where("p_line IS NOT NULL").toPandas()
    known = spark.read.parquet(pipeline.spark_path(truth)).toPandas()
    figures = evaluate(ledger, known, finished.score.threshold, finished.input)
    write_file(join(run, "evaluation.json"), json.dumps(figures, indent=1).encode())
    return summary(figures)


def evaluate(ledger: pd.DataFrame, truth: pd.DataFrame, threshold: float, settings: Input) -> dict[str, Any]:
    """Figures of merit of the scored spectra of `ledger` (schema.LEDGER) that `truth` (schema.TRUTH) describes.

    `recall` is that of Lya lines: p_line above the threshold and line_wave within POSITION_PX of the truth. Lines
    under the mask of the galaxy's own lines or of sky lines cannot be found; they count in `recall_of_all` only.
    `placed` is the share of usable lines with line_wave within POSITION_PX whatever their score.
    Line-free are all kinds without a foreign line; `kinds` gives the share of hits in each kind. Each is given at the
    run's threshold and at those where the line-free spectra have FALSE_HIT_RATES, if there are enough of them.
    Raises ValueError if the two tables share no scored spectrum.
    """
    known = truth[[*KEY, "kind", "line_wave", "line_snr"]].rename(columns={"line_wave": "true_wave",
                                                                          "line_snr": "true_snr"})
    table = ledger[ledger["p_line"].notna()].merge(known, on=KEY, how="inner")
    if table.empty:
        raise ValueError("no scored spectrum of the run is in the truth table; is it the truth of this survey?")
    table["offset_px"] = pixel(table["line_wave"]) - pixel(table["true_wave"].fillna(1.0))
    table["masked"] = _masked(table["true_wave"].to_numpy(), table["z_lens"].to_numpy(), settings)
    free = np.sort(table.loc[~table["kind"].isin(LINE_KINDS), "p_line"].to_numpy())
    points = {"configured": threshold}
    for rate in FALSE_HIT_RATES:
        if len(free) * rate >= 1:
            points[f"false_hit_rate_{rate:g}"] = float(free[len(free) - 1 - int(len(free) * rate)])
    return {
        "n_scored": len(table), "n_line_free": len(free), "n_lya": int((table["kind"] == "lya").sum()),
        "at": {name: _at(table, value) for name, value in points.items()},
    }


def _masked(wave: np.ndarray, z_lens: np.ndarray, settings: Input) -> np.ndarray:
    masked = np.zeros(len(wave), bool)
    at = pixel(np.where(np.isnan(wave), 1.0, wave))
    for sky in settings.sky_lines:
        masked |= np.abs(at - pixel(sky)) <= settings.sky_line_half_width_px + 0.5
    for rest in settings.lens_lines:
        masked |= np.abs(at - pixel(rest * (1 + z_lens))) <= settings.lens_line_half_width_px + 0.5
    return masked


def _at(table: pd.DataFrame, threshold: float) -> dict[str, Any]:
    hit = (table["p_line"] > threshold).to_numpy()
    near = (table["offset_px"].abs() <= POSITION_PX).to_numpy()
    lya, snr = (table["kind"] == "lya").to_numpy(), table["true_snr"].to_numpy()
    usable = lya & ~table["masked"].to_numpy()
    free = ~table["kind"].isin(LINE_KINDS).to_numpy()
    bins = []
    for low, high in zip(SNR_EDGES[:-1], SNR_EDGES[1:], strict=True):
        chosen = usable & (snr >= low) & (snr < high)
        if chosen.any():
            bins.append({"snr": [low, None if np.isinf(high) else high], "n": int(chosen.sum()),
                         "recall": round(float((hit & near)[chosen].mean()), 4)})
    bright, all_bright = usable & (snr >= 8), lya & (snr >= 8)
    found = bright & hit & near
    kinds = {str(kind): {"n": int(chosen.sum()), "hits": int((hit & chosen).sum())} for kind, chosen in
             ((kind, (table["kind"] == kind).to_numpy()) for kind in sorted(table["kind"].unique()))}
    return {
        "threshold": threshold,
        "placed_snr_8": _share(near, bright),
        "recall_snr_8": _share(hit & near, bright), "recall_of_all_snr_8": _share(hit & near, all_bright),
        "false_hit_rate": _share(hit, free), "recall": bins,
        "offset_px_rms": round(float(np.sqrt(np.mean(table["offset_px"][found] ** 2))), 3) if found.any() else None,
        "kinds": kinds,
    }


def _share(hit: np.ndarray, chosen: np.ndarray) -> float | None:
    return round(float(hit[chosen].mean()), 5) if chosen.any() else None


def summary(figures: dict[str, Any]) -> str:
    """`evaluate`'s figures as a table for people."""
    lines = [f"{figures['n_scored']:,} scored spectra with known truth: {figures['n_lya']:,} with Lya, "
             f"{figures['n_line_free']:,} without a foreign line"]
    for name, at in figures["at"].items():
        lines.append(f"{name}: p_line > {at['threshold']:.6g}: recall of S/N >= 8 {at['recall_snr_8']} "
                     f"(masked lines included {at['recall_of_all_snr_8']}), false-hit rate {at['false_hit_rate']}, "
                     f"rms of position {at['offset_px_rms']} px, "
                     f"within {POSITION_PX:g} px whatever the score {at['placed_snr_8']}")
        lines.append("  recall by S/N: " + ", ".join(
            f"{b['snr'][0]:g}-{b['snr'][1] or '':} {b['recall']:.3f} ({b['n']})" for b in at["recall"]))
        lines.append("  hits by kind: " + ", ".join(
            f"{kind} {k['hits']}/{k['n']}" for kind, k in at["kinds"].items()))
    return "\n".join(lines)
