"""Mutants of the gate lane: who is asking, what the policy says, and what HAProxy makes of the answer."""

from __future__ import annotations

from iamroles_conformance.selftest.mutants import gate_policy, gate_proxy, gate_tokens

__all__ = ["gate_policy", "gate_proxy", "gate_tokens"]
