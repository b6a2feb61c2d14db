"""Small SVG charts: lines, points with intervals, stacked bars. Drawn once, readable at any width.

Each is 360 units wide, a phone's width, so that its letters keep their size there; wider pages lay several
side by side. Colours are classes of the page's style sheet, which knows light and dark. Values under the
pointer are SVG `title` elements: no script is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from iamroles_loadtests.units import duration

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 12, 34
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale with its ticks.

    Args:
        low: value at its begin.
        high: value at its end.
        ticks: value and label of each.
        name: what it measures.
        log: logarithmic.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    name: str
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value is, 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-9))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def microseconds(values: Iterable[float]) -> Axis:
    """A logarithmic axis of latencies, in whole decades or halves of them."""
    known = [value for value in values if value > 0]
    low, high = min(known, default=10.0), max(known, default=1000.0)
    steps = [digit * 10.0**decade for decade in range(-1, 9) for digit in (1, 2, 5)]
    below = max((step for step in steps if step <= low), default=steps[0])
    above = min((step for step in steps if step >= high), default=steps[-1])
    if below == above:
        above = below * 10
    decades = math.log10(above / below)
    shown = [
        step
        for step in steps
        if below <= step <= above and (decades < 2.3 or str(step).lstrip("0.")[0] == "1")
    ]
    return Axis(below, above, [(step, duration(step)) for step in shown], "latency", log=True)


def linear(high: float, name: str, *, low: float = 0.0) -> Axis:
    """A linear axis with round ticks, from 0 or what is below it."""
    low = min(0.0, low)
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span))
    step *= next(factor for factor in (0.2, 0.5, 1.0, 2.0) if span / (step * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, max(last, first + 1) + 1)]
    return Axis(ticks[0], ticks[-1], [(tick, short(tick)) for tick in ticks], name)


def short(value: float) -> str:
    """A number for a tick: `12k`, `0.5`."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"


def nines(top: float) -> Axis:
    """Percentiles, each further nine as wide as the one before; `top` is the last that the samples bear."""
    names = {0.0: "0", 50.0: "50", 90.0: "90", 99.0: "99", 99.9: "99.9", 99.99: "99.99"}
    ticks = [(nine(at), name) for at, name in names.items() if at <= top + 1e-9]
    return Axis(0.0, max(1.0, nine(top)), ticks, "percentile")


def nine(percentile: float) -> float:
    """Where a percentile stands on the axis of nines."""
    return -math.log10(max(1e-7, 1 - percentile / 100))


class Chart:
    """A chart in the making.

    Args:
        title: what it shows; also for who cannot see it.
        x: horizontal axis.
        y: vertical axis.
        height: in units of the drawing.
    """

    def __init__(self, title: str, x: Axis, y: Axis, *, height: int = HEIGHT) -> None:
        self._title = title
        self._x, self._y = x, y
        self._height = height
        self._parts: list[str] = []

    def _at(self, point: Point) -> tuple[float, float]:
        x = _LEFT + self._x.share(point[0]) * (WIDTH - _LEFT - _RIGHT)
        y = self._height - _BOTTOM - self._y.share(point[1]) * (self._height - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A line through points; `kind` is its class."""
        if points:
            path = " ".join(f"{x},{y}" for x, y in map(self._at, points))
            self._parts.append(f'<polyline class="line {kind}" points="{path}"/>')

    def dots(self, points: Sequence[tuple[float, float, str]], kind: str) -> None:
        """Points that say something under the pointer."""
        for x, y, said in points:
            left, top = self._at((x, y))
            title = f"<title>{escape(said)}</title>"
            self._parts.append(f'<circle class="dot {kind}" cx="{left}" cy="{top}" r="3">{title}</circle>')

    def mark(self, x: float, said: str, kind: str = "event") -> None:
        """A vertical line with a word."""
        left, _ = self._at((x, 0))
        anchor = "end" if left > WIDTH * 0.7 else "start"
        shift = -3 if anchor == "end" else 3
        self._parts.append(
            f'<line class="{kind}" x1="{left}" x2="{left}" y1="{_TOP}" y2="{self._height - _BOTTOM}"/>'
            + _text("word", left + shift, _TOP + 8, said, anchor)
        )

    def svg(self) -> str:
        """The drawing."""
        right, bottom = WIDTH - _RIGHT, self._height - _BOTTOM
        grid = []
        for value, name in self._y.ticks:
            _, y = self._at((self._x.low, value))
            grid.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
            grid.append(_text("tick", _LEFT - 5, y + 3.5, name, "end"))
        for value, name in self._x.ticks:
            x, _ = self._at((value, self._y.low))
            grid.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}"/>')
            grid.append(_text("tick", x, bottom + 13, name))
        middle = (_LEFT + right) / 2
        grid.append(_text("axis", middle, self._height - 4, self._x.name))
        return _svg(self._title, self._height, [*grid, *self._parts])


def intervals(title: str, rows: Sequence[tuple[str, str, float, float, float]], name: str) -> str:
    """Values with their intervals, one a row.

    Args:
        title: what it shows.
        rows: label, class, value, low and high.
        name: of the axis, microseconds.
    """
    axis = linear(max([1.0, *(row[4] for row in rows)]), name, low=min([0.0, *(row[3] for row in rows)]))
    height = 34 + 26 * len(rows)
    left, right = 120, WIDTH - 14

    def at(value: float) -> float:
        return round(left + axis.share(value) * (right - left), 1)

    parts = []
    for value, label in axis.ticks:
        parts.append(f'<line class="grid" x1="{at(value)}" x2="{at(value)}" y1="4" y2="{height - 28}"/>')
        parts.append(_text("tick", at(value), height - 16, label))
    for number, (label, kind, value, begin, end) in enumerate(rows):
        y = 18 + 26 * number
        said = f"{label}: {duration(value)}, 95 % between {duration(begin)} and {duration(end)}"
        parts.append(_text("label", left - 8, y + 4, label, "end"))
        parts.append(f'<line class="span {kind}" x1="{at(begin)}" x2="{at(end)}" y1="{y}" y2="{y}"/>')
        title = f"<title>{escape(said)}</title>"
        parts.append(f'<circle class="dot {kind}" cx="{at(value)}" cy="{y}" r="5">{title}</circle>')
    parts.append(_text("axis", (left + right) / 2, height - 3, name))
    return _svg(title, height, parts)


def bars(title: str, rows: Sequence[tuple[str, Mapping[str, float]]], name: str) -> str:
    """Stacked bars.

    Args:
        title: what it shows.
        rows: label, and value by part; the part is the class.
        name: of the axis.
    """
    axis = linear(max([1.0, *(sum(parts.values()) for _, parts in rows)]), name)
    height = 34 + 26 * len(rows)
    left, right = 92, WIDTH - 14
    parts_of = []
    for value, label in axis.ticks:
        x = round(left + axis.share(value) * (right - left), 1)
        parts_of.append(f'<line class="grid" x1="{x}" x2="{x}" y1="4" y2="{height - 28}"/>')
        parts_of.append(_text("tick", x, height - 16, label))
    for number, (label, values) in enumerate(rows):
        y, begin = 8 + 26 * number, 0.0
        parts_of.append(_text("label", left - 8, y + 14, label, "end"))
        for part, value in values.items():
            x = left + axis.share(begin) * (right - left)
            width = axis.share(begin + value) * (right - left) + left - x
            said = f"{label}, {part}: {value:.1f} µs a request"
            parts_of.append(
                f'<rect class="bar {part}" x="{x:.1f}" y="{y}" width="{max(0.0, width):.1f}" height="18">'
                f"<title>{escape(said)}</title></rect>"
            )
            begin += value
    parts_of.append(_text("axis", (left + right) / 2, height - 3, name))
    return _svg(title, height, parts_of)


def _text(kind: str, x: float, y: float, said: str, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(said)}</text>'


def _svg(title: str, height: int, parts: Iterable[str]) -> str:
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">' + "".join(parts) + "</svg>"
