"""One row for each key of an issuer, of an STS endpoint, and of what bounds all issuers (SPEC.md section 6).

As in `rules`, each row makes something of its own in two worlds: an issuer whose `iss` nobody else has. All
of them sign with the keys of one mock issuer, so that a row costs a table and no more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from iamroles_scenarios.checks.derived.issuer_rows import ISSUER, JWKS, KIOSK, LIMITS, STS, Row
from iamroles_scenarios.checks.derived.sitting import Ask, Sitting, question, sitting
from iamroles_scenarios.checks.identity.caller import session_of
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_HEADER = ("typ", "alg", "signer", "size")


def entry(number: int, key: str, row: Row, *, without: bool) -> dict[str, Any]:
    """The issuer of a row."""
    table: dict[str, Any] = {
        "name": f"derived{number}",
        "issuer": f"https://issuer{number}.example",
        "jwks_uri": JWKS,
        "insecure_http": True,
        "audiences": ["edge"],
        "algorithms": ["RS256", "ES256"],
    } | dict(row.more or {})
    if key:
        table[key] = row.instead if without else row.value
    filled = {name: _filled(value, {"{n}": str(number)}) for name, value in table.items()}
    return {name: value for name, value in filled.items() if value is not None}


def _filled(value: Any, places: Mapping[str, str]) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, str):
        for place, text in places.items():
            value = value.replace(place, text)
    if isinstance(value, list):
        return [_filled(item, places) for item in value]
    if isinstance(value, Mapping):
        return {key: _filled(item, places) for key, item in value.items()}
    return value


def _token(here: Sitting, claims: Mapping[str, Any], issuer: str, now: int) -> str:
    """A token of these claims; a claim of None is left out."""
    said = {"iss": issuer, "roles": KIOSK, **claims}
    times = {name: now + said[name] for name in ("exp", "nbf", "iat") if isinstance(said.get(name), int)}
    drop = ["nbf"] if "nbf" not in said else []
    recipe: dict[str, Any] = {"key": said.get("alg", "ES256"), "signer": said.get("signer", "corp")}
    if "typ" in said:
        recipe |= {"typ": said["typ"]}
    if "size" in said:
        recipe |= {"size": said["size"]}
    kept = {name: value for name, value in said.items() if name not in (*_HEADER, "role")} | times
    gone = [name for name, value in kept.items() if value is None]
    full = {name: value for name, value in kept.items() if value is not None}
    return here.token("corp", claims=full, drop=[*drop, *gone], **recipe)


def asks(here: Sitting, key: str, number: int, row: Row, now: int) -> tuple[list[Ask], list[Ask]]:
    """The questions of a row with the key, and without it; the tokens are the same."""
    found: tuple[list[Ask], list[Ask]] = ([], [])
    for claims, with_, without in row.asked:
        places = {"{n}": str(number)}
        said = _filled(claims, places)
        token = _token(here, said, f"https://issuer{number}.example", now)
        what = f"{key} = {row.value!r}, asked with {said}"
        for into, wanted in zip(found, (with_, without), strict=True):
            check = question(token, role=said.get("role"))
            into.append(Ask(what, check, _filled(wanted, places)))
    return found


def _rows() -> Iterator[tuple[int, str, Row]]:
    rows = [(key, row) for key, rows in ISSUER.items() for row in rows]
    for number, (key, row) in enumerate(rows):
        yield number, key, row


@check("identity.derived.issuers", "DERIVED-KEY-002", features={"oidc", "reload"})
def keys_of_issuers(target: Target) -> str:
    """Every key of an issuer, and every bound of all issuers, matters on both sides of its edge.

    All issuers at once; then each bound alone, with an issuer of its own.
    """
    with sitting(target, "identity.derived.issuers") as here:
        here.issuer("partner")
        now, base = int(time.time()), here.place.policy
        asked = [asks(here, f"issuers.{key}", number, row, now) for number, key, row in _rows()]
        for without, when in ((False, ""), (True, "without it: "), (False, "again with it: ")):
            tables = [
                here.place.own(entry(number, key, row, without=without)) for number, key, row in _rows()
            ]
            here.force({**base, "issuers": [*base["issuers"], *tables]}, "the keys of issuers")
            turns = 1 if when.startswith("again") else 2
            put = [ask for pair in asked for ask in pair[without]]
            here.settle(put)
            here.put(put, when, turns=turns)
        for key, rows in LIMITS.items():
            for number, row in enumerate(rows, 1000):
                issuer = here.place.own(entry(number, "", row, without=False))
                pair = asks(here, f"limits.{key}", number, row, now)
                for without, when in ((False, ""), (True, "without it: ")):
                    value = row.instead if without else row.value
                    limits = {} if value is None else {"limits": {key: value}}
                    here.force({**base, "issuers": [*base["issuers"], issuer], **limits}, f"limits.{key}")
                    here.settle(pair[without])
                    here.put(pair[without], when)
    return f"{here.asked} questions"


@check("identity.derived.endpoints", "DERIVED-KEY-003", features={"sts", "reload"})
def keys_of_endpoints(target: Target) -> str:
    """Every key of an STS endpoint matters, and no longer than it is there.

    One endpoint and one key at a time; the same credential before and after.
    """
    with sitting(target, "identity.derived.endpoints") as here:
        cloud, base = here.target.stage.cloud, here.place.policy
        session = session_of(cloud, "kiosk")
        for key, rows in STS.items():
            for row in rows:
                host = f"{key.replace('_', '-')}{here.place.suffix}.sts.example"
                table = {
                    "name": "sts-one",
                    "endpoint": "{sts}",
                    "hosts": [host],
                    "binding_value": "edge-a",
                    "insecure_http": True,
                }
                credentials = [
                    _presigned(cloud, session, _filled(claims, {"{host}": host}), host)
                    for claims, _, _ in row.asked
                ]
                for without, when in ((False, ""), (True, "without it: "), (False, "again with it: ")):
                    value = _filled(row.instead if without else row.value, {"{host}": host})
                    changed = {
                        name: each for name, each in (table | {key: value}).items() if each is not None
                    }
                    here.force({**base, "sts": [changed]}, f"sts.{key}")
                    here.put(
                        [
                            Ask(f"sts.{key} = {row.value!r}", question(text), asked[1 + without])
                            for text, asked in zip(credentials, row.asked, strict=True)
                        ],
                        when,
                    )
    return f"{here.asked} questions"


def _presigned(cloud: Any, session: Any, recipe: Mapping[str, Any], host: str) -> str:  # noqa: ANN401 - the mock cloud's
    said = {"binding_value": "edge-a", "binding_header": "x-iam-edge", "host": host, **recipe}
    return str(
        cloud.presign_caller_identity(
            session, said.pop("binding_value"), {}, binding_header=said["binding_header"], host=said["host"]
        )
    )
