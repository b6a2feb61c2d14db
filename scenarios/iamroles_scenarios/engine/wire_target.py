"""A target for the wire lane: an agent of the stage, with questions whose right answers are known.

An agent that has STS and no OIDC is asked with pre-signed STS requests instead of tokens.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.declarations.scenario import WorldSpec, merged
from iamroles_scenarios.engine.setups import uses
from iamroles_scenarios.jose import mint_for
from iamroles_scenarios.wire.target import Process, WireTarget

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target
    from iamroles_scenarios.engine.worlds import Loan

_SLOW = 2.0
"""Seconds, times the scale, that the slow issuer keeps its key set back."""
_WAITS = "80s"
"""More than that is when a check of this lane is played again, eight times as long, in the same world."""
_ENDING = 1.0
"""Seconds in which an agent that closed its connections has ended, if it does; waited for after a failure."""
_LONG = "x" * 58
_CROWD = {
    "issuer": "crowd",
    "key": "ES256",
    "drop_header": ["typ"],
    "drop": ["nbf", "jti"],
    "sub": "s" * 500,
    "claims": {"roles": "arn:aws:iam::111111111111:role/reader"},
}
"""A small token whose subject returns twice in the answer's tags, as principal and as session, beside long
names of issuer, rule and backend: the answer is longer than the question."""
_ISSUER = {"insecure_http": True, "audiences": ["edge"], "algorithms": ["RS256", "ES256"]}
_CROWD_NAME = f"crowd-{_LONG}"
_CROWD_GRANT = {
    "id": _CROWD_NAME,
    "roles": ["reader"],
    "methods": ["GET"],
    "path": "/c",
    "backend": _CROWD_NAME,
}
_WORLD = WorldSpec(
    policy="orders",
    override={
        "backends": [{"name": _CROWD_NAME}],
        "grants": [_CROWD_GRANT],
        "keys": {"cooldown": "100ms", "timeout": _WAITS},
        "agent": {"decision_timeout": _WAITS},
        "issuers": [
            {"name": _CROWD_NAME, "issuer": "{idp}/crowd", **_ISSUER, "session_claim": "sub"},
            {"name": "slow", "issuer": "{idp}/slow", **_ISSUER},
        ],
    },
    own=True,
)
_ENDPOINT = {
    "endpoint": "{sts}",
    "binding_header": "x-iam-edge",
    "binding_value": "edge-a",
    "insecure_http": True,
}
_STS_WORLD = WorldSpec(
    policy="orders",
    override={
        "agent": {"decision_timeout": _WAITS},
        "sts": [
            {"name": name, "hosts": [f"{name}{{suffix}}.sts.example"], "timeout": _WAITS, **_ENDPOINT}
            for name in ("wire", "wire-slow")
        ],
    },
    own=True,
)


@contextmanager
def wire_target(target: Target) -> Iterator[WireTarget]:
    """Lend the wire lane's target, on a world of its own that ends with it."""
    by_sts = target.agent.features.get("sts") and not target.agent.features.get("oidc")
    world = _STS_WORLD if by_sts else _WORLD
    with target.worlds.borrow(world, "wire") as loan:
        agent = loan.world.agent
        credential = _presigned(target, loan) if by_sts else _token(target, loan, {"roles": ["reader"]})
        yield WireTarget(
            agent.spop_address,
            time_scale=target.scale,
            allowed=_question(credential, "/orders/1"),
            refused=_question(credential, "/admin"),
            slow=partial(_slow_sts if by_sts else _slow, target, loan),
            crowded=None if by_sts else _question(_token(target, loan, _CROWD), "/c"),
            features=frozenset(name for name, value in target.agent.features.items() if value),
            pid=agent.host_pid,
            logs=agent.logs,
            ended=lambda: agent.ended(_ENDING),
            launch=partial(_launched, target, loan),
            ready_within=target.agent.ready_within / target.scale,
        )


def _token(target: Target, loan: Loan, recipe: Mapping[str, Any]) -> str:
    issuers = {name: target.worlds.issuer(loan.issuer(name)) for name in ("corp", "slow", "crowd")}
    return mint_for({"exp": "+15m", **recipe}, issuers, time.time(), default="corp")


def _presigned(target: Target, loan: Loan, name: str = "wire") -> str:
    """Presign a request of a new session of the reader's role."""
    cloud = target.stage.cloud
    role = cloud.account("111111111111").ensure_role("reader")
    session = cloud.assume(role, f"s-{secrets.token_hex(4)}")
    return cloud.presign_caller_identity(session, "edge-a", {}, host=f"{name}{loan.suffix}.sts.example")


def _question(credential: str, path: str) -> dict[str, Any]:
    return {
        "authorization": f"Bearer {credential}",
        "method": "GET",
        "host": "api.example.com",
        "path": path,
        "src": "127.0.0.1",
    }


def _slow(target: Target, loan: Loan, scale: float) -> Mapping[str, Any]:
    """Make a question that the agent cannot answer before a slow issuer shows a new key."""
    issuer = target.worlds.issuer(loan.issuer("slow"))
    issuer.fault("jwks", "slow", seconds=_SLOW * scale)
    recipe = {"issuer": "slow", "key": issuer.add_key("ES256").kid, "roles": ["reader"]}
    return _question(_token(target, loan, recipe), "/orders/1")


def _slow_sts(target: Target, loan: Loan, scale: float) -> Mapping[str, Any]:
    """Make a question that the agent cannot answer before a slow STS has answered."""
    host = f"wire-slow{loan.suffix}.sts.example"
    target.stage.cloud.fault(f"GetCallerIdentity@{host}", "slow", seconds=_SLOW * scale)
    return _question(_presigned(target, loan, "wire-slow"), "/orders/1")


@contextmanager
def _launched(target: Target, loan: Loan, settings: Mapping[str, Any], within: float) -> Iterator[Process]:
    policy = merged(loan.policy, {"agent": dict(settings)} if settings else {})
    agent = replace(target.agent, ready_within=within)
    with target.stage.world(agent, policy, haproxy=False) as world:
        uses(world)
        yield world.agent
