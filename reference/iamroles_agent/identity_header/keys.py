"""Keys that sign identities, and when each of them does.

How a key changes without anybody noticing
------------------------------------------
A server caches the published keys. Were a new key to sign at the moment it is made, the first tokens of it
would be refused wherever the cache is older. So a key is *published* long before it signs, and long after:

    made, published      signs                 published still          gone
    |------- lead -------|------ rotate -------|-------- rotate --------|

Each key carries the second from which it signs. Which key that is follows from the clock alone: workers that
hold the same ring change keys in the same second without a word, and a ring that was saved before the agent
died is good when it comes back, however long that took.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

_LONGEST_LEAD = 3600.0
"""A key is published so many seconds before it signs, or `rotate`, if that is less."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A P-256 key, and the epoch second from which it signs."""

    since: float
    private: ec.EllipticCurvePrivateKey = field(repr=False)
    kid: str = ""

    @classmethod
    def made(cls, since: float) -> SigningKey:
        return cls.of(since, ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def of(cls, since: float, private: ec.EllipticCurvePrivateKey) -> SigningKey:
        """A key with its thumbprint (RFC 7638) for a `kid`."""
        members = _coordinates(private)
        text = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
        return cls(since, private, _base64url(hashlib.sha256(text).digest()))

    @property
    def jwk(self) -> dict[str, str]:
        """The public half (RFC 7517)."""
        return {**_coordinates(self.private), "kid": self.kid, "use": "sig", "alg": "ES256"}


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are published, the earliest first; immutable.

    Attributes:
        keys: at least one.
        rotate: seconds that a key signs.
    """

    keys: tuple[SigningKey, ...]
    rotate: float

    @classmethod
    def first(cls, now: float, rotate: float) -> KeyRing:
        """A ring for a gate that never had one: one key that signs at once, and the next."""
        return cls((SigningKey.made(now),), rotate).at(now)

    def signing(self, now: float) -> SigningKey:
        """The key that signs now: the latest whose time has come."""
        return next((key for key in reversed(self.keys) if key.since <= now), self.keys[0])

    def at(self, now: float) -> KeyRing:
        """The ring as it should be now: without keys long retired, and with the one that comes next.

        Returns:
            This very ring where nothing is due.
        """
        signing = self.keys.index(self.signing(now))
        kept = [
            key
            for key, successor in zip(self.keys[:signing], self.keys[1:], strict=False)
            if now < successor.since + self.rotate
        ]
        kept += self.keys[signing:]
        if kept[-1].since <= now:
            lead = min(self.rotate, _LONGEST_LEAD)
            kept.append(SigningKey.made(max(kept[-1].since + self.rotate, now + lead)))
        return self if tuple(kept) == self.keys else KeyRing(tuple(kept), self.rotate)

    @property
    def due(self) -> float:
        """Epoch seconds at which `at` has something to do: a key begins to sign, or was kept long enough."""
        times = [self.keys[-1].since]
        times += [successor.since + self.rotate for successor in self.keys[1:-1]]
        return min(times)

    def jwks(self) -> dict[str, Any]:
        """The published keys (RFC 7517 section 5)."""
        return {"keys": [key.jwk for key in self.keys]}

    def to_bytes(self) -> bytes:
        """All of it, private keys too, for whoever keeps it where only the agent can read."""
        entries = [
            {
                "since": key.since,
                "private": key.private.private_bytes(
                    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
                ).decode(),
            }
            for key in self.keys
        ]
        return json.dumps({"version": 1, "keys": entries}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, text: bytes, rotate: float) -> KeyRing:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is not that. The message holds nothing of the text, which has secrets.
        """
        try:
            document = json.loads(text)
            keys = tuple(sorted(_read(document["keys"]), key=lambda key: key.since))
            if document["version"] != 1 or not keys:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ValueError("these are not the keys of the identity header") from None
        return cls(keys, rotate)


def _read(entries: Iterable[dict[str, Any]]) -> Iterable[SigningKey]:
    for entry in entries:
        private = load_pem_private_key(entry["private"].encode(), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name != "secp256r1":
            raise ValueError
        yield SigningKey.of(float(entry["since"]), private)


def _coordinates(private: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    numbers = private.public_key().public_numbers()
    x, y = (_base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
