"""The target of the wire lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from iamroles_scenarios.base import recording


class Process(Protocol):
    """A freshly started agent that a check may end: its own process, its own port, the same policy.

    `spop_address`, `host_pid`: as `WireTarget.address` and `pid`. `terminate()`
    sends SIGTERM and returns at once. `wait(seconds)` gives the exit status, None while it still runs.
    `logs()` gives standard error so far.
    """

    @property
    def spop_address(self) -> str: ...
    @property
    def host_pid(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self, within: float) -> int | None: ...
    def logs(self) -> str: ...


Launcher = Callable[[Mapping[str, Any], float], AbstractContextManager[Process]]
"""Starts a fresh agent, which must be ready within these seconds. The mapping is merged into the world's
`agent` table: `{"max_connections": 4}`."""


@dataclass(frozen=True, slots=True)
class WireTarget:
    """One running agent and what is needed to judge it over SPOP alone.

    Args:
        address: `host:port` or `unix:/path` where it speaks SPOP.
        time_scale: multiplies every deadline of the lane; above 1 for slow hosts.
        allowed: arguments of an `iam-check` (see `wire.client.check_arguments`) that the agent's policy
            allows: `{"authorization": "Bearer …", "method": "GET", "host": "…", "path": "/…", "src": "…"}`.
            None where no credential is known (`--agent-address` alone): checks that need an allow are then
            untestable, the others use a request without a credential.
        refused: as `allowed`, with a *verified* credential that the policy refuses (403). None: a request
            without a credential stands in, which every agent refuses.
        slow: as `allowed`, but the agent must fetch something to judge it (a first token under a `kid` it
            does not know, whose issuer delays its JWKS): for the check that a slow one blocks nobody. A
            callable of the scale, because each use needs a fresh one; None: blocking is not judged.
        crowded: as `allowed`, where the tags of the answer (a rule id of many hundred bytes, say) do not fit
            a frame of the question's own size; None: dropping tags is not judged.
        features: what `agent.toml` declares. `limits`: the agent takes `max_connections` (a number) and
            `handshake_timeout` (a duration) in the world's `agent` table.
        pid: the agent's first process as this host numbers it, in a container too: its memory and descriptors
            are watched. None where it is not to be seen.
        logs: gives the agent's log so far.
        ended: gives the agent's exit code, None while it runs or where nobody knows.
        launch: starts a fresh agent for checks that end one (SIGTERM, connection limits); they are
            untestable without.
        ready_within: seconds, before scaling, in which such an agent must be ready.
    """

    address: str
    time_scale: float = 1.0
    allowed: Mapping[str, Any] | None = None
    refused: Mapping[str, Any] | None = None
    slow: Callable[[float], Mapping[str, Any]] | None = None
    crowded: Mapping[str, Any] | None = None
    features: frozenset[str] = field(default_factory=frozenset)
    pid: int | None = None
    logs: Callable[[], str] | None = None
    ended: Callable[[], int | None] = lambda: None
    launch: Launcher | None = None
    ready_within: float = 0.0

    def seconds(self, seconds: float) -> float:
        recording.timed(seconds * self.time_scale)
        return seconds * self.time_scale
