"""When requests are due: an open loop's arrivals, fixed in advance by a seed.

Arrivals of a Poisson process of a changing rate are those of a process of rate one, stretched: the n-th
arrival is due when the integral of the rate reaches the n-th point. The constant timetable has its points at
1, 2, 3...
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of load.

    Args:
        seconds: how long.
        rate: requests a second at its begin.
        until: the rate at its end, reached in a straight line; None: as at its begin.
    """

    seconds: float
    rate: float
    until: float | None = None

    @property
    def total(self) -> float:
        return self.seconds * (self.rate + self._end) / 2

    @property
    def _end(self) -> float:
        return self.rate if self.until is None else self.until

    def when(self, count: float) -> float:
        """Seconds from its begin until so many requests are due."""
        slope = (self._end - self.rate) / self.seconds
        if abs(slope) < 1e-9:
            return count / self.rate
        return (math.sqrt(max(0.0, self.rate * self.rate + 2 * slope * count)) - self.rate) / slope


def arrivals(segments: Sequence[Segment], *, seed: int = 1, constant: bool = False) -> Iterator[int]:
    """Nanoseconds from the begin at which requests are due, in order.

    Args:
        segments: one after the other.
        seed: of the timetable.
        constant: even gaps, not the random ones of a Poisson process.
    """
    chance = random.Random(f"{seed}/0")  # noqa: S311 - a timetable, not a secret
    point = 0.5 if constant else chance.expovariate(1.0)
    begin, before = 0.0, 0.0
    for segment in segments:
        while point < before + segment.total:
            yield round((begin + segment.when(point - before)) * 1e9)
            point += 1.0 if constant else chance.expovariate(1.0)
        begin, before = begin + segment.seconds, before + segment.total
