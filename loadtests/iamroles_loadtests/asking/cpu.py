"""CPU time of the parts, from /proc: each part is a process with all that descends from it.

Linux has a CPU-time clock for each process, exact to the nanosecond, whose number follows from the process
id. A part in a container is found by the id that the host gives its first process. A child that ends between
two readings takes its time along: the difference is then too small, and never negative.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from iamroles_scenarios.base.family import family

Finder = Callable[[], int | None]
"""Finds the first process of a part; None while the part does not run, or cannot be seen."""


def cpu_seconds(pid: int) -> float:
    """Read the CPU seconds of a process, all its threads; 0 if it has ended."""
    with suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)
    return 0.0


class CpuMeter:
    """Reads the CPU time of the parts.

    Args:
        parts: how to find each one's first process.
    """

    def __init__(self, parts: Mapping[str, Finder]) -> None:
        self._parts = dict(parts)

    def read(self) -> dict[str, dict[int, float]]:
        """CPU seconds by part and process; parts that cannot be seen are left out."""
        found = {}
        for name, finder in self._parts.items():
            pid = finder()
            if pid is not None:
                found[name] = {member: cpu_seconds(member) for member in family(pid)}
        return found

    def since(self, before: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
        """CPU seconds by part since a reading."""
        return {
            name: sum(max(0.0, used - before.get(name, {}).get(pid, 0.0)) for pid, used in now.items())
            for name, now in self.read().items()
        }
