"""One row for each part of a credential: good ones, and what is made of their parts.

An agent that remembers whom it knows by a part of the credential takes another one for it. First the good
ones are shown, so that they are remembered; then their parts are exchanged and bent, letter by letter.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from iamroles_scenarios.checks.derived.sitting import (
    ALLOWED,
    REFUSED,
    Ask,
    Sitting,
    question,
    refusal,
    sitting,
)
from iamroles_scenarios.checks.identity.caller import EDGE, session_of
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

PARTS = ("header", "payload", "signature")
_STEP = 5
"""Every so many letters one is bent. The last letter of a part is not: it may carry bits that count for
nothing."""
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
"""Each part of a pre-signed request, changed alone. `date` is the one that is sound again, and signed
anew."""


def _bent(token: str) -> Iterator[tuple[str, str]]:
    """The token with one letter changed, and where."""
    parts = token.split(".")
    for number, part in enumerate(parts):
        for at in {0, *range(number, len(part) - 1, _STEP), len(part) - 2}:
            other = "A" if part[at] != "A" else "B"
            changed = [*parts[:number], part[:at] + other + part[at + 1 :], *parts[number + 1 :]]
            yield f"{PARTS[number]}, letter {at}", ".".join(changed)


def _exchanged(tokens: list[str]) -> Iterator[tuple[str, str]]:
    """Every mixture of the parts of several good tokens that is none of these."""
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
    """No part of a good token lets in another one: exchanged, bent, or alike but for one claim.

    The good ones first, so that an agent that remembers has something to be wrong about.
    """
    with sitting(target) as here:
        now = int(time.time())
        claims = {"sub": "ann", "sid": "s-1", "jti": "j-1", "nbf": now - 9, "iat": now - 9, "exp": now + 600}
        base: dict[str, Any] = {"roles": ["kiosk"], "key": "ES256"}
        twin = here.token(**base, claims=claims)
        others = [here.token(**base, sub="bea"), here.token(**base | {"key": "RS256"}, sub="cleo")]
        good = [Ask(f"good token {n}", question(t), ALLOWED) for n, t in enumerate([twin, *others])]
        mixed = [*_exchanged([twin, *others]), *_bent(twin), *_bent(others[1])]
        here.put([*good, *(Ask(what, question(token), REFUSED) for what, token in mixed)])
        here.put([*good, *_foreign(here)])
        here.put([*good[:1], *_alike(here, base, claims, now)], window=1)
    return f"{here.asked} questions"


def _foreign(here: Sitting) -> list[Ask]:
    """Keys of one trusted issuer under the name of another, and kids of one with keys of the other."""
    kids = {
        name: next(key.kid for key in here.issuer(name).keys if key.algorithm == "ES256")
        for name in ("corp", "partner")
    }
    forged = {
        "corp by a key of partner": {"issuer": "corp", "signer": "partner", "key": "ES256"},
        "partner by a key of corp": {"issuer": "partner", "signer": "corp", "key": "ES256"},
        "corp by a key of partner, its kid": {
            "issuer": "corp",
            "signer": "partner",
            "key": "ES256",
            "kid": kids["corp"],
        },
        "partner by a key of corp, its kid": {
            "issuer": "partner",
            "signer": "corp",
            "key": "ES256",
            "kid": kids["partner"],
        },
    }
    return [
        Ask(what, question(here.token(roles=["kiosk"], **recipe)), REFUSED) for what, recipe in forged.items()
    ]


def _alike(here: Sitting, base: dict[str, Any], claims: dict[str, Any], now: int) -> list[Ask]:
    """Tokens like one that was accepted, `jti` included, but for one claim."""
    clerk = "arn:aws:iam::111111111111:role/clerk"
    changed: dict[str, tuple[dict[str, Any], dict[str, object]]] = {
        "sub": ({"sub": "bea"}, {"allow": True, "principal": "bea", "session": "s-1"}),
        "sid": ({"sid": "s-2"}, {"allow": True, "principal": "ann", "session": "s-2"}),
        "exp": ({"exp": now + 700}, {"allow": True, "expires": now + 700}),
        "roles": ({"roles": [clerk]}, dict(refusal("no_grant"))),
        "scope": ({"scope": "nothing"}, dict(refusal("scope_insufficient"))),
        "aud": ({"aud": "canteen"}, dict(REFUSED)),
        "nbf": ({"nbf": now + 300}, dict(REFUSED)),
        "iss": ({"iss": "https://evil.example"}, dict(REFUSED)),
        "nothing": ({}, {"allow": True, "principal": "ann", "session": "s-1", "expires": now + 600}),
    }
    return [
        Ask(f"alike but for {name}", question(here.token(**base, claims=claims | other)), wanted)
        for name, (other, wanted) in changed.items()
    ]


@check("identity.derived.sts-credential", "DERIVED-CREDENTIAL-002", features={"sts"})
def sts_credential(target: Target) -> str:
    """No part of a good STS credential lets in another one.

    Each part of the URL changed alone, after the sound one was accepted.
    """
    with sitting(target) as here:
        cloud = here.target.stage.cloud
        keys = session_of(cloud, "kiosk")
        host = f"derived{here.place.suffix}.sts.example"
        now = time.time()

        def presigned(recipe: dict[str, Any]) -> dict[str, Any]:
            return question(
                cloud.presign_caller_identity(keys, EDGE, {"expires": 60, **recipe}, host=host, now=now)
            )

        asks = [Ask("the sound credential", presigned({}), ALLOWED)]
        for what, recipe in STS_PARTS.items():
            asks.append(Ask(f"another {what}", presigned(recipe), ALLOWED if what == "date" else REFUSED))
        here.put(asks, window=4)
    return f"{here.asked} questions"
