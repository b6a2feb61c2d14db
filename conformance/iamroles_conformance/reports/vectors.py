"""Tokens, key sets, policies, questions and right verdicts as data, for authors who do not run this suite.

All of it comes from what the suite plays: scenarios that ask and change nothing, tables of the derived
checks, and worlds of the oracle. Nothing is asked here. A `_Desk` stands where a bench would, and mints with
keys and at a time that are the same for each set.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from iamroles_scenarios.checks.derived import claims, exact, reasons
from iamroles_scenarios.checks.oracle import campaign, generate
from iamroles_scenarios.checks.oracle.answer import wanted
from iamroles_scenarios.checks.oracle.judge import judge
from iamroles_scenarios.declarations.scenario import OneOf, Scenario, WorldSpec, policy_of, scenarios
from iamroles_scenarios.engine.observation import TAGS
from iamroles_scenarios.engine.players import check_of
from iamroles_scenarios.engine.tokens import located
from iamroles_scenarios.engine.worlds import DEFAULT_ISSUER
from iamroles_scenarios.jose import SigningKey, mint_for
from iamroles_scenarios.jose.encoding import b64url, b64url_uint, part

if TYPE_CHECKING:
    from iamroles_scenarios.engine.bench import Bench, SpopQuestion

FORMAT = 1
NOW = 1893456000
"""2030-01-01T00:00:00Z, the clock of the fixed set."""
KEYS = "http://127.0.0.1:8118"
"""The URL under which the folder is served. Agents fetch the key sets from it."""
WITHIN = 60
"""Seconds after `now` in which each verdict stays right."""
_IDP = "https://idp.vectors.example"
_WORLDS, _CASES = 16, 25
"""Worlds of the oracle, and questions for each."""
_ABSENT = frozenset({"dark", "gone"})
"""Issuers that no host serves."""
_NAMES = dict.fromkeys(("cognito", "cognito-id"), ("event_id", "origin_jti"))
"""Claims to which a shape gives a random text, by the shape."""
_PRIMORIAL = math.prod(
    number for number in range(3, 2000) if all(number % one for one in range(2, 45)) or number < 45
)
_LOOKED_AT = {"status", "allow", "backend", "reason", "error", *TAGS}
"""Fields of an expectation that are variables."""
Vector = dict[str, Any]


def files(now: int, keys: str, only: Collection[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make each file of vectors, and each key set, by its path.

    Args:
        now: epoch seconds.
        keys: URL under which the folder is served.
        only: names of files of vectors; none: all.
    """
    desk = _Desk(now, only)
    made: dict[str, list[dict[str, Any]]] = {}
    for file, group in (*_of_scenarios(desk), *_of_tables(desk), *_of_oracle(desk)):
        made.setdefault(file, []).append({**group, "policy": _served(group["policy"], keys)})
    for name, groups in made.items():
        yield f"vectors/{name}.json", {"format": FORMAT, "now": now, "within": WITHIN, "groups": groups}
    for name, issuer in desk.issuers.items():
        yield f"jwks/{name}.json", {"keys": [key.public_jwk() for key in issuer.keys]}
    private = [key.private_jwk() for issuer in desk.issuers.values() for key in issuer.keys]
    yield "TEST-KEYS.json", {"warning": "Private keys of tests: anybody has them.", "keys": private}


def _served(policy: Mapping[str, Any], keys: str) -> dict[str, Any]:
    """Name the places of this set in a policy; STS is left out, which only a live service can answer."""
    found = {name: value for name, value in policy.items() if name != "sts"}
    rows = []
    for row in found.get("issuers", []):
        name = str(row.get("jwks_uri") or row["issuer"]).removesuffix("/jwks").rpartition("/")[2]
        if row["name"] not in _ABSENT:
            rows.append(row | {"jwks_uri": f"{keys}/jwks/{name}.json"})
    text = json.dumps(found | {"issuers": rows}).replace("{idp}", _IDP).replace("{suffix}", "")
    return cast("dict[str, Any]", json.loads(text))


# --- keys and tokens ---------------------------------------------------------------------------------------


@dataclass
class _Issuer:
    url: str
    keys: list[SigningKey]
    shape: str = "generic"


@dataclass
class _Desk:
    """Mints tokens as a `Bench` does."""

    time: int
    only: Collection[str]
    issuers: dict[str, _Issuer] = field(default_factory=dict)
    _count: Iterator[int] = field(default_factory=itertools.count)

    def wants(self, file: str) -> bool:
        return not self.only or file in self.only

    def now(self) -> int:
        return self.time

    def issuer(self, name: str = DEFAULT_ISSUER) -> _Issuer:
        if name not in self.issuers:
            # Named as the mock issuer's keys.
            keys = [_key("RS256", f"{name}-rs256-2"), _key("ES256", f"{name}-es256-1")]
            self.issuers[name] = _Issuer(f"{_IDP}/{name}", keys)
        return self.issuers[name]

    def token(self, issuer: str = DEFAULT_ISSUER, signer: str = "", **recipe: Any) -> str:  # noqa: ANN401 - any recipe
        """Mint by recipe; all that a recipe leaves to chance is the same each time."""
        signers = {name: self.issuer(name) for name in (issuer, signer or issuer, DEFAULT_ISSUER)}
        named = recipe.get("claims", {})
        if recipe.get("base", "valid") == "valid":
            random = ("jti", *_NAMES.get(recipe.get("shape", ""), ()))
            number = next(self._count)
            recipe["claims"] = {**{name: f"{name}-{number}" for name in random}, **named}
        if recipe.get("key") in ("other", "unknown-kid"):
            published = signers[signer or issuer].keys
            unknown = {"kid": "unknown"} if recipe.pop("key") == "unknown-kid" else {}
            strange = [_key(key.algorithm, key.kid, "stranger ") for key in published]
            signers["stranger"], recipe = _Issuer("", strange), unknown | recipe
            signer = "stranger"
        full = located(recipe, {name: one.url for name, one in signers.items()})
        return mint_for({**full, "issuer": issuer, "signer": signer or issuer}, signers, self.time)


@functools.cache
def _key(algorithm: str, kid: str, whose: str = "") -> SigningKey:
    """Make a key of tests from its name."""
    seed = f"{whose}{kid}"
    if algorithm == "RS256":
        p, q = (_prime(f"{seed} {one}") for one in "pq")
        d = pow(65537, -1, math.lcm(p - 1, q - 1))
        parts = {"kty": "RSA", "e": b64url_uint(65537), "d": b64url_uint(d)}
        parts |= {"p": b64url_uint(p), "q": b64url_uint(q)}
    else:
        parts = {"kty": "EC", "crv": "P-256", "d": b64url(hashlib.sha256(seed.encode()).digest())}
    return replace(SigningKey.from_jwk({"kid": kid, "alg": algorithm, **parts}), steady=True)


def _prime(seed: str) -> int:
    """Find a prime of 1024 bits, the same for each seed; good enough for a key that everybody has."""
    number = int.from_bytes(hashlib.shake_256(seed.encode()).digest(128), "big") | 3 << 1022 | 1
    while math.gcd(number, _PRIMORIAL) > 1 or pow(2, number - 1, number) != 1 or (number - 1) % 65537 == 0:
        number += 2
    return number


# --- vectors -----------------------------------------------------------------------------------------------


def _group(
    name: str, policy: Mapping[str, Any], vectors: list[Vector], *, loads: bool = True
) -> dict[str, Any]:
    return {"name": name, "loads": loads, "policy": policy, "vectors": vectors}


def _vector(
    name: str, title: str, check: Mapping[str, Any], permitted: Mapping[str, Any], *proves: str
) -> Vector:
    """Write a question and, for each variable that matters, all values that are right."""
    right = {
        key: sorted(value if isinstance(value, set | frozenset | list) else [value], key=str)
        for key, value in permitted.items()
    }
    question = {"authorization-count": 0 if check.get("authorization") is None else 1, "role": None, **check}
    found = {"id": name, "title": title, "requirements": sorted(set(proves)), "question": question}
    return found | {"permitted": right or {"allow": [False, True]}}


def _of_scenarios(desk: _Desk) -> Iterator[tuple[str, dict[str, Any]]]:
    by_policy: dict[str, tuple[str, WorldSpec, list[Vector]]] = {}
    for scenario in scenarios().values():
        if _asks_only(scenario) and desk.wants(scenario.world.policy):
            key = json.dumps(policy_of(scenario.world), sort_keys=True)
            _, _, vectors = by_policy.setdefault(key, (scenario.id, scenario.world, []))
            vectors += _asked(scenario, desk)
    for first, world, vectors in by_policy.values():
        name = first if world.override else world.policy
        yield world.policy, _group(name, policy_of(world), vectors)


def _asks_only(scenario: Scenario) -> bool:
    """Tell whether a scenario is questions alone, with tokens that need no running service and no haste."""
    return (
        scenario.traffic is None
        and set(scenario.features) <= {"oidc"}
        and scenario.world.agents == 1
        and all(step.request is not None for step in scenario.steps)
        and not any({"sts", "lives"} & recipe.keys() for recipe in scenario.tokens.values())
    )


def _asked(scenario: Scenario, desk: _Desk) -> Iterator[Vector]:
    tokens = {name: desk.token(**recipe) for name, recipe in scenario.tokens.items()}
    for number, step in enumerate(scenario.steps, 1):
        checks = {name: one for name, one in scenario.checks.items() if "gate-spop" in one.lanes}
        told = {name: one for name, one in step.expect.items() if name in checks}
        if "gate-spop" not in step.lanes or not told:
            continue
        permitted: dict[str, Any] = {}
        for one in told.values():
            for name in sorted(one.model_fields_set & _LOOKED_AT):
                value = getattr(one, name)
                if name == "expires":
                    value = part(tokens[value], 1)["exp"]
                elif isinstance(value, OneOf):
                    value = value.one_of
                values = set(value if isinstance(value, list) else [value])
                permitted[name] = values & permitted.get(name, values)
        proves = [each for name in told for each in checks[name].requirements]
        title = step.note or "; ".join(checks[name].title for name in told)
        for variant, request in enumerate(dict.fromkeys(map(_frozen, step.requests())), 1):
            spec = step.requests()[0].model_validate_json(request)
            check = check_of(spec, tokens[spec.token] if spec.token else "")
            yield _vector(f"{scenario.id}.{number}.{variant}", title, check, permitted, *proves)


def _frozen(request: Any) -> str:  # noqa: ANN401 - a RequestSpec
    return str(request.model_dump_json(include={"method", "path", "host", "token", "role", "authorization"}))


def _of_tables(desk: _Desk) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write the derived checks that need one policy and one question."""
    here, policy, now = cast("Bench", desk), policy_of(WorldSpec(policy="derived")), desk.time
    asked: dict[str, tuple[str, Callable[[], Iterable[SpopQuestion]]]] = {
        "reasons": ("DERIVED-REASON-001", lambda: reasons.alone(here, now + 300)),
        "claims": ("DERIVED-CLAIM-001", lambda: (*claims.shaped(here, now), *claims.doubled(here, now))),
        "texts": ("DERIVED-EXACT-001", lambda: exact.compared(here)),
    }
    for file, (proves, questions) in ((name, one) for name, one in asked.items() if desk.wants(name)):
        vectors = [
            _vector(f"{file}.{number}", one.what, one.check, one.expected, proves)
            for number, one in enumerate(questions(), 1)
            if "keys_unavailable" not in str(one.expected) and _plain(one.check)
        ]
        yield file, _group("derived", policy, vectors)


def _plain(check: Mapping[str, Any]) -> bool:
    """Tell whether JSON can hold a question: each argument is there, with its own type."""
    return all(value is None or isinstance(value, str | int) for value in check.values())


def _of_oracle(desk: _Desk) -> Iterator[tuple[str, dict[str, Any]]]:
    """Draw worlds of a seed, and what the oracle says of their questions."""
    base = policy_of(WorldSpec(policy=campaign.POLICY))
    for number in range(_WORLDS if desk.wants("oracle") else 0):
        drawn = generate.draw(1, number, _CASES)
        policy = {**base, **drawn.policy, "issuers": [{**base["issuers"][0], **drawn.policy["issuers"][0]}]}
        vectors = []
        for count, case in enumerate(drawn.cases if drawn.loads else (), 1):
            times = {name: desk.time + case.claims[name] for name in ("iat", "exp")}
            told = {**case.claims, **times}
            token = desk.token(key="ES256", claims=told, drop=["nbf"])
            right = wanted(judge(drawn.policy, told, case.request, desk.time))
            check = {"authorization": f"Bearer {token}", **case.request}
            vectors.append(_vector(f"oracle.{number}.{count}", "drawn", check, right, "ORACLE-AGREE-001"))
        yield "oracle", _group(f"oracle-{number}", policy, vectors, loads=drawn.loads)
