"""Every part of a credential: good credentials, and others made of their parts.

An agent that recognises a credential by a part of it takes another credential for it. The checks show the
good ones first, so that the agent remembers them; then they exchange and bend their parts, letter by letter.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from iamroles_scenarios.checks.derived.world import derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.answers import ALLOW, REFUSE, Expected, refusal
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target

PARTS = ("header", "payload", "signature")
_STEP = 5
"""Letters from one bent letter to the next. The last letter of a part stays, because some of its bits may not
count."""
STS_PARTS: dict[str, dict[str, Any]] = {
    "date": {"date": "-1s"},
    "host": {"url_host": "sts.us-east-1.amazonaws.com"},
    "path": {"path": "/x"},
    "fragment": {"fragment": "x"},
    "binding value": {"binding_value": "edge-b"},
    "binding header": {"binding_header": ""},
    "action": {"action": "GetAccessKeyInfo"},
    "version": {"version": "2011-06-16"},
    "key id": {"key_id": "AKIAIOSFODNN7EXAMPLE"},
    "security token": {"token": "wrong"},
    "no security token": {"token": "drop"},
    "signature": {"signature": "flipped"},
    "secret": {"secret": "wrong"},
    "unsigned pair": {"unsigned": [["X-Evil", "1"]]},
}
"""Each part of a pre-signed request, changed alone. Only the one with another `date` is sound."""


def _bent(token: str) -> Iterator[tuple[str, str]]:
    """Change one letter of a token at a time, and say which."""
    parts = token.split(".")
    for number, part in enumerate(parts):
        for at in {0, *range(number, len(part) - 1, _STEP), len(part) - 2}:
            other = "A" if part[at] != "A" else "B"
            changed = [*parts[:number], part[:at] + other + part[at + 1 :], *parts[number + 1 :]]
            yield f"{PARTS[number]}, letter {at}", ".".join(changed)


def _exchanged(tokens: list[str]) -> Iterator[tuple[str, str]]:
    """Mix the parts of several good tokens in every way that gives another token."""
    columns = [sorted({token.split(".")[at] for token in tokens}) for at in range(3)]
    for mixture in itertools.product(*columns):
        text = ".".join(mixture)
        if text not in tokens:
            which = [
                next(n for n, t in enumerate(tokens) if t.split(".")[at] == mixture[at]) for at in range(3)
            ]
            yield f"parts of the tokens {which}", text


@check("identity.derived.credential", "DERIVED-CREDENTIAL-001", features={"oidc"})
def credential(target: Target) -> str:
    """A token made of parts of good tokens opens nothing, be they exchanged or changed.

    The good ones come first, so that an agent that remembers has something to be wrong about.
    """
    with derived(target) as here:
        now = here.now()
        claims = {"sub": "ann", "sid": "s-1", "jti": "j-1", "nbf": now - 9, "iat": now - 9, "exp": now + 600}
        base: dict[str, Any] = {"roles": ["kiosk"], "key": "ES256"}
        twin = here.token(**base, claims=claims)
        others = [here.token(**base, sub="bea"), here.token(**base | {"key": "RS256"}, sub="cleo")]
        good = [SpopQuestion(f"good token {n}", iam_check(t), ALLOW) for n, t in enumerate([twin, *others])]
        mixed = [*_exchanged([twin, *others]), *_bent(twin), *_bent(others[1])]
        here.ask_all([*good, *(SpopQuestion(what, iam_check(token), REFUSE) for what, token in mixed)])
        here.ask_all([*good, *_foreign(here)])
        here.ask_all([*good[:1], *_alike(here, base, claims, now)], window=1)
    return f"{here.asked} questions"


def _foreign(here: Bench) -> Iterator[SpopQuestion]:
    """Sign tokens of each trusted issuer with a key of the other, also under its own kid."""
    for issuer, signer in (("corp", "partner"), ("partner", "corp")):
        kid = next(key.kid for key in here.issuer(issuer).keys if key.algorithm == "ES256")
        recipe: dict[str, Any] = {"issuer": issuer, "signer": signer, "key": "ES256", "roles": ["kiosk"]}
        what = f"{issuer} by a key of {signer}"
        yield SpopQuestion(what, iam_check(here.token(**recipe)), REFUSE)
        yield SpopQuestion(f"{what}, its kid", iam_check(here.token(**recipe, kid=kid)), REFUSE)


def _alike(here: Bench, base: dict[str, Any], claims: dict[str, Any], now: int) -> Iterator[SpopQuestion]:
    """Ask with tokens that differ from an accepted one, `jti` included, in a single claim."""
    clerk = "arn:aws:iam::111111111111:role/clerk"
    changed: dict[str, tuple[dict[str, Any], Expected]] = {
        "sub": ({"sub": "bea"}, {"allow": True, "principal": "bea", "session": "s-1"}),
        "sid": ({"sid": "s-2"}, {"allow": True, "principal": "ann", "session": "s-2"}),
        "exp": ({"exp": now + 700}, {"allow": True, "expires": now + 700}),
        "roles": ({"roles": [clerk]}, refusal("no_grant")),
        "scope": ({"scope": "nothing"}, refusal("scope_insufficient")),
        "aud": ({"aud": "canteen"}, REFUSE),
        "nbf": ({"nbf": now + 300}, REFUSE),
        "iss": ({"iss": "https://evil.example"}, REFUSE),
        "nothing": ({}, {"allow": True, "principal": "ann", "session": "s-1", "expires": now + 600}),
    }
    for name, (other, answer) in changed.items():
        token = here.token(**base, claims=claims | other)
        yield SpopQuestion(f"alike but for {name}", iam_check(token), answer)


@check("identity.derived.sts-credential", "DERIVED-CREDENTIAL-002", features={"sts"})
def sts_credential(target: Target) -> str:
    """A pre-signed request with one part of another kind opens nothing.

    Each part of the URL changes alone, after the sound one was accepted. Then so does the alphabet of base64
    alone: at one of three hosts the `?` behind it becomes a `_`.
    """
    with derived(target) as here:
        keys, now = here.session("kiosk"), time.time()

        def presigned(recipe: dict[str, Any]) -> dict[str, Any]:
            return iam_check(here.credential(keys, now=now, **{"expires": 60} | recipe))

        questions = [SpopQuestion("the sound credential", presigned({}), ALLOW)]
        for what, recipe in STS_PARTS.items():
            answer = ALLOW if what == "date" else REFUSE
            questions.append(SpopQuestion(f"another {what}", presigned(recipe), answer))
        hosts = [{"host": f"{more}{here.sts_host}"} for more in ("", "a", "aa")]
        host = next(each for each in hosts if "_" in here.credential(keys, now=now, **each))
        questions.append(SpopQuestion("a host", presigned(host), ALLOW))
        other = presigned({**host, "encoding": "standard"})
        questions.append(SpopQuestion("another alphabet", other, REFUSE))
        here.ask_all(questions, window=4)
    return f"{here.asked} questions"
