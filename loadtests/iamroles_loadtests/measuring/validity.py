"""Decides if a measurement can be believed: what the generator, not the gate, did to its figures.

Figures from sent are the kernel's and do not suffer from a late generator. Figures from due do: a request
that was sent late reaches the gate late. Each sample says how much of it that was, so the histogram of a
punctual generator is known, too. If the two differ by more than the bounds at p50, p90 or p99, the figures
from due are the generator's, and the run is invalid. A stall that no percentile shows makes it invalid, too,
and so does a step of the clock.
"""

from __future__ import annotations

from pydantic import Field

from iamroles_loadtests.measuring.histogram import ENOUGH, PERCENTILES
from iamroles_loadtests.measuring.measurement import Played
from iamroles_scenarios.base.durations import duration
from iamroles_scenarios.declarations.documents import Latency, Model


class Tolerance(Model):
    """Bounds on what the generator may do to a figure before the run is invalid.

    Args:
        share: of a percentile from due, what may be the generator's lag.
        floor: microseconds that may be its lag whatever the share.
        stall: microseconds that the generator may stand still at once.
    """

    share: float = Field(default=0.25, gt=0, le=1)
    floor: Latency = 250.0
    stall: Latency = 50_000.0


def doubts(played: Played, tolerance: Tolerance) -> list[str]:
    """Say why a phase is invalid, one sentence each; empty if it is valid."""
    name, measured = played.phase.name, played.measured
    found = stepped(played)
    stalls = [(at, took) for at, took in measured.stalls if took * 1e3 > tolerance.stall]
    if stalls:
        at, took = max(stalls, key=lambda stall: stall[1])
        found.append(
            f"{name}: the generator stood still {len(stalls)} times for more than "
            f"{duration(tolerance.stall)}, the longest at {at:.2f} s for {took:.0f} ms"
        )
    if played.phase.closed:
        return found
    due = measured.whole("due")
    for percentile in ("p50", "p90", "p99"):
        if due.count < ENOUGH[percentile]:
            continue
        at = PERCENTILES[percentile]
        seen, lag = due.at(at), due.at(at) - measured.punctual.at(at)
        if lag > max(tolerance.floor, tolerance.share * seen):
            found.append(
                f"{name}: from due, {duration(lag)} of the {duration(seen)} at {percentile} "
                "are the generator's own lag"
            )
    return found


def stepped(played: Played) -> list[str]:
    """Name the steps of the clock during a phase."""
    return [f"{played.phase.name}: the clock stepped by {step:g} ms" for step in played.measured.steps]
