"""Nothing of one request may show in the next: not in its verdict, its tags, its challenge, or its record."""

from __future__ import annotations

import time
from typing import Any

from iamroles_scenarios.checks.proxy.traffic import Case, Gate, gate
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.play import Target

_ROUNDS = 3
_LOG_WITHIN = 5.0
_POLL = 0.01
_ABSENT = "-"
_IDENTITY = ("issuer", "principal", "session", "role", "rule", "route", "expires")
"""Fields of HAProxy's record that a request without a verified token leaves empty (docs/haproxy.md)."""


@check(
    "proxy.keep-alive.nothing-leaks",
    requirements=["PROXY-LEAK-001"],
    lane="proxy",
    title="on one connection nothing leaks from an allowed request to a refused one, nor back",
)
def nothing_leaks(target: Target) -> None:
    """Two people take turns on one connection; every answer and every line of the record is compared."""
    with gate(target) as place:
        people = [place.person("alice"), place.person("bob")]
        turns = [case for cases in zip(*people, strict=True) for case in cases] * _ROUNDS
        player = place.player()
        try:
            seen = []
            for case in turns:
                shared = case.request.model_copy(update={"connection": "one"})
                seen.append(player.ask(shared, case.token, with_reason=False))
        finally:
            player.close()
        for case, answer in zip(turns, seen, strict=True):
            _answer(place, case, answer)
        lines = _record(place, len(turns))
        for case, answer, line in zip(turns, seen, lines, strict=True):
            if leaked := _leaked(case, line):
                raise place.failed(f"HAProxy's record of a request holds {leaked}", case, answer)


def _answer(place: Gate, case: Case, seen: Observation) -> None:
    if not case.right(seen):
        raise place.failed("the answer on a shared connection is wrong", case, seen)
    error = {403: "insufficient_scope", 401: "invalid_token" if case.token else ""}.get(case.status, "")
    if seen.error != error:
        message = f"the challenge says error={seen.error!r}, this request's own is {error!r}"
        raise place.failed(message, case, seen)


def _record(place: Gate, count: int) -> list[dict[str, Any]]:
    """HAProxy's lines of these requests, in order; each is written after its answer."""
    deadline = time.monotonic() + _LOG_WITHIN * place.scale
    while len(lines := place.world.haproxy.log_lines()) < count:
        if time.monotonic() > deadline:
            raise place.failed(f"HAProxy recorded {len(lines)} of {count} requests")
        time.sleep(_POLL)
    return lines


def _leaked(case: Case, line: dict[str, Any]) -> str:
    """What a line says that its own request cannot have said."""
    if case.backend:
        own = {"reason": _ABSENT, "route": case.backend, "principal": case.principal, "verdict": "200"}
    elif case.status == 401:
        own = {**dict.fromkeys(_IDENTITY, _ABSENT), "verdict": "401"}
    else:
        own = {"route": _ABSENT, "rule": _ABSENT, "verdict": str(case.status)}
    return ", ".join(f"{name}={line.get(name)!r}" for name, value in own.items() if line.get(name) != value)
