"""One HTML page of a result, whole in itself: no script, no network, light and dark, phone and desktop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from iamroles_loadtests import charts
from iamroles_loadtests.charts import Chart, Point
from iamroles_loadtests.histogram import ENOUGH, PERCENTILES, Histogram
from iamroles_loadtests.units import duration

_PARTS = ("haproxy", "agent", "generator")
_LANES = {"unasked": "not asked", "remembered": "remembered", "new": "new token"}
_POINTS = 90


def render(result: Mapping[str, Any]) -> str:
    """The page.

    Args:
        result: see `result.assembled`.
    """
    environment = Environment(
        loader=PackageLoader("iamroles_loadtests", ""), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["duration"] = duration
    return environment.get_template("page.html").render(
        result=result,
        figures=list(_figures(result)),
        curves=[(phase, _drawn(_curve(phase))) for phase in result["phases"]],
        courses=[(phase, _drawn(_course(phase, result["events"]))) for phase in result["phases"]],
        knee=None if result["knee"] is None else _drawn(_knee(result["knee"])),
        pairs=None if result["pairs"] is None else [_drawn(chart) for chart in _pairs(result["pairs"])],
        cpu=_drawn(_cpu(result)),
    )


def _drawn(svg: str) -> Markup:
    """Charts escape what they are given."""
    return Markup(svg)  # noqa: S704 - see above


def _figures(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The few numbers one looks for: value, what it is, what belongs to it."""
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
        for lane, what in (("remembered", "a remembered verdict adds"), ("new", "a new token adds")):
            found = pairs["differences"][lane]["p50"]
            between = f"{duration(found['low'])} to {duration(found['high'])} (95 %)"
            yield duration(found["value"]), what, between
    bad = result["wrong"] + result["faults"]
    yield f"{bad:,}", "wrong or lost", f"of {result['answers']:,} answers, each judged"


def _points(histogram: Histogram) -> list[Point]:
    count = histogram.count
    if not count:
        return []
    top = charts.nine(_top(histogram))
    nines = [top * number / _POINTS for number in range(_POINTS + 1)]
    values = histogram.quantiles(100 * (1 - 10.0**-nine) for nine in nines)
    return [(nine, max(float(value), 0.1)) for nine, value in zip(nines, values, strict=True)]


def _top(histogram: Histogram) -> float:
    """The last percentile that the samples bear."""
    return max([90.0, *(PERCENTILES[name] for name in PERCENTILES if histogram.count >= ENOUGH[name])])


def _curve(phase: Mapping[str, Any]) -> str:
    names = ("noticed", "sent") if phase["closed"] else ("noticed", "due", "sent")
    lines = {name: Histogram.decoded(phase[name]["histogram"]) for name in names}
    drawn = {name: _points(histogram) for name, histogram in lines.items()}
    chart = Chart(
        f"{phase['name']}: latency by percentile",
        charts.nines(_top(lines["sent"])),
        charts.microseconds(value for points in drawn.values() for _, value in points),
    )
    for name, points in drawn.items():
        chart.line(points, name)
    for name in names[1:]:
        shown = [
            (charts.nine(PERCENTILES[at]), phase[name][at], f"{at} from {name}: {duration(phase[name][at])}")
            for at in PERCENTILES
            if at in phase[name]
        ]
        chart.dots(shown, name)
    return chart.svg()


def _course(phase: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    names = ("sent",) if phase["closed"] else ("due", "sent")
    drawn: dict[tuple[str, str], list[Point]] = {
        (name, at): [
            (window["at"] + window["seconds"] / 2, window[name][at])
            for window in phase["windows"]
            if at in window[name]
        ]
        for name in names
        for at in ("max", "p50")
    }
    chart = Chart(
        f"{phase['name']}: latency over time",
        charts.linear(phase["seconds"], "seconds"),
        charts.microseconds(value for points in drawn.values() for _, value in points),
    )
    for (name, at), points in drawn.items():
        chart.line(points, f"{name} {'thin' if at == 'max' else ''}")
        said = [(x, y, f"{at} from {name}, at {x:.1f} s: {duration(y)}") for x, y in points]
        chart.dots(said, f"{name} small")
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
    drawn = {
        (name, at): [(step["rate"], step[name][at]) for step in steps if at in step[name]]
        for name in ("due", "sent")
        for at in ("p50", "p99")
    }
    chart = Chart(
        "latency by offered rate",
        charts.linear(max(step["rate"] for step in steps), "requests a second, offered"),
        charts.microseconds(value for points in drawn.values() for _, value in points),
    )
    for (name, at), points in drawn.items():
        chart.line(points, f"{name} {'thin' if at == 'p99' else ''}")
        chart.dots([(x, y, f"{at} from {name} at {x:,.0f}/s: {duration(y)}") for x, y in points], name)
    chart.mark(knee["rate"], "knee", "knee")
    return chart.svg()


def _pairs(pairs: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for what, part in (("p50", ""), ("CPU, agent", "agent"), ("CPU, HAProxy", "haproxy")):
        for lane, told in pairs["differences"].items():
            found = told["cpu"].get(part) if part else told["p50"]
            if found is not None:
                label = f"{'new' if lane == 'new' else 'known'}: {what}"
                rows.append((label, lane, found["value"], found["low"], found["high"]))
    yield charts.intervals("what the check adds", rows, "µs more than without the question")
    drawn = {lane: Histogram.decoded(pairs["lanes"][lane]["sent"]["histogram"]) for lane in _LANES}
    points = {lane: _points(histogram) for lane, histogram in drawn.items()}
    chart = Chart(
        "latency from sent, by percentile, of the three lanes",
        charts.nines(max(map(_top, drawn.values()))),
        charts.microseconds(value for line in points.values() for _, value in line),
    )
    for lane, line in points.items():
        chart.line(line, lane)
    yield chart.svg()


def _cpu(result: Mapping[str, Any]) -> str:
    rows = [(phase["name"], phase["cpu"]) for phase in result["phases"]]
    if result["pairs"] is not None:
        rows += [(_LANES[lane], result["pairs"]["lanes"][lane]["cpu"]) for lane in _LANES]
    known = [part for part in _PARTS if any(part in cpu for _, cpu in rows)]
    known += sorted({part for _, cpu in rows for part in cpu} - set(known))
    shown = [(name, {part: cpu[part] for part in known if part in cpu}) for name, cpu in rows]
    return charts.bars("CPU time for each request, by part", shown, "µs of CPU a request")
