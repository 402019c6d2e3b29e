"""Grades that people give on the report page: the CSV file they come in, and how many injected fakes people find.

    plate,mjd,fiberid,run2d,grade,comment
    4055,55359,12,v5_7_0,A,"red wing, no [OIII]"

A certain, B probable, C possible, R rejected. A row with an empty grade carries a comment alone.
"""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pandas as pd

KEY = ("plate", "mjd", "fiberid", "run2d")
COLUMNS = (*KEY, "grade", "comment")
GRADES = {"A": "certain", "B": "probable", "C": "possible", "R": "rejected"}
FOUND = ("A", "B")  # an injected fake that gets one of these counts as found
SNR_EDGES = (0.0, 8.0, 10.0, 12.0, 15.0, 20.0, math.inf)  # of completeness, in the S/N of the injected line
MAX_COMMENT = 2000  # characters


def read(path: str) -> pd.DataFrame:
    """The graded rows of a CSV file (local or fsspec URL) as `validate` returns them; rows with a comment alone go.

    Raises ValueError, naming file, row and value, for anything else than COLUMNS as the module describes them; OSError
    if the file cannot be read.
    """
    import fsspec

    try:
        with fsspec.open(path, "rt", encoding="utf-8-sig", newline="") as file:  # a spreadsheet may add a mark in front
            frame = parse(file.read())
    except ValueError as error:  # not UTF-8, or not as `parse` expects it
        raise ValueError(f"{path}: {error}") from error
    return frame[frame["grade"].notna()].reset_index(drop=True)


def parse(text: str) -> pd.DataFrame:
    """The rows of a CSV's `text`, checked: see `validate`. Raises ValueError for a row of another width too."""
    try:
        head, *rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row] or [[]]
    except csv.Error as error:
        raise ValueError(f"not a CSV table: {error}") from error
    head = [name.strip() for name in head]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(head):
            raise ValueError(f"row {number}: {len(row)} values; expected {len(head)} as in the header")
    return validate(pd.DataFrame(rows, columns=head, dtype=object))


def validate(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with COLUMNS alone: int64 plate, mjd, fiberid; str run2d, comment; grade str of GRADES or null.

    Other columns are ignored, grades may be lower case. Raises ValueError for a missing column, a number that is not a
    positive integer, an empty run2d, an unknown grade, a comment above MAX_COMMENT, or an object graded twice; it names
    the row as in the file, whose header is row 1.
    """
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"columns {missing} are missing; expected the header {','.join(COLUMNS)}")
    rows = [_row(number, record) for number, record in enumerate(frame[list(COLUMNS)].to_dict("records"), start=2)]
    first: dict[tuple, int] = {}
    for number, row in enumerate(rows, start=2):
        other = first.setdefault(row[:4], number)
        if other != number:
            raise ValueError(f"row {number}: {'-'.join(map(str, row[:4]))} is in row {other} too; expected one grade")
    types = dict.fromkeys(KEY[:3], "int64") | dict.fromkeys(("run2d", "grade", "comment"), object)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)


def _row(number: int, record: dict[str, Any]) -> tuple:
    texts = {name: "" if value is None or value != value else str(value).strip() for name, value in record.items()}
    for name in KEY[:3]:
        text = texts[name]
        if not (text.isascii() and text.isdecimal() and int(text[:10]) > 0 and len(text) <= 9):
            raise ValueError(f"row {number}: {name} = {text[:40]!r}; expected a positive whole number")
    if not texts["run2d"]:
        raise ValueError(f"row {number}: run2d is empty; expected the reduction's version, as v5_7_0")
    grade = texts["grade"].upper()
    if grade and grade not in GRADES:
        raise ValueError(f"row {number}: grade = {texts['grade'][:40]!r}; expected one of {', '.join(GRADES)}")
    if len(texts["comment"]) > MAX_COMMENT:
        raise ValueError(f"row {number}: comment of {len(texts['comment'])} characters; expected {MAX_COMMENT} at most")
    return (*(int(texts[name]) for name in KEY[:3]), texts["run2d"], grade or None, texts["comment"])


def completeness(grades: pd.DataFrame, key: pd.DataFrame, edges: tuple[float, ...] = SNR_EDGES) -> pd.DataFrame:
    """How many injected fakes an inspector found, by S/N of the injected line.

    grades: as `validate` returns them; key: RUN/report/blind_key.csv (KEY and `line_snr` at least), one row per fake.
    One row per bin [snr_low, snr_high) and one of all (snr_low 0, snr_high inf, last): n fakes, n_graded,
    n_A ... n_R, n_found (grades of FOUND), share = n_found / n_graded with its 68 % Wilson interval low-high; NaN where
    nothing was graded. Raises ValueError for a key without these columns.
    """
    missing = sorted({*KEY, "line_snr"} - set(key.columns))
    if missing:
        raise ValueError(f"columns {missing} are missing in the key of the fakes")
    given = {tuple(row[:4]): row[4] for row in grades[[*KEY, "grade"]].itertuples(index=False)}
    keys = key[list(KEY)].itertuples(index=False)
    fakes = pd.DataFrame({
        "snr": key["line_snr"].astype(float).to_numpy(),
        "grade": [given.get((int(k[0]), int(k[1]), int(k[2]), str(k[3]))) for k in keys],
    })
    bins = [(low, high) for low, high in zip(edges[:-1], edges[1:], strict=True)] + [(0.0, math.inf)]
    return pd.DataFrame([_bin(fakes, low, high) for low, high in bins])


def _bin(fakes: pd.DataFrame, low: float, high: float) -> dict[str, Any]:
    inside = fakes[(fakes["snr"] >= low) & (fakes["snr"] < high)]
    counts = {f"n_{grade}": int((inside["grade"] == grade).sum()) for grade in GRADES}
    graded, found = sum(counts.values()), sum(counts[f"n_{grade}"] for grade in FOUND)
    share, below, above = wilson(found, graded)
    return {"snr_low": low, "snr_high": high, "n": len(inside), "n_graded": graded, **counts, "n_found": found,
            "share": share, "low": below, "high": above}


def wilson(found: int, of: int) -> tuple[float, float, float]:
    """Share found/of with its 68.3 % score interval (Wilson 1927, J. Am. Stat. Assoc. 22, 209); NaN for of = 0."""
    if of == 0:
        return math.nan, math.nan, math.nan
    p = found / of
    centre, half = (p + 0.5 / of) / (1 + 1 / of), math.sqrt(p * (1 - p) / of + 0.25 / of**2) / (1 + 1 / of)
    return p, max(centre - half, 0.0), min(centre + half, 1.0)
