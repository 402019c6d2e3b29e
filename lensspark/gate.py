"""The gate: what a model must show on a golden set before a run marked production takes it.

`measure` draws the golden set (fixed seeds, plates that no training has), searches it and writes the verdict; `require`
is what `predict` asks. The verdict, MODEL/gate.json, names model, gate and threshold: with another of them it is void.
It guards against mistakes; who can write the model's folder can write a verdict too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import betaincinv

from lensspark import __version__, catalogue, config, detectors, engine, metrics
from lensspark.checked import ConfigError, between, field, section
from lensspark.config import Config, resource
from lensspark.eigen import Basis
from lensspark.model import Model
from lensspark.progress import line

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

VERDICT = "gate.json"
BF16_SNR, BF16_CHANGED = 7.0, 0.01  # lines that bf16 may not lose; share of all hits that may come or go
LINE_KINDS = ("lya", "oii")  # what a training set labels as a line


@dataclass(frozen=True)
class Golden:
    seed: int = field(**between(0, 2**31))
    first_plate: int = field(**between(1, 99_000))
    mixed_plates: int = field(**between(1, 900))
    clean_plates: int = field(**between(1, 900))
    known_spectra: str = field()
    known_lenses: str = field()


@dataclass(frozen=True)
class Limits:
    confidence: float = field(**between(0.5, 0.9999))
    snr: tuple[float, ...] = field(**between(0, 1e6), low_length=2)
    min_recall: tuple[float, ...] = field(**between(0, 1), low_length=1)
    max_null_rate: float = field(**between(0, 1))
    max_calibration_error: float = field(**between(0, 1))
    min_known_recall: float = field(**between(0, 1))


@dataclass(frozen=True)
class Gate:
    """A golden set and the limits that a model must keep on it; `load` is the way to get one."""

    golden: Golden
    limits: Limits

    @property
    def sha256(self) -> str:
        """Of everything that decides what is measured and asked: this gate, the mock's defaults and its galaxies."""
        defaults, basis = config.load(), resource("data/eigenbasis.npz").read_bytes()
        mocks = [dataclasses.asdict(mock) for mock in (defaults.mock, defaults.mock_training)]
        return catalogue.digest([dataclasses.asdict(self), mocks, hashlib.sha256(basis).hexdigest()])


def load(name: str) -> Gate:
    """The shipped gate ("default"), or that of the TOML file `name`. Raises ConfigError for a file that is none."""
    try:
        path = resource("conf/gate.toml") if name == "default" else Path(name)
        tree = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"run.gate = {name!r}: cannot be read as TOML: {error}") from error
    parts = {"golden": Golden, "limits": Limits}
    keys = {(part, item.name) for part, kind in parts.items() for item in dataclasses.fields(kind)}
    given = {(part, key) for part, values in tree.items() for key in (values if isinstance(values, dict) else [""])}
    for part, key in sorted(given - keys):
        raise ConfigError(f"run.gate = {name!r}: unknown key {part}.{key}")
    gate = Gate(**{part: section(kind, tree.get(part, {}), part) for part, kind in parts.items()})
    edges, recalls = gate.limits.snr, gate.limits.min_recall
    if len(edges) != len(recalls) + 1 or list(edges) != sorted(set(edges)):
        raise ConfigError(f"limits.snr = {list(edges)}: expected {len(recalls) + 1} rising values, one more than "
                          "min_recall has")
    if bool(gate.golden.known_spectra) != bool(gate.golden.known_lenses):
        raise ConfigError("golden.known_spectra and golden.known_lenses: expected both or none")
    return gate


def require(settings: Config, model: Model) -> None:
    """Raises ValueError, naming what is missing, if a run marked production may not take `model`."""
    if not settings.run.production:
        return
    path = Model.place(settings.score.model) / VERDICT
    refused = f"run.production: model {model.sha256[:12]} is not let through the gate"
    try:
        verdict = json.loads(path.read_text())
        failing = [criterion["text"] for criterion in verdict["criteria"] if not criterion["passed"]]
        measured = {name: verdict[name] for name in ("model_sha256", "gate_sha256", "threshold")}
    except OSError as error:
        raise ValueError(f"{refused}: {path}: {error.strerror}; measure it with jobs/evaluate.py --gate") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{refused}: {path}: no verdict: {error!r}") from error
    wanted = {"model_sha256": model.sha256, "gate_sha256": load(settings.run.gate).sha256,
              "threshold": settings.score.threshold}
    for name, value in wanted.items():
        if measured[name] != value:
            raise ValueError(f"{refused}: {path}: was measured with {name} {measured[name]}, this run has {value}; "
                             "measure it again with jobs/evaluate.py --gate")
    if failing or not verdict["criteria"]:
        raise ValueError(f"{refused}: {'; '.join(failing) or 'no criterion was measured'}")


def measure(spark: SparkSession, settings: Config, out: str | None = None) -> dict[str, Any]:
    """The verdict on the configured model by the configured gate, written to `out`/gate.json, by default in its folder.

    Engine, precision and threshold are those of `settings`, everything else of the golden set is lensspark's default.
    """
    gate, model = load(settings.run.gate), Model.named(settings.score.model)
    golden = dataclasses.replace(config.load(), score=settings.score)
    mixed, clean = (golden_set(spark, model, golden, gate.golden, which) for which in (False, True))
    threshold = settings.score.threshold
    criteria = [*recalls(mixed, gate.limits, threshold), null_rate(clean, gate.limits, threshold),
                calibration(mixed, gate.limits)]
    if gate.golden.known_lenses:
        criteria.append(known_recall(spark, model, golden, gate))
    bf16 = {}
    if settings.score.precision == "f32" and engine.has_bf16(settings.score.engine):
        other = dataclasses.replace(golden, score=dataclasses.replace(settings.score, precision="bf16"))
        bf16 = {"bf16": same_hits(mixed, golden_set(spark, model, other, gate.golden, False), threshold)}
    verdict = {"passed": all(criterion["passed"] for criterion in criteria), "model_sha256": model.sha256,
               "gate_sha256": gate.sha256, "threshold": threshold, "precision": settings.score.precision,
               "lensspark": __version__, "spectra": {"mixed": len(mixed), "clean": len(clean)},
               "criteria": criteria, **bf16}
    folder = out or str(Model.place(settings.score.model))
    catalogue.write_file(catalogue.join(folder, VERDICT), (json.dumps(verdict, indent=1) + "\n").encode())
    return verdict


def same_hits(f32: pd.DataFrame, bf16: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Whether a search may take bf16: rows of detectors.compare of the same spectra, in the same order.

    No line of an S/N of BF16_SNR or more that is a hit is lost, no score is off by more than the engine's tolerance,
    and hits that come or go are at most BF16_CHANGED of all.
    """
    hits, others = f32["p_line"].to_numpy() > threshold, bf16["p_line"].to_numpy() > threshold
    bright = f32["line_snr"].to_numpy() >= BF16_SNR
    found = {"spectra": len(f32), "hits": int(hits.sum()), "changed": int((hits != others).sum()),
             "lost_bright": int((hits & bright & ~others).sum()),
             "largest_difference": round(float((f32["p_line"] - bf16["p_line"]).abs().max()), 4)}
    safe = (not found["lost_bright"] and found["changed"] <= BF16_CHANGED * max(found["hits"], 1)
            and found["largest_difference"] <= engine.TOLERANCE["bf16"])
    return {"passed": safe, **found}


def precision(settings: Config, model: Model) -> str:
    """f32 or bf16 for a search: what is configured; for auto bf16 where the model's verdict says that it finds the same
    hits at this threshold, and this machine is faster in it."""
    score = settings.score
    if score.precision != "auto":
        return score.precision
    try:
        verdict = json.loads((Model.place(score.model) / VERDICT).read_text())
        safe = (verdict["model_sha256"], verdict["threshold"]) == (model.sha256, score.threshold)
        safe = safe and verdict["bf16"]["passed"]
    except (OSError, ValueError, KeyError, TypeError):
        safe = False
    gain = engine.gain_of_bf16(model, score.batch_size) if safe and engine.has_bf16(score.engine) else 0.0
    chosen = "bf16" if gain >= engine.WORTH_IT else "f32"
    log.info(line("precision", chosen=chosen, bf16_is_safe=safe, bf16_is_faster=round(gain, 2)))
    return chosen


def golden_set(spark: SparkSession, model: Model, settings: Config, golden: Golden, clean: bool) -> pd.DataFrame:
    """detectors.compare's rows of the mixed or of the `clean` plates, without what could not be scored."""
    basis = Basis.load(resource("data/eigenbasis.npz"))
    first, n = golden.first_plate, golden.mixed_plates
    mock, plates = ((detectors.only(settings), range(first + n, first + n + golden.clean_plates)) if clean else
                    (settings.mock_training, range(first, first + n)))
    rows = detectors.on_mock_plates(spark, model, settings, mock, basis, list(plates), golden.seed)
    return rows[rows["scorable"]]


def recalls(mixed: pd.DataFrame, limits: Limits, threshold: float) -> list[dict[str, Any]]:
    """One criterion per bin of S/N: Lya lines on usable pixels that are found in their place."""
    lines = mixed[(mixed["kind"] == "lya") & mixed["visible"]]
    near = (lines["p_line_at"] - lines["line_at"]).abs() <= detectors.POSITION_PX
    found, criteria = near & (lines["p_line"] > threshold), []
    for low, high, least in zip(limits.snr[:-1], limits.snr[1:], limits.min_recall, strict=True):
        inside = lines["line_snr"].between(low, high, inclusive="left")
        criteria.append(_share(f"recall at S/N {low:g}-{high:g}", found[inside], limits.confidence, least=least))
    return criteria


def null_rate(clean: pd.DataFrame, limits: Limits, threshold: float) -> dict[str, Any]:
    """False hits per galaxy without a line."""
    return _share("false hits per line-free spectrum", clean["p_line"] > threshold, limits.confidence,
                  most=limits.max_null_rate)


def calibration(mixed: pd.DataFrame, limits: Limits) -> dict[str, Any]:
    """Expected calibration error where lines are as frequent as in training; lines on masked pixels are left out."""
    label = mixed["kind"].isin(LINE_KINDS).to_numpy()
    rows = mixed["visible"].to_numpy() | ~label
    error = metrics.calibration_error(label[rows].astype(float), mixed["p_line"].to_numpy()[rows])
    text = f"expected calibration error {error:.4f}, asked at most {limits.max_calibration_error:g}"
    return {"name": "calibration", "n": int(rows.sum()), "measured": round(error, 5),
            "limit": limits.max_calibration_error, "passed": bool(error <= limits.max_calibration_error), "text": text}


def known_recall(spark: SparkSession, model: Model, settings: Config, gate: Gate) -> dict[str, Any]:
    """Known lenses whose spectra are hits, of those that can be read. Raises ValueError if none can."""
    from lensspark import inference, injection
    from lensspark.vetting.known import read_table

    golden, key = gate.golden, list(injection.KEY)
    named = read_table(golden.known_lenses).query("plate >= 0")[key].drop_duplicates()
    keys = [tuple(map(int, row)) for row in named.to_numpy()]
    if not keys:
        raise ValueError(f"golden.known_lenses: {golden.known_lenses}: names no plate, mjd and fiberid")
    frame = injection.read_survey(spark, golden.known_spectra, model, settings, keys).toPandas()
    frame = frame.drop_duplicates(key, ignore_index=True)
    if frame.empty:
        raise ValueError(f"golden.known_spectra: {golden.known_spectra}: no spectrum of the known lenses can be read")
    first, n_pix = model.pixels
    score = inference.scorer(model, settings)
    found = injection.inject(injection.stack(frame, n_pix), score, settings, first, bare=True)
    name = f"recall of known lenses ({len(frame)} of {len(keys)} readable)"
    return _share(name, found["found"], gate.limits.confidence, least=gate.limits.min_known_recall)


def _share(name: str, hits: Any, confidence: float, least: float | None = None, most: float | None = None
           ) -> dict[str, Any]:
    """The criterion that the share of `hits` is at `least` or at `most` so much, with `confidence`."""
    n, k = len(hits), int(np.sum(hits))
    bound = limit_of_share(k, n, confidence, lower=least is not None)
    passed = bound >= least if least is not None else bound <= most
    asked = f"at least {least:g}" if least is not None else f"at most {most:g}"
    text = f"{name} {k / n if n else 0:.4g} ({k} of {n}; {confidence:.0%} limit {bound:.4g}), asked {asked}"
    return {"name": name, "n": n, "measured": round(k / n, 6) if n else None, "bound": round(float(bound), 6),
            "limit": most if least is None else least, "passed": bool(passed), "text": text}


def limit_of_share(k: int, n: int, confidence: float, lower: bool) -> float:
    """The one-sided limit of a share of which k of n were seen (Clopper & Pearson 1934); 0 or 1 where it is none."""
    if lower:
        return float(betaincinv(k, n - k + 1, 1 - confidence)) if k else 0.0
    return float(betaincinv(k + 1, n - k, confidence)) if k < n else 1.0


def text(verdict: dict[str, Any]) -> str:
    """The verdict for people."""
    lines = [f"model {verdict['model_sha256'][:12]}, p_line > {verdict['threshold']:g}, "
             f"gate {verdict['gate_sha256'][:12]}"]
    for criterion in verdict["criteria"]:
        lines.append(f"  {'passed' if criterion['passed'] else 'FAILED'}  {criterion['text']}")
    if found := verdict.get("bf16"):
        same = "gives the same" if found["passed"] else "does not give the same"
        lines.append(f"  bf16 {same}: of {found['hits']} hits {found['changed']} change, {found['lost_bright']} lines "
                     f"of S/N {BF16_SNR:g} are lost, scores differ by up to {found['largest_difference']:g}")
    return "\n".join([*lines, "passed" if verdict["passed"] else "failed: not for a run marked production"])
