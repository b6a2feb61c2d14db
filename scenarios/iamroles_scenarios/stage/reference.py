"""The reference agent, as the demo and the load tests start it where no `agent.toml` is given.

It is known by its command alone: nothing here imports it.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from iamroles_scenarios.stage import AgentSpec

_FEATURES = ["oidc", "sts", "limits", "age", "workers", "identity", "live", "renew", "proof", "authorities"]
_FEATURES += ["certificate", "dpop", "actor", "mcp"]


def reference_agent() -> AgentSpec:
    """Return what `conformance/agent.toml` says, for an install without a checkout."""
    return AgentSpec.of(
        {
            "spec": 1,
            "name": "iamroles",
            "version": version("haproxy-iam-roles"),
            "launch": {"command": ["iamroles", "agent", "run"], "build": "python"},
            "features": {"reload": "SIGHUP", **dict.fromkeys(_FEATURES, True)},
        },
        Path(__file__),
    )
