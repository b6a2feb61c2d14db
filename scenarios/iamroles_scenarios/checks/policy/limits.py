"""Policy checks of time: a role's own lifetime, which ends before its token does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import RequestSpec, WorldSpec
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.play import Target
from iamroles_scenarios.engine.players import Player, player_for
from iamroles_scenarios.errors import AgentFault, CheckFailed, Evidence
from iamroles_scenarios.jose import mint

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle

_WORLD = WorldSpec(policy="policy")
_UNION = WorldSpec(policy="policy", override={"multi_role": "union"})
_BRIEF, _BRIEFER = 600, 300
"""Seconds: `max_lifetime` of the roles of these names in data/worlds/policy.toml."""
_TOKEN = 900
"""Seconds from now that the tokens themselves live."""
_LEFT = 3
"""Seconds, times the scale, that a role still has when its token is first shown."""
_MARGIN = 0.05
"""Seconds beyond the end, for a clock that another process reads."""
_ATTEMPTS = 3


class _Caller:
    """One caller on one connection, with tokens made to measure."""

    def __init__(self, player: Player, issuer: IssuerHandle) -> None:
        self._player = player
        self._issuer = issuer

    def token(self, *roles: str, age: int = 0) -> tuple[str, int]:
        """A token of these roles, issued so many seconds ago; and the second it was issued in."""
        now = int(time.time())
        recipe = {"roles": list(roles), "iat": now - age, "nbf": now - age, "exp": now + _TOKEN}
        return mint(recipe, self._issuer.keys, now, self._issuer.url), now - age

    def ask(self, token: str, *, role: str = "", path: str = "/timed/1") -> Observation:
        """One request on the kept connection."""
        try:
            return self._player.ask(
                RequestSpec(path=path, role=role, connection="kept"), token, with_reason=True
            )
        except AgentFault as fault:
            raise CheckFailed(str(fault), Evidence(trace=fault.trace)) from fault


@contextmanager
def _caller(target: Target, world: WorldSpec, owner: str) -> Iterator[_Caller]:
    with target.worlds.borrow(world, f"{owner}-{target.lane}") as place:
        player = player_for(target.lane, place.world, target.scale)
        try:
            yield _Caller(player, target.worlds.issuer(place.issuer("corp")))
        finally:
            player.close()


def _must(right: bool, seen: Observation, expected: str) -> None:
    if not right:
        got = f"{seen.status} {seen.reason or ''} expires={seen.tags.get('expires', '')}".strip()
        evidence = Evidence(sent=seen.sent, expected=expected, received=seen.received, trace=seen.trace)
        raise CheckFailed(f"expected {expected}, got {got}", evidence)


def _must_expire(seen: Observation, at: int) -> None:
    _must(seen.allow and seen.tags.get("expires") == str(at), seen, f"an allow that expires at {at}")


def _role_ends(target: Target) -> None:
    with _caller(target, _WORLD, "policy.limit.role") as caller:
        token, issued = caller.token("brief", age=60)
        _must_expire(caller.ask(token), issued + _BRIEF)
        token, issued = caller.token("briefer", "reader", age=120)
        _must_expire(caller.ask(token, role="briefer"), issued + _BRIEFER)
        _must_expire(caller.ask(token, role="reader", path="/orders/1"), issued + 120 + _TOKEN)
        token, _ = caller.token("brief", age=_BRIEF + 5)
        seen = caller.ask(token)
        _must(seen.status == 401 and not seen.allow, seen, "401: the role's lifetime is over")


def _dies(target: Target) -> None:
    """Allowed, allowed from memory, and dead: on one connection, while the token is good for minutes."""
    with _caller(target, _WORLD, "policy.limit.dies") as caller:
        for attempt in range(_ATTEMPTS):
            left = max(2, round(_LEFT * target.scale * 2**attempt))
            token, issued = caller.token("brief", age=_BRIEF - left)
            end = issued + _BRIEF
            answers = [caller.ask(token), caller.ask(token)]
            if answers[-1].at < end:
                break
        else:
            raise RuntimeError("the host is too slow for a role of a few seconds; raise the time scale")
        for seen in answers:
            _must_expire(seen, end)
        time.sleep(max(0.0, end + _MARGIN - time.time()))
        for _ in range(2):
            seen = caller.ask(token)
            dead = seen.status == 401 and not seen.allow and seen.reason == "token_expired"
            _must(dead, seen, "401 token_expired: the role's lifetime is over")


def _least(target: Target) -> None:
    with _caller(target, _UNION, "policy.limit.least") as caller:
        for roles in (("brief", "briefer"), ("briefer", "brief"), ("reader", "briefer", "brief")):
            token, issued = caller.token(*roles, age=30)
            _must_expire(caller.ask(token), issued + _BRIEFER)
        token, issued = caller.token("reader", "brief", age=30)
        _must_expire(caller.ask(token), issued + _BRIEF)
        # A rule that does not name the brief role is not bounded by it.
        _must_expire(caller.ask(token, path="/orders/1"), issued + 30 + _TOKEN)


@check(
    "policy.limit.role",
    requirements=["LIMIT-ROLE-001"],
    lane="gate-spop",
    title="A role's lifetime counts from `iat` and shows in `expires`; other roles of the token keep theirs",
)
def role(target: Target) -> None:
    """Tokens of different age, roles of different patience."""
    _role_ends(target)


@check(
    "policy.limit.role-at-proxy",
    requirements=["LIMIT-ROLE-001"],
    lane="gate",
    title="The backend is told the role's end, where it comes before the token's",
)
def role_at_proxy(target: Target) -> None:
    """`X-IAM-Expires` is the earlier of the two."""
    _role_ends(target)


@check(
    "policy.limit.dies",
    requirements=["LIMIT-ROLE-002"],
    lane="gate-spop",
    title="Access dies with the role's lifetime, from a memory of verdicts too, though the token lives",
)
def dies(target: Target) -> None:
    """The same bytes are asked before and after."""
    _dies(target)


@check(
    "policy.limit.dies-at-proxy",
    requirements=["LIMIT-ROLE-002"],
    lane="gate",
    title="Access dies with the role's lifetime on a connection that is kept",
)
def dies_at_proxy(target: Target) -> None:
    """HAProxy asks for each request; nothing of the verdict before may serve for the next."""
    _dies(target)


@check(
    "policy.limit.least",
    requirements=["LIMIT-LEAST-001"],
    lane="gate-spop",
    title="Where several roles grant by one rule, the least of their lifetimes holds",
)
def least(target: Target) -> None:
    """Under multi_role = union, in any order of the roles."""
    _least(target)
