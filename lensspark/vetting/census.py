"""The census: what the vetting must know of every spectrum of a ledger, counted in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from lensspark import arrow, schema
from lensspark.selection import text
from lensspark.store import Rows

GROUPS = ("fiberid", "plate", "mjd")
KINDS = ("null", "shifted", "sky")
FACTS = ("n_scored", *(f"n_{kind}{what}" for kind in KINDS for what in ("", "_hits", "_hits_snr_6")))
NULL_HIT = "null_hit"
_READ = (*GROUPS, "objtype", "p_line", "line_snr", "null_p_line", "null_snr", "shifted_p_line", "shifted_snr")
TALLY = schema.Table("tally", (
    schema.Column("what", "string", "one of FACTS, one of GROUPS, or NULL_HIT"),
    schema.Column("member", "long", "of GROUPS: which fibre, plate or night"),
    schema.Column("n", "long", "how many spectra"),
    schema.Column("null_p_line", "double", "of a NULL_HIT"),
    schema.Column("null_snr", "double", "of a NULL_HIT"),
))


@dataclass(frozen=True)
class Census:
    """`facts`: run.json's `nulls`; `null_hits`: null_p_line and null_snr of hits upside down; `scored`: of each of
    GROUPS the scored spectra by member."""

    facts: dict[str, int]
    null_hits: pd.DataFrame
    scored: dict[str, pd.Series]


def take(rows: Rows, threshold: float) -> Census:
    """The census of `rows`, scored ones or a ledger's; a hit has a p_line above `threshold`."""

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for some in arrow.at_once(batches):
            yield arrow.from_pandas(tally(some, threshold), TALLY)

    # Thirty conditional sums in one query take Spark's code generator seconds, and numpy none.
    found = rows.map(count, TALLY.ddl, _READ).toArrow().to_pandas()
    parts = {name: found[found["what"] == name] for name in (*FACTS, *GROUPS, NULL_HIT)}
    return Census({name: int(parts[name]["n"].sum()) for name in FACTS}, parts[NULL_HIT][["null_p_line", "null_snr"]],
                  {by: parts[by].astype({"member": int}).groupby("member")["n"].sum() for by in GROUPS})


def tally(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """TALLY of some rows of a ledger."""
    facts = pd.DataFrame({"what": FACTS, "n": counted(rows, threshold)})
    scored = rows["p_line"].notna()
    groups = [rows.loc[scored, by].value_counts().rename_axis("member").reset_index(name="n").assign(what=by)
              for by in GROUPS]
    # Of sky fibres that are not selected the null is the spectrum itself: it is not upside down.
    hits = rows.loc[scored & (rows["null_p_line"] > threshold), ["null_p_line", "null_snr"]].assign(what=NULL_HIT, n=1)
    return pd.concat([facts, *groups, hits])[list(TALLY.names)]


def counted(rows: pd.DataFrame, threshold: float) -> np.ndarray:
    """FACTS of `rows`: how many are scored; and of each of KINDS how many, its hits, and its hits of S/N 6 and up.

    null: searched upside down; shifted: redwards of the window; sky: sky fibres, selected or not.
    """
    scored = rows["p_line"].notna()
    sky_snr = rows["line_snr"].where(scored, rows["null_snr"])
    sky = text(rows["objtype"]) == "SKY"
    searched = {"null": (scored, rows["null_p_line"], rows["null_snr"]),
                "shifted": (True, rows["shifted_p_line"], rows["shifted_snr"]),
                "sky": (sky, rows["p_line"].fillna(rows["null_p_line"]), sky_snr)}
    found = [scored.sum()]
    for kind in KINDS:
        among, p, snr = searched[kind]
        hit = among & (p > threshold)
        found += [(among & p.notna()).sum(), hit.sum(), (hit & (snr >= 6)).sum()]
    return np.array(found, np.int64)
