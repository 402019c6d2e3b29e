"""The report page as text: complete, self-contained, harmless with hostile text, and its packed arrays true."""

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from lensspark import catalogue, config, lines, report, schema, svg, vetting
from lensspark.report import dossier, page, plots
from lensspark.report.blind import Blind

CONFIGURATION = config.load([], ["score.threshold=0.5"]).as_dict()
WAVE = 10 ** (3.5520 + 1e-4 * np.arange(4620))  # a BOSS spectrum's whole coverage
HOSTILE = ("</td></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }}../../etc\x00\x1b[31m\u202e"
           + "A" * 5000)
KEY = [column.name for column in schema.KEY]


def made(n, seed=None, **changes):
    """`n` candidates and their spectra: a flat galaxy, noise, a Gaussian line, its fit, a neighbour and a repeat."""
    rng = np.random.default_rng(n if seed is None else seed)
    rows, spectra = [], {}
    for i in range(n):
        line = rng.uniform(3850, 4950)
        ra, dec = rng.uniform(0, 360), rng.uniform(-10, 60)
        row = dict.fromkeys(schema.CANDIDATES.names)
        row.update(name=catalogue.iau_name(ra, dec).item(), rank=i + 1, plate=3600 + i, mjd=55200, fiberid=i % 1000 + 1,
                   run2d="v5_7_0", ra=ra, dec=dec, z_lens=rng.uniform(0.3, 0.7), line_wave=line,
                   p_line=1 - (i + rng.random()) / (2 * n), line_snr=rng.uniform(6, 30), line_flux=20.0,
                   line_flux_err=1.5, line_peak=4.0,
                   line_mask_fraction=0.0, n_line_hits=1, veto=0)
        row.update(changes)
        sigma = np.where(rng.random(WAVE.size) < 0.02, np.nan, 0.6)
        shape = 4 * np.exp(-0.5 * ((WAVE - line) / 2) ** 2)
        near = np.abs(np.log10(WAVE / line)) < 20.5e-4
        flux = 2 + 0.6 * rng.normal(size=WAVE.size) + shape
        beside = {"wave": WAVE[near], "flux": 0.6 * rng.normal(size=near.sum()), "sigma": np.full(near.sum(), 0.6)}
        spectra[tuple(row[name] for name in KEY)] = {
            "wave": WAVE, "flux": flux, "sigma": sigma, "model": np.full(WAVE.size, 2.0),
            "heat": (WAVE[300:1500:4], np.exp(-0.5 * ((WAVE[300:1500:4] - line) / 6) ** 2)),
            "fit": {"wave": WAVE[near], "residual": (flux - 2)[near], "sigma": sigma[near],
                    **dict.fromkeys(("skew", "gauss", "oii", "double"), shape[near])},
            "companions": {"oii/Ha": (6564.61 * line / np.mean(lines.OII), 5.2), "oii/Hb": (0.0, float("nan"))},
            "others": [{"label": f"{kind} {i}", "kind": kind, **beside} for kind in ("neighbour", "repeat")],
        }
        rows.append(row)
    return rows, spectra


def made_blind(n):
    """`n` fakes that look like the rows of `made`, on plates of their own."""
    rows, spectra = made(n, seed=1000)
    for row in rows:
        row["plate"] += 4000
    spectra = {(key[0] + 4000, *key[1:]): value for key, value in spectra.items()}
    key = pd.DataFrame([{name: row[name] for name in KEY} for row in rows])
    key["line_wave"], key["line_snr"] = [row["line_wave"] for row in rows], np.linspace(6, 25, n)
    return Blind(pd.DataFrame(rows), spectra, key)


def card(n_candidates, n_hits=100, n_scored=900, **facts):
    counts = {"n_input": 1003, "n_quarantined": 3, "n_not_selected": 1000 - n_scored, "n_scored": n_scored,
              "n_hits": n_hits, "n_non_hits": n_scored - n_hits, "n_candidates": n_candidates,
              "n_vetoed": n_hits - n_candidates}
    cuts = [{"name": "line_snr", "phrase": "matched-filter S/N at least 6", "failed": 44, "left": n_hits - 44},
            {"name": "line_hits", "phrase": "line-like peaks at most 5", "failed": 12, "left": n_candidates}]
    funnel = {"counts": counts, "not_selected": {"class": 60, "z_min": 40}, "cuts": cuts}
    return catalogue.run_card(funnel, CONFIGURATION, "ab" * 32, "cd" * 32, {"score": 12.5}, **facts)


class Page(HTMLParser):
    """Counts of elements, all attributes, the visible text, and the JSON of each dossier."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.scripts, self.inside = {}, [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += [(tag, *attr) for attr in attrs]
        self.inside = dict(attrs).get("type", "code") if tag == "script" else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.text.append(data)
        else:
            self.scripts.append((self.inside, data))

    @property
    def dossiers(self):
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]

    @property
    def facts(self):
        return json.loads(re.match(r"const PAGE = (.*);\n", self.code)[1])

    @property
    def code(self):
        (code,) = [text for kind, text in self.scripts if kind == "code"]
        return code


def halves(text):
    return np.frombuffer(base64.b64decode(text), "<f2").astype(float)


@pytest.mark.parametrize("kind", ["dicts", "pandas"])
def test_page_shows_every_candidate_and_loads_nothing(tmp_path, kind):
    rows, spectra = made(3)
    path = tmp_path / "report" / "index.html"
    report.write_report(str(path), rows if kind == "dicts" else pd.DataFrame(rows), spectra, card(3))
    found = Page(path.read_text(encoding="utf-8"))
    text = " ".join(found.text)
    assert found.tags["article"] == 3 == len(found.dossiers) and found.tags["script"] == 4
    assert found.tags["svg"] == 1 + 6  # the funnel and the small plots; the dossiers' are drawn when they are seen
    numbers = [field["name"] for field in found.facts["fields"]]
    for row, data in zip(rows, found.dossiers, strict=True):
        assert text.count(row["name"]) == 2  # table and dossier
        shown = dict(zip(numbers, data["texts"], strict=True))
        assert shown["line_wave"] == f"{row['line_wave']:.1f}" and shown["line_flux"] == "20.0 ± 1.5"
        assert shown["z_source"] == f"{row['line_wave'] / 1215.67 - 1:.4f}"
    assert "1,003" in text and "1,241,799" in text and "536" in text
    assert not [a for a in found.attributes if a[1] in ("src", "srcset", "data", "action", "xlink:href", "style")]
    assert all(value.startswith("#c") for _, name, value in found.attributes if name == "href")
    assert not re.search(r"https?://|@import|url\(", path.read_text(encoding="utf-8"))
    assert {f"c{row['rank']}" for row in rows} <= {value for _, name, value in found.attributes if name == "id"}


def test_the_policy_allows_this_script_and_style_alone():
    rows, spectra = made(1)
    html = report.render(rows, spectra, card(1))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for name, tag in (("script-src", "script"), ("style-src", "style")):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["require-trusted-types-for"] == "'script'" and rules["trusted-types"] == "'none'"
    code = Page(html).code
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(", code)


def test_hostile_text_stays_text():
    rows, spectra = made(1, name=HOSTILE, subclass=HOSTILE, known_lens=HOSTILE, run2d=HOSTILE)
    sound = Page(report.render(*made(1), card(1))).tags
    found = Page(report.render(rows, spectra, card(1, spectra=HOSTILE) | {"run_id": HOSTILE}))
    assert found.tags["script"] == sound["script"] and "img" not in found.tags
    assert not [attribute for attribute in found.attributes if attribute[1].startswith("on")]
    assert "".join(found.text).count("{{ 7*7 }}") >= 5  # shown as it is, never evaluated
    broken = card(1)
    broken["funnel"]["cuts"][0].update(phrase=HOSTILE, name=HOSTILE)
    broken["funnel"]["not_selected"] = {HOSTILE: 1}
    found = Page(report.render(rows, spectra, broken))
    assert found.tags["script"] == sound["script"] and "img" not in found.tags
    assert found.facts["keys"][0][3] == HOSTILE  # a key stays what it is, or the grades would not find their row


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"n_scored": 0, "n_hits": 0}, "no spectrum was scored. Not selected, by first failing criterion: class (60)"),
    ({"n_hits": 0}, "none of the 900 scored spectra has p_line above 0.5"),
    ({}, "none of the 100 hits passes every cut. Most fail “matched-filter S/N at least 6” (44)"),
])
def test_no_candidates_is_explained(changes, sentence):
    found = Page(report.render([], {}, card(0, **changes)))
    assert sentence in " ".join(found.text)
    assert "article" not in found.tags and "table" not in found.tags


def test_what_was_not_measured_is_left_out():
    rows, _ = made(1, line_wave=float("nan"), z_lens=None, line_flux_err=pd.NA, line_snr=np.float64("inf"))
    found = Page(report.render(rows, {}, card(1)))
    (data,) = found.dossiers
    shown = dict(zip([field["name"] for field in found.facts["fields"]], data["texts"], strict=True))
    assert shown["line_wave"] is shown["z_lens"] is shown["line_snr"] is shown["alpha"] is None
    assert shown["line_flux"] == "20.0" and "spectrum" not in data
    assert not re.search(r"\bnan\b|\binf\b|None|NA>", " ".join(found.text).split("Run")[0])


def test_integers_with_nulls_stay_integers():
    rows, _ = made(2)
    rows[0]["n_repeat"] = 2
    found = Page(report.render(pd.DataFrame(rows).astype({"n_repeat": "f8"}), {}, card(2)))
    place = [field["name"] for field in found.facts["fields"]].index("n_repeat")
    assert [data["texts"][place] for data in found.dossiers] == ["2", None]


def test_optional_pieces_are_absent_where_the_data_lack_them():
    rows, spectra = made(4)
    spectra = list(spectra.items())
    spectra[0][1]["sigma"] = np.full(WAVE.size, np.nan)
    spectra[1][1]["model"] = np.full(WAVE.size, np.nan)
    for name in ("fit", "others", "companions", "heat"):
        del spectra[2][1][name]
    rows[3]["line_wave"] = None
    first, second, third, fourth = Page(report.render(rows, dict(spectra), card(4))).dossiers
    assert "spectrum" not in first and "model" not in second["spectrum"] and "fit" in second
    assert not {"fit", "others", "heat"} & set(third) and "model" in third["spectrum"]
    assert [strip["kind"] for strip in fourth["identities"]] == ["lens", "sky"] and "others" not in fourth


def test_packed_arrays_are_what_they_were():
    rng = np.random.default_rng(3)
    flux, sigma = rng.normal(0, 30, 999), np.exp(rng.normal(0, 2, 999))
    flux[3], sigma[7], sigma[8] = np.nan, np.nan, 0.0
    wave = 10 ** (3.56 + 1e-4 * np.arange(999))
    packed = dossier.pack({"wave": wave, "flux": flux, "sigma": sigma, "model": flux})
    np.testing.assert_allclose(halves(packed["flux"]), flux, rtol=6e-4, atol=1e-6)
    np.testing.assert_allclose(halves(packed["model"]), flux[::2], rtol=6e-4, atol=1e-6)
    code = np.frombuffer(base64.b64decode(packed["sigma"]), "u1")
    assert code[7] == code[8] == 0 and (np.delete(code, [7, 8]) > 0).all()
    np.testing.assert_allclose(1e-3 * 2 ** ((np.delete(code, [7, 8]) - 1) / 12), np.delete(sigma, [7, 8]), rtol=0.03)
    start, step = packed["grid"]
    np.testing.assert_allclose(10 ** (start + step * np.arange(999)), wave, rtol=1e-8)
    assert np.isfinite(halves(dossier.half([1e9, -1e300]))).all()


def test_identities_are_at_the_right_redshifts():
    measured = {"oii/Ha": (6564.61 * 4200 / np.mean(lines.OII), 5.2), "oii/Hb": (1.0, float("nan"))}
    strips = {strip["id"]: strip for strip in dossier.identity_strips(4200.0, 0.5, {"p_lya": 0.87}, measured)}
    assert list(strips) == ["lens", "lya", "civ", "ciii", "mgii", "oii", "sky"]  # Hb and [OIII] would be blueshifted
    assert strips["lya"]["note"] == f"z {4200 / 1215.67 - 1:.3f} · 87 %"
    for name, strip in strips.items():
        own = [line for line in strip["lines"] if line.get("self")]
        assert len(own) == (name not in ("lens", "sky")) and all(line["wave"] == 4200 for line in own)
    halpha = next(line for line in strips["oii"]["lines"] if line["name"] == "Hα")
    assert halpha["snr"] == 5.2 and halpha["wave"] == pytest.approx(6564.61 * 4200 / 3728.485, abs=0.01)
    assert not any("snr" in line for line in strips["lya"]["lines"])
    assert {line["name"]: line["wave"] for line in strips["lens"]["lines"]}["Ca H"] == pytest.approx(3969.59 * 1.5)


@pytest.mark.parametrize(("value", "error", "text"), [
    (21.5512, 0.911, "21.55 ± 0.91"), (4763.7123, 0.0321, "4763.712 ± 0.032"), (218.3, 31.2, "218 ± 31"),
    (3.2, 0.0, "3.2"), (1.5, 1e-12, "1.500000 ± 0.000000"), (123456.7, 1234.5, "123457 ± 1234"),
])
def test_errors_set_the_decimals(value, error, text):
    assert dossier.with_error(value, error) == text


def test_verdicts_say_which_cut_failed_and_what_was_measured():
    rows, _ = made(1, veto=int(vetting.Veto.LINE_HITS), n_line_hits=9)
    (found,) = Page(report.render(rows, {}, card(1))).dossiers
    assert found["verdicts"] == [[1, f"{rows[0]['line_snr']:.1f}"], [0, "9"]]


def test_verdicts_show_what_the_limit_is_about():
    row = {"veto": int(vetting.Veto.NEIGHBOUR), "profile_chi2": 31.0, "dchi2_spike": -4.25, "n_neighbour": 4,
           "neighbour_ratio": 9.9, "n_repeat": 2, "repeat_tension": 1.5}
    cuts = [{"name": name} for name in ("cosmic_ray", "neighbour", "repeat", "human", "no_longer_a_cut")]
    assert dossier.verdicts(row, cuts) == [(1, "-4.2"), (0, "9.9"), (1, "1.5"), (1, None), (1, None)]
    assert dossier.verdicts(row | {"n_repeat": 0, "repeat_tension": None}, cuts[2:3]) == [(1, None)]
    columns = {column.name for column in schema.LEDGER.columns}
    assert all({cut.shown or cut.columns[0]} <= columns for cut in vetting.CUTS if cut.columns)


def test_the_funnel_names_the_reference_once_per_kind_of_cut():
    text = "".join(Page(str(plots.funnel(card(5)))).text)
    assert text.count("1,241,799") == text.count("536 new hits") == text.count("of 536: inspection") == 1
    assert "44" in text and "of 21" not in text  # this run has no [OII] cut to compare


def test_the_histogram_of_hits_shows_what_is_masked():
    hits = pd.DataFrame({"line_wave": [4000.0, 4100.0, 4400.0, np.nan], "z_lens": 0.5, "veto": [0, 32, 0, 0]})
    rows, spectra = made(1)
    run = card(1)
    run["funnel"]["overdensity"] = {"observed": [[4095, 4105], [9000, 9001]], "lens": []}
    found = Page(report.render(rows, spectra, run, hits))
    masked = [value for tag, name, value in found.attributes if tag == "rect" and name == "class" and value == "masked"]
    assert len(masked) == 1


def test_dossiers_give_the_numbers_behind_the_verdicts():
    row = {"null_p_line": 0.25, "null_wave": 4321.0, "null_snr": 4.4, "z": 0.51234, "z_err": 1.2e-4,
           "objtype": "GALAXY", "plate_quality": "good", "sky_chi2": 1.25, "zwarning": 4}
    rows, spectra = made(1, **row)
    found = Page(report.render(rows, spectra, card(1)))
    shown = dict(zip([field["name"] for field in found.facts["fields"]], found.dossiers[0]["texts"], strict=True))
    assert {name: shown[name] for name in row if name != "z_err"} == {
        "null_p_line": "0.2500", "null_wave": "4321.0", "null_snr": "4.4", "z": "0.51234 ± 0.00012",
        "objtype": "GALAXY", "plate_quality": "good", "sky_chi2": "1.25", "zwarning": "4"}


def test_sky_map_opens_the_circle_at_its_widest_gap():
    rows = [{"ra": ra, "dec": 1.0, "rank": i} for i, ra in enumerate([359.0, 1.0, 2.0])]
    html = str(plots.sky_map(rows))
    x = [float(value) for value in re.findall(r'cx="([\d.]+)"', html)]
    assert x[0] > x[1] > x[2]  # east to the left, across 0 h
    assert x[0] - x[1] == pytest.approx(2 * (x[1] - x[2]), rel=0.01)


def test_fakes_are_mixed_in_unseen():
    rows, spectra = made(6, theta_e=1.0)
    blind = made_blind(3)
    found = Page(report.render(rows, spectra, card(6), blind=blind))
    told = json.loads(base64.b64decode(found.facts["blind"]))
    keys = [tuple(key) for key in found.facts["keys"]]
    assert len(keys) == 9 and [keys[fake["index"]] for fake in told] == [k for k in keys if k in blind.spectra]
    # No fake was measured there, so no candidate shows it; all dossiers have the same pieces.
    place = [field["name"] for field in found.facts["fields"]].index("theta_e")
    assert {data["texts"][place] for data in found.dossiers} == {None}
    assert len({tuple(sorted(data)) for data in found.dossiers}) == 1
    p = [float(data["texts"][0]) for data in found.dossiers]
    assert p == sorted(p, reverse=True)
    text = " ".join(found.text)
    assert "3 of the 9 rows" in text and "injected fake:" not in text


def test_clean_text_is_short_and_printable():
    assert dossier.clean("a\x00b\u202ec\n") == "a\ufffdb\ufffdc\ufffd"
    assert dossier.clean("x" * 201) == "x" * 200 + "…" and dossier.clean("Lyα ✓") == "Lyα ✓"


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.5, 1]), (3800, 5000, [3800, 4000, 4200, 4400, 4600, 4800, 5000]), (-1.3, 2.2, [-1, 0, 1, 2]),
])
def test_ticks_are_round_numbers_inside(low, high, expected):
    got = svg.ticks(low, high, {1: 2, 5000: 6, 2.2: 4}[high])
    np.testing.assert_allclose(got, expected)


def test_500_candidates_are_fast_and_light():
    rows, spectra = made(500)
    start = time.perf_counter()
    html = report.render(rows, spectra, card(100, n_hits=100))
    assert time.perf_counter() - start < 30  # about 1 s
    assert len(html.encode()) < 20e6


def test_page_settings_are_the_grades_modules():
    facts = Page(report.render(*made(1), card(1))).facts
    assert facts["snr_edges"][-1] is None and facts["grades"] == {"A": "certain", "B": "probable", "C": "possible",
                                                                  "R": "rejected"}
    assert facts["zoom_px"] == page.ZOOM_PX and facts["blind"] is None
