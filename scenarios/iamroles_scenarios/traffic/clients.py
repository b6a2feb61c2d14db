"""One connection of the loop: opening, TLS, sending, and what happens when it breaks.

A client connects when it is first asked something, and again after it was lost: so a request that has to wait
for a connection pays for it, and a server that refuses connections makes faults, not silence. TLS runs in
memory between the socket and the parser; the kernel's stamps stay those of the socket.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from dataclasses import dataclass
from typing import Protocol

from iamroles_scenarios.traffic.polling import NANO, SPACE, Socket, abort, now, stamp, unconnected
from iamroles_scenarios.traffic.questions import Asked, Question

READ = 65_536
"""Bytes that are read at once."""
_IN, _OUT = select.POLLIN, select.POLLOUT
"""The same bits as EPOLLIN and EPOLLOUT, which gevent hides."""
_UNDER_WAY = (errno.EINPROGRESS, errno.EAGAIN)


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a client.

    Args:
        family: `socket.AF_INET`, `AF_INET6` or `AF_UNIX`.
        place: what `socket.connect` takes.
        name: of the server, for SNI.
    """

    family: int
    place: tuple[str, int] | str
    name: str = ""

    @classmethod
    def of(cls, text: str) -> Address:
        """From `host:port`, `[::1]:port` or `unix:/path`; names are resolved once, here.

        Raises:
            OSError: no such host.
            ValueError: not an address.
        """
        if text.startswith("unix:"):
            return cls(socket.AF_UNIX, text.removeprefix("unix:"))
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal():
            raise ValueError(f"{text!r} is not an address: write host:port or unix:/path")
        host = host.strip("[]") or "127.0.0.1"
        family, _, _, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        return cls(family, (str(place[0]), int(place[1])), host)


class Owner(Protocol):
    """The part of the loop that a client needs."""

    def watch(self, client: Client, number: int, mask: int) -> None:
        """Wait for a new socket."""

    def modify(self, client: Client, number: int, mask: int) -> None:
        """Wait for something else."""

    def forget(self, number: int) -> None:
        """A socket is about to be closed."""

    def idle_again(self, client: Client) -> None:
        """A client has opened that nothing waits for."""

    def answered(self, client: Client, asked: Asked, status: int, text: bytes) -> None:
        """Judge and record an answer, and let the client go on."""

    def right(self, client: Client, asked: Asked, reported: int = -1) -> None:
        """Record an answer that needs no judging, and let the client go on."""

    def broke(self, client: Client, asked: Asked | None, why: str) -> None:
        """A client lost its connection; what was asked had no answer."""

    def stray(self, why: str) -> None:
        """A server sent what nobody had asked for."""


class Client:
    """A connection that the loop drives. Subclasses give the protocol.

    Args:
        loop: whose client this is.
        address: where to.
        tls: speak TLS by this context; another `context` is that of connections to come.
    """

    slots = 1
    """Questions that may be under way at once."""

    def __init__(self, loop: Owner, address: Address, *, tls: ssl.SSLContext | None = None) -> None:
        self.loop = loop
        self._address = address
        self.context = tls
        self._tls: ssl.SSLObject | None = None
        self._inward, self._outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._socket: Socket | None = None
        self._waiting = b""
        """Bytes that the socket has not taken yet."""
        self.ready = False
        self.free_at = 0
        """When it last became free, nanoseconds of CLOCK_REALTIME."""

    # --- what protocols give -------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A question is under way."""
        raise NotImplementedError

    def held(self) -> tuple[Question, int, bytes] | None:
        """The stream without an end that it holds, if the protocol has streams."""
        return None

    def ask(self, due: int, question: Question) -> None:
        """Send a question that was due then (0: is due now)."""
        raise NotImplementedError

    def opened(self) -> None:
        """The connection stands: say hello, or send what waits."""
        raise NotImplementedError

    def feed(self, data: bytes, received: int, noticed: int) -> None:
        raise NotImplementedError

    def failed(self, why: str) -> None:
        """The connection is gone; what was under way is a fault."""
        raise NotImplementedError

    def overdue(self, before: int) -> bool:
        """Something under way was sent before this moment."""
        raise NotImplementedError

    # --- opening -------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begin to connect; `opened` or `failed` follows."""
        self.close()
        try:
            self._socket = made = unconnected(self._address.family)
            self.loop.watch(self, made.fileno(), _OUT | _IN)
            error = made.connect_ex(self._address.place)
        except OSError as fault:
            self.lost(_said(fault))
            return
        if error and error not in _UNDER_WAY:
            self.lost(os.strerror(error))

    def _connected(self) -> None:
        assert self._socket is not None  # noqa: S101 - it has just become writable
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.lost(os.strerror(error))
            return
        self.loop.modify(self, self._socket.fileno(), _IN)
        if self.context is None:
            self.ready = True
            self.opened()
            return
        self._inward, self._outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self.context.wrap_bio(
            self._inward, self._outward, server_hostname=self._address.name or None
        )
        self._shake()

    def _shake(self) -> None:
        assert self._tls is not None  # noqa: S101 - TLS was asked for
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._push(self._outward.read())
        except ssl.SSLError as fault:
            self.lost(f"TLS: {_said(fault)}")
        else:
            self._push(self._outward.read())
            self.ready = True
            self.opened()

    # --- moving bytes --------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send, now or as soon as the socket takes it."""
        if self._tls is not None:
            self._tls.write(data)
            data = self._outward.read()
        self._push(data)

    def _push(self, data: bytes) -> None:
        if self._socket is None or not data:
            return
        if self._waiting:
            self._waiting += data
            return
        try:
            taken = self._socket.send(data)
        except BlockingIOError:
            taken = 0
        except OSError as fault:
            self.lost(_said(fault))
            return
        if taken < len(data):
            self._waiting = data[taken:]
            self.loop.modify(self, self._socket.fileno(), _IN | _OUT)

    def event(self, mask: int) -> None:
        """The socket is readable, writable, or broken."""
        if not self.ready and self._tls is None:
            if mask & ~_IN:  # else it is of a socket that had this number before
                self._connected()
            return
        if mask & _OUT and self._waiting and self._socket is not None:
            waiting, self._waiting = self._waiting, b""
            self.loop.modify(self, self._socket.fileno(), _IN)
            self._push(waiting)
        if mask & ~_OUT:
            self._read()

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            data, ancillary, _, _ = self._socket.recvmsg(READ, SPACE)
        except BlockingIOError:
            return
        except OSError as fault:
            self.lost(_said(fault))
            return
        noticed = now()
        if ancillary:
            seconds, nanoseconds = stamp(ancillary[0][2])
            received = seconds * NANO + nanoseconds
        else:
            received = noticed
        if not data:
            self.lost("the server closed the connection")
        elif self._tls is None:
            self.feed(data, received, noticed)
        else:
            self._decrypt(data, received, noticed)

    def _decrypt(self, data: bytes, received: int, noticed: int) -> None:
        tls = self._tls
        assert tls is not None  # noqa: S101 - the caller looked
        self._inward.write(data)
        if not self.ready:
            self._shake()
        while self.ready and self._tls is tls:
            try:
                plain = tls.read(READ)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as fault:
                self.lost(f"TLS: {_said(fault)}")
                return
            if not plain:
                self.lost("the server closed the connection")
                return
            self.feed(plain, received, noticed)

    # --- ending --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the socket, if there is one."""
        if self._socket is not None:
            self.loop.forget(self._socket.fileno())
            if self._address.family == socket.AF_UNIX:
                self._socket.close()
            else:
                abort(self._socket)
        self._socket = self._tls = None
        self._waiting = b""
        self.ready = False

    def lost(self, why: str) -> None:
        self.close()
        self.failed(why)


def _said(fault: OSError) -> str:
    return fault.strerror or str(fault)
