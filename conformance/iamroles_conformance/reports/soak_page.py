"""The result of a soak: as JSON, as lines, and as one HTML page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iamroles_scenarios.base.pages import charts
from iamroles_scenarios.base.pages.charts import Axis, Chart, Point
from iamroles_scenarios.base.pages.html import markup, template
from iamroles_scenarios.engine.soak import SoakResult

Document = dict[str, Any]
_KINDS = ("sent", "due", "new", "unasked")
_LEGEND = ("", "d", "w", "u")
"""Classes of the lines of a chart, and of their legend."""


def document(found: SoakResult, product: str, stage: str, again: str) -> Document:
    """The result as JSON can hold it; times in seconds, memory in bytes. It holds no token."""
    outcomes = found.outcomes
    held = [f"{count} answers: {kind}" for kind, count in outcomes.held.items()] + found.held
    held = [f"untestable, {one}: {found.late}" for one in held]
    return {
        "product": product,
        "stage": stage,
        "seed": found.seed,
        "seconds": found.seconds,
        "reproduce": again,
        "passed": not found.problems and not held,
        "problems": [*found.problems, *held],
        "answers": outcomes.answers,
        "bad": dict(outcomes.bad),
        "excused": dict(outcomes.excused),
        "identity_keys": found.keys,
        "events": [
            {"at": one.at, "name": one.name, "fault": one.fault, "took": one.took, "recovered": one.recovered}
            for one in found.events
        ],
        "by_second": [
            {"at": at, "answers": one.answers, "bad": one.bad, "p50": one.p50, "p99": one.p99}
            for at, one in sorted(outcomes.seconds.items())
        ],
        "parts": {
            part: [{"at": one.at, "memory": one.memory, "descriptors": one.descriptors} for one in samples]
            for part, samples in found.samples.items()
        },
        "examples": [
            {"at": at, "flow": entry.question.flow.name, "kind": str(kind), "why": why, "shown": entry.shown}
            for at, entry, kind, why in outcomes.examples
        ],
    }


def summary(result: Document) -> list[str]:
    """Sum it up for a terminal."""
    lines = [f"{result['answers']} answers, {len(result['events'])} events"]
    if result["identity_keys"]:
        lines.append(f"{result['identity_keys']} keys signed identities that verified")
    lines += [f"{count} {kind}" for kind, count in result["bad"].items()]
    lines += [f"{count} {kind}, excused by a fault" for kind, count in result["excused"].items()]
    lines += [
        f"{name}: {count} times, right again after {most:.2f} s at most"
        for name, count, most in _recovery(result)
    ]
    for part, samples in result["parts"].items():
        first, last = samples[0], samples[-1]
        lines.append(
            f"{part}: {first['memory'] >> 20} MiB and {first['descriptors']} descriptors at the first look, "
            f"{last['memory'] >> 20} MiB and {last['descriptors']} at the last"
        )
    lines += [f"FAILED: {problem}" for problem in result["problems"]]
    for one in result["examples"][:3]:
        lines.append(f"  at {one['at']:.1f} s, {one['flow']}: {one['kind']}: {one['why']}")
    return [*lines, f"again: {result['reproduce']}"]


def _recovery(result: Document) -> list[tuple[str, int, float]]:
    """Each kind of event: how often, and the longest time until all was right again."""
    names = sorted({one["name"] for one in result["events"]})
    found = []
    for name in names:
        times = [one["recovered"] for one in result["events"] if one["name"] == name]
        found.append((name, len(times), max(times)))
    return found


def html(result: Document) -> str:
    """Make the page."""
    seconds, parts = result["by_second"], result["parts"]
    drawn: list[tuple[str, dict[str, list[Point]], Callable[[list[float]], Axis]]] = [
        (
            "Latency",
            {name: [(one["at"], one[name] * 1e6) for one in seconds] for name in ("p50", "p99")},
            charts.microseconds,
        ),
        ("Answers a second", {"answers": [(one["at"], one["answers"]) for one in seconds]}, _from_zero),
        ("Memory, MiB", _of_parts(parts, "memory", 1 << 20), _from_zero),
        ("Descriptors", _of_parts(parts, "descriptors", 1), _from_zero),
    ]
    return template("iamroles_conformance.reports", "soak.html").render(
        result=result,
        legend=_LEGEND,
        charts=[
            (title, list(lines), markup(_chart(title, result, lines, axis))) for title, lines, axis in drawn
        ],
        recovery=[(name, count, f"{most:.2f} s") for name, count, most in _recovery(result)],
        wrong=[(f"{one['at']:.1f} s", one["flow"], one["kind"], one["why"]) for one in result["examples"]],
        events=[(f"{one['at']:.1f} s", _named(one), f"{one['took']:.2f} s") for one in result["events"]],
    )


def _of_parts(parts: Document, name: str, unit: int) -> dict[str, list[Point]]:
    return {part: [(one["at"], one[name] / unit) for one in samples] for part, samples in parts.items()}


def _named(event: Document) -> str:
    return f"{event['name']} (fault)" if event["fault"] else str(event["name"])


def _from_zero(values: list[float]) -> Axis:
    return charts.linear(max([1.0, *values]), "")


def _chart(
    title: str, result: Document, lines: dict[str, list[Point]], axis: Callable[[list[float]], Axis]
) -> str:
    """Draw one chart over the whole run, with a mark for each event."""
    points = [point for line in lines.values() for point in line]
    end = max([1.0, result["seconds"], *(at for at, _ in points)])
    chart = Chart(title, charts.linear(end, "seconds"), axis([value for _, value in points]))
    for event in result["events"]:
        said = f"{event['at']:.1f} s: {_named(event)}"
        chart.mark(event["at"], said, "fault" if event["fault"] else "event", line=None)
    for kind, line in zip(_KINDS, lines.values(), strict=False):
        chart.line(line, f"{kind} fine")
    return chart.svg()
