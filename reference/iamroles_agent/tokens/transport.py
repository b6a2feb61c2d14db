"""HTTP to issuers and STS: one bounded GET, off the event loop.

`http.client` blocks, so each call has a thread of its own. In a pool of threads a few dead issuers could
occupy all of them; the single flight of each issuer already bounds their number, and STS has its own limit.
They are daemon threads: a server that never answers must not keep the agent from ending.

One deadline holds for a whole exchange. A socket's own timeout starts again with each byte, so a server that
drips its headers, its TLS handshake or its body would never reach it. So a watch knows the socket of each
exchange and shuts it down at the deadline; the waiting thread then fails. A resolver that hangs has no
socket: its thread is abandoned, and the next flight begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

_T = TypeVar("_T")
_CHUNK = 65536
_IDLE = 64
"""Connections that are kept for the next exchange."""


class TransportError(Exception):
    """The answer is missing or unusable: refused, timed out, cut, too large, not permitted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read whole."""

    status: int
    content_type: str
    """Lower-case, without parameters."""
    body: bytes


def check_url(url: str, *, insecure_http: bool) -> str:
    """Return the URL, if the agent may call it (JWKS-DISCOVERY-002): https, or http if the policy permits it.

    Raises:
        TransportError: another scheme, credentials inside, no host.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise TransportError("not a URL") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and insecure_http):
        raise TransportError(
            f"{parts.scheme or 'no scheme'}: only https is called, unless insecure_http is set"
        )
    if not host or parts.username is not None or parts.password is not None:
        raise TransportError("a URL without a host, or with credentials in it")
    return url


class _Exchange:
    """One request and its answer, with the socket that they travel on."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.over = False
        """True if the deadline came first."""
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None

    def travels_on(self, sock: socket.socket) -> None:
        """Note the socket, by a copy of its descriptor, because TLS takes over the original."""
        with self._lock:
            self._forget()
            self._sock = socket.socket(fileno=os.dup(sock.fileno()))
            if self.over:
                self._cut()

    def end(self) -> None:
        """Forget the socket: the exchange is over."""
        with self._lock:
            self._forget()

    def cut(self) -> None:
        with self._lock:
            self.over = True
            self._cut()

    def _cut(self) -> None:
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _forget(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class _Watch:
    """Cuts exchanges at their deadline, in a thread that lives while there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: set[_Exchange] = set()
        self._watching = False

    def begin(self, deadline: float) -> _Exchange:
        exchange = _Exchange(deadline)
        with self._changed:
            self._open.add(exchange)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._run, name="iamroles-deadlines", daemon=True).start()
            self._changed.notify()
        return exchange

    def end(self, exchange: _Exchange) -> None:
        with self._changed:
            self._open.discard(exchange)
        exchange.end()

    def _run(self) -> None:
        with self._changed:
            while self._open:
                now = time.monotonic()
                for exchange in [exchange for exchange in self._open if exchange.deadline <= now]:
                    self._open.discard(exchange)
                    exchange.cut()
                soonest = min((exchange.deadline for exchange in self._open), default=now)
                self._changed.wait(max(soonest - now, 0.001))
            self._watching = False


class _Connection(http.client.HTTPConnection):
    """A connection that reports the socket of its exchange."""

    sock: socket.socket | None
    exchange: _Exchange

    def connect(self) -> None:
        try:
            super().connect()
        except TimeoutError:
            raise
        except OSError:
            raise TransportError("cannot connect") from None
        assert self.sock is not None  # noqa: S101 - just connected
        self.exchange.travels_on(self.sock)


class _TlsConnection(http.client.HTTPSConnection, _Connection):
    """A TLS connection; the handshake belongs to the exchange."""


def _authorities() -> ssl.SSLContext:
    """Trust the system's authorities (or SSL_CERT_FILE, SSL_CERT_DIR); read them again after a change."""
    paths = ssl.get_default_verify_paths()
    changed = []
    for path in filter(None, (paths.cafile, paths.capath)):
        with contextlib.suppress(FileNotFoundError):
            changed.append(Path(path).stat().st_mtime_ns)
    return _trusting(*changed)


@functools.lru_cache(1)
def _trusting(*_changed: int) -> ssl.SSLContext:
    return ssl.create_default_context()


class Transport:
    """GET on kept connections, without proxies, redirects and retries."""

    def __init__(self) -> None:
        self._idle: list[tuple[str, _Connection]] = []
        """By scheme, host and port; the longest idle first."""
        self._lock = threading.Lock()
        self._watch = _Watch()

    def get(
        self, url: str, *, timeout: float, max_bytes: int, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """GET a URL that `check_url` passed; block for at most `timeout` seconds, unless a resolver hangs.

        A body longer than `max_bytes` is an error, and is not read.

        Raises:
            TransportError: no complete answer.
        """
        exchange = self._watch.begin(time.monotonic() + timeout)
        try:
            answer = self._exchange(exchange, url, timeout, max_bytes, headers)
        except TransportError:
            if not exchange.over:
                raise
        finally:
            self._watch.end(exchange)
        if exchange.over:  # a cut answer can look like a short whole answer
            raise TransportError("the answer took too long")
        return answer

    def _exchange(
        self, exchange: _Exchange, url: str, timeout: float, max_bytes: int, headers: Mapping[str, str] | None
    ) -> Answer:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = self._kept(origin)
        if connection is None:
            host, port = parts.hostname or "", parts.port
            connection = (
                _TlsConnection(host, port or 443, context=_authorities())
                if parts.scheme == "https"
                else _Connection(host, port or 80)
            )
        connection.exchange, connection.timeout = exchange, timeout
        finished = False
        try:
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
                exchange.travels_on(connection.sock)
            connection.request("GET", target, headers={"User-Agent": "iamroles-agent", **(headers or {})})
            with connection.getresponse() as response:
                body = self._read(response, max_bytes)
            finished = connection.sock is not None
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise TransportError(_cause(error)) from None
        finally:
            if finished:
                self._keep(origin, connection)
            else:
                connection.close()
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return Answer(response.status, kind, body)

    @staticmethod
    def _read(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > max_bytes:
                raise TransportError(f"an answer above {max_bytes} bytes")
        if response.length:  # `read1` does not report an early end
            raise http.client.IncompleteRead(bytes(body), response.length)
        return bytes(body)

    def _kept(self, origin: str) -> _Connection | None:
        """Return the last used connection to an origin that is still open."""
        with self._lock:
            for at in reversed(range(len(self._idle))):
                if self._idle[at][0] == origin:
                    _, connection = self._idle.pop(at)
                    if not _readable(connection):
                        return connection
                    connection.close()
        return None

    def _keep(self, origin: str, connection: _Connection) -> None:
        with self._lock:
            self._idle.append((origin, connection))
            if len(self._idle) > _IDLE:
                self._idle.pop(0)[1].close()

    def close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop()[1].close()


def _readable(connection: _Connection) -> bool:
    """Return whether an idle connection is readable: the server closed it, or sent something unasked."""
    assert connection.sock is not None  # noqa: S101 - it is kept open
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _cause(error: Exception) -> str:
    """Describe an error without the URL, which may hold a credential."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return type(error).__name__


async def in_thread(work: Callable[[], _T], patience: float | None = None) -> _T:
    """Run blocking work in a daemon thread and await its result.

    Raises:
        TransportError: the work took longer than `patience` seconds; its thread is abandoned.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def deliver(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # a result unless there was an error

    def run() -> None:
        result: _T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - delivered to the awaiting task
            failure = error
        try:
            loop.call_soon_threadsafe(deliver, result, failure)
        except RuntimeError:
            return  # the loop ended first: nothing awaits

    threading.Thread(target=run, name="iamroles-http", daemon=True).start()
    try:
        async with asyncio.timeout(patience):
            return await future
    except TimeoutError:
        raise TransportError("it did not end in time: its thread is abandoned") from None
