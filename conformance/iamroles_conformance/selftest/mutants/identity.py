"""Mutants of the identity lane, by what they break: tokens, claims, key sets, callers of STS."""

from __future__ import annotations

from iamroles_conformance.selftest.mutants import (
    identity_claims,
    identity_header,
    identity_keys,
    identity_sts,
    identity_sts_answers,
)

__all__ = ["identity_claims", "identity_header", "identity_keys", "identity_sts", "identity_sts_answers"]
