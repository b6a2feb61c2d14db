"""Plays one phase on the loop and folds what it brought back."""

from __future__ import annotations

import gc
import resource
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from iamroles_loadtests.asking.plan import Phase, Piles
from iamroles_loadtests.measuring.book import Book
from iamroles_scenarios.traffic import (
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
from iamroles_scenarios.traffic.polling import NANO

WINDOWS = 60
"""A phase is also cut into at most so many windows of equal length, none shorter than `_SHORTEST`."""
_SHORTEST = 0.25


class Driver:
    """Knows the questions, plays phases.

    Args:
        piles: the questions.
    """

    def __init__(self, piles: Piles) -> None:
        self.cases: dict[str, Case] = {}
        self._piles = {name: [ask.question(self.cases) for ask in asks] for name, asks in piles.piles.items()}
        self._fresh: dict[str, deque[Question]] = {}
        """What is left of piles whose questions are asked once."""

    def play(self, phase: Phase, watch: Callable[[bytes], None] | None = None) -> dict[str, Any]:
        """Play a phase.

        Args:
            phase: what to do.
            watch: gets the raw records at the end, before they are folded.

        Returns:
            See `Book.measured`.

        Raises:
            KeyError: the phase names a pile that there is not.
            OSError: no such host.
        """
        for case in self.cases.values():
            case.wrong = case.faults = 0
            case.examples = []
        loop = self.loop(phase)
        loop.open(self.lines(phase, loop))
        if phase.streams:
            [question] = self._piles["stream"]
            loop.hold(self.lines(phase, loop, phase.streams), question)
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            begin = loop.start()
            counted = begin + round(phase.warmup * NANO)
            end = counted + round(phase.length * NANO)
            loop.run(counted)
            loop.tally.stalls.clear()
            loop.records.clear()
            before = resource.getrusage(resource.RUSAGE_SELF)
            loop.run(end)
            after = resource.getrusage(resource.RUSAGE_SELF)
            loop.finish()
        finally:
            gc.enable()
            gc.unfreeze()
        records = loop.records.take()
        if watch is not None:
            watch(records)
        cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
        count = max(1, min(WINDOWS, int(phase.length / _SHORTEST)))
        book = Book(counted, phase.length / count, count - 1)
        book.fold(records, self.cases.values())
        book.close(loop.tally, self.cases.values(), stamped=loop.stamped, cpu=cpu)
        return book.measured(phase.name, phase.length, closed=phase.closed)

    def loop(self, phase: Phase) -> Loop:
        """A loop that asks what the phase asks, when it asks it."""
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

    def lines(self, phase: Phase, loop: Loop, count: int = 0) -> list[Line]:
        """The phase's connections, or so many like them."""
        address = Address.of(phase.address)
        context = None
        if phase.tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the meter's own certificate, or a stranger's: it measures
        count = count or phase.connections
        if phase.lane == "http":
            return [HttpLine(loop, address, tls=context, fresh=phase.fresh) for _ in range(count)]
        return [SpopLine(loop, address, tls=context, in_flight=phase.in_flight) for _ in range(count)]
