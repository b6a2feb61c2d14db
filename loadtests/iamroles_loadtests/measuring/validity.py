"""Whether a measurement may be believed: what the generator, not the gate, did to its figures.

Figures from sent are the kernel's and do not suffer from a late generator. Figures from due do: a request
that was sent late reaches the gate late. Each sample says how much of it that was, so the histogram of a
punctual generator is known too. Where the two differ by more than the bounds at p50, p90 or p99, the figures
from due are the generator's, and the run is invalid. So it is after a stall that no percentile shows, and
after a step of the clock.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from iamroles_loadtests.measuring.histogram import ENOUGH, PERCENTILES, Histogram
from iamroles_loadtests.measuring.units import Latency, duration
from iamroles_scenarios.declarations.documents import Model


class Bounds(Model):
    """What the generator may do to a figure before the run is invalid.

    Args:
        share: of a percentile from due, what may be the generator's lag.
        floor: microseconds that may be its lag whatever the share.
        stall: microseconds that the generator may stand still at once.
    """

    share: float = Field(default=0.25, gt=0, le=1)
    floor: Latency = 250.0
    stall: Latency = 50_000.0


def doubts(measured: dict[str, Any], bounds: Bounds) -> list[str]:
    """Why a phase is invalid, one sentence each; empty if it is valid.

    Args:
        measured: see `Book.measured`.
        bounds: what is tolerated.
    """
    found = [f"{measured['name']}: the clock stepped by {step:g} ms" for step in measured["steps"]]
    stalls = [(at, took) for at, took in measured["stalls"] if took * 1e3 > bounds.stall]
    if stalls:
        at, took = max(stalls, key=lambda stall: float(stall[1]))
        found.append(
            f"{measured['name']}: the generator stood still {len(stalls)} times for more than "
            f"{duration(bounds.stall)}, the longest at {at:.2f} s for {took:.0f} ms"
        )
    if measured["closed"]:
        return found
    punctual = Histogram.decoded(measured["punctual"])
    due = Histogram.merged(Histogram.decoded(case["due"]) for case in measured["cases"].values())
    for name in ("p50", "p90", "p99"):
        if due.count < ENOUGH[name]:
            continue
        seen, without = due.at(PERCENTILES[name]), punctual.at(PERCENTILES[name])
        if seen - without > max(bounds.floor, bounds.share * seen):
            found.append(
                f"{measured['name']}: from due, {duration(seen - without)} of the {duration(seen)} at {name} "
                "are the generator's own lag"
            )
    return found
