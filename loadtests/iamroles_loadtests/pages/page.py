"""One HTML page of a result, whole in itself: no script, no network, light and dark, phone and desktop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from iamroles_loadtests.measuring.histogram import ENOUGH, PERCENTILES, Histogram
from iamroles_loadtests.measuring.units import duration
from iamroles_loadtests.pages import charts
from iamroles_loadtests.pages.charts import Chart, Point

_PARTS = ("haproxy", "agent", "generator")
_LANES = {"unasked": "not asked", "remembered": "a remembered verdict", "new": "a new token"}
_POINTS = 90


def render(result: Mapping[str, Any]) -> str:
    """The page.

    Args:
        result: see `result.assembled`.
    """
    return template("page.html").render(
        result=result,
        percentiles=[
            at for at in (*PERCENTILES, "max") if any(at in phase["sent"] for phase in result["phases"])
        ],
        figures=list(_figures(result)),
        curves=[(phase, markup(_curve(phase))) for phase in result["phases"]],
        courses=[(phase, markup(_course(phase, result["events"]))) for phase in result["phases"]],
        knee=None if result["knee"] is None else markup(_knee(result["knee"])),
        pairs=None
        if result["pairs"] is None
        else [(caption, markup(chart)) for caption, chart in _pairs(result["pairs"])],
        cpu=markup(_cpu(result)),
    )


def template(name: str) -> Template:
    """A page of this package."""
    environment = Environment(
        loader=PackageLoader("iamroles_loadtests.pages", ""), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["duration"] = duration
    return environment.get_template(name)


def markup(svg: str) -> Markup:
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
            between = f"{duration(found['low'])} to {duration(found['high'])} (95\u00a0%)"
            yield duration(found["value"]), what, between
    bad = result["wrong"] + result["faults"]
    yield f"{bad:,}", "wrong or lost", f"of {result['answers']:,} answers, each judged"


def along(histogram: Histogram) -> list[Point]:
    """A percentile curve: nines and microseconds."""
    count = histogram.count
    if not count:
        return []
    top = charts.nine(borne(histogram))
    nines = [top * number / _POINTS for number in range(_POINTS + 1)]
    values = histogram.quantiles(100 * (1 - 10.0**-nine) for nine in nines)
    return [(nine, max(float(value), 0.1)) for nine, value in zip(nines, values, strict=True)]


def borne(histogram: Histogram) -> float:
    """The last percentile that the samples bear."""
    return max([90.0, *(PERCENTILES[name] for name in PERCENTILES if histogram.count >= ENOUGH[name])])


def _curve(phase: Mapping[str, Any]) -> str:
    names = ("noticed", "sent") if phase["closed"] else ("noticed", "due", "sent")
    lines = {name: Histogram.decoded(phase[name]["histogram"]) for name in names}
    drawn = {name: along(histogram) for name, histogram in lines.items()}
    chart = Chart(
        f"{phase['name']}: latency by percentile",
        charts.nines(borne(lines["sent"])),
        charts.microseconds(value for points in drawn.values() for _, value in points),
    )
    for name, points in drawn.items():
        chart.line(points, name)
    for name in names[1:]:
        chart.dots(marked(phase[name], f"from {name}"), name)
    if not phase["closed"]:
        chart.between(drawn["due"], drawn["sent"], "wait")
    return chart.svg()


def marked(summary: Mapping[str, Any], what: str) -> list[tuple[float, float, str]]:
    """The percentiles of a summary, on a curve."""
    return [
        (charts.nine(PERCENTILES[at]), summary[at], f"{at} {what}: {duration(summary[at])}")
        for at in PERCENTILES
        if at in summary
    ]


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
        charts.linear(
            max([knee["capacity"], *(step["rate"] for step in steps)]), "requests a second, offered"
        ),
        charts.microseconds(value for points in drawn.values() for _, value in points),
    )
    for (name, at), points in drawn.items():
        chart.line(points, f"{name} {'thin' if at == 'p99' else ''}")
        chart.dots([(x, y, f"{at} from {name} at {x:,.0f}/s: {duration(y)}") for x, y in points], name)
    chart.mark(knee["rate"], f"knee {knee['rate']:,.0f}/s", "knee")
    chart.mark(knee["capacity"], f"at most {knee['capacity']:,.0f}/s", line=1)
    chart.zone(knee["rate"], knee["capacity"], "queue")
    return chart.svg()


def _pairs(pairs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Added to the median from sent", _added(pairs, [("", "p50")])
    yield "Added CPU time of each request", _added(pairs, [("agent", "agent"), ("HAProxy", "haproxy")])
    drawn = {lane: Histogram.decoded(pairs["lanes"][lane]["sent"]["histogram"]) for lane in _LANES}
    points = {lane: along(histogram) for lane, histogram in drawn.items()}
    chart = Chart(
        "latency from sent, by percentile, of the three lanes",
        charts.nines(max(map(borne, drawn.values()))),
        charts.microseconds(value for line in points.values() for _, value in line),
    )
    for lane, line in points.items():
        chart.line(line, lane)
        chart.dots(marked(pairs["lanes"][lane]["sent"], _LANES[lane]), lane)
    yield "From sent, by percentile", chart.svg()


def _added(pairs: Mapping[str, Any], parts: Sequence[tuple[str, str]]) -> str:
    rows = []
    for name, part in parts:
        for lane, told in pairs["differences"].items():
            found = told[part] if part == "p50" else told["cpu"].get(part)
            if found is not None:
                label = f"{_LANES[lane]}, {name}" if name else _LANES[lane]
                between = f"{duration(found['low'])} to {duration(found['high'])}"
                said = f"{duration(found['value'])} ({between})"
                rows.append(charts.Row(label, said, {lane: found["value"]}, found["low"], found["high"]))
    edges = [edge for row in rows for edge in (row.low, row.high) if edge is not None]
    axis = charts.linear(max([1.0, *edges]), "µs more than without the question", low=min([0.0, *edges]))
    return charts.intervals(f"what the check adds: {parts[0][1]}", axis, rows, 0.0)


def _cpu(result: Mapping[str, Any]) -> str:
    found = [(phase["name"], phase["cpu"]) for phase in result["phases"]]
    if result["pairs"] is not None:
        found += [(_LANES[lane], result["pairs"]["lanes"][lane]["cpu"]) for lane in _LANES]
    known = [part for part in _PARTS if any(part in cpu for _, cpu in found)]
    known += sorted({part for _, cpu in found for part in cpu} - set(known))
    rows = [
        charts.Row(
            name,
            " + ".join(f"{cpu[part]:.0f}" for part in known if part in cpu) + " µs" if cpu else "not known",
            {part: cpu[part] for part in known if part in cpu},
        )
        for name, cpu in found
    ]
    axis = charts.linear(max([1.0, *(sum(row.parts.values()) for row in rows)]), "µs of CPU a request")
    return charts.bars("CPU time of each request, by part", axis, rows)
