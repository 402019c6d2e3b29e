"""The report page: complete, self-contained, harmless with hostile text, and drawn where the numbers say."""

import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from lensspark import catalogue, config, report, schema, svg

CONFIGURATION = config.load([], ["score.threshold=0.5"]).as_dict()
WAVE = 10 ** (3.5798 + 1e-4 * np.arange(1192))
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}../../etc"


def made(n, **changes):
    """`n` candidates and their spectra: a flat galaxy, noise and a Gaussian line."""
    rng = np.random.default_rng(n)
    rows, spectra = [], {}
    for i in range(n):
        line = rng.uniform(3850, 4950)
        ra, dec = rng.uniform(0, 360), rng.uniform(-10, 60)
        row = dict.fromkeys(schema.CANDIDATES.names)
        row.update(name=catalogue.iau_name(ra, dec).item(), rank=i + 1, plate=3600 + i, mjd=55200, fiberid=i % 1000,
                   run2d="v5_7_0", ra=ra, dec=dec, z_lens=rng.uniform(0.3, 0.7), p_line=rng.uniform(0.5, 1),
                   line_wave=line, line_snr=rng.uniform(6, 30), line_flux=20.0, line_flux_err=1.5, line_peak=4.0)
        row.update(changes)
        sigma = np.where(rng.random(WAVE.size) < 0.02, np.nan, 0.6)
        flux = 2 + 0.6 * rng.normal(size=WAVE.size) + 4 * np.exp(-0.5 * ((WAVE - line) / 2) ** 2)
        spectra[tuple(row[c.name] for c in schema.KEY)] = {
            "wave": WAVE, "flux": flux, "sigma": sigma, "model": np.full(WAVE.size, 2.0),
            "heat": (WAVE[::4], np.exp(-0.5 * ((WAVE[::4] - line) / 6) ** 2)),
        }
        rows.append(row)
    return rows, spectra


def card(n_candidates, n_hits=100, n_scored=900, **facts):
    counts = {"n_input": 1003, "n_quarantined": 3, "n_not_selected": 1000 - n_scored, "n_scored": n_scored,
              "n_hits": n_hits, "n_non_hits": n_scored - n_hits, "n_candidates": n_candidates,
              "n_vetoed": n_hits - n_candidates}
    cuts = [{"name": "line_snr", "phrase": "matched-filter S/N at least 6", "failed": 44, "left": n_hits - 44},
            {"name": "line_hits", "phrase": "line-like peaks at most 5", "failed": 12, "left": n_candidates}]
    funnel = {"counts": counts, "not_selected": {"class": 60, "z_min": 40}, "cuts": cuts}
    return catalogue.run_card(funnel, CONFIGURATION, "ab" * 32, "cd" * 32, {"score": 12.5}, **facts)


class Page(HTMLParser):
    """Counts of elements, all attributes and the visible text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = {}, [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("kind", ["dicts", "pandas"])
def test_page_shows_every_candidate_and_loads_nothing(tmp_path, kind):
    rows, spectra = made(3)
    path = tmp_path / "report" / "index.html"
    report.write_report(str(path), rows if kind == "dicts" else pd.DataFrame(rows), spectra, card(3))
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert page.tags["article"] == 3 and page.tags["script"] == 1
    assert page.tags["svg"] == 2 + 3 + 2 * 3  # two funnels, three histograms, two plots each
    for row in rows:
        assert text.count(row["name"]) == 2  # table and dossier
        assert f"{row['line_wave']:.1f} Å" in text and f"{row['line_wave'] / 1215.67 - 1:.4f}" in text
    assert "20.0 ± 1.5" in text and "1,003" in text and "1,241,799" in text
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "data", "action", "xlink:href")]
    assert all(value.startswith("#c") for _, name, value in page.attributes if name == "href")
    assert not re.search(r"https?://|@import|url\(", path.read_text(encoding="utf-8"))
    assert {f"c{row['rank']}" for row in rows} <= {value for _, name, value in page.attributes if name == "id"}


def test_hostile_text_stays_text():
    rows, spectra = made(1, name=HOSTILE, subclass=HOSTILE, known_lens=HOSTILE, run2d=HOSTILE)
    page = Page(report.render(rows, spectra, card(1, spectra=HOSTILE) | {"run_id": HOSTILE}))
    assert page.tags["script"] == 1 and "img" not in page.tags
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on")]
    assert "".join(page.text).count("{{ 7*7 }}") >= 6  # shown as it is, never evaluated
    broken = card(1)
    broken["funnel"]["cuts"][0]["phrase"] = HOSTILE
    broken["funnel"]["not_selected"] = {HOSTILE: 1}
    page = Page(report.render(rows, spectra, broken))
    assert page.tags["script"] == 1 and "img" not in page.tags


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"n_scored": 0, "n_hits": 0}, "no spectrum was scored. Not selected, by first failing criterion: class (60)"),
    ({"n_hits": 0}, "none of the 900 scored spectra has p_line above 0.5"),
    ({}, "none of the 100 hits passes every cut. Most fail “matched-filter S/N at least 6” (44)"),
])
def test_no_candidates_is_explained(changes, sentence):
    page = Page(report.render([], {}, card(0, **changes)))
    assert sentence in " ".join(page.text)
    assert "article" not in page.tags and "table" not in page.tags


def test_what_was_not_measured_is_left_out():
    rows, _ = made(1, line_wave=float("nan"), z_lens=None, line_flux_err=pd.NA, line_snr=np.float64("nan"))
    text = " ".join(Page(report.render(rows, {}, card(1))).text)
    assert "No usable spectrum at hand" in text
    assert not re.search(r"\bnan\b|None|NA>", text.split("Run")[0])


def test_integers_with_nulls_stay_integers():
    rows, _ = made(2)
    rows[0]["n_repeat"] = 2
    text = " ".join(Page(report.render(pd.DataFrame(rows).astype({"n_repeat": "f8"}), {}, card(2))).text)
    assert re.search(r"n repeat\s+2\s", text)


def test_unusable_spectra_do_not_break_the_page():
    rows, spectra = made(4)
    spectra = list(spectra.items())
    spectra[0][1]["sigma"] = np.full(WAVE.size, np.nan)
    spectra[1][1]["model"] = np.full(WAVE.size, np.nan)
    spectra[2][1]["flux"] = np.full(WAVE.size, 1.0)
    rows[3]["line_wave"] = 6000.0  # outside the window
    html = report.render(rows, dict(spectra), card(4))
    assert "nan" not in "".join(re.findall(r'\bd="([^"]*)"', html))
    assert Page(html).tags["svg"] == 5 + 0 + 2 + 2 + 1


def test_the_line_is_drawn_where_it_is():
    """Read back from the SVG: the highest point of the zoom's flux is at the marker."""
    rows, spectra = made(1)
    (spectrum,) = spectra.values()
    spectrum["flux"] = 2 + 40 * np.exp(-0.5 * ((WAVE - rows[0]["line_wave"]) / 2) ** 2)
    spectrum["sigma"] = np.ones(WAVE.size)
    zoom = re.findall(r"<svg.*?</svg>", report.render(rows, spectra, card(1)), flags=re.S)[-1]
    marker = float(re.search(r'class="hit" d="M([\d.]+)', zoom)[1])
    numbers = [int(n) for n in re.findall(r"-?\d+", re.search(r'class="flux"[^>]* d="([^"]+)"', zoom)[1])]
    x, y = np.cumsum(np.reshape(numbers, (-1, 2)), axis=0).T / 10
    pixel = 378 / (2 * report.ZOOM_PX + 1)
    assert abs(x[y == y.min()].mean() - marker) < pixel


def test_overview_bins_by_inverse_variance():
    wave = np.arange(4000.0, 4008.0)
    flux, sigma = np.array([1, 3, 1, 4, 1, 9, 9, 9.0]), np.array([1, 1, 1, 2, 1, np.nan, np.nan, np.nan])
    x, mean, error = report.rebin(wave, flux, sigma, 2)
    np.testing.assert_allclose(x, [4000.5, 4002.5, 4004.5, 4006.5])
    np.testing.assert_allclose(mean, [2, 1.6, 1, np.nan])
    np.testing.assert_allclose(error, [0.5**0.5, 0.8**0.5, 1, np.nan])


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.5, 1]), (3800, 5000, [3800, 4000, 4200, 4400, 4600, 4800, 5000]), (-1.3, 2.2, [-1, 0, 1, 2]),
])
def test_ticks_are_round_numbers_inside(low, high, expected):
    got = svg.ticks(low, high, {1: 2, 5000: 6, 2.2: 4}[high])
    np.testing.assert_allclose(got, expected)


def test_lines_break_at_gaps():
    frame = svg.Frame((0, 9), (0, 1), 100, 100)
    y = np.array([0, 1, np.nan, 1, 1, 0, np.nan, np.nan, 1, np.nan])
    assert svg.runs(np.isfinite(y)) == [slice(0, 2), slice(3, 6), slice(8, 9)]
    assert frame.line(np.arange(10.0), y, "flux").count("M") == 3


def test_500_candidates_are_fast_and_light():
    rows, spectra = made(500)
    start = time.perf_counter()
    html = report.render(rows, spectra, card(100, n_hits=100))
    assert time.perf_counter() - start < 30  # about 1 s
    assert len(html.encode()) < 20e6  # about 12 MB


def test_sorting_in_a_browser(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on PATH")
    rows, spectra = made(12)
    rows[4]["line_snr"] = None
    clicks = """<script>
      const button = document.querySelectorAll("#candidates th button")[6];
      const column = () => [...document.querySelectorAll("#candidates tbody tr")].map(r => r.cells[6].textContent);
      const seen = [];
      for (let i = 0; i < 2; i++) { button.click(); seen.push(column().join(" ")); }
      document.title = seen.join("|");
    </script></body>"""
    page = tmp_path / "index.html"
    page.write_text(report.render(rows, spectra, card(12)).replace("</body>", clicks), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    up, down = (column.split(" ") for column in re.search("<title>(.*?)</title>", done.stdout)[1].split("|"))
    values = [f"{row['line_snr']:.1f}" for row in rows if row["line_snr"] is not None]
    assert up == [*sorted(values, key=float), ""]
    assert down == [*sorted(values, key=float, reverse=True), ""]  # what was not measured stays last
