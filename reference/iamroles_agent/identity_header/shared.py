"""Keys that all agents of a gate derive from a secret that they share, so that nothing is exchanged.

Why the clock alone is enough
-----------------------------
Time is cut into periods of `rotate` seconds, counted from the epoch. For each secret and period there is one
key, and each agent that has the secret can make it. Period n's key signs in period n; the keys of n - 1,
n and n + 1 are published:

    published            signs                published            gone
    |----- rotate ------|----- rotate -------|----- rotate -------|

So a key is published for a whole `rotate` before it signs and for another after it. Two agents whose clocks
differ by less than `rotate` publish what the other signs with; an agent or pod that is new knows all keys
from its first second; none has to keep keys on a disk. Of several secrets the first signs, and the keys of
all are published: so servers know a new secret's keys before it becomes the first.

A key is a scalar of P-256, made from 384 bits by FIPS 186-5 appendix A.2.1, which come from HKDF (RFC 5869)
over the secret, with the gate's name and the period as `info`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from iamroles_agent.identity_header.keys import SigningKey

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order of P-256's group (SP 800-186 section 3.2.1.3)."""
_OCTETS = 48
"""For a scalar: 128 bits more than the order has, so that none is likelier than another by 2**-128."""
_SALT = b"haproxy-iam-roles signed identity"


def secrets_to_bytes(secrets: Iterable[bytes]) -> bytes:
    """Write secrets for `SharedRing.from_bytes`; only the agent may read the result."""
    return json.dumps([secret.hex() for secret in secrets]).encode()


class SharedRing:
    """The keys of all periods; immutable.

    Args:
        secrets: the first signs, all are published; at least one.
        issuer: the gate's name. Other names make other keys.
        rotate: seconds of a period.
    """

    def __init__(self, secrets: tuple[bytes, ...], issuer: str, rotate: float) -> None:
        self._secrets, self._issuer, self._rotate = secrets, issuer, rotate
        self._key = lru_cache(maxsize=6 * len(secrets))(self._derived)

    @classmethod
    def from_bytes(cls, text: bytes, issuer: str, rotate: float) -> SharedRing:
        """Read the result of `secrets_to_bytes`.

        Raises:
            ValueError: the text is something else. The message quotes nothing of it, because it has secrets.
        """
        try:
            secrets = tuple(map(bytes.fromhex, json.loads(text)))
        except (ValueError, TypeError):
            secrets = ()
        if not secrets:
            raise ValueError("these are not the secrets of the identity header")
        return cls(secrets, issuer, rotate)

    def _derived(self, secret: bytes, period: int) -> SigningKey:
        info = json.dumps([self._issuer, self._rotate, period]).encode()
        drawn = HKDF(SHA256(), _OCTETS, _SALT, info).derive(secret)
        scalar = int.from_bytes(drawn, "big") % (_ORDER - 1) + 1
        return SigningKey.from_private(period * self._rotate, ec.derive_private_key(scalar, ec.SECP256R1()))

    def signing(self, now: float) -> SigningKey:
        """Return the key that signs now."""
        return self._key(self._secrets[0], int(now // self._rotate))

    def jwks(self, now: float) -> dict[str, Any]:
        """Return the keys that are published now (RFC 7517 section 5)."""
        period = int(now // self._rotate)
        return {
            "keys": [
                self._key(secret, each).jwk
                for secret in self._secrets
                for each in (period - 1, period, period + 1)
            ]
        }
