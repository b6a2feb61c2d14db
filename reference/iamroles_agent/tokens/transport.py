"""HTTP to issuers and STS: one bounded GET on kept connections.

The connections belong to the event loop, so a flood of calls costs no threads, and one deadline holds for a
whole exchange: for connecting, the TLS handshake, the head and the body together. A server that drips bytes
never extends it, because the connection is aborted when it comes.

Only the resolver blocks. It runs in a thread of its own for each server: in a pool a few names that hang
could occupy all threads. Calls of one moment share it. It is a daemon thread, abandoned at the deadline, and
cannot keep the agent from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import select
import socket
import ssl
import threading
from asyncio.staggered import staggered_race
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from iamroles_agent.base import files
from iamroles_agent.base.encoding import VISIBLE

_T = TypeVar("_T")
_Resolved = tuple[list[Any], ssl.SSLContext | None]
_IDLE = 64
"""Connections that are kept for the next exchange."""
_KEPT = 30.0
"""Seconds since its opening in which a connection is kept: so a name's new address and a withdrawn authority
count soon, and networks that forget silent connections do no harm."""
_NEXT = 0.25
"""Seconds for a server's address to accept, before its next address is tried too."""
_MAX_HEAD = 65536
"""Bytes of a status line with its headers, and of all lines around chunks with the trailers."""
_MAX_INTERIM, _MAX_CHUNKS = 8, 4096
_FRAMING = (b"transfer-encoding", b"content-length")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")


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


class _Connection(asyncio.Protocol):
    """A connection to a server: what the server sent and nobody has read yet."""

    transport: asyncio.Transport
    asked = True
    """False while it is kept for the next exchange."""
    heard = False
    """True once the server sent something since it was asked."""

    def __init__(self) -> None:
        self._old = False
        self._received = bytearray()
        self._end: Exception | None = None
        self._more: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._ageing = asyncio.get_running_loop().call_later(_KEPT, self._age)

    def _age(self) -> None:
        self._old = True
        if not self.asked:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self._received += data
        self._wake()
        if not self.asked:
            self.transport.abort()

    def eof_received(self) -> None:
        self._end = self._end or TransportError("the answer ended early")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ageing.cancel()
        self._end = exc or self._end
        self.eof_received()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    @property
    def spoilt(self) -> bool:
        """True if nothing may be asked on it: it is old, closed, or the server sent something unasked."""
        ended = self._old or self._end is not None or self.transport.is_closing()
        return ended or bool(self._received)

    @property
    def unread(self) -> bool:
        """True if something came, an answer or an end, that the event loop has not read yet."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    async def more(self) -> None:
        """Wait for more bytes, or for the end.

        Raises:
            Exception: there was an end already.
        """
        if self._end is not None:
            raise self._end
        self._more = asyncio.get_running_loop().create_future()
        await self._more

    async def line(self, end: bytes = b"\r\n") -> bytes:
        """Read up to these bytes, and drop them."""
        seen = 0
        while (at := self._received.find(end, seen)) < 0:
            seen = max(0, len(self._received) - len(end) + 1)
            if seen > _MAX_HEAD:
                raise TransportError(f"a head above {_MAX_HEAD} bytes")
            await self.more()
        found = await self.take(at + len(end))
        return found[:at]

    async def take(self, size: int) -> bytes:
        """Read this many bytes."""
        while len(self._received) < size:
            await self.more()
        found = bytes(self._received[:size])
        del self._received[:size]
        return found

    async def rest(self, most: int) -> bytes:
        """Read to the server's end of the connection, or more than this many bytes."""
        with contextlib.suppress(TransportError):
            while len(self._received) <= most:
                await self.more()
        return bytes(self._received)


def _authorities() -> ssl.SSLContext:
    """Trust the system's authorities (or SSL_CERT_FILE, SSL_CERT_DIR); read them again after a change."""
    paths = ssl.get_default_verify_paths()
    return _trusting(*(files.stamp(Path(path)) for path in (paths.cafile, paths.capath) if path))


@functools.lru_cache(1)
def _trusting(*_seen: files.Stamp | None) -> ssl.SSLContext:
    return ssl.create_default_context()


class Transport:
    """GET on kept connections, without proxies and redirects.

    One retry: on a new connection, if a kept connection ends without a byte (RFC 9112 section 9.3.1).
    """

    def __init__(self) -> None:
        self._idle: list[tuple[str, _Connection]] = []
        """By scheme, host and port; the longest idle first."""
        self._resolving: dict[str, asyncio.Task[_Resolved]] = {}

    async def get(
        self, url: str, *, seconds: float, max_bytes: int, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """GET a URL that `check_url` passed, with one deadline for all of it.

        A body longer than `max_bytes` is an error, and is not read.

        Raises:
            TransportError: no complete answer.
        """
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        fields = {"Host": parts.netloc, "Accept-Encoding": "identity", "User-Agent": "iamroles-agent"}
        fields |= headers or {}
        if not all(map(VISIBLE.fullmatch, fields.values())) or " " in target or not VISIBLE.fullmatch(target):
            raise TransportError("a URL or header that cannot be sent")
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        request = "\r\n".join(lines).encode()
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(parts.scheme, parts.netloc, request, max_bytes)
        except TimeoutError:
            raise TransportError("the answer took too long") from None
        except OSError as error:
            raise TransportError(_cause(error)) from None

    async def _exchange(self, scheme: str, place: str, request: bytes, max_bytes: int) -> Answer:
        origin = f"{scheme}://{place}"
        kept = self._kept(origin)
        if kept is not None:
            try:
                return await self._ask(origin, kept, request, max_bytes)
            except (TransportError, OSError):
                if kept.heard:
                    raise
        return await self._ask(origin, await self._connect(origin), request, max_bytes)

    async def _ask(self, origin: str, connection: _Connection, request: bytes, max_bytes: int) -> Answer:
        connection.asked, connection.heard, finished = True, False, False
        try:
            connection.transport.write(request)
            answer, finished = await _read(connection, max_bytes)
        except BaseException:
            self._drop(origin)  # what was kept may be as dead: one exchange at most waits for that
            raise
        finally:
            if finished and not connection.spoilt:
                connection.asked = False
                self._idle.append((origin, connection))
                if len(self._idle) > _IDLE:
                    self._idle.pop(0)[1].transport.abort()
            else:
                connection.transport.abort()
        return answer

    async def _connect(self, origin: str) -> _Connection:
        """Connect to the address of a server that accepts first; each is tried `_NEXT` after the one before
        it, or when that one has failed (RFC 8305 section 5).

        Raises:
            TransportError: nothing accepts there.
            OSError: the TLS handshake failed.
        """
        parts = urlsplit(origin)
        tls = parts.scheme == "https"
        try:
            addresses, context = await self._resolve(origin, parts.hostname or "", parts.port, tls=tls)
        except (OSError, UnicodeError):  # no such name, or no name at all
            raise TransportError("cannot connect") from None
        while addresses:
            made: list[socket.socket] = []
            tries = [functools.partial(_reach, made, *one) for one in addresses]
            try:
                sock, at, _ = await staggered_race(tries, _NEXT)
            except asyncio.CancelledError:  # a race that is given up keeps what won it
                for lost in made:
                    lost.close()
                raise
            if sock is None or at is None:
                break
            try:
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, sock=sock, ssl=context, server_hostname=parts.hostname if tls else None
                )
            except ssl.SSLError:
                raise
            except OSError:
                addresses = addresses[:at] + addresses[at + 1 :]
                continue
            return connection
        raise TransportError("cannot connect")

    async def _resolve(self, origin: str, host: str, port: int | None, *, tls: bool) -> _Resolved:
        """Find a server's addresses, and the authorities to trust; calls of one moment share a thread."""

        def resolve() -> _Resolved:
            found = socket.getaddrinfo(host, port or (443 if tls else 80), type=socket.SOCK_STREAM)
            return [(family, address) for family, *_, address in found], _authorities() if tls else None

        def ended(one: asyncio.Task[_Resolved]) -> None:
            if self._resolving.get(origin) is one:
                del self._resolving[origin]
            if not one.cancelled():
                one.exception()  # retrieved, also if every call was given up

        task = self._resolving.get(origin)
        if task is None:
            task = self._resolving[origin] = asyncio.get_running_loop().create_task(in_thread(resolve))
            task.add_done_callback(ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._resolving.get(origin) is task:
                del self._resolving[origin]  # it hangs: the next call begins with another thread
            raise

    def _kept(self, origin: str) -> _Connection | None:
        """Return the last used connection to an origin that is still open."""
        for at in reversed(range(len(self._idle))):
            if self._idle[at][0] == origin:
                _, connection = self._idle.pop(at)
                if not connection.spoilt and not connection.unread:
                    return connection
                connection.transport.abort()
        return None

    def _drop(self, origin: str | None = None) -> None:
        """End what is kept of an origin, or of all."""
        for at in reversed(range(len(self._idle))):
            if origin in (None, self._idle[at][0]):
                self._idle.pop(at)[1].transport.abort()

    def close(self) -> None:
        self._drop()


async def _reach(made: list[socket.socket], family: int, address: Any) -> socket.socket:  # noqa: ANN401 - as each family has it
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    made.append(sock)
    return sock


async def _read_head(connection: _Connection) -> tuple[bool, int, dict[bytes, bytes]]:
    """Return whether the answer is of HTTP/1.1, its status and its headers; skip interim answers."""
    for _ in range(_MAX_INTERIM):
        first, _, rest = (await connection.line(b"\r\n\r\n")).partition(b"\r\n")
        started = _STATUS.fullmatch(first)
        if started is None or started[2] == b"101":  # nothing else may be spoken here
            break
        fields: dict[bytes, bytes] = {}
        for line in rest.split(b"\r\n") if rest else ():
            field = _FIELD.fullmatch(line)
            name, value = (field[1].lower(), field[2].strip(b" \t")) if field else (b"", b"")
            if not name or (fields.setdefault(name, value) != value and name in _FRAMING):
                raise TransportError("a malformed header in the answer")
        status = int(started[2])
        if status >= 200:
            return started[1] == b"1", status, fields
    raise TransportError("not an answer of HTTP/1")


async def _read(connection: _Connection, max_bytes: int) -> tuple[Answer, bool]:
    """Read an answer to a GET (RFC 9112 section 6.3).

    Returns:
        The answer, and whether the connection can be asked again.
    """
    modern, status, fields = await _read_head(connection)
    keep = modern and b"close" not in fields.get(b"connection", b"").lower()
    coding, length = map(fields.get, _FRAMING)
    if status in (204, 304):
        body = b""
    elif coding is not None:
        if coding.lower() != b"chunked" or length is not None or not modern:
            raise TransportError("an answer whose length is ambiguous")
        body = await _read_chunks(connection, max_bytes)
    elif length is not None:
        if not length.isdigit() or len(length) > 18:
            raise TransportError("an answer whose length is ambiguous")
        if int(length) > max_bytes:
            raise TransportError(f"an answer above {max_bytes} bytes")
        body = await connection.take(int(length))
    else:
        body, keep = await connection.rest(max_bytes), False
    if len(body) > max_bytes:
        raise TransportError(f"an answer above {max_bytes} bytes")
    kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    return Answer(status, kind, body), keep


async def _read_chunks(connection: _Connection, max_bytes: int) -> bytes:
    body, around = bytearray(), 0
    for _ in range(_MAX_CHUNKS):
        line = await connection.line()
        around += len(line)
        size = _SIZE.fullmatch(line)
        length = int(size[1], 16) if size else -1
        if length > max_bytes - len(body):
            raise TransportError(f"an answer above {max_bytes} bytes")
        if length > 0:
            body += await connection.take(length)
        last = await connection.line()
        while length == 0 and last and around <= _MAX_HEAD:  # trailers
            around += len(last)
            last = await connection.line()
        if around > _MAX_HEAD:
            raise TransportError(f"a head above {_MAX_HEAD} bytes")
        if length < 0 or last:
            break
        if length == 0:
            return bytes(body)
    raise TransportError("a malformed chunk in the answer")


def _cause(error: Exception) -> str:
    """Describe an error without the URL, which may hold a credential."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return type(error).__name__


async def in_thread(work: Callable[[], _T]) -> _T:
    """Await blocking work in a daemon thread, which is abandoned if the wait is cancelled."""
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
        with contextlib.suppress(RuntimeError):  # the loop ended first: nothing awaits
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=run, name="iamroles-resolver", daemon=True).start()
    return await future
