"""The page's summary plots: the funnel beside the reference's, the sky, and histograms. Static SVG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lensspark import svg

if TYPE_CHECKING:
    import pandas as pd

WIDTH, HEIGHT = 410, 200  # of one small plot
WIDE, LOW = 1240, 170  # of a plot of over-densities
FRAMES = {"observed": "observed wavelength (Å)", "lens": "wavelength in the galaxy's frame (Å)"}
GROUPS = {"fiberid": "fibre", "plate": "plate", "mjd": "night"}  # schema.OVERDENSITY's `frame` -> name on the page
MAX_GROUPS = 12  # flagged groups of one kind that are listed

# Li et al. (2018): of the parent sample's network hits 536 were not known before; what each step left of how many.
REFERENCE_SAMPLE, REFERENCE_HITS = (1_241_799, "parent sample"), (536, "new hits (of 1,232)")
# By the range of Veto's bits that does the same: (lowest, highest bit) -> (left, before, what they call it).
REFERENCE_CUTS = {(0, 4): (124, 536, "inspection, peak flux"), (5, 9): (47, 124, "over-densities"),
                  (15, 17): (21, 47, "skewness > 0"), (10, 14): (5, 21, "[O II] rejection")}


def funnel(card: Mapping[str, Any]) -> Any:
    """Counts after each step, this run's on the left, the reference's at the step that does the same on the right."""
    from markupsafe import escape

    steps = _steps(card)
    label, bar, right, full, row = 420, 430, 850, 220, 24
    longest = math.log10(max(10, *(n for _, n, _ in steps), REFERENCE_SAMPLE[0])) + 0.5

    def length(count: int) -> float:
        return (math.log10(count) + 0.5) / longest * full if count > 0 else 0.0

    parts = [f'<text x="{bar}" y="14" class="s head">This run</text>'
             f'<text x="{right}" y="14" class="s head">Li et al. (2018)</text>']
    before = None
    for i, (name, count, reference) in enumerate(steps):
        y, css = 22 + i * row, "b a" if i == len(steps) - 1 else "b"
        lost = f' <tspan class="m">−{before - count:,}</tspan>' if before is not None and before > count else ""
        parts.append(f'<text x="{label}" y="{y + 14}" class="e">{escape(name)}</text>'
                     f'<rect class="{css}" x="{bar}" y="{y + 2}" width="{length(count):.1f}" height="16" rx="2"/>'
                     f'<text x="{bar + length(count) + 6:.1f}" y="{y + 14}" class="s">{count:,}{lost}</text>')
        if reference:
            number, text = reference
            parts.append(f'<rect class="r" x="{right}" y="{y + 2}" width="{length(number):.1f}" height="16" rx="2"/>'
                         f'<text x="{right + length(number) + 6:.1f}" y="{y + 14}" class="s">{number:,} '
                         f'<tspan class="m">{text}</tspan></text>')
        before = count
    return svg.draw(1240, 26 + len(steps) * row, "".join(parts), "counts after each step, logarithmic bars")


def _steps(card: Mapping[str, Any]) -> list[tuple[str, int, tuple[int, str] | None]]:
    """(name, count, the reference's (count, text) or None) of each step."""
    counts, cuts = card["counts"], card["funnel"]["cuts"]
    steps: list[tuple[str, int, tuple[int, str] | None]] = [
        ("rows read", counts["n_input"], None),
        ("trusted", counts["n_input"] - counts["n_quarantined"], None),
        ("selected and scored", counts["n_scored"], REFERENCE_SAMPLE),
        (f"hits: p > {card['configuration']['score']['threshold']:g}", counts["n_hits"], REFERENCE_HITS),
    ]
    ranges = [_reference_range(cut["name"]) for cut in cuts]
    for i, (cut, own) in enumerate(zip(cuts, ranges, strict=True)):
        reference = None
        if own and own not in ranges[i + 1:]:  # the last cut of its kind
            left, before, text = REFERENCE_CUTS[own]
            reference = (left, f"of {before}: {text}")
        steps.append((textwrap.shorten(str(cut["phrase"]), 72, placeholder="…"), cut["left"], reference))
    return steps


def _reference_range(name: str) -> tuple[int, int] | None:
    from lensspark.vetting import Veto  # loads pyspark, which a page alone does not need

    veto = Veto.__members__.get(str(name).upper())
    bit = -1 if veto is None else int(veto).bit_length() - 1
    return next((ends for ends in REFERENCE_CUTS if ends[0] <= bit <= ends[1]), None)


def summary(rows: Sequence[Mapping[str, Any]], hits: Mapping[str, Any], masked: Mapping[str, Any],
            sky_lines: Iterable[float]) -> list[Any]:
    """The small plots: sky, redshifts, score, and where the hits' lines are in the observed and in the lens frame.

    rows: candidates; hits: arrays `line_wave`, `z_lens`, `veto` of all hits; masked: "observed" and "lens" -> list of
    (low, high) Angstrom that an over-density cut rejects.
    """
    wave, z, veto = (np.asarray(hits[name], dtype=float) for name in ("line_wave", "z_lens", "veto"))
    kept = veto == 0
    return [plot for plot in (
        sky_map(rows),
        histogram(_column(rows, "z_lens"), None, "redshift of the galaxy, z_lens", "candidates"),
        histogram(_column(rows, "z_source"), None, "redshift of the source if Lyα, z_source", "candidates"),
        histogram(_column(rows, "p_line"), None, "p_line", "candidates"),
        histogram(wave, kept, "observed wavelength of the line (Å)", "hits", masked.get("observed", ()), sky_lines),
        histogram(wave / (1 + z), kept, "wavelength in the galaxy's frame (Å)", "hits", masked.get("lens", ())),
    ) if plot]


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=float)


def histogram(values: np.ndarray, kept: np.ndarray | None, label: str, what: str,
              masked: Iterable[Sequence[float]] = (), rules: Iterable[float] = (), bins: int = 40) -> Any:
    """Counts of finite `values`; those `kept` (n,) bool in front of the others; ranges `masked` shaded, `rules` dotted.

    None if nothing is finite.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return None
    low, high = values[finite].min(), values[finite].max()
    margin = 0.02 * (high - low) or 0.01 * (abs(low) or 1)
    heights, edges = np.histogram(values[finite], bins=bins, range=(low - margin, high + margin))
    frame = svg.Frame((edges[0], edges[-1]), (0, heights.max() * 1.08), WIDTH, HEIGHT)
    body = "".join(
        f'<rect class="masked" x="{a:.1f}" y="{frame.top}" width="{max(b - a, 1):.1f}" '
        f'height="{frame.height - frame.bottom - frame.top}"/>'
        for a, b in (frame.px(np.clip(ends, *frame.x)) for ends in masked
                     if ends[1] > frame.x[0] and ends[0] < frame.x[1]))
    body += frame.axes(label, what) + frame.bars(edges, heights, "b" if kept is None else "b all")
    if kept is not None:
        inside, _ = np.histogram(values[finite & kept], bins=edges)
        body += frame.bars(edges, inside, "b")
    return svg.draw(WIDTH, HEIGHT, body + frame.rules(rules, "sky"), f"histogram: {label}")


def sky_map(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Positions, east to the left, each a link to its dossier; None without positions."""
    ra, dec = _column(rows, "ra"), _column(rows, "dec")
    good = np.isfinite(ra) & np.isfinite(dec)
    if not good.any():
        return None
    start = _start_of_circle(ra[good] % 360)
    x, y = (ra - start) % 360 + start, dec
    pad_x, pad_y = (max(0.06 * np.ptp(v[good]), 0.3) for v in (x, y))
    frame = svg.Frame((x[good].max() + pad_x, x[good].min() - pad_x), (y[good].min() - pad_y, y[good].max() + pad_y),
                      WIDTH, HEIGHT)
    body = frame.axes("right ascension (°), east to the left", "declination (°)")
    for i in np.flatnonzero(good):
        body += (f'<a href="#c{int(rows[i]["rank"])}"><circle class="dot" cx="{frame.px(x[i]):.1f}" '
                 f'cy="{frame.py(y[i]):.1f}" r="3"/></a>')
    return svg.draw(WIDTH, HEIGHT, body, "positions on the sky")


def _start_of_circle(angles: np.ndarray) -> float:
    """Where to cut the circle open: after its largest gap."""
    ordered = np.sort(angles)
    gaps = np.diff(np.r_[ordered, ordered[0] + 360])
    return float(ordered[(gaps.argmax() + 1) % ordered.size])


def overdensities(bins: pd.DataFrame, limit: float) -> list[Any]:
    """Per frame the lines in each bin of log10 wavelength, their running median, and what is over `limit` sigma.

    bins: schema.OVERDENSITY. Bars that would dwarf all others end at the plot's edge; the flagged say their count.
    """
    return [_lines_per_bin(bins[bins["frame"] == frame], label, limit) for frame, label in FRAMES.items()
            if (bins["frame"] == frame).sum() > 1]


def _lines_per_bin(rows: pd.DataFrame, label: str, limit: float) -> Any:
    at, expected, n = np.log10(rows["value"].to_numpy(float)), rows["expected"].to_numpy(float), rows["n"].to_numpy(int)
    edges = np.r_[at, 2 * at[-1] - at[-2]] - (at[1] - at[0]) / 2
    fewest = fewest_flagged(expected, limit)
    line = fewest[np.isfinite(fewest)].max(initial=1.0)
    frame = svg.Frame((edges[0], edges[-1]), (0, 1.2 * max(min(n.max(), 2 * line), line)), WIDE, LOW)
    flagged = rows["flagged"].to_numpy(bool)
    body = frame.axes(label, "lines per bin", powers=True) + frame.bars(edges, n, "b", gap=0)
    for i in np.flatnonzero(flagged):
        bar = frame.bars(edges[i : i + 2], n[i : i + 1], "b a", gap=0)
        body += f"<g><title>{10 ** at[i]:.1f} Å: {n[i]} lines, {expected[i]:.3g} expected</title>{bar}</g>"
    body += frame.steps(edges, expected, "median") + frame.steps(edges, fewest, "limit")
    return svg.draw(WIDE, LOW, body, f"lines per bin: {label}")


def fewest_flagged(expected: np.ndarray, limit: float) -> np.ndarray:
    """The fewest lines in a bin that are more than `limit` sigma above those `expected`; inf where none are."""
    from lensspark.vetting.overdensity import excess  # loads pyspark

    sigma = min(limit, 38.0)  # no Poisson probability above 1e-300 is as far out
    levels, place = np.unique(expected, return_inverse=True)
    counts = np.arange(math.ceil(levels.max() + 2 * sigma * math.sqrt(levels.max()) + sigma**2) + 10)
    over = excess(counts[None], levels[:, None]) > limit
    return np.where(over.any(axis=1), over.argmax(axis=1), np.inf)[place]


def flagged_groups(bins: pd.DataFrame) -> list[tuple[str, list[tuple[str, int, str, str]], int]]:
    """(kind, [(its number, lines, expected, probability)], how many more) of flagged fibres, plates and nights."""
    found = []
    for frame, name in GROUPS.items():
        rows = bins[(bins["frame"] == frame) & bins["flagged"].astype(bool)].sort_values("probability")
        listed = [(str(int(row.bin)), int(row.n), f"{row.expected:.2g}", f"{row.probability:.0e}")
                  for row in rows.head(MAX_GROUPS).itertuples(index=False)]
        found.append((name, listed, max(len(rows) - MAX_GROUPS, 0)))
    return found
