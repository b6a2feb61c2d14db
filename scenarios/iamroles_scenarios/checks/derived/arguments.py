"""One row for each argument of a question (SPEC.md section 2): values that differ by much and by little.

An agent that remembers verdicts and leaves one argument out of its key gives an answer to another question.
So the values of one argument follow each other while all the rest stays the same, in both orders, each order
with a token that was not seen before. The last check lets a letter wander from one argument to the next: a
key that is the arguments put together without a mark between them does not notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from iamroles_scenarios.checks.derived.sitting import (
    ALLOWED,
    HOST,
    PATH,
    REFUSED,
    SOURCE,
    Ask,
    Sitting,
    Wanted,
    question,
    refusal,
    sitting,
)
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_ARN = "arn:aws:iam::111111111111:role/"
_NONE = refusal("no_grant")
_STRANGER = refusal("role_not_in_token")
_ODD = refusal("path_ambiguous")
Rows = Sequence[tuple[Any, Wanted]]


def _one_bit_off(text: str, every: int) -> Rows:
    """Addresses that differ from one in a single bit, which no grant of this world opens."""
    address = ip_address(text)
    return [
        (str(type(address)(int(address) ^ 1 << bit)), _NONE) for bit in range(0, address.max_prefixlen, every)
    ]


ARGUMENTS: Mapping[str, Rows] = {
    "authorization": (
        ("kiosk", ALLOWED),
        ("clerk", _NONE),
        (None, refusal("no_credentials")),
        ("guard", refusal("denied_by_rule", rule="no-guard")),
        ("brief", ALLOWED),
    ),
    "authorization-count": (
        (1, ALLOWED),
        (2, refusal("multiple_credentials")),
        (0, refusal("internal_error")),
        (3, refusal("multiple_credentials")),
    ),
    "role": (
        (f"{_ARN}kiosk", ALLOWED),
        (f"{_ARN}clerk", _NONE),
        (None, refusal("ambiguous_role")),
        ("kiosk", ALLOWED),
        ("Kiosk", _STRANGER),
        ("clerk", _NONE),
        ("", _STRANGER),
        (f"{_ARN}kios", _STRANGER),
        ("arn:aws:iam::111111111112:role/kiosk", _STRANGER),
        ("arn:aws-cn:iam::111111111111:role/kiosk", _STRANGER),
    ),
    "method": (("GET", ALLOWED), ("POST", _NONE), ("get", _NONE), ("HEAD", _NONE), ("GETS", _NONE)),
    "host": (
        (HOST, ALLOWED),
        ("kiosk.example.org", _NONE),
        (None, _NONE),
        (HOST.upper(), ALLOWED),
        (f"{HOST}:8443", ALLOWED),
        (f"{HOST}.test", _NONE),
        ("", _NONE),
        ("xkiosk.example.com", _NONE),
        ("example.com", _NONE),
    ),
    "path": (
        (PATH, ALLOWED),
        (f"{PATH}s", _NONE),
        (f"{PATH}/a/longer/path", ALLOWED),
        ("/Kiosk", _NONE),
        (f"{PATH}/", ALLOWED),
        (f"{PATH}//", _ODD),
        (f"{PATH}/..", _ODD),
        ("/", _NONE),
    ),
    "src": (
        (SOURCE, ALLOWED),
        ("192.0.2.6", _NONE),
        ("192.0.2.8", _NONE),
        ("2001:db8::7", ALLOWED),
        ("2001:db8::8", _NONE),
        ("192.0.3.7", _NONE),
        ("193.0.2.7", _NONE),
        ("2001:db8:0:1::7", _NONE),
        *_one_bit_off(SOURCE, 1),
        *_one_bit_off("2001:db8::7", 4),
    ),
}
CONTEXT: Mapping[str, Sequence[Any]] = {
    "request-id": ("another", "", "x" * 200),
    "src-port": (1, 65535),
    "stream": (0, 4_294_967_295),
}
"""Arguments of `iam-context`: whatever they say, the verdict is the same (2.5)."""
_TEXTS = ("role", "method", "host", "path")


def _roles(name: str) -> list[str]:
    """A question of the argument `role` needs a token with a choice."""
    return ["kiosk", "clerk"] if name == "role" else ["kiosk"]


def _asks(here: Sitting, name: str, rows: Rows) -> list[Ask]:
    """One question for each value; all else, the token included, is the same in all of them."""
    if name == "authorization":
        tokens = {value: here.token(roles=[value]) for value, _ in rows if value}
        return [
            Ask(f"authorization of {value}", question(tokens.get(value)), wanted) for value, wanted in rows
        ]
    token = here.token(roles=_roles(name))
    return [Ask(f"{name} {value!r}", question(token) | {name: value}, wanted) for value, wanted in rows]


@check("policy.derived.arguments", "DERIVED-ARGUMENT-001", features={"oidc"})
def arguments(target: Target) -> str:
    """Questions that differ in one argument alone get their own answers, in any order.

    Each argument's values in both orders, and letters that wander from one argument to another.
    """
    with sitting(target) as here:
        for name, rows in ARGUMENTS.items():
            here.put(_asks(here, name, rows), window=1)
            here.put(_asks(here, name, rows[::-1]), "in the other order: ", window=1)
        here.put(_shifted(here), window=1)
    return f"{here.asked} questions about {len(ARGUMENTS)} arguments"


def _shifted(here: Sitting) -> list[Ask]:
    """A good question, then the same letters with one of them in the next argument."""
    token = here.token(roles=["kiosk", "clerk"])
    good = question(token, role=f"{_ARN}kiosk")
    found = [Ask("before a letter wanders", good, ALLOWED)]
    for one in _TEXTS:
        for other in _TEXTS:
            if one != other:
                moved = {one: good[one][:-1], other: good[one][-1] + good[other]}
                back = {one: good[one] + good[other][0], other: good[other][1:]}
                found += [
                    Ask(f"a letter of {one} at {other}", good | moved, REFUSED),
                    Ask(f"a letter of {other} at {one}", good | back, REFUSED),
                ]
    return found


@check("policy.derived.context", "DERIVED-ARGUMENT-002", features={"oidc"})
def context(target: Target) -> None:
    """What iam-context says changes no verdict.

    Other values of each, for an allow and for a refusal; also with tokens seen before.
    """
    with sitting(target) as here:
        said = [{}, *({name: value} for name, values in CONTEXT.items() for value in values)]
        for wanted, path in ((ALLOWED, PATH), (_NONE, "/elsewhere")):
            # A token of its own for each: the answer to the first would else be remembered for all.
            tokens = [here.token(roles=["kiosk"]) for _ in said]
            for turned in (said, said[::-1]):
                here.put(
                    [
                        Ask(f"with {each}", question(token, path=path), wanted, each)
                        for each, token in zip(turned, tokens, strict=True)
                    ],
                    window=1,
                )
