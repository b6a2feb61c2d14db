"""What a verified token rests on besides its claims: the issuer's URL, the algorithm, the key, the audience.

An open stream is judged anew without its token, which nobody keeps. So an identity names its grounds, each a
kind and a hash: `iss:…`, `alg:…`, `key:…`, and `aud:…` for each audience or `client:…`. As long as policy and
key set have one of each kind, the token would be accepted again. The tokens of one client share one tuple.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache

from iamroles_agent.base.config import Issuer
from iamroles_agent.tokens.keys import Key

MOST_AUDIENCES = 8
"""Audiences of one token that are kept."""


@lru_cache(1024)
def ground(kind: str, value: str) -> str:
    """One ground."""
    return f"{kind}:{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


@lru_cache(1024)
def of_key(key: Key) -> str:
    """A key's: its public members, so that another key under its `kid` is another ground."""
    return ground("key", "\n".join((key.kty, key.crv, *key.material)))


@lru_cache(1024)
def of_claims(url: str, alg: str, audience: tuple[str, ...], key: str) -> tuple[str, ...]:
    """All of a token's, its audience and key as grounds; no key: ""."""
    found = ground("iss", url), ground("alg", alg), *audience
    return (*found, key) if key else found


def lost(grounds: tuple[str, ...], issuer: Issuer, keys: Iterable[Key] | None) -> str:
    """Which kind of ground policy and key set have no more: `iss`, `alg`, `audience`, `key`; "" for none.

    Args:
        grounds: of the identity.
        issuer: as the policy in force has it.
        keys: its key set in force; None: not known yet, so no key counts as lost.
    """
    for kind, there in (
        ("iss", {ground("iss", issuer.issuer)}),
        ("alg", {ground("alg", alg) for alg in issuer.algorithms}),
        ("audience", set(_audiences(issuer))),
        ("key", None if keys is None else {of_key(key) for key in keys}),
    ):
        kinds = ("aud:", "client:") if kind == "audience" else (f"{kind}:",)
        mine = {found for found in grounds if found.startswith(kinds)}
        if mine and there is not None and mine.isdisjoint(there):
            return kind
    return ""


def _audiences(issuer: Issuer) -> Iterator[str]:
    yield from (ground("aud", name) for name in issuer.audiences)
    yield from (ground("client", name) for name in issuer.client_ids)
