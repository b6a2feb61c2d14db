"""Metrics: plain counters on the hot path, which `scrape` turns into Prometheus' samples at each scrape.

`prometheus-client`'s own counters take a lock and a dictionary look-up for each label set; here a decision
costs an addition and a bisection. The collector reads the plain numbers at scrape time: each is one Python
integer, so a scrape may be a few decisions behind itself but never sees a torn value.

Several workers are several processes. Worker `k` serves its own numbers on port `listen + k`, and Prometheus
sums them. A port of 0 stays ephemeral for each worker; the agent's log names it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iamroles_agent.base.config import MetricsSettings
from iamroles_agent.base.reasons import Reason

if TYPE_CHECKING:
    from iamroles_agent.audit.log import AuditState
    from iamroles_agent.live.cutter import Numbers
    from iamroles_agent.serving.scrape import MetricsServer
    from iamroles_agent.tokens import Authenticator

BUCKETS = (
    *(5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6),
    *(1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 2.5, 10.0),
)
"""Upper bounds of the latency histogram, seconds: a cached verdict takes microseconds, an STS call longer."""

CUT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of the histogram of late cuts, seconds."""


@dataclass(slots=True)
class ConnectionStats:
    """Counters since the start; `open` and `pending` are numbers of this moment."""

    open: int = 0
    """Without those that got their goodbye, and that HAProxy has not closed yet."""
    pending: int = 0
    """Decisions under way."""
    accepted: int = 0
    refused: int = 0
    """Connections above `max_connections`."""
    handshake_timeouts: int = 0
    protocol_errors: int = 0
    notifies: int = 0
    recalled: int = 0
    """NOTIFYs answered from the gate's memory, without parsing."""
    judged: int = 0
    failed: int = 0
    """NOTIFYs answered `internal_error` here: timeout, exception, ambiguous question."""
    forgotten: int = 0
    """Decisions dropped because the peer vanished."""


class Metrics:
    """The numbers of a worker process. Call from the event loop's thread; they are rendered in another.

    Args:
        settings: `[metrics]`.
        worker: number of the worker process.
        clock: epoch seconds.
    """

    def __init__(
        self, settings: MetricsSettings, *, worker: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self.settings = settings
        self.worker = worker
        self.clock = clock
        self.started = clock()
        self.allowed = 0
        self.refused: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self.shadowed = 0
        """Decisions that a shadow rule would have changed (SHADOW-RECORD-001)."""
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0
        self.verdict_hits = self.verdict_misses = 0
        """Verdicts found by the bytes of `iam-check`, or not."""
        self.identity_hits = self.identity_misses = 0
        """Credentials verified before, or not."""
        self.cache_sizes: dict[str, Callable[[], int]] = {}
        """`verdict`, `identity`: entries at scrape time."""
        self.policy_version = ""
        self.policy_since = 0.0
        self.reloads = {"accepted": 0, "rejected": 0}
        self.connections: ConnectionStats | None = None
        """The server's own counters, read at scrape time."""
        self.authenticator: Authenticator | None = None
        """Its key sources, identity cache and STS counters are read at scrape time."""
        self.cuts: dict[tuple[str, ...], int] = {}
        """Streams that were cut, by cause and by what cut them."""
        self.cut_buckets = [0] * (len(CUT_BUCKETS) + 1)
        self.cut_seconds = 0.0
        self.renewals = 0
        """Streams that were prolonged by a fresh credential."""
        self.live: Numbers | None = None
        """The cutter's numbers of open streams, read at scrape time."""
        self.revocations = 0
        self.audit: Callable[[], AuditState] | None = None
        self.health: Callable[[], tuple[bool, Mapping[str, Any]]] = lambda: (True, {})
        """True if decisions can be made, and the body of `/healthz`."""
        self.identity_keys: Callable[[], Mapping[str, Any]] | None = None
        """The published keys of the identity header (RFC 7517), if it is on."""
        self._server: MetricsServer | None = None

    def decided(self, reason: Reason | None, seconds: float) -> None:
        """Count a decision: its reason (None: allowed) and how long it took."""
        if reason is None:
            self.allowed += 1
        else:
            self.refused[reason] += 1
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds

    def policy(self, version: str) -> None:
        self.policy_version, self.policy_since = version, self.clock()
        self.reloads["accepted"] += 1

    def policy_rejected(self) -> None:
        """Count a policy that was refused; the old one stays (RELOAD-BAD-001)."""
        self.reloads["rejected"] += 1

    def cut(self, cause: str, by: str, late: float) -> None:
        """Count a stream that was cut, and how many seconds late."""
        self.cuts[cause, by] = self.cuts.get((cause, by), 0) + 1
        self.cut_buckets[bisect_left(CUT_BUCKETS, late)] += 1
        self.cut_seconds += late

    async def serve(self) -> str:
        """Serve `/metrics`, `/healthz` and `/identity/jwks` on this worker's port, in its event loop.

        `/healthz` answers 200, or 503 while every answer would be `internal_error`, with what this worker
        knows of the agent, in JSON: the version in force, and how many workers have confirmed it.

        Returns:
            `host:port`, or "" if `metrics.listen` is empty.

        Raises:
            StartError: the port is busy or forbidden.
        """
        if not self.settings.listen:
            return ""
        from iamroles_agent.serving.scrape import MetricsServer  # noqa: PLC0415 - it takes time to import

        server = MetricsServer(self)
        address = await server.open()
        self._server = server
        return address

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()
            self._server = None
