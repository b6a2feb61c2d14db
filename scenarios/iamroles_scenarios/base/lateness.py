"""How long this host kept the judge, and what it judges, from running.

A process that is stopped, or that waits for a CPU, sees moments pass that it could not use. Whatever failed
in that time says little about an agent. Two measures tell:

- the *gap*: a thread of the judge sleeps `_BEAT` seconds again and again, and keeps each time that took much
  longer, because the process was stopped or starved, or another of its threads did not let go;
- the *share* of its time for which a process of the stage, or a thread of the judge, waited for a CPU. The
  kernel counts that for each thread (proc(5), `schedstat`); of the stage's processes the first thread is
  taken, because it answers. An agent that sleeps, or computes for too long, does not wait for a CPU: its own
  fault is not counted. The time in which all that could have run on this host waited for a disk is added
  (`/proc/pressure/io`, `full`).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_PRESSURE = _PROC / "pressure/io"
_BEAT = 0.02
_GAP = 0.05
"""Seconds beyond a beat that count as a gap."""
_LOOK = 0.5
"""Seconds between two looks at what each process has waited."""
_RARELY = 25
"""How much longer than a look takes at least passes until the next: a host may have many processes."""
_KEPT, _LOOKS = 4096, 600
_BURST, _BURSTS = 0.03, 5
"""Seconds of CPU of a burst of `slowdown`, and how many there are."""


@dataclass(frozen=True, slots=True)
class Delay:
    """What kept the judge and its stage from running while something was judged."""

    gap: float
    """Seconds: the longest time in which the judge did not run."""
    share: float
    """The greatest part of the time (0 to 1) for which a process waited for a CPU, and all for a disk."""


class _Seen(NamedTuple):
    """A process at a look."""

    parent: int | None
    """None for a thread of the judge."""
    waited: float
    """Seconds for which its first thread has waited for a CPU, in all."""


class _Pulse:
    """Looks at this host for as long as the process lives, from the first use on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._gaps: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        """When each ended, and its seconds."""
        self._looks: deque[tuple[float, float, dict[int, _Seen]]] = deque(maxlen=_LOOKS)
        """When each was, for how many seconds all had waited for a disk, and what it saw of each process."""

    def start(self) -> None:
        """Begin, once in each process."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self.look()
                threading.Thread(target=self._beat, name="iamroles-pulse", daemon=True).start()

    def _beat(self) -> None:
        last = time.monotonic()
        due = last + _LOOK
        while True:
            time.sleep(_BEAT)
            now = time.monotonic()
            if (late := now - last - _BEAT) > _GAP:
                self._gaps.append((now, late))
            last = now
            if now > due:
                self.look()
                last = time.monotonic()
                due = last + max(_LOOK, _RARELY * (last - now))

    def look(self) -> None:
        """See for how long each process has waited by now."""
        self._looks.append((time.monotonic(), _stalled(), _seen()))

    def gap(self, since: float) -> float:
        return max((late for ended, late in tuple(self._gaps) if ended > since), default=0.0)

    def share(self, since: float, firsts: Iterable[int | None]) -> float:
        """Return the greatest share of a member of these families, of members that have ended too."""
        self.look()
        waited: dict[int, list[tuple[float, float]]] = {}
        stalled: list[tuple[float, float]] = []
        for at, disk, found in [look for look in self._looks if look[0] >= since - 2 * _LOOK]:
            stalled.append((at, disk))
            own = [thread for thread, seen in found.items() if seen.parent is None]
            for pid in [*own, *_families(found, firsts)]:
                waited.setdefault(pid, []).append((at, found[pid].waited))
        shares = [_part(points, since) for points in waited.values()]
        return min(1.0, max(shares, default=0.0) + _part(stalled, since))


def _part(points: Sequence[tuple[float, float]], since: float) -> float:
    """Return the growth of a number of seconds since a moment, as a part of the time."""
    before = [point for point in points if point[0] <= since]
    began, first = before[-1] if before else points[0]
    ended, last = points[-1]
    return (last - first) / (ended - began) if ended - began > _BEAT else 0.0


def _stalled() -> float:
    """Return for how many seconds all that could have run waited for a disk; 0 if the kernel does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(_PRESSURE.read_text().split("full", 1)[1].partition("total=")[2].split()[0]) / 1e6
    return 0.0


def _families(found: Mapping[int, _Seen], firsts: Iterable[int | None]) -> list[int]:
    members = [pid for pid in firsts if pid in found]
    for member in members:
        members += [pid for pid, seen in found.items() if seen.parent == member]
    return [pid for pid in members if pid is not None]


def _seen() -> dict[int, _Seen]:
    found = {}
    for entry in _PROC.iterdir():
        with suppress(OSError, ValueError, IndexError):
            if entry.name.isdecimal():
                waited = int((entry / "schedstat").read_text().split()[1]) / 1e9
                # The second field is the name, in brackets, and may hold anything.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = _Seen(int(fields[1]), waited)
    for entry in (_PROC / "self/task").iterdir():
        with suppress(OSError, ValueError, IndexError):
            waited = int((entry / "schedstat").read_text().split()[1]) / 1e9
            found[int(entry.name)] = _Seen(None, waited)
    return found


_pulse = _Pulse()
start = _pulse.start


def delay(since: float, firsts: Iterable[int | None] = ()) -> Delay:
    """Return what kept the judge, and the families of these processes, from running since a moment.

    Args:
        since: by the monotonic clock.
        firsts: process ids of this host; None for a process that cannot be seen.
    """
    return Delay(_pulse.gap(since), _pulse.share(since, list(firsts)))


def slowdown() -> float:
    """Return how many times longer than its CPU time a short computation takes here: 1 on a quiet host."""
    ratios = []
    for _ in range(_BURSTS):
        began, ran = time.monotonic(), time.thread_time()
        while time.thread_time() - ran < _BURST:
            pass
        ratios.append((time.monotonic() - began) / (time.thread_time() - ran))
    return sorted(ratios)[_BURSTS // 2]
