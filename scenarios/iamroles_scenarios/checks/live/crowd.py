"""A crowd: hundreds of idle event streams through one gate, of which one change must end exactly some.

The gate learns each client's address by the PROXY protocol, so a row of a table chooses it. The thread of
the check reads them all, and only while it waits. What ended meanwhile waits in the kernel, so a late judge
blames nobody.
"""

from __future__ import annotations

import math
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import cycle
from typing import Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.checks.live.fixture import AFTER, OPEN, LiveBench, live_bench
from iamroles_scenarios.engine.bench import EARLY
from iamroles_scenarios.engine.target import Target

V2 = b"\r\n\r\n\0\r\nQUIT\n"
_CONNECT, _SHOWN = 5.0, 8
_BEGIN = 4 * OPEN
"""Seconds, times the scale, in which all streams must begin."""
_AT_ONCE = 4
"""Questions that may wait together: HAProxy from 3.1 on can hang at 16 kB of answers (docs/haproxy.md)."""
_PORTS = cycle(range(20_000, 1 << 16))


def preamble(client: str, port: int) -> bytes:
    """Return a header of the PROXY protocol, version 2."""
    address = ip_address(client)
    body = 2 * address.packed + struct.pack("!HH", port, 443)
    return V2 + struct.pack("!BBH", 0x21, 0x11 if address.version == 4 else 0x21, len(body)) + body


@dataclass(slots=True, eq=False)
class Member:
    """One stream of a crowd."""

    what: str
    """Names its row in a failure."""
    ends: bool
    """True if the change to come must end it."""
    sock: socket.socket
    head: bytes = b""
    over: float = 0.0
    """Epoch seconds at which its end was read; 0: it lives."""

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1]) if b"\r\n\r\n" in self.head else 0

    @property
    def answered(self) -> bool:
        return bool(self.status or self.over)


class Crowd:
    """The open streams of a world whose HAProxy takes the PROXY protocol (`crowd`)."""

    def __init__(self, here: LiveBench) -> None:
        self.here = here
        self.members: list[Member] = []
        self.played = 0
        """Streams that were open so far."""
        self._selector = selectors.DefaultSelector()

    def ask(
        self,
        what: str,
        token: str,
        *,
        path: str,
        ends: bool = False,
        method: str = "GET",
        host: str = "gate.example",
        src: str | None = "192.0.2.7",
        role: str | None = None,
        accept: str = "text/event-stream",
    ) -> Member:
        """Send a request, by default for an event stream; without `src` the PROXY protocol is not spoken."""
        if len(waiting := [one for one in self.members if not one.answered]) >= _AT_ONCE:
            self.answers(waiting[:1])
            if not waiting[0].answered:
                self.must_begin()
        at = self.here.world.proxy
        sock = socket.create_connection((at.host, at.port), _CONNECT)
        asked = [f"X-IAM-Role: {role}"] * (role is not None)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Accept: {accept}", *asked]
        text = "\r\n".join([*lines, f"Authorization: Bearer {token}", "", ""])
        sock.sendall((b"" if src is None else preamble(src, next(_PORTS))) + text.encode())
        sock.setblocking(False)
        member = Member(what, ends, sock)
        self.members.append(member)
        self._selector.register(sock, selectors.EVENT_READ, member)
        return member

    def join(self, what: str, token: str, *, path: str, **how: Any) -> Member:  # noqa: ANN401 - as `ask`
        """Begin a stream."""
        return self.ask(what, token, path=f"{path}?quiet=1", **how)

    def status(self, what: str, token: str, *, accept: str = "*/*", **how: Any) -> int:  # noqa: ANN401 - as `ask`
        """Ask, and return the status of the answer; 0: none came in time."""
        member = self.ask(what, token, accept=accept, **how)
        self.answers([member])
        self.members.remove(member)
        if not member.over:
            self._selector.unregister(member.sock)
        member.sock.close()
        return member.status

    def _read(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Read what has come, and what comes until a moment, or until it is enough."""
        while True:
            left = until - time.time()
            ready = [] if enough() else self._selector.select(max(0.0, left))
            for key, _ in ready:
                piece = b""
                with suppress(OSError):
                    piece = key.fileobj.recv(65536)  # type: ignore[union-attr]
                key.data.head += piece if len(key.data.head) < 65536 else b""
                if not piece:
                    key.data.over = time.time()
                    self._selector.unregister(key.fileobj)
            if not ready and (enough() or left <= 0):
                return

    def answers(self, members: Sequence[Member]) -> None:
        """Wait until these have their status, or are over."""
        until = time.time() + self.here.seconds(_BEGIN)
        self._read(until, lambda: all(one.answered for one in members))

    def must_begin(self, by: float = math.inf) -> None:
        """Hold all streams to be open, and the judge to a moment, epoch seconds, by which he has seen it."""
        self.answers(self.members)
        self.here.in_time(by, "the begin of all streams")
        wrong = [f"{one.what} (status {one.status})" for one in self.members if one.status != 200 or one.over]
        self._hold(wrong, "did not begin")
        self.played += len(self.members)

    def must_split(self, what: str, due: float | None = None, until: float = math.inf) -> None:
        """Hold exactly the streams that must end to be over within `AFTER`, and leave with the others.

        Args:
            what: ends them.
            due: when, epoch seconds; None: now.
            until: epoch seconds at which others may end too; the judge must have looked before.
        """
        began = time.time() if due is None else due
        going = [one for one in self.members if one.ends]
        self._read(began + self.here.seconds(AFTER), lambda: all(one.over for one in going))
        self._hold([one.what for one in going if not one.over], f"still open {AFTER:g} s after {what}")
        last, bound = max((one.over for one in going), default=began), self.here.seconds(AFTER)
        self.here.in_time(began + bound + 2 * EARLY, f"the end of streams after {what}", last)
        recording.waited(what, last - began, bound)
        self._read(time.time() + self.here.stretched(AFTER))
        if wrong := [one.what for one in self.members if one.over and not one.ends]:
            self.here.in_time(until, f"a look at what {what} must spare")
        self._hold(wrong, f"still permitted, ended at {what}")
        self.leave()

    def _hold(self, wrong: list[str], why: str) -> None:
        if wrong:
            rest = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            shown = "; ".join(wrong[:_SHOWN])
            raise self.here.failed(f"{len(wrong)} of {len(self.members)} streams {why}: {shown}{rest}")

    def leave(self) -> None:
        """Close all."""
        for member in self.members:
            member.sock.close()
        self._selector.close()
        self._selector, self.members = selectors.DefaultSelector(), []

    def close(self) -> None:
        self.leave()
        self._selector.close()


@contextmanager
def crowd(target: Target, owner: str, policy: str, **how: Any) -> Iterator[Crowd]:  # noqa: ANN401 - as `live_bench`
    """Lend a world of its own, whose HAProxy takes the PROXY protocol, to a crowd."""
    settings = {"IAM_BIND": "accept-proxy"}
    with (
        live_bench(target, owner, policy, own=True, settings=settings, **how) as here,
        closing(Crowd(here)) as one,
    ):
        yield one
