"""The cost of a proof beside a bearer token, and of a stranger's proof: `python -m benchmarks.bound`.

CPU time of this thread for a question that the gate never saw, with a token that it knows; the kinds in turn,
the median of the rounds counts. A key whose exponent is as long as its modulus must cost no more than twice a
bearer token, be it a stranger's, or that to which the caller's token is bound: a signature check takes a
hundred times as long. A worker judges one question at a time, so that is what the callers beside it wait for.
"""

import asyncio
import dataclasses
import json
import statistics
import sys
import time
from hashlib import sha256

import spop_transcript
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from policies import document, grant
from tokens_support import (
    AUDIENCE,
    EC_KEY,
    ISSUER,
    READER,
    authenticator_with,
    claims,
    encode_base64url,
    gate_of,
    mint,
    public_jwk,
)

from iamroles_agent.spop.messages import Check, Context
from iamroles_tools.tokens.minting import prove, thumbprint_of

ROUNDS, PER_ROUND = 20, 50
TARGET = 2.0
ORIGIN = "https://api.example.com"
KEYS = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "RS256": rsa.generate_private_key(65537, 3072),
}
CORP = {
    "name": "corp",
    "issuer": ISSUER,
    "audiences": [AUDIENCE],
    "algorithms": ["ES256"],
    "bound": "accepted",
}
POLICY = document(
    grant("R1", "reader", "GET", "/orders", "orders"),
    issuers=[CORP],
    roles=[READER],
    dpop={"origins": [ORIGIN], "algorithms": [*KEYS], "max_age": "5m"},
)
THUMBPRINT = "A" * 43
HOSTILE = ("stranger", "own huge")


N = KEYS["RS256"].public_key().public_numbers().n
HUGE = {"kty": "RSA", "n": encode_base64url(N.to_bytes(384)), "e": encode_base64url((N - 2).to_bytes(384))}
_MEMBERS = json.dumps({name: HUGE[name] for name in ("e", "kty", "n")}, separators=(",", ":"))
OWN = encode_base64url(sha256(_MEMBERS.encode()).digest())
"""The thumbprint of the key with the huge exponent."""


def strange(proof: str) -> str:
    """Put the key with a huge exponent into a proof."""
    head = {"typ": "dpop+jwt", "alg": "RS256", "jwk": HUGE}
    return ".".join([encode_base64url(json.dumps(head).encode()), *proof.split(".")[1:]])


def asked(kind: str, number: int) -> Check:
    """Make a question of a kind; each has a path of its own."""
    path, key = f"/orders/{number}", KEYS.get(kind)
    cnf = {"x5t#S256": THUMBPRINT} if kind == "certificate" else {"jkt": thumbprint_of(key or KEYS["ES256"])}
    cnf = {"jkt": OWN} if kind == "own huge" else cnf
    now = int(time.time())
    token = mint(claims(iat=now, exp=now + 3000, **({} if kind == "bearer" else {"cnf": cnf})))
    check = dataclasses.replace(spop_transcript.USUAL, authorization=f"Bearer {token}", path=path)
    if kind in ("bearer", "certificate"):
        return dataclasses.replace(check, certificate=THUMBPRINT)
    proof = prove(key or KEYS["ES256"], "GET", f"{ORIGIN}{path}", token, nonce=None, now=now)
    proof = proof if key else strange(proof)
    host, scheme = ORIGIN.partition("//")[2], f"DPoP {token}"
    return dataclasses.replace(check, authorization=scheme, host=host, proof=proof, proof_count=1)


def main() -> int:
    """Print the table; exit 1 if a huge exponent costs too much."""
    authenticator = authenticator_with([public_jwk(EC_KEY, "k1")], time.time, bound="accepted")
    authenticator._dpop = True
    gate = gate_of(POLICY, authenticator, time.time)
    kinds = ("bearer", "certificate", *KEYS, *HOSTILE)
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    loop = asyncio.new_event_loop()
    number = 0
    for _ in range(ROUNDS):
        for kind in kinds:
            number += 1
            first = asked(kind, number)
            loop.run_until_complete(gate.judge(first, Context(), None))
            batch = [asked(kind, number := number + 1) for _ in range(PER_ROUND)]
            for check in batch:  # the token is known before its question is timed
                loop.run_until_complete(gate.authenticator.authenticate(check.authorization or ""))

            async def judged(batch: list[Check] = batch) -> float:
                began = time.thread_time()
                for check in batch:
                    await gate.judge(check, Context(), repr(check.path).encode())
                return time.thread_time() - began

            spent[kind].append(loop.run_until_complete(judged()) / PER_ROUND * 1e6)
    medians = {kind: statistics.median(found) for kind, found in spent.items()}
    sys.stdout.write(f"{'kind':<12} {'µs':>7} {'to bearer':>10}\n")
    for kind, found in medians.items():
        sys.stdout.write(f"{kind:<12} {found:7.1f} {found / medians['bearer']:10.2f}\n")
    return int(max(medians[kind] for kind in HOSTILE) > TARGET * medians["bearer"])


if __name__ == "__main__":
    sys.exit(main())
