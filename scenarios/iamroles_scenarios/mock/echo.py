"""Echo backends: several in one process, each on its own port, each naming itself and what it received.

    python -m iamroles_scenarios.mock.echo --listen 127.0.0.1:0 --backend orders-ro --backend orders-rw=9002

prints one ready line, `{"ready": true, "backends": {"orders-ro": "127.0.0.1:40001", ...}}`.

Every request on any path is answered 200 with
`{"backend", "method", "path", "headers": [[name, value], ...], "client", "body"}`: path is the target as
received, headers keep order, spelling and repetition, body is its length in bytes. Also:

- `Upgrade: websocket`: a WebSocket that echoes (RFC 6455); ping, close and fragments are honoured; with the
  query `endless=1` it pings each 50 ms, and stays open if the client closes its side; `quiet=1`: no ping;
- `Accept: text/event-stream`: server-sent events, the first one the answer above, then one each 50 ms;
- the query `type=dGV4dC94`: the same, of this media type (base64url);
- the query `after=300`: the answer comes 300 ms later;
- the query `interim=1`: no answer, but interim responses (103), one each 50 ms;
- the query `raw=SFRUUC8`: the answer is these bytes (base64url), and all that comes later is sent back;
- the query `endless=1`: a body of a terabyte, 4 KiB each 50 ms; `chunked=1`: without a length; `quiet=1`: no
  more than one piece;
- `/_control/counters`: `{"backend", "requests", "reached"}`, itself not counted; `reached`, how many of the
  last requests had the same query.

h11 and wsproto read the bytes, because they give a message as it came and take any method and target.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import re
from base64 import urlsafe_b64decode
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import h11
from wsproto.connection import Connection as WebSocket
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import generate_accept_token

from iamroles_scenarios.base import process

_MAX_HEAD = 64 * 1024
_PIECE_INTERVAL = 0.05
_PIECE = b"." * 4096
_PING = b"\x89\0"
_AFTER = re.compile(r"[?&]after=([0-9]{1,5})(?:&|$)")
_RAW = re.compile(r"[?&]raw=([A-Za-z0-9_-]+)(?:&|$)")
_TYPE = re.compile(r"[?&]type=([A-Za-z0-9_-]+)(?:&|$)")


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Backend:
    """One named backend and its count."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.queries: deque[str] = deque(maxlen=1000)
        self.connections: set[EchoProtocol] = set()


class EchoProtocol(asyncio.Protocol):
    """One connection: bytes in, answers out, in order."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._request: h11.Request
        self._body = 0
        self._socket: WebSocketEcho | TunnelEcho | None = None
        self._timer: asyncio.TimerHandle | None = None
        """Runs while a late answer or an endless one is under way."""
        self._transport: asyncio.Transport
        self._client = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the peer, if it is still there: a health check may be gone by now."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is not a subclass
        self._client = process.joined(*(transport.get_extra_info("peername") or ("", 0))[:2])
        self._backend.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._backend.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def eof_received(self) -> bool:
        """Return whether the connection stays open: an endless WebSocket does."""
        return self._socket is not None and self._timer is not None

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Answer every complete request, in order."""
        if self._socket is not None:
            self._echo(data)
            return
        self._http.receive_data(data)
        self._go_on()

    def _go_on(self) -> None:
        try:
            while self._timer is None and self._socket is None and self._step(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as fault:
            text = str(fault).encode()
            self._send(400, [("Content-Type", "text/plain"), ("Connection", "close")], text)
            self._transport.close()

    def _step(self, event: object) -> bool:
        """Handle one event of h11; return whether more may follow."""
        if isinstance(event, h11.Request):
            self._request, self._body = event, 0
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                raise h11.RemoteProtocolError("ambiguous body length")
        elif isinstance(event, h11.Data):
            self._body += len(event.data)
        elif isinstance(event, h11.EndOfMessage):
            self._answer()
        elif event is h11.PAUSED and self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            if self._http.they_are_waiting_for_100_continue:
                self._write(h11.InformationalResponse(status_code=100, headers=[]))
            if self._http.our_state is h11.MUST_CLOSE:
                self._transport.close()
            return False
        return True

    def _answer(self) -> None:
        name, path = self._backend.name, self._request.target.decode("latin-1")
        path_alone, _, query = path.partition("?")
        if path_alone == "/_control/counters":
            reached = self._backend.queries.count(query)
            self._send_json({"backend": name, "requests": self._backend.requests, "reached": reached})
            return
        self._backend.requests += 1
        self._backend.queries.append(query)
        fields = {key.decode(): value.decode("latin-1") for key, value in self._request.headers}
        if raw := _RAW.search(path):
            self._transport.write(_decoded(raw[1]))
            self._socket = TunnelEcho()
            self._echo(self._http.trailing_data[0])
            return
        if fields.get("upgrade", "").lower() == "websocket":
            self._upgrade(fields.get("sec-websocket-key", ""))
            if "endless=1" in path:
                self._tick(1, None if "quiet=1" in path else lambda _number: _PING)
            return
        headers = [
            (key.decode(), value.decode("latin-1")) for key, value in self._request.headers.raw_items()
        ]
        report = {
            "backend": name, "method": self._request.method.decode(), "path": path, "headers": headers,
            "client": self._client, "body": self._body,
        }  # fmt: skip
        quiet = "quiet=1" in path
        spelt = _TYPE.search(path)
        if spelt or "text/event-stream" in fields.get("accept", ""):
            said = _decoded(spelt[1]).decode() if spelt else "text/event-stream"
            kind = [("Content-Type", said), ("Cache-Control", "no-store")]
            self._begin(200, kind)
            self._write(h11.Data(data=f"data: {json.dumps(report)}\n\n".encode()))
            self._tick(1, None if quiet else lambda n: h11.Data(data=f"event: tick\ndata: {n}\n\n".encode()))
        elif "endless=1" in path:
            self._begin(200, [] if "chunked=1" in path else [("Content-Length", "1099511627776")])
            self._write(h11.Data(data=_PIECE))
            self._tick(1, None if quiet else lambda _number: h11.Data(data=_PIECE))
        elif "interim=1" in path:
            self._tick(1, lambda _number: h11.InformationalResponse(status_code=103, headers=[]))
        elif late := _AFTER.search(path):
            self._timer = asyncio.get_running_loop().call_later(int(late[1]) / 1000, self._send_late, report)
        else:
            self._send_json(report)

    def _send_json(self, document: object) -> None:
        self._send(200, [("Content-Type", "application/json")], json.dumps(document).encode())

    def _send_late(self, document: object) -> None:
        self._timer = None
        self._send_json(document)
        self._go_on()

    def _send(self, status: int, headers: list[tuple[str, str]], text: bytes) -> None:
        length = ("Content-Length", str(len(text)))
        self._begin(status, [*headers, length])
        if getattr(self, "_request", None) is None or self._request.method != b"HEAD":
            self._write(h11.Data(data=text))
        self._write(h11.EndOfMessage())

    def _begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        named = [("X-Echo-Backend", self._backend.name), *headers]
        self._write(h11.Response(status_code=status, reason=b"OK" if status == 200 else b"", headers=named))

    def _write(self, event: h11.Event | bytes) -> None:
        if data := event if isinstance(event, bytes) else self._http.send(event):
            self._transport.write(data)

    def _tick(self, number: int, piece: Callable[[int], h11.Event | bytes] | None) -> None:
        self._timer = asyncio.get_running_loop().call_later(_PIECE_INTERVAL, self._next_piece, number, piece)

    def _next_piece(self, number: int, piece: Callable[[int], h11.Event | bytes] | None) -> None:
        if piece is not None:
            self._write(piece(number))
            self._tick(number + 1, piece)

    def _upgrade(self, key: str) -> None:
        if self._request.method != b"GET" or not key:
            raise h11.RemoteProtocolError("a WebSocket needs GET and Sec-WebSocket-Key")
        token = generate_accept_token(key.encode()).decode()
        headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", token)]
        named = [*headers, ("X-Echo-Backend", self._backend.name)]
        self._write(h11.InformationalResponse(status_code=101, reason=b"Switching Protocols", headers=named))
        self._socket = WebSocketEcho()
        self._echo(self._http.trailing_data[0])

    def _echo(self, data: bytes) -> None:
        assert self._socket is not None  # noqa: S101 - narrows the type
        if answer := self._socket.feed(data):
            self._transport.write(answer)
        if self._socket.closed:
            self._transport.close()


class TunnelEcho:
    """The server's side of a tunnel that sends back what comes, byte for byte."""

    closed = False

    def feed(self, data: bytes) -> bytes:
        return data


class WebSocketEcho:
    """The server's side of a WebSocket that sends each message back, without I/O."""

    def __init__(self) -> None:
        self.closed = False
        self._socket = WebSocket(ConnectionType.SERVER)
        self._message: list[Any] = []

    def feed(self, data: bytes) -> bytes:
        """Return the bytes to send in answer; `closed` says whether they are the last."""
        if self.closed:
            return b""
        self._socket.receive_data(data)
        out = b""
        for event in self._socket.events():
            if isinstance(event, TextMessage | BytesMessage):
                self._message.append(event.data)
                if event.message_finished:
                    whole: Any = event.data[:0].join(self._message)
                    self._message.clear()
                    out += self._socket.send(type(event)(data=whole))
            elif isinstance(event, Ping):
                out += self._socket.send(event.response())
            elif isinstance(event, CloseConnection):  # of the client, or for a frame that breaks RFC 6455
                self.closed = True
                out += self._socket.send(CloseConnection(code=event.code))
        return out


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
    if not name or not (port or "0").isdecimal() or int(port or 0) > 65535:
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
        help="repeat for each",
    )
    parsed: Any = parser.parse_args(arguments)
    if len(dict(parsed.backend)) < len(parsed.backend):
        parser.error("two backends have one name: rename one")
    process.run(serve(process.options(parsed), parsed.backend))


if __name__ == "__main__":
    main()
