"""Plays the edges of the keys (`rules`, `issuers`): with them, without them, and with them again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from iamroles_scenarios.checks.derived import rules
from iamroles_scenarios.checks.derived.rules import ACCOUNT, Edge
from iamroles_scenarios.checks.derived.sitting import Ask, Sitting, question, sitting
from iamroles_scenarios.checks.oracle.answer import wanted
from iamroles_scenarios.checks.oracle.judge import judge
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_LIVES = 1800
"""Seconds that each token lives."""


def world(base: Mapping[str, Any], edges: Iterable[Edge], *, without: bool = False) -> dict[str, Any]:
    """The base policy with the tables of all edges added.

    Args:
        base: of `data/worlds/derived.toml`.
        edges: what is added.
        without: the worlds in which the keys are not there.
    """
    policy = dict(base)
    for edge in edges:
        if "." not in edge.key and not without:
            policy[edge.key] = edge.value
        for table, rows in (edge.without if without else edge.with_).items():
            policy[table] = [*policy.get(table, []), *rows]
    return policy


def claims_of(claims: Mapping[str, Any], now: int) -> dict[str, Any]:
    """The claims that a question names: roles as ARNs, times from now."""
    roles = [role if role.startswith("arn:") else f"{ACCOUNT}{role}" for role in claims["roles"]]
    return {"exp": now + _LIVES, **claims, "roles": roles, "iat": now + claims.get("iat", 0)}


class Rules:
    """The questions of all edges, with tokens that stay the same in every world."""

    def __init__(self, here: Sitting, edges: Sequence[Edge]) -> None:
        self._now = now = int(time.time())
        self._asked: list[tuple[Edge, str, dict[str, Any], dict[str, Any]]] = []
        tokens: dict[str, str] = {}
        for edge in edges:
            for said, request in edge.questions:
                claims = claims_of(said, now)
                if (name := str(claims)) not in tokens:
                    tokens[name] = here.token(key="ES256", claims=claims, drop=["nbf"])
                check = {**question(tokens[name]), "role": None, **request}
                what = f"{edge.key} = {edge.value!r}, {_shown(said, request)}"
                self._asked.append((edge, what, claims, check))

    def asks(self, base: Mapping[str, Any], *, without: bool) -> list[Ask]:
        """With what the oracle says. It is shown the base and the question's own room: no other bears on
        it."""
        rooms: dict[str, dict[str, Any]] = {}
        found = []
        for edge, what, claims, asked in self._asked:
            if edge.room not in rooms:
                rooms[edge.room] = world(base, [edge], without=without)
            found.append(Ask(what, asked, wanted(judge(rooms[edge.room], claims, asked, self._now))))
        return found


def _shown(claims: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    told = ", ".join(f"{key} {value!r}" for key, value in {**claims, **request}.items())
    return f"asked with {told}"


@check("policy.derived.rules", "DERIVED-KEY-001", features={"oidc", "reload"})
def keys_of_rules(target: Target) -> str:
    """Every key of a rule matters, on both sides of its edge, and no longer than it is there.

    All rows at once, in rooms of their own: with the keys, without them, with them again.
    """
    with sitting(target, "policy.derived.rules") as here:
        edges = rules.edges()
        asked = Rules(here, edges)
        for without, when in ((False, ""), (True, "without it: "), (False, "again with it: ")):
            here.force(world(here.place.policy, edges, without=without), "the keys of rules")
            turns = 1 if when else 2
            here.put(asked.asks(here.place.policy, without=without), when, turns=turns)
    return f"{here.asked} questions about {len(edges)} values"
