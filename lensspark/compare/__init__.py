"""Two finished runs side by side: which hits and candidates appeared, vanished or moved, and why.

`rows` joins the ledgers on the cluster and keeps what changed; `files` knows which input files did; `causes` decides,
without Spark, why; `page` shows it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from lensspark import catalogue, delta, run, schema
from lensspark.catalogue import join
from lensspark.compare import files, page, rows
from lensspark.compare.causes import CAUSES, explain
from lensspark.compare.facts import CutFacts, Differences
from lensspark.compare.page import FATES
from lensspark.compare.rows import Tolerance
from lensspark.promotion import products
from lensspark.report.dossier import clean
from lensspark.vetting import CUTS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

CUT_FACTS = tuple(CutFacts(int(cut.bit), cut.name, cut.columns, cut.shown or next(iter(cut.columns), ""),
                           f"vetting.{cut.threshold}" if cut.threshold else "", bool(cut.shown), cut.spares_known)
                  for cut in CUTS)


@dataclass(frozen=True)
class Plan:
    """What is compared, how closely, and where the products go; `places`: where those of both runs lie."""

    a: str
    b: str
    out: str
    places: tuple[str, str]
    cards: tuple[dict[str, Any], dict[str, Any]]
    tolerance: Tolerance


def plan(a: str, b: str, out: str | None, tolerance: Tolerance) -> Plan:
    """The comparison of the finished runs in `a` and `b`, into `out`, by default RUN_B/compare/<run_id of A>.

    Raises ValueError if one of them is no finished run or was changed after it, or if a tolerance is negative.
    """
    for name in ("wave_px", "p_line"):
        if not getattr(tolerance, name) >= 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(tolerance, name)}: expected 0 or more")
    places = products(a), products(b)  # once: card and tables are of one result, whatever takes its place meanwhile
    cards = tuple(map(run.finished_card, places))
    for place in places:
        delta.check_final(place)
    named = re.sub(r"[^\w-]", "_", str(cards[0]["run_id"]))[:64]
    return Plan(a, b, out or join(b, f"compare/{named}"), places, cards, tolerance)


def compare(spark: SparkSession, chosen: Plan) -> dict[str, Any]:
    """Writes changes.parquet, changes.ecsv, index.html and compare.json below `chosen.out`; the content of the last."""
    pair = rows.Pair.read(spark, *chosen.places)
    log.info("join ...")
    spectra, groups, changed = rows.tally(pair, chosen.tolerance)
    differences = Differences.between(*chosen.cards)
    log.info("%d changes: why ...", len(changed))
    table = explained(files.with_files(changed, chosen.places), differences)
    facts = summary(chosen, spectra, groups, table, differences)
    typed = catalogue.to_astropy(table, schema.CHANGES)
    catalogue.write_file(join(chosen.out, "changes.parquet"), catalogue.to_parquet(typed, schema.CHANGES))
    catalogue.write_file(join(chosen.out, "changes.ecsv"), catalogue.to_ecsv(typed))
    catalogue.write_file(join(chosen.out, "index.html"), page.render(table, facts, CAUSES).encode())
    catalogue.write_file(join(chosen.out, "compare.json"), (json.dumps(facts, indent=2) + "\n").encode())
    return facts


def explained(changed: pd.DataFrame, differences: Differences, cuts: Sequence[CutFacts] = CUT_FACTS) -> pd.DataFrame:
    """`changed` (of rows.tally) as schema.CHANGES, most important change first."""
    found = []
    for row in changed.to_dict("records"):
        told = explain(row, differences, cuts)
        a, b = (row[f"veto_{side}"] for side in "ab")
        both = a is not None and b is not None
        turned = {name: ", ".join(cut.name for cut in cuts if both and new & ~old & cut.bit)
                  for name, new, old in (("cuts_failed", b, a), ("cuts_passed", a, b))}
        found.append(row | turned | {"cause": told.cause, "proven": told.proven, "causes": ", ".join(told.causes),
                                     "why": told.why})
    table = pd.DataFrame(found, columns=[*schema.CHANGES.names], dtype=object)
    order = {name: i for i, name in enumerate(("vanished", "appeared", "kept"))}
    weight = [table[name].map(order).fillna(len(order)) for name in ("candidate", "hit")]
    key = [table[column.name] for column in schema.KEY]
    return table.iloc[pd.MultiIndex.from_arrays([*weight, *key]).argsort()].reset_index(drop=True)


def summary(chosen: Plan, spectra: dict[str, int], groups: pd.DataFrame, table: pd.DataFrame,
            differences: Differences) -> dict[str, Any]:
    """The content of compare.json. `groups`: of rows.tally."""
    by_cause = {name: table[table["cause"] == name] for name in CAUSES}
    return {
        **{side: _run(path, card) for side, path, card in zip("ab", (chosen.a, chosen.b), chosen.cards, strict=True)},
        "tolerance": {"wave_px": chosen.tolerance.wave_px, "p_line": chosen.tolerance.p_line},
        "spectra": spectra,
        **{f"{what}s": {fate: int(groups.loc[_fate(groups, what, fate), "n"].sum()) for fate in FATES}
           for what in ("hit", "candidate")},
        "causes": {name: _counts(part) for name, part in by_cause.items() if len(part)},
        "differences": {"configuration": differences.configuration, "model": differences.model,
                        "versions": differences.versions, "input": differences.input, "grades": differences.grades},
    }


def _fate(groups: pd.DataFrame, what: str, fate: str) -> pd.Series:
    return (groups[what] == "kept") & groups["is_moved"] if fate == "moved" else groups[what] == fate


def _counts(part: pd.DataFrame) -> dict[str, int]:
    found = {f"{what}s_{fate}": int((part[what] == fate).sum()) for what in ("hit", "candidate")
             for fate in ("appeared", "vanished")}
    return {"n": len(part), "proven": int(part["proven"].sum()), **found}


def _run(path: str, card: Mapping[str, Any]) -> dict[str, Any]:
    names = ("run_id", "parent_run_id", "spectra", "model", "model_sha256")
    return {"run": path, **{name: card.get(name) for name in names},
            "lensspark": card.get("versions", {}).get("lensspark"), "counts": card.get("counts")}


def text(facts: Mapping[str, Any]) -> str:
    """The content of compare.json as a table for people."""
    lines = [*(f"{side.upper()} {facts[side]['run']} ({facts[side]['run_id']})" for side in "ab"),
             "spectra: " + ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in facts["spectra"].items()),
             f"{'':12}" + "".join(f"{fate:>10}" for fate in FATES)]
    lines += [f"{what:12}" + "".join(f"{facts[what][fate]:>10,}" for fate in FATES) for what in ("hits", "candidates")]
    if facts["causes"]:
        lines.append(f"{'cause':16}{'changes':>9}{'proven':>8}")
        lines += [f"{name:16}{n['n']:>9,}{n['proven']:>8,}  {CAUSES[name]}" for name, n in facts["causes"].items()]
    differ = [*facts["differences"]["configuration"],
              *(name for name in ("model", "input", "grades") if facts["differences"][name]),
              *(f"version of {name}" for name in facts["differences"]["versions"])]
    return "\n".join(clean(line, 2000) for line in [*lines, f"differing: {', '.join(differ) or 'nothing'}"])
