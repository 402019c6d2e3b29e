"""Detectors side by side on the same spectra: the network, the classical matched filter, and an oracle.

The matched filter is that of Shu et al. (2016): the highest S/N of a Gaussian of 2.2 px on the residual of the galaxy's
fit, with the errors enlarged where residuals scatter more than they promise, at some wavelengths and in each spectrum.
It gets the network's own fit and masks, which are better than the published ones. The oracle knows continuum, errors
and the line's width, as a Gaussian's; only the place and the noise are unknown. (A filter of the very profile that also
knows how neighbouring pixels are correlated would be a little better still.)
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.ndimage import median_filter

from lensspark import figures, matched_filter, metrics
from lensspark.config import Config, Evaluation, Mock, resource
from lensspark.eigen import Basis
from lensspark.locate import measure_line, ranked
from lensspark.mock import observe_plate
from lensspark.mock.instrument import NOISE_CORRELATION
from lensspark.mock.objects import KINDS
from lensspark.mock.profiles import FWHM_OF_SIGMA, PIXEL_KMS
from lensspark.model import Model
from lensspark.spectrum import Prepared, mask_bits, pixel

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

POSITION_PX = 3.0  # a line is found if it is placed this well
MJD = 58000  # of the mock nights; no other mock survey has it
LABELS = {"p_line": "network", "matched_filter": "matched filter", "oracle": "oracle"}
DETECTORS = tuple(LABELS)
COLUMNS = ("kind", "z", "line_snr", "true_snr", "line_at", "visible", "scorable",
           *(part for name in DETECTORS for part in (name, f"{name}_at")))
NIGHT_PX = 101
WIDTHS = np.geomspace(0.9, 9.0, 13)  # px: sigma of the oracle's filters, 21 % apart
FIBRES_AT_ONCE = 500


def highest(snr: np.ndarray, ivar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Highest S/N on usable pixels and its pixel, (n,) each, of (n, n_pix); -inf where no pixel is usable."""
    snr = np.where(ivar > 0, snr, -np.inf)
    at = snr.argmax(axis=1)
    return snr[np.arange(len(snr)), at], at


def error_factor(residual: np.ndarray, ivar: np.ndarray) -> np.ndarray:
    """(n,) by how much each spectrum's errors are too small: a quarter of the width of the central 95 % of its
    residuals in units of their errors, at least 1 (Shu et al. 2016)."""
    pull = np.where(ivar > 0, residual * np.sqrt(ivar), np.nan)
    empty = ~(ivar > 0).any(axis=1)
    pull[empty] = 0.0
    low, high = np.nanquantile(pull, (0.025, 0.975), axis=1)
    return np.maximum((high - low) / 4, 1.0)


def night_factor(residual: np.ndarray, ivar: np.ndarray) -> np.ndarray:
    """(n_pix,) by how much the scatter of a plate's residuals, in units of their errors, exceeds that of the NIGHT_PX
    around, at least 1: at the night sky's lines (Shu et al. 2016; they take the plate's sky fibres, here all n)."""
    pull = np.where(ivar > 0, residual * np.sqrt(ivar), np.nan)
    rows = np.isfinite(pull).sum(axis=0) > 1
    scatter = np.ones(pull.shape[1])
    low, high = np.nanquantile(pull[:, rows], (0.16, 0.84), axis=0)
    scatter[rows] = (high - low) / 2
    return np.maximum(scatter / median_filter(scatter, NIGHT_PX, mode="nearest"), 1.0)


def oracle_snr(flux: np.ndarray, background: np.ndarray, sigma: np.ndarray, usable: np.ndarray, width: np.ndarray
               ) -> tuple[np.ndarray, np.ndarray]:
    """`highest` of the oracle: flux - background with the true noise `sigma`, on `usable` pixels, by Gaussian filters
    of each spectrum's own `width` (n,) in px, rounded to the nearest of WIDTHS."""
    ivar = np.where(usable, sigma**-2.0, np.float32(0)).astype(np.float32)
    value, at = np.empty(len(flux)), np.empty(len(flux), int)
    which = np.abs(np.log(width)[:, None] - np.log(WIDTHS)).argmin(axis=1)
    for i in np.unique(which):
        rows = which == i
        found = matched_filter.snr((flux - background)[rows], ivar[rows], WIDTHS[i])
        value[rows], at[rows] = highest(found, ivar[rows])
    return value, at


def true_snr(line: np.ndarray, sigma: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """The mean S/N (n,) of a filter of the line's own shape against the true noise, on `usable` pixels.

    line and sigma (n, n_pix); neighbouring pixels' noise is correlated by rho = NOISE_CORRELATION: with
    s = line / sigma it is sum(s^2) / sqrt(sum(s^2) + 2 rho sum(s_i s_i+1)).
    """
    s = np.where(usable, line / sigma, np.float32(0)).astype(np.float64)
    power = np.sum(s**2, axis=1)
    noise = power + 2 * NOISE_CORRELATION * np.sum(s[:, 1:] * s[:, :-1], axis=1)
    return np.divide(power, np.sqrt(noise), out=np.zeros(len(s)), where=noise > 0)


def seen_width(fwhm: np.ndarray, lsf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sigma in px of lines of intrinsic `fwhm` km/s (n,) through an LSF of `lsf` px; spectra without a line (NaN) get
    the widths of others at random, so that the oracle searches them as it does the rest."""
    width = np.hypot(fwhm / PIXEL_KMS / FWHM_OF_SIGMA, lsf)
    known = width[np.isfinite(width)]
    drawn = rng.choice(known, len(width)) if len(known) else np.full(len(width), matched_filter.CLASSICAL_SIGMA)
    return np.where(np.isfinite(width), width, drawn)


def compare(mock: dict[str, np.ndarray], score: Callable, settings: Config, first: int, rng: np.random.Generator
            ) -> pd.DataFrame:
    """One row per spectrum of `mock` (of observe_plate, with oracle): what each detector gives it and where.

    `score` is an inference.scorer. Columns: kind, z, line_snr (by the reported errors), true_snr, line_at (pixel),
    visible (the line's peak falls on a usable pixel), and per detector its score and NAME_at, the pixel of its place.
    """
    prepared, p_line, heat = score(mock["flux"], mock["ivar"], mock["and_mask"], mock["z"])
    found = measure_line(prepared, heat, mock["loglam0"], settings.vetting.line_hits_snr)
    classical, classical_at = classical_search(prepared)
    at = pixel(np.where(np.isnan(mock["line_wave"]), 4000.0, mock["line_wave"])) - first
    nearest = np.clip(np.rint(at).astype(int), 0, prepared.ivar.shape[1] - 1)
    lsf = mock["wdisp"][np.arange(len(nearest)), nearest]
    oracle, oracle_at = oracle_snr(mock["flux"], mock["background"], mock["true_sigma"], prepared.ivar > 0,
                                   seen_width(mock["line_fwhm"], lsf, rng))
    return pd.DataFrame({
        "kind": mock["kind"], "z": mock["z"], "line_snr": mock["line_snr"],
        "true_snr": true_snr(mock["line"], mock["true_sigma"], prepared.ivar > 0), "line_at": at,
        "visible": prepared.ivar[np.arange(len(nearest)), nearest] > 0, "scorable": prepared.scorable,
        "p_line": ranked(p_line, found["line_snr"]), "p_line_at": pixel(found["line_wave"]) - first,
        "matched_filter": classical, "matched_filter_at": classical_at.astype(float),
        "oracle": oracle, "oracle_at": oracle_at.astype(float),
    })


def classical_search(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """The matched filter's S/N of each spectrum of one plate and its pixel, (n,) each."""
    ivar = (prepared.ivar / night_factor(prepared.residual, prepared.ivar) ** 2).astype(np.float32)
    value, at = highest(matched_filter.snr(prepared.residual, ivar), ivar)
    return value / error_factor(prepared.residual, ivar), at


def on_mock_plates(spark: SparkSession, model: Model, settings: Config, mock: Mock, basis: Basis, plates: list[int],
                   seed: int) -> pd.DataFrame:
    """`compare` of all fibres of mock plates that are in the published parent sample's range of redshift, a redshift
    without a warning: no others can become candidates (vetting's `redshift`), and their own lines may lie anywhere."""
    from lensspark import inference

    first, n_pix = model.pixels
    limit, unsure = settings.selection.z_min, mask_bits(settings.vetting.bad_zwarning_bits)
    broadcast = model.files, basis

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        files, galaxies = broadcast
        score = inference.scorer(Model(files).verified(), settings)
        for batch in batches:
            for plate in batch.column(0).to_pylist():
                for start in range(1, 1001, FIBRES_AT_ONCE):
                    fibres = np.arange(start, start + FIBRES_AT_ONCE)
                    made = observe_plate(seed, plate, MJD, fibres, mock, galaxies, first, n_pix, oracle=True)
                    chosen = (made["z"] > limit) & (made["zwarning"] & unsure == 0)
                    made = {name: values[chosen] for name, values in made.items()}
                    rng = np.random.default_rng([seed, plate, start])
                    yield pa.RecordBatch.from_pandas(compare(made, score, settings, first, rng), preserve_index=False)

    numbers = ["z", "line_snr", "true_snr", "line_at", *DETECTORS, *(f"{name}_at" for name in DETECTORS)]
    types = {"kind": "string", "visible": "boolean", "scorable": "boolean"} | dict.fromkeys(numbers, "double")
    fields = ", ".join(f"{name} {types[name]}" for name in COLUMNS)
    rows = spark.createDataFrame(pd.DataFrame({"plate": plates})).repartitionByRange(len(plates), "plate")
    return rows.mapInArrow(run, fields).toPandas()


def mixture(table: pd.DataFrame, evaluation: Evaluation, excess: float) -> np.ndarray:
    """Weight (n,) of each line-free spectrum of `table` in a survey: clean galaxies, and contaminants at `excess` times
    the rates of LESSER's funnel (conf/default.toml, [evaluation]); 0 for kinds that have no rate."""
    weight = np.zeros(len(table))
    rates = {kind: excess * getattr(evaluation, kind) for kind in ("lens_line", "airglow", "cosmic", "crosstalk")}
    rates["clean"] = 1 - sum(rates.values())
    for kind, rate in rates.items():
        chosen = (table["kind"] == kind).to_numpy()
        weight[chosen] = rate / max(chosen.sum(), 1)
    return weight


def recall_at(lines: pd.DataFrame, free: pd.DataFrame, weights: np.ndarray, rate: float) -> dict[str, Any]:
    """Per detector its threshold for the false-hit `rate` among `free`, and its recall within POSITION_PX of `lines`
    whose peak falls on a usable pixel: by their true S/N, and as `..._reported` by that of the reported errors."""
    usable = lines[lines["visible"] & lines["scorable"]]
    of = {}
    for name in DETECTORS:
        threshold = metrics.threshold_at(free[name].to_numpy()[weights > 0], rate, weights[weights > 0])
        near = (usable[f"{name}_at"] - usable["line_at"]).abs() <= POSITION_PX
        found = (near & (usable[name] > threshold)).to_numpy()
        of[name] = {"threshold": threshold}
        for column, suffix in (("true_snr", ""), ("line_snr", "_reported")):
            snr = usable[column].to_numpy()
            middle = (snr >= 6) & (snr < 8)
            of[name] |= {f"recall{suffix}": metrics.recall_by_snr(found, snr),
                         f"recall_8{suffix}": float(found[snr >= 8].mean()),
                         f"recall_6_8{suffix}": float(found[middle].mean())}
    return of


def side_by_side(spark: SparkSession, model: Model, settings: Config, basis: Basis, n_plates: int, first_plate: int,
                 seed: int) -> dict[str, Any]:
    """Recall of the detectors at equal false-hit rates on `n_plates` fresh mock plates of clean galaxies, a fifth of
    them with a Lya line of (reported) S/N 4-18, and a third as many plates of contaminants; galaxies from `basis`.

    Per false-hit rate: `clean`, where line-free means clean galaxies, and `excess N`, where contaminants are mixed in
    at N times the observed rates.
    """
    evaluation = settings.evaluation
    numbers = list(range(first_plate, first_plate + n_plates + max(n_plates // 3, 1)))
    plain = on_mock_plates(spark, model, settings, only(settings, lya=0.2, line_snr=(4.0, 18.0)), basis,
                           numbers[:n_plates], seed)
    dirty = only(settings, lens_line=0.3, airglow=0.25, cosmic=0.25, crosstalk=0.2)
    odd = on_mock_plates(spark, model, settings, dirty, basis, numbers[n_plates:], seed)
    lines, clean = plain[plain["kind"] == "lya"], plain[(plain["kind"] == "clean") & plain["scorable"]]
    mixed = pd.concat([clean, odd[odd["scorable"] & (odd["kind"] != "clean")]], ignore_index=True)
    result: dict[str, Any] = {
        "n_line_free": len(clean), "n_lines": int((lines["visible"] & lines["scorable"]).sum()),
        "n_contaminants": {k: int(n) for k, n in mixed["kind"].value_counts().items() if k != "clean"},
        "galaxies": basis.provenance, "rates": {}}
    for rate in evaluation.false_hit_rates:
        at: dict[str, Any] = {"clean": recall_at(lines, clean, np.ones(len(clean)), rate)}
        for excess in evaluation.excesses:
            at[f"excess {excess:g}"] = recall_at(lines, mixed, mixture(mixed, evaluation, excess), rate)
        for name, found in at["clean"].items():
            found["contaminants"] = {kind: float((group[name] > found["threshold"]).mean())
                                     for kind, group in mixed.groupby("kind")}
        result["rates"][f"{rate:g}"] = at
    return result


def on_model(spark: SparkSession, settings: Config, n_plates: int, first_plate: int, seed: int,
             basis: str | Path | None, out: str | Path) -> str:
    """`side_by_side` of the configured model, written to `out`/detectors.json and, where matplotlib is installed,
    .png; returns `summary`. `basis`: file of the mock galaxies' eigenbasis, by default the shipped one;
    eigenspectra without a sample are mixed like the shipped ones."""
    model, out = Model.named(settings.score.model), Path(out)
    shipped = Basis.load(resource("data/eigenbasis.npz"))
    galaxies = Basis.load(basis) if basis else shipped
    if not len(galaxies.coefficients):  # a file of eigenspectra alone
        galaxies = galaxies.mixed_like(shipped)
    result = side_by_side(spark, model, settings, galaxies, n_plates, first_plate, seed) | {"model": model.sha256}
    out.mkdir(parents=True, exist_ok=True)
    (out / "detectors.json").write_text(json.dumps(result, indent=1))
    if importlib.util.find_spec("matplotlib"):
        figures.detectors(result, out / "detectors.png")
    return summary(result)


def only(settings: Config, **changes: Any) -> Mock:
    """[mock] with clean galaxies alone, but for `changes`."""
    return replace(settings.mock, **(dict.fromkeys(KINDS[1:], 0.0) | {"repeat": 0.0} | changes))


def summary(result: dict[str, Any]) -> str:
    """`side_by_side`'s figures as Markdown: recall by true S/N, then by that of the reported errors; hits of others."""
    parts = [f"{result['n_line_free']:,} clean line-free spectra, {result['n_lines']:,} with a Lya line on usable "
             f"pixels, contaminants {result['n_contaminants']}; galaxies: {result['galaxies']}"]
    example = next(iter(result["rates"].values()))["clean"]["oracle"]
    for suffix, by in (("", "true S/N"), ("_reported", "S/N of the reported errors")):
        rows = [row for rate, mixes in result["rates"].items() for free, at in mixes.items()
                for row in _rows(at, suffix, free, rate)]
        bins = (b["snr"] for b in example[f"recall{suffix}"])
        heads = [f"{low:g}–{high:g}" if high else f"> {low:g}" for low, high in bins]
        head = ["line-free", "false hits", "detector", *heads, "6–8", "all ≥ 8"]
        lines = [head, ["---"] * len(head), *rows]
        parts.append(f"By {by}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    for rate, mixes in result["rates"].items():
        for name, found in mixes["clean"].items():
            shares = (f"{kind} {100 * share:.1f} %" for kind, share in found["contaminants"].items())
            parts.append(f"Hits of {LABELS[name]} at {rate}, above {found['threshold']:.6g}: {', '.join(shares)}")
    return "\n\n".join(parts)


def _rows(at: dict[str, Any], suffix: str, free: str, rate: str) -> list[list[str]]:
    rows = []
    for name, found in at.items():
        recall = [*(b["recall"] for b in found[f"recall{suffix}"]), found[f"recall_6_8{suffix}"],
                  found[f"recall_8{suffix}"]]
        rows.append([free, rate, LABELS[name], *(f"{share:.3f}" for share in recall)])
    limit, best = at["oracle"][f"recall{suffix}"], at["p_line"][f"recall{suffix}"]
    ratios = (f"{b['recall'] / o['recall']:.2f}" if o["recall"] > 0.05 else ""
              for b, o in zip(best, limit, strict=True))
    return [*rows, [free, rate, "network / oracle", *ratios, "", ""]]
