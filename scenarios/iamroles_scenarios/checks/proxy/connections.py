"""HAProxy's connections to the agent: of several threads, pipelined and not, and across reloads.

Each check sends traffic whose every answer is known (`proxy.traffic`). If it matters which questions wait
side by side, a relay between the two holds the answers until enough are there: an event, never a guess of
time.
"""

from __future__ import annotations

from iamroles_scenarios.base.errors import TooSlow, Untestable
from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.checks.proxy import traffic as proxy_traffic
from iamroles_scenarios.checks.proxy.traffic import HttpQuestion, at_once, gate, person, shut, traffic
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.traffic.polling import NANO, now

_THREADS = 4
_PEOPLE = 12
_SIDE_BY_SIDE = 8
_BETWEEN = 60
"""Requests that must end before, between and after the reloads."""
_RELOADS, _CLIENTS = 3, 3
_ON_ITS_WAY = 2.0
"""Seconds, times the scale, in which the stopped agent says goodbye."""
_DOWN = 10.0
"""Seconds, times the scale, in which HAProxy's health checks must see that an agent stopped or runs again."""
_AGES = 10.0
"""Seconds, times the scale, in which connections of a second at most must have ended twice."""


@check("proxy.threads.verdicts", "PROXY-THREADS-001")
def threads(target: Target) -> None:
    """HAProxy with four threads: every request gets its own verdict.

    Each thread has connections of its own to the agent.
    """
    with gate(target, settings={"IAM_THREADS": str(_THREADS)}) as here:
        said = here.world.haproxy.runtime("show info")
        if f"Nbthread: {_THREADS}" not in said.splitlines():
            raise Untestable(
                f"HAProxy does not run with {_THREADS} threads: its configuration must set nbthread from "
                "IAM_THREADS (docs/stage.md)"
            )
        with traffic(here, _people(here, _PEOPLE), f"through {_THREADS} threads") as flowing:
            flowing.wait(_PEOPLE * 12)


@check("proxy.pipelined.verdicts", "PROXY-PIPELINE-001", features={"spop"})
def pipelined(target: Target) -> str:
    """Questions that wait side by side on one connection each get their own answer.

    The relay holds the answers until all questions wait, then lets them go in reverse order.

    The remark says if HAProxy did not pipeline. An agent need not pipeline: then the relay holds nothing,
    because HAProxy opens no connection for each question.
    """
    with gate(target, settings={"IAM_THREADS": "1"}, pipelining=True) as here:
        _warm(here)
        if not _pipelines(here):
            with at_once(here, _different(here), "side by side"):
                pass
            return "the agent announces no pipelining"
        here.frames.hold()
        with at_once(here, _different(here), "on pipelined connections"):
            _held(here, _SIDE_BY_SIDE)
            here.frames.release()
        idle = here.frames.deepest < 2
    return "HAProxy asked one question at a time although the agent announced pipelining" if idle else ""


@check("proxy.one-by-one.verdicts", "PROXY-PIPELINE-002", features={"spop"})
def one_by_one(target: Target) -> str:
    """Without pipelining only one question at a time is on a connection, and each is answered.

    The relay strikes the capability from both HELLOs; HAProxy opens more connections instead. HAProxy 3.3
    now and then sends a second question all the same. That is the proxy's own doing: the check judges the
    agent by its answers, and the remark says what HAProxy did.

    The relay holds no answers here: HAProxy 2.6 may forget a queued request when all its connections are
    busy and then fall free at once, which the agent cannot help (docs/haproxy.md).
    """
    with gate(target, settings={"IAM_THREADS": "1"}, pipelining=False) as here:
        with traffic(here, _people(here, _PEOPLE), "on connections without pipelining") as flowing:
            flowing.wait(_PEOPLE * 12)
        deepest = here.frames.deepest
    return "" if deepest == 1 else f"HAProxy sent {deepest} questions side by side without leave"


@check("proxy.reload.in-flight", "PROXY-RELOAD-001", features={"spop"})
def in_flight(target: Target) -> None:
    """Requests that wait for their verdict while HAProxy reloads are answered rightly.

    The old process waits for answers while the new one already asks: neither gets the other's.
    """
    with gate(target, pipelining=True) as here:
        _warm(here)
        count = _SIDE_BY_SIDE if _pipelines(here) else 1
        here.frames.hold()
        questions, when = _different(here)[:count], "in flight during a reload"
        with at_once(here, questions, when):
            _held(here, count)
            here.world.haproxy.reload()
            with at_once(here, questions, when):
                _held(here, 2 * count)
                here.frames.release()


@check("proxy.reload.traffic", "PROXY-RELOAD-002")
def under_traffic(target: Target) -> None:
    """Reloads of HAProxy under keep-alive traffic lose no request and change no verdict.

    Each reload brings a burst of connections to the agent.
    """
    with gate(target, settings={"IAM_THREADS": str(_THREADS)}) as here:
        _through_reloads(here, _people(here, _PEOPLE), lossless=True)


@check("proxy.age.traffic", "PROXY-AGE-001", features={"age", "spop"})
def ageing(target: Target) -> str:
    """Connections that the agent ends because they are old cost no request, and change no verdict.

    A question that crosses the goodbye on its way is lost, whatever the agent does: the relay notes when.
    The agent has `max_connection_age = "1s"`. Traffic flows until HAProxy has made two more connections for
    each of its threads; a busy host begins with many more of them than it goes on with.
    """
    age = {"max_connection_age": "1s"}
    with (
        gate(target, settings={"IAM_THREADS": str(_THREADS)}, pipelining=True, agent=age) as here,
        traffic(
            here, _people(here, _PEOPLE), "while connections end of their age", excuses=here.frames.crossed
        ) as flowing,
    ):
        flowing.wait(_BETWEEN)
        first, end = len(here.frames.asking()), now() + round(here.seconds(_AGES) * NANO)
        while (made := len(here.frames.asking())) < first + 2 * _THREADS:
            if now() > end:
                raise here.failed(
                    f"in {here.seconds(_AGES):g} s HAProxy made {made} connections, first {first}"
                )
            flowing.wait(_BETWEEN)
    return f"{made} connections, {first} at first"


@check("proxy.pair.crossed", "FIRE-PAIR-002", features={"pair", "spop"})
def crossed(target: Target) -> str:
    """A question that is on its way to an agent when SIGTERM ends it costs no request: the other is asked.

    HAProxy goes on asking on the connections that it has, so traffic begins while only the first agent runs.
    The relay passes the goodbyes of several connections on one after another: a request whose second question
    crosses one too is lost, whatever the agent does.
    """
    with gate(target, pipelining=True, agents=2) as here:
        other = here.loan.worlds[1].agent
        other.stop()
        checked = all(row["status"] != "no check" for row in here.world.haproxy.agents)
        if checked and not here.world.haproxy.wait_agent(False, here.seconds(_DOWN), agents=2):
            raise TooSlow(f"HAProxy did not hold a stopped agent for down within {_DOWN:g} s")
        with traffic(
            here, _people(here, _PEOPLE), "while one agent of two stops", excuses=here.frames.again
        ) as flowing:
            flowing.wait(_BETWEEN)
            other.start()
            here.loan.wait_agents(here.seconds(_DOWN))
            before = here.frames.asked
            here.frames.leaves(here.seconds(_ON_ITS_WAY))
            if not any(here.frames.asked > before for _last in polls(here.seconds(_ON_ITS_WAY / 2))):
                raise Untestable("HAProxy asks the first of two agents nothing")
            here.world.agent.stop()
            flowing.wait(_BETWEEN)
        return f"{len(here.frames.crossed)} questions crossed a goodbye"


@check("gate.haproxy-reload.verdicts", "GATE-RELOAD-001")
def haproxy_reload(target: Target) -> None:
    """Reloads of HAProxy under traffic change no verdict."""
    with bench(target, "orders", "gate.haproxy-reload", own=True) as here:
        token = here.token(exp="+15m")
        questions = [
            HttpQuestion(RequestSpec(path="/orders/1"), token, Expectation(backend="orders-ro")),
            HttpQuestion(RequestSpec(path="/admin"), token, shut(403)),
        ]
        _through_reloads(here, [questions] * _CLIENTS, lossless=False)


def _through_reloads(here: Bench, people: list[list[HttpQuestion]], *, lossless: bool) -> None:
    with traffic(here, people, f"during {_RELOADS} reloads", lossless=lossless) as flowing:
        for _ in range(_RELOADS):
            flowing.wait(_BETWEEN)
            here.world.haproxy.reload()
        flowing.wait(_BETWEEN)


def _warm(here: Bench) -> None:
    """Let one person ask first: afterwards a connection stands and keys are fetched."""
    for question in person(here, "first"):
        proxy_traffic.must_answer(here, question, "before the others")


def _different(here: Bench) -> list[HttpQuestion]:
    """Return one question of each of some people, allowed and refused mixed."""
    people = _people(here, _SIDE_BY_SIDE)
    return [questions[number % len(questions)] for number, questions in enumerate(people)]


def _people(here: Bench, count: int) -> list[list[HttpQuestion]]:
    return [person(here, f"person-{number}") for number in range(count)]


def _pipelines(here: Bench) -> bool:
    """Tell whether the agent announced pipelining, which SPOE.txt 3.2.1 leaves free."""
    return any("pipelining" in link.announced for link in here.frames.asking())


def _held(here: Bench, count: int) -> None:
    within = here.seconds(proxy_traffic.PROCESSING / 2)
    if not here.frames.wait_held(count, within):
        held = here.frames.held
        here.frames.release()
        raise here.failed(f"{held} of {count} questions were answered by the agent within {within:g} s")
