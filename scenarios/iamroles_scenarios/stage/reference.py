"""The reference agent, as the demo and the load tests start it where no `agent.toml` is given.

It is known by its command alone: nothing here imports it.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from iamroles_scenarios.stage import AgentSpec


def reference_agent() -> AgentSpec:
    """Return what `conformance/agent.toml` says, for an install without a checkout."""
    return AgentSpec.of(
        {
            "spec": 1,
            "name": "iamroles",
            "version": version("haproxy-iam-roles"),
            "launch": {"command": ["iamroles", "agent", "run"], "build": "python"},
            "features": {
                "oidc": True,
                "sts": True,
                "reload": "SIGHUP",
                "limits": True,
                "age": True,
                "workers": True,
                "identity": True,
                "live": True,
                "renew": True,
                "proof": True,
                "authorities": True,
                "certificate": True,
                "dpop": True,
                "actor": True,
                "mcp": True,
            },
        },
        Path(__file__),
    )
