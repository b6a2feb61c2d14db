"""From roles to routes: loading, decision, analysis (SPEC.md sections 6 and 7)."""

from __future__ import annotations

from iamroles_agent.policy.compiled import Policy
from iamroles_agent.policy.load import load, load_policy, load_text

__all__ = ["Policy", "load", "load_policy", "load_text"]
