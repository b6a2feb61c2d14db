"""Prometheus' view of the numbers in `metrics`, and the thread that serves it.

Loaded only if `metrics.listen` is set: `prometheus-client` brings an HTTP server and takes time to import.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
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

if TYPE_CHECKING:
    from iamroles_agent.audit.log import AuditState


class MetricsServer:
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
    """Gives each connection a thread, so that a silent client keeps no scrape waiting."""

    daemon_threads = True


class _Http6Server(_HttpServer):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
        """Do not log scrapes."""


class _Scrape(Collector):
    """Reads a `Metrics` when Prometheus asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        return iter(())  # nothing to collide with: the registry is our own

    def collect(self) -> Iterator[Metric]:
        numbers = self._metrics
        yield from _decisions(numbers)
        yield from _identity(numbers)
        yield from _process(numbers)
        if numbers.audit is not None:
            yield from _audit(numbers.audit())
        yield from _live(numbers)


_Values = float | Mapping[Any, float]
"""One number, or one for each tuple of labels' values."""


def _family(kind: Any, name: str, text: str, values: _Values, *labels: str) -> Metric:  # noqa: ANN401 - a class
    family: Any = kind(name, text, labels=labels)
    for key, value in list(values.items()) if isinstance(values, Mapping) else [((), values)]:
        family.add_metric(key, value)
    return cast("Metric", family)


_counter = partial(_family, CounterMetricFamily)
_gauge = partial(_family, GaugeMetricFamily)


def _histogram(name: str, text: str, bounds: tuple[float, ...], counts: list[int], seconds: float) -> Metric:
    totals = accumulate(list(counts))
    family = HistogramMetricFamily(name, text)
    family.add_metric([], list(zip((*map(str, bounds), "+Inf"), totals, strict=True)), seconds)
    return family


def _decisions(numbers: Metrics) -> Iterator[Metric]:
    verdicts = {("allow", ""): numbers.allowed}
    verdicts |= {("deny", reason): count for reason, count in numbers.refused.items()}
    yield _counter("iamroles_decisions", "Decisions by verdict and reason.", verdicts, "verdict", "reason")
    yield _counter(
        "iamroles_shadow_decisions", "Decisions that a shadow rule would have changed.", numbers.shadowed
    )
    text = "Time from the frame to its verdict, inside the agent."
    yield _histogram("iamroles_decision_seconds", text, BUCKETS, numbers.buckets, numbers.seconds)
    lookups = {
        ("verdict", "hit"): numbers.verdict_hits,
        ("verdict", "miss"): numbers.verdict_misses,
        ("identity", "hit"): numbers.identity_hits,
        ("identity", "miss"): numbers.identity_misses,
    }
    text = "Look-ups by cache and outcome."
    yield _counter("iamroles_cache_lookups", text, lookups, "cache", "outcome")
    sizes = {} if numbers.authenticator is None else {("identity",): numbers.authenticator.cached[0]}
    sizes |= {(cache,): size() for cache, size in numbers.cache_sizes.items()}
    yield _gauge("iamroles_cache_entries", "Entries by cache.", sizes, "cache")


def _identity(numbers: Metrics) -> Iterator[Metric]:
    authenticator = numbers.authenticator
    if authenticator is None:
        return
    keys = {(issuer,): source for issuer, source in authenticator.sources.items()}
    for kind, name, text, read in (
        (_counter, "fetches", "Key-set fetches begun.", lambda source: source.fetches),
        (_gauge, "failures", "Key-set fetches failed in a row.", lambda source: source.failures),
        (_gauge, "age_seconds", "Age of the key set in force.", lambda source: source.age),
        (_gauge, "keys", "Keys in the set in force.", lambda source: len(source.kids)),
    ):
        values = {issuer: value for issuer, source in keys.items() if (value := read(source)) is not None}
        yield kind(f"iamroles_key_set_{name}", text, values, "issuer")
    text = "Grows when a key is lost or changed."
    yield _gauge("iamroles_key_set_generation", text, authenticator.generation)
    calls = {(name,): count for name, count in authenticator.sts.counts.items() if name != "asked"}
    yield _counter("iamroles_sts_calls", "STS calls by outcome.", calls, "outcome")


def _process(numbers: Metrics) -> Iterator[Metric]:
    info = {"version": __version__, "policy": numbers.policy_version, "worker": str(numbers.worker)}
    yield InfoMetricFamily("iamroles_agent", "The agent and the policy in force.", info)
    text = "When the policy came into force, epoch."
    yield _gauge("iamroles_policy_since_seconds", text, numbers.policy_since)
    loads = {(outcome,): count for outcome, count in numbers.reloads.items()}
    yield _counter("iamroles_policy_loads", "Policies put into force or turned down.", loads, "outcome")
    if (peers := numbers.connections) is not None:
        yield _gauge("iamroles_connections", "Open connections.", peers.open)
        yield _gauge("iamroles_pending_decisions", "Decisions under way.", peers.pending)
        yield _counter("iamroles_connections_opened", "Accepted connections.", peers.accepted)
        yield _counter("iamroles_connections_refused", "Over the limit.", peers.refused)
        text = "Connections ended for a protocol error."
        yield _counter("iamroles_frame_errors", text, peers.protocol_errors)
    yield _gauge("iamroles_start_time_seconds", "When the worker started.", numbers.started)


def _audit(state: AuditState) -> Iterator[Metric]:
    yield _counter("iamroles_audit_records", "Records linked into the chain.", state.records)
    yield _counter("iamroles_audit_lost", "Decisions that are not on record.", state.lost)
    yield _counter("iamroles_audit_failures", "Failed attempts to write.", state.failures)
    yield _gauge("iamroles_audit_failing", "1 while decisions can not be recorded.", state.failing)
    yield _gauge("iamroles_audit_buffered_bytes", "Not on disk yet.", state.buffered)


def _live(numbers: Metrics) -> Iterator[Metric]:
    yield _counter("iamroles_cuts", "Open streams that were cut.", numbers.cuts, "cause", "by")
    text = "How late a stream was cut."
    yield _histogram("iamroles_cut_late_seconds", text, CUT_BUCKETS, numbers.cut_buckets, numbers.cut_seconds)
    text = "Open streams that a fresh credential prolonged."
    yield _counter("iamroles_renewals", text, numbers.renewals)
    yield _gauge("iamroles_revocations", "Revocations in force.", numbers.revocations)
    live = numbers.live or Numbers()
    yield _gauge("iamroles_long_streams", "Entries of HAProxy's table.", live.open)
    text = "HAProxy processes that do not answer."
    yield _gauge("iamroles_live_unreachable", text, live.unreachable)
    about = numbers.health()[1]
    values = {(what,): float(about.get(what) == "in force") for what in ("requests", "streams")}
    yield _gauge("iamroles_in_force", "1 if all that was accepted is enforced.", values, "for")
