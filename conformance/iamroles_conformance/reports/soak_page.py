"""The result of a soak: as JSON, as lines, and as one page without a script or a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from iamroles_scenarios.engine.soak import SoakResult

Document = dict[str, Any]
_WIDTH, _HEIGHT, _LEFT = 900, 160, 60
_COLOURS = ("#1b6ca8", "#c05621", "#2f855a", "#805ad5")
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 960px; margin: 2rem auto; padding: 0 1rem }
svg { width: 100%; height: auto } svg text { font-size: 11px; fill: currentColor }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .15rem .6rem; vertical-align: top }
tr { border-bottom: 1px solid #8884 } pre { white-space: pre-wrap; overflow-wrap: anywhere }
.bad { color: #c53030 } .fault { color: #c05621 }
"""


def document(found: SoakResult, product: str, stage: str, again: str) -> Document:
    """The result as JSON can hold it; times in seconds, memory in bytes. It holds no token."""
    outcomes = found.outcomes
    return {
        "product": product,
        "stage": stage,
        "seed": found.seed,
        "seconds": found.seconds,
        "reproduce": again,
        "passed": not found.problems,
        "problems": found.problems,
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
    """What a terminal shows of it."""
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
    """The page."""
    sum_ = (
        f"{result['answers']} answers and {len(result['events'])} events in {result['seconds']:g} s on "
        f"{escape(result['stage'])}, seed {result['seed']}."
    )
    verdict = "All was right." if result["passed"] else "It failed."
    seconds = result["by_second"]
    charts = [
        _chart("Latency, milliseconds", result, {
            name: [(one["at"], one[name] * 1000) for one in seconds] for name in ("p50", "p99")
        }),
        _chart("Answers a second", result, {"answers": [(one["at"], one["answers"]) for one in seconds]}),
        _chart("Memory, MiB", result, {
            part: [(one["at"], one["memory"] / 2**20) for one in samples]
            for part, samples in result["parts"].items()
        }),
        _chart("Descriptors", result, {
            part: [(one["at"], one["descriptors"]) for one in samples]
            for part, samples in result["parts"].items()
        }),
    ]  # fmt: skip
    rows = [[name, count, f"{most:.2f} s"] for name, count, most in _recovery(result)]
    events = [
        [f"{one['at']:.1f} s", one["name"] + (" (fault)" if one["fault"] else ""), f"{one['took']:.2f} s"]
        for one in result["events"]
    ]
    bad = [[f"{one['at']:.1f} s", one["flow"], one["kind"], one["why"]] for one in result["examples"]]
    return "\n".join([
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>Soak of {escape(result['product'])}</title><style>{_STYLE}</style>",
        f"<h1>Soak of {escape(result['product'])}</h1>",
        f"<p><strong>{verdict}</strong> {sum_}</p>",
        *(f"<p class=bad>{escape(problem)}</p>" for problem in result["problems"]),
        "<p>Lines in the charts are events; faults are drawn through.</p>",
        *charts,
        "<h2>Recovery</h2>",
        _table(["event", "times", "right again after, at most"], rows),
        "<h2>What was not right</h2>" + _table(["at", "flow", "kind", "why"], bad) if bad else "",
        "<h2>Events</h2>",
        _table(["at", "event", "took"], events),
        f"<h2>Again</h2><pre>{escape(result['reproduce'])}</pre></html>",
    ])  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ["<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _chart(title: str, result: Document, lines: dict[str, list[tuple[float, float]]]) -> str:
    """One chart over the whole run, with a mark for each event."""
    end: float = max(1.0, result["seconds"], *(at for points in lines.values() for at, _ in points))
    top: float = max(1.0, *(value for points in lines.values() for _, value in points)) * 1.05
    span = _WIDTH - _LEFT

    def x(at: float) -> float:
        return _LEFT + span * at / end

    parts = [f"<h2>{escape(title)}</h2><svg viewBox='0 0 {_WIDTH} {_HEIGHT + 40}' role='img'>"]
    for share in (0.0, 0.5, 1.0):
        y = _HEIGHT * (1 - share) + 10
        parts.append(f"<path d='M{_LEFT} {y:.1f}H{_WIDTH}' stroke='#8886'/>")
        parts.append(f"<text x='0' y='{y + 4:.1f}'>{top * share:.4g}</text>")
        parts.append(f"<text x='{x(end * share) - 20:.1f}' y='{_HEIGHT + 25}'>{end * share:.0f} s</text>")
    for one in result["events"]:
        dash = "" if one["fault"] else " stroke-dasharray='2 4'"
        colour = "#c05621" if one["fault"] else "#888"
        parts.append(
            f"<path d='M{x(one['at']):.1f} 10V{_HEIGHT + 10}' stroke='{colour}'{dash}>"
            f"<title>{one['at']:.1f} s: {escape(one['name'])}</title></path>"
        )
    for colour, points in zip(_COLOURS, lines.values(), strict=False):
        drawn = " ".join(f"{x(at):.1f},{_HEIGHT * (1 - value / top) + 10:.1f}" for at, value in points)
        parts.append(f"<polyline points='{drawn}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
    for number, (colour, name) in enumerate(zip(_COLOURS, lines, strict=False)):
        parts.append(
            f"<text x='{_LEFT + 110 * number}' y='{_HEIGHT + 38}' style='fill:{colour}'>{escape(name)}</text>"
        )
    return "".join([*parts, "</svg>"])
