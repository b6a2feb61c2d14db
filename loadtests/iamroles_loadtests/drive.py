"""Plays one phase on the loop and folds what it brought back."""

from __future__ import annotations

import gc
import itertools
import resource
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from iamroles_loadtests.histogram import Histogram, Integers, columns
from iamroles_loadtests.plan import Phase, Piles
from iamroles_scenarios.traffic import (
    FIELDS,
    Address,
    Case,
    Deck,
    HttpLine,
    Line,
    Loop,
    Question,
    Segment,
    SpopLine,
    arrivals,
)
from iamroles_scenarios.traffic.polling import NANO, now

WINDOWS = 60
"""A phase is also cut into at most so many windows of equal length, none shorter than `_SHORTEST`."""
_SHORTEST = 0.25
_SLICE = 20_000_000
"""Nanoseconds of the loop between two calls of `pause`."""


class Driver:
    """Knows the questions, plays phases.

    Args:
        piles: the questions.
        pause: called between slices of the loop, for a host that has other work (locust's greenlets).
    """

    def __init__(self, piles: Piles, pause: Callable[[], None] | None = None) -> None:
        self.cases: dict[str, Case] = {}
        self._piles = {name: [ask.question(self.cases) for ask in asks] for name, asks in piles.piles.items()}
        self._pause = pause
        self._fresh: dict[str, deque[Question]] = {}
        """What is left of piles whose questions are asked once."""

    def play(self, phase: Phase, watch: Callable[[bytes], None] | None = None) -> dict[str, Any]:
        """Play a phase.

        Args:
            phase: what to do.
            watch: gets the raw records at the end, before they are folded.

        Returns:
            See `measured`.

        Raises:
            KeyError: the phase names a pile that there is not.
            OSError: no such host.
        """
        for case in self.cases.values():
            case.wrong = case.faults = 0
            case.examples = []
        loop = self._loop(phase)
        loop.open(self._lines(phase, loop))
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            begin = loop.start()
            counted = begin + round(phase.warmup * NANO)
            end = counted + round(phase.length * NANO)
            self._run(loop, counted)
            loop.tally.stalls.clear()
            loop.records.clear()
            before = resource.getrusage(resource.RUSAGE_SELF)
            self._run(loop, end)
            after = resource.getrusage(resource.RUSAGE_SELF)
            loop.finish()
        finally:
            gc.enable()
            gc.unfreeze()
        records = loop.records.take()
        if watch is not None:
            watch(records)
        cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
        return measured(phase, loop, self.cases, records, begin=counted, cpu=cpu)

    def _run(self, loop: Loop, until: int) -> None:
        if self._pause is None:
            loop.run(until)
            return
        while (at := now()) < until:
            loop.run(min(until, at + _SLICE))
            self._pause()

    def _loop(self, phase: Phase) -> Loop:
        deck = Deck([(weight, self._piles[name]) for name, weight in phase.hands.items()], seed=phase.seed)
        if phase.once:
            fresh = self._fresh.get(phase.once)
            if fresh is None:  # once in a run: a later phase goes on where this one ends
                mine: list[Question] = self._piles[phase.once][phase.part :: phase.parts]
                fresh = self._fresh[phase.once] = deque(mine)
            deck.mix(fresh, phase.once_share)
        timetable = None
        if not phase.closed:
            segments = [stretch.segment() for stretch in phase.timetable]
            if phase.warmup:
                segments.insert(0, Segment(phase.warmup, segments[0].rate))
            timetable = arrivals(
                segments, seed=phase.seed, constant=phase.constant, part=phase.part, parts=phase.parts
            )
        return Loop(deck.deal(), timetable, patience=phase.patience)

    def _lines(self, phase: Phase, loop: Loop) -> list[Line]:
        address = Address.of(phase.address)
        context = None
        if phase.tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the meter's own certificate, or a stranger's: it measures
        count = phase.connections
        if phase.lane == "http":
            return [HttpLine(loop, address, tls=context, fresh=phase.fresh) for _ in range(count)]
        return [SpopLine(loop, address, tls=context, in_flight=phase.in_flight) for _ in range(count)]


def measured(
    phase: Phase,
    loop: Loop,
    cases: Mapping[str, Case],
    records: bytes,
    *,
    begin: int,
    cpu: float,
) -> dict[str, Any]:
    """Fold a phase.

    Returns:
        Counts of the whole phase (`answers`, `wrong`, `faults`, `owed`, `stray`, `lost`); `samples`, `wrong`,
        `faults` and the histograms `due`, `sent`, `told` of each case; histograms `lag`, `punctual` (from
        due, less the lag) and `noticed` (from sent, by this process's own clock); `windows` with histograms
        `due` and `sent`; `stalls` (begin in seconds of the phase, milliseconds); `steps` of the clock in
        milliseconds; whether latencies are `stamped` by the kernel; the generator's `cpu` seconds.
        Histograms are HdrHistogram V2 texts of nanoseconds.
    """
    table = columns(records, FIELDS)
    due, sent = table["received"] - table["due"], table["received"] - table["sent"]
    noticed = table["noticed"] - table["sent"]
    tally = loop.tally
    found: dict[str, Any] = {
        "name": phase.name,
        "begin": begin / NANO,
        "seconds": phase.length,
        "closed": phase.closed,
        "stamped": loop.stamped,
        "samples": int(due.size),
        "answers": tally.answers,
        "wrong": tally.wrong,
        "faults": tally.faults,
        "owed": tally.owed,
        "stray": tally.stray,
        "lost": tally.lost,
        "unstamped": tally.unstamped,
        "stalls": [[round((at - begin) / NANO, 4), round(took / 1e6, 3)] for at, took in tally.stalls],
        "steps": [round(step / 1e6, 3) for step in tally.steps],
        "cpu": round(cpu, 6),
        "lag": _histogram(table["lag"]),
        "punctual": _histogram(due - table["lag"]),
        "noticed": _histogram(noticed),
        "examples": tally.examples,
        "cases": {},
        "windows": list(_windows(table, due, sent, phase.length, begin)),
    }
    for case in cases.values():
        mine = table["case"] == case.number
        if not mine.any() and not case.faults and not case.wrong:
            continue
        told = table["told"][mine]
        found["cases"][case.name] = {
            "samples": int(mine.sum()),
            "wrong": case.wrong,
            "faults": case.faults,
            "due": _histogram(due[mine]),
            "sent": _histogram(sent[mine]),
            "told": _histogram(told[told >= 0]),
            "examples": case.examples,
        }
    return found


def _windows(
    table: Mapping[str, Integers], due: Integers, sent: Integers, seconds: float, begin: int
) -> Iterator[dict[str, Any]]:
    """Latency over time, by when requests were due."""
    count = max(1, min(WINDOWS, int(seconds / _SHORTEST)))
    width = seconds / count
    number = np.clip(((table["due"] - begin) / (width * NANO)).astype(np.int64), 0, count - 1)
    for window in range(count):
        mine = number == window
        yield {
            "at": round(window * width, 4),
            "seconds": round(width, 4),
            "samples": int(mine.sum()),
            "due": _histogram(due[mine]),
            "sent": _histogram(sent[mine]),
        }


def _histogram(values: Integers) -> str:
    return Histogram(values).encoded()


_COUNTS = ("samples", "answers", "wrong", "faults", "owed", "stray", "lost", "unstamped", "cpu")
_CASE_COUNTS = ("samples", "wrong", "faults")


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a phase that several generators shared: counts and histograms add exactly."""
    first = parts[0]
    if len(parts) == 1:
        return first
    found = dict(first)
    for name in _COUNTS:
        found[name] = round(sum(part[name] for part in parts), 6)
    for name in ("stalls", "steps", "examples"):
        found[name] = sorted(itertools.chain.from_iterable(part[name] for part in parts))
    found["stamped"] = all(part["stamped"] for part in parts)
    for name in ("lag", "punctual", "noticed"):
        found[name] = _sum(part[name] for part in parts)
    found["cases"] = {
        name: _case([part["cases"][name] for part in parts if name in part["cases"]])
        for name in dict.fromkeys(name for part in parts for name in part["cases"])
    }
    found["windows"] = [
        {
            **windows[0],
            "samples": sum(window["samples"] for window in windows),
            "due": _sum(window["due"] for window in windows),
            "sent": _sum(window["sent"] for window in windows),
        }
        for windows in zip(*(part["windows"] for part in parts), strict=True)
    ]
    return found


def _case(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{name: sum(part[name] for part in parts) for name in _CASE_COUNTS},
        **{name: _sum(part[name] for part in parts) for name in ("due", "sent", "told")},
        "examples": list(itertools.chain.from_iterable(part["examples"] for part in parts))[:20],
    }


def _sum(texts: Iterable[str]) -> str:
    return Histogram.merged(map(Histogram.decoded, texts)).encoded()
