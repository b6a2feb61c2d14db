"""HAProxy's health check of the agent (`option spop-check`): what it costs to be without one.

A silent agent costs every request the whole processing timeout, until the health check has taken it out. So
the agent is frozen, not killed: a refused connection would be quick without any health check.
"""

from __future__ import annotations

import csv
import time
from io import StringIO

from iamroles_scenarios.checks.proxy.traffic import PROCESSING, Case, Gate, gate
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.play import Target
from iamroles_scenarios.errors import Untestable

_NOTICED = 15.0
"""Seconds, times the scale, until a check's outcome must be known: some rounds of checks."""
_AT_ONCE = PROCESSING / 4
"""Seconds, times the scale: well below the processing timeout, which a request would cost otherwise."""
_POLL = 0.02


@check(
    "proxy.health.passes",
    requirements=["PROXY-HEALTH-001"],
    lane="proxy",
    title="HAProxy's SPOP health check passes on a sound agent",
)
def passes(target: Target) -> None:
    """The check has ended, and ended well: UP alone is only HAProxy's first assumption."""
    with gate(target) as place:
        deadline = time.monotonic() + _NOTICED * target.scale
        while (status := _check_status(place)) != "L7OK":
            if time.monotonic() > deadline:
                raise place.failed(f"the health check says {status or 'nothing'}, not L7OK")
            time.sleep(_POLL)
        if not place.world.haproxy.agent_is_up():
            raise place.failed("the health check passed, but HAProxy does not hold the agent for up")


@check(
    "proxy.health.silent",
    requirements=["PROXY-HEALTH-002", "PROXY-HEALTH-003"],
    lane="proxy",
    title="an agent that falls silent is taken out: 503 at once; it comes back without a restart",
)
def silent(target: Target) -> None:
    """Freeze it, wait for the health check, ask; then the same with a kill; each time it must come back."""
    with gate(target) as place:
        case, *_ = place.person("alice")
        _open(place, case, "before anything happened")
        agent = place.world.agent
        agent.pause()
        try:
            _shut(place, case, "frozen")
        finally:
            agent.resume()
        _open(place, case, "after it was frozen")
        agent.kill()
        _shut(place, case, "killed")
        agent.start()
        _open(place, case, "after it was killed")


def _check_status(place: Gate) -> str:
    """What HAProxy says of the agent's last health check, e.g. `L7OK`; "" before the first."""
    said = place.world.haproxy.runtime("show stat iam-agents 4 -1").lstrip("# ")
    rows = list(csv.DictReader(StringIO(said)))
    if not rows:
        raise Untestable('HAProxy has no server in a backend "iam-agents" (docs/stage.md)')
    return str(rows[0].get("check_status") or "").removeprefix("* ")


def _shut(place: Gate, case: Case, what: str) -> None:
    """HAProxy must notice, and then refuse without waiting for the agent."""
    if not place.world.haproxy.wait_agent(up=False, within=_NOTICED * place.scale):
        raise place.failed(f"HAProxy did not take the {what} agent out within {_NOTICED * place.scale:g} s")
    started = time.monotonic()
    seen = _asked(place, case)
    seconds = time.monotonic() - started
    if seen.status != 503 or seen.allow:
        raise place.failed(f"status {seen.status} while the agent is {what}, expected 503", None, seen)
    if seconds > _AT_ONCE * place.scale:
        raise place.failed(f"503 took {seconds:.1f} s while the {what} agent is out, not at once", None, seen)


def _open(place: Gate, case: Case, when: str) -> None:
    """HAProxy must hold the agent for up, and its verdict must come through."""
    if not place.world.haproxy.wait_agent(up=True, within=_NOTICED * place.scale):
        raise place.failed(f"HAProxy did not take the agent back within {_NOTICED * place.scale:g} s {when}")
    seen = _asked(place, case)
    if not case.right(seen):
        raise place.failed(f"the answer {when} is wrong", case, seen)


def _asked(place: Gate, case: Case) -> Observation:
    player = place.player()
    try:
        return player.ask(case.request, case.token, with_reason=False)
    finally:
        player.close()
