"""Uncached token checks against the bare verification, paired: `python -m benchmarks.tokens`.

CPU time of this thread, and both sides in turn: a busy machine slows both. The median of the rounds' ratios
counts (at most 1.5).
Both see each token once: a message verified again and again would flatter the bare side with warm caches.
All tokens are minted before, so that nothing but the two sides runs while they are timed.
The check is all that `Authenticator.authenticate` does for a token it never saw, hash and cache included.
"""

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Callable

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from tokens_support import AUDIENCE, ISSUER, NOW, ROLE, authenticator_with, public_jwk

from iamroles_agent.base.encoding import decode_base64url

TARGET = 1.5
ROUNDS, PER_ROUND = 30, 50

KEYS = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def bare(alg: str) -> Callable[[bytes, bytes], object]:
    """The verification alone: `(signature in cryptography's own form, message)`."""
    public = KEYS[alg].public_key()
    if alg == "RS256":
        pad, digest = padding.PKCS1v15(), SHA256()
        return lambda signature, message: public.verify(signature, message, pad, digest)
    if alg == "EdDSA":
        return public.verify
    scheme = ec.ECDSA(SHA256() if alg == "ES256" else SHA384())
    return lambda signature, message: public.verify(signature, message, scheme)


def taken_apart(alg: str, bearer: str) -> tuple[bytes, bytes]:
    """Signature and message of a token, ready for `bare`."""
    message, _, seal = bearer.removeprefix("Bearer ").encode().rpartition(b".")
    signature = decode_base64url(seal)
    if alg.startswith("ES"):
        half = len(signature) // 2
        r, s = signature[:half], signature[half:]
        signature = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
    return signature, message


def tokens(alg: str, first: int, count: int) -> list[str]:
    """Different tokens, as an identity provider would sign them."""
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "user@example.com", "iat": NOW, "exp": NOW + 600, "nbf": NOW,
        "roles": [ROLE, ROLE.replace("Reader", "Writer")], "scope": "orders:read orders:write",
    }  # fmt: skip
    return [
        "Bearer " + jwt.encode(claims | {"jti": f"id-{n:032d}"}, KEYS[alg], alg, headers={"kid": "k1"})
        for n in range(first, first + count)
    ]


async def measure(alg: str) -> tuple[float, float, float]:
    """Median microseconds, bare and the whole check, and the median ratio."""
    authenticator = authenticator_with([public_jwk(KEYS[alg], "k1", alg)], algorithms=[alg])
    verify = bare(alg)
    minted = tokens(alg, 0, 2 * ROUNDS * PER_ROUND)
    gc.collect()
    bares, checks = [], []
    for turn in range(ROUNDS):
        batch = minted[2 * turn * PER_ROUND : 2 * (turn + 1) * PER_ROUND]
        apart = [taken_apart(alg, token) for token in batch[:PER_ROUND]]
        batch = batch[PER_ROUND:]
        start = time.thread_time()
        for signature, message in apart:
            verify(signature, message)
        middle = time.thread_time()
        for token in batch:
            await authenticator.authenticate(token)
        end = time.thread_time()
        bares.append((middle - start) / PER_ROUND * 1e6)
        checks.append((end - middle) / PER_ROUND * 1e6)
    ratios = [check / base for base, check in zip(bares, checks, strict=True)]
    return statistics.median(bares), statistics.median(checks), statistics.median(ratios)


def main() -> int:
    """Print the table; exit 1 when a ratio misses the target."""
    sys.stdout.write(f"{'alg':<6} {'bare µs':>8} {'check µs':>9} {'ratio':>6}   target {TARGET}\n")
    worst = 0.0
    for alg in KEYS:
        base, check, ratio = asyncio.run(measure(alg))
        worst = max(worst, ratio)
        sys.stdout.write(f"{alg:<6} {base:8.1f} {check:9.1f} {ratio:6.2f}\n")
    return int(worst > TARGET)


if __name__ == "__main__":
    sys.exit(main())
