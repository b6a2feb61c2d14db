"""How long a process's threads ran on a CPU and waited for a CPU, as the kernel tells (proc(5), `schedstat`).

All threads count: the thread that answers may wait for the interpreter's lock, while the thread that holds it
waits for a CPU. The kernel adds a wait when it is over. So if a thread could run now, or waits for swapped
memory, then all its time since the last look that is not counted yet may be a wait. That a thread has run
tells nothing: at a low priority it runs for a moment, and waits for seconds. A thread also sleeps like one
that waits for swapped memory if a file system does not answer, for ever: that counts for some seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import inf

from iamroles_agent.control.slots import Scheduled

Row = tuple[str, float, float, float]
"""A thread: its id, the seconds that it ran and waited, and those that may count in the state that it has."""
_COUNT = {b"R": inf, b"D": 10.0}
"""Seconds of a wait that may count, by the thread's state (proc(5), `stat`)."""


class CpuTime:
    """Looks at a process.

    Args:
        pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._at = pid, time.monotonic()
        self._ran = self._waited = 0.0
        """Seconds, summed over all threads seen so far."""
        self._threads: dict[str, tuple[float, float, float]] = {}
        """By id, at the last look: ran, waited, and the time before which all is counted or was slept."""

    def look(self) -> Scheduled:
        """Read the times. Where that fails, or on a kernel without them, the process counts as running."""
        now = time.monotonic()
        try:
            return self.counted(now, list(_threads(self._pid)))
        except (OSError, ValueError):
            self._ran, self._at = self._ran + now - self._at, now
            return Scheduled(self._ran, self._waited)

    def counted(self, now: float, rows: Iterable[Row]) -> Scheduled:
        """Count what the kernel tells at this monotonic time."""
        former, self._threads, self._at = self._threads, {}, now
        waiting = 0.0
        for tid, ran, waited, bound in rows:
            ran_then, waited_then, until = former.get(tid, (0.0, 0.0, now - ran - waited))
            self._ran += ran - ran_then
            self._waited += waited - waited_then
            until = min(until + ran - ran_then + waited - waited_then, now) if bound else now
            self._threads[tid] = ran, waited, until
            waiting += min(now - until, bound)
        return Scheduled(self._ran, self._waited, waiting)


def _threads(pid: int) -> Iterator[Row]:
    if _read(os.getpid(), str(os.getpid()), "schedstat").startswith(b"0 "):
        raise ValueError  # this process has run: the kernel counts nothing
    for tid in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - it is asked often
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            ran, waited = (int(word) / 1e9 for word in _read(pid, tid, "schedstat").split()[:2])
            yield tid, ran, waited, _COUNT.get(_read(pid, tid, "stat").rpartition(b") ")[2][:1], 0.0)


def _read(pid: int, tid: str, name: str) -> bytes:
    with open(f"/proc/{pid}/task/{tid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - as above
        return file.read(4096)
