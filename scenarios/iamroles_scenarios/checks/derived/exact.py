"""One row for each text that is compared (SPEC.md sections 2, 5 and 6), and its neighbours.

RFC 8259 section 8.3 and RFC 7519 section 7.3 compare code point by code point; RFC 9110 does so with methods.
A reader that folds case, trims, normalises Unicode or looks at a beginning takes one text for another.
`U+212A KELVIN SIGN` becomes a `k` and `U+017F LONG S` an `s` where letters are made small or large without
regard to their alphabet; so the names of this world hold both letters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.derived.claims import AWS, CLAIMS, minted
from iamroles_scenarios.checks.derived.sitting import (
    ALLOWED,
    HOST,
    OPEN,
    PATH,
    REFUSED,
    Ask,
    Sitting,
    Wanted,
    question,
    sitting,
)
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_ARN = "arn:aws:iam::111111111111:role/"
_KIOSK, _CLERK = f"{_ARN}kiosk", f"{_ARN}clerk"
_DISGUISES = {"k": "\u212a", "s": "\u017f", "i": "\u0131", "o": "\u043e", "e": "\u0435", "c": "\u0441"}
"""Letters in the likeness of others: by case mapping, and by sight."""


def neighbours(text: str) -> Iterator[tuple[str, str]]:
    """Texts that are nearly this one, and what makes the difference."""
    first = next((letter for letter in text if letter.isalpha()), text[0])
    found = {
        "capitals": text.upper(),
        "small letters": text.lower(),
        "one capital": text.replace(first, first.swapcase(), 1),
        "one letter less": text[:-1],
        "one letter more": text + text[-1],
        "no first letter": text[1:],
        "a slash behind": f"{text}/",
        "a slash before": f"/{text}",
        "a blank behind": f"{text} ",
        "a blank before": f" {text}",
        "a tab behind": f"{text}\t",
        "a line break behind": f"{text}\n",
        "a no-break space behind": f"{text}\u00a0",
        "a space of no width behind": f"{text}\u200b",
        "an accent behind": f"{text}\u0301",
        "a dot behind": f"{text}.",
        "NUL behind": f"{text}\0",
        "%00 behind": f"{text}%00",
        "a fragment behind": f"{text}#x",
        "a query behind": f"{text}?x",
        "a comma behind": f"{text},",
        "a star": "*",
        "a star behind": f"{text[:-1]}*",
        "a wide letter": text.replace(first, chr(ord(first) + 0xFEE0), 1),
        "quoted": f'"{text}"',
        "encoded": text.replace(first, f"%25{ord(first):02X}", 1),
    }
    found |= {
        f"{unicodedata.name(other)} for {letter}": text.replace(letter, other)
        for letter, other in _DISGUISES.items()
    }
    yield from ((what, other) for what, other in found.items() if other != text)


_Asking = Callable[[Sitting, str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Exact:
    """A text, how a question with another in its place is made, and neighbours that are not another."""

    text: str
    ask: _Asking
    alike: Mapping[str, Wanted] | None = None


def _claim(issuer: str, *names: str, **beside: Any) -> _Asking:  # noqa: ANN401 - claims
    def ask(here: Sitting, text: str) -> dict[str, Any]:
        return question(minted(here, issuer, {**beside, **dict.fromkeys(names, text)}))

    return ask


def _argument(name: str, *roles: str) -> _Asking:
    def ask(here: Sitting, text: str) -> dict[str, Any]:
        return question(here.token(key="ES256", roles=list(roles or ["kiosk"]))) | {name: text}

    return ask


def _header(name: str) -> _Asking:
    def ask(here: Sitting, text: str) -> dict[str, Any]:
        return question(here.token(key="ES256", roles=["kiosk"], header={name: text}))

    return ask


def _scheme(here: Sitting, text: str) -> dict[str, Any]:
    asked = question(here.token(key="ES256", roles=["kiosk"]))
    return asked | {"authorization": text + str(asked["authorization"])[len("Bearer") :]}


_CASE = ("capitals", "small letters", "one capital")
_TRIMMED = dict.fromkeys(("a blank behind", "a blank before", "a tab behind", "a line break behind"), OPEN)
"""What stands in a header arrives without outer blanks (RFC 9110 section 5.5), or else may be trimmed."""
_FOLDED = dict.fromkeys(_CASE, ALLOWED)
EXACT: Mapping[str, Exact] = {
    "iss": Exact("https://nested.kiosk.example", _claim("nested", "iss")),
    "aud": Exact("kiosk", _claim("corp", "aud")),
    "client_id": Exact("kiosk", _claim("nested", "client_id")),
    "client_id of Cognito": Exact("edge", _claim("pool", "client_id")),
    "token_use": Exact("access", _claim("pool", "token_use")),
    "aws_account": Exact(
        "111111111111", lambda here, text: question(minted(here, "outbound", {AWS: {"aws_account": text}}))
    ),
    "roles_claim": Exact(_KIOSK, _claim("corp", "roles")),
    "preferred_role_claim": Exact(_KIOSK, _claim("corp", "preferred", roles=[_KIOSK, _CLERK])),
    "scope_claim": Exact(
        "kiosk", _claim("corp", "scope"), dict.fromkeys(("a blank behind", "a blank before"), ALLOWED)
    ),
    "sub of AWS": Exact(_KIOSK, _claim("outbound", "sub")),
    "alg": Exact("ES256", _header("alg")),
    "typ": Exact("JWT", _header("typ"), _FOLDED),
    "scheme": Exact("Bearer", _scheme, _FOLDED | _TRIMMED),
    "role by name": Exact("kiosk", _argument("role", "kiosk", "clerk"), _TRIMMED),
    "role by ARN": Exact(_KIOSK, _argument("role", "kiosk", "clerk"), _TRIMMED),
    "method": Exact("GET", _argument("method"), _TRIMMED),
    "host": Exact(HOST, _argument("host"), _FOLDED | _TRIMMED | {"a dot behind": ALLOWED}),
    "path": Exact(PATH, _argument("path"), {"a slash behind": ALLOWED}),
}
"""By what is compared. Neighbours that are no difference have a verdict of their own."""


@check("identity.derived.exact", "DERIVED-EXACT-001", features={"oidc"})
def exact(target: Target) -> str:
    """Texts are compared whole and to the letter: case, blank, slash and Unicode make others of them.

    The text itself, and each of its neighbours, one token for each.
    """
    with sitting(target) as here:
        asks = []
        for name, row in EXACT.items():
            good = Ask(f"{name} {row.text!r}", row.ask(here, row.text), ALLOWED)
            here.settle([good])
            asks += [good]
            asks += [
                Ask(
                    f"{name} with {what}: {other!r}",
                    row.ask(here, other),
                    (row.alike or {}).get(what, REFUSED),
                )
                for what, other in neighbours(row.text)
            ]
        here.put(asks)
    return f"{here.asked} questions about {len(EXACT)} texts"


LONGEST = 512
TAGS: Mapping[str, tuple[str, Wanted]] = {
    "one letter": ("a", ALLOWED),
    "letters, digits, marks": ("Az09-._~!#$%&'*+^`|/:@=", ALLOWED),
    "a blank within": ("a b", ALLOWED),
    "the longest": ("x" * LONGEST, ALLOWED),
    "an ARN": ("arn:aws:sts::111111111111:assumed-role/kiosk/s", ALLOWED),
    "beyond ASCII": ("Zo\u00eb \u5b57", OPEN),
    "beyond the BMP": ("\U0001f511", OPEN),
    "too long": ("x" * (LONGEST + 1), REFUSED),
    "far too long": ("x" * 2000, REFUSED),
    "empty": ("", REFUSED),
    **{
        f"{name} {where}": (text, REFUSED)
        for name, blank in {
            "a blank": " ",
            "a tab": "\t",
            "a line feed": "\n",
            "a line break": "\r\n",
            "NUL": "\0",
            "DEL": "\x7f",
            "NEL": "\x85",
            "a no-break space": "\u00a0",
            "a wide space": "\u3000",
            "U+2028": "\u2028",
        }.items()
        for where, text in (("before", f"{blank}a"), ("behind", f"a{blank}"))
    },
    **{
        f"{name} within": (f"a{text}b", REFUSED)
        for name, text in {
            "a line break": "\r\nX-IAM-Role: x",
            "a line feed": "\n",
            "NUL": "\0",
            "DEL": "\x7f",
            "ESC": "\x1b",
            "NEL": "\x85",
            "U+2028": "\u2028",
            "U+2029": "\u2029",
        }.items()
    },
}
"""What becomes a tag (5.11). Where an agent may take it or refuse it, it is whole and unchanged if it is
taken."""
TAGGED = {
    "sub": ("corp", "principal"),
    "principal_claim": ("nested", "principal"),
    "session_claim": ("corp", "session"),
    "session_claim at a path": ("nested", "session"),
    "jti": ("access", "session"),
}
"""Claims that become a tag: the issuer, and the variable."""


@check("identity.derived.tags", "DERIVED-TAG-001", features={"oidc"})
def tags(target: Target) -> str:
    """What becomes a tag is printable, without outer blanks, of 1 to 512 characters, and goes on whole.

    Each claim that becomes one, with each text.
    """
    with sitting(target) as here:
        for name, (issuer, variable) in TAGGED.items():
            asks = []
            for what, (text, wanted) in TAGS.items():
                token = minted(here, issuer, _at(CLAIMS[name].path, text))
                told: Wanted = {**wanted, variable: text} if wanted is ALLOWED else wanted
                if wanted is OPEN:
                    told = {variable: {text, ""}}
                asks.append(Ask(f"{name} with {what}", question(token), told))
            here.settle(asks[:1])
            here.put(asks)
    return f"{here.asked} questions"


def _at(path: tuple[str, ...], text: str) -> dict[str, Any]:
    """The claims with a text at a path of this world's tokens."""
    if len(path) == 1:
        return {path[0]: text}
    return {path[0]: {"roles": [_KIOSK], "who": "ann", path[1]: text}}
