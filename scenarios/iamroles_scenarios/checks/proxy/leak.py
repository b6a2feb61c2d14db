"""Nothing of one request may show in the next: not in its verdict, its tags, its challenge, or its record."""

from __future__ import annotations

import time
from typing import Any

from iamroles_scenarios.checks.proxy.traffic import Turn, gate, person
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import Bench
from iamroles_scenarios.engine.observation import Observation, differences
from iamroles_scenarios.engine.target import Target

_ROUNDS = 3
_LOG_WITHIN = 5.0
_POLL = 0.01
_ABSENT = "-"
_IDENTITY = ("issuer", "principal", "session", "role", "rule", "route", "expires")
"""Fields of HAProxy's record that a request without a verified token leaves empty (docs/haproxy.md)."""


@check("proxy.keep-alive.nothing-leaks", "PROXY-LEAK-001")
def nothing_leaks(target: Target) -> None:
    """On one connection nothing leaks from an allowed request to a refused one, nor back.

    Requests of two people alternate on one connection; the check compares every answer and every line of
    the record.
    """
    with gate(target) as here:
        people = [person(here, "alice"), person(here, "bob")]
        turns = [turn for both in zip(*people, strict=True) for turn in both] * _ROUNDS
        seen = []
        for turn in turns:
            shared = turn.request.model_copy(update={"connection": "one"})
            seen.append(here.client.ask(shared, turn.token, with_reason=False))
        here.client.close()
        for turn, answer in zip(turns, seen, strict=True):
            _answer(here, turn, answer)
        lines = _record(here, len(turns))
        for turn, answer, line in zip(turns, seen, lines, strict=True):
            if leaked := _leaked(turn, line):
                raise here.failed(
                    f"HAProxy's record of a request is another's: {leaked}", answer, turn.expected
                )


def _answer(here: Bench, turn: Turn, seen: Observation) -> None:
    if turn.wrong(seen):
        raise here.failed("the answer on a shared connection is wrong", seen, turn.expected)
    bearer = "invalid_token" if turn.token else ""
    error = {403: "insufficient_scope", 401: bearer}.get(seen.status or 0, "")
    if found := differences({"error": error}, seen.shown):
        raise here.failed(f"the challenge is not this request's own: {found[0]}", seen, turn.expected)


def _record(here: Bench, count: int) -> list[dict[str, Any]]:
    """HAProxy's lines of these requests, in order; each is written after its answer."""
    deadline = time.monotonic() + _LOG_WITHIN * here.target.scale
    while len(lines := here.world.haproxy.log_lines()) < count:
        if time.monotonic() > deadline:
            raise here.failed(f"HAProxy recorded {len(lines)} of {count} requests")
        time.sleep(_POLL)
    return lines


def _leaked(turn: Turn, line: dict[str, Any]) -> str:
    """What a line says that its own request cannot have said."""
    expected = turn.expected
    own: dict[str, object] = {"verdict": str(expected.status)}
    if expected.backend:
        own |= {"reason": _ABSENT, "route": expected.backend, "principal": expected.principal}
    elif expected.status == 401:
        own |= dict.fromkeys(_IDENTITY, _ABSENT)
    else:
        own |= {"route": _ABSENT, "rule": _ABSENT}
    return ", ".join(differences(own, line))
