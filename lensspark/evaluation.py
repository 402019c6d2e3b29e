"""How good a run is where the truth is known: recall, position, false hits, what the cuts do; from ledger and truth."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from lensspark import lines, schema
from lensspark.config import Input
from lensspark.metrics import rank_correlation, recall_by_snr, threshold_at
from lensspark.spectrum import pixel

KEY = [column.name for column in schema.KEY]
POSITION_PX = 3.0  # a line is found if line_wave is this close
LINE_KINDS = ("lya", "oii", "crosstalk", "airglow")  # kinds that have an emission line which is not the galaxy's own
FALSE_HIT_RATES = (1e-3, 1e-4)
DOUBLET_PX = 5.0  # truth has the brighter line of [OII], 3.25 px from the other; the filter centres on both
BRIGHT_SNR, SKEWED_ALPHA, FAINTEST_SNR = 8.0, 2.0, 6.0
FAR_PX = 15.0  # a hit this far from the injected line, the classical filter's length, is another one
Q_LIMIT = 0.1
SOURCES = ("lya", "oii")  # kinds whose line comes from another galaxy than the lens
# A galaxy's own features, rest frame, and how far from one, or from its mask, a hit counts as its residual, px.
OWN_LINES, OWN_PX = (*lines.LENS_LINES, *lines.FEII_FLUORESCENT, lines.HBETA, *lines.OIII), 3.0
WRONG_REDSHIFT = 2e-3  # of 1 + z: a catalogue's redshift that far off (600 km/s) puts the template's lines elsewhere


def of_run(spark: Any, run: str, truth: str) -> str:
    """`evaluate` and `evaluate_vetting` of the run in the folder or URL `run` as text, and in its evaluation.json."""
    from lensspark import schema, store
    from lensspark.catalogue import join, write_file
    from lensspark.promotion import products
    from lensspark.run import finished_run

    place = products(run)
    finished = finished_run(place)
    ledger = store.read(spark, join(place, "ledger"), schema.LEDGER.struct_type())
    ledger, known = ledger.where("p_line IS NOT NULL").toPandas(), store.read(spark, truth).toPandas()
    figures = evaluate(ledger, known, finished.score.threshold, finished.input)
    figures["vetting"] = evaluate_vetting(ledger, known, finished.input)
    write_file(join(run, "evaluation.json"), json.dumps(figures, indent=1).encode())
    return f"{summary(figures)}\n{vetting_summary(figures['vetting'])}"


def evaluate(ledger: pd.DataFrame, truth: pd.DataFrame, threshold: float, settings: Input) -> dict[str, Any]:
    """Figures of merit of the scored spectra of `ledger` (schema.LEDGER) that `truth` (schema.TRUTH) describes.

    `recall` is that of Lya lines: p_line above the threshold and line_wave within POSITION_PX of the truth. Lines
    under the mask of the galaxy's own lines or of sky lines cannot be found; they count in `recall_of_all` only.
    `placed` is the share of usable lines with line_wave within POSITION_PX whatever their score; `rank_correlation`
    is Spearman's, of the scores of all hits and their measured S/N.
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
    free = table.loc[~table["kind"].isin(LINE_KINDS), "p_line"].to_numpy()
    points = {"configured": threshold}
    for rate in FALSE_HIT_RATES:
        if len(free) * rate >= 1:
            points[f"false_hit_rate_{rate:g}"] = threshold_at(free, rate)
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
    bins = recall_by_snr((hit & near)[usable], snr[usable])
    bright, all_bright = usable & (snr >= 8), lya & (snr >= 8)
    found = bright & hit & near
    kinds = {str(kind): {"n": int(chosen.sum()), "hits": int((hit & chosen).sum())} for kind, chosen in
             ((kind, (table["kind"] == kind).to_numpy()) for kind in sorted(table["kind"].unique()))}
    return {
        "threshold": threshold,
        "placed_snr_8": _share(near, bright),
        "recall_snr_8": _share(hit & near, bright), "recall_of_all_snr_8": _share(hit & near, all_bright),
        "false_hit_rate": _share(hit, free), "recall": bins,
        "rank_correlation": round(rank_correlation(table["p_line"][hit], table["line_snr"][hit]), 4),
        "offset_px_rms": round(float(np.sqrt(np.mean(table["offset_px"][found] ** 2))), 3) if found.any() else None,
        "kinds": kinds,
    }


def evaluate_vetting(ledger: pd.DataFrame, truth: pd.DataFrame, settings: Input) -> dict[str, Any]:
    """What the cuts do to the hits of each kind, and whether q_value keeps its word.

    `groups`: name -> `n` scored spectra of the group, `hits` among them (Lya: at the injected line, not under a mask),
    `vetoed` hits, and `by`, the hits that fail each cut. `q`: hits with q_value up to Q_LIMIT, those without a line of
    a background source there, and the most that Q_LIMIT allows with two sigma of chance. Airglow and cosmic rays are
    hits where they are; a hit far from them and from a Lya line, or in a galaxy without any, is a template residual
    (`_is_residual`) or a peak of noise.
    """
    from lensspark.vetting import CUTS

    known = truth[[*KEY, "kind", "z_lens", "line_wave", "line_snr", "line_alpha"]]
    known = known.rename(columns={"z_lens": "true_z", "line_wave": "true_wave", "line_snr": "true_snr",
                                  "line_alpha": "true_alpha"})
    table = ledger[ledger["p_line"].notna()].merge(known, on=KEY, how="inner")
    veto, hit = table["veto"].fillna(0).astype(int), table["veto"].notna()
    distance = _distance(table)
    near = distance <= np.where(table["kind"] == "oii", DOUBLET_PX, POSITION_PX)
    found = {}
    for name, (members, counted) in _groups(table, distance, settings).items():
        of = hit & counted
        by = {cut.name: int(((veto & int(cut.bit)) != 0)[of].sum()) for cut in CUTS}
        found[name] = {"n": int(members.sum()), "hits": int(of.sum()), "vetoed": int((of & (veto != 0)).sum()),
                       "by": {cut: n for cut, n in by.items() if n}}
    trusted = hit & (table["q_value"] <= Q_LIMIT)
    n, false = int(trusted.sum()), int((trusted & ~(near & table["kind"].isin(SOURCES))).sum())
    allowed = Q_LIMIT * n + 2 * np.sqrt(Q_LIMIT * (1 - Q_LIMIT) * n)
    return {"groups": found, "q": {"limit": Q_LIMIT, "n": n, "false": false, "allowed": round(float(allowed), 1)}}


def _distance(table: pd.DataFrame) -> pd.Series:
    """Pixels between line_wave and the injected line."""
    return np.abs(pixel(table["line_wave"]) - pixel(table["true_wave"].fillna(1.0)))


def _groups(table: pd.DataFrame, distance: pd.Series, settings: Input) -> dict[str, tuple[pd.Series, pd.Series]]:
    """Name -> (spectra of the group, those of them that count if they are hits)."""
    kind, bright, near = table["kind"], table["true_snr"] >= BRIGHT_SNR, distance <= POSITION_PX
    lya = (kind == "lya") & bright & ~_masked(table["true_wave"].to_numpy(), table["z_lens"].to_numpy(), settings)
    skewed, oii = lya & (table["true_alpha"] >= SKEWED_ALPHA), kind == "oii"
    galaxy = ~kind.isin(["sky", "star", "crosstalk", "oii"])
    elsewhere = galaxy & ((distance > FAR_PX) | kind.isin(["clean", "lens_line"]))
    residual = elsewhere & _is_residual(table, settings)
    noise = elsewhere & ~residual
    return {
        f"lya, S/N >= {BRIGHT_SNR:g}, alpha >= {SKEWED_ALPHA:g}": (skewed, skewed & near),
        f"lya, S/N >= {BRIGHT_SNR:g}": (lya, lya & near),
        f"oii, S/N >= {BRIGHT_SNR:g}": (oii & bright,) * 2,
        "oii, another line": (oii, oii & (distance > FAR_PX)),
        "airglow": (kind == "airglow", (kind == "airglow") & near),
        "cosmic": (kind == "cosmic", (kind == "cosmic") & near),
        "crosstalk": (kind == "crosstalk",) * 2,
        "template residuals": (galaxy, residual),
        "strong lines, beside them": (kind == "lens_line", noise & (kind == "lens_line")),
        "noise peaks": (galaxy, noise),
        f"noise peaks, S/N >= {FAINTEST_SNR:g}": (galaxy, noise & (table["line_snr"] >= FAINTEST_SNR)),
    }


def _is_residual(table: pd.DataFrame, settings: Input) -> pd.Series:
    """Where a line that nobody injected is the galaxy's: within OWN_PX of one of OWN_LINES or of its mask, twice as far
    in spectra of strong lines, or where the catalogue's redshift is wrong, so that the template is."""
    wrong = ((table["z_lens"] - table["true_z"]).abs() / (1 + table["true_z"]) > WRONG_REDSHIFT).to_numpy()
    rest = pixel(table["line_wave"] / (1 + table["true_z"]))
    near = OWN_PX * np.where(table["kind"] == "lens_line", 2, 1)
    reach = [(line, near) for line in OWN_LINES]
    reach += [(line, near + settings.lens_line_half_width_px) for line in settings.lens_lines]
    return wrong | pd.Series(np.any([np.abs(rest - pixel(line)) <= px for line, px in reach], axis=0), table.index)


def vetting_summary(figures: dict[str, Any]) -> str:
    """`evaluate_vetting`'s figures as a table for people."""
    lines = ["vetting: spectra, hits, share of hits vetoed, hits that fail each cut"]
    for name, group in figures["groups"].items():
        share = f"{group['vetoed'] / group['hits']:.3f}" if group["hits"] else "-"
        by = ", ".join(f"{cut} {n}" for cut, n in group["by"].items())
        lines.append(f"  {name:<26}{group['n']:>7,}{group['hits']:>7,}{share:>7}  {by}")
    q = figures["q"]
    lines.append(f"  q_value <= {q['limit']:g}: {q['n']} hits, {q['false']} without a background source's line there "
                 f"(at most {q['allowed']:g} with 2 sigma)")
    return "\n".join(lines)


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
                     f"within {POSITION_PX:g} px whatever the score {at['placed_snr_8']}, "
                     f"rank correlation of score and S/N {at['rank_correlation']}")
        lines.append("  recall by S/N: " + ", ".join(
            f"{b['snr'][0]:g}-{b['snr'][1] or '':} {b['recall']:.3f} ({b['n']})" for b in at["recall"]))
        lines.append("  hits by kind: " + ", ".join(
            f"{kind} {k['hits']}/{k['n']}" for kind, k in at["kinds"].items()))
    return "\n".join(lines)
