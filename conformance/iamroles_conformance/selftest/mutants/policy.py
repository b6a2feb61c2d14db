"""Mutants of the policy lane: what rules mean, how policies are taken up, and what the proxy makes of it."""

from __future__ import annotations

from iamroles_conformance.selftest.mutants import policy_life, policy_proxy, policy_roles, policy_rules

__all__ = ["policy_life", "policy_proxy", "policy_roles", "policy_rules"]
