"""A blunt HTTP/1.1 client that sends exactly the bytes of a scenario, also those of no proper client.

Path tricks and forged headers must arrive as written, so nothing here normalises, quotes or joins. Answers
are read by `http.client`, which is strict enough for a proxy that is not under test.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import HttpFault
from iamroles_scenarios.traffic.tls import ClientTls


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    """Names lower-case, in order."""
    body: bytes
    port: int
    """The client's own port on this connection."""
    at: float
    """Epoch seconds when the last byte was read."""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def __str__(self) -> str:
        head = [f"HTTP {self.status} {self.reason}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\n".join([*head, "", self.body[:600].decode("utf-8", "replace")])


class _Lines(io.BufferedReader):
    """Raises for a line that the connection's end has cut: `http.client` takes `HTTP/1.1 200 O`."""

    _some = False

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        if (line or self._some) and not line.endswith(b"\n"):
            raise HTTPException("the connection ended within the head of the answer")
        self._some = True
        return line


class _Whole:
    """A socket as `HTTPResponse` wants it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> _Lines:
        return _Lines(self._sock.makefile("rb", buffering=0))


class HttpConnection:
    """One client connection, kept alive as long as the proxy keeps it.

    Args:
        address: host and port.
        timeout: seconds for connecting and for each read.
        tls: speak TLS; None: plain HTTP.
    """

    def __init__(self, address: tuple[str, int], timeout: float, tls: ClientTls | None = None) -> None:
        try:
            self._socket = _opened(address, timeout, tls)
        except OSError as error:
            raise HttpFault(f"no connection to HAProxy at {address[0]}:{address[1]}: {error}") from error
        self._timeout, self._tls = timeout, tls
        self.port: int = self._socket.getsockname()[1]

    def begin(self, raw: bytes) -> None:
        """Send the first bytes of a request; `exchange` sends the rest.

        Raises:
            HttpFault: the connection is gone.
        """
        try:
            self._socket.sendall(raw)
        except OSError as error:
            raise HttpFault(f"HAProxy ended a connection: {error!r}") from error

    def exchange(self, method: str, raw: bytes) -> Answer:
        """Send a whole request and read its response.

        Args:
            method: the request's method (a response to HEAD has no body).
            raw: the request, byte for byte.

        Raises:
            HttpFault: no well-formed answer before the deadline.
        """
        began = time.monotonic()
        try:
            self._socket.sendall(raw)
            response = HTTPResponse(_Whole(self._socket), method=method)  # type: ignore[arg-type]
            response.begin()
            body = response.read()
        except (OSError, HTTPException) as error:
            what = f"nothing for {self._timeout:g} s" if isinstance(error, TimeoutError) else repr(error)
            raise HttpFault(f"HAProxy gave no HTTP answer: {what}") from error
        headers = tuple((name.lower(), value) for name, value in response.getheaders())
        _keep(self._socket, self._tls)
        recording.waited("an HTTP answer", time.monotonic() - began, self._timeout)
        answer = Answer(response.status, response.reason, headers, body, self.port, time.time())
        recording.note(raw, answer)
        return answer

    @property
    def resumed(self) -> bool:
        """Return whether this connection resumed the TLS session of another."""
        return isinstance(self._socket, ssl.SSLSocket) and bool(self._socket.session_reused)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


def _opened(address: tuple[str, int], timeout: float, tls: ClientTls | None) -> socket.socket:
    plain = socket.create_connection(address, timeout=timeout)
    try:
        return plain if tls is None else tls.wrap(plain)
    except OSError:
        plain.close()
        raise


def _keep(line: socket.socket, tls: ClientTls | None) -> None:
    if tls is not None and isinstance(line, ssl.SSLSocket):
        tls.keep(line)


def exchange_h2(
    address: tuple[str, int],
    timeout: float,
    fields: Sequence[tuple[str, str]],
    body: bytes,
    tls: ClientTls | None = None,
) -> Answer:
    """Send one request over HTTP/2 with prior knowledge, and read its response.

    Args:
        address: host and port.
        timeout: seconds for connecting and for each read.
        fields: of the request, pseudo-headers first.
        body: as much of it as the peer's first window takes is sent before an answer is read.
        tls: speak TLS; its `alpn` should offer h2.

    Raises:
        HttpFault: no well-formed answer before the deadline.
    """
    line = H2Connection(H2Configuration(client_side=True))
    line.initiate_connection()
    line.send_headers(1, fields, end_stream=not body)
    headers, found, ended = list[tuple[str, str]](), b"", False
    try:
        with _opened(address, timeout, tls) as sock:
            while not ended:
                room = min(line.local_flow_control_window(1), line.max_outbound_frame_size, len(body))
                while body and room:
                    piece, body = body[:room], body[room:]
                    line.send_data(1, piece, end_stream=not body)
                    room = min(line.local_flow_control_window(1), line.max_outbound_frame_size, len(body))
                sock.sendall(line.data_to_send())
                if not (data := sock.recv(65536)):
                    raise HttpFault("HAProxy closed an HTTP/2 connection")
                for event in line.receive_data(data):
                    match event:
                        case ResponseReceived(headers=said):
                            headers = [(name.decode(), value.decode("latin-1")) for name, value in said or []]
                        case DataReceived(data=piece):
                            found += piece or b""
                        case StreamEnded():
                            ended = True
                        case StreamReset() | ConnectionTerminated():
                            raise HttpFault(f"HAProxy ended an HTTP/2 stream: {event}")
            port: int = sock.getsockname()[1]
            _keep(sock, tls)
    except (OSError, ProtocolError) as error:
        raise HttpFault(f"HAProxy gave no answer over HTTP/2: {error!r}") from error
    status, plain = int(dict(headers)[":status"]), [pair for pair in headers if pair[0] != ":status"]
    answer = Answer(status, "", tuple(plain), found, port, time.time())
    recording.note("\r\n".join(f"{name}: {value}" for name, value in fields), answer)
    return answer


def request_bytes(method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """Return a request without a body; characters up to U+00FF stand for bytes."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def redacted(text: str, secrets: Sequence[str]) -> str:
    """Return a text without the tokens in it: reports are pasted into tickets, and a token is a key."""
    for secret in secrets:
        if len(secret) > 24:
            text = text.replace(secret, f"<{len(secret)} characters>")
    return text
