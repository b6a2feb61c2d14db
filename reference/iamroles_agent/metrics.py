"""Prometheus metrics: plain counters on the hot path, turned into samples when somebody scrapes.

`prometheus-client`'s own counters take a lock and a dictionary look-up for each label set; here a decision
costs an addition and a bisection. The collector reads the plain numbers at scrape time: each is one Python
integer, so a scrape may be a few decisions behind itself but never sees a torn value.

Several workers are several processes. Their numbers are not merged behind the operator's back: worker `k`
serves on port `listen + k`, and Prometheus, which is made for that, sums them. A port of 0 stays ephemeral
for each worker; the agent's log names it.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from iamroles_agent import __version__
from iamroles_agent.audit.log import AuditState
from iamroles_agent.config import MetricsSettings
from iamroles_agent.errors import StartError
from iamroles_agent.live.cutter import Numbers
from iamroles_agent.reasons import Reason
from iamroles_agent.server import ConnectionStats
from iamroles_agent.tokens import Authenticator

BUCKETS = (
    *(5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6),
    *(1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 2.5, 10.0),
)
"""Upper bounds of the latency histogram, seconds: a cached verdict takes microseconds, an STS call longer."""

CUT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of the histogram of late cuts, seconds."""


class Metrics:
    """The numbers of one worker process. Call from the event loop's thread; scraping happens in another.

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
        """Whose key sources, identity cache and STS counters are read at scrape time."""
        self.cuts: dict[tuple[str, ...], int] = {}
        """Streams that were cut, by cause and by whom."""
        self.cut_buckets = [0] * (len(CUT_BUCKETS) + 1)
        self.cut_seconds = 0.0
        self.renewals = 0
        """Streams that were prolonged by a fresh credential."""
        self.live: Numbers | None = None
        """What the cutter knows of open streams, read at scrape time."""
        self.revocations = 0
        self.audit: Callable[[], AuditState] | None = None
        self.health: Callable[[], tuple[bool, Mapping[str, Any]]] = lambda: (True, {})
        """Whether decisions can be made, and what `/healthz` tells; called in another thread."""
        self.identity_keys: Callable[[], Mapping[str, Any]] | None = None
        """The published keys of the identity header (RFC 7517), where there are any; as `health`."""
        self.registry = CollectorRegistry()
        self.registry.register(_Scrape(self))
        self._server: tuple[WSGIServer, threading.Thread] | None = None

    def decided(self, reason: Reason | None, seconds: float) -> None:
        """Count a decision: its reason (None: allowed) and how long it took."""
        if reason is None:
            self.allowed += 1
        else:
            self.refused[reason] += 1
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds

    def policy(self, version: str) -> None:
        """Note the policy in force."""
        self.policy_version, self.policy_since = version, self.clock()
        self.reloads["accepted"] += 1

    def policy_rejected(self) -> None:
        """Count a policy that was turned down; the old one stays (RELOAD-BAD-001)."""
        self.reloads["rejected"] += 1

    def cut(self, cause: str, by: str, late: float) -> None:
        """Count a stream that was cut, and how many seconds late."""
        self.cuts[cause, by] = self.cuts.get((cause, by), 0) + 1
        self.cut_buckets[bisect_left(CUT_BUCKETS, late)] += 1
        self.cut_seconds += late

    def serve(self) -> str:
        """Serve `/metrics`, `/healthz` and `/identity/jwks` on this worker's port, from a thread.

        `/healthz` answers 200, or 503 while nothing but `internal_error` could be answered, with what this
        worker knows of the agent, in JSON: the version in force, and how many workers have confirmed it.

        Returns:
            `host:port`, or "" where `metrics.listen` is empty.

        Raises:
            StartError: the port is busy or not ours to use.
        """
        if not self.settings.listen:
            return ""
        host, _, port = self.settings.listen.rpartition(":")
        host = host.strip("[]")
        number = int(port) and int(port) + self.worker
        try:
            kind = _Http6Server if ":" in host else _HttpServer
            server = make_server(host, number, self._app(), kind, _QuietHandler)
        except OSError as error:
            raise StartError(
                f"metrics.listen {host}:{number} cannot be used: {error.strerror or error}. "
                "Choose a free port; worker k uses the port plus k"
            ) from error
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        self._server = server, thread
        bound = server.server_port
        return f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"

    def _app(self) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
        metrics = make_wsgi_app(self.registry)

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            match environ.get("PATH_INFO"):
                case "/healthz":
                    healthy, about = self.health()
                    status = "200 OK" if healthy else "503 Service Unavailable"
                case "/identity/jwks" if self.identity_keys is not None:
                    status, about = "200 OK", self.identity_keys()
                case _:
                    return cast("Iterable[bytes]", metrics(environ, start_response))
            body = json.dumps(about).encode() + b"\n"
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            start_response(status, headers)
            return [body]

        return app

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None


class _HttpServer(ThreadingMixIn, WSGIServer):
    """A thread for each connection: one that says nothing keeps no scrape waiting."""

    daemon_threads = True


class _Http6Server(_HttpServer):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
        """Scrapes are no news."""


class _Scrape(Collector):
    """Reads a `Metrics` when Prometheus asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        return iter(())  # nothing to collide with: the registry is our own

    def collect(self) -> Iterator[Metric]:
        yield from self._decisions()
        yield from self._caches()
        yield from self._identity()
        yield from self._process()
        yield from self._audit()
        yield from self._live()

    def _decisions(self) -> Iterator[Metric]:
        numbers = self._metrics
        decisions = CounterMetricFamily(
            "iamroles_decisions", "Decisions by verdict and reason.", labels=["verdict", "reason"]
        )
        decisions.add_metric(["allow", ""], numbers.allowed)
        for reason, count in numbers.refused.items():
            decisions.add_metric(["deny", reason], count)
        yield decisions
        yield CounterMetricFamily(
            "iamroles_shadow_decisions",
            "Decisions that a shadow rule would have changed.",
            value=numbers.shadowed,
        )
        total, buckets = 0, []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), list(numbers.buckets), strict=True):
            total += count
            buckets.append((bound, total))
        latency = HistogramMetricFamily(
            "iamroles_decision_seconds", "Time from the frame to its verdict, inside the agent."
        )
        latency.add_metric([], buckets, numbers.seconds)
        yield latency

    def _caches(self) -> Iterator[Metric]:
        numbers = self._metrics
        lookups = CounterMetricFamily(
            "iamroles_cache_lookups", "Look-ups by cache and outcome.", labels=["cache", "outcome"]
        )
        lookups.add_metric(["verdict", "hit"], numbers.verdict_hits)
        lookups.add_metric(["verdict", "miss"], numbers.verdict_misses)
        lookups.add_metric(["identity", "hit"], numbers.identity_hits)
        lookups.add_metric(["identity", "miss"], numbers.identity_misses)
        yield lookups
        sizes = GaugeMetricFamily("iamroles_cache_entries", "Entries by cache.", labels=["cache"])
        if numbers.authenticator is not None:
            sizes.add_metric(["identity"], numbers.authenticator.cached[0])
        for cache, size in numbers.cache_sizes.items():
            sizes.add_metric([cache], size())
        yield sizes

    def _identity(self) -> Iterator[Metric]:
        authenticator = self._metrics.authenticator
        if authenticator is None:
            return
        fetches = CounterMetricFamily("iamroles_key_set_fetches", "Key-set fetches begun.", labels=["issuer"])
        failing = GaugeMetricFamily(
            "iamroles_key_set_failures", "Key-set fetches failed in a row.", labels=["issuer"]
        )
        age = GaugeMetricFamily(
            "iamroles_key_set_age_seconds", "Age of the key set in force.", labels=["issuer"]
        )
        size = GaugeMetricFamily("iamroles_key_set_keys", "Keys in the set in force.", labels=["issuer"])
        for issuer, source in authenticator.sources.items():
            fetches.add_metric([issuer], source.fetches)
            failing.add_metric([issuer], source.failures)
            size.add_metric([issuer], len(source.kids))
            if source.age is not None:
                age.add_metric([issuer], source.age)
        yield from (fetches, failing, age, size)
        yield GaugeMetricFamily(
            "iamroles_key_set_generation", "Grows when a key is lost or changed.", authenticator.generation
        )
        yield _counter(
            "iamroles_sts_calls",
            "STS calls by outcome.",
            ["outcome"],
            {(name,): count for name, count in authenticator.sts.counts.items() if name != "asked"},
        )

    def _process(self) -> Iterator[Metric]:
        numbers = self._metrics
        info = InfoMetricFamily("iamroles_agent", "The agent and the policy in force.")
        info.add_metric(
            [], {"version": __version__, "policy": numbers.policy_version, "worker": str(numbers.worker)}
        )
        yield info
        yield GaugeMetricFamily(
            "iamroles_policy_since_seconds", "When the policy came into force, epoch.", numbers.policy_since
        )
        yield _counter(
            "iamroles_policy_loads",
            "Policies put into force or turned down.",
            ["outcome"],
            {(outcome,): count for outcome, count in numbers.reloads.items()},
        )
        if (peers := numbers.connections) is not None:
            yield GaugeMetricFamily("iamroles_connections", "Open connections.", peers.open)
            yield GaugeMetricFamily("iamroles_pending_decisions", "Decisions under way.", peers.pending)
            yield CounterMetricFamily("iamroles_connections_opened", "Accepted connections.", peers.accepted)
            yield CounterMetricFamily("iamroles_connections_refused", "Over the limit.", peers.refused)
            yield CounterMetricFamily(
                "iamroles_frame_errors", "Connections ended for a protocol error.", peers.protocol_errors
            )
        yield GaugeMetricFamily("iamroles_start_time_seconds", "When the worker started.", numbers.started)

    def _live(self) -> Iterator[Metric]:
        numbers = self._metrics
        yield _counter(
            "iamroles_cuts",
            "Open streams that were cut.",
            ["cause", "by"],
            dict(numbers.cuts),
        )
        total, buckets = 0, []
        for bound, count in zip((*map(str, CUT_BUCKETS), "+Inf"), list(numbers.cut_buckets), strict=True):
            total += count
            buckets.append((bound, total))
        late = HistogramMetricFamily("iamroles_cut_late_seconds", "How late a stream was cut.")
        late.add_metric([], buckets, numbers.cut_seconds)
        yield late
        yield CounterMetricFamily(
            "iamroles_renewals", "Open streams that a fresh credential prolonged.", numbers.renewals
        )
        yield GaugeMetricFamily("iamroles_revocations", "Revocations in force.", numbers.revocations)
        live = numbers.live or Numbers()
        yield GaugeMetricFamily("iamroles_long_streams", "Entries of HAProxy's table.", live.open)
        yield GaugeMetricFamily(
            "iamroles_live_unreachable", "HAProxy processes that do not answer.", live.unreachable
        )

    def _audit(self) -> Iterator[Metric]:
        if self._metrics.audit is None:
            return
        state = self._metrics.audit()
        yield CounterMetricFamily("iamroles_audit_records", "Records linked into the chain.", state.records)
        yield CounterMetricFamily("iamroles_audit_lost", "Decisions that are not on record.", state.lost)
        yield CounterMetricFamily("iamroles_audit_failures", "Failed attempts to write.", state.failures)
        yield GaugeMetricFamily(
            "iamroles_audit_failing", "1 while decisions can not be recorded.", float(state.failing)
        )
        yield GaugeMetricFamily("iamroles_audit_buffered_bytes", "Not on disk yet.", state.buffered)


def _counter(name: str, text: str, labels: list[str], counts: Mapping[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in list(counts.items()):
        family.add_metric(list(values), count)
    return family
