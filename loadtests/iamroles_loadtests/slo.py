"""Service-level objectives: what a run must reach, in a TOML file (see `slo.toml`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from iamroles_loadtests.mix import FLOOR, KNOWN
from iamroles_scenarios.declarations.documents import Model, read

DEFAULT = Path(__file__).with_name("slo.toml")
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def _microseconds(value: object) -> float:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", value)):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError('a latency is a string such as "800us", "25ms", "1.5s"')


Latency = Annotated[float, BeforeValidator(_microseconds)]
"""Microseconds, written with a unit."""


class Bounds(Model):
    """At most so long; what is left out is not looked at."""

    p50: Latency | None = None
    p90: Latency | None = None
    p99: Latency | None = None
    p999: Latency | None = None
    max: Latency | None = None


class Verdicts(Model):
    """How many answers may be wrong, and how many requests without one."""

    wrong: int = Field(default=0, ge=0)
    faults: int = Field(default=0, ge=0)


class Rate(Model):
    """How much of the offered load must have been answered."""

    at_least: float = Field(default=0.95, gt=0.0, le=1.0)


class Slo(Model):
    """The whole file."""

    verdicts: Verdicts = Verdicts()
    rate: Rate = Rate()
    latency: Bounds = Bounds()
    """From when a request was due to its last byte, all cases together."""
    check: Bounds = Bounds()
    """What a remembered check adds to a request that HAProxy answers by itself."""
    cases: dict[str, Bounds] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective and how the run stands to it."""

    name: str
    bound: str
    got: str
    met: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "bound": self.bound, "got": self.got, "met": self.met}


def load(path: Path) -> Slo:
    """Read an SLO file.

    Raises:
        DocumentError: every problem with its line and remedy.
    """
    return read(path, Slo)


def judged(slo: Slo, ledger: dict[str, Any]) -> list[Objective]:
    """How a run stands to its objectives.

    Args:
        slo: what was wanted.
        ledger: what happened (`ledger.Ledger.as_json`).
    """
    share = ledger["answers"] / max(1, ledger["answers"] + ledger["faults"] + ledger["owed"])
    found = [
        _at_most("wrong verdicts", slo.verdicts.wrong, ledger["wrong"]),
        _at_most("requests without an answer", slo.verdicts.faults, ledger["faults"]),
        Objective(
            "answered of the offered load",
            f">= {slo.rate.at_least:.0%}",
            f"{share:.1%}",
            share >= slo.rate.at_least,
        ),
    ]
    found += _bounded("latency", slo.latency, ledger["latency"])
    found += _bounded("cost of a check", slo.check, cost(ledger))
    for name, bounds in slo.cases.items():
        case = ledger["cases"].get(name)
        found += _bounded(name, bounds, {} if case is None else case["latency"])
    return found


def cost(ledger: dict[str, Any]) -> dict[str, int]:
    """Microseconds that a remembered check adds: the case that is asked less the one that is not.

    A difference of percentiles is no percentile of differences: trust the median, take the rest as a hint.
    """
    floor, known = (ledger["cases"][name]["service"] for name in (FLOOR, KNOWN))
    return {
        name: known[name] - floor[name] for name in ("p50", "p90", "p99") if name in floor and name in known
    }


def _bounded(what: str, bounds: Bounds, got: dict[str, int]) -> Iterator[Objective]:
    for field in ("p50", "p90", "p99", "p999", "max"):
        bound = getattr(bounds, field)
        if bound is None:
            continue
        name = "p99.9" if field == "p999" else field
        value = got.get(name)
        # Without a sample the objective is not met: a run that measured nothing proves nothing.
        shown = "no samples" if value is None else duration(value)
        yield Objective(
            f"{what} {name}", f"<= {duration(bound)}", shown, value is not None and value <= bound
        )


def _at_most(name: str, bound: int, got: int) -> Objective:
    return Objective(name, f"<= {bound}", str(got), got <= bound)


def duration(microseconds: float) -> str:
    """Readable: `740 us`, `12.3 ms`, `1.20 s`."""
    if abs(microseconds) < 1000:
        return f"{microseconds:.0f} us"
    if abs(microseconds) < 1_000_000:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds / 1e6:.3g} s"
