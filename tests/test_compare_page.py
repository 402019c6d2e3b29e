"""The page of two runs in a browser: hostile text stays text, the table sorts and filters, nothing is loaded."""

import pandas as pd
import pytest
from test_report import HOSTILE

from lensspark import schema
from lensspark.compare import CAUSES, page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
from test_report_browser import browser, pytestmark, visit  # noqa: E402, F401

RUN = {"run": HOSTILE, "run_id": HOSTILE, "parent_run_id": HOSTILE, "model": HOSTILE, "model_sha256": HOSTILE,
       "lensspark": HOSTILE}


def made(n):
    """`n` changes, and the content of compare.json."""
    rows = []
    for i in range(n):
        row = dict.fromkeys(schema.CHANGES.names) | {
            "plate": 4000 + i, "mjd": 55000, "fiberid": 3 * i % 7, "run2d": HOSTILE, "hit": ("kept", "vanished")[i % 2],
            "candidate": (None, "vanished")[i % 2], "cause": "limit", "causes": "limit", "proven": True,
            "why": f"{HOSTILE} {i}", "p_line_a": 0.99, "p_line_b": None if i == 2 else 0.9 - 0.01 * i}
        rows.append(row)
    counts = dict.fromkeys(("kept", "appeared", "vanished", "moved"), n)
    return pd.DataFrame(rows, dtype=object), {
        "a": RUN, "b": RUN, "hits": counts, "candidates": counts, "spectra": {"both": 9, "only_a": 1, "only_b": 0},
        "tolerance": {"wave_px": 0.5, "p_line": 0.01}, "causes": {"limit": {"n": n, "proven": n}},
        "differences": {"configuration": {f"score.{HOSTILE}": [1, [HOSTILE]]}, "versions": {HOSTILE: [None, HOSTILE]},
                        "model": [HOSTILE, "b"], "input": None, "grades": None}}


def column(shown, place):
    return shown.eval_on_selector_all("#changes tbody tr:not([hidden])",
                                      f"rows => rows.map(row => row.cells[{place}].textContent)")


def test_the_table_sorts_and_filters(visit):  # noqa: F811
    shown = visit(page.render(*made(12), CAUSES))
    at, plates = page.SHOWN.index("p_line"), column(shown, 0)
    assert plates == [str(4000 + i) for i in range(12)]
    heading = shown.locator("#changes th button").nth(at)
    heading.click()
    rising = column(shown, at)
    assert rising[0] == "0.9900 → 0.7900" and rising == sorted(rising, key=lambda text: text.replace("–", "9")[9:])
    heading.click()
    assert column(shown, at) == rising[::-1]
    shown.fill("#filter", "VANISHED 4003")
    assert column(shown, 0) == ["4003"] and shown.locator("#filtered").text_content() == "1 of 12"
    shown.fill("#filter", "")
    assert len(column(shown, 0)) == 12
    assert "alert(1)" in shown.locator("#differing").inner_text()
    assert shown.locator("img").count() == 0 and shown.locator("script").count() == 1


def test_many_changes_are_cut_off_and_said_to_be():
    html = page.render(*made(page.MAX_ROWS + 5), CAUSES)
    assert html.count("<tr><td") == page.MAX_ROWS + 2 + 3 and "The first 2,000 of 2,005" in html
