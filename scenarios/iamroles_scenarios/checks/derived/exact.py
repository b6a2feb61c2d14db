"""Every text that is compared (SPEC.md sections 2, 5 and 6), and its neighbours.

RFC 8259 section 8.3 and RFC 7519 section 7.3 compare code point by code point; RFC 9110 does so with methods.
A reader that folds case, trims, normalises Unicode or looks at a beginning takes one text for another.
`U+212A KELVIN SIGN` becomes a `k` and `U+017F LONG S` an `s` if software changes case without regard to the
alphabet; so the names of this world hold both letters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.derived.claims import ABSENT, CLAIMS, minted
from iamroles_scenarios.checks.derived.world import HOST, PATH, derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN, AWS, table
from iamroles_scenarios.engine.answers import ALLOW, OPEN, REFUSE, Expected, expected
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target

_KIOSK, _CLERK = f"{ARN}kiosk", f"{ARN}clerk"
_DISGUISES = {"k": "\u212a", "s": "\u017f", "i": "\u0131", "o": "\u043e", "e": "\u0435", "c": "\u0441"}
"""Letters that look like others, or become them in another case."""


def neighbours(text: str) -> Iterator[tuple[str, str]]:
    """Yield texts that are nearly this one, and the difference in words."""
    first = next((letter for letter in text if letter.isalpha()), text[0])
    found = {
        "capitals": text.upper(),
        "small letters": text.lower(),
        "one capital": text.replace(first, first.swapcase(), 1),
        "one letter less": text[:-1],
        "one letter more": text + text[-1],
        "no first letter": text[1:],
        "a star behind": f"{text[:-1]}*",
        "a wide letter": text.replace(first, chr(ord(first) + 0xFEE0), 1),
        "encoded": text.replace(first, f"%25{ord(first):02X}", 1),
    }
    found |= {what: shape.replace("{text}", text) for what, shape in table("texts")["near"].items()}
    found |= {
        f"{unicodedata.name(other)} for {letter}": text.replace(letter, other)
        for letter, other in _DISGUISES.items()
    }
    yield from ((what, other) for what, other in found.items() if other != text)


_Asking = Callable[[Bench, str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Exact:
    """A text, a function that asks with another text in its place, and neighbours that count as the same
    text."""

    text: str
    ask: _Asking
    alike: Mapping[str, Expected] | None = None


def _claim(issuer: str, *names: str, **beside: Any) -> _Asking:  # noqa: ANN401 - claims
    def ask(here: Bench, text: str) -> dict[str, Any]:
        return iam_check(minted(here, issuer, {**beside, **dict.fromkeys(names, text)}))

    return ask


def _claim_named(name: str, value: Any) -> _Asking:  # noqa: ANN401 - a claim
    def ask(here: Bench, text: str) -> dict[str, Any]:
        return iam_check(minted(here, "corp", {name: ABSENT, text: value or here.now() + 300}))

    return ask


def _argument(name: str, *roles: str) -> _Asking:
    def ask(here: Bench, text: str) -> dict[str, Any]:
        return iam_check(here.token(key="ES256", roles=list(roles or ["kiosk"]))) | {name: text}

    return ask


def _header(name: str) -> _Asking:
    def ask(here: Bench, text: str) -> dict[str, Any]:
        return iam_check(here.token(key="ES256", roles=["kiosk"], header={name: text}))

    return ask


def _scheme(here: Bench, text: str) -> dict[str, Any]:
    asked = iam_check(here.token(key="ES256", roles=["kiosk"]))
    return asked | {"authorization": text + str(asked["authorization"])[len("Bearer") :]}


_CASE = ("capitals", "small letters", "one capital")
_TRIMMED = dict.fromkeys(("a blank behind", "a blank before", "a tab behind", "a line break behind"), OPEN)
"""A header's value arrives without outer blanks (RFC 9110 section 5.5), or the agent may trim it."""
_FOLDED = dict.fromkeys(_CASE, ALLOW)
EXACT: Mapping[str, Exact] = {
    "iss": Exact("https://nested.kiosk.example", _claim("nested", "iss")),
    "aud": Exact("kiosk", _claim("corp", "aud")),
    "client_id": Exact("kiosk", _claim("nested", "client_id")),
    "client_id of Cognito": Exact("edge", _claim("pool", "client_id")),
    "token_use": Exact("access", _claim("pool", "token_use")),
    "aws_account": Exact(
        "111111111111", lambda here, text: iam_check(minted(here, "outbound", {AWS: {"aws_account": text}}))
    ),
    "roles_claim": Exact(_KIOSK, _claim("corp", "roles")),
    "preferred_role_claim": Exact(_KIOSK, _claim("corp", "preferred", roles=[_KIOSK, _CLERK])),
    "scope_claim": Exact(
        "kiosk", _claim("corp", "scope"), dict.fromkeys(("a blank behind", "a blank before"), ALLOW)
    ),
    "sub of AWS": Exact(_KIOSK, _claim("outbound", "sub")),
    "name of the claim aud": Exact("aud", _claim_named("aud", "kiosk")),
    "name of the claim exp": Exact("exp", _claim_named("exp", None)),
    "name of roles_claim": Exact("roles", _claim_named("roles", [_KIOSK])),
    "alg": Exact("ES256", _header("alg")),
    "typ": Exact("JWT", _header("typ"), _FOLDED),
    "typ of the policy": Exact("kind+jwt", _header("typ"), _FOLDED),
    "scheme": Exact("Bearer", _scheme, _FOLDED | _TRIMMED | {"a blank behind": ALLOW}),
    "role by name": Exact("kiosk", _argument("role", "kiosk", "clerk"), _TRIMMED),
    "role by ARN": Exact(_KIOSK, _argument("role", "kiosk", "clerk"), _TRIMMED),
    "method": Exact("GET", _argument("method"), _TRIMMED),
    "host": Exact(HOST, _argument("host"), _FOLDED | _TRIMMED | {"a dot behind": ALLOW}),
    "path": Exact(PATH, _argument("path"), {"a slash behind": ALLOW}),
}
"""By the thing that is compared. Neighbours that make no difference have their own verdict."""


def compared(here: Bench) -> Iterator[SpopQuestion]:
    """Ask with each text, and with its neighbours."""
    for name, row in EXACT.items():
        yield SpopQuestion(f"{name} {row.text!r}", row.ask(here, row.text), ALLOW)
        for what, other in neighbours(row.text):
            answer = (row.alike or {}).get(what, REFUSE)
            yield SpopQuestion(f"{name} with {what}: {other!r}", row.ask(here, other), answer)


@check("identity.derived.exact", "DERIVED-EXACT-001", features={"oidc"})
def exact(target: Target) -> str:
    """Texts are compared whole and to the letter: another case, blank, slash or letter is another text."""
    with derived(target) as here:
        questions = list(compared(here))
        here.wait_for_keys([each for each in questions if each.expected is ALLOW])
        here.ask_all(questions)
    return f"{here.asked} questions about {len(EXACT)} texts"


_TEXTS = table("texts")
TAGS: Mapping[str, tuple[str, str]] = {
    **_TEXTS["tags"],
    **{f"{name} before": (f"{text}a", "refuse") for name, text in _TEXTS["outer"].items()},
    **{f"{name} behind": (f"a{text}", "refuse") for name, text in _TEXTS["outer"].items()},
    **{f"{name} within": (f"a{text}b", "refuse") for name, text in _TEXTS["inner"].items()},
}


@check("identity.derived.tags", "DERIVED-TAG-001", features={"oidc"})
def tags(target: Target) -> str:
    """A tag is printable, without outer blanks, of 1 to 512 characters, and is forwarded whole.

    Each claim that becomes a tag, with each text.
    """
    with derived(target) as here:
        for name, (issuer, variable) in _TEXTS["claims"].items():
            questions = []
            for what, (text, answer) in TAGS.items():
                token = minted(here, issuer, _at(CLAIMS[name].path, text))
                wanted = dict(expected(answer))
                if answer != "refuse":
                    wanted[variable] = text if answer == "allow" else {text, ""}
                questions.append(SpopQuestion(f"{name} with {what}", iam_check(token), wanted))
            here.wait_for_keys(questions[:1])
            here.ask_all(questions)
    return f"{here.asked} questions"


def _at(path: list[str], text: str) -> dict[str, Any]:
    """Put a text at a path of this world's claims."""
    if len(path) == 1:
        return {path[0]: text}
    return {path[0]: {"roles": [_KIOSK], "who": "ann", path[1]: text}}
