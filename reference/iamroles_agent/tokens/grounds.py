"""The grounds of a verified token besides its claims: the issuer's URL, the algorithm, the key, the audience.

An open stream is judged again without its token, which the agent does not keep. So an identity names its
grounds, each a kind and a hash: `iss:…`, `alg:…`, `key:…`, and `aud:…` for each audience or `client:…`. As
long as policy and key set have a ground of each kind, the token would be accepted again. The tokens of a
client share one tuple.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from iamroles_agent.base.config import Issuer
from iamroles_agent.tokens.keys import Key

MOST_AUDIENCES = 8
"""Most audiences of a token that are kept."""


@lru_cache(1024)
def ground(kind: str, value: str) -> str:
    """Make one ground."""
    return f"{kind}:{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


@lru_cache(1024)
def key_ground(key: Key) -> str:
    """Make a key's ground of its public members, so that another key with its `kid` is another ground."""
    return ground("key", "\n".join((key.kty, key.crv, *key.material)))


@lru_cache(1024)
def token_grounds(url: str, alg: str, audience: tuple[str, ...], key: str) -> tuple[str, ...]:
    """Return all grounds of a token; `audience` and `key` are grounds, "" stands for no key."""
    found = ground("iss", url), ground("alg", alg), *audience
    return (*found, key) if key else found


def lost(grounds: tuple[str, ...], issuer: Issuer, keys: Iterable[Key] | None) -> str:
    """Return the kind of ground that policy or key set lost: `iss`, `alg`, `audience`, `key`; "" for none.

    Keys of None are not known yet, so no key counts as lost.
    """
    clients = {ground("client", name) for name in issuer.client_ids}
    for kind, there in (
        ("iss", {ground("iss", issuer.issuer)}),
        ("alg", {ground("alg", alg) for alg in issuer.algorithms}),
        ("audience", {ground("aud", name) for name in issuer.audiences} | clients),
        ("key", None if keys is None else {key_ground(key) for key in keys}),
    ):
        kinds = ("aud:", "client:") if kind == "audience" else (f"{kind}:",)
        mine = {found for found in grounds if found.startswith(kinds)}
        if mine and there is not None and mine.isdisjoint(there):
            return kind
    return ""
