"""One HTML page of two results side by side, in the manner of `page`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iamroles_loadtests.measuring.histogram import Histogram
from iamroles_loadtests.pages import charts, page
from iamroles_loadtests.pages.charts import Chart, Row
from iamroles_loadtests.results.compare import Line, cautions, compared, obstacles


def render(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The page.

    Args:
        before: the first result, see `result.assembled`.
        after: the second.
    """
    lines = compared(before, after)
    theirs = {phase["name"]: phase for phase in after["phases"]}
    shared = [(phase, theirs[phase["name"]]) for phase in before["phases"] if phase["name"] in theirs]
    return page.template("comparison.html").render(
        before=before,
        after=after,
        lines=lines,
        obstacles=obstacles(before, after),
        cautions=cautions(before, after),
        counts={said: sum(line.verdict == said for line in lines) for said in ("slower", "faster")},
        shown=sum(bool(line.interval) for line in lines),
        forests=[(name, page.markup(forest)) for name, forest in _forests(lines)],
        curves=[(phase, other, page.markup(_curves(phase, other))) for phase, other in shared],
    )


def _forests(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Ratios of each phase, on one scale: they may be read across."""
    edges = [
        edge for line in lines for edge in (line.ratio, line.low, line.high) if edge is not None and edge > 0
    ]
    axis = charts.ratios(edges)
    for name in dict.fromkeys(line.phase for line in lines):
        rows = [
            Row(
                line.name,
                f"x{line.ratio:.2f}" + (f" ({line.interval})" if line.interval else ""),
                {line.verdict or "same": line.ratio},
                line.low,
                line.high,
            )
            for line in lines
            if line.phase == name
        ]
        yield name, charts.intervals(f"{name}: second run over first", axis, rows, 1.0)


def _curves(phase: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    found = {"first": phase["sent"], "second": other["sent"]}
    histograms = {which: Histogram.decoded(sent["histogram"]) for which, sent in found.items()}
    points = {which: page.along(histogram) for which, histogram in histograms.items()}
    chart = Chart(
        f"{phase['name']}: latency from sent, by percentile, of both runs",
        charts.nines(max(map(page.borne, histograms.values()))),
        charts.microseconds(value for line in points.values() for _, value in line),
    )
    for which, line in points.items():
        chart.line(line, which)
        chart.dots(page.marked(found[which], f"of the {which} run"), which)
    return chart.svg()
