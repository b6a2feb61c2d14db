"""One row for each claim that a policy can name, and for each that a standard gives a meaning (SPEC.md
section 5).

A claim has a *kind*: what stands there in a good token, and how it may be written. The shapes are those that
vendors of tokens and readers of tokens confuse: a text where a list is meant, joined by commas or blanks, a
list in a list, an object, a number, the same twice, nothing. For each kind the table says which shapes are
good; the rest is refused. Where the standards leave it to the reader, the row says `OPEN`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.derived.sitting import (
    ALLOWED,
    OPEN,
    REFUSED,
    Ask,
    Sitting,
    Wanted,
    question,
    sitting,
)
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

ABSENT = object()
"""A claim that is left out."""
AWS = "https://sts.amazonaws.com/"
_ARN = "arn:aws:iam::111111111111:role/"
_KIOSK, _CLERK = f"{_ARN}kiosk", f"{_ARN}clerk"
SHAPES: Mapping[str, Callable[[Any], Any]] = {
    "as it is": lambda good: good,
    "absent": lambda _: ABSENT,
    "null": lambda _: None,
    "empty": lambda _: "",
    "a blank": lambda _: " ",
    "0": lambda _: 0,
    "1": lambda _: 1,
    "true": lambda _: True,
    "false": lambda _: False,
    "an empty list": lambda _: [],
    "an empty object": lambda _: {},
    "an object": lambda good: {"value": good},
    "an object with it as a key": lambda good: {str(good): True},
    "a list of it": lambda good: [good],
    "a list with it twice": lambda good: [good, good],
    "a list with another text": lambda good: ["something-else", good],
    "a list in a list": lambda good: [[good]],
    "a list with a list": lambda good: [good, [good]],
    "a list with a number": lambda good: [good, 1],
    "a list with null": lambda good: [None, good],
    "a list with nothing": lambda good: [good, ""],
    "a text with a comma behind": lambda good: f"{good},something-else",
    "a text with a comma before": lambda good: f"something-else,{good}",
    "a text with a blank behind": lambda good: f"{good} something-else",
    "a text with a blank before": lambda good: f"something-else {good}",
    "a text twice with a comma": lambda good: f"{good},{good}",
    "a text twice with a blank": lambda good: f"{good} {good}",
    "a list of two with a blank": lambda good: [f"{good} something-else"],
    "a list of two with a comma": lambda good: [f"{good},{good}"],
    "JSON in a text": lambda good: f'["{good}"]',
    "a text": str,
    "a number with a fraction": lambda good: good + 0.5 if isinstance(good, int) else 1.5,
}
_MIXED = ("a list with a list", "a list with a number", "a list with null", "a list with nothing")
"""A reader may pass over what is no text, or refuse the whole."""
Kind = dict[str, Wanted]
"""Shapes that are not refused; `as it is` is good for every kind."""
_TEXT: Kind = {"a text": ALLOWED}
_ABSENT: Kind = {"absent": ALLOWED, "null": OPEN}
AUDIENCE: Kind = (
    _TEXT
    | dict.fromkeys(("a list of it", "a list with it twice", "a list with another text"), ALLOWED)
    | dict.fromkeys(_MIXED, OPEN)
)
"""RFC 7519 section 4.1.3: a string or an array of strings."""
ROLES: Kind = _TEXT | dict.fromkeys(("a list of it", "a list with it twice"), ALLOWED)
"""One malformed entry refuses the whole token (6.10)."""
WISH: Kind = _TEXT | {"a list of it": OPEN, "a list with it twice": OPEN}
SCOPE: Kind = (
    AUDIENCE
    | _ABSENT
    | dict.fromkeys(
        ("a text with a blank behind", "a text with a blank before", "a text twice with a blank"), ALLOWED
    )
)
"""A string split at spaces, or an array (6.22)."""
NUMBER: Kind = {"a number with a fraction": OPEN}
"""Whether a fraction is read is a matter of the grade (5.7)."""
NEEDED_TEXT: Kind = _TEXT
LABEL: Kind = _TEXT | {name: OPEN for name in SHAPES if name.startswith(("a text", "JSON"))}
"""Any printable text is one (5.11)."""
SESSION: Kind = LABEL | _ABSENT


@dataclass(frozen=True, slots=True)
class Claim:
    """Where a claim is read, and what it may be."""

    issuer: str
    """Of data/worlds/derived.toml."""
    path: tuple[str, ...]
    good: Any
    kind: Kind
    beside: Mapping[str, Any] | None = None
    """Claims that the token has besides."""


_TWO = {"roles": [_KIOSK, _CLERK]}
_AWS = {"sub": _KIOSK, AWS: {"aws_account": "111111111111"}}
_REALM: dict[str, Any] = {"realm": {"roles": [_KIOSK], "who": "ann"}}
_ORIGIN: dict[str, Any] = {
    "sub": "a-name",
    "subject_mode": "OriginIdentity",
    AWS: {"aws_account": "111111111111", "principal_id": _KIOSK},
}
CLAIMS: Mapping[str, Claim] = {
    "iss": Claim("corp", ("iss",), "{iss}", NEEDED_TEXT),
    "aud": Claim("corp", ("aud",), "edge", AUDIENCE),
    "sub": Claim("corp", ("sub",), "ann", LABEL),
    "exp": Claim("corp", ("exp",), 600, NUMBER),
    "nbf": Claim("corp", ("nbf",), -5, NUMBER | _ABSENT | {"0": ALLOWED, "1": ALLOWED}),
    "iat": Claim("corp", ("iat",), -5, NUMBER | _ABSENT),
    "jti": Claim("access", ("jti",), "j", LABEL),
    "client_id": Claim("nested", ("client_id",), "kiosk", NEEDED_TEXT, _REALM),
    # RFC 6749 appendix A.1: a client_id may be empty, or a blank.
    "client_id of RFC 9068": Claim("access", ("client_id",), "c", LABEL | {"empty": OPEN, "a blank": OPEN}),
    "client_id of Cognito": Claim("pool", ("client_id",), "edge", NEEDED_TEXT, {"roles": []}),
    "token_use": Claim("pool", ("token_use",), "access", NEEDED_TEXT),
    "cognito:roles": Claim("pool", ("cognito:roles",), _KIOSK, ROLES),
    "cognito:preferred_role": Claim(
        "pool", ("cognito:preferred_role",), _KIOSK, WISH, {"cognito:roles": [_KIOSK, _CLERK]}
    ),
    "roles_claim": Claim("corp", ("roles",), _KIOSK, ROLES),
    "preferred_role_claim": Claim("corp", ("preferred",), _KIOSK, WISH, _TWO),
    "scope_claim": Claim("corp", ("scope",), "kiosk", SCOPE),
    "session_claim": Claim("corp", ("sid",), "s", SESSION),
    "roles_claim at a path": Claim("nested", ("realm", "roles"), _KIOSK, ROLES, _REALM),
    "preferred_role_claim at a path": Claim(
        "nested", ("realm", "preferred"), _KIOSK, WISH, {"realm": {"roles": [_KIOSK, _CLERK], "who": "ann"}}
    ),
    "scope_claim at a path": Claim(
        "nested", ("realm", "scope"), "kiosk", {**SCOPE, "absent": REFUSED, "null": REFUSED}, _REALM
    ),
    "session_claim at a path": Claim("nested", ("realm", "sid"), "s", SESSION, _REALM),
    "principal_claim": Claim("nested", ("realm", "who"), "ann", LABEL, _REALM),
    "the way to a claim": Claim(
        "nested", ("realm",), {"roles": [_KIOSK], "who": "ann", "scope": "kiosk"}, {}
    ),
    "sub of AWS": Claim("outbound", ("sub",), _KIOSK, NEEDED_TEXT),
    "aws_account": Claim("outbound", (AWS, "aws_account"), "111111111111", NEEDED_TEXT),
    "principal_id": Claim("outbound", (AWS, "principal_id"), _KIOSK, NEEDED_TEXT, _ORIGIN),
    "original_session_exp": Claim("outbound", (AWS, "original_session_exp"), 500, NUMBER | _ABSENT),
    "the claims of AWS": Claim("outbound", (AWS,), {"aws_account": "111111111111"}, {}),
}
"""By name; what a policy can put elsewhere is there once at the top of the token and once at a path."""
_ISSUERS: Mapping[str, Mapping[str, Any]] = {
    "corp": {"roles": [_KIOSK]},
    "nested": {
        "realm": {"roles": [_KIOSK], "who": "ann", "scope": "kiosk"},
        "client_id": "kiosk",
        "aud": ABSENT,
    },
    "access": {"roles": [_KIOSK], "client_id": "c", "typ": "at+jwt"},
    "pool": {"cognito:roles": [_KIOSK], "client_id": "edge", "token_use": "access", "aud": ABSENT},
    "outbound": _AWS,
}
"""The claims of a good token of each issuer."""
_TIMES = ("exp", "nbf", "iat", "original_session_exp")


def _put(claims: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """The claims with a value at a path, the objects on the way copied."""
    head, *rest = path
    inner = claims.get(head)
    return {**claims, head: _put(dict(inner or {}), tuple(rest), value) if rest else value}


def minted(here: Sitting, issuer: str, claims: Mapping[str, Any], **recipe: Any) -> str:  # noqa: ANN401 - of a recipe
    """A token of an issuer of the world, with these claims over those that a good one has."""
    said = {**_ISSUERS[issuer], **claims}
    typ = {"typ": said.pop("typ")} if "typ" in said else {}
    if issuer != "corp":
        said = {"iss": f"https://{issuer}.kiosk.example", **said}
    if issuer == "nested" and isinstance(said.get("realm"), dict) and "scope" not in said["realm"]:
        said["realm"] = {**said["realm"], "scope": "kiosk"}
    drop = [name for name, value in said.items() if value is ABSENT]
    nested = [
        [name, inner]
        for name, value in said.items()
        if isinstance(value, dict)
        for inner, v in value.items()
        if v is ABSENT
    ]
    told = {
        name: {k: v for k, v in value.items() if v is not ABSENT} if isinstance(value, dict) else value
        for name, value in said.items()
        if value is not ABSENT
    }
    return here.token("corp", key="ES256", claims=told, drop=[*drop, *nested], **typ, **recipe)


def shaped(here: Sitting, now: int) -> Iterator[Ask]:
    """Every claim in every shape."""
    for name, claim in CLAIMS.items():
        time_ = claim.path[-1] in _TIMES
        good = here.issuer().url if claim.good == "{iss}" else now + claim.good if time_ else claim.good
        base = {**_ISSUERS[claim.issuer], **(claim.beside or {})}
        for shape, make in SHAPES.items():
            if not isinstance(good, str) and shape == "an object with it as a key":
                continue
            if time_ and shape == "a text":
                wanted: Wanted = REFUSED
            elif shape == "as it is":
                wanted = ALLOWED
            elif shape == "a text" and isinstance(good, dict):
                continue
            else:
                wanted = claim.kind.get(shape, REFUSED)
            claims = _put(base, claim.path, make(good))
            yield Ask(f"{name}, {shape}", question(minted(here, claim.issuer, claims)), wanted)


def _doubled(here: Sitting, now: int) -> Iterator[Ask]:
    """Claims at the top of the token, a good one first and then one that opens nothing."""
    for name, claim in CLAIMS.items():
        if claim.path[1:] or not isinstance(claim.good, str | int) or claim.kind is SESSION:
            continue
        bad = now - 9 if claim.path[0] == "exp" else now + 900 if claim.path[0] in _TIMES else 7
        good = (
            here.issuer().url if claim.good == "{iss}" else claim.good if bad == 7 else now + int(claim.good)
        )
        base = {**_ISSUERS[claim.issuer], **(claim.beside or {})}
        token = minted(here, claim.issuer, base, duplicate={claim.path[0]: [good, bad]})
        yield Ask(f"{name} twice", question(token), REFUSED)


@check("identity.derived.claims", "DERIVED-CLAIM-001", features={"oidc"})
def claims(target: Target) -> str:
    """Every claim in every shape of JSON: what is not written as its standard says opens nothing.

    Also each claim twice, the good one first: the last counts, or the token is malformed (5.2).
    """
    with sitting(target) as here:
        asks = list(shaped(here, here.now()))
        here.settle(asks[:: len(SHAPES)])
        here.put([*asks, *_doubled(here, here.now())])
    return f"{here.asked} questions about {len(CLAIMS)} claims"
