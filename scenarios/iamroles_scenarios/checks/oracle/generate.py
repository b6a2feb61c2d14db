"""Random policies, tokens and requests from a seed, over a universe so small that rules really collide."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.oracle.judge import load_error, roles_of

_ACCOUNTS = ("111122223333", "444455556666")
_NAMES = ("reader", "writer", "contractor", "agent", "admin")
_METHODS = ("GET", "POST", "DELETE")
_ASKED_METHODS = (*_METHODS, "get", "PURGE")
_SEGMENTS = ("orders", "export", "1", "users", "Orders", "a~b", "caf%C3%A9")
_HOSTS = ("api.example.com", "example.com", "*.example.com", "*.api.example.com", "other.test")
_ASKED_HOSTS = (
    "api.example.com",
    "API.example.com:8443",
    "api.example.com.",
    "x.api.example.com",
    "example.com",
    "other.test",
    "badexample.com",
    "",
)
_SOURCES = ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "192.0.2.7/32", "2001:db8::/32")
_ASKED_SOURCES = (
    "10.1.2.3",
    "10.200.0.1",
    "192.0.2.7",
    "192.0.2.8",
    "198.51.100.1",
    "2001:db8::1",
    "2001:db9::1",
)
_BACKENDS = ("orders-ro", "orders-rw", "export")
_SCOPES = ("orders:read", "orders:write", "all")
_HOSTILE = (
    "/orders//1", "/orders/..", "/orders/./1", "/orders/%2e%2e/export", "/orders/%2E",
    "/orders%2fexport", "/orders/%", "/orders/%zz", "/orders;v=1", "/orders/%3b", "/orders/\\x",
    "/orders/%5Cx", "/orders/%00", "/orders/%252e%252e", "/orders/%25", "/orders/\x7f", "orders", "",
    "*", "//", "/orders/a b", "/orders/%7F", "/orders/\u00e9",
)  # fmt: skip
_SPELLINGS = (("orders", "%6Frders"), ("export", "e%78port"), ("~", "%7e"), ("%C3%A9", "%c3%a9"))


@dataclass(frozen=True, slots=True)
class DrawnCase:
    """One token and one request.

    Attributes:
        claims: roles, preferred role, scope, and `exp`/`iat` as offsets from now in seconds.
        request: `method`, `host`, `path`, `src`, `role`.
    """

    claims: dict[str, Any]
    request: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DrawnPolicy:
    """One policy and questions about it. `policy` lacks the parts that a stage adds: the issuer's URL and
    keys."""

    policy: dict[str, Any]
    cases: tuple[DrawnCase, ...]

    @property
    def loads(self) -> bool:
        """Tell whether an agent must accept it, or refuse it for two conflicting grants."""
        return load_error(self.policy) is None


def draw(seed: int, number: int, cases: int) -> DrawnPolicy:
    """Draw one policy of a seed, and the first of its questions."""
    chance = random.Random(f"{seed}/{number}")  # noqa: S311 - reproducible, not secret
    policy = _policy(chance)
    if may_conflict(number):
        _clash(chance, policy)
    else:
        while conflict := load_error(policy):
            policy["grants"] = [grant for grant in policy["grants"] if grant["id"] != conflict[1]]
    return DrawnPolicy(policy, tuple(_case(chance, policy) for _ in range(cases)))


def may_conflict(number: int) -> bool:
    """Tell whether a policy gets grants that conflict (unless all are in shadow): one in eight does."""
    return number % 8 == 7


def _clash(chance: random.Random, policy: dict[str, Any]) -> None:
    """Add a grant that meets another and leads elsewhere, with as different a text as possible."""
    enforced = [grant for grant in policy["grants"] if not grant.get("shadow")]
    if not enforced or load_error(policy):
        return
    clashing = dict(chance.choice(enforced))
    for key in ("hosts", "sources"):
        if chance.random() < 0.5:
            clashing.pop(key, None)
    if chance.random() < 0.5:
        clashing["methods"] = ["*"]
    others = [name for name in _BACKENDS if name != clashing["backend"]]
    policy["grants"].append(clashing | {"id": "G99", "backend": chance.choice(others)})


def shuffled(played: DrawnPolicy, seed: int) -> DrawnPolicy:
    """Put every list whose order must not matter into another order, the roles of tokens included."""
    chance = random.Random(seed)  # noqa: S311

    def reordered(value: Any) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(value, dict):
            return {key: reordered(item) for key, item in reversed(value.items())}
        if isinstance(value, list):
            return [reordered(item) for item in chance.sample(value, len(value))]
        return value

    cases = tuple(DrawnCase(reordered(case.claims), case.request) for case in played.cases)
    return DrawnPolicy(reordered(played.policy), cases)


def _policy(chance: random.Random) -> dict[str, Any]:
    roles = []
    for name in chance.sample(_NAMES, chance.randint(2, 4)):
        account = chance.choice(_ACCOUNTS)
        role: dict[str, Any] = {"name": name, "arn": f"arn:aws:iam::{account}:role/{name}"}
        if chance.random() < 0.2:
            other = _ACCOUNTS[1 - _ACCOUNTS.index(account)]
            role = {"name": name, "arns": [role["arn"], f"arn:aws:iam::{other}:role/{name}"]}
        if chance.random() < 0.3:
            role["max_lifetime"] = chance.choice(("5m", "10m", "30m"))
        roles.append(role)
    names = [role["name"] for role in roles]
    issuer: dict[str, Any] = {}
    if chance.random() < 0.3:
        issuer["preferred_role_claim"] = "preferred"
    if chance.random() < 0.4:
        issuer |= {"scope_claim": "scope", "scope_required": chance.random() < 0.5}
    grants = [
        {
            "id": f"G{number:02}",
            "roles": chance.sample(names, chance.randint(1, 2)),
            "backend": chance.choice(_BACKENDS),
        }
        | _region(chance, methods=True)
        for number in range(chance.randint(1, 12))
    ]
    denies = [
        {"id": f"D{number:02}", "roles": ["*"] if chance.random() < 0.1 else chance.sample(names, 1)}
        | _region(chance)
        for number in range(chance.randint(0, 4))
    ]
    groups = [{"name": "staff", "roles": chance.sample(names, chance.randint(1, 2))}]
    for rule in (*grants, *denies):
        if chance.random() < 0.08:
            rule["shadow"] = True
        if chance.random() < 0.15:
            rule["roles"] = ["staff", *rule["roles"][1:]]
    return {
        "multi_role": chance.choice(("deny", "union")),
        "issuers": [issuer],
        "roles": roles,
        "groups": groups,
        "backends": [{"name": name} for name in _BACKENDS],
        "grants": grants,
        "denies": denies,
        "scopes": [{"name": name} | _region(chance, sources=False) for name in _SCOPES],
    }


def _region(chance: random.Random, *, methods: bool = False, sources: bool = True) -> dict[str, Any]:
    region: dict[str, Any] = {"path": "/" + "/".join(_path(chance))}
    if methods or chance.random() < 0.6:
        some = chance.sample(_METHODS, chance.randint(1, 2))
        region["methods"] = ["*"] if chance.random() < 0.2 else some
    if chance.random() < 0.3:
        region["match"] = "exact"
    if chance.random() < 0.25:
        region["hosts"] = chance.sample(_HOSTS, chance.randint(1, 2))
    if sources and chance.random() < 0.25:
        region["sources"] = chance.sample(_SOURCES, chance.randint(1, 2))
    return region


def _path(chance: random.Random) -> list[str]:
    """Draw a path, mostly below /orders, so that rules meet."""
    length = chance.choice((0, 1, 1, 2, 2, 3))
    return [
        "orders" if at == 0 and chance.random() < 0.8 else chance.choice(_SEGMENTS) for at in range(length)
    ]


def _case(chance: random.Random, policy: dict[str, Any]) -> DrawnCase:
    """Draw a question: half of them aim at a grant, so that enough are allowed, perhaps with one change."""
    claims: dict[str, Any] = {
        "roles": _held(chance, policy),
        "iat": -chance.choice((0, 200, 400, 900)),
        "exp": 1800,
    }
    request = {
        "method": chance.choice(_ASKED_METHODS),
        "host": chance.choice(_ASKED_HOSTS),
        "path": _asked_path(chance, policy),
        "src": chance.choice(_ASKED_SOURCES),
        "role": None,
    }
    if chance.random() < 0.5:
        claims["preferred"] = _spelled(chance, *_any_role(chance, policy))
    if chance.random() < 0.7:
        scopes = chance.sample((*_SCOPES, "unknown"), chance.randint(0, 3))
        claims["scope"] = " ".join(scopes) if chance.random() < 0.5 else scopes
    if chance.random() < 0.3:
        account, name = _any_role(chance, policy)
        request["role"] = name if chance.random() < 0.5 else f"arn:aws:iam::{account}:role/{name}"
    if chance.random() < 0.5:
        _aim(chance, policy, claims, request)
    return DrawnCase(claims, request)


def _aim(
    chance: random.Random, policy: dict[str, Any], claims: dict[str, Any], request: dict[str, Any]
) -> None:
    """Fit the question to a grant, sometimes in all but one respect."""
    grant = chance.choice(policy["grants"])
    spared = chance.choice(("", "", "roles", "method", "path", "host", "src", "role"))
    named = min(roles_of(policy, grant))
    role = next(role for role in policy["roles"] if role["name"] == named)
    arn = role.get("arn") or role["arns"][0]
    below = "" if grant.get("match") == "exact" else chance.choice(("", "/1"))
    fitting = {
        "method": "GET" if "*" in grant["methods"] else grant["methods"][0],
        "path": (grant["path"] + below).replace("//", "/"),
        "host": grant.get("hosts", ["api.example.com"])[0].replace("*", "x"),
        "src": grant.get("sources", ["10.1.2.3/32"])[0].split("/")[0],
        "role": None,
    }
    request.update({key: value for key, value in fitting.items() if key != spared})
    if spared != "roles":
        claims["roles"] = (
            [arn] if chance.random() < 0.7 else [arn, _spelled(chance, *_any_role(chance, policy))]
        )


def _asked_path(chance: random.Random, policy: dict[str, Any]) -> str:
    if chance.random() < 0.06:
        return chance.choice(_HOSTILE)
    if chance.random() < 0.6:  # aim at a rule, a little below or beside it
        path = str(chance.choice((*policy["grants"], *policy["denies"]))["path"])
        path += chance.choice(("", "", "/", "/1", "x", "/export"))
    else:
        path = "/" + "/".join(_path(chance))
    path = path.replace("//", "/")
    for plain, encoded in _SPELLINGS:
        if chance.random() < 0.1:
            path = path.replace(plain, encoded)
    return path


def _held(chance: random.Random, policy: dict[str, Any]) -> list[str] | str:
    if chance.random() < 0.02:
        return []
    roles = [_spelled(chance, *_any_role(chance, policy)) for _ in range(chance.choice((1, 1, 1, 2, 2, 3)))]
    if chance.random() < 0.03:
        roles.append(
            chance.choice(("reader", "arn:aws:iam::1:role/x", "arn:aws:iam::111122223333:user/bob", ""))
        )
    return roles[0] if len(roles) == 1 and chance.random() < 0.2 else roles


def _any_role(chance: random.Random, policy: dict[str, Any]) -> tuple[str, str]:
    """Draw a role: mostly of the policy, sometimes its namesake in the other account, or an unknown role."""
    if chance.random() < 0.85:
        role = chance.choice(policy["roles"])
        parts = (role.get("arn") or chance.choice(role["arns"])).split(":")
        return parts[4], role["name"]
    return chance.choice(_ACCOUNTS), chance.choice(_NAMES)


def _spelled(chance: random.Random, account: str, name: str) -> str:
    """Spell a role's ARN in one of its ways."""
    return chance.choice(
        (
            f"arn:aws:iam::{account}:role/{name}",
            f"arn:aws:iam::{account}:role/{name}",
            f"arn:aws:iam::{account}:role/team/path/{name}",
            f"arn:aws:sts::{account}:assumed-role/{name}/session-{chance.randint(1, 3)}",
        )
    )
