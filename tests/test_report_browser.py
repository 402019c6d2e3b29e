"""The report page in a browser: sorting, filtering, grading by keyboard, files, the blind test, hostile text."""

import math
import shutil

import numpy as np
import pytest
from test_report import HOSTILE, WAVE, card, made, made_blind

from lensspark import grades, report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]

PATIENCE = 120_000  # ms; a machine that is busy with something else is no fault of the page
# Pages are not waited for by wait_for_function: when it looks again it evaluates a text, which their policy forbids.


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """A function (html, new=True) -> a page that shows it; at the end: nothing was asked for, nothing went wrong."""
    wrong, contexts = [], []

    def show(html, new=True, **options):
        if new or not contexts:
            contexts.append(browser.new_context(viewport={"width": 1300, "height": 900}, **options))
            contexts[-1].set_default_timeout(PATIENCE)
        path = tmp_path / "index.html"
        path.write_text(html, encoding="utf-8")
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url in (path.as_uri(), path.as_uri() + "#c3")
                or request.url.startswith("blob:") or wrong.append(f"request: {request.url}"))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        return page

    yield show
    for context in contexts:
        context.close()
    assert not wrong


def column(page, name):
    """Texts of the shown rows' cells below the heading `name`."""
    return page.evaluate("""name => {
        const place = [...document.querySelectorAll("#candidates th")].findIndex(th => th.dataset.name === name);
        const rows = [...document.querySelectorAll("#candidates tbody tr:not([hidden])")];
        return rows.map(row => row.cells[place].textContent);
    }""", name)


def current(page):
    return page.locator("#now").text_content().split()[0]


def test_sorting_and_filtering(visit):
    rows, spectra = made(12)
    rows[4]["line_snr"] = None
    page = visit(report.render(rows, spectra, card(12)))
    values = sorted((f"{row['line_snr']:.1f}" for row in rows if row["line_snr"] is not None), key=float)
    heading = page.locator("#candidates th[data-name=line_snr] button")
    heading.click()
    assert column(page, "line_snr") == [*values, ""]
    heading.click()
    assert column(page, "line_snr") == [*values[::-1], ""]  # what was not measured stays last
    order = page.eval_on_selector_all("#dossiers article", "list => list.map(article => article.id.slice(1))")
    assert order == column(page, "rank")  # the dossiers follow the table
    page.fill("#filter", "line_snr>15 z_lens<=0.6")
    expected = {str(row["rank"]) for row in rows if (row["line_snr"] or 0) > 15 and row["z_lens"] <= 0.6}
    assert set(column(page, "rank")) == expected and 0 < len(expected) < 12
    assert page.locator("article:visible").count() == len(expected)
    page.fill("#filter", rows[7]["name"][6:])
    assert column(page, "rank") == ["8"] and current(page) == "8"
    page.fill("#filter", "no_such>3")
    assert "no column no_such" in page.locator("#filtered").text_content()


def test_dossiers_are_drawn_when_they_are_seen(visit):
    page = visit(report.render(*made(40), card(40)))
    drawn = lambda: page.locator("article.drawn").count()  # noqa: E731
    assert drawn() < 5
    page.locator("#candidates a").nth(30).click()
    page.wait_for_selector("#c31 .overview svg", state="attached")
    assert drawn() < 15 and current(page) == "31"
    top = page.locator("#c31").bounding_box()["y"]
    assert -5 < top < 60
    page.keyboard.press("j")
    assert current(page) == "32"
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert current(page) == "30"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert drawn() == 40


def test_a_dossier_shows_all_that_the_data_hold(visit):
    rows, spectra = made(2)
    (_, spectrum), (_, bare) = spectra.items()
    bare.update(fit=None, others=[], heat=None)
    page = visit(report.render(rows, spectra, card(2)))
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    text = page.locator("#c1").inner_text()
    for piece in ("The line, ± 40 px", "Line fit", "skew normal", "Gaussian", "Lines expected if", "Hα 5.2σ",
                  "Neighbour", "repeat 0", "20.0 ± 1.5 ×10⁻¹⁷ erg s⁻¹ cm⁻²", "✓ matched-filter S/N at least 6",
                  "night sky", "Lyα"):
        assert piece in text, piece
    assert page.locator("#c1 figure").count() == 4 and page.locator("#c2 figure").count() == 2
    assert page.locator("#c1 .heat").count() == 1 and page.locator("#c2 .heat").count() == 0
    paths = page.eval_on_selector_all("article [d], article [x]",
                                      "list => list.map(e => e.getAttribute('d') + e.getAttribute('x'))")
    assert len(paths) > 100 and not any("NaN" in path or "Infinity" in path for path in paths)


def test_dragging_zooms(visit):
    page = visit(report.render(*made(1), card(1)))
    page.keyboard.press("j")
    box = page.locator("#c1 .overview svg").bounding_box()
    width = lambda: page.evaluate("document.querySelector('.overview .flux').getAttribute('d').length")  # noqa: E731
    ticks = lambda: page.locator("#c1 .overview svg").text_content()  # noqa: E731
    before, all_ticks = width(), ticks()
    page.mouse.move(box["x"] + 200, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 60)
    page.mouse.up()
    assert ticks() != all_ticks and 0 < width() < before
    page.locator("#c1 .overview svg").dblclick(position={"x": 400, "y": 60})
    assert ticks() == all_ticks


def test_the_line_is_drawn_where_it_is(visit):
    """Read back from the SVG: the highest point of the zoom's flux is at the marker."""
    rows, spectra = made(1)
    (spectrum,) = spectra.values()
    spectrum["flux"] = 2 + 40 * np.exp(-0.5 * ((WAVE - rows[0]["line_wave"]) / 2) ** 2)
    spectrum["sigma"] = np.ones(WAVE.size)
    page = visit(report.render(rows, spectra, card(1)))
    page.keyboard.press("j")
    peak, marker, pixel = page.evaluate("""() => {
        const zoom = document.querySelector("#c1 figure svg"), path = zoom.querySelector(".flux").getAttribute("d");
        const steps = [...path.matchAll(/[ML]([-\\d.]+) ([-\\d.]+)H([-\\d.]+)/g)].map(m => m.slice(1).map(Number));
        const top = steps.reduce((a, b) => b[1] < a[1] ? b : a);
        const marker = /M([\\d.]+)/.exec(zoom.querySelector(".hit").getAttribute("d"))[1];
        return [(top[0] + top[2]) / 2, Number(marker), top[2] - top[0]];
    }""")
    assert abs(peak - marker) < pixel


def test_every_other_spectrum_is_drawn(visit):
    rows, spectra = made(1)
    next(iter(spectra.values()))["others"] *= 5  # as an object with five repeats has
    page = visit(report.render(rows, spectra, card(1)))
    page.wait_for_selector("#c1.drawn")
    others = page.locator("#c1 svg[aria-label='other spectra']")
    assert others.locator("path.flux").count() == 10
    ends = others.evaluate("""svg => [...svg.querySelectorAll("text")].map(t => t.getBBox().y + t.getBBox().height)""")
    assert max(ends) <= others.evaluate("svg => svg.viewBox.baseVal.height")


def test_means_are_weighted_by_inverse_variance(visit):
    page = visit(report.render(*made(1), card(1)))
    found = page.evaluate("""() => {
        const [flux, sigma] = [[1, 3, 1, 4, 1, 9, 9, 9], [1, 1, 1, 2, 1, NaN, NaN, NaN]];
        const out = rebin({wave: flux.map((_, i) => 4000 + i), flux, sigma, model: flux}, 2);
        return Object.values(out).map(values => [...values].map(v => Number.isNaN(v) ? null : v));
    }""")
    np.testing.assert_allclose(np.array(found[:3], dtype=float), [
        [4000.5, 4002.5, 4004.5, 4006.5], [2, 1.6, 1, np.nan], [0.5**0.5, 0.8**0.5, 1, np.nan]])


def test_grades_are_given_by_keyboard_and_kept(visit):
    html, other = (report.render(*made(6), card(6) | {"run_id": run_id}) for run_id in ("0123", "4567"))
    page = visit(html)
    for key in "abcr":
        page.keyboard.press(key)
    assert column(page, "grade") == ["A", "B", "C", "R", "", ""] and current(page) == "5"
    assert "4 of 6 graded · A 1 · B 1 · C 1 · R 1" in page.locator("#progress").text_content()
    page.keyboard.press("u")
    page.keyboard.press("u")
    assert column(page, "grade") == ["A", "B", "", "", "", ""] and current(page) == "3"
    page.keyboard.press("m")
    page.keyboard.type("ab, \"odd\"")  # letters in a field are text, not grades
    page.keyboard.press("Enter")
    page.keyboard.press("n")
    assert column(page, "grade") == ["A", "B", "", "", "", ""]
    page.fill("#filter", "grade=B")
    assert column(page, "rank") == ["2"]
    again = visit(html, new=False)
    assert column(again, "grade") == ["A", "B", "", "", "", ""]
    assert again.locator("#c3 .said").text_content() == 'ab, "odd"'
    assert set(column(visit(other, new=False), "grade")) == {""}  # another run's page has its own


def save(page, path):
    with page.expect_download() as download:
        page.locator("[data-do=save]").click()
    download.value.save_as(path)
    return path


def test_grades_go_to_a_file_and_come_back(visit, tmp_path):
    rows, spectra = made(5)
    html = report.render(rows, spectra, card(5))
    page = visit(html)
    for key in "arb":
        page.keyboard.press(key)
    page.fill("#comment", 'two lines?, "maybe"')
    page.keyboard.press("Enter")  # a comment on the fourth, which has no grade
    path = save(page, tmp_path / "grades.csv")
    found = grades.read(str(path))
    assert found["grade"].tolist() == ["A", "R", "B"] and found["plate"].tolist() == [3600, 3601, 3602]
    other = visit(html)
    assert set(column(other, "grade")) == {""}
    other.set_input_files("#load", path)
    other.locator("#message", has_text="4 rows taken over").wait_for(state="attached")
    assert column(other, "grade") == ["A", "R", "B", "", ""]
    assert other.locator("#c4 .said").text_content() == 'two lines?, "maybe"'
    assert save(other, tmp_path / "again.csv").read_bytes() == path.read_bytes()
    wrong = tmp_path / "wrong.csv"
    stranger = "plate,mjd,fiberid,run2d,grade,comment\n1,2,3,x,A,\n"
    for text, message in ((path.read_text().replace(",R,", ",Q,"), "row 3: grade “Q”"),
                          ("a,b\n1,2\n", "expected the header"), (path.read_text() * 2, "expected"),
                          (stranger, "0 rows taken over; 1 are of no candidate here")):
        wrong.write_text(text)
        other.set_input_files("#load", wrong)
        other.locator("#message", has_text=message).wait_for(state="attached")
        assert column(other, "grade") == ["A", "R", "B", "", ""]  # a wrong file changes nothing


def test_without_storage_the_page_says_so(visit):
    page = visit(report.render(*made(2), card(2)))
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    page.keyboard.press("a")
    assert column(page, "grade") == ["A", ""] and page.locator("#kept").is_visible()


def test_the_blind_test_is_revealed_at_the_end(visit, tmp_path):
    rows, spectra = made(8)
    blind = made_blind(6)
    html = report.render(rows, spectra, card(8), blind=blind)
    page = visit(html)
    assert "fake" not in page.locator("#dossiers").inner_text() and not page.locator("#blind").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    shapes = page.eval_on_selector_all("article", """list => list.map(article => {
        const parts = [...article.querySelectorAll("*")].filter(e => !e.closest("svg") && e.tagName !== "OPTION");
        return parts.map(element => `${element.tagName}.${element.className}`).join();
    })""")
    assert len(set(shapes)) == 1  # nothing in a dossier's make-up tells a fake
    for key in "abcrabcrabcra":  # all but the last
        page.keyboard.press(key)
    path = save(page, tmp_path / "grades.csv")
    page.locator("[data-do=reveal]").click()
    shown = page.eval_on_selector_all("#completeness tbody tr", "l => l.map(r => [...r.cells].map(c => c.textContent))")
    expected = grades.completeness(grades.read(str(path)), blind.key)
    assert len(shown) == len(expected)
    percent = lambda x: "" if math.isnan(x) else f"{100 * x:.0f} %"  # noqa: E731
    for cells, row in zip(shown, expected.itertuples(index=False), strict=True):
        counts = [row.n, row.n_graded, row.n_A, row.n_B, row.n_C, row.n_R]
        assert cells[1:7] == list(map(str, counts)) and cells[7] == percent(row.share)
        assert cells[8] == ("" if math.isnan(row.low) else f"{percent(row.low)}–{percent(row.high)}")
    assert shown[-1][0] == "all" and shown[-1][1] == "6"
    assert page.locator("article:has-text('injected fake')").count() == 6 == page.locator("tr.fake").count()
    fake = page.locator("tr.fake").first
    fake.locator("a").click()
    before = fake.locator(".grade").text_content()
    page.keyboard.press("x")
    assert fake.locator(".grade").text_content() == before and "grade stays" in page.locator("#message").text_content()
    assert visit(html, new=False).locator("#blind").is_visible()  # who has seen the key has seen it


def test_hostile_text_does_no_harm(visit, tmp_path):
    hostile = dict.fromkeys(("name", "subclass", "known_lens", "run2d", "class"), HOSTILE)
    rows, spectra = made(2, **hostile)
    for spectrum in spectra.values():
        spectrum["others"][0]["label"] = HOSTILE
    run = card(2, spectra=HOSTILE) | {"run_id": HOSTILE}
    run["funnel"]["cuts"][0].update(phrase=HOSTILE)
    run["funnel"]["not_selected"] = {HOSTILE: 1}
    page = visit(report.render(rows, spectra, run))
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("img").count() == 0 and page.locator("script").count() == 3
    assert "7*7" in page.locator("#c1").inner_text() and "\u202e" not in page.locator("#dossiers").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1300  # long words do not break the layout
    page.fill("#filter", "<img")
    assert page.locator("#filtered").text_content() == "2 of 2 shown"
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    page.fill("#comment", "</script><b>=1+1")
    page.keyboard.press("Enter")
    found = grades.read(str(save(page, tmp_path / "grades.csv")))
    assert found["run2d"].iloc[0] == rows[0]["run2d"] and found["grade"].tolist() == ["A"]


def test_html_from_strings_is_forbidden(browser, tmp_path):
    """The policy itself works: neither markup, code from text nor requests get through, even if code asked for them."""
    path = tmp_path / "index.html"
    path.write_text(report.render(*made(1), card(1)), encoding="utf-8")
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    asked = []
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: asked.append(request.failure))
    page.goto(path.as_uri())
    for attempt in ("document.body.innerHTML = '<b>x</b>'", "fetch('http://127.0.0.1:9/')", "setTimeout('1+1', 1)"):
        with pytest.raises(sync_api.Error):
            page.evaluate(f"async () => await ({attempt})")
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))")
    page.wait_for_timeout(100)
    assert asked == [path.as_uri(), *["csp"] * (len(asked) - 1)]
    context.close()


def test_500_candidates_are_not_drawn_at_once(visit):
    page = visit(report.render(*made(500), card(500, n_hits=600)))
    assert page.locator("article.drawn").count() < 5
    page.fill("#filter", "line_snr>29")
    assert 0 < len(column(page, "rank")) < 100
