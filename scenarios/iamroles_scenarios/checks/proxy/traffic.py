"""The common parts of the proxy lane's checks: a gate to themselves, and traffic whose every answer is known.

Each client of the traffic is a person of its own. On one keep-alive connection it asks for routes that are
allowed, forbidden, and refused. So a verdict that lands on the wrong request shows as a wrong status, a wrong
backend, or another person's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from iamroles_scenarios.base.errors import HarnessFault, HttpFault
from iamroles_scenarios.base.recording import carried
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec
from iamroles_scenarios.declarations.timeline import BEGIN
from iamroles_scenarios.engine.bench import Bench, own_bench
from iamroles_scenarios.engine.judged_traffic import JudgedTraffic
from iamroles_scenarios.engine.ledger import Flow, Kind, Outcomes
from iamroles_scenarios.engine.observation import Observation, mismatches
from iamroles_scenarios.stage.relay import Relay
from iamroles_scenarios.traffic.polling import now

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target

PROCESSING = 10.0
"""Seconds, times the scale, that HAProxy waits for a verdict here: more than any wait of these checks."""


@dataclass(frozen=True, slots=True)
class HttpQuestion:
    """One request, and the observation that it must give."""

    request: RequestSpec
    token: str
    expected: Expectation

    def wrong(self, seen: Observation) -> list[str]:
        """List the differences between an answer and the expected one."""
        return mismatches(self.expected, seen, {})

    def minted(self) -> tuple[str, float]:
        """Return the token for traffic, with 0 as its end: it never ends."""
        return self.token, 0.0


def _open(backend: str, principal: str) -> Expectation:
    return Expectation(status=200, backend=backend, principal=principal)


def shut(status: int) -> Expectation:
    """Return a refusal, with no backend reached and no name shown."""
    return Expectation(status=status, backend="", principal="")


def person(here: Bench, name: str) -> list[HttpQuestion]:
    """List the questions of a person on a keep-alive connection: yes, no, yes, no, no, yes."""
    reader, dead = (here.token(sub=name, exp=exp) for exp in ("+15m", "-5m"))
    writer = here.token(roles=["writer"], sub=name, exp="+15m")
    look = RequestSpec(path="/orders/1", connection=name)
    order = RequestSpec(method="POST", path="/orders", connection=name)
    return [
        HttpQuestion(look, reader, _open("orders-ro", name)),
        HttpQuestion(order, reader, shut(403)),
        HttpQuestion(order, writer, _open("orders-rw", name)),
        HttpQuestion(look, "", shut(401)),
        HttpQuestion(look, dead, shut(401)),
        HttpQuestion(look, reader, _open("orders-ro", name)),
    ]


@contextmanager
def gate(
    target: Target,
    *,
    settings: Mapping[str, str] | None = None,
    pipelining: bool | None = None,
    agent: Mapping[str, Any] | None = None,
    agents: Literal[1, 2] = 1,
) -> Iterator[Bench]:
    """Yield a bench on a world of the orders' policy.

    Args:
        target: agent and stage.
        settings: HAProxy's, over a patient IAM_TIMEOUT_PROCESSING.
        pipelining: puts a relay before the agent, with or without that capability; None: no relay.
        agent: keys of the world's `agent` table.
        agents: how many are behind HAProxy; the relay stands before the first.
    """
    chosen = {"IAM_TIMEOUT_PROCESSING": f"{PROCESSING:g}s", **(settings or {})}
    with ExitStack() as stack:
        relays: list[Relay] = []

        def between(host: str, agent: str) -> str:
            relays.append(stack.enter_context(closing(Relay(host, agent, pipelining=pipelining is True))))
            return relays[0].address

        how: dict[str, Any] = {"settings": chosen, "between": None if pipelining is None else between}
        how["override"] = {"agent": agent} if agent else {}
        here = stack.enter_context(own_bench(target, "orders", agents=agents, **how))
        here.relay = relays[0] if relays else None
        yield here


def must_answer(here: Bench, question: HttpQuestion, when: str) -> None:
    """Ask on a client's connection, and hold the answer to be right."""
    must_be_right(here, question, here.client.ask(question.request, question.token, with_reason=False), when)


def must_be_right(here: Bench, question: HttpQuestion, seen: Observation, when: str) -> None:
    """Hold an answer to be right; a 5xx may be all that a late host made of it."""
    if question.wrong(seen):
        if (seen.status or 0) >= 500:
            here.seconds(PROCESSING)
        raise here.failed(f"the answer {when} is wrong", seen, question.expected)


@contextmanager
def traffic(
    here: Bench,
    people: Sequence[Sequence[HttpQuestion]],
    when: str,
    *,
    lossless: bool = True,
    excuses: Sequence[tuple[int, int]] = (),
) -> Iterator[JudgedTraffic]:
    """Ask without a pause, on as many connections as there are people, until the context ends.

    Args:
        here: the gate.
        people: their questions.
        when: of the answers, for a failure.
        lossless: whether a lost request is a failure, or a fault of the harness.
        excuses: see `Outcomes`; read when the context ends.

    Raises:
        CheckFailed: an answer was wrong, or a request lost; with the first of them.
    """
    proxy = here.world.proxy
    found = JudgedTraffic(
        (proxy.host, proxy.port), rate=0.0, connections=len(people), scale=here.target.scale
    )
    for number, question in enumerate(question for questions in people for question in questions):
        flow = Flow(str(number), question.request, question.expected)
        found.ask(flow, mint=question.minted)
    found.start()
    try:
        yield found
    finally:
        found.stop()
    outcomes = Outcomes(found.ledger, found.steps[BEGIN].begin)
    outcomes.excuses.extend(excuses)
    outcomes.judge(now())
    if outcomes.bad:
        _, entry, _, why = outcomes.examples[0]
        message = f"{outcomes} {when}: {why}"
        if set(outcomes.bad) == {Kind.LOST} and not lossless:
            raise HarnessFault(message)
        if {Kind.FAULT, Kind.LOST}.issuperset(outcomes.bad):
            here.seconds(PROCESSING)
        raise here.failed(message, entry.seen if entry.status else None, entry.right[0])


@contextmanager
def at_once(here: Bench, questions: Sequence[HttpQuestion], when: str) -> Iterator[None]:
    """Ask all of these side by side, each on a client of its own; all are answered when the context ends.

    Raises:
        CheckFailed: an answer was wrong, or a request lost.
    """

    def ask(client: Bench, question: HttpQuestion) -> None:
        with closing(client.client):
            try:
                must_answer(client, question, when)
            except HttpFault as error:
                here.seconds(PROCESSING)
                raise here.failed(f"a request {when} was lost: {error}") from error

    with ThreadPoolExecutor(len(questions), thread_name_prefix="client") as pool:
        asked = [pool.submit(carried(ask), here.another(), question) for question in questions]
        yield
        for done in asked:
            done.result()
