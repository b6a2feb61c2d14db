"""Policy checks of time: a role's own lifetime, which ends before its token does."""

from __future__ import annotations

import time

from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.bench import Bench, bench, refused
from iamroles_scenarios.engine.observation import Observation, mismatches
from iamroles_scenarios.engine.target import Target

_BRIEF, _BRIEFER = 600, 300
"""Seconds: `max_lifetime` of the roles of these names in data/worlds/policy.toml."""
_TOKEN = 900
"""Seconds from now to the end of the tokens themselves."""
_LEFT = 3
"""Seconds, times the scale, that a role still has when its token is first shown."""
_MARGIN = 0.05
"""Seconds beyond the end, for a clock that another process reads."""


def _token(here: Bench, *roles: str, age: int = 0) -> tuple[str, int]:
    """Mint a token of these roles that is `age` seconds old; return it with the second of its issue."""
    issued = int(time.time()) - age
    return here.token(roles=list(roles), iat=issued, nbf=issued, exp=issued + age + _TOKEN), issued


def _ask(here: Bench, token: str, *, role: str = "", path: str = "/timed/1") -> Observation:
    """Ask on the kept connection."""
    return here.ask(token, path=path, role=role, connection="kept")


def _must_expire(here: Bench, seen: Observation, at: int) -> None:
    if found := mismatches(Expectation(allow=True, expires="token"), seen, {"token": at}):
        raise here.failed("; ".join(found), seen, f"an allow that expires at {at}")


def _must_be_over(here: Bench, token: str, expected: Expectation) -> None:
    here.expect("the role's lifetime is over", token, expected, path="/timed/1", connection="kept")


@check("policy.limit.role", "LIMIT-ROLE-001")
@check(
    "policy.limit.role-at-proxy",
    "LIMIT-ROLE-001",
    lane="gate",
    title="The backend gets the role's end if it comes before the token's",
)
def role_ends(target: Target) -> None:
    """A role's lifetime counts from `iat` and shows in `expires`; other roles of the token keep theirs.

    `X-IAM-Expires` is the earlier end.
    """
    with bench(target, "policy") as here:
        token, issued = _token(here, "brief", age=60)
        _must_expire(here, _ask(here, token), issued + _BRIEF)
        token, issued = _token(here, "briefer", "reader", age=120)
        _must_expire(here, _ask(here, token, role="briefer"), issued + _BRIEFER)
        _must_expire(here, _ask(here, token, role="reader", path="/orders/1"), issued + 120 + _TOKEN)
        token, _ = _token(here, "brief", age=_BRIEF + 5)
        _must_be_over(here, token, Expectation(status=401, allow=False))


@check("policy.limit.dies", "LIMIT-ROLE-002")
@check(
    "policy.limit.dies-at-proxy",
    "LIMIT-ROLE-002",
    lane="gate",
    title="Access dies with the role's lifetime on a connection that is kept",
)
def dies(target: Target) -> None:
    """Access ends with the role's lifetime, for remembered verdicts too, although the token lives.

    Allowed, allowed from memory, and dead: on one connection, while the token is good for minutes.
    """
    with bench(target, "policy") as here:
        token, issued = _token(here, "brief", age=_BRIEF - max(2, round(target.seconds(_LEFT))))
        end = issued + _BRIEF
        answers = [_ask(here, token), _ask(here, token)]
        here.in_time(end, "two answers before the role's end", answers[-1].at)
        for seen in answers:
            _must_expire(here, seen, end)
        rest(end + _MARGIN - time.time())
        for _ in range(2):
            _must_be_over(here, token, refused("token_expired"))


@check("policy.limit.least", "LIMIT-LEAST-001")
def least(target: Target) -> None:
    """If several roles grant by one rule, the least of their lifetimes holds.

    Under multi_role = union, in any order of the roles.
    """
    with bench(target, "policy", multi_role="union") as here:
        for roles in (("brief", "briefer"), ("briefer", "brief"), ("reader", "briefer", "brief")):
            token, issued = _token(here, *roles, age=30)
            _must_expire(here, _ask(here, token), issued + _BRIEFER)
        token, issued = _token(here, "reader", "brief", age=30)
        _must_expire(here, _ask(here, token), issued + _BRIEF)
        # A rule that does not name the brief role is not bounded by it.
        _must_expire(here, _ask(here, token, path="/orders/1"), issued + 30 + _TOKEN)
