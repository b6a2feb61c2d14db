"""One OIDC issuer as the mock IdP keeps it: its keys, what its JWKS shows, its clients."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from iamroles_scenarios.jose import SigningKey, mint
from iamroles_scenarios.mock.counters import Counters
from iamroles_scenarios.mock.faults import Faults

DEFAULT_ALGORITHMS = ("RS256", "ES256")
ENDPOINTS = ("discovery", "metadata", "jwks", "token")


@dataclass
class OauthClient:
    """A client of the token endpoint and the subject of its tokens."""

    secret: str
    roles: list[str] = field(default_factory=list)
    sub: str = ""
    audience: Any = "edge"
    scope: str | None = None
    preferred_role: str | None = None
    lifetime: int = 300
    alg: str | None = None
    claims: dict[str, Any] = field(default_factory=dict)


@dataclass
class Issuer:
    """State of an issuer."""

    name: str
    url: str
    shape: str = "generic"
    signing: list[SigningKey] = field(default_factory=list)
    """Keys it signs with, the current one first."""
    published: list[Any] = field(default_factory=list)
    """Entries of its JWKS, sound or poisoned."""
    clients: dict[str, OauthClient] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    counters: Counters = field(default_factory=Counters)
    serial: int = 0
    jwks_path: str = "jwks"
    rsa_alg: bool = True
    """True if RSA entries of the JWKS have `alg`; AWS's have not."""

    def new_key(
        self, algorithm: str, *, kid: str | None = None, bits: int = 2048, curve: str | None = None
    ) -> SigningKey:
        """A fresh key under the issuer's next kid; neither signing nor published yet."""
        self.serial += 1
        kid = kid or f"{self.name}-{algorithm.lower()}-{self.serial}"
        return SigningKey.generate(algorithm, kid=kid, bits=bits, curve=curve)

    def add(self, key: SigningKey, *, publish: bool = True, sign: bool = True) -> None:
        """Make a key current, publish it, or both."""
        if sign:
            self.signing.insert(0, key)
        if publish:
            entry = key.public_jwk()
            if entry["kty"] == "RSA" and not self.rsa_alg:
                del entry["alg"]
            self.published.insert(0, entry)

    def remove(self, kid: str) -> bool:
        """Withdraw a key; whether there was one."""
        before = len(self.published) + len(self.signing)
        self.published = [
            entry for entry in self.published if not isinstance(entry, dict) or entry.get("kid") != kid
        ]
        self.signing = [key for key in self.signing if key.kid != kid]
        return len(self.published) + len(self.signing) < before

    def rotate(self, algorithm: str | None, overlap: bool) -> SigningKey:
        """A new current key; without overlap the old ones of its algorithm are gone at once."""
        algorithm = algorithm or (self.signing[0].algorithm if self.signing else DEFAULT_ALGORITHMS[0])
        old = [key.kid for key in self.signing if key.algorithm == algorithm]
        key = self.new_key(algorithm)
        self.add(key)
        if not overlap:
            for kid in old:
                self.remove(kid)
        return key

    def discovery(self) -> dict[str, Any]:
        """OpenID Connect Discovery 1.0 section 3."""
        return self.metadata() | {
            "authorization_endpoint": f"{self.url}/authorize",
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": sorted({key.algorithm for key in self.signing}),
            "claims_supported": ["iss", "sub", "aud", "exp", "iat", "nbf", "jti"],
        }

    def metadata(self) -> dict[str, Any]:
        """RFC 8414 section 2."""
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/{self.jwks_path}",
            "token_endpoint": f"{self.url}/token",
            "response_types_supported": ["code"],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        }

    def jwks(self) -> dict[str, Any]:
        """RFC 7517 section 5."""
        return {"keys": self.published}

    def token(self, client_id: str, client: OauthClient, now: float, asked: dict[str, str]) -> dict[str, Any]:
        """An access token response (RFC 6749 section 5.1); `asked` may narrow roles and set the audience."""
        roles = [role for role in client.roles if role in asked.get("roles", " ".join(client.roles)).split()]
        recipe: dict[str, Any] = {
            "shape": self.shape, "roles": roles, "sub": client.sub or client_id, "claims": client.claims,
            "aud": asked.get("audience", client.audience), "exp": f"+{client.lifetime}s",
        }  # fmt: skip
        scope = asked.get("scope", client.scope)
        optional = {"alg": client.alg, "scope": scope, "preferred_role": client.preferred_role}
        recipe.update({name: value for name, value in optional.items() if value is not None})
        token = mint(recipe, self.signing, now, self.url)
        return {"access_token": token, "token_type": "Bearer", "expires_in": client.lifetime} | (
            {"scope": scope} if scope else {}
        )

    def report(self) -> dict[str, Any]:
        """The control API's view, private keys included: this is a mock."""
        return {
            "name": self.name, "url": self.url, "shape": self.shape,
            "keys": [key.private_jwk() for key in self.signing], "published": self.published,
        }  # fmt: skip


Poisoned = tuple[list[Any], SigningKey | None]


def _with_key(
    algorithm: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    bits: int = 2048,
    curve: str | None = None,
) -> Callable[[Issuer], Poisoned]:
    def poison(issuer: Issuer) -> Poisoned:
        key = issuer.new_key(algorithm, bits=bits, curve=curve)
        return [change(key.public_jwk())], key

    return poison


def _without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda jwk: {name: value for name, value in jwk.items() if name not in names}


def _private(algorithm: str) -> Callable[[Issuer], Poisoned]:
    def poison(issuer: Issuer) -> Poisoned:
        key = issuer.new_key(algorithm)
        return [key.private_jwk()], key

    return poison


def _duplicate(issuer: Issuer) -> Poisoned:
    """Another key under the kid of the current one."""
    current = issuer.signing[0]
    key = SigningKey.generate(current.algorithm, kid=current.kid)
    return [key.public_jwk()], key


def _symmetric(issuer: Issuer) -> Poisoned:
    return [{"kty": "oct", "kid": f"{issuer.name}-oct", "alg": "HS256", "k": secrets.token_urlsafe(32)}], None


POISONS: dict[str, Callable[[Issuer], Poisoned]] = {
    "weak-rsa": _with_key("RS256", dict, bits=1024),
    "oct": _symmetric,
    "private": _private("RS256"),
    "private-ec": _private("ES256"),
    "duplicate": _duplicate,
    "use-enc": _with_key("RS256", lambda jwk: jwk | {"use": "enc"}),
    "no-verify": _with_key("ES256", lambda jwk: _without("use")(jwk) | {"key_ops": ["deriveKey"]}),
    "no-kid": _with_key("ES256", _without("kid")),
    "no-alg": _with_key("RS256", _without("alg")),
    "wrong-alg": _with_key("RS256", lambda jwk: jwk | {"alg": "ES256"}),
    "off-curve": _with_key("ES256", lambda jwk: jwk | {"y": jwk["x"]}),
    "wrong-curve": _with_key("ES256", dict, curve="P-384"),
    "numeric-kid": _with_key("ES256", lambda jwk: jwk | {"kid": 7}),
    "malformed": lambda issuer: (
        [{"kty": "RSA", "kid": f"{issuer.name}-bad", "n": "***", "e": "AQAB"}],
        None,
    ),
    "unknown-kty": lambda issuer: ([{"kty": "XMSS", "kid": f"{issuer.name}-future", "x": "AAAA"}], None),
    "not-an-object": lambda _: (["key"], None),
    "many": lambda issuer: (
        [issuer.signing[0].public_jwk(kid=f"{issuer.name}-many-{number}") for number in range(2000)],
        None,
    ),
}
"""Entries of a JWKS that an agent must refuse or pass over (JWKS-KEY, JWKS-SET), and the key that signs for
them where one can. `no-alg` and `unknown-kty` are lawful."""
