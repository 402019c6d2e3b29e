"""Small SVG plots from numpy arrays: axes, bars, steps, rules. Colours are the page's CSS classes."""

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
    """A plot's data ranges and its place in an SVG of the given size."""

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

    def axes(self, x_label: str, y_label: str, powers: bool = False) -> str:
        """Grid, ticks and labels. `powers`: x are powers of ten, and the ticks give their values."""
        low, high = self.height - self.bottom, self.width - self.right
        parts = []
        for value in ticks(*self.y, 4):
            y = self.py(value)
            parts.append(f'<path class="g" d="M{self.left} {y:.1f}H{high}"/>'
                         f'<text x="{self.left - 5}" y="{y + 3.5:.1f}" class="e">{value:g}</text>')
        ends = np.sort(self.x)
        for value in ticks(*(10**ends if powers else ends), max(round(self.width / 70), 2)):
            x = self.px(np.log10(value) if powers else value)
            parts.append(f'<path class="t" d="M{x:.1f} {low}v4"/><text x="{x:.1f}" y="{low + 15}">{value:g}</text>')
        parts.append(f'<path class="t" d="M{self.left} {low}H{high}"/>')
        parts.append(f'<text x="{(self.left + high) / 2}" y="{self.height - 3}">{x_label}</text>')
        middle = (self.top + low) / 2
        parts.append(f'<text transform="translate(11 {middle})rotate(-90)">{y_label}</text>')
        return "".join(parts)

    def bars(self, edges: np.ndarray, heights: np.ndarray, css: str, gap: float = 1) -> str:
        """A histogram's bars (n) between `edges` (n + 1), as one path; nothing where a height is 0."""
        x, y, base = self.px(edges), self.py(heights), self.height - self.bottom
        d = "".join(f"M{a:.1f} {base}V{top:.1f}H{max(b - gap, a + 0.5):.1f}V{base}z"
                    for a, b, top, n in zip(x[:-1], x[1:], y, heights, strict=True) if n)
        return f'<path class="{css}" d="{d}"/>'

    def steps(self, edges: np.ndarray, heights: np.ndarray, css: str) -> str:
        """A line that is flat between the `edges` (n + 1), at `heights` (n)."""
        x, y = self.px(edges), self.py(heights)
        turns = np.flatnonzero(np.diff(y)) + 1  # only where the height changes
        d = "".join(f"H{x[i]:.1f}V{y[i]:.1f}" for i in turns)
        return f'<path class="{css}" d="M{x[0]:.1f} {y[0]:.1f}{d}H{x[-1]:.1f}"/>'

    def rules(self, values: Iterable[float], css: str) -> str:
        """Vertical lines at those of `values` that lie inside."""
        inside = (self.px(value) for value in values if self.x[0] < value < self.x[1])
        d = "".join(f"M{x:.1f} {self.top}V{self.height - self.bottom}" for x in inside)
        return f'<path class="{css}" d="{d}"/>' if d else ""
