"""One row for each key of a rule (SPEC.md section 6): values, and requests on both sides of their edges.

Each value makes a room of its own, a path that nothing else speaks of, in two worlds: in one the rule has the
key, in the other it has not, or has another value where it must have one. The requests are asked in the first
world, in the second, and in the first again, with the same tokens; the oracle says what must come of each. So
a key that is ignored, read the other way round, or remembered beyond a reload is seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Table = Mapping[str, Any]
Tables = dict[str, Sequence[Table]]
Question = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Claims (`roles` as names or ARNs; times as offsets from now) and arguments."""
ACCOUNT = "arn:aws:iam::111111111111:role/"
HOST = "desk.kiosk.example"
_METHODS = ("GET", "POST", "get", "HEAD", "PURGE", "GETS")
_HOSTS = (
    *(HOST, HOST.upper(), f"{HOST}.", f"{HOST}:8443", f"{HOST}.:80", f"{HOST}:", f"{HOST}:x", f"a.{HOST}"),
    *(f"a.b.{HOST}", f"x{HOST}", f"{HOST}.test", "kiosk.example", "example", f"user@{HOST}", f".{HOST}"),
    *(
        f"{HOST}..",
        f"{HOST},other.example",
        f"{HOST}/x",
        f"http://{HOST}",
        "[2001:db8::1]",
        "[2001:db8::1]:443",
    ),
    *(
        "2001:db8::1",
        "[2001:db8::2]",
        "[2001:db8::1",
        "192.0.2.7",
        "192.0.2.7:80",
        "",
        "*",
        "*.kiosk.example",
    ),
    *(HOST.replace("k", "\u212a"), HOST.replace("s", "\u017f"), f"{HOST}%00", f"\u00e9.{HOST}"),
    None,
)
_SOURCES = (
    *("192.0.2.7", "192.0.2.8", "192.0.2.127", "192.0.2.128", "192.0.3.7", "0.0.0.0", "255.255.255.255"),
    *("::ffff:192.0.2.7", "::ffff:192.0.3.7", "2001:db8::1", "2001:db9::1", "::", "::1", "::192.0.2.7"),
)
REGION: Mapping[str, Sequence[tuple[Any, str, Sequence[Any]]]] = {
    "methods": [
        (["GET"], "method", _METHODS),
        (["GET", "POST"], "method", _METHODS),
        (["*"], "method", _METHODS),
    ],
    "path": [
        ("{room}/inner", "path", ("", "/", "/inner", "/inner/", "/inner/x", "/innerx", "/Inner", "/other")),
    ],
    "match": [
        ("exact", "path", ("", "/", "/x", "x")),
        ("prefix", "path", ("", "/", "/x", "x")),
    ],
    "hosts": [
        ([HOST], "host", _HOSTS),
        ([f"*.{HOST}"], "host", _HOSTS),
        (["*.kiosk.example", "[2001:db8::1]"], "host", _HOSTS),
        (["192.0.2.7", "other.example"], "host", _HOSTS),
    ],
    "sources": [
        (["192.0.2.7/32"], "src", _SOURCES),
        (["192.0.2.0/25", "2001:db8::/32"], "src", _SOURCES),
        (["0.0.0.0/0"], "src", _SOURCES),
        (["::/0"], "src", _SOURCES),
        (["::ffff:192.0.2.0/120"], "src", _SOURCES),
    ],
}
"""What a rule's region is made of: a value of each key, and values of the argument that it is compared
with."""


@dataclass(slots=True)
class Edge:
    """One key with a value: what is added to the world with it and without it, and the questions."""

    key: str
    """`grants.hosts`; of the top, `multi_role`."""
    value: object
    with_: dict[str, list[Table]] = field(default_factory=dict)
    without: dict[str, list[Table]] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)
    room: str = ""


def edges() -> list[Edge]:
    """Every row as an edge, each in its room."""
    found = [*_region_edges(), *(row for rows in OTHERS.values() for row in rows())]
    for number, edge in enumerate(found):
        edge.room = f"/room{number}"
        edge.with_ = _placed(edge.with_, number)
        edge.without = _placed(edge.without, number)
        edge.questions = [_placed(question, number) for question in edge.questions]
    return found


def _placed(value: Any, number: int) -> Any:  # noqa: ANN401 - any JSON, and tuples
    if isinstance(value, str):
        return value.replace("{room}", f"/room{number}").replace("{n}", str(number))
    if isinstance(value, Mapping):
        return {key: _placed(item, number) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_placed(item, number) for item in value)
    return value


# --- regions -----------------------------------------------------------------------------------------------

_GRANT = {"id": "g{n}", "roles": ["kiosk"], "methods": ["GET"], "path": "{room}", "backend": "orders-ro"}
_OPEN = _GRANT | {"methods": ["*"]}
_DENY = {"id": "d{n}", "roles": ["guard"], "path": "{room}"}
_SCOPE = {"name": "s{n}", "path": "{room}"}
_BASES: Mapping[str, tuple[Table, dict[str, list[Table]], Mapping[str, Any]]] = {
    "grants": (_GRANT, {}, {"roles": ["kiosk"]}),
    "denies": (_DENY, {"grants": [_OPEN]}, {"roles": ["kiosk", "guard"]}),
    "scopes": (_SCOPE, {"grants": [_OPEN]}, {"roles": ["kiosk"], "scope": "s{n}"}),
}
"""For each table of rules: the rule without the key, what stands beside it, and the token's claims."""
_INSTEAD = {"methods": ["DELETE"], "path": "{room}/elsewhere", "match": "exact"}
"""Of keys that a rule must have, or whose value is the default, the value in the world without."""


def _region_edges() -> Iterator[Edge]:
    for table, (rule, beside, claims) in _BASES.items():
        for key, rows in REGION.items():
            if (table, key) == ("scopes", "sources"):
                continue  # scopes have none
            for value, argument, values in rows[: 2 if (table, key) == ("scopes", "hosts") else None]:
                instead = {key: _INSTEAD[key]} if key in _INSTEAD and value != _INSTEAD[key] else {}
                asked: list[Question] = []
                for each in values:
                    request = {"path": "{room}"} | {argument: each}
                    if argument == "path":
                        request["path"] = f"{{room}}{each}"
                    asked.append((claims, _named_role(claims) | request))
                with_ = _joined(beside, {table: [dict(rule) | {key: value}]})
                yield Edge(
                    f"{table}.{key}", value, with_, _joined(beside, {table: [dict(rule) | instead]}), asked
                )


def _named_role(claims: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": "kiosk"} if len(claims["roles"]) > 1 else {}


def _joined(*parts: Mapping[str, Sequence[Table]]) -> dict[str, list[Table]]:
    tables = dict.fromkeys(itertools.chain(*parts))
    return {name: [row for part in parts for row in part.get(name, [])] for name in tables}


# --- all other keys ----------------------------------------------------------------------------------------

_ASK = {"path": "{room}"}


def _toggled(
    key: str,
    rule: Table,
    value: object,
    instead: object,
    beside: Mapping[str, Sequence[Table]],
    *asked: Mapping[str, Any],
) -> Edge:
    """A key of a rule with one value and with another one (None: without), and the claims of the askers.

    In the claims, `ask` holds arguments of the question.
    """
    table, _, name = key.partition(".")
    other = {k: v for k, v in rule.items() if k != name} | ({} if instead is None else {name: instead})
    questions: list[Question] = []
    for claims in asked:
        said = {k: v for k, v in claims.items() if k != "ask"}
        questions.append((said, _ASK | dict(claims.get("ask", {}))))
    with_ = _joined({table: [dict(rule) | {name: value}]}, beside)
    return Edge(key, value, with_, _joined({table: [other]}, beside), questions)


def _held(*roles: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - claims
    """Claims of a token of these roles, and `ask`: arguments."""
    return {"roles": list(roles), **more}


_KIOSK, _CLERK, _GUARD = _held("kiosk"), _held("clerk"), _held("kiosk", "guard", ask={"role": "kiosk"})
_PAIR: Tables = {
    "roles": [
        {"name": "one{n}", "arn": f"{ACCOUNT}one{{n}}"},
        {"name": "two{n}", "arn": f"{ACCOUNT}two{{n}}"},
    ]
}
_ONE, _TWO = _held("one{n}"), _held("two{n}")
_STAFF: Tables = {
    "groups": [{"name": "staff{n}", "roles": ["kiosk", "clerk"]}, {"name": "night{n}", "roles": ["clerk"]}]
}
_MINE = {"id": "g{n}", "methods": ["GET"], "path": "{room}", "backend": "orders-ro"}
_ROLE = {"name": "mine{n}", "arn": f"{ACCOUNT}mine{{n}}"}
_ROLES = _MINE | {"roles": ["mine{n}"]}


def _renamed(table: str, one: Table, other: Table, *asked: Mapping[str, Any]) -> Edge:
    """A name that a grant uses, and another in its place."""
    found = _toggled(f"{table}.name", one, one["name"], other["name"], {}, *asked)
    found.with_["grants"] = [_MINE | {"roles": [one["name"]]}]
    found.without["grants"] = [_MINE | {"roles": [other["name"]]}]
    return found


def _grants() -> list[Edge]:
    return [
        _toggled("grants.id", _GRANT, "ga{n}", "gb{n}", {}, _KIOSK),
        _toggled("grants.id", _GRANT, "ga{n}", "gc{n}", {"grants": [_GRANT | {"id": "gb{n}"}]}, _KIOSK),
        _toggled("grants.roles", _GRANT, ["clerk"], ["kiosk"], {}, _KIOSK, _CLERK, _GUARD),
        _toggled("grants.roles", _GRANT, ["staff{n}"], ["night{n}"], _STAFF, _KIOSK, _CLERK),
        _toggled("grants.roles", _GRANT, ["night{n}", "kiosk"], ["kiosk"], _STAFF, _KIOSK, _CLERK),
        _toggled("grants.backend", _GRANT, "orders-rw", "orders-ro", {}, _KIOSK),
        _toggled("grants.shadow", _GRANT, True, None, {}, _KIOSK),
        _toggled("grants.shadow", _GRANT, False, True, {}, _KIOSK),
        _toggled(
            "grants.shadow",
            _GRANT | {"match": "exact", "backend": "orders-rw"},
            True,
            None,
            {"grants": [_GRANT | {"id": "h{n}"}]},
            _KIOSK,
        ),
    ]


def _denies() -> list[Edge]:
    other = _DENY | {"id": "dm{n}"}
    return [
        _toggled("denies.id", _DENY, "da{n}", "dz{n}", {"grants": [_OPEN]}, _GUARD),
        _toggled("denies.id", _DENY, "da{n}", "dz{n}", {"grants": [_OPEN], "denies": [other]}, _GUARD),
        _toggled("denies.roles", _DENY, ["*"], ["guard"], {"grants": [_OPEN]}, _KIOSK, _GUARD),
        _toggled("denies.roles", _DENY, ["kiosk"], ["guard"], {"grants": [_OPEN]}, _KIOSK, _GUARD),
        _toggled(
            "denies.roles",
            _DENY,
            ["staff{n}"],
            ["night{n}"],
            _joined(_STAFF, {"grants": [_OPEN]}),
            _KIOSK,
            _held("kiosk", "clerk", ask={"role": "kiosk"}),
        ),
        _toggled("denies.shadow", _DENY, True, None, {"grants": [_OPEN]}, _GUARD),
        _toggled("denies.shadow", _DENY, False, True, {"grants": [_OPEN]}, _GUARD),
    ]


def _scopes() -> list[Edge]:
    twice = _SCOPE | {"path": "{room}/other"}
    opened: Tables = {"grants": [_OPEN], "scopes": [twice]}
    asked = [
        _held("kiosk", scope=scope, ask={"path": path})
        for scope in ("s{n}", "sx{n}", ["s{n}", "sx{n}"], "S{n}", "")
        for path in ("{room}", "{room}/other", "{room}/third")
    ]
    return [
        _toggled("scopes.name", _SCOPE | {"match": "exact"}, "sx{n}", "s{n}", opened, *asked),
        _toggled("scopes.name", _SCOPE | {"match": "exact"}, "s{n}", "sy{n}", opened, *asked),
    ]


def _roles() -> list[Edge]:
    there = f"{ACCOUNT}there{{n}}"
    abroad = "arn:aws:iam::222222222222:role/mine{n}"
    beside: Tables = {"grants": [_ROLES]}
    old, new = _held("mine{n}", iat=-700), _held("mine{n}", iat=-450)
    return [
        _renamed(
            "roles",
            _ROLE,
            _ROLE | {"name": "other{n}"},
            *(_held("mine{n}", "kiosk", ask={"role": name}) for name in ("mine{n}", "other{n}")),
        ),
        _toggled(
            "roles.arn", _ROLE, there, f"{ACCOUNT}mine{{n}}", beside, _held("mine{n}"), _held("there{n}")
        ),
        _toggled("roles.arn", _ROLE, abroad, f"{ACCOUNT}mine{{n}}", beside, _held("mine{n}"), _held(abroad)),
        _toggled(
            "roles.arns",
            {"name": "mine{n}"},
            [abroad, there],
            [there],
            beside,
            _held("mine{n}"),
            _held("there{n}"),
            _held(abroad),
        ),
        _toggled("roles.max_lifetime", _ROLE, "10m", None, beside, new, old),
        _toggled("roles.max_lifetime", _ROLE, "10m", "5m", beside, new, old, _held("mine{n}", iat=-150)),
    ]


def _groups() -> list[Edge]:
    grant: Tables = {"grants": [_MINE | {"roles": ["team{n}"]}], **_PAIR}
    team = {"name": "team{n}", "roles": ["one{n}"]}
    second = {"name": "other{n}", "roles": ["one{n}", "two{n}"]}
    crossed = _joined(
        _PAIR,
        {
            "grants": [
                _MINE | {"roles": ["team{n}"]},
                _MINE | {"id": "gz{n}", "roles": ["other{n}"], "path": "{room}/z"},
            ],
            "groups": [second],
        },
    )
    z = {"path": "{room}/z"}
    rest = {"name": "rest{n}", "roles": ["two{n}"]}
    exchanged = _toggled("groups.name", team, "team{n}", "rest{n}", grant, _ONE, _TWO)
    exchanged.with_["groups"] += [rest]
    exchanged.without["groups"] += [rest | {"name": "team{n}"}]
    return [
        _toggled("groups.roles", team, ["two{n}"], ["one{n}"], grant, _ONE, _TWO),
        _toggled(
            "groups.roles",
            team,
            ["one{n}", "two{n}"],
            ["one{n}"],
            crossed,
            _ONE,
            _TWO,
            _ONE | {"ask": z},
            _TWO | {"ask": z},
        ),
        exchanged,
    ]


def _backends() -> list[Edge]:
    back = {"name": "back{n}", "servers": ["127.0.0.1:9"]}
    found = _toggled("backends.name", back, "back{n}", "hind{n}", {}, _KIOSK)
    found.with_["grants"] = [_GRANT | {"backend": "back{n}"}]
    found.without["grants"] = [_GRANT | {"backend": "hind{n}"}]
    return [found]


def _top() -> list[Edge]:
    grants = {
        "grants": [
            _MINE | {"roles": ["one{n}"]},
            _MINE | {"id": "gz{n}", "roles": ["two{n}"], "path": "{room}/z"},
            _MINE | {"id": "gw{n}", "roles": ["one{n}", "two{n}"], "path": "{room}/w"},
        ]
    }
    asked: list[Question] = [
        (_held(*roles), {"path": f"{{room}}{path}"})
        for roles in (("one{n}", "two{n}"), ("two{n}", "one{n}"), ("two{n}", "stranger"), ("one{n}",))
        for path in ("", "/z", "/w", "/z/x")
    ]
    tables = _joined(grants, _PAIR)
    return [Edge("multi_role", "union", tables, tables, asked)]


OTHERS = {
    "grants": _grants,
    "denies": _denies,
    "scopes": _scopes,
    "roles": _roles,
    "groups": _groups,
    "backends": _backends,
    "top": _top,
}
"""By table: the edges of keys that are no part of a region."""
