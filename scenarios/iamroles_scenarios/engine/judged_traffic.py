"""Traffic under which something happens: a thread that asks without a pause, and answers to judge.

    traffic = JudgedTraffic(("127.0.0.1", 8080), rate=200, connections=8)
    traffic.ask(flow)
    traffic.start()
    traffic.wait(50)                     # 50 more answers
    with traffic.step("kill"):           # notes when it began and ended
        world.agent.kill()
    traffic.wait(50)
    traffic.stop()
    finding = traffic.judge(WindowSpec(check="kill", between=["kill", "end"], in_flight=["kill"]))

A thread drives the epoll loop of `iamroles_scenarios.traffic`, so the traffic is timed by the kernel and goes
on whatever the caller does. `ledger` says how answers are judged.
"""

from __future__ import annotations

import random
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from iamroles_scenarios.base.errors import HarnessFault, TooSlow
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.declarations.timeline import BEGIN, END, WindowSpec
from iamroles_scenarios.engine.ledger import NEVER, Entry, Finding, Flow, FlowQuestion, Kind, Ledger, p99
from iamroles_scenarios.engine.players import raw_request
from iamroles_scenarios.traffic import Address, Case, HttpClient, Loop, Right, Segment, arrivals
from iamroles_scenarios.traffic.polling import NANO, now

_SLICE = NANO // 50
"""Nanoseconds that the loop runs before tokens are renewed and waiters notified."""
_DAYS = 7 * 24 * 3600.0
PATIENCE = 15.0
"""Seconds, times the scale, after which a question without an answer is lost."""
_STALL = 30.0
"""Seconds, times the scale, without any answer after which a waiter gives up."""
_AT_ONCE = NANO // 4
"""Nanoseconds, times the scale, in which a request that met the end of an idle connection is sent again."""
GRACE = NANO // 10
"""Nanoseconds, times the scale, after a part was killed in which its neighbours may still write to it."""
_LEAST = 10
"""Answers that a window needs of each flow, to say anything."""
FLOOR = 0.5
"""Seconds, times the scale: a 99th percentile of no more is always allowed."""

_ANY = Right(status=0)
"""The loop judges nothing: the ledger does."""

Minter = Callable[[], tuple[str, float]]
"""Makes another token: its text, and its `exp` in epoch seconds (0: none)."""


@dataclass(slots=True)
class StepTimes:
    """When a step began and ended, in nanoseconds of CLOCK_REALTIME."""

    name: str
    begin: int
    end: int = 0


class _AskedFlow:
    """A flow as it is asked: its questions, of which those with dead tokens are asked for a while."""

    def __init__(self, flow: Flow, ledger: Ledger, case: Case, mint: Minter, renew: float) -> None:
        self.flow = flow
        self._ledger = ledger
        self._case = case
        self._mint = mint
        self._renew = round(renew * NANO)
        self._due = 0
        self.questions: list[FlowQuestion] = []

    def renew(self, at: int) -> None:
        """Mint another token if it is time."""
        if self.questions and not (self._renew and at >= self._due):
            return
        self._due = at + self._renew
        token, expires = self._mint()
        raw = raw_request(self.flow.request, token, keep=True)
        dies = round(expires * NANO) if expires else NEVER
        about: Any = {"flow": self.flow, "ledger": self._ledger, "secret": token, "dies": dies}
        kept = [one for one in self.questions if one.dies + NANO > now()]
        self.questions = [*kept, FlowQuestion(self._case, raw, _ANY, **about)]


class JudgedTraffic:
    """Traffic from its begin to its end.

    Args:
        address: HAProxy's.
        rate: questions a second; 0: each connection asks again at once.
        connections: how many.
        scale: multiplies deadlines.
        seed: of arrivals and of the order of questions.
        tls: speak TLS by this context.
        fresh: a new connection for each question.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        rate: float,
        connections: int,
        scale: float = 1.0,
        seed: int = 1,
        tls: ssl.SSLContext | None = None,
        fresh: bool = False,
    ) -> None:
        self.ledger = Ledger()
        self.steps: dict[str, StepTimes] = {}
        self.connections = connections
        self._scale = scale
        self._chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        self._flows: dict[str, _AskedFlow] = {}
        self._dealt: tuple[list[_AskedFlow], list[float]] = [], []
        """Those that are asked now, and their weights: one tuple, because another thread reads it."""
        self._moved = threading.Condition()
        self._stop = False
        self._fault: BaseException | None = None
        due = arrivals([Segment(_DAYS, rate)], seed=seed) if rate else None
        self._loop = Loop(self._questions(), due, patience=PATIENCE * scale)
        where = Address.of(f"{address[0]}:{address[1]}")
        again = round(_AT_ONCE * scale)
        self._clients = [
            HttpClient(self._loop, where, tls=tls, fresh=fresh, again=again) for _ in range(connections)
        ]
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    # --- flows ---------------------------------------------------------------------------------------------

    def ask(self, flow: Flow, *, mint: Minter | None = None, renew: float = 0.0) -> None:
        """Begin to ask a flow.

        Args:
            flow: what.
            mint: makes its tokens, the first included; None: it is asked without one.
            renew: seconds after which another token is minted; 0: never.
        """
        asked = _AskedFlow(flow, self.ledger, Case(flow.name), mint or (lambda: ("", 0.0)), renew)
        asked.renew(now())
        self._flows[flow.name] = asked
        self._deal([*self._dealt[0], asked])

    def leave(self, name: str) -> None:
        """Ask this flow no more."""
        self._deal([asked for asked in self._dealt[0] if asked.flow.name != name])

    def _deal(self, flows: list[_AskedFlow]) -> None:
        self._dealt = flows, [asked.flow.weight for asked in flows]

    def _questions(self) -> Iterator[FlowQuestion]:
        while True:
            (asked,) = self._chance.choices(*self._dealt)
            yield self._chance.choice(asked.questions)

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop.open(self._clients, within=5.0 * self._scale)
        self._mark(BEGIN)
        self._loop.start(self.steps[BEGIN].begin)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop:
                self._loop.run(now() + _SLICE)
                self._loop.records.clear()  # the ledger has them, and a soak lasts for days
                for asked in list(self._flows.values()):
                    asked.renew(now())
                with self._moved:
                    self._moved.notify_all()
            self._loop.finish()
        except BaseException as error:  # noqa: BLE001 - raised where somebody waits
            self._fault = error
        with self._moved:
            self._moved.notify_all()

    def stop(self) -> None:
        """Ask nothing more, wait for what is under way; idempotent."""
        if END in self.steps or BEGIN not in self.steps:
            return
        self._mark(END)
        self._stop = True
        self._thread.join(PATIENCE * self._scale + 30.0)
        if self._thread.is_alive():
            raise HarnessFault("the traffic did not end")
        self._raise_fault()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise HarnessFault(f"the traffic broke off: {self._fault!r}") from self._fault

    # --- time ----------------------------------------------------------------------------------------------

    def wait(self, more: int) -> None:
        """Wait until this many more answers came, or were lost.

        Raises:
            HarnessFault: the traffic stands still.
        """
        mark = self.ledger.count + more
        while (before := self.ledger.count) < mark:
            with self._moved:
                self._moved.wait_for(
                    lambda: self._fault is not None or self.ledger.count >= mark, _STALL * self._scale
                )
            self._raise_fault()
            if self.ledger.count == before:
                raise HarnessFault(f"no answer for {_STALL * self._scale:g} s")

    def until(self, seconds: float) -> None:
        """Wait for this moment of the timeline: seconds from its begin, times the scale."""
        moment = self.steps[BEGIN].begin + round(seconds * self._scale * NANO)
        while (left := moment - now()) > 0:
            with self._moved:
                self._moved.wait_for(lambda: self._fault is not None, left / NANO)
            self._raise_fault()

    @contextmanager
    def step(self, name: str) -> Iterator[StepTimes]:
        """Note when something begins and ends."""
        moment = self._mark(name)
        try:
            yield moment
        finally:
            moment.end = now()

    def _mark(self, name: str) -> StepTimes:
        at = now()
        self.steps[name] = StepTimes(name, at, at)
        return self.steps[name]

    def change(self, flow: str, expect: Expectation, *, by: str, settles: float = 0.0) -> None:
        """Change what a flow expects from a step on; for `settles` seconds after it the old passes too."""
        moment = self.steps[by]
        settled = moment.end + round(settles * self._scale * NANO)
        self._flows[flow].flow.change(expect, moment.begin, settled)

    def trust(self, context: ssl.SSLContext) -> None:
        """Shake hands by this context from now on."""
        for client in self._clients:
            client.context = context

    def phases(self) -> list[tuple[str, int, int]]:
        """Return each step's name, its begin and the next one's, nanoseconds of CLOCK_REALTIME."""
        steps = sorted(self.steps.values(), key=lambda step: step.begin)
        return [(one.name, one.begin, two.begin) for one, two in pairwise(steps)]

    # --- judging -------------------------------------------------------------------------------------------

    def judge(self, window: WindowSpec) -> Finding:
        """Judge the answers of a window.

        Raises:
            TooSlow: hardly anything was asked in it.
        """
        first = window.between[0]
        begin, end = (self._at(moment) for moment in window.between)
        entries = self.ledger.between(begin, end, window.flows)
        self._enough(window, entries)
        names = [one if isinstance(one, str) else f"{one:g} s" for one in window.between]
        found = Finding((names[0], names[1]), len(entries), p99=p99(entries))
        over = self.steps[first].end if isinstance(first, str) else begin
        excuse = over + round(window.recovers * self._scale * NANO)
        killed = [self.steps[name] for name in window.in_flight]
        under_way = 0
        for entry in entries:
            kind, why = entry.judged()
            if kind is Kind.RIGHT:
                continue
            found.recovered = max(found.recovered, self._since(entry.received))
            if kind is Kind.FALSE_DENY and entry.sent < excuse:
                found.excused[kind] += 1
            elif kind in (Kind.FAULT, Kind.LOST) and any(self._met(entry, step) for step in killed):
                found.excused[kind] += 1
                under_way += 1
            else:
                found.bad.append((entry, kind, why))
        counts = Counter(kind for _, kind, _ in found.bad)
        found.problems += [f"{count} of {len(entries)} answers: {kind}" for kind, count in counts.items()]
        if under_way > (most := self.connections * len(killed)):
            found.problems.append(
                f"{under_way} questions failed with a part that was killed, more than the {most}"
                " that can be in flight"
            )
        if window.p99 is not None:
            change = min(step.begin for name, step in self.steps.items() if name != BEGIN)
            began = (self.steps[BEGIN].begin + change) // 2  # until then its first keys may have come
            found.quiet = p99(self.ledger.between(began, change, window.flows))
            if found.p99 > max(window.p99 * found.quiet, FLOOR * self._scale):
                found.problems.append(
                    f"p99 was {found.p99 * 1000:.0f} ms, more than {window.p99:g} times the quiet "
                    f"{found.quiet * 1000:.1f} ms"
                )
        return found

    def _enough(self, window: WindowSpec, entries: Sequence[Entry]) -> None:
        for name in window.flows or ["any flow"]:
            count = sum(1 for entry in entries if not window.flows or entry.question.flow.name == name)
            if count < _LEAST:
                between = " and ".join(map(str, window.between))
                raise TooSlow(f"only {count} answers of {name} between {between}: raise the time scale")

    def _met(self, entry: Entry, killed: StepTimes) -> bool:
        return entry.sent <= killed.end + GRACE * self._scale and entry.received >= killed.begin

    def _since(self, at: int) -> float:
        """Return the seconds since the last step began."""
        return (at - max(step.begin for step in self.steps.values() if step.begin <= at)) / NANO

    def _at(self, moment: str | float) -> int:
        if isinstance(moment, str):
            return self.steps[moment].begin
        return self.steps[BEGIN].begin + round(moment * self._scale * NANO)
