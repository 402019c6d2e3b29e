"""The page of a comparison: what changed, why, and what differs between the runs; self-contained, as the report is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import escape

from lensspark import schema, svg
from lensspark.compare.facts import shown
from lensspark.report import dossier, html

MAX_ROWS = 2000  # on the page; 1.7 MB
FATES = ("kept", "appeared", "vanished", "moved")
# Columns of the table: schema.CHANGES' own, or one that both sides have.
SHOWN = ("plate", "mjd", "fiberid", "run2d", "candidate", "hit", "moved", "cause", "proven", "why", "p_line",
         "line_wave", "line_snr", "z_lens", "veto")
WORDS = {"appeared": "new", "vanished": "gone"}  # -> CSS class
_COLUMNS = {column.name: column for column in schema.CHANGES.columns}


def render(table: pd.DataFrame, facts: Mapping[str, Any], causes: Mapping[str, str]) -> str:
    """The page's HTML. `table`: schema.CHANGES; `facts`: the content of compare.json; `causes`: name -> explanation."""
    rows = table.head(MAX_ROWS).to_dict("records")
    return html.render(
        "compare.html", html.template("compare.js"), html.template("report.css") + html.template("compare.css"),
        facts=facts, fates=FATES, bars=bars(facts["causes"], causes), differing=differing(facts), n=len(table),
        head=[_heading(name) for name in SHOWN], rows=[[_cell(row, name) for name in SHOWN] for row in rows],
        clean=_clean)


def bars(found: Mapping[str, Mapping[str, int]], causes: Mapping[str, str]) -> Any:
    """Changes by first cause, the proven ones in colour."""
    most, row, label = max([n["n"] for n in found.values()], default=1), 24, 130
    parts = []
    for i, (name, n) in enumerate(found.items()):
        y, full, part = i * row, 330 * n["n"] / most, 330 * n["proven"] / most
        parts.append(f'<text x="{label - 10}" y="{y + 16}" class="e">{escape(name.replace("_", " "))}</text>'
                     f'<rect class="b all" x="{label}" y="{y + 4}" width="{full:.1f}" height="16" rx="2"/>'
                     f'<rect class="b" x="{label}" y="{y + 4}" width="{part:.1f}" height="16" rx="2"/>'
                     f'<text x="{label + full + 8:.1f}" y="{y + 16}" class="s">{n["n"]:,} '
                     f'<tspan class="m">{escape(causes.get(name, ""))}</tspan></text>')
    return svg.draw(1240, max(len(found), 1) * row + 4, "".join(parts), "changes by cause")


def differing(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What differs between the runs, as (name, in A, in B) for people."""
    found = facts["differences"]
    whole = {"model": "sha256 of the model", "input": "sha256 of the list of input files",
             "grades": "sha256 of the grades"}
    rows = [(label, *found[name]) for name, label in whole.items() if found[name]]
    rows += [(name, *pair) for name, pair in found["configuration"].items()]
    rows += [(f"version of {name}", *pair) for name, pair in found["versions"].items()]
    return [tuple(_clean(part) for part in row) for row in rows]


def _clean(value: Any) -> str:
    return dossier.clean(shown(value))


def _heading(name: str) -> dict[str, Any]:
    column = _COLUMNS.get(name) or _COLUMNS[f"{name}_a"]
    title = column.description if name in _COLUMNS else column.description.removesuffix("; in run A")
    words = column.type == "string" or name in ("proven", "veto")
    return {"label": name.replace("_", " "), "title": f"{name}: {title}", "text": words}


def _cell(row: Mapping[str, Any], name: str) -> dict[str, str]:
    """One cell: the value, or both sides' values where they differ as printed."""
    if name in _COLUMNS:
        value = {True: "yes", False: "no"}.get(row[name], row[name]) if name == "proven" else row[name]
        text = "" if value is None else dossier.clean(str(value), 2000 if name == "why" else dossier.MAX_TEXT)
        css = {"why": "text why"}.get(name) or ("text" if isinstance(value, str) else "")
        return {"text": text, "sort": text[:80], "css": f"{css} {WORDS.get(text, '')}".strip()}
    a, b = ("–" if row[f"{name}_{side}"] is None else dossier.number(row[f"{name}_{side}"], name) for side in "ab")
    return {"text": a if a == b else f"{a} → {b}", "sort": b if b != "–" else a, "css": ""}
