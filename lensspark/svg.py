"""Small SVG plots from numpy arrays: axes, lines with gaps, bands, rules. Colours are the page's CSS classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


def draw(width: float, height: float, body: str, label: str) -> Any:
    """The SVG element, marked as safe for a template: `body` and `label` must hold no text from outside."""
    from markupsafe import Markup

    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{body}</svg>')


def ticks(low: float, high: float, number: int) -> np.ndarray:
    """About `number` round values (1, 2, 5 times a power of ten) within [low, high]."""
    raw = (high - low) / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step


@dataclass(frozen=True)
class Frame:
    """A plot's data ranges and its place in an SVG of the given size; paths are in tenths of a unit, rounded."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float
    height: float
    left: float = 42
    bottom: float = 34
    top: float = 8
    right: float = 10

    def px(self, x: Any) -> Any:
        """Horizontal place of data values."""
        return self.left + (np.asarray(x) - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - self.left - self.right)

    def py(self, y: Any) -> Any:
        """Vertical place of data values; what lies outside the range sits on its edge."""
        span = self.height - self.top - self.bottom
        return self.height - self.bottom - (np.clip(y, *self.y) - self.y[0]) / (self.y[1] - self.y[0]) * span

    def axes(self, x_label: str, y_label: str) -> str:
        """Grid, ticks and labels."""
        low, high = self.height - self.bottom, self.width - self.right
        parts = []
        for value in ticks(*self.y, 4):
            y = self.py(value)
            parts.append(f'<path class="g" d="M{self.left} {y:.1f}H{high}"/>'
                         f'<text x="{self.left - 5}" y="{y + 3.5:.1f}" class="e">{value:g}</text>')
        for value in ticks(*sorted(self.x), 6):
            x = self.px(value)
            parts.append(f'<path class="t" d="M{x:.1f} {low}v4"/><text x="{x:.1f}" y="{low + 15}">{value:g}</text>')
        parts.append(f'<path class="t" d="M{self.left} {low}H{high}"/>')
        parts.append(f'<text x="{(self.left + high) / 2}" y="{self.height - 3}">{x_label}</text>')
        middle = (self.top + low) / 2
        parts.append(f'<text transform="translate(11 {middle})rotate(-90)">{y_label}</text>')
        return "".join(parts)

    def line(self, x: np.ndarray, y: np.ndarray, css: str) -> str:
        """A broken line through (x, y), with gaps where y is NaN."""
        paths = (_path(self.px(x[run]), self.py(y[run])) for run in runs(np.isfinite(y)))
        return f'<path class="{css}" transform="scale(.1)" d="{"".join(paths)}"/>'

    def band(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, css: str) -> str:
        """The area between two curves, with gaps where either is NaN."""
        paths = (
            _path(self.px(np.r_[x[run], x[run][::-1]]), self.py(np.r_[high[run], low[run][::-1]])) + "z"
            for run in runs(np.isfinite(low) & np.isfinite(high))
        )
        return f'<path class="{css}" transform="scale(.1)" d="{"".join(paths)}"/>'

    def rules(self, values: Iterable[float], css: str) -> str:
        """Vertical lines at those of `values` that lie inside."""
        inside = (self.px(value) for value in values if self.x[0] < value < self.x[1])
        d = "".join(f"M{x:.1f} {self.top}V{self.height - self.bottom}" for x in inside)
        return f'<path class="{css}" d="{d}"/>' if d else ""


def runs(good: np.ndarray) -> list[slice]:
    """The stretches of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, good, False].astype("i1")))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _path(x: np.ndarray, y: np.ndarray) -> str:
    points = np.rint(np.column_stack([x, y]) * 10).astype(int)
    steps = " ".join(f"{dx} {dy}" for dx, dy in np.diff(points, axis=0).tolist())
    return f"M{points[0, 0]} {points[0, 1]}" + (f"l{steps}" if steps else "h1")
