"""Verification of a web identity token for AssumeRoleWithWebIdentity, against the IdP's own documents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import aiohttp
import jwt

from iamroles_scenarios.mock.credentials import AwsError

_ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"]
_MAX_DOCUMENT = 256 * 1024


@dataclass(frozen=True)
class WebIdentity:
    """The content of a verified token."""

    provider: str
    """Issuer URL without its scheme: the provider's name, and the prefix of its condition keys."""
    issuer: str
    sub: str
    audiences: tuple[str, ...]
    authorized_party: str | None

    def context(self) -> dict[str, list[str]]:
        """Condition keys for the trust policy."""
        audience = [self.authorized_party] if self.authorized_party else list(self.audiences)
        return {f"{self.provider}:aud": audience, f"{self.provider}:sub": [self.sub]}


def unverified_issuer(token: str) -> str:
    """`iss`, in order to find the provider; nothing else is believed yet.

    Raises:
        AwsError: `InvalidIdentityToken`.
    """
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        return str(claims["iss"])
    except (jwt.PyJWTError, KeyError) as fault:
        raise AwsError(400, "InvalidIdentityToken", "The ID Token provided is not a valid JWT.") from fault


async def verify(token: str, issuer: str) -> WebIdentity:
    """Fetch discovery and JWKS of `issuer` and verify the token.

    Raises:
        AwsError: `InvalidIdentityToken`, `ExpiredTokenException`, `IDPCommunicationError`.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        discovery = await _fetch(session, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if discovery.get("issuer") != issuer:
            raise AwsError(400, "InvalidIdentityToken", "Issuer of the discovery document does not match.")
        keys = await _fetch(session, str(discovery.get("jwks_uri")))
    try:
        header = jwt.get_unverified_header(token)
        entry = next(each for each in keys.get("keys", []) if each.get("kid") == header.get("kid"))
        key = jwt.PyJWK(entry, algorithm=header["alg"] if header["alg"] in _ALGORITHMS else None)
        options: Any = {"require": ["exp", "iat", "sub", "aud"], "verify_aud": False}
        claims = jwt.decode(token, key, algorithms=_ALGORITHMS, issuer=issuer, options=options)
    except jwt.ExpiredSignatureError as fault:
        raise AwsError(400, "ExpiredTokenException", "Token expired.") from fault
    except (jwt.PyJWTError, StopIteration, KeyError, AttributeError) as fault:
        invalid = f"Couldn't verify the token: {type(fault).__name__}"
        raise AwsError(400, "InvalidIdentityToken", invalid) from fault
    audience = claims["aud"]
    audiences = tuple(audience) if isinstance(audience, list) else (str(audience),)
    provider = issuer.partition("://")[2]
    return WebIdentity(provider, issuer, str(claims["sub"]), audiences, claims.get("azp"))


async def _fetch(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    try:
        async with session.get(url, allow_redirects=False) as answer:
            body = await answer.content.read(_MAX_DOCUMENT)
            document = json.loads(body) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError) as fault:
        raise AwsError(400, "IDPCommunicationError", f"Error communicating with {url}") from fault
    if not isinstance(document, dict):
        raise AwsError(400, "IDPCommunicationError", f"No usable answer from {url}")
    return document
