"""Prometheus' view of the numbers in `metrics`, and the server of it in a worker's event loop.

Loaded only if `metrics.listen` is set: `prometheus-client` takes time to import. Any process that reaches the
port may ask, so connections, time and bytes of each are bounded, and how often the numbers are rendered.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
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
from iamroles_agent.serving.bounded import Bounded, network_of
from iamroles_agent.serving.listening import address_of
from iamroles_agent.serving.metrics import BUCKETS, CUT_BUCKETS, Metrics

if TYPE_CHECKING:
    from iamroles_agent.audit.log import AuditState

_LONGEST = 4096
"""Bytes of a request."""
_PATIENCE = 2.0
"""Seconds for a request and its answer."""
_APART = 0.1
"""Seconds between two renderings, each of which takes some milliseconds of CPU."""


class MetricsServer:
    """Serves `/metrics`, `/healthz` and `/identity/jwks` on a worker's port: see `Metrics.serve`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._registry = metrics, registry(metrics)
        self._guests = Bounded()
        self._rendering: asyncio.Task[bytes] | None = None
        """The next rendering, which all share that ask before it begins."""
        self._rendered = 0.0

    async def open(self) -> str:
        """Listen; returns the address.

        Raises:
            StartError: the port is busy or forbidden.
        """
        host, _, port = self._metrics.settings.listen.rpartition(":")
        host = host.strip("[]")
        number = int(port) and int(port) + self._metrics.worker
        try:
            self._server = await asyncio.start_server(self._greet, host, number, limit=_LONGEST)
        except OSError as error:
            raise StartError(
                f"metrics.listen {host}:{number} cannot be used: {error.strerror or error}. "
                "Choose a free port; worker k uses the port plus k"
            ) from error
        return address_of(self._server.sockets[0])

    async def close(self) -> None:
        self._server.close()
        await self._guests.end(0.0)

    def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._guests.begin(self._meet(reader, writer), network_of(writer.get_extra_info("socket")))

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; the whole conversation has `_PATIENCE` seconds."""
        with suppress(TimeoutError, OSError, EOFError, asyncio.LimitOverrunError):
            try:
                async with asyncio.timeout(_PATIENCE):
                    method, _, rest = (await reader.readuntil(b"\r\n\r\n")).partition(b" ")
                    status, kind, body = await self._answer(rest.split(b"?")[0].split(b" ")[0])
                    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    said = f"{head}Connection: close\r\n\r\n".encode()
                    writer.write(said if method == b"HEAD" else said + body)
                    writer.close()
                    await writer.wait_closed()
            finally:
                writer.transport.abort()

    async def _answer(self, path: bytes) -> tuple[str, str, bytes]:
        """Return status, media type and body."""
        if path == b"/healthz":
            healthy, about = self._metrics.health()
            status = "200 OK" if healthy else "503 Service Unavailable"
        elif path == b"/identity/jwks" and self._metrics.identity_keys is not None:
            status, about = "200 OK", self._metrics.identity_keys()
        else:
            self._rendering = self._rendering or asyncio.create_task(self._render())
            return "200 OK", CONTENT_TYPE_LATEST, await asyncio.shield(self._rendering)
        return status, "application/json", json.dumps(about).encode() + b"\n"

    async def _render(self) -> bytes:
        """Render in a thread, once in `_APART` seconds at most, however many ask."""
        await asyncio.sleep(self._rendered + _APART - time.monotonic())
        self._rendering, self._rendered = None, time.monotonic()
        return await asyncio.to_thread(generate_latest, self._registry)


def registry(metrics: Metrics) -> CollectorRegistry:
    """A registry of these numbers alone."""
    made = CollectorRegistry()
    made.register(_Scrape(metrics))
    return made


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
