"""Proofs of possession by DPoP (RFC 9449 section 4.2), made by recipe as tokens are, and thumbprints.

It shares no code with any agent.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

from iamroles_scenarios.jose.encoding import Json, b64url, json_text
from iamroles_scenarios.jose.keys import SigningKey
from iamroles_scenarios.jose.recipe import Recipe, mint

_THUMBED = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}
"""Members of a public key that its thumbprint covers (RFC 7638 section 3.2, RFC 8037 section 2)."""


def jwk_of(key: SigningKey) -> dict[str, Any]:
    """Return a public key without `kid`, `alg` and `use`, as proofs show it."""
    known = key.public_jwk()
    return {name: known[name] for name in _THUMBED[known["kty"]]}


def hashed(data: bytes | str) -> str:
    """Return the SHA-256 of octets, or of a text's, in base64url."""
    return b64url(hashlib.sha256(data if isinstance(data, bytes) else data.encode()).digest())


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """Return the thumbprint of a key as it is spelt, of the members that count (RFC 7638)."""
    return hashed(json_text({name: jwk[name] for name in _THUMBED[jwk["kty"]]}))


def combined(*recipes: Mapping[str, Json], depth: int = 4) -> dict[str, Any]:
    """Put recipes together: later members win, and tables are joined down to a depth."""
    found: dict[str, Any] = {}
    for name, value in (pair for recipe in recipes for pair in recipe.items()):
        old, joined = found.get(name), value
        if depth > 1 and isinstance(old, Mapping) and isinstance(value, Mapping):
            joined = combined(old, value, depth=depth - 1)
        found[name] = joined
    return found


def proof(
    key: SigningKey, token: str, now: float, recipe: Recipe | None = None, *, method: str = "GET", url: str
) -> str:
    """Make a proof for a request with this token.

    Args:
        key: signs, and is shown in the header.
        token: its hash is `ath`.
        now: epoch seconds, `iat`.
        recipe: changes of a sound proof, as `jose` takes them for tokens.
        method: `htm`.
        url: `htu`.
    """
    claims = {"jti": secrets.token_urlsafe(12), "htm": method, "htu": url, "ath": hashed(token)}
    sound = {"base": "empty", "typ": "dpop+jwt", "iat": int(now), "drop_header": ["kid"]}
    shown = {"header": {"jwk": jwk_of(key)}, "claims": claims}
    return mint(combined(sound, shown, recipe or {}, depth=2), [key], now, "")
