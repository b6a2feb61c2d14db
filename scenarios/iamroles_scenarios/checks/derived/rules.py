"""Every key of a rule (SPEC.md section 6): values, and requests on both sides of their edges.

Each row of data/derived/rules.toml makes a room of its own, a path that nothing else speaks of, in two
policies: in one the rule has the key, in the other it has not, or has another value where it must have one.
The check asks under the first policy, under the second, and under the first again, with the same
tokens; the oracle says what the answers must be. So a key that is ignored, read the other way round, or
remembered beyond a reload is seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.derived.world import derived, iam_check
from iamroles_scenarios.checks.oracle.answer import wanted
from iamroles_scenarios.checks.oracle.judge import judge
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN, filled, table
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target

_LIVES = 1800
"""Seconds that each token lives."""
_EDGE = 150
"""Seconds to the nearest moment at which an answer changes: data/derived/rules.toml, `roles.max_lifetime`."""
_TABLE = filled(table("rules"), table("rules")["names"])
Row = Mapping[str, Any]
Tables = dict[str, list[Row]]
Asked = tuple[dict[str, Any], dict[str, Any]]
"""Claims (`roles` as names or ARNs; times as offsets from now) and arguments."""


@dataclass(slots=True)
class Edge:
    """One key with a value: what is added to the policy with it and without it, and the questions."""

    key: str
    """`grants.hosts`; of the top, `multi_role`."""
    value: object
    with_: Tables
    without: Tables
    asked: list[Asked]
    room: str = ""


def edges() -> list[Edge]:
    """Make every row an edge, each in its room."""
    found = [*_regions(), *(_edge(*row) for row in _TABLE["edges"]["rows"])]
    for number, edge in enumerate(found):
        edge.room = f"/room{number}"
        markers = {"room": edge.room, "n": number}
        edge.with_, edge.without = filled(edge.with_, markers), filled(edge.without, markers)
        edge.asked = [(filled(claims, markers), filled(request, markers)) for claims, request in edge.asked]
    return found


def _regions() -> Iterator[Edge]:
    """Yield the edges of the keys that make up a rule's region."""
    for name, base in _TABLE["bases"].items():
        for row in _TABLE["region"]:
            key, argument = row["key"], row["argument"]
            if (name, key) == ("scopes", "sources"):
                continue  # scopes have none
            prefix = "{room}" if argument == "path" else ""
            who = [
                base["claims"]
                | {"ask": base.get("ask", {}) | {argument: each if each is None else f"{prefix}{each}"}}
                for each in row["tried"]
            ]
            for value in row["values"][: 2 if (name, key) == ("scopes", "hosts") else None]:
                other = _TABLE["instead"].get(key)
                other = None if other == value else other
                yield _edge(f"{name}.{key}", base["rule"], value, other, base["beside"], who)


def _edge(  # noqa: PLR0917 - the columns of a row
    key: str, rule: Row, value: object, other: object, beside: Tables, who: Sequence[Row]
) -> Edge:
    """Give a key of a rule a value, and another in the other policy (None: it is left out); ask as `who`."""
    name, _, own = key.rpartition(".")
    bare = {k: v for k, v in rule.items() if k != own}

    def tables(mine: object, others: object) -> Tables:
        added: Tables = filled(beside, {"value": mine, "other": others})
        rows = [bare if mine is None else bare | {own: mine}]
        return added | {name: rows + added.get(name, [])} if name else added

    questions = [asked for each in who for asked in _asked(each)]
    return Edge(key, value, tables(value, other), tables(other, value), questions)


def _asked(who: Row) -> Iterator[Asked]:
    """Yield claims and arguments; `ask` holds arguments, `every` values that claims and the path take in
    turn."""
    claims = {key: value for key, value in who.items() if key not in ("ask", "every")}
    every = who.get("every", {})
    for values in itertools.product(*every.values()):
        chosen = dict(zip(every, values, strict=True))
        path = {"path": chosen.pop("path")} if "path" in chosen else {"path": "{room}"}
        yield claims | chosen, path | who.get("ask", {})


def policy_with(base: Mapping[str, Any], added: Iterable[Edge], *, without: bool = False) -> dict[str, Any]:
    """Add the tables of edges to a policy, or those `without` their keys."""
    policy = dict(base)
    for edge in added:
        if "." not in edge.key and not without:
            policy[edge.key] = edge.value
        for name, rows in (edge.without if without else edge.with_).items():
            policy[name] = [*policy.get(name, []), *rows]
    return policy


def claims_of(claims: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Write out the claims of a question: roles as ARNs, times from now."""
    roles = [role if role.startswith("arn:") else f"{ARN}{role}" for role in claims["roles"]]
    times = {name: claims.get(name, usual) for name, usual in (("iat", 0), ("nbf", None))}
    dated = {name: None if offset is None else now + offset for name, offset in times.items()}
    found = {"exp": now + _LIVES, **claims, "roles": roles, **dated}
    return {name: value for name, value in found.items() if value is not None}


def token_of(here: Bench, said: Mapping[str, Any], now: int) -> str:
    """Mint a token of what a question says, that has these claims of time and no other."""
    claims = claims_of(said, now)
    return here.token(
        key="ES256", claims=claims, drop=[name for name in ("nbf", "iat") if name not in claims]
    )


class _Rules:
    """The questions of all edges, with tokens that stay the same under every policy."""

    def __init__(self, here: Bench, added: Sequence[Edge]) -> None:
        self.now = now = here.now()
        self._asked: list[tuple[Edge, str, dict[str, Any], dict[str, Any]]] = []
        tokens: dict[str, str] = {}
        for edge in added:
            for said, request in edge.asked:
                claims = claims_of(said, now)
                if (name := str(claims)) not in tokens:
                    tokens[name] = token_of(here, said, now)
                check = {**iam_check(tokens[name]), "role": None, **request}
                shown = ", ".join(f"{key} {value!r}" for key, value in {**said, **request}.items())
                self._asked.append((edge, f"{edge.key} = {edge.value!r}, asked with {shown}", claims, check))

    def questions(self, base: Mapping[str, Any], *, without: bool) -> list[SpopQuestion]:
        """Make the questions. The oracle sees only the base and the question's own room."""
        rooms: dict[str, dict[str, Any]] = {}
        found = []
        for edge, what, claims, asked in self._asked:
            if edge.room not in rooms:
                rooms[edge.room] = policy_with(base, [edge], without=without)
            found.append(SpopQuestion(what, asked, wanted(judge(rooms[edge.room], claims, asked, self.now))))
        return found


def longer(policy: Mapping[str, Any], divisor: int, remainder: int) -> dict[str, Any]:
    """Add rows about nothing in the middle of each table, until it has a number of rows with this remainder.

    An agent that reads tables in parts may lose the only row of a part, or the last row of a whole part.
    """
    found = dict(policy)
    for name, row in _TABLE["long"]["row"].items():
        rows = policy.get(name, [])
        more = [filled(row, {"n": n}) for n in range((remainder - len(rows)) % divisor)]
        found[name] = rows[: len(rows) // 2] + more + rows[len(rows) // 2 :]
    return found


@check("policy.derived.rules", "DERIVED-KEY-001", features={"oidc", "reload"})
def keys_of_rules(target: Target) -> str:
    """Every key of a rule takes effect on both sides of its bound, and has none once it is removed.

    All rows at once, in rooms of their own, in long tables: with the keys, without them, with them again.
    The tables end just behind a round number of rows, and then at it.
    """
    with derived(target, "policy.derived.rules") as here:
        base, added = {**here.loan.policy, "denies": []}, edges()  # its own would refuse each `guard`
        asked = _Rules(here, added)
        changes = ((False, ""), (True, "without it: "), (False, "again with it: "))
        for (without, when), ends in zip(changes, _TABLE["long"]["ends"], strict=True):
            here.must_reload(longer(policy_with(base, added, without=without), *ends), "the keys of rules")
            questions = asked.questions(base, without=without)
            here.ask_all(questions[:: 1 if when else -1], when, again=False)
            here.in_time(asked.now + _EDGE, "questions before the nearest end of a role")
    return f"{here.asked} questions about {len(added)} values"
