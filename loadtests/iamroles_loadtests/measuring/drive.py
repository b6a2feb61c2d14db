"""Plays phases on the loop, in this process."""

from __future__ import annotations

import gc
import resource
import ssl
from collections import deque
from collections.abc import Callable

from iamroles_loadtests.asking.plan import Phase, Pools
from iamroles_loadtests.measuring.measurement import Measurement
from iamroles_scenarios import traffic
from iamroles_scenarios.traffic import HttpClient, Loop, Question, QuestionMix, Segment, SpopClient, arrivals
from iamroles_scenarios.traffic.polling import NANO

WINDOWS = 60
"""A phase is also cut into at most so many windows of equal length, none shorter than `_SHORTEST`."""
_SHORTEST = 0.25


class Driver:
    """Knows the questions, plays phases.

    Args:
        pools: the questions.
    """

    def __init__(self, pools: Pools) -> None:
        self.cases: dict[str, traffic.Case] = {}
        self._pools = {name: [ask.question(self.cases) for ask in asks] for name, asks in pools.items()}
        self._fresh: dict[str, deque[Question]] = {}
        """The rest of pools whose questions are asked once."""

    def play(self, phase: Phase, watch: Callable[[bytes], None] | None = None) -> Measurement:
        """Play a phase.

        Args:
            phase: what to do.
            watch: gets the raw records at the end, before they are counted.

        Raises:
            KeyError: the phase names an unknown pool.
            ValueError: the questions that are asked once ran out, and others took their place.
            OSError: no such host.
        """
        for case in self.cases.values():
            case.wrong = case.faults = 0
            case.examples = []
        loop = self.loop(phase)
        loop.open(self.clients(phase, loop))
        if phase.streams:
            [question] = self._pools["stream"]
            loop.hold(self.clients(phase, loop, phase.streams), question)
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
        if phase.once and not self._fresh[phase.once]:
            raise ValueError(f"{phase.name}: the pool {phase.once!r}, of questions asked once, ran dry")
        records = loop.records.take()
        if watch is not None:
            watch(records)
        cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
        count = max(1, min(WINDOWS, int(phase.length / _SHORTEST)))
        width = phase.length / count
        measured = Measurement(begin=counted, width=width, last=count - 1, seconds=phase.length)
        measured.record(records, self.cases.values())
        measured.finish(loop.tally, self.cases.values(), stamped=loop.stamped, cpu=cpu)
        return measured

    def loop(self, phase: Phase) -> Loop:
        """A loop that asks what the phase asks, when it asks it."""
        mix = QuestionMix(
            [(weight, self._pools[name]) for name, weight in phase.weights.items()], seed=phase.seed
        )
        if phase.once:
            if phase.once not in self._fresh:  # once in a run: a later phase goes on where this one ends
                self._fresh[phase.once] = deque(self._pools[phase.once])
            mix.add_fresh(self._fresh[phase.once], phase.once_share)
        timetable = None
        if not phase.closed:
            segments = list(phase.timetable)
            if phase.warmup:
                segments.insert(0, Segment(phase.warmup, segments[0].rate))
            timetable = arrivals(segments, seed=phase.seed, constant=phase.constant)
        return Loop(mix.questions(), timetable, patience=phase.patience)

    def clients(self, phase: Phase, loop: Loop, count: int = 0) -> list[traffic.Client]:
        """The phase's connections, or so many like them."""
        address = traffic.Address.of(phase.address)
        context = None
        if phase.tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the meter's own certificate, or a stranger's: it measures
        count = count or phase.connections
        if phase.protocol == "http":
            return [HttpClient(loop, address, tls=context, fresh=phase.fresh) for _ in range(count)]
        return [SpopClient(loop, address, tls=context, in_flight=phase.in_flight) for _ in range(count)]
