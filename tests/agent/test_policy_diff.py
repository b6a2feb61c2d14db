"""A change of policy opens and closes exactly what brute force says it does."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import policy_worlds as worlds
from hypothesis import given, settings

from iamroles_agent.config import Config
from iamroles_agent.identity import Identity, RoleArn
from iamroles_agent.policy import Policy
from iamroles_agent.policy.diff import Change, diff

ARNS = [RoleArn.parse(text) for text in worlds.ARNS.values()]


def backend(config: Config, change: Change) -> str:
    held = [RoleArn.parse(arn) for arn in (change.role, change.companion) if arn]
    who = Identity("idp", "me", "s", tuple(held), 2000, 1000, held[0])
    return Policy(config).decide(who, change.witness).backend


@settings(max_examples=30, deadline=None)
@given(worlds.worlds(grants=3, denies=2, narrow=True), worlds.worlds(grants=3, denies=2, narrow=True))
def test_witnesses_hold_and_no_change_is_missed(one: dict[str, Any], two: dict[str, Any]) -> None:
    old, new = Config.model_validate(one), Config.model_validate(two)
    found = diff(old, new)

    for change in found.opened:
        assert (backend(old, change), backend(new, change)) == ("", change.backend), change
    for change in found.closed:
        assert (backend(old, change), backend(new, change)) == (change.backend, ""), change
    for change in found.moved:
        assert (backend(old, change), backend(new, change)) == (change.was, change.backend), change
        assert change.was != change.backend

    before, after = Policy(old), Policy(new)
    expected: dict[str, set[tuple[str, str]]] = {"opened": set(), "closed": set(), "moved": set()}
    for role in ARNS:
        who = Identity("idp", "me", "s", (role,), 2000, 1000)
        for request in worlds.NARROW_REQUESTS:
            was, now = before.decide(who, request), after.decide(who, request)
            if now.allow and not was.allow:
                expected["opened"].add((str(role), ""))
            elif was.allow and not now.allow:
                expected["closed"].add((str(role), ""))
            elif was.backend != now.backend:
                expected["moved"].add((str(role), now.rule))
    for name in ("opened", "closed"):
        singles = {(change.role, "") for change in getattr(found, name) if not change.companion}
        assert singles == expected[name], name
    assert {(change.role, change.rule) for change in found.moved} == expected["moved"]


@settings(max_examples=30, deadline=None)
@given(worlds.worlds(grants=2, denies=3, narrow=True), worlds.worlds(grants=1, denies=1, narrow=True))
def test_companions_are_exactly_those_by_brute_force(one: dict[str, Any], two: dict[str, Any]) -> None:
    """The new policy has a deny less, and perhaps another in its place."""
    fewer = {**one, "denies": one["denies"][1:] + [{**deny, "id": "n"} for deny in two["denies"]]}
    old, new = (Config.model_validate({**data, "multi_role": "deny"}) for data in (one, fewer))
    before, after = Policy(old), Policy(new)

    expected = set()
    for pair in combinations(ARNS, 2):
        for active, companion in (pair, pair[::-1]):
            together = Identity("idp", "me", "s", pair, 2000, 1000, active)
            alone = Identity("idp", "me", "s", (active,), 2000, 1000)
            for request in worlds.NARROW_REQUESTS:
                opens = not before.decide(together, request).allow and after.decide(together, request).allow
                if opens and before.decide(alone, request).allow:
                    expected.add((str(active), str(companion)))

    assert {(c.role, c.companion) for c in diff(old, new).opened if c.companion} == expected


@settings(max_examples=25, deadline=None)
@given(worlds.worlds())
def test_a_policy_does_not_differ_from_itself_reordered(data: dict[str, Any]) -> None:
    turned = {name: value[::-1] if isinstance(value, list) else value for name, value in data.items()}

    assert not diff(Config.model_validate(data), Config.model_validate(turned))


def test_trust_and_scopes_are_compared_too() -> None:
    scope = {"name": "read", "methods": ["GET"], "path": "/a"}
    old = Config.model_validate({**worlds.BASE, "scopes": [scope]})
    issuer = {**worlds.BASE["issuers"][0], "audiences": ["api", "other"]}
    wider = {**scope, "path": "/"}
    new = Config.model_validate(
        {**worlds.BASE, "issuers": [issuer], "scopes": [wider], "multi_role": "union"}
    )

    found = diff(old, new)

    assert {(item.key, item.old, item.new) for item in found.settings} == {
        ("issuers[idp].audiences", '["api"]', '["api", "other"]'),
        ("multi_role", '"deny"', '"union"'),
    }
    [change] = found.scopes_opened
    assert (change.role, change.witness.path) == ("read", "/")
    assert not found.scopes_closed
    assert found.digest != diff(new, old).digest
