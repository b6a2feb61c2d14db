"""The stage: HAProxy, agent, mocks and backends as processes or containers, behind one interface."""

from __future__ import annotations

from iamroles_scenarios.stage.agent_handle import AgentHandle
from iamroles_scenarios.stage.spec import AgentSpec
from iamroles_scenarios.stage.stage import KINDS, Stage, open_stage
from iamroles_scenarios.stage.world import HaproxyHandle, Proxy, World

__all__ = [
    "KINDS",
    "AgentHandle",
    "AgentSpec",
    "HaproxyHandle",
    "Proxy",
    "Stage",
    "World",
    "open_stage",
]
