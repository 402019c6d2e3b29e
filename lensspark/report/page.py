"""The report: one self-contained HTML page with run facts, funnel, plots, candidates and a dossier of each.

Texts go through the template's autoescape, or as JSON to a script that makes text nodes of them. The content security
policy allows one style and one script, by hash, and nothing from anywhere; no HTML may be made from strings.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lensspark import grades, schema
from lensspark.catalogue import write_file
from lensspark.lines import LYA
from lensspark.report import dossier, html, plots

if TYPE_CHECKING:
    from lensspark.report.blind import Blind

ZOOM_PX = 40  # pixels on each side of the line: 2760 km/s
SCRIPTS = ("plot.js", "dossier.js", "grades.js", "page.js")
TABLE = ("rank", "name", "z_lens", "z_source", "p_line", "line_wave", "line_snr", "line_flux", "line_peak", "alpha",
         "p_skew_positive", "sn_oii_veto", "p_lya", "theta_e", "n_repeat_confirmed", "q_value", "known_lens", "mag_i",
         "plate", "mjd", "fiberid", "ra", "dec")
_ALWAYS = frozenset(TABLE[:7])


def write_report(path: str, candidates: Any, spectra: Mapping[tuple, Mapping[str, Any]], run_card: Mapping[str, Any],
                 hits: pd.DataFrame | None = None, blind: Blind | None = None,
                 bins: pd.DataFrame | None = None) -> None:
    """Writes the page to `path`, a local path or fsspec URL.

    `candidates`: pandas DataFrame or list of dicts with schema.CANDIDATES' columns, in rank order. `spectra`:
    (plate, mjd, fiberid, run2d) -> arrays of one length: `wave` (vacuum Angstrom, rising, logarithmic), `flux`, `sigma`
    (NaN where unusable) and `model` in 1e-17 erg/s/cm2/A; optional `heat` = (wave, network attention), `fit` (of
    measure.line_curves), `companions` (of measure.companions), `others` = list of spectra with `label` and `kind`
    (neighbour or repeat). A candidate without a spectrum gets its numbers alone. `run_card`: as catalogue.run_card
    makes it. `hits`: line_wave, z_lens, veto of all hits, for the histograms. `blind`: fakes to mix in.
    `bins`: schema.OVERDENSITY of the run.
    """
    write_file(path, render(candidates, spectra, run_card, hits, blind, bins).encode())


def render(candidates: Any, spectra: Mapping[tuple, Mapping[str, Any]], run_card: Mapping[str, Any],
           hits: pd.DataFrame | None = None, blind: Blind | None = None, bins: pd.DataFrame | None = None) -> str:
    """The page's HTML; see `write_report`."""
    rows = _rows(candidates)
    if hits is None:
        hits = pd.DataFrame([{"veto": 0, **{name: row[name] for name in ("line_wave", "z_lens")}} for row in rows],
                            columns=["line_wave", "z_lens", "veto"])
    key: list[dict[str, Any]] = []
    if blind is not None:
        rows, key = mix(rows, _rows(blind.rows), blind.key)
        spectra = {**spectra, **blind.spectra}
    cuts, lines = run_card["funnel"]["cuts"], run_card["configuration"]["input"]
    table = [name for name in TABLE if name in _ALWAYS or any(row.get(name) not in (None, "") for row in rows)]
    return html.render(
        "report.html", _script(_facts(run_card, rows, key)), html.template("report.css"),
        card=run_card, counts=run_card["counts"], funnel=plots.funnel(run_card), n_fakes=len(key),
        plots=plots.summary(rows, hits, run_card["funnel"].get("overdensity") or {}, lines["sky_lines"]),
        overdensities=[] if bins is None else plots.overdensities(
            bins, run_card["configuration"]["vetting"]["max_overdensity"]),
        groups=[] if bins is None else plots.flagged_groups(bins),
        nothing=None if rows else _why_nothing(run_card), head=[dossier.heading(name) for name in table],
        table=[[_cell(row, name) for name in table] for row in rows], rows=rows, clean=dossier.clean,
        dossiers=[html.to_json(dossier.payload(row, spectra.get(_key(row)), cuts)) for row in rows],
        grades=grades.GRADES,
    )


def _rows(candidates: Any) -> list[dict[str, Any]]:
    rows = candidates.to_dict("records") if hasattr(candidates, "to_dict") else list(candidates)
    rows = [{name: _null(row.get(name), column.type) for name, column in dossier.COLUMNS.items()} for row in rows]
    for row in rows:
        if row["z_source"] is None and row["line_wave"] is not None:
            row["z_source"] = row["line_wave"] / LYA - 1
    return rows


def _null(value: Any, kind: str) -> Any:
    """None for None, NaN, inf, NA and NaT; else Python's own type (pandas turns integers with nulls to floats)."""
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return int(value) if kind in ("int", "long") else value


def _key(row: Mapping[str, Any]) -> tuple:
    return tuple(row[column.name] for column in schema.KEY)


def mix(rows: list[dict[str, Any]], fakes: list[dict[str, Any]], key: pd.DataFrame
        ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Candidates and fakes in one order, ranked anew, and the fakes' index, S/N and wavelength in it.

    A column that no fake has a value in is emptied for all: it would tell the fakes by its absence.
    """
    hidden = [name for name in dossier.COLUMNS if all(row[name] is None for row in fakes)] if fakes else []
    truth = {tuple(getattr(row, name) for name in grades.KEY): row for row in key.itertuples(index=False)}
    mixed = [{**row, **dict.fromkeys(hidden)} for row in rows] + fakes
    mixed.sort(key=lambda row: (-(row["p_line"] or 0), -(row["line_snr"] or 0), _key(row)))
    mixed = [{**row, "rank": rank} for rank, row in enumerate(mixed, start=1)]
    told = [{"index": i, "snr": round(truth[_key(row)].line_snr, 3), "wave": round(truth[_key(row)].line_wave, 2)}
            for i, row in enumerate(mixed) if _key(row) in truth]
    return mixed, told


def _facts(card: Mapping[str, Any], rows: list[dict[str, Any]], key: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page's script knows of the run as a whole. The fakes' key is only out of sight, not secret."""
    lines = card["configuration"]["input"]
    edges = [None if edge == float("inf") else edge for edge in grades.SNR_EDGES]
    return {
        "run_id": str(card["run_id"]), "keys": [_key(row) for row in rows], "fields": dossier.fields(),
        "cuts": [dossier.clean(str(cut["phrase"])) for cut in card["funnel"]["cuts"]], "zoom_px": ZOOM_PX,
        "sky": [*lines["sky_lines"], *(wave for _, wave in dossier.SKY_LINES if wave > dossier.RED_SKY)],
        "grades": grades.GRADES, "found": grades.FOUND, "max_comment": grades.MAX_COMMENT, "snr_edges": edges,
        "blind": base64.b64encode(json.dumps(key).encode()).decode() if key else None,
    }


def _script(facts: Mapping[str, Any]) -> str:
    """The page's one script. `<` only occurs in it as an operator: never as the beginning of an end tag."""
    return "\n".join([f"const PAGE = {html.to_json(facts)};", *map(html.template, SCRIPTS)])


def _cell(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = row[name]
    text = "" if value is None else dossier.number(value, name)
    return {"name": name, "sort": "" if value is None else dossier.clean(str(value)), "text": text}


def _why_nothing(card: Mapping[str, Any]) -> str:
    counts, threshold = card["counts"], card["configuration"]["score"]["threshold"]
    if not counts["n_scored"]:
        reasons = ", ".join(f"{name} ({n:,})" for name, n in card["funnel"]["not_selected"].items()) or "none read"
        return f"No candidates: no spectrum was scored. Not selected, by first failing criterion: {reasons}."
    if not counts["n_hits"]:
        return (f"No candidates: none of the {counts['n_scored']:,} scored spectra has p_line above {threshold:g}. "
                "A lower score.threshold gives more hits, and more false ones.")
    worst = max(card["funnel"]["cuts"], key=lambda cut: cut["failed"])
    return (f"No candidates: none of the {counts['n_hits']:,} hits passes every cut. Most fail "
            f"“{worst['phrase']}” ({worst['failed']:,}). The ledger holds them all with the bits that they failed; "
            "other limits in [vetting] cut it again.")
