"""Policy checks of the record: HAProxy's log has each request, and no log has a secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence, Untestable
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import bench
from iamroles_scenarios.engine.observation import Observation, differences
from iamroles_scenarios.engine.target import Target

if TYPE_CHECKING:
    from iamroles_scenarios.stage import World

_WITHIN = 5.0
"""Seconds, times the scale, until a line of the log is there."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    name: str
    recipe: dict[str, Any]
    request: dict[str, Any]
    record: dict[str, str]
    """Fields of HAProxy's line. A refusal may leave out caller and role (SPEC.md 3.1)."""


_WHO = ("principal", "issuer", "role")

_RECORDED = (
    _Recorded(
        "an allowed request",
        {"roles": ["reader"], "sub": "alice", "claims": {"jti": "session-1"}},
        {"path": "/orders/1"},
        {
            "principal": "alice",
            "session": "session-1",
            "issuer": "corp",
            "role": "arn:aws:iam::111111111111:role/reader",
            "rule": "R1",
            "route": "orders-ro",
            "method": "GET",
            "path": "/orders/1",
        },
    ),
    _Recorded(
        "a request that a deny refused",
        {"roles": ["reader", "contractor"], "sub": "bob"},
        {"path": "/orders/export", "role": "reader"},
        {"reason": "denied_by_rule", "principal": "bob", "issuer": "corp", "rule": "R3"},
    ),
    _Recorded(
        "a request without a grant",
        {"roles": ["idle"], "sub": "carol"},
        {"path": "/orders/1"},
        {"reason": "no_grant", "principal": "carol", "role": "arn:aws:iam::111111111111:role/idle"},
    ),
    _Recorded(
        "an ambiguous token",
        {"roles": ["reader", "writer"], "sub": "dave"},
        {"path": "/orders/1"},
        {"reason": "ambiguous_role", "principal": "dave"},
    ),
    _Recorded("an expired token", {"roles": ["reader"], "exp": "-60s"}, {}, {"reason": "token_expired"}),
    _Recorded("a forged token", {"roles": ["reader"], "key": "other"}, {}, {"reason": "signature_invalid"}),
    _Recorded(
        "an ambiguous path", {"roles": ["reader"]}, {"path": "/orders/%2e%2e/x"}, {"reason": "path_ambiguous"}
    ),
)


@check("policy.record.line", "AUDIT-LOG-001", lane="gate")
def line(target: Target) -> str:
    """The proxy's record says who did what with which role, or why not, and joins the backend's log.

    One line for each request, found by a host of its own; its request id is the backend's.
    """
    with bench(target, "policy") as here:
        for number, row in enumerate(_RECORDED):
            host = f"record-{number}.example.com"
            seen = here.ask(here.token(**row.recipe), with_reason=False, host=host, **row.request)
            record = here.world.haproxy.wait_log(_of_host(host), here.seconds(_WITHIN))
            if record is None:
                raise here.failed(f"{row.name}: HAProxy's log has no line for it", seen)
            _compare(row, seen, record)
    return f"{len(_RECORDED)} requests"


def _of_host(host: str) -> Callable[[dict[str, Any]], bool]:
    return lambda found: found.get("host") == host


def _compare(row: _Recorded, seen: Observation, record: dict[str, Any]) -> None:
    wanted: dict[str, object] = dict(row.record)
    if "reason" in row.record:
        known = {name: {row.record[name], "-"} for name in _WHO if name in row.record}
        wanted |= known
    if seen.allow:
        ids = [value for name, value in seen.headers if name == "x-iam-request-id"]
        wanted["request_id"] = ids[0] if len(ids) == 1 else "the one X-IAM-Request-Id that the backend got"
        wanted["expires"] = seen.tags.get("expires", "")
    if wrong := differences(wanted, record):
        evidence = Evidence(sent=seen.sent, expected=str(wanted), received=json.dumps(record))
        raise CheckFailed(f"{row.name}: {'; '.join(wrong)}", evidence)


@check("policy.record.secret", "AUDIT-SECRET-001", lane="gate")
def secret(target: Target) -> str:
    """Agent and proxy log neither a token nor the signature of a token.

    Allowed, refused, malformed and repeated tokens; then the check searches both logs for pieces of them.
    """
    with bench(target, "policy", "policy.record.secret", own=True) as here:
        tokens = [here.token(**row.recipe) for row in _RECORDED]
        tokens += [f"{tokens[0][:-40]}.{tokens[0][-40:]}", tokens[0] + "A" * 40, tokens[0].replace(".", ",")]
        for token in tokens:
            for form in _FORMS:
                here.ask(token, authorization=form)
        if target.agent.runs:  # an agent may write late, but not after its end
            here.world.agent.stop()
        written = _written(here.world)
    if not any(written.values()):
        raise Untestable("neither the agent nor HAProxy wrote anything that could be searched")
    for token in tokens:
        for part, text in written.items():
            if any(piece in text for piece in _pieces(token)):
                raise CheckFailed(
                    f"what the {part} writes holds a piece of a token",
                    Evidence(sent=f"{len(tokens)} tokens in {len(_FORMS)} forms", logs=here.world.logs()),
                )
    return f"{len(tokens)} tokens, {sum(map(len, written.values()))} characters written"


_FORMS = (
    ["Bearer {token}"],
    ["Bearer {token}", "Bearer {token}"],
    ["Basic {token}"],
    ["{token}"],
    ["bearer  {token} x"],
)


def _written(world: World) -> dict[str, str]:
    """Return all that agent and HAProxy have written so far."""
    return {
        "agent": "\n".join(world.agent.lines()),
        "proxy": "\n".join(
            [*(json.dumps(found) for found in world.haproxy.log_lines()), world.haproxy.logs()]
        ),
    }


def _pieces(token: str) -> list[str]:
    """Return parts from which a token could be pieced together: ends of its payload and its signature.

    All tokens of an issuer share their beginning, which says nothing.
    """
    payload, _, signature = token.rpartition(".")
    return [piece for piece in (payload[-24:], signature[:24], signature[-24:]) if len(piece) == 24]
