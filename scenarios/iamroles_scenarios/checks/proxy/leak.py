"""A request shows nothing of the one before: not in its verdict, its tags, its challenge, or its record."""

from __future__ import annotations

import json
from typing import Any

from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.checks.proxy.traffic import HttpQuestion, gate, must_be_right, person
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import Bench
from iamroles_scenarios.engine.observation import Observation, differences
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import b64url_decode

_ROUNDS = 3
_LOG_WITHIN = 5.0
_ABSENT = "-"
_CALLER = ("principal", "session", "role", "expires")
"""Fields of HAProxy's record that name a caller. A refusal may lack them (SPEC.md 1.14, 3.1)."""


@check("proxy.keep-alive.nothing-leaks", "PROXY-LEAK-001")
def nothing_leaks(target: Target) -> None:
    """On one connection nothing leaks from an allowed request to a refused one, nor back.

    Requests of two people alternate on one connection; the check compares every answer and every line of
    the record.
    """
    with gate(target) as here:
        people = [person(here, "alice"), person(here, "bob")]
        questions = [question for both in zip(*people, strict=True) for question in both] * _ROUNDS
        seen = []
        for question in questions:
            shared = question.request.model_copy(update={"connection": "one"})
            seen.append(here.client.ask(shared, question.token, with_reason=False))
        here.client.close()
        for question, answer in zip(questions, seen, strict=True):
            _answer(here, question, answer)
        lines = _record(here, len(questions))
        for question, answer, line in zip(questions, seen, lines, strict=True):
            if leaked := _leaked(question, line):
                raise here.failed(
                    f"HAProxy's record of a request is another's: {leaked}", answer, question.expected
                )


def _answer(here: Bench, question: HttpQuestion, seen: Observation) -> None:
    must_be_right(here, question, seen, "on a shared connection")
    bearer = "invalid_token" if question.token else ""
    error = {403: {"", "insufficient_scope"}, 401: bearer}.get(seen.status or 0, "")
    if found := differences({"error": error}, seen.shown):
        raise here.failed(f"the challenge is not this request's own: {found[0]}", seen, question.expected)


def _record(here: Bench, count: int) -> list[dict[str, Any]]:
    """Wait for HAProxy's lines of these requests, in order; it writes each after its answer."""
    for _last in polls(here.target.seconds(_LOG_WITHIN), 0.01):
        if len(lines := here.world.haproxy.log_lines()) >= count:
            return lines
    raise here.failed(f"HAProxy recorded {len(lines)} of {count} requests")


def _leaked(question: HttpQuestion, line: dict[str, Any]) -> str:
    """Return the fields of a line that cannot be those of its own request."""
    expected = question.expected
    own: dict[str, object] = {"status": expected.status}
    if backend := expected.backend:
        own |= {"reason": _ABSENT, "backend": {backend, f"route-{backend}"}, "principal": expected.principal}
        return ", ".join(differences(own, line))
    own |= {"rule": _ABSENT} | dict.fromkeys(_CALLER, _ABSENT)
    if question.token:  # it proves its caller, though it may have expired
        claims = json.loads(b64url_decode(question.token.split(".")[1]))
        proved = (claims["sub"], claims["jti"], *claims["roles"], str(claims["exp"]))
        own |= {name: {_ABSENT, value} for name, value in zip(_CALLER, proved, strict=True)}
    return ", ".join(differences(own, dict.fromkeys(_CALLER, _ABSENT) | line))
