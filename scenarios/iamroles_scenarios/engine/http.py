"""A blunt HTTP/1.1 client that sends exactly the bytes of a scenario, also those of no proper client.

Path tricks and forged headers must arrive as written, so nothing here normalises, quotes or joins. Answers
are read by `http.client`, which is strict enough for a proxy that is not under test.
"""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import HttpFault


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
    """

    def __init__(self, address: tuple[str, int], timeout: float) -> None:
        try:
            self._socket = socket.create_connection(address, timeout=timeout)
        except OSError as error:
            raise HttpFault(f"no connection to HAProxy at {address[0]}:{address[1]}: {error}") from error
        self._timeout = timeout
        self.port: int = self._socket.getsockname()[1]

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
        recording.waited("an HTTP answer", time.monotonic() - began, self._timeout)
        answer = Answer(response.status, response.reason, headers, body, self.port, time.time())
        recording.note(raw, answer)
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


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
