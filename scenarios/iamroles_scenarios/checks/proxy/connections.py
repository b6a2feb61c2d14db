"""HAProxy's connections to the agent: of several threads, pipelined and not, and across reloads.

Each check asks traffic whose every answer is known (`proxy_traffic`). Where it matters what waits beside
what, a relay between the two holds the answers until enough are there: an event, never a guess of time.
"""

from __future__ import annotations

from contextlib import closing

from iamroles_scenarios.base.errors import Untestable
from iamroles_scenarios.checks.proxy.traffic import PROCESSING, Gate, Tally, Turn, at_once, gate, traffic
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_THREADS = 4
_PEOPLE = 12
_SIDE_BY_SIDE = 8
_BETWEEN = 60
"""Requests that must end before, between and after the reloads."""
_RELOADS = 3
_ROUND = 20.0
"""Seconds, times the scale, for so many requests."""


@check("proxy.threads.verdicts", "PROXY-THREADS-001")
def threads(target: Target) -> None:
    """HAProxy with four threads: every request gets its own verdict.

    Twelve people ask side by side through four threads, each with connections of its own to the agent.
    """
    with gate(target, settings={"IAM_THREADS": str(_THREADS)}) as place:
        said = place.world.haproxy.runtime("show info")
        if f"Nbthread: {_THREADS}" not in said.splitlines():
            raise Untestable(
                f"HAProxy does not run with {_THREADS} threads: its configuration must set nbthread from "
                "IAM_THREADS (docs/stage.md)"
            )
        with traffic(place, _people(place, _PEOPLE)) as tally:
            _flows(place, tally, _PEOPLE * 12)
        tally.judge(place, f"through {_THREADS} threads")


@check("proxy.pipelined.verdicts", "PROXY-PIPELINE-001", features={"spop"})
def pipelined(target: Target) -> str:
    """Questions that wait side by side on one connection each get their own answer.

    Answers are held until all questions wait, then let go in reverse order.

    Whether HAProxy pipelines is its own affair; the remark says where it did not. An agent need not: then
    nothing is held, because HAProxy opens no connection for each question.
    """
    with gate(target, settings={"IAM_THREADS": "1"}, pipelining=True) as place:
        tally = Tally()
        _warm(place, tally)
        if not _pipelines(place):
            with at_once(place, _different(place), tally):
                pass
            tally.judge(place, "side by side")
            return "the agent announces no pipelining"
        place.frames.hold()
        with at_once(place, _different(place), tally):
            _held(place, _SIDE_BY_SIDE)
            place.frames.release()
        tally.judge(place, "on pipelined connections")
        idle = place.frames.deepest < 2
    return "HAProxy asked one question at a time although the agent announced pipelining" if idle else ""


@check("proxy.one-by-one.verdicts", "PROXY-PIPELINE-002", features={"spop"})
def one_by_one(target: Target) -> str:
    """Without pipelining one question at a time waits on a connection, and each is answered.

    The capability is struck from both HELLOs; HAProxy opens more connections instead.

    HAProxy 3.3 now and then sends a second question all the same. That is the proxy's own doing: the agent
    is judged by its answers, and the remark says what HAProxy did.

    Answers are not held here: HAProxy 2.6 may forget a queued request when all its connections are busy and
    then fall free at once, which is no fault of the agent (docs/haproxy.md).
    """
    with gate(target, settings={"IAM_THREADS": "1"}, pipelining=False) as place:
        with traffic(place, _people(place, _PEOPLE)) as tally:
            _flows(place, tally, _PEOPLE * 12)
        tally.judge(place, "on connections without pipelining")
        deepest = place.frames.deepest
    return "" if deepest == 1 else f"HAProxy sent {deepest} questions side by side without being told it may"


@check("proxy.reload.in-flight", "PROXY-RELOAD-001", features={"spop"})
def in_flight(target: Target) -> None:
    """Requests that wait for their verdict while HAProxy reloads are answered rightly.

    The old process waits for answers, the new one already asks: neither gets the other's.
    """
    with gate(target, pipelining=True) as place:
        tally = Tally()
        _warm(place, tally)
        count = _SIDE_BY_SIDE if _pipelines(place) else 1
        place.frames.hold()
        with at_once(place, _different(place)[:count], tally):
            _held(place, count)
            place.world.haproxy.reload()
            with at_once(place, _different(place)[:count], tally):
                _held(place, 2 * count)
                place.frames.release()
        tally.judge(place, "in flight during a reload")


@check("proxy.reload.traffic", "PROXY-RELOAD-002")
def under_traffic(target: Target) -> None:
    """Reloads of HAProxy under keep-alive traffic lose no request and change no verdict.

    Four threads, twelve people, three reloads: each brings a burst of connections to the agent.
    """
    with gate(target, settings={"IAM_THREADS": str(_THREADS)}) as place:
        with traffic(place, _people(place, _PEOPLE)) as tally:
            for _ in range(_RELOADS):
                _flows(place, tally, _BETWEEN)
                place.world.haproxy.reload()
            _flows(place, tally, _BETWEEN)
        tally.judge(place, f"during {_RELOADS} reloads")


def _warm(place: Gate, tally: Tally) -> None:
    """One person first: afterwards a connection stands and keys are fetched."""
    client = place.another()
    with closing(client.client):
        for turn in place.person("first"):
            tally.ask(client, turn)


def _different(place: Gate) -> list[Turn]:
    """One question of each of some people, allowed and refused mixed."""
    people = _people(place, _SIDE_BY_SIDE)
    return [turns[number % len(turns)] for number, turns in enumerate(people)]


def _people(place: Gate, count: int) -> list[list[Turn]]:
    return [place.person(f"person-{number}") for number in range(count)]


def _pipelines(place: Gate) -> bool:
    """Whether the agent announced it; SPOE.txt 3.2.1 leaves it free."""
    return any("pipelining" in link.announced for link in place.frames.asking())


def _held(place: Gate, count: int) -> None:
    within = place.seconds(PROCESSING / 2)
    if not place.frames.wait_held(count, within):
        held = place.frames.held
        place.frames.release()
        raise place.failed(f"{held} of {count} questions were answered by the agent within {within:g} s")


def _flows(place: Gate, tally: Tally, requests: int) -> None:
    within = place.seconds(_ROUND)
    if not tally.wait(requests, within):
        raise place.failed(f"fewer than {requests} requests ended within {within:g} s")
