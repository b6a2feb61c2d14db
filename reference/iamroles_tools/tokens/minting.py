"""Make test tokens from a recipe and a private key, for `iamroles token mint`.

A recipe is a table: `alg`, `kid`, `typ`, `header` (more header members), `claims`. Times among the claims may
be relative to now: `exp = "+5m"`, `iat = "-10s"`. Nothing is checked: a recipe may make a bad token.
"""

from __future__ import annotations

import json
import re
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from iamroles_agent.base.encoding import encode_base64url
from iamroles_agent.tokens.keys import ALGORITHMS
from iamroles_agent.tokens.proof import thumbprint

PrivateKey = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)

_RELATIVE = re.compile(r"(?P<sign>[+-])(?P<count>\d{1,9})(?P<unit>[smhd])", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIMES = frozenset(("exp", "iat", "nbf", "auth_time"))
_RECIPE_KEYS = frozenset(("alg", "kid", "typ", "header", "claims"))
_CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class RecipeError(ValueError):
    """A recipe or key is unusable; the message is for people."""


def load_private_key(path: Path) -> tuple[PrivateKey, str | None]:
    """Read a private key, PEM (unencrypted) or JWK, and the `kid` of a JWK.

    Raises:
        RecipeError: the file is something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    kid: str | None = None
    try:
        if data.lstrip().startswith(b"{"):
            members = json.loads(data)
            kid = members.get("kid")
            loader = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}[members.get("kty")]
            key: object = loader.from_jwk(members)  # type: ignore[attr-defined]
        else:
            key = load_pem_private_key(data, None)
    except (ValueError, TypeError, KeyError, jwt.InvalidKeyError):
        # The cause is not repeated: parsers quote their input, and this one is a secret.
        raise RecipeError(f"{path}: not an unencrypted PEM or JWK private key (RSA, EC, Ed25519)") from None
    if not isinstance(key, PrivateKey):
        raise RecipeError(f"{path}: a public key cannot sign; give the private one")
    return key, kid


# PyJWS, not PyJWT: it signs any bytes, even claims that an issuer should not write.
_SIGNER = jwt.api_jws.PyJWS()
_SIGNER.register_algorithm("Ed25519", OKPAlgorithm())


def default_algorithm(key: PrivateKey) -> str:
    """Return the usual algorithm of a key.

    Raises:
        RecipeError: no algorithm takes its curve.
    """
    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if key.curve.name not in _CURVE_ALGORITHMS:
            raise RecipeError(f"no algorithm for the curve {key.curve.name}")
        return _CURVE_ALGORITHMS[key.curve.name]
    return "EdDSA"


def public_jwk(key: PrivateKey, kid: str | None, alg: str) -> dict[str, Any]:
    """Return the public key as an issuer would publish it."""
    public = key.public_key()
    is_rsa, is_ec = isinstance(public, rsa.RSAPublicKey), isinstance(public, ec.EllipticCurvePublicKey)
    writer: Any = RSAAlgorithm if is_rsa else ECAlgorithm if is_ec else OKPAlgorithm
    members = writer.to_jwk(public, as_dict=True)
    kept = {name: value for name, value in members.items() if name != "key_ops"}
    return {**kept, "use": "sig", "alg": alg} | ({"kid": kid} if kid else {})


def thumbprint_of(key: PrivateKey) -> str:
    """Return the thumbprint of a key, as `jkt` has it."""
    return thumbprint(public_jwk(key, None, ""))


def certificate_thumbprint(path: Path) -> str:
    """Return the thumbprint of a PEM certificate, as `x5t#S256` has it.

    Raises:
        RecipeError: the file is something else.
    """
    try:
        found = load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not a PEM certificate ({type(error).__name__})") from None
    return encode_base64url(found.fingerprint(SHA256()))


def prove(key: PrivateKey, method: str, url: str, token: str, *, nonce: str | None, now: int) -> str:
    """Sign a DPoP proof for one request with a token (RFC 9449 section 4.2)."""
    alg = default_algorithm(key)
    jwk = {name: value for name, value in public_jwk(key, None, alg).items() if name not in ("use", "alg")}
    claims = {"jti": secrets.token_urlsafe(16), "htm": method, "htu": url.partition("#")[0].partition("?")[0]}
    claims |= {"ath": encode_base64url(sha256(token.encode()).digest())} | ({"nonce": nonce} if nonce else {})
    recipe = {"typ": "dpop+jwt", "alg": alg, "header": {"jwk": jwk}, "claims": {"iat": now} | claims}
    return mint(recipe, key, None, now)


def _absolute(name: str, value: object, now: int) -> object:
    if name in _TIMES and isinstance(value, str) and (match := _RELATIVE.fullmatch(value)):
        seconds = int(match["count"]) * _UNITS[match["unit"]]
        return now + seconds if match["sign"] == "+" else now - seconds
    return value


def mint(recipe: dict[str, Any], key: PrivateKey, kid: str | None, now: int) -> str:
    """Sign a recipe's claims; `iat` and `exp` default to now and five minutes later.

    Raises:
        RecipeError: an unknown recipe key, or an algorithm that does not fit the key.
    """
    if unknown := recipe.keys() - _RECIPE_KEYS:
        known = ", ".join(sorted(_RECIPE_KEYS))
        raise RecipeError(f"unknown recipe keys: {', '.join(sorted(unknown))}. Known are {known}")
    claims, header = recipe.get("claims", {}), recipe.get("header", {})
    if not isinstance(claims, dict) or not isinstance(header, dict):
        raise RecipeError("`claims` and `header` are tables")
    alg = recipe.get("alg", default_algorithm(key))
    if alg not in tuple(ALGORITHMS):  # a recipe may hold a list, which has no hash
        raise RecipeError(f"alg {alg!r} is not one of {', '.join(ALGORITHMS)}")
    timed: dict[str, Any] = {"iat": now, "exp": now + 300} | claims
    payload = {name: _absolute(name, value, now) for name, value in timed.items()}
    kid = recipe.get("kid", kid)
    members = {"typ": recipe.get("typ", "JWT")} | ({"kid": kid} if kid else {}) | header
    try:
        body = json.dumps(payload, separators=(",", ":")).encode()
        return _SIGNER.encode(body, key, alg, headers=members)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        raise RecipeError(f"the key does not fit {alg}, or header or claims hold what JSON cannot") from None
