"""Keys that sign identities, and the times at which they sign.

How a key changes without failures
----------------------------------
A server caches the published keys. If a new key signed as soon as it is made, servers with an older cache
would refuse its first tokens. So a key is *published* long before it signs, and long after:

    made, published      signs                 still published          gone
    |------- lead -------|------ rotate -------|-------- rotate --------|

Each key carries the second from which it signs, so the clock alone selects the key: workers with the same
ring change keys in the same second without a message, and a saved ring is valid when the agent comes back,
however long that takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from iamroles_agent.base.encoding import encode_base64url

_LONGEST_LEAD = 3600.0
"""Seconds for which a key is published before it signs, or `rotate`, if that is less."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A P-256 key, and the epoch second from which it signs."""

    since: float
    private: ec.EllipticCurvePrivateKey = field(repr=False)
    kid: str = ""

    @classmethod
    def generate(cls, since: float) -> SigningKey:
        return cls.from_private(since, ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_private(cls, since: float, private: ec.EllipticCurvePrivateKey) -> SigningKey:
        """Make a key with its thumbprint (RFC 7638) as `kid`."""
        members = _coordinates(private)
        text = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
        return cls(since, private, encode_base64url(hashlib.sha256(text).digest()))

    @property
    def jwk(self) -> dict[str, str]:
        """The public key (RFC 7517)."""
        return {**_coordinates(self.private), "kid": self.kid, "use": "sig", "alg": "ES256"}


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All published keys, the earliest first; immutable."""

    keys: tuple[SigningKey, ...]
    """At least one."""
    rotate: float
    """Seconds for which a key signs."""

    @classmethod
    def first(cls, now: float, rotate: float) -> KeyRing:
        """Make the first ring of a gate: a key that signs at once, and the next."""
        return cls((SigningKey.generate(now),), rotate).at(now)

    def signing(self, now: float) -> SigningKey:
        """Return the key that signs now: the latest key whose time has come."""
        return next((key for key in reversed(self.keys) if key.since <= now), self.keys[0])

    def at(self, now: float) -> KeyRing:
        """Return the ring without retired keys and with the next key; this ring if nothing is due.

        A key that was made for a longer `rotate` signs a `rotate` from now at the latest. If a clock that was
        ahead made the ring, the next key signs two from now at the latest.
        """
        signing = self.keys.index(self.signing(now))
        kept = [
            key
            for key, successor in zip(self.keys[:signing], self.keys[1:], strict=False)
            if now < successor.since + self.rotate
        ]
        first = min(max(now, self.keys[signing].since), now + self.rotate)
        kept += [
            replace(key, since=min(key.since, first + number * self.rotate))
            for number, key in enumerate(self.keys[signing:])
        ]
        if kept[-1].since <= now:
            lead = min(self.rotate, _LONGEST_LEAD)
            kept.append(SigningKey.generate(max(kept[-1].since + self.rotate, now + lead)))
        return self if tuple(kept) == self.keys else KeyRing(tuple(kept), self.rotate)

    @property
    def due(self) -> float:
        """Epoch seconds at which `at` changes the ring: a key begins to sign, or a retired key goes."""
        times = [self.keys[-1].since]
        times += [successor.since + self.rotate for successor in self.keys[1:-1]]
        return min(times)

    def jwks(self, _now: float = 0.0) -> dict[str, Any]:
        """Return the published keys (RFC 7517 section 5); `at` has chosen them."""
        return {"keys": [key.jwk for key in self.keys]}

    def to_bytes(self) -> bytes:
        """Write the ring with its private keys; only the agent may read the result."""
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        entries = [
            {"since": key.since, "private": key.private.private_bytes(*form).decode()} for key in self.keys
        ]
        return json.dumps({"version": 1, "keys": entries}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, text: bytes, rotate: float) -> KeyRing:
        """Read the result of `to_bytes`.

        Raises:
            ValueError: the text is something else. The message quotes nothing of it, because it has secrets.
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
        yield SigningKey.from_private(float(entry["since"]), private)


def _coordinates(private: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    numbers = private.public_key().public_numbers()
    x, y = (encode_base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}
