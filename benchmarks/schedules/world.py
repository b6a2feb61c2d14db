"""Inputs of the schedules, made once: policies, tokens, key sets; and the right verdicts, by rules
that share nothing with the agent's.

A policy has a *mark*. It grants some of four paths, and the rule that a verdict names tells the mark. Two of
the marks take their keys from another address, so that a reload changes the source; one has shorter patience.
A token is named by the number of its key, of its principal and of its end. Keys `k0` to `k2` have two
materials each: an issuer may publish another key under a name that was used before.
"""

import functools
import json
import random
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from spop_transcript import check_message, context_message
from tokens_support import AUDIENCE, ISSUER, ROLE, mint, public_jwk

from benchmarks.schedules.loop import START
from iamroles_agent.base.config import Config
from iamroles_agent.control import policy_part
from iamroles_agent.control.document import Part
from iamroles_agent.spop.values import DataType
from iamroles_agent.tokens.keyring import source_of

MARKS, PATHS, KIDS, PRINCIPALS = 12, 4, 3, 3
ENDS = (START + 8, START + 40, START + 3000)
"""When tokens end, epoch seconds."""
KEYS = tuple((kid, material) for kid in range(KIDS) for material in range(2))
"""Number of the name, number of the material."""


@dataclass(frozen=True)
class Asked:
    """A question: which token, which path."""

    key: tuple[int, int]
    principal: int
    end: int
    path: int


@functools.cache
def secret(key: tuple[int, int]) -> rsa.RSAPrivateKey:
    """A private key; RSA, because it is verified in the shortest time."""
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def published(key: tuple[int, int]) -> dict[str, Any]:
    """A public key, as an issuer publishes it."""
    return public_jwk(secret(key), f"k{key[0]}")


@functools.cache
def token(key: tuple[int, int], principal: int, end: int) -> str:
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": f"u{principal}", "jti": f"{key}-{principal}-{end}",
        "iat": int(START) - 10, "exp": int(ENDS[end]), "roles": [ROLE],
    }  # fmt: skip
    return mint(claims, secret(key), "RS256", kid=f"k{key[0]}")


@functools.cache
def notify_payload(asked: Asked) -> bytes:
    """The question as HAProxy writes it; always the same bytes, so that it may be remembered."""
    bearer = f"Bearer {token(asked.key, asked.principal, asked.end)}".encode()
    return context_message() + check_message(
        authorization=(DataType.STRING, bearer), path=(DataType.STRING, f"/p{asked.path}/x".encode())
    )


@functools.cache
def opens(mark: int, path: int) -> bool:
    """Return whether the policy of a mark grants a path."""
    return bool(random.Random(f"{mark} {path}").random() < 0.6)


def address(mark: int) -> str:
    """Return where the policy of a mark takes its keys."""
    return f"https://idp.example/{'b' if mark >= MARKS - 2 else 'a'}"


def max_stale(mark: int) -> float:
    """Seconds for which the policy of a mark believes a key set."""
    return 15.0 if mark == 3 else 30.0


@functools.cache
def config(mark: int) -> Config:
    return Config.model_validate(
        {
            "version": 1,
            "agent": {"drain_timeout": "1s", "decision_timeout": "5s", "workers": 2},
            "audit": {"path": "none"},
            "keys": {
                "refresh": "10s",
                "cooldown": "2s",
                "timeout": "1s",
                "max_stale": f"{max_stale(mark):.0f}s",
            },
            "issuers": [
                {"name": "corp", "issuer": ISSUER, "jwks_uri": address(mark), "audiences": [AUDIENCE],
                 "algorithms": ["RS256"]}
            ],
            "roles": [{"name": "reader", "arn": ROLE}],
            "backends": [{"name": "orders"}],
            "grants": [
                {"id": f"V{mark}-{path}", "roles": ["reader"], "methods": ["GET"], "path": f"/p{path}",
                 "backend": "orders"}
                for path in range(PATHS)
                if opens(mark, path)
            ],
        }
    )  # fmt: skip


@functools.cache
def part(mark: int) -> Part:
    """The part `policy` of a mark."""
    return policy_part.encode(config(mark))


@functools.cache
def marks() -> dict[str, int]:
    """Marks by version of the policy."""
    return {part(mark).digest: mark for mark in range(MARKS)}


@functools.cache
def source(mark: int) -> str:
    """Names where the policy of a mark takes its keys."""
    return source_of(config(mark).issuers[0])


def key_set(keys: frozenset[tuple[int, int]]) -> bytes:
    """The document of an issuer with these keys."""
    return json.dumps({"keys": [published(key) for key in sorted(keys)]}).encode()


@functools.cache
def keys_of(text: bytes) -> frozenset[tuple[int, int]]:
    """Return the keys of a document."""
    by_modulus = {published(key)["n"]: key for key in KEYS}
    return frozenset(by_modulus[jwk["n"]] for jwk in json.loads(text)["keys"])


def faults(
    asked: Asked, *, mark: int, keys: frozenset[tuple[int, int]] | None, revoked: frozenset[str], now: float
) -> set[str]:
    """All reasons for which a question is refused; empty: it is allowed.

    Args:
        asked: the question.
        mark: of the policy in force.
        keys: in force; None if they are missing or too old.
        revoked: principals.
        now: epoch seconds.
    """
    found = set()
    if keys is None:
        found |= {"keys_unavailable", "key_unknown"}
    elif asked.key not in keys:
        found.add("signature_invalid" if asked.key[0] in {kid for kid, _ in keys} else "key_unknown")
    if now >= ENDS[asked.end]:
        found.add("token_expired")
    if f"u{asked.principal}" in revoked:
        found.add("credential_revoked")
    if not opens(mark, asked.path):
        found.add("no_grant")
    return found
