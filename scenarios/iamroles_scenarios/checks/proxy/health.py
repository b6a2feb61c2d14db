"""HAProxy's health check of the agent (`option spop-check`).

A silent agent costs every request the whole processing timeout, until the health check has taken it out. So
the agent is frozen, not killed: a refused connection would be quick without any health check.
"""

from __future__ import annotations

import time
from contextlib import closing

from iamroles_scenarios.base.errors import Untestable
from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.checks.proxy.traffic import PROCESSING, HttpQuestion, gate, person
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.target import Target

_NOTICED = 15.0
"""Seconds, times the scale, until HAProxy must have seen a change: some rounds of health checks."""
_AT_ONCE = PROCESSING / 4
"""Seconds, times the scale: well below the processing timeout, which a request would cost otherwise."""


@check("proxy.health.passes", "PROXY-HEALTH-001", features={"spop"})
def passes(target: Target) -> None:
    """HAProxy's SPOP health check passes on a sound agent.

    The check has ended, and ended well: UP alone is only HAProxy's first assumption.
    """
    with bench(target, "orders") as here:
        for last in polls(here.seconds(_NOTICED)):
            if (status := _check_status(here)) == "L7OK":
                break
            if last:
                raise here.failed(f"the health check says {status or 'nothing'}, not L7OK")
        if not here.world.haproxy.agent_is_up():
            raise here.failed("the health check passed, but HAProxy does not call the agent up")


@check("proxy.health.silent", "PROXY-HEALTH-002", "PROXY-HEALTH-003", features={"spop"})
def silent(target: Target) -> None:
    """An agent that falls silent is taken out: 503 at once; it comes back without a restart.

    The agent is frozen until the health check sees it, and then killed.
    """
    with gate(target) as here:
        question, *_ = person(here, "alice")
        _open(here, question, "before anything happened")
        agent = here.world.agent
        agent.pause()
        try:
            _shut(here, question, "frozen")
        finally:
            agent.resume()
        _open(here, question, "after it was frozen")
        agent.kill()
        _shut(here, question, "killed")
        agent.start()
        _open(here, question, "after it was killed")


def _check_status(here: Bench) -> str:
    """Ask HAProxy for the outcome of the agent's last health check, e.g. `L7OK`; "" before the first."""
    if not (rows := here.world.haproxy.agents):
        raise Untestable('HAProxy has no server in a backend "iam-agents" (docs/stage.md)')
    return (rows[0]["check_status"] or "").removeprefix("* ")


def _shut(here: Bench, question: HttpQuestion, what: str) -> None:
    """Require that HAProxy notices, and then refuses without waiting for the agent."""
    if not here.world.haproxy.wait_agent(up=False, within=here.seconds(_NOTICED)):
        raise here.failed(f"HAProxy did not take the {what} agent out within {here.seconds(_NOTICED):g} s")
    started = time.monotonic()
    seen = _asked(here, question)
    seconds = time.monotonic() - started
    if seen.status != 503 or seen.allow:
        raise here.failed(f"status {seen.status} while the agent is {what}, expected 503", seen)
    if seconds > here.seconds(_AT_ONCE):
        raise here.failed(f"503 took {seconds:.1f} s while the {what} agent is out, not at once", seen)


def _open(here: Bench, question: HttpQuestion, when: str) -> None:
    """Require that HAProxy calls the agent up, and that its verdict comes through."""
    if not here.world.haproxy.wait_agent(up=True, within=here.seconds(_NOTICED)):
        raise here.failed(f"HAProxy did not take the agent back within {here.seconds(_NOTICED):g} s {when}")
    seen = _asked(here, question)
    if question.wrong(seen):
        raise here.failed(f"the answer {when} is wrong", seen, question.expected)


def _asked(here: Bench, question: HttpQuestion) -> Observation:
    with closing(here.another().client) as client:
        return client.ask(question.request, question.token, with_reason=False)
