"""What the checks of the proxy lane share: a gate to themselves, and traffic whose every answer is known.

Each client of the traffic is a person of its own, and asks, on one keep-alive connection, what must be
allowed here, allowed there, forbidden, and refused. So a verdict that lands on the wrong request, whichever
way it got there, is seen as a wrong status, a wrong backend, or another person's name.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import HarnessFault
from iamroles_scenarios.base.recording import carried
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec
from iamroles_scenarios.engine.bench import Bench, own_bench
from iamroles_scenarios.engine.observation import Observation, mismatches
from iamroles_scenarios.stage.relay import Relay

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target

PROCESSING = 10.0
"""Seconds, times the scale, that HAProxy waits for a verdict here: more than any wait of these checks."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request and what must come of it."""

    request: RequestSpec
    token: str
    expected: Expectation

    def wrong(self, seen: Observation) -> list[str]:
        """How the answer differs from the one that this request must get."""
        return mismatches(self.expected, seen, {})


def _open(backend: str, principal: str) -> Expectation:
    return Expectation(status=200, backend=backend, principal=principal)


def shut(status: int) -> Expectation:
    """A refusal: no backend may be reached, no name told."""
    return Expectation(status=status, backend="", principal="")


def person(here: Bench, name: str) -> list[Turn]:
    """What one person asks, in this order, on one keep-alive connection: yes, no, yes, no, no, yes."""
    reader, dead = (here.token(sub=name, exp=exp) for exp in ("+15m", "-5m"))
    writer = here.token(roles=["writer"], sub=name, exp="+15m")
    look = RequestSpec(path="/orders/1", connection=name)
    order = RequestSpec(method="POST", path="/orders", connection=name)
    return [
        Turn(look, reader, _open("orders-ro", name)),
        Turn(order, reader, shut(403)),
        Turn(order, writer, _open("orders-rw", name)),
        Turn(look, "", shut(401)),
        Turn(look, dead, shut(401)),
        Turn(look, reader, _open("orders-ro", name)),
    ]


@contextmanager
def gate(
    target: Target, *, settings: Mapping[str, str] | None = None, pipelining: bool | None = None
) -> Iterator[Bench]:
    """A world of the orders' policy for one check.

    Args:
        target: agent and stage.
        settings: HAProxy's, over a patient IAM_TIMEOUT_PROCESSING.
        pipelining: puts a relay before the agent, with or without that capability; None: no relay.
    """
    chosen = {"IAM_TIMEOUT_PROCESSING": f"{round(PROCESSING * target.scale * 1000)}ms", **(settings or {})}
    with ExitStack() as stack:
        relays: list[Relay] = []

        def between(host: str, agent: str) -> str:
            relays.append(stack.enter_context(closing(Relay(host, agent, pipelining=pipelining is True))))
            return relays[0].address

        how: dict[str, Any] = {"settings": chosen, "between": None if pipelining is None else between}
        here = stack.enter_context(own_bench(target, "orders", **how))
        here.relay = relays[0] if relays else None
        yield here


@dataclass(slots=True)
class Tally:
    """What came of some traffic."""

    answered: int = 0
    lost: list[str] = field(default_factory=list)
    """Requests on a new connection that got no HTTP answer."""
    wrong: list[tuple[Turn, Observation]] = field(default_factory=list)
    moved: threading.Condition = field(default_factory=threading.Condition)

    def ask(self, client: Bench, turn: Turn) -> None:
        try:
            seen = client.client.ask(turn.request, turn.token, with_reason=False)
        except HarnessFault as error:
            with self.moved:
                self.lost.append(f"{turn.request.method} {turn.request.path}: {error}")
                self.moved.notify_all()
            return
        with self.moved:
            self.answered += 1
            if turn.wrong(seen):
                self.wrong.append((turn, seen))
            self.moved.notify_all()

    def wait(self, more: int, within: float) -> bool:
        """Until so many more requests have ended, one way or the other; False at the deadline."""
        with self.moved:
            mark = self._ended + more
            return self.moved.wait_for(lambda: self._ended >= mark, within)

    @property
    def _ended(self) -> int:
        return self.answered + len(self.lost)

    def judge(self, bench: Bench, when: str) -> None:
        """Hold that nothing was wrong and nothing was lost.

        Raises:
            CheckFailed: with the first of them.
        """
        total = self._ended
        if self.wrong:
            turn, seen = self.wrong[0]
            message = f"{len(self.wrong)} of {total} answers {when} were wrong"
            raise bench.failed(message, seen, turn.expected)
        if self.lost:
            raise bench.failed(f"{len(self.lost)} of {total} requests {when} were lost: {self.lost[0]}")


@contextmanager
def traffic(bench: Bench, people: Sequence[Sequence[Turn]]) -> Iterator[Tally]:
    """People who take their turns without a pause, each on a client of its own, until the context ends."""
    tally = Tally()
    stop = threading.Event()

    def person(client: Bench, turns: Sequence[Turn]) -> None:
        with closing(client.client):
            while not stop.is_set():
                for turn in turns:
                    tally.ask(client, turn)

    with ThreadPoolExecutor(len(people), thread_name_prefix="client") as pool:
        asking = [pool.submit(carried(person), bench.another(), turns) for turns in people]
        try:
            yield tally
        finally:
            stop.set()
    for done in asking:
        done.result()  # a client that fell is a fault of the harness


@contextmanager
def at_once(bench: Bench, turns: Sequence[Turn], tally: Tally) -> Iterator[None]:
    """Ask all of these side by side, each on a client of its own; all have ended when the context has."""

    def once(client: Bench, turn: Turn) -> None:
        with closing(client.client):
            tally.ask(client, turn)

    with ThreadPoolExecutor(len(turns), thread_name_prefix="client") as pool:
        asked = [pool.submit(carried(once), bench.another(), turn) for turn in turns]
        yield
        for done in asked:
            done.result()
