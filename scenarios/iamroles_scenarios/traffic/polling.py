"""The operating system's part of the loop: epoll, bare sockets, the kernel's receive stamps.

`_socket.socket` and the epoll class are the C types themselves: locust patches the modules `socket` and
`select` for gevent, and a patched socket would hand control to other greenlets while something is measured.
"""

from __future__ import annotations

import _socket
import select
import socket
import struct
import sys
import time
from typing import Any

NANO = 1_000_000_000
now = time.time_ns
"""Nanoseconds of CLOCK_REALTIME, the clock of the kernel's stamps."""
Socket = _socket.socket

STAMPS = 35
"""SOSTAMPS and SCMSTAMPS (asm-generic/socket.h); Python has no name for them."""
SPACE = 64
"""Room for ancillary data: one stamp takes 32 bytes."""
stamp = struct.Struct("@ll").unpack
"""A `struct timespec`: seconds and nanoseconds."""


def _original(name: str) -> Any:  # noqa: ANN401 - a class or a function
    """A member of `select`, also where gevent has replaced or removed it."""
    if "gevent.monkey" in sys.modules:
        from gevent import monkey  # noqa: PLC0415 - not a dependency of this package

        return monkey.get_original("select", name)  # type: ignore[no-untyped-call]
    return getattr(select, name)


_FD_SETSIZE = 1024


class Poller:
    """An epoll whose waits end to the microsecond.

    `epoll.poll` counts in milliseconds. `select` on the epoll's own descriptor does not; the kernel lets a
    process's timers run up to 50 microseconds late. Without the sleep, a generator that spins until the next
    request is due takes a core from what it measures.
    """

    MARGIN = 70_000
    """Nanoseconds that a sleep ends before the time."""

    def __init__(self) -> None:
        self._epoll: select.epoll = _original("epoll")()
        self._select = _original("select")
        self._fine = self._epoll.fileno() < _FD_SETSIZE
        self.register, self.modify, self.unregister, self.close = (
            self._epoll.register,
            self._epoll.modify,
            self._epoll.unregister,
            self._epoll.close,
        )

    def poll(self, wait: int) -> list[tuple[int, int]]:
        """Return descriptors and their events; if there was no event yet, wait, but end `MARGIN` earlier."""
        wait -= self.MARGIN
        if wait > self.MARGIN and self._fine:
            self._select((self._epoll,), (), (), wait / NANO)
        elif wait > 1_500_000:
            return self._epoll.poll((wait - 1_000_000) / NANO)
        return self._epoll.poll(0)


def unconnected(family: int) -> Socket:
    """A non-blocking stream socket whose received data carries the kernel's stamps."""
    made = Socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if family != socket.AF_UNIX:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, STAMPS, 1)
    return made


def abort(connection: Socket) -> None:
    """Close with a reset, so that thousands of connections a second leave no ports in TIME_WAIT."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Steps:
    """Watches for steps of the clock: what CLOCK_REALTIME does that CLOCK_MONOTONIC does not."""

    _SLACK = 1_000_000
    """Nanoseconds; slewing (adjtime) moves the clock by half a millisecond a second at most."""

    def __init__(self) -> None:
        self._offset, self._at = self._read()
        self.found: list[int] = []
        """Steps so far, in nanoseconds, forward positive."""

    @staticmethod
    def _read() -> tuple[int, int]:
        """Offset of the two clocks; of several readings the one least interrupted."""
        best: Any = None
        for _ in range(3):
            before = time.monotonic_ns()
            real = time.time_ns()
            after = time.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, real - (before + after) // 2, after)
        return best[1], best[2]

    def look(self) -> int:
        """Nanoseconds of the step since the last look; 0: none."""
        offset, at = self._read()
        moved, passed = offset - self._offset, at - self._at
        self._offset, self._at = offset, at
        if abs(moved) <= self._SLACK + passed // 1000:
            return 0
        self.found.append(moved)
        return moved
