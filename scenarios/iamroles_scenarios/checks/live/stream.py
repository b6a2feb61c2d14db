"""A client that keeps a stream open, and notes when each piece came."""

from __future__ import annotations

import base64
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.engine.bench import Bench
from iamroles_scenarios.jose.encoding import part
from iamroles_scenarios.traffic.polling import NANO, SPACE, STAMPS, stamp

Kind = Literal["websocket", "events", "download", "upload", "interim", "reply"]
KINDS: tuple[Kind, ...] = ("websocket", "events", "download", "upload")
"""Those that are long when they begin; `interim` waits, and gets interim responses (1xx) alone; `reply` is a
download in answer to a body that came after its head, and has ended."""
BEAT = 0.02
"""Seconds between two pieces of a busy stream."""
_FINAL = re.compile(rb"^HTTP/1\.1 [2-5]", re.MULTILINE)
_CONNECT = 5.0
_LATE = 15.0
"""Seconds that a reader may be late on a busy host."""


@dataclass(frozen=True, slots=True)
class StreamShape:
    """The kind of a stream, and whether pieces always move on it."""

    kind: Kind
    busy: bool = True
    half: bool = False
    """A WebSocket whose client closes its own side (a FIN) once it is open, while the server's stays open."""

    def __str__(self) -> str:
        return f"{'busy' if self.busy else 'idle'} {'half-closed ' * self.half}{self.kind}"

    def target(self, path: str) -> str:
        """Return the path with the query that says how the answer comes."""
        endless = self.half or self.kind in ("download", "reply")
        quiet = not self.busy and (endless or self.kind == "events")
        words = ["endless=1"] * endless + ["quiet=1"] * quiet + ["interim=1"] * (self.kind == "interim")
        return f"{path}?{'&'.join(words)}" if words else path

    def head(self, path: str, token: str) -> bytes:
        lines = ["Host: gate.example", f"Authorization: Bearer {token}"]
        method = "GET"
        match self.kind:
            case "websocket":
                key = base64.b64encode(os.urandom(16)).decode()
                lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
                lines.append(f"Sec-WebSocket-Key: {key}")
            case "events":
                lines.append("Accept: text/event-stream")
            case "upload":
                method = "POST"
                lines.append("Content-Length: 1099511627776")
            case "reply":
                method = "POST"
                lines.append("Content-Length: 1")
        return "\r\n".join([f"{method} {self.target(path)} HTTP/1.1", *lines, "", ""]).encode()

    def fields(self, path: str, token: str) -> list[tuple[str, str]]:
        """Return the request's fields in HTTP/2; a WebSocket is an extended CONNECT (RFC 8441).

        A download has no length there: if HAProxy 2.6 cuts it, it ends it as if it were complete, which the
        library takes for a fault of the whole connection.
        """
        path = self.target(path) + ("&chunked=1" if self.kind == "download" else "")
        method = {"websocket": "CONNECT", "upload": "POST"}.get(self.kind, "GET")
        found = [(":method", method), (":scheme", "http"), (":path", path)]
        found.append((":authority", "gate.example"))
        if self.kind == "websocket":
            found += [(":protocol", "websocket"), ("sec-websocket-version", "13")]
        if self.kind == "events":
            found.append(("accept", "text/event-stream"))
        return [*found, ("authorization", f"Bearer {token}")]

    @property
    def beat(self) -> bytes:
        """The piece that the client sends again and again; empty: it only listens."""
        if not self.busy or self.half:
            return b""
        if self.kind == "websocket":
            return b"\x81\x82" + struct.pack("!I", 0) + b"hi"
        return {"upload": b"x" * 512, "reply": b"x"}.get(self.kind, b"")


def expiry_of(token: str) -> int:
    """Return the end that a token names, epoch seconds."""
    return int(part(token, 1)["exp"])


class ObservedStream:
    """A stream as its client sees it.

    Args:
        shape: what it streams.
        token: its credential.
    """

    def __init__(self, shape: StreamShape, token: str) -> None:
        self.shape = shape
        self.token = token
        self.status = 0
        self.expires = expiry_of(token)
        """Epoch seconds."""
        self.last = 0.0
        """Epoch seconds of the last byte of the other side."""
        self.stamped = False
        """True if the kernel gave `last`, for a backend where no byte may pass after the end (9.1, 9.3)."""
        self.sent = 0.0
        """Epoch seconds of the last piece that was sent."""
        self.ended = 0.0
        """Epoch seconds of its end; 0: it lives."""
        self.looked = 0.0
        """Epoch seconds up to which it was surely open: all that had come by then has been read."""
        self.over = threading.Event()
        self._answered = threading.Event()

    def __str__(self) -> str:
        return str(self.shape)

    def opened(self, within: float) -> bool:
        """Return whether it is under way: the head of the answer is here; an upload has begun."""
        if self.shape.kind == "upload":
            return not self.over.wait(min(within, 10 * BEAT))
        begun = self._answered.wait(within) and self.status in (101, 103, 200)
        return begun and (self.shape.half or not self.over.is_set())

    def answered(self, within: float) -> int:
        """Return the status, 0 if none comes in time."""
        self._answered.wait(within)
        return self.status

    def lives(self) -> bool:
        return not self.over.is_set()

    def until(self, moment: float) -> bool:
        """Wait for its end up to a moment, epoch seconds; return whether it has ended by then.

        The reader may be late, and sees an end that came in time only after all that came before it.
        """
        self.over.wait(max(0.0, moment - time.time()))
        patience = time.monotonic() + _LATE
        while not self.over.is_set() and self.looked < moment and time.monotonic() < patience:
            self.over.wait(BEAT)
        return self.over.is_set()

    def moves(self, within: float, begin: Callable[[], None] = lambda: None) -> bool:
        """Return whether another piece arrives, or can be sent, within this many seconds of `begin`."""
        mark: Callable[[], float] = (
            (lambda: self.sent) if self.shape.kind == "upload" else (lambda: self.last)
        )
        before = mark()
        begin()
        deadline = time.monotonic() + within
        while time.monotonic() < deadline and self.lives():
            if mark() > before:
                return True
            self.over.wait(BEAT)
        return False

    def end(self) -> None:
        self.ended = self.ended or time.time()
        self.over.set()


class Stream(ObservedStream):
    """One stream on a connection of its own, in HTTP/1.1, read and fed by a thread.

    Args:
        here: whose gate.
        shape: what to stream.
        path: of the request.
        token: the credential.
        preamble: what a load balancer says of the client before it (the PROXY protocol).
    """

    def __init__(self, here: Bench, shape: StreamShape, path: str, token: str, preamble: bytes = b"") -> None:
        super().__init__(shape, token)
        self.stamped = shape.kind not in ("upload", "interim") and not path.startswith("/plain")
        self._sock = self._connected(here)
        self._sock.settimeout(BEAT)
        self._sock.setsockopt(socket.SOL_SOCKET, STAMPS, 1)
        self._sock.sendall(preamble + shape.head(path, token))
        recording.note(shape.head(path, token))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _connected(self, here: Bench) -> socket.socket:
        return socket.create_connection((here.world.proxy.host, here.world.proxy.port), _CONNECT)

    def say(self) -> None:
        """Send one piece on an idle WebSocket."""
        self._sock.sendall(StreamShape("websocket").beat)

    def close(self) -> None:
        self.over.set()
        self._thread.join(_CONNECT)
        self._sock.close()
        recording.note(
            f"{self.shape.kind}: status {self.status}, its token's end {self.expires}, ended {self.ended:.2f}"
        )

    def _read(self) -> tuple[bytes, float]:
        """Return what has come, and when its last byte did: by the kernel's stamp, if there is one."""
        piece, extra, _, _ = self._sock.recvmsg(65536, SPACE)
        if not extra:
            return piece, time.time()
        seconds, nanoseconds = stamp(extra[0][2])
        return piece, seconds + nanoseconds / NANO

    def _run(self) -> None:
        head = unsent = b""
        try:
            while not self.over.is_set():
                began = time.time()
                try:
                    piece, came = self._read()
                except TimeoutError:
                    self.looked, piece = began, None
                if piece == b"":
                    break
                if piece:
                    self.last = self.looked = came
                    if self.shape.kind == "interim" and _FINAL.search(piece):
                        break  # HAProxy 2.6 keeps the connection after the answer
                    if not self._answered.is_set():
                        head += piece
                        if b"\r\n\r\n" in head:
                            self.status = int(head.split(b" ", 2)[1])
                            if self.shape.half:
                                self._sock.shutdown(socket.SHUT_WR)
                            self._answered.set()
                            if self.shape.kind == "upload":
                                break  # the answer ends an upload
                beat = self.shape.beat
                due = {"upload": True, "reply": not self.sent}.get(self.shape.kind, self._answered.is_set())
                if not (unsent := unsent or (beat if due else b"")):
                    continue
                with suppress(TimeoutError):  # the other side takes nothing now
                    unsent = unsent[self._sock.send(unsent) :]
                if not unsent:
                    self.sent = time.time()
                    rest(BEAT)  # an echo that is answered at once would take a whole core
        except OSError:
            pass
        self.end()
