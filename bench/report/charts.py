"""Plots as SVG that scale with the page: points with intervals, bars, strips of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 44
LABEL = 11  # height of a name
FAMILIES = {
    "baseline": "#444",
    "single": "#c2571a",
    "ditcache": "#0b6e4f",
    "combination": "#6a3d9a",
    "other": "#1f6fb2",
}


@dataclass(frozen=True)
class Point:
    """A measured thing: value and interval on both axes; `family` gives the colour."""

    name: str
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    family: str = "other"


@dataclass(frozen=True)
class Bar:
    """`text` stands behind the bar."""

    name: str
    value: float
    text: str
    family: str = "other"


def scatter(points: Sequence[Point], x_title: str, y_title: str, *, log_x: bool = False) -> str:
    """Points with crosses for their intervals; names beside them, and in full on touch."""
    if not points:
        return "<p>No row has both numbers.</p>"
    xs = [v for p in points for v in (p.x_low, p.x, p.x_high)]
    ys = [v for p in points for v in (p.y_low, p.y, p.y_high)]
    x_axis = _Axis(xs, LEFT, WIDTH - RIGHT, log=log_x)
    y_axis = _Axis(ys, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x_axis, y_axis, x_title, y_title)]
    taken: list[tuple[float, float]] = []
    for p in sorted(points, key=lambda p: (p.x, p.y)):
        x, y, colour = x_axis.at(p.x), y_axis.at(p.y), FAMILIES[p.family]
        shown = f"{p.name}: {x_title} {p.x:.3g}, {y_title} {p.y:.4g}"
        label_y, step = y - 7, -11
        while any(abs(x - a) < 46 and abs(label_y - b) < 11 for a, b in taken):
            label_y += step
            if label_y < LABEL:  # no room above: below the point
                label_y, step = y + 16, 11
        taken.append((x, label_y))
        anchor = "end" if x > WIDTH - 90 else "start"
        offset = -6 if anchor == "end" else 6
        parts.append(
            f'<g class="pt" stroke="{colour}" fill="{colour}"><title>{escape(shown)}</title>'
            f'<path class="ci" d="M{x_axis.at(p.x_low):.1f} {y:.1f}H{x_axis.at(p.x_high):.1f}'
            f'M{x:.1f} {y_axis.at(p.y_low):.1f}V{y_axis.at(p.y_high):.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
            f'<text x="{x + offset:.1f}" y="{label_y:.1f}" text-anchor="{anchor}" stroke="none">'
            f"{escape(p.name)}</text></g>"
        )
    return _svg("".join(parts), HEIGHT, f"{y_title} against {x_title}")


def bars(rows: Sequence[Bar], title: str) -> str:
    """Horizontal bars from zero (negative ones to the left of it)."""
    if not rows:
        return "<p>Nothing was measured.</p>"
    low, high = min(0.0, *(r.value for r in rows)), max(0.0, *(r.value for r in rows))
    span = (high - low) or 1.0
    left, right, step = 118, 150, 22
    scale = (WIDTH - left - right) / span
    zero = left - low * scale
    parts: list[str] = []
    for i, row in enumerate(rows):
        y = i * step + 4
        x = zero + min(0.0, row.value) * scale
        parts.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(row.name)}</text>'
            f'<rect x="{x:.1f}" y="{y}" width="{max(abs(row.value) * scale, 0.5):.1f}" '
            f'height="16" rx="2" fill="{FAMILIES[row.family]}"/>'
            f'<text x="{zero + max(0.0, row.value) * scale + 6:.1f}" y="{y + 13}">'
            f"{escape(row.text)}</text>"
        )
    parts.append(f'<path class="axis" d="M{zero:.1f} 0V{len(rows) * step + 4}"/>')
    return _svg("".join(parts), len(rows) * step + 8, title)


def strip(computed: Sequence[int], steps: int) -> str:
    """One box a step: full where it computes, hollow where it is forecast."""
    gap = WIDTH / steps
    marks = set(computed)
    boxes = "".join(
        f'<rect x="{i * gap + 0.8:.1f}" y="1" width="{gap - 1.6:.1f}" height="18" rx="2" '
        f'class="{"on" if i in marks else "off"}"><title>step {i}: '
        f"{'computed' if i in marks else 'forecast'}</title></rect>"
        for i in range(steps)
    )
    return _svg(boxes, 20, f"{len(marks)} of {steps} steps computed", css="strip")


class _Axis:
    """Values to positions, with a margin and round ticks."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, log: bool = False
    ) -> None:
        self.start, self.end, self.log = start, end, log and min(values) > 0
        low, high = self._in(min(values)), self._in(max(values))
        margin = (high - low) * 0.07 or abs(high) * 0.1 or 1.0
        self.low, self.high = low - margin, high + margin

    def at(self, value: float) -> float:
        return self.start + (self._in(value) - self.low) / (self.high - self.low) * (
            self.end - self.start
        )

    def ticks(self) -> list[float]:
        if self.log:
            low, high = 2**self.low, 2**self.high
            base = (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
            return [v for v in base if low <= v <= high]
        raw = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
        first = math.ceil(self.low / step)
        count = int((self.high - first * step) / step + 1e-9) + 1
        return [(first + i) * step for i in range(count)]

    def _in(self, value: float) -> float:
        return math.log2(value) if self.log else value


def _frame(x_axis: _Axis, y_axis: _Axis, x_title: str, y_title: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
    for tick in x_axis.ticks():
        x = x_axis.at(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        text = f"{round(tick, 9):g}"
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="t" x="{middle}" y="{HEIGHT - 8}">{escape(x_title)}</text>')
    half = (TOP + bottom) / 2
    parts.append(
        f'<text class="t" transform="translate(13 {half}) rotate(-90)">{escape(y_title)}</text>'
    )
    return "".join(parts)


def _svg(inner: str, height: float, label: str, css: str = "") -> str:
    return (
        f'<svg class="{css}" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(label)}">{inner}</svg>'
    )
