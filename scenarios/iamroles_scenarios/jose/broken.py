"""Deliberate damage: signatures and encodings that a strict reader must refuse."""

from __future__ import annotations

import base64
import hmac
import secrets
import zlib
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from iamroles_scenarios.jose.encoding import b64url, json_text, stray_bits
from iamroles_scenarios.jose.keys import SigningKey

Sign = Callable[[bytes], bytes]


def _halves(signature: bytes) -> tuple[int, int]:
    middle = len(signature) // 2
    return int.from_bytes(signature[:middle], "big"), int.from_bytes(signature[middle:], "big")


def _raw(r: int, s: int, length: int) -> bytes:
    return r.to_bytes(length // 2, "big") + s.to_bytes(length // 2, "big")


def _flipped(signature: bytes) -> bytes:
    middle = len(signature) // 2
    return signature[:middle] + bytes([signature[middle] ^ 1]) + signature[middle + 1 :]


def _negated(signature: bytes, order: int) -> bytes:
    r, s = _halves(signature)
    return _raw(r, order - s, len(signature))


BREAKS: dict[str, Callable[[bytes, SigningKey], bytes]] = {
    "truncated": lambda signature, _: signature[: len(signature) // 2],
    "short": lambda signature, _: signature[:-1],
    "long": lambda signature, _: signature + b"\0",
    "empty": lambda _signature, _: b"",
    "zero": lambda signature, _: bytes(len(signature)),
    "flipped": lambda signature, _: _flipped(signature),
    "order": lambda signature, key: _raw(key.order, key.order, len(signature)),
    "negated": lambda signature, key: _negated(signature, key.order),
    "der": lambda signature, _: encode_dss_signature(*_halves(signature)),
}
"""Name to what becomes of the true signature. `order`, `negated` and `der` are for ECDSA keys."""
CURVE_BREAKS = frozenset({"order", "negated", "der"})


def is_elliptic(key: SigningKey) -> bool:
    """Return whether signatures are a pair (r, s)."""
    return isinstance(key.private, EllipticCurvePrivateKey)


TEXTS: dict[str, Callable[[str], bytes]] = {
    "utf16": lambda text: text.encode("utf-16"),
    "utf32": lambda text: text.encode("utf-32"),
    "bom": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "invalid-utf8": lambda text: text[:-1].encode() + b',"note":"\xff\xfe"}',
    "surrogate": lambda text: text[:-1].encode() + b',"note":"\\ud800"}',
    "nul": lambda text: text.encode() + b"\0",
    "line-tab": lambda text: text.encode() + b"\v",
    "trailing": lambda text: text.encode() + b'{"admin":true}',
    "array": lambda text: b"[" + text.encode() + b"]",
}
"""Wrong ways to make octets of a JSON text."""
SEGMENTS: dict[str, Callable[[str], str]] = {
    "padded": lambda segment: segment + "=" * (-len(segment) % 4 or 4),
    "whitespace": lambda segment: segment[:10] + "\n" + segment[10:],
    "standard": lambda segment: segment.replace("-", "+").replace("_", "/"),
    "noncanonical": stray_bits,
}
"""Ways to change a base64url segment."""

_HMACS = {"hs256": "sha256", "hs384": "sha384", "hs512": "sha512"}
_SECRETS: dict[str, Callable[[SigningKey], bytes]] = {
    "public-key": lambda key: key.public_pem(),
    "public-der": lambda key: key.public_der(),
    "public-jwk": lambda key: json_text(key.public_jwk()).encode(),
    "certificate": lambda key: base64.b64encode(key.certificate()),
    "kid": lambda key: key.kid.encode(),
    "empty-key": lambda _: b"",
}


def confusion(word: str, key: SigningKey) -> tuple[str, Sign]:
    """Header `alg` and signer of an HMAC whose secret is public.

    Raises:
        ValueError: an unknown word.
    """
    algorithm, _, secret = word.partition("-with-")
    if algorithm not in _HMACS or secret not in _SECRETS:
        known = ", ".join(f"hs256-with-{name}" for name in _SECRETS)
        raise ValueError(f"unknown confusion {word!r}; known are {known}, and hs384, hs512")
    material, digest = _SECRETS[secret](key), _HMACS[algorithm]
    return algorithm.upper(), lambda data: hmac.digest(material, data, digest)


def deflate(data: bytes) -> bytes:
    """RFC 1951 octets, as JWE's `zip: DEF` has them."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def jwe(payload: bytes, key: SigningKey) -> str:
    """A real JWE (RFC 7516 compact, RSA-OAEP-256 and A256GCM) to the key's public half.

    Raises:
        ValueError: the key is not RSA.
    """
    if not isinstance(key.private, rsa.RSAPrivateKey):
        raise ValueError("a JWE needs an RSA key; say key = an RS or PS algorithm")
    header: dict[str, Any] = {"alg": "RSA-OAEP-256", "enc": "A256GCM", "kid": key.kid, "cty": "JWT"}
    protected = b64url(json_text(header).encode())
    content_key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    encrypted_key = key.private.public_key().encrypt(content_key, oaep)
    sealed = AESGCM(content_key).encrypt(nonce, payload, protected.encode())
    return ".".join([protected, *map(b64url, (encrypted_key, nonce, sealed[:-16], sealed[-16:]))])
