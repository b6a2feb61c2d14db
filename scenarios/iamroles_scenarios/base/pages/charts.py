"""Small SVG charts: lines, points with intervals, stacked bars. Drawn once, readable at any width.

Each is 360 units wide, a phone's width, so that its letters keep their size there; wider pages lay several
side by side. Colours are classes of the page's style sheet, which knows light and dark. Values under the
pointer are SVG `title` elements: no script is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from iamroles_scenarios.base.durations import duration

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 34
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
        """Place a value, 0 to 1."""
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
    marked = [
        step
        for step in steps
        if below <= step <= above and (decades < 2.3 or str(step).lstrip("0.")[0] == "1")
    ]
    return Axis(below, above, [(step, duration(step)) for step in marked], "latency", log=True)


def linear(high: float, name: str, *, low: float = 0.0) -> Axis:
    """A linear axis with round ticks, from 0 or what is below it."""
    low = min(0.0, low)
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span))
    step *= next(factor for factor in (0.2, 0.5, 1.0, 2.0) if span / (step * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, max(last, first + 1) + 1)]
    return Axis(ticks[0], ticks[-1], [(tick, short(tick)) for tick in ticks], name)


def ratios(values: Iterable[float]) -> Axis:
    """A logarithmic axis around 1, no narrower than a fifth to both sides."""
    furthest = max([1.2, *(max(value, 1 / max(value, 1e-9)) for value in values)]) * 1.02
    furthest = min(furthest, 1000.0)
    if furthest < 2.1:
        marks = [1.0, 1.1, 1.25, 1.5, 2.0] if furthest < 1.3 else [1.0, 1.25, 1.6, 2.0]
    else:
        marks = [1.0, 2.0, 5.0, 10.0, 100.0] if furthest > 4 else [1.0, 1.5, 2.0, 3.0]
    shown = sorted({mark for one in marks if one <= furthest for mark in (one, 1 / one)})
    return Axis(
        1 / furthest, furthest, [(mark, f"x{mark:.3g}") for mark in shown], "second over first", log=True
    )


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
    """Place a percentile on the axis of nines."""
    return -math.log10(max(1e-7, 1 - percentile / 100))


class Chart:
    """A chart in the making.

    Args:
        title: what it shows; also for screen readers.
        x: horizontal axis.
        y: vertical axis.
    """

    def __init__(self, title: str, x: Axis, y: Axis) -> None:
        self._title = title
        self._x, self._y = x, y
        self._zones: list[str] = []
        self._parts: list[str] = []
        self._said: list[str] = []
        """Alternative text for screen readers."""

    def _at(self, point: Point) -> tuple[float, float]:
        x = _LEFT + self._x.share(point[0]) * (WIDTH - _LEFT - _RIGHT)
        y = HEIGHT - _BOTTOM - self._y.share(point[1]) * (HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A line through points; `kind` is its class."""
        if points:
            path = " ".join(f"{x},{y}" for x, y in map(self._at, points))
            self._parts.append(f'<polyline class="line {kind}" points="{path}"/>')

    def between(self, above: Sequence[Point], below: Sequence[Point], kind: str) -> None:
        if above and below:
            path = " ".join(f"{x},{y}" for x, y in map(self._at, [*above, *reversed(below)]))
            self._zones.append(f'<polygon class="area {kind}" points="{path}"/>')

    def zone(self, begin: float, end: float, kind: str) -> None:
        """A stretch of the horizontal axis."""
        (left, _), (right, _) = self._at((begin, 0)), self._at((end, 0))
        self._zones.append(
            f'<rect class="area {kind}" x="{left}" y="{_TOP}" width="{max(0.0, right - left):.1f}" '
            f'height="{HEIGHT - _TOP - _BOTTOM}"/>'
        )

    def dots(self, points: Sequence[tuple[float, float, str]], kind: str) -> None:
        """Points that say something under the pointer."""
        for x, y, said in points:
            self._said.append(said)
            left, top = self._at((x, y))
            title = f"<title>{escape(said)}</title>"
            self._parts.append(f'<circle class="dot {kind}" cx="{left}" cy="{top}" r="3">{title}</circle>')

    def mark(self, x: float, said: str, kind: str = "event", *, line: int | None = 0) -> None:
        """Draw a vertical line with a word, `line` lines above the bottom; None: under the pointer alone."""
        self._said.append(said)
        left, _ = self._at((x, 0))
        title = f"<title>{escape(said)}</title>"
        bottom = HEIGHT - _BOTTOM
        self._parts.append(
            f'<line class="{kind}" x1="{left}" x2="{left}" y1="{_TOP}" y2="{bottom}">{title}</line>'
        )
        if line is not None:
            anchor = "end" if left > WIDTH * 0.7 else "start"
            shift = -3 if anchor == "end" else 3
            self._parts.append(_text("word", left + shift, bottom - 4 - 11 * line, said, anchor))

    def svg(self) -> str:
        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
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
        grid.append(_text("axis", middle, HEIGHT - 4, self._x.name))
        return _svg(self._title, HEIGHT, [*self._zones, *grid, *self._parts], "; ".join(self._said))


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled row of `intervals` or `bars`.

    Args:
        label: what it is, on the left.
        figures: its value in words, on the right.
        parts: a bar's parts by class, or the one value of an interval.
        low: begin of the interval; None: without one.
        high: its end.
    """

    label: str
    figures: str
    parts: Mapping[str, float]
    low: float | None = None
    high: float | None = None


def intervals(title: str, axis: Axis, rows: Sequence[Row], base: float) -> str:
    """Values with their intervals, one a row.

    Args:
        title: what it shows.
        axis: of the values.
        rows: one value each.
        base: the value of no difference, which is marked.
    """

    def drawn(row: Row, y: float) -> Iterator[str]:
        for kind, value in row.parts.items():
            if row.low is not None and row.high is not None:
                begin, end = _across(axis, row.low), _across(axis, row.high)
                yield f'<line class="span {kind}" x1="{begin}" x2="{end}" y1="{y}" y2="{y}"/>'
            title = f"<title>{escape(f'{row.label}: {row.figures}')}</title>"
            yield f'<circle class="dot {kind}" cx="{_across(axis, value)}" cy="{y}" r="5">{title}</circle>'

    return _rows(title, axis, rows, drawn, base)


def bars(title: str, axis: Axis, rows: Sequence[Row]) -> str:
    """Stacked bars, one a row; the title of each part says its value in the axis's unit."""

    def drawn(row: Row, y: float) -> Iterator[str]:
        begin = 0.0
        for part, value in row.parts.items():
            left, right = _across(axis, begin), _across(axis, begin + value)
            said = f"{row.label}, {part}: {value:.1f} {axis.name}"
            yield (
                f'<rect class="bar {escape(part, quote=True)}" x="{left}" y="{y - 6}" '
                f'width="{max(0.0, right - left):.1f}" height="12"><title>{escape(said)}</title></rect>'
            )
            begin += value

    return _rows(title, axis, rows, drawn, None)


_ROW, _EDGE = 36, 14


def _across(axis: Axis, value: float) -> float:
    return round(_EDGE + axis.share(value) * (WIDTH - 2 * _EDGE), 1)


def _rows(
    title: str,
    axis: Axis,
    rows: Sequence[Row],
    drawn: Callable[[Row, float], Iterable[str]],
    base: float | None,
) -> str:
    """Rows on a common axis, words above what is drawn: no label is longer than the picture is wide."""
    height = 40 + _ROW * len(rows)
    bottom = height - 32
    parts = []
    for value, label in axis.ticks:
        x, kind = _across(axis, value), "grid base" if value == base else "grid"
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="6" y2="{bottom}"/>')
        parts.append(_text("tick", x, bottom + 13, label))
    for number, row in enumerate(rows):
        y = 16 + _ROW * number
        parts.append(_text("label", _EDGE + 4, y, row.label, "start"))
        parts.append(_text("label figures", WIDTH - 4, y, row.figures, "end"))
        parts += drawn(row, y + 12)
    parts.append(_text("axis", WIDTH / 2, height - 4, axis.name))
    return _svg(title, height, parts, "; ".join(f"{row.label}: {row.figures}" for row in rows))


def _text(kind: str, x: float, y: float, said: str, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(said)}</text>'


def _svg(title: str, height: int, parts: Iterable[str], figures: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(figures)}</desc>{''.join(parts)}</svg>"
    )
