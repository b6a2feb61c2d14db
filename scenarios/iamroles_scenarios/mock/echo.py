"""Echo backends: several in one process, each on its own port, each telling who it is and what it received.

    python -m iamroles_scenarios.mock.echo --listen 127.0.0.1:0 --backend orders-ro --backend orders-rw=9002

prints one ready line, `{"ready": true, "backends": {"orders-ro": "127.0.0.1:40001", ...}}`.

Every request on any path is answered 200 with
`{"backend", "method", "path", "headers": [[name, value], ...], "client", "body"}`: path is the target as
received, headers keep order, spelling and repetition, body is its length in bytes. Also:

- `Upgrade: websocket`: a WebSocket that echoes (RFC 6455); ping, close and fragments are honoured;
- `Accept: text/event-stream`: server-sent events, the first one the answer above, then one each 50 ms;
- the query `after=300`: the answer comes 300 ms later;
- the query `endless=1`: a body of a terabyte, 4 KiB each 50 ms; `chunked=1`: without a length; `quiet=1`: no
  more than one piece;
- `/_control/counters`: `{"backend", "requests"}`, itself not counted.

Load tests run through this, so the parser is written by hand: it takes what HAProxy sends (HTTP/1.1,
keep-alive, pipelining, Content-Length or chunked bodies) and refuses the rest with 400 and a close.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import re
from collections.abc import Callable
from typing import Any, cast

from iamroles_scenarios.base import process
from iamroles_scenarios.mock import websocket

_MAX_HEAD = 64 * 1024
_EVENT_INTERVAL = 0.05
_PIECE = b"." * 4096
_AFTER = re.compile(r"[?&]after=([0-9]{1,5})(?:&|$)")


class Backend:
    """One named backend and its count."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.connections: set[EchoProtocol] = set()


class EchoProtocol(asyncio.Protocol):
    """One connection: bytes in, answers out, in order."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._buffer = b""
        self._body: _Body | None = None
        self._socket: websocket.Echo | None = None
        self._events: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._client = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the peer, if it is still there: a health check may be gone by now."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        self._client = process.joined(*(transport.get_extra_info("peername") or ("", 0))[:2])
        self._backend.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Stop the event stream, if any."""
        self._backend.connections.discard(self)
        for timer in (self._events, self._late):
            if timer is not None:
                timer.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Answer every complete request in the buffer with one write."""
        if self._socket is not None:
            self._frames(data)
            return
        if self._events is not None:
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self._late is not None:
            return
        out: list[bytes] = []
        try:
            while self._buffer and self._step(out):
                pass
        except _BadRequest as fault:
            out.append(_plain(b"400 Bad Request", str(fault).encode()))
            self._transport.write(b"".join(out))
            self._transport.close()
            return
        if out:
            self._transport.write(b"".join(out))

    def _step(self, out: list[bytes]) -> bool:
        """Take one head or body from the buffer; whether there may be more."""
        if self._body is not None:
            self._buffer = self._body.feed(self._buffer)
            if not self._body.complete:
                return False
            body, self._body = self._body, None
            return self._answer(body.head, body.length, out)
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise _BadRequest("head too large")
            return False
        head = _Head(self._buffer[:end].decode("latin-1"))
        self._buffer = self._buffer[end + 4 :]
        if head.chunked or head.length:
            if head.fields.get("expect", "").lower() == "100-continue":
                out.append(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._body = _Body(head)
            return True
        return self._answer(head, 0, out)

    def _answer(self, head: _Head, length: int, out: list[bytes]) -> bool:
        name = self._backend.name
        if head.path.partition("?")[0] == "/_control/counters":
            text = json.dumps({"backend": name, "requests": self._backend.requests})
            out.append(self._response(head, text.encode()))
            return True
        self._backend.requests += 1
        if head.fields.get("upgrade", "").lower() == "websocket":
            return self._upgrade(head, out)
        report = {
            "backend": name, "method": head.method, "path": head.path, "headers": head.headers,
            "client": self._client, "body": length,
        }  # fmt: skip
        text = json.dumps(report)
        if "text/event-stream" in head.fields.get("accept", ""):
            out.append(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
                b"X-Echo-Backend: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % name.encode()
            )
            out.append(_chunk(f"data: {text}\n\n"))
            self._last(out)
            self._tick(1, None if "quiet=1" in head.path else lambda n: _chunk(f"event: tick\ndata: {n}\n\n"))
            return False
        if "endless=1" in head.path:
            chunked = "chunked=1" in head.path
            framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1099511627776"
            piece = _chunk(_PIECE.decode()) if chunked else _PIECE
            out.append(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + piece)
            self._last(out)
            self._tick(1, None if "quiet=1" in head.path else lambda _: piece)
            return False
        if late := _AFTER.search(head.path):
            self._last(out)
            self._late = asyncio.get_running_loop().call_later(
                int(late[1]) / 1000, self._at_last, head, text.encode()
            )
            return False
        out.append(self._response(head, text.encode()))
        if not head.keep_alive:
            self._transport.write(b"".join(out))
            out.clear()
            self._transport.close()
            return False
        return True

    def _response(self, head: _Head, text: bytes) -> bytes:
        connection = b"" if head.keep_alive else b"Connection: close\r\n"
        start = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Echo-Backend: %s\r\n"
            b"%sContent-Length: %d\r\n\r\n"
        ) % (self._backend.name.encode(), connection, len(text))
        return start if head.method == "HEAD" else start + text

    def _at_last(self, head: _Head, text: bytes) -> None:
        """Give a late answer, and go on with what came meanwhile."""
        self._late = None
        self._transport.write(self._response(head, text))
        if head.keep_alive:
            self.data_received(b"")
        else:
            self._transport.close()

    def _last(self, out: list[bytes]) -> None:
        """Write what is ready: what follows comes by itself."""
        self._transport.write(b"".join(out))
        out.clear()

    def _tick(self, number: int, piece: Callable[[int], bytes] | None) -> None:
        loop = asyncio.get_running_loop()
        self._events = loop.call_later(_EVENT_INTERVAL, self._event, number, piece)

    def _event(self, number: int, piece: Callable[[int], bytes] | None) -> None:
        if piece is not None:
            self._transport.write(piece(number))
            self._tick(number + 1, piece)

    def _upgrade(self, head: _Head, out: list[bytes]) -> bool:
        key = head.fields.get("sec-websocket-key", "")
        if head.method != "GET" or not key:
            raise _BadRequest("a WebSocket needs GET and Sec-WebSocket-Key")
        out.append(websocket.accept(key, {"X-Echo-Backend": self._backend.name}))
        self._transport.write(b"".join(out))
        out.clear()
        self._socket, rest, self._buffer = websocket.Echo(), self._buffer, b""
        self._frames(rest)
        return False

    def _frames(self, data: bytes) -> None:
        assert self._socket is not None  # noqa: S101 - narrows the type
        if answer := self._socket.feed(data):
            self._transport.write(answer)
        if self._socket.closed:
            self._transport.close()


class _BadRequest(Exception):  # noqa: N818 - an HTTP status, not a fault of this program
    pass


class _Head:
    """Request line and headers."""

    __slots__ = ("chunked", "fields", "headers", "keep_alive", "length", "method", "path")

    def __init__(self, text: str) -> None:
        start, *lines = text.split("\r\n")
        try:
            self.method, self.path, version = start.split(" ")
            pairs = [line.split(":", 1) for line in lines]
            self.headers = [(name, value.strip(" \t")) for name, value in pairs]
        except ValueError:
            raise _BadRequest("malformed head") from None
        self.fields = {name.lower(): value for name, value in self.headers}
        connection = self.fields.get("connection", "").lower()
        self.keep_alive = version == "HTTP/1.1" and "close" not in connection
        self.chunked = self.fields.get("transfer-encoding", "").lower() == "chunked"
        length = self.fields.get("content-length", "0")
        if not length.isdecimal() or (self.chunked and "content-length" in self.fields):
            raise _BadRequest("ambiguous body length")
        self.length = int(length)


class _Body:
    """Counts a body and lets it go."""

    def __init__(self, head: _Head) -> None:
        self.head = head
        self.length = 0
        self.complete = False
        self._left = head.length
        self._trailers = False

    def feed(self, data: bytes) -> bytes:
        """Consume what belongs to the body; returns the rest."""
        if not self.head.chunked:
            taken = min(self._left, len(data))
            self.length, self._left = self.length + taken, self._left - taken
            self.complete = not self._left
            return data[taken:]
        while data and not self.complete:
            if self._left:
                taken = min(self._left, len(data))
                self._left, data = self._left - taken, data[taken:]
                continue
            line, separator, rest = data.partition(b"\r\n")
            if not separator:
                break
            data = rest
            self._line(line)
        return data

    def _line(self, line: bytes) -> None:
        if self._trailers:
            self.complete = not line
            return
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise _BadRequest("malformed chunk") from None
        self.length += size
        self._trailers = not size
        self._left = size + 2 if size else 0


def _chunk(text: str) -> bytes:
    data = text.encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def _plain(status: bytes, text: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
        status, len(text), text,
    )  # fmt: skip


async def serve(options: process.MockOptions, wanted: list[tuple[str, int]]) -> None:
    """Run the backends until stopped."""
    loop = asyncio.get_running_loop()
    servers, addresses, backends = [], {}, []
    for name, port in wanted:
        backend = Backend(name)
        server = await loop.create_server(
            functools.partial(EchoProtocol, backend), options.host, port, backlog=1024
        )
        servers.append(server)
        backends.append(backend)
        addresses[name] = process.joined(*server.sockets[0].getsockname()[:2])
    await process.until_stopped(options, backends=addresses)
    for server in servers:
        server.close()
    for backend in backends:
        for connection in list(backend.connections):
            connection.abort()


def _backend(text: str) -> tuple[str, int]:
    name, _, port = text.partition("=")
    if not name or not (port or "0").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME=port")
    return name, int(port or 0)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the process."""
    parser = process.parser("iamroles_scenarios.mock.echo", "Echo backends.")
    parser.add_argument(
        "--backend",
        action="append",
        type=_backend,
        required=True,
        metavar="NAME[=PORT]",
        help="once for each",
    )
    parsed: Any = parser.parse_args(arguments)
    process.run(serve(process.options(parsed), parsed.backend))


if __name__ == "__main__":
    main()
