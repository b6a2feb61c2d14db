"""What Prometheus is told of the numbers in `metrics`, and the thread that tells it.

Loaded only where `metrics.listen` is set: `prometheus-client` brings an HTTP server and takes time to import.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from socketserver import ThreadingMixIn
from typing import cast
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
from iamroles_agent.base.errors import StartError
from iamroles_agent.live.cutter import Numbers
from iamroles_agent.serving.metrics import BUCKETS, CUT_BUCKETS, Metrics


class Server:
    """Serves `/metrics`, `/healthz` and `/identity/jwks` on a worker's port: see `Metrics.serve`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        host, _, port = metrics.settings.listen.rpartition(":")
        host = host.strip("[]")
        number = int(port) and int(port) + metrics.worker
        try:
            kind = _Http6Server if ":" in host else _HttpServer
            self._server = make_server(host, number, self._app(), kind, _QuietHandler)
        except OSError as error:
            raise StartError(
                f"metrics.listen {host}:{number} cannot be used: {error.strerror or error}. "
                "Choose a free port; worker k uses the port plus k"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        bound = self._server.server_port
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"

    def _app(self) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
        numbers, metrics = self._metrics, make_wsgi_app(registry(self._metrics))

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            match environ.get("PATH_INFO"):
                case "/healthz":
                    healthy, about = numbers.health()
                    status = "200 OK" if healthy else "503 Service Unavailable"
                case "/identity/jwks" if numbers.identity_keys is not None:
                    status, about = "200 OK", numbers.identity_keys()
                case _:
                    return cast("Iterable[bytes]", metrics(environ, start_response))
            body = json.dumps(about).encode() + b"\n"
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            start_response(status, headers)
            return [body]

        return app

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def registry(metrics: Metrics) -> CollectorRegistry:
    """A registry of these numbers alone."""
    made = CollectorRegistry()
    made.register(_Scrape(metrics))
    return made


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
