"""Service-level objectives: what a run must reach, in a TOML file (see `slo.toml`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from iamroles_loadtests.measuring.validity import Tolerance
from iamroles_scenarios.base.durations import duration
from iamroles_scenarios.declarations.documents import Latency, Model, read

DEFAULT = Path(__file__).with_name("slo.toml")
_NAMES = {"p999": "p99.9"}


class Bounds(Model):
    """Upper bounds; a bound that is left out is not checked."""

    p50: Latency | None = None
    p90: Latency | None = None
    p99: Latency | None = None
    p999: Latency | None = None
    max: Latency | None = None


class Verdicts(Model):
    """The number of wrong answers that is allowed, and of requests without an answer."""

    wrong: int = Field(default=0, ge=0)
    faults: int = Field(default=0, ge=0)


class Level(Model):
    """The objectives of a phase."""

    due: Bounds = Bounds()
    """From when requests were due: what a user suffers."""
    sent: Bounds = Bounds()
    """From when they were sent: what the gate takes."""
    answered: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of what was due that was answered."""


class Check(Model):
    """The time that the agent may add to a request, by paired measurement (the median of the differences)."""

    p50: Latency | None = None
    p90: Latency | None = None
    p99: Latency | None = None
    cpu: Latency | None = None
    """CPU time of HAProxy and agent together, for each request."""


class Ratio(Model):
    """One figure of the run over another: it means the same on any machine.

    A figure is `PHASE.due.PERCENTILE`, `PHASE.sent.PERCENTILE`, or `LANE.sent.PERCENTILE` for a lane of the
    pairs (`unasked`, `remembered`, `new`).
    """

    of: str
    over: str
    at_most: float = Field(gt=0)


class Slo(Model):
    """The whole file."""

    verdicts: Verdicts = Verdicts()
    generator: Tolerance = Tolerance()
    levels: dict[str, Level] = Field(default_factory=dict)
    """By phase: `low`, `half`, `high`, a shape, or a rate given by --rate."""
    check: Check = Check()
    """A verdict that the agent remembers."""
    new: Check = Check()
    """A token it has never seen."""
    ratios: list[Ratio] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective and how the run stands to it."""

    name: str
    bound: str
    got: str
    met: bool


def load(path: Path) -> Slo:
    """Read an SLO file.

    Raises:
        DocumentError: every problem with its line and remedy.
    """
    return read(path, Slo)


def judged(slo: Slo, result: Mapping[str, Any]) -> list[Objective]:
    """How a run stands to its objectives; what was not part of the run is not looked at.

    Args:
        slo: what was wanted.
        result: see `result`.
    """
    found = [
        _count("wrong verdicts", slo.verdicts.wrong, result["wrong"]),
        _count("requests without an answer", slo.verdicts.faults, result["faults"]),
        _count("bytes that nobody asked for", 0, result["stray"]),
    ]
    for phase in result["phases"]:
        level = slo.levels.get(phase["name"])
        if level is not None:
            found += _level(phase, level)
    if result["pairs"] is not None:
        differences = result["pairs"]["differences"]
        found += _check("a remembered check adds", slo.check, differences["remembered"])
        found += _check("a new token's check adds", slo.new, differences["new"])
    figures = _figures(result)
    found += [_ratio(ratio, figures) for ratio in slo.ratios if _applies(ratio, figures)]
    return found


def _level(phase: Mapping[str, Any], level: Level) -> Iterator[Objective]:
    name = phase["name"]
    if level.answered is not None:
        share = answered(phase)
        yield Objective(
            f"{name}: answered of what was due",
            f">= {level.answered:.1%}",
            f"{share:.1%}",
            share >= level.answered,
        )
    for origin in ("due", "sent"):
        bounds: Bounds = getattr(level, origin)
        for field in Bounds.model_fields:
            bound = getattr(bounds, field)
            if bound is not None:
                at = _NAMES.get(field, field)
                yield _latency(f"{name}: from {origin} {at}", bound, phase[origin].get(at))


def answered(phase: Mapping[str, Any]) -> float:
    """Share of what was due in a phase that was answered."""
    return float(phase["samples"] / max(1, phase["samples"] + phase["owed"] + phase["faults"]))


def _check(what: str, check: Check, differences: Mapping[str, Any]) -> Iterator[Objective]:
    for field in ("p50", "p90", "p99"):
        bound = getattr(check, field)
        if bound is not None:
            yield _latency(f"{what} at {field}", bound, differences.get(field, {}).get("value"))
    if check.cpu is not None:
        parts = [differences["cpu"].get(part) for part in ("haproxy", "agent")]
        known = [part["value"] for part in parts if part is not None]
        yield _latency(f"{what} CPU", check.cpu, sum(known) if len(known) == len(parts) else None)


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    parts: dict[str, Mapping[str, Any]] = {phase["name"]: phase for phase in result["phases"]}
    parts |= (result["pairs"] or {}).get("lanes", {})
    return {
        f"{name}.{origin}.{at}": value
        for name, part in parts.items()
        for origin in ("due", "sent")
        for at, value in part[origin].items()
        if isinstance(value, float | int)
    }


def _applies(ratio: Ratio, figures: Mapping[str, float]) -> bool:
    """Both phases were played; a percentile that one of them lacks is an objective not met."""
    played = {name.partition(".")[0] for name in figures}
    return all(name.partition(".")[0] in played for name in (ratio.of, ratio.over))


def _ratio(ratio: Ratio, figures: Mapping[str, float]) -> Objective:
    above, below = figures.get(ratio.of), figures.get(ratio.over)
    name, bound = f"{ratio.of} over {ratio.over}", f"<= {ratio.at_most:g}"
    if above is None or not below:
        return Objective(name, bound, "no such figure", False)
    return Objective(name, bound, f"{above / below:.2f}", above / below <= ratio.at_most)


def _latency(name: str, bound: float, value: float | None) -> Objective:
    # Without a sample the objective is not met: a run that measured nothing proves nothing.
    shown = "too few samples" if value is None else duration(value)
    return Objective(name, f"<= {duration(bound)}", shown, value is not None and value <= bound)


def _count(name: str, bound: int, got: int) -> Objective:
    return Objective(name, f"<= {bound}", str(got), got <= bound)
