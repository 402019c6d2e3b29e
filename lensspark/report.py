"""The report: one self-contained HTML page with run facts, funnel, distributions, candidates and their spectra.

Plots are inline SVG drawn here from numbers alone; every text goes through the template's autoescape. The page loads
nothing and a content security policy forbids it to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import numpy as np

from lensspark import schema, svg
from lensspark.catalogue import write_file

LYA = 1215.67  # vacuum Angstrom
ZOOM_PX = 40  # pixels on each side of the line: 2760 km/s
BIN_PX = 2  # the overview shows inverse-variance weighted means of this many pixels

# Li et al. (2018): the parent sample, the network's hits, those not known before, and what each step left.
REFERENCE = (
    ("parent sample", 1_241_799), ("hits", 1232), ("hits not known before", 536), ("inspection, peak flux", 124),
    ("over-densities", 47), ("skewness > 0", 21), ("[OII] rejection", 5),
)

_UNITS = {
    schema.FLUX_UNIT: "×10⁻¹⁷ erg s⁻¹ cm⁻² Å⁻¹", schema.LINE_FLUX_UNIT: "×10⁻¹⁷ erg s⁻¹ cm⁻²", "Angstrom": "Å",
    "km / s": "km s⁻¹", "arcsec": "″", "deg": "°",
}
_DECIMALS = {
    "ra": 5, "dec": 5, "z_lens": 4, "z_source": 4, "p_line": 4, "line_wave": 1, "line_snr": 1, "line_flux": 1,
    "line_peak": 2, "line_mask_fraction": 2, "mag_i": 2, "sn_median": 1, "vdisp": 0, "alpha": 2, "p_skew_positive": 3,
    "dchi2_skew": 1, "sn_oii_veto": 1, "theta_e": 2, "q_value": 3,
}
_ERRORS = {"line_flux": "line_flux_err", "alpha": "alpha_err", "vdisp": "vdisp_err"}
_TABLE = ("rank", "name", "z_lens", "z_source", "p_line", "line_wave", "line_snr", "line_flux", "line_peak", "mag_i",
          "plate", "mjd", "fiberid", "ra", "dec")
_DOSSIER = ("p_line", "line_wave", "line_snr", "line_flux", "line_peak", "line_mask_fraction", "n_line_hits", "z_lens",
            "z_source", "alpha", "p_skew_positive", "dchi2_skew", "sn_oii_veto", "theta_e", "n_repeat",
            "n_repeat_confirmed", "neighbour_fiber", "q_value", "known_lens", "mag_i", "class", "subclass",
            "sn_median", "vdisp", "ra", "dec")
_LABELS = {
    "rank": "#", "p_line": "p", "line_wave": "λ line", "line_snr": "S/N", "line_flux": "line flux", "line_peak": "peak",
    "z_lens": "z lens", "z_source": "z source", "mag_i": "i", "fiberid": "fibre", "theta_e": "θ_E",
    "line_mask_fraction": "masked about line", "n_line_hits": "peaks in spectrum", "sn_median": "S/N per px",
    "dchi2_skew": "Δχ² skew", "sn_oii_veto": "S/N if [OII]", "p_skew_positive": "P(α > 0)", "alpha": "α",
}
_COLUMNS = {column.name: column for column in schema.CANDIDATES.columns}


def write_report(path: str, candidates: Any, spectra: Mapping[tuple, Mapping[str, Any]], run_card: Mapping[str, Any]
                 ) -> None:
    """Writes the page to `path`, a local path or fsspec URL.

    `candidates`: pandas DataFrame or list of dicts with schema.CANDIDATES' columns, in rank order. `spectra`:
    (plate, mjd, fiberid, run2d) -> arrays of one length: `wave` (vacuum Angstrom, rising), `flux`, `sigma` (NaN where
    unusable) and `model` in 1e-17 erg/s/cm2/A; optional `heat` = (wave, network attention). A candidate without a
    spectrum gets its numbers alone. `run_card`: as catalogue.run_card makes it.
    """
    write_file(path, render(candidates, spectra, run_card).encode())


def render(candidates: Any, spectra: Mapping[tuple, Mapping[str, Any]], run_card: Mapping[str, Any]) -> str:
    """The page's HTML; see `write_report`."""
    from jinja2 import Environment, StrictUndefined

    rows = candidates.to_dict("records") if hasattr(candidates, "to_dict") else list(candidates)
    rows = [{name: _null(row.get(name), column.type) for name, column in _COLUMNS.items()} for row in rows]
    for row in rows:
        if row["z_source"] is None and row["line_wave"] is not None:
            row["z_source"] = row["line_wave"] / LYA - 1
    lines = run_card["configuration"]["input"]
    template = resources.files("lensspark").joinpath("templates/report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return environment.from_string(template).render(
        card=run_card, counts=run_card["counts"], funnel=_bars(_funnel_steps(run_card), accent_last=True),
        reference=_bars([(name, count, "") for name, count in REFERENCE], accent_last=True),
        histograms=_histograms(rows, lines["sky_lines"]), nothing=None if rows else _why_nothing(run_card),
        head=[_heading(name) for name in _TABLE], table=[[_cell(row, name) for name in _TABLE] for row in rows],
        dossiers=(_dossier(row, spectra, lines) for row in rows), dossier_count=len(rows),
        zoom_px=ZOOM_PX, bin_px=BIN_PX,
    )


def _null(value: Any, kind: str) -> Any:
    """None for None, NaN, pandas' NA and NaT; else Python's own type (pandas turns integers with nulls to floats)."""
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (str, int, float)) or value != value:
        return None
    return int(value) if kind in ("int", "long") else value


def _heading(name: str) -> dict[str, str]:
    column = _COLUMNS[name]
    unit = _UNITS.get(column.unit, column.unit)
    title = f"{column.description} [{unit}]" if unit else column.description
    return {"label": _LABELS.get(name, name.replace("_", " ")), "title": title, "type": column.type}


def _cell(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = row[name]
    text = "" if value is None else f"{value:.{_DECIMALS[name]}f}" if name in _DECIMALS else str(value)
    return {"name": name, "sort": "" if value is None else value, "text": text}


def _dossier(row: Mapping[str, Any], spectra: Mapping[tuple, Any], lines: Mapping[str, Any]) -> dict[str, Any]:
    numbers = []
    for name in _DOSSIER:
        if row[name] is None or row[name] == "":
            continue
        text, error = _cell(row, name)["text"], row.get(_ERRORS.get(name, ""))
        if error is not None:
            text += f" ± {error:.{_DECIMALS[name]}f}"
        numbers.append({**_heading(name), "text": text, "unit": _UNITS.get(_COLUMNS[name].unit, "")})
    spectrum = spectra.get(tuple(row[column.name] for column in schema.KEY))
    plots = spectrum and _plots(spectrum, row["line_wave"], row["z_lens"], lines)
    return {"row": row, "numbers": numbers, "plots": plots}


def _funnel_steps(card: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    counts = card["counts"]
    steps = [
        ("rows read", counts["n_input"], ""),
        ("trusted", counts["n_input"] - counts["n_quarantined"], "quarantine"),
        ("selected and scored", counts["n_scored"], "selection"),
        (f"hits: p > {card['configuration']['score']['threshold']:g}", counts["n_hits"], "score"),
    ]
    return [*steps, *((cut["phrase"], cut["left"], cut["name"]) for cut in card["funnel"]["cuts"])]


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


def _bars(steps: list[tuple[str, int, str]], accent_last: bool) -> Any:
    """A funnel: one horizontal bar per (label, count, why the step lost rows), lengths in log10 of the count."""
    from markupsafe import escape

    row, left, full = 25, 250, 200
    longest = math.log10(max(10, *(count for _, count, _ in steps))) + 0.5
    parts, before = [], None
    for i, (label, count, _) in enumerate(steps):
        length = (math.log10(count) + 0.5) / longest * full if count > 0 else 0
        css = "b a" if accent_last and i == len(steps) - 1 else "b"
        lost = f' <tspan class="m">−{before - count:,}</tspan>' if before is not None and before > count else ""
        parts.append(f'<text x="{left - 8}" y="{i * row + 16}" class="e">{escape(label)}</text>'
                     f'<rect class="{css}" x="{left}" y="{i * row + 4}" width="{length:.1f}" height="17" rx="2"/>'
                     f'<text x="{left + length + 6:.1f}" y="{i * row + 16}" class="s">{count:,}{lost}</text>')
        before = count
    return svg.draw(left + full + 125, len(steps) * row + 4, "".join(parts), "counts after each step, logarithmic bars")


def _histograms(rows: list[dict[str, Any]], sky_lines: Iterable[float]) -> list[Any]:
    return [
        _histogram([row["p_line"] for row in rows], "p_line", ()),
        _histogram([row["line_wave"] for row in rows], "observed wavelength of the line (Å); dotted: sky", sky_lines),
        _histogram([row["z_lens"] for row in rows], "z_lens", ()),
    ]


def _histogram(values: list[Any], label: str, rules: Iterable[float], bins: int = 30) -> Any:
    known = np.array([value for value in values if value is not None], dtype=float)
    if not known.size:
        return None
    low, high = known.min(), known.max()
    margin = 0.02 * (high - low) or 0.01 * (abs(low) or 1)
    heights, edges = np.histogram(known, bins=bins, range=(low - margin, high + margin))
    frame = svg.Frame((edges[0], edges[-1]), (0, heights.max() * 1.08), 430, 190)
    x, y = frame.px(edges), frame.py(heights)
    base = frame.height - frame.bottom
    body = "".join(f"M{a:.1f} {base}V{top:.1f}H{b - 1:.1f}V{base}z"
                   for a, b, top, n in zip(x[:-1], x[1:], y, heights, strict=True) if n)
    body = frame.axes(label, "candidates") + f'<path class="b" d="{body}"/>' + frame.rules(rules, "sky")
    return svg.draw(430, 190, body, f"histogram: {label}")


def _plots(spectrum: Mapping[str, Any], line_wave: float | None, z_lens: float | None, lines: Mapping[str, Any]) -> Any:
    """(overview, zoom) of one candidate; zoom is None where the line's position is not known."""
    wave, flux, sigma, model = (np.asarray(spectrum[name], dtype=float) for name in ("wave", "flux", "sigma", "model"))
    flux = np.where(np.isfinite(sigma), flux, np.nan)
    lens = [rest * (1 + z_lens) for rest in lines["lens_lines"]] if z_lens is not None else []
    marks = (lines["sky_lines"], lens, [] if line_wave is None else [line_wave])
    if not np.isfinite(flux).any():
        return None
    overview = _overview(wave, flux, sigma, model, marks, spectrum.get("heat"))
    zoom = None
    if line_wave is not None and wave[0] <= line_wave <= wave[-1]:
        centre = int(np.abs(wave - line_wave).argmin())
        near = slice(max(centre - ZOOM_PX, 0), centre + ZOOM_PX + 1)
        zoom = _zoom(wave[near], flux[near], sigma[near], model[near], marks)
    return overview, zoom


def _limits(*curves: np.ndarray) -> tuple[float, float]:
    values = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    return low - 0.06 * (high - low) - 1e-3, high + 0.10 * (high - low) + 1e-3


def _marked(frame: svg.Frame, marks: tuple[Iterable[float], ...]) -> str:
    return "".join(frame.rules(values, css) for values, css in zip(marks, ("sky", "lens", "hit"), strict=True))


def rebin(wave: np.ndarray, flux: np.ndarray, sigma: np.ndarray, width: int) -> tuple[np.ndarray, ...]:
    """(wave, flux, sigma) of inverse-variance weighted means of `width` pixels; NaN where none of them is usable."""
    n = wave.size // width
    wave, flux, sigma = (values[: n * width].reshape(n, width) for values in (wave, flux, sigma))
    ivar = np.where(np.isfinite(flux * sigma), sigma, np.inf) ** -2.0
    total = ivar.sum(axis=1)
    total[total == 0] = np.nan
    return wave.mean(axis=1), (np.nan_to_num(flux) * ivar).sum(axis=1) / total, total**-0.5


def _overview(wave: np.ndarray, flux: np.ndarray, sigma: np.ndarray, model: np.ndarray, marks: tuple,
              heat: Any) -> Any:
    x, mean, error = rebin(wave, flux, sigma, BIN_PX)
    robust = np.clip(mean, *np.nanpercentile(mean, (0.3, 99.7)))  # one wild pixel must not flatten the plot
    near = np.isin(np.arange(x.size), [int(np.abs(x - value).argmin()) + d for value in marks[2] for d in (-1, 0, 1)])
    frame = svg.Frame((wave[0], wave[-1]), _limits(robust, model, mean[near]), 820, 230)
    body = frame.axes("wavelength (Å)", "flux density")
    if heat is not None and len(heat[0]) > 1:
        strip = svg.Frame(frame.x, (0, 1), frame.width, frame.height, top=frame.height - frame.bottom - 16)
        value = np.asarray(heat[1], dtype=float)
        body += strip.band(np.asarray(heat[0], dtype=float), np.zeros_like(value), value, "heat")
    body += _marked(frame, marks) + frame.band(x, mean - error, mean + error, "band") + frame.line(x, mean, "flux")
    thin = slice(None, None, 4)
    return svg.draw(820, 230, body + frame.line(wave[thin], model[thin], "model"), "spectrum")


def _zoom(wave: np.ndarray, flux: np.ndarray, sigma: np.ndarray, model: np.ndarray, marks: tuple) -> Any:
    edges = np.r_[wave[0], (wave[1:] + wave[:-1]) / 2, wave[-1]]
    x = np.repeat(edges, 2)[1:-1]
    step = lambda values: np.repeat(values, 2)  # noqa: E731
    frame = svg.Frame((wave[0], wave[-1]), _limits(flux + sigma, flux - sigma, model), 430, 230)
    body = frame.axes("wavelength (Å)", "") + _marked(frame, marks)
    for run in svg.runs(~np.isfinite(flux)):
        a, b = frame.px(edges[run.start]), frame.px(edges[run.stop])
        body += f'<rect class="bad" x="{a:.1f}" y="{frame.top}" width="{b - a:.1f}" height="188"/>'
    body += frame.band(x, step(flux - sigma), step(flux + sigma), "band") + frame.line(x, step(flux), "flux")
    return svg.draw(430, 230, body + frame.line(wave, model, "model"), "zoom on the line")
