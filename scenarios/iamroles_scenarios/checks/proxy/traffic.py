"""What the checks of the proxy lane share: a gate to themselves, and traffic whose every answer is known.

Each client of the traffic is a person of its own, and asks, on one keep-alive connection, what must be
allowed here, allowed there, forbidden, and refused. So a verdict that lands on the wrong request, whichever
way it got there, is seen as a wrong status, a wrong backend, or another person's name.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.declarations.scenario import RequestSpec, WorldSpec, policy_of
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.players import ProxyPlayer
from iamroles_scenarios.errors import AgentFault, CheckFailed, Evidence, HarnessFault, StageError
from iamroles_scenarios.stage.relay import Relay

if TYPE_CHECKING:
    from iamroles_scenarios.engine.play import Target
    from iamroles_scenarios.mock.clients import IssuerHandle
    from iamroles_scenarios.stage import World

PROCESSING = 10.0
"""Seconds, times the scale, that HAProxy waits for a verdict here: more than any wait of these checks."""
_READER = {"roles": ["arn:aws:iam::111111111111:role/reader"]}
_WRITER = {"roles": ["arn:aws:iam::111111111111:role/writer"]}


@dataclass(frozen=True, slots=True)
class Case:
    """One request and what must come of it."""

    request: RequestSpec
    token: str
    status: int
    backend: str = ""
    """"" for a refusal: no backend may be reached."""
    principal: str = ""

    @property
    def expected(self) -> str:
        """For a reader."""
        reached = f"backend {self.backend!r}, principal {self.principal!r}" if self.backend else "no backend"
        return f"status {self.status}, {reached}"

    def right(self, seen: Observation) -> bool:
        """Whether the answer is the one this request must get."""
        told = (seen.status, seen.backend, seen.tags.get("principal", ""))
        return told == (self.status, self.backend, self.principal)


@dataclass(slots=True)
class Gate:
    """A world to itself, and its tokens."""

    world: World
    issuer: IssuerHandle
    scale: float
    relay: Relay | None = None

    @property
    def frames(self) -> Relay:
        """The relay of a gate that was made with one."""
        assert self.relay is not None  # noqa: S101 - the check asked for it
        return self.relay

    def player(self) -> ProxyPlayer:
        """One client; to be closed."""
        return ProxyPlayer(self.world, self.scale)

    def person(self, name: str) -> list[Case]:
        """What one person asks, in this order, on one keep-alive connection: yes, no, yes, no, no, yes."""

        def token(claims: Mapping[str, Any], exp: str = "+15m") -> str:
            return self.issuer.mint({**claims, "claims": {"sub": name}, "exp": exp})

        reader, writer, dead = token(_READER), token(_WRITER), token(_READER, "-5m")
        look = RequestSpec(path="/orders/1", connection=name)
        place = RequestSpec(method="POST", path="/orders", connection=name)
        return [
            Case(look, reader, 200, "orders-ro", name),
            Case(place, reader, 403),
            Case(place, writer, 200, "orders-rw", name),
            Case(look, "", 401),
            Case(look, dead, 401),
            Case(look, reader, 200, "orders-ro", name),
        ]

    def failed(self, message: str, case: Case | None = None, seen: Observation | None = None) -> CheckFailed:
        """A failure with what a reader needs to believe it."""
        logs = {part: "\n".join(text.splitlines()[-25:]) for part, text in self.world.logs().items()}
        return CheckFailed(
            message,
            Evidence(
                sent=seen.sent if seen else "",
                expected=case.expected if case else "",
                received=seen.received if seen else "",
                logs=logs,
            ),
        )


@contextmanager
def gate(
    target: Target, *, settings: Mapping[str, str] | None = None, pipelining: bool | None = None
) -> Iterator[Gate]:
    """A gate of the orders policy, with an issuer of its own.

    Args:
        target: agent and stage.
        settings: HAProxy's, over a patient IAM_TIMEOUT_PROCESSING.
        pipelining: puts a relay before the agent, with or without that capability; None: no relay.

    Raises:
        AgentFault: the agent does not come up under this policy.
    """
    name = f"proxy-{uuid.uuid4().hex[:8]}"
    policy = json.loads(
        json.dumps(policy_of(WorldSpec(policy="orders"))).replace("{idp}/corp", f"{{idp}}/{name}")
    )
    issuer = target.worlds.issuer(name)
    chosen = {"IAM_TIMEOUT_PROCESSING": f"{round(PROCESSING * target.scale * 1000)}ms", **(settings or {})}
    relays: list[Relay] = []

    def between(host: str, agent: str) -> str:
        relays.append(Relay(host, agent, pipelining=pipelining is True))
        return relays[0].address

    def end() -> None:
        for relay in relays:
            relay.close()

    with ExitStack() as stack:
        stack.callback(end)
        try:
            world = target.stage.world(
                target.agent, policy, settings=chosen, between=None if pipelining is None else between
            )
        except StageError as error:
            if set(error.logs) == {"agent"}:
                raise AgentFault(
                    f"the agent did not come up: {error.message}", error.logs["agent"]
                ) from error
            raise
        stack.enter_context(world)
        yield Gate(world, issuer, target.scale, relays[0] if relays else None)


@dataclass(slots=True)
class Tally:
    """What came of some traffic."""

    answered: int = 0
    lost: list[str] = field(default_factory=list)
    """Requests on a new connection that got no HTTP answer."""
    wrong: list[tuple[Case, Observation]] = field(default_factory=list)
    moved: threading.Condition = field(default_factory=threading.Condition)

    def ask(self, player: ProxyPlayer, case: Case) -> None:
        """Ask one and count it."""
        try:
            seen = player.ask(case.request, case.token, with_reason=False)
        except HarnessFault as error:
            with self.moved:
                self.lost.append(f"{case.request.method} {case.request.path}: {error}")
                self.moved.notify_all()
            return
        with self.moved:
            self.answered += 1
            if not case.right(seen):
                self.wrong.append((case, seen))
            self.moved.notify_all()

    def wait(self, more: int, within: float) -> bool:
        """Until so many more requests have ended, one way or the other; False at the deadline."""
        with self.moved:
            mark = self._ended + more
            return self.moved.wait_for(lambda: self._ended >= mark, within)

    @property
    def _ended(self) -> int:
        return self.answered + len(self.lost)

    def judge(self, gate: Gate, when: str) -> None:
        """Hold that nothing was wrong and nothing was lost.

        Raises:
            CheckFailed: with the first of them.
        """
        total = self._ended
        if self.wrong:
            raise gate.failed(f"{len(self.wrong)} of {total} answers {when} were wrong", *self.wrong[0])
        if self.lost:
            raise gate.failed(f"{len(self.lost)} of {total} requests {when} were lost: {self.lost[0]}")


@contextmanager
def traffic(gate: Gate, people: int) -> Iterator[Tally]:
    """People who ask without a pause, each on a connection of its own, until the context ends."""
    tally = Tally()
    stop = threading.Event()
    cases = [gate.person(f"person-{number}") for number in range(people)]

    def client(mine: Sequence[Case]) -> None:
        player = gate.player()
        try:
            while not stop.is_set():
                for case in mine:
                    tally.ask(player, case)
        finally:
            player.close()

    with ThreadPoolExecutor(people, thread_name_prefix="client") as pool:
        clients = [pool.submit(client, mine) for mine in cases]
        try:
            yield tally
        finally:
            stop.set()
    for done in clients:
        done.result()  # a client that fell is a fault of the harness


@contextmanager
def at_once(gate: Gate, cases: Sequence[Case], tally: Tally) -> Iterator[None]:
    """Ask all of these side by side, each on a connection of its own; all have ended when the context has."""

    def client(case: Case) -> None:
        player = gate.player()
        try:
            tally.ask(player, case)
        finally:
            player.close()

    with ThreadPoolExecutor(len(cases), thread_name_prefix="client") as pool:
        asked: list[Callable[[], None]] = [pool.submit(client, case).result for case in cases]
        yield
        for result in asked:
            result()
