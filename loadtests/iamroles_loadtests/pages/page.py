"""One HTML page of a result, or of two: no script, no network, light and dark, phone and desktop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from iamroles_loadtests.measuring.histogram import ENOUGH, PERCENTILES, Histogram
from iamroles_loadtests.results.compare import Figure, cautions, compared, obstacles
from iamroles_scenarios.base.durations import duration
from iamroles_scenarios.base.pages import charts
from iamroles_scenarios.base.pages.charts import Axis, Chart, Point, Row
from iamroles_scenarios.base.pages.html import markup, template

Result = Mapping[str, Any]
"""See `result.assembled`."""
_PARTS = ("haproxy", "agent", "generator")
PAIRED = {"unasked": "not asked", "remembered": "a remembered verdict", "new": "a new token"}
_POINTS = 90


def render(result: Result) -> str:
    """Make the page of a result."""
    phases, pairs = result["phases"], result["pairs"]
    return template("iamroles_loadtests.pages", "page.html").render(
        result=result,
        percentiles=[at for at in (*PERCENTILES, "max") if any(at in phase["sent"] for phase in phases)],
        figures=list(_figures(result)),
        curves=[(phase, markup(_curve(phase))) for phase in phases],
        courses=[(phase, markup(_course(phase, result["events"]))) for phase in phases],
        knee=None if result["knee"] is None else markup(_knee(result["knee"])),
        pairs=None if pairs is None else [(caption, markup(chart)) for caption, chart in _pairs(pairs)],
        cpu=markup(_cpu(result)),
    )


def render_comparison(before: Result, after: Result) -> str:
    """Make the page of two results side by side."""
    figures = compared(before, after)
    theirs = {phase["name"]: phase for phase in after["phases"]}
    shared = [(phase, theirs[phase["name"]]) for phase in before["phases"] if phase["name"] in theirs]
    return template("iamroles_loadtests.pages", "comparison.html").render(
        before=before,
        after=after,
        figures=figures,
        obstacles=obstacles(before, after),
        cautions=cautions(before, after),
        counts={verdict: sum(one.verdict == verdict for one in figures) for verdict in ("slower", "faster")},
        shown=sum(bool(one.interval) for one in figures),
        forests=[(name, markup(forest)) for name, forest in _forests(figures)],
        curves=[(phase, other, markup(_both(phase, other))) for phase, other in shared],
    )


def _figures(result: Result) -> Iterator[tuple[str, str, str]]:
    """Yield the few numbers one looks for: value, what it is, what belongs to it."""
    knee, pairs = result["knee"], result["pairs"]
    if knee is not None:
        yield f"{knee['rate']:,.0f}/s", "knee", f"{knee['capacity']:,.0f}/s at most, in a closed loop"
    half = next((phase for phase in result["phases"] if phase["name"] == "half"), None)
    for phase in [half] if half else result["phases"][:1]:
        sent = phase["sent"]
        if "p50" in sent:
            what = f"p50 at {phase['rate']:,.0f}/s" if phase["rate"] else "p50"
            tail = f", p99 {duration(sent['p99'])}" if "p99" in sent else ""
            yield duration(sent["p50"]), what, f"from sent{tail}"
    if pairs is not None:
        for pool, what in (("remembered", "a remembered verdict adds"), ("new", "a new token adds")):
            if found := pairs["differences"][pool].get("p50"):
                yield duration(found["value"]), what, f"{_between(found)} (95\u00a0%)"
    bad = result["wrong"] + result["faults"]
    yield f"{bad:,}", "wrong or lost", f"of {result['answers']:,} answers, each judged"


def _between(found: Mapping[str, float]) -> str:
    return f"{duration(found['low'])} to {duration(found['high'])}"


def interval(found: Mapping[str, float]) -> str:
    """Return a figure with its interval."""
    return f"{duration(found['value'])} ({_between(found)})"


# --- latency by percentile ---------------------------------------------------------------------------------


def _percentiles(
    title: str, lines: Mapping[str, tuple[Mapping[str, Any], str]]
) -> tuple[Chart, dict[str, list[Point]]]:
    """Draw percentile curves, by their class: a histogram of the result, and what its dots say (if any)."""
    histograms = {kind: Histogram.decoded(found["histogram"]) for kind, (found, _) in lines.items()}
    points = {kind: _along(histogram) for kind, histogram in histograms.items()}
    chart = Chart(title, charts.nines(max(map(_last, histograms.values()))), _latency(points))
    for kind, line in points.items():
        chart.line(line, kind)
    for kind, (found, what) in lines.items():
        known = [at for at in PERCENTILES if what and at in found]
        chart.dots(
            [
                (charts.nine(PERCENTILES[at]), found[at], f"{at} {what}: {duration(found[at])}")
                for at in known
            ],
            kind,
        )
    return chart, points


def _along(histogram: Histogram) -> list[Point]:
    """Nines and microseconds."""
    if not histogram.count:
        return []
    top = charts.nine(_last(histogram))
    nines = [top * number / _POINTS for number in range(_POINTS + 1)]
    values = histogram.quantiles(100 * (1 - 10.0**-nine) for nine in nines)
    return [(nine, max(float(value), 0.1)) for nine, value in zip(nines, values, strict=True)]


def _last(histogram: Histogram) -> float:
    """The last percentile for which there are enough samples."""
    return max([90.0, *(PERCENTILES[name] for name in PERCENTILES if histogram.count >= ENOUGH[name])])


def _latency(lines: Mapping[Any, Sequence[Point]]) -> Axis:
    return charts.microseconds(value for points in lines.values() for _, value in points)


def _curve(phase: Result) -> str:
    names = ("sent",) if phase["closed"] else ("due", "sent")
    lines = {"noticed": (phase["noticed"], "")} | {name: (phase[name], f"from {name}") for name in names}
    chart, points = _percentiles(f"{phase['name']}: latency by percentile", lines)
    if not phase["closed"]:
        chart.between(points["due"], points["sent"], "wait")
    return chart.svg()


def _both(phase: Result, other: Result) -> str:
    title = f"{phase['name']}: latency from sent, by percentile, of both runs"
    runs = {"first": phase["sent"], "second": other["sent"]}
    return _percentiles(title, {kind: (sent, f"of the {kind} run") for kind, sent in runs.items()})[0].svg()


# --- latency over something else ---------------------------------------------------------------------------


def _over(
    title: str,
    x: Axis,
    rows: Sequence[Mapping[str, Any]],
    *,
    at: Callable[[Mapping[str, Any]], float],
    where: str,
    figures: Sequence[tuple[str, str]],
    thin: str,
) -> Chart:
    """Draw percentiles of windows or steps.

    Args:
        title: of the chart.
        x: its horizontal axis.
        rows: windows or steps.
        at: gives a row's place on that axis.
        where: the same in words, a format.
        figures: origins and percentiles.
        thin: the percentile whose lines are thin.
    """
    drawn = {
        (name, percentile): [(at(row), row[name][percentile]) for row in rows if percentile in row[name]]
        for name, percentile in figures
    }
    chart = Chart(title, x, _latency(drawn))
    for (name, percentile), points in drawn.items():
        chart.line(points, f"{name} {'thin' if percentile == thin else ''}")
        said = [(x, y, f"{percentile} from {name}{where.format(x)}: {duration(y)}") for x, y in points]
        chart.dots(said, f"{name} small")
    return chart


def _course(phase: Result, events: Sequence[Mapping[str, Any]]) -> str:
    names = ("sent",) if phase["closed"] else ("due", "sent")
    chart = _over(
        f"{phase['name']}: latency over time",
        charts.linear(phase["seconds"], "seconds"),
        phase["windows"],
        at=lambda window: float(window["at"] + window["seconds"] / 2),
        where=", at {:.1f} s",
        figures=[(name, at) for name in names for at in ("max", "p50")],
        thin="max",
    )
    for at, took in phase["stalls"]:
        if took >= 20 and 0 <= at <= phase["seconds"]:
            chart.mark(at, f"generator {took:.0f} ms", "stall")
    for event in events:
        at = event["at"] - phase["begin"]
        if 0 <= at <= phase["seconds"]:
            chart.mark(at, str(event["what"]))
    return chart.svg()


def _knee(knee: Mapping[str, Any]) -> str:
    steps = knee["steps"]
    rates = [knee["capacity"], *(step["rate"] for step in steps)]
    chart = _over(
        "latency by offered rate",
        charts.linear(max(rates), "requests a second, offered"),
        steps,
        at=lambda step: float(step["rate"]),
        where=" at {:,.0f}/s",
        figures=[(name, at) for name in ("due", "sent") for at in ("p50", "p99")],
        thin="p99",
    )
    chart.mark(knee["rate"], f"knee {knee['rate']:,.0f}/s", "knee")
    chart.mark(knee["capacity"], f"at most {knee['capacity']:,.0f}/s", line=1)
    chart.zone(knee["rate"], knee["capacity"], "queue")
    return chart.svg()


# --- intervals and bars ------------------------------------------------------------------------------------


def _pairs(pairs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Added to the median from sent", _added(pairs, [("", "p50")])
    yield "Added CPU time of each request", _added(pairs, [("agent", "agent"), ("HAProxy", "haproxy")])
    title = "latency from sent, by percentile, of the three"
    lines = {pool: (pairs["lanes"][pool]["sent"], what) for pool, what in PAIRED.items()}
    yield "From sent, by percentile", _percentiles(title, lines)[0].svg()


def _added(pairs: Mapping[str, Any], parts: Sequence[tuple[str, str]]) -> str:
    rows = []
    for name, part in parts:
        for pool, differences in pairs["differences"].items():
            found = differences.get(part) if part == "p50" else differences["cpu"].get(part)
            if found is not None:
                label = f"{PAIRED[pool]}, {name}" if name else PAIRED[pool]
                rows.append(Row(label, interval(found), {pool: found["value"]}, found["low"], found["high"]))
    edges = [edge for row in rows for edge in (row.low, row.high) if edge is not None]
    axis = charts.linear(max([1.0, *edges]), "µs more than without the question", low=min([0.0, *edges]))
    return charts.intervals(f"what the check adds: {parts[0][1]}", axis, rows, 0.0)


def _cpu(result: Result) -> str:
    found = [(phase["name"], phase["cpu"]) for phase in result["phases"]]
    if result["pairs"] is not None:
        found += [(what, result["pairs"]["lanes"][pool]["cpu"]) for pool, what in PAIRED.items()]
    known = [part for part in _PARTS if any(part in cpu for _, cpu in found)]
    known += sorted({part for _, cpu in found for part in cpu} - set(known))
    rows = [
        Row(
            name,
            " + ".join(f"{cpu[part]:.0f}" for part in known if part in cpu) + " µs" if cpu else "not known",
            {part: cpu[part] for part in known if part in cpu},
        )
        for name, cpu in found
    ]
    axis = charts.linear(max([1.0, *(sum(row.parts.values()) for row in rows)]), "µs of CPU a request")
    return charts.bars("CPU time of each request, by part", axis, rows)


def _forests(figures: Sequence[Figure]) -> Iterator[tuple[str, str]]:
    """Yield ratios of each phase, all on one scale, so that they compare across phases."""
    edges = [edge for one in figures for edge in (one.ratio, one.low, one.high) if edge]
    axis = charts.ratios(edges)
    for name in dict.fromkeys(one.phase for one in figures):
        rows = [
            Row(
                one.name,
                f"x{one.ratio:.2f}" + (f" ({one.interval})" if one.interval else ""),
                {one.verdict or "same": one.ratio},
                one.low,
                one.high,
            )
            for one in figures
            if one.phase == name
        ]
        yield name, charts.intervals(f"{name}: second run over first", axis, rows, 1.0)
