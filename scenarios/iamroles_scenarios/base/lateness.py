"""How long this host kept the judge, and what it judges, from running.

A process that is stopped, or that waits for a CPU, sees moments pass that it could not use. Whatever failed
in that time says little about an agent. Two measures tell:

- the *gap*: a thread of the judge sleeps `_BEAT` seconds again and again, and keeps each time that took much
  longer, because the process was stopped or starved, or another of its threads did not let go. In the wire
  lane a task of its event loop does the same, because that may stand still alone;
- the *share* of its time for which the stage's processes, or a thread of the judge, waited for a CPU, or the
  judge did not run. The kernel counts the waits of each thread (proc(5), `schedstat`). Those of the stage are
  added up: a change goes from process to process, and waits in each. An agent that sleeps, or computes for
  too long, does not wait for a CPU: its own fault is not counted. Two times are added: that in which all that
  could have run on this host waited for a disk (`/proc/pressure/io`, `full`), and that for which the machine
  below took one of this host's CPUs (`/proc/stat`, `steal`), because no thread is said to wait meanwhile.

The share is the greatest of any span that is as long as the wait in question: a host that starves an agent
for three seconds of a minute makes it late by three seconds, not by a twentieth.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import NamedTuple

from iamroles_scenarios.base.family import fields_of, text_of

_PROC = "/proc"
_PRESSURE = f"{_PROC}/pressure/io"
_STEAL = 8
"""The column of `/proc/stat` (proc(5))."""
_NUMBER, _BIRTH = 17, 19
"""Places in what `fields_of` returns: of the number of threads, and of the start."""
_BEAT = 0.02
_GAP = 0.05
"""Seconds beyond a beat that count as a gap."""
_LOOK = 0.5
"""Seconds between two looks at what each process has waited."""
_RARELY = 25
"""Seconds that pass for each second of CPU that a look takes: a host may have many processes. By its time a
busy host would be looked at the least."""
_KEPT, _LOOKS = 4096, 600
_TICKS = os.sysconf("SC_CLK_TCK")
_BURST, _BURSTS = 0.03, 5
"""Seconds of CPU of a burst of `slowdown`, and how many there are."""


@dataclass(frozen=True, slots=True)
class Delay:
    """What kept the judge and its stage from running while something was judged."""

    gap: float
    """Seconds: the longest time in which the judge did not run."""
    share: float
    """The greatest part of a span (0 to 1) that waits for a CPU or a disk may have taken."""


class _Seen(NamedTuple):
    """A process at a look."""

    parent: int | None
    """None for a thread of the judge."""
    born: float
    """By the monotonic clock."""
    waited: float
    """Seconds for which its threads have waited for a CPU, in all."""


class _Look(NamedTuple):
    """The waits that this host has caused until a moment."""

    at: float
    lost: float
    """Seconds in which the judge did not run, in all."""
    stalled: float
    """Seconds for which all waited for a disk, in all."""
    stolen: dict[str, float]
    """Seconds that each CPU was not this host's, in all."""
    found: dict[int, _Seen]


class _Pulse:
    """Looks at this host for as long as the process lives, from the first use on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._lost = 0.0
        self.gaps: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        """When each ended, and its seconds."""
        self._looks: deque[_Look] = deque(maxlen=_LOOKS)

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
                self.gaps.append((now, late))
                self._lost += late
            last = now
            if now > due:
                ran = time.thread_time()
                self.look()
                due = now + max(_LOOK, _RARELY * (time.thread_time() - ran))

    def look(self) -> None:
        """See for how long each process has waited by now."""
        self._looks.append(_Look(time.monotonic(), self._lost, _stalled(), _stolen(), _seen()))

    def gap(self, since: float) -> float:
        return max((late for ended, late in tuple(self.gaps) if ended > since), default=0.0)

    def share(self, since: float, firsts: Iterable[int | None], span: float, *, judge: bool) -> float:
        """Return the share of these families together, of members that have ended too, or of the judge."""
        self.look()
        looks = tuple(self._looks)
        looks = looks[max(0, bisect_right(looks, since, key=attrgetter("at")) - 1) :]

        def part(seconds: Callable[[_Look], float]) -> float:
            return _part([(look.at, seconds(look)) for look in looks], since, span)

        def parts(members: Callable[[Mapping[int, _Seen]], Iterable[int]]) -> list[float]:
            waited: dict[int, list[_Point]] = {}
            for look in looks:
                for pid in members(look.found):
                    seen = look.found[pid]
                    # A process that was born since the last look has waited only since then.
                    waited.setdefault(pid, [(seen.born, 0.0)]).append((look.at, seen.waited))
            return [_part(points, since, span) for points in waited.values()]

        shares = [sum(parts(lambda found: _families(found, firsts)))]
        if judge:
            shares += [part(lambda look: look.lost), *parts(_threads)]
        stolen = [part(lambda look: look.stolen.get(cpu, 0.0)) for cpu in looks[-1].stolen]  # noqa: B023 - used at once
        return min(1.0, max(shares) + part(lambda look: look.stalled) + max(stolen, default=0.0))


_Point = tuple[float, float]
"""A moment, and a number of seconds that has grown until then."""


def _part(points: Sequence[_Point], since: float, span: float) -> float:
    """Return the greatest growth since a moment in any span, as a part of the time."""
    moments = [at for at, _ in points]
    greatest = 0.0
    for ended, last in points:
        if ended < since + span and ended != moments[-1]:
            continue
        start = max(since, ended - span)
        began, first = points[max(0, bisect_right(moments, start) - 1)]
        length = ended - min(began, start)
        if ended > since and length > _BEAT:
            greatest = max(greatest, (last - first) / length)
    return greatest


def _stalled() -> float:
    """Return for how many seconds all that could have run waited for a disk; 0 if the kernel does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(text_of(_PRESSURE).split("full", 1)[1].partition("total=")[2].split()[0]) / 1e6
    return 0.0


def _stolen() -> dict[str, float]:
    """Return for how many seconds each CPU ran another guest; nothing if the kernel does not say."""
    with suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in text_of(f"{_PROC}/stat").splitlines()]
        return {of[0]: int(of[_STEAL]) / _TICKS for of in lines if of[0].startswith("cpu") and of[0] != "cpu"}
    return {}


def _threads(found: Mapping[int, _Seen]) -> list[int]:
    return [thread for thread, seen in found.items() if seen.parent is None]


def _families(found: Mapping[int, _Seen], firsts: Iterable[int | None]) -> list[int]:
    members = [pid for pid in firsts if pid in found]
    for member in members:
        members += [pid for pid, seen in found.items() if seen.parent == member]
    return [pid for pid in members if pid is not None]


def _waited(folder: str) -> float:
    return int(text_of(f"{folder}/schedstat").split()[1]) / 1e9


def _tasks(folder: str) -> list[str]:
    return [f"{folder}/task/{name}" for name in os.listdir(f"{folder}/task")]  # noqa: PTH208 - names, quickly


_BORN = int(fields_of(f"{_PROC}/self")[_BIRTH])
_older: set[str] = set()
"""Processes that were born before the judge, and so belong to no stage: no look reads them again."""


def _seen() -> dict[int, _Seen]:
    """Return the judge's threads, and the processes that were born after it, with what each has waited."""
    found = {}
    booted = time.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME)
    names = {name for name in os.listdir(_PROC) if name.isdecimal()}  # noqa: PTH208 - as above
    _older.intersection_update(names)
    for name in names - _older - {str(os.getpid())}:
        with suppress(OSError, ValueError, IndexError):
            fields = fields_of(folder := f"{_PROC}/{name}")
            if (born := int(fields[_BIRTH])) < _BORN:
                _older.add(name)
                continue
            threads = [folder] if fields[_NUMBER] == "1" else _tasks(folder)
            found[int(name)] = _Seen(int(fields[1]), booted + born / _TICKS, sum(map(_waited, threads)))
    for folder in _tasks(f"{_PROC}/self"):
        with suppress(OSError, ValueError, IndexError):
            born = int(fields_of(folder)[_BIRTH])
            found[int(folder.rpartition("/")[2])] = _Seen(None, booted + born / _TICKS, _waited(folder))
    return found


_pulse = _Pulse()
start = _pulse.start


async def watched_loop() -> None:
    """Keep the gaps of this event loop too, until it is cancelled: a bound may end in one unseen."""
    while True:
        last = time.monotonic()
        await asyncio.sleep(_BEAT)
        if (late := time.monotonic() - last - _BEAT) > _GAP:
            _pulse.gaps.append((time.monotonic(), late))


def delay(since: float, firsts: Iterable[int | None] = (), span: float = inf, *, judge: bool = True) -> Delay:
    """Return what kept the judge, and the families of these processes, from running since a moment.

    Args:
        since: by the monotonic clock.
        firsts: process ids of this host; None for a process that cannot be seen.
        span: seconds of the wait in question, at most since that moment.
        judge: False: the share counts for those processes alone.
    """
    return Delay(_pulse.gap(since), _pulse.share(since, list(firsts), span, judge=judge))


def slowdown() -> float:
    """Return how many times longer than its CPU time a short computation takes here: 1 on a quiet host."""
    ratios = []
    for _ in range(_BURSTS):
        began, ran = time.monotonic(), time.thread_time()
        while time.thread_time() - ran < _BURST:
            pass
        ratios.append((time.monotonic() - began) / (time.thread_time() - ran))
    return sorted(ratios)[_BURSTS // 2]
