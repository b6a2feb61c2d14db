"""Mutants of the signed identity: SIGNED."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any

from jwt.api_jws import PyJWS

from iamroles_agent.identity_header import KeyRing, SharedRing, Signer, signer
from iamroles_agent.identity_header import keys as made
from iamroles_agent.processes import identity_keys as part
from iamroles_agent.processes.agent import Agent
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import Override, mutant

_CALLER = ("principal", "session", "role", "issuer", "backend", "expires")
_Members = dict[str, Any]


def _signs(edit: Callable[[_Members, _Members], object]) -> Override:
    """Change header and claims before they are signed."""

    @around(PyJWS, "encode")
    def encode(sound: Any, self: Any, payload: bytes, key: Any, alg: str, headers: Any, *rest: Any) -> Any:
        claims = json.loads(payload)
        edit(headers, claims)
        return sound(self, json.dumps(claims).encode(), key, alg, headers, *rest)

    return encode


def _publishes(edit: Callable[[KeyRing, list[_Members]], object]) -> Override:
    """Change the published keys."""

    @around(KeyRing, "jwks")
    def jwks(sound: Any, self: KeyRing, now: float) -> Any:
        keys = sound(self, now)["keys"]
        edit(self, keys)
        return {"keys": keys}

    return jwks


_HMAC = around(PyJWS, "encode")(
    lambda sound, self, payload, _key, _alg, headers, *rest: sound(
        self, payload, "0123456789abcdef" * 4, "HS256", headers, *rest
    )
)
_PAST = around(Signer, "sign")(
    lambda sound, self, decision, now: sound(self, replace(decision, expires=None), now)
)


def _by_birth(sound: Any, ring: SharedRing, now: float) -> Any:
    return sound(ring, now - vars(ring).setdefault("_born", time.time()))


def _with(which: slice) -> Callable[..., Any]:
    """Use some of the secrets alone."""
    return lambda sound, ring, now: sound(SharedRing(ring._secrets[which], ring._issuer, ring._rotate), now)


_SIGNING, _JWKS = around(SharedRing, "signing"), around(SharedRing, "jwks")
_START_SECRETS = around(Agent, "load")(
    lambda sound, self: {name: one for name, one in sound(self).items() if name != part.IDENTITY_KEYS}
)
_FOR_EVER = around(Signer, "_made")(lambda sound, *made: sound(*made)._replace(fresh_until=1 << 40))
_SECOND = (
    *("for-ever", "unannounced", "no-lead", "one-key"),
    *("first-secret", "last-secret", "start-secrets"),
)
_ALL = ["orders-ro", "orders-rw", "export"]
for _name, _kills, _title, _override in (
    ("plain-typ", "FIELD", "says typ JWT", _signs(lambda head, _: head.update(typ="JWT"))),
    ("other-kid", "FIELD", "names an unknown key", _signs(lambda head, _: head.update(kid="signing"))),
    ("hmac", "FIELD", "signs with a secret of its own", _HMAC),
    ("other-iss", "FIELD", "signs as another gate", _signs(lambda _, body: body.update(iss="https://gate"))),
    ("first-aud", "FIELD", "signs for one backend", _signs(lambda _, body: body.update(aud="orders-ro"))),
    ("every-aud", "FIELD", "signs for all backends", _signs(lambda _, body: body.update(aud=_ALL))),
    ("session-sub", "FIELD", "sub is the session", _signs(lambda _, body: body.update(sub=body["session"]))),
    ("short-role", "FIELD", "cuts the role", _signs(lambda _, body: body.update(role=body["role"][31:]))),
    ("sub-session", "FIELD", "session is sub", _signs(lambda _, body: body.update(session=body["sub"]))),
    ("no-idp", "FIELD", "leaves idp out", _signs(lambda _, body: body.pop("idp"))),
    ("no-iat", "FIELD", "leaves iat out", _signs(lambda _, body: body.pop("iat"))),
    ("no-exp", "FIELD", "leaves exp out", _signs(lambda _, body: body.pop("exp"))),
    ("iat-ahead", "FIELD", "dates ahead", _signs(lambda _, body: body.update(iat=body["exp"] - 1))),
    ("long-life", "FIELD", "lives a second more", _signs(lambda _, body: body.update(exp=body["exp"] + 1))),
    ("past-access", "FIELD", "signs past the end of the access", _PAST),
    *(
        (f"any-{left}", "CALLER", f"signs once, whatever the {left}",
         setting(signer, "_CALLER", attrgetter(*(name for name in _CALLER if name != left))))
        for left in _CALLER
    ),
    ("for-ever", "KEY", "uses a dead identity again", _FOR_EVER),
    ("private", "KEY", "publishes d", _publishes(lambda _, keys: [key.update(d=key["x"]) for key in keys])),
    ("secret-next", "KEY", "publishes k of the next key", _publishes(lambda _, keys: keys[-1].update(k="x"))),
    ("unannounced", "KEY", "publishes a key when it signs", _publishes(
        lambda ring, keys: keys.pop() if ring.keys[-1].since > time.time() else None)),
    ("no-lead", "KEY", "signs with a key that it makes after a stop", setting(made, "_LONGEST_LEAD", 0.0)),
    ("one-key", "KEY", "signs with one key for ever",
     around(KeyRing, "at")(lambda sound, ring, now: sound(KeyRing(ring.keys, 1e9), now))),
    ("own-ring", "SHARED", "derives from a secret of its own, too",
     around(part, "shared")(lambda sound, secrets: sound((os.urandom(32), *secrets)))),
    ("first-secret", "SHARED", "publishes the first secret's keys alone", _JWKS(_with(slice(1)))),
    ("last-secret", "SHARED", "signs by the last secret", _SIGNING(_with(slice(-1, None)))),
    ("start-secrets", "SHARED", "keeps the secrets of its start", _START_SECRETS),
):  # fmt: skip
    _number = "002" if _name in _SECOND else "001"
    mutant(f"identity.signed-{_name}", f"SIGNED-{_kills}-{_number}", _title)(_override)

mutant("identity.signed-own-period", "SIGNED-SHARED-001", "counts periods from its start")(
    _SIGNING(_by_birth), _JWKS(_by_birth)
)
