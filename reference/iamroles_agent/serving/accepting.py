"""Accepting connections: all workers listen on the same sockets, and each gets as many as the others.

HAProxy opens few connections and keeps them, so the worker that accepts one has its work for long. Each
worker publishes its number of connections in memory that all share. A worker with the fewest accepts at once.
One with more looks again each millisecond, and after `PATIENCE` it accepts too: a worker that is stuck makes
no connection wait for long. The others wait for it once, and then not until its number changes.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import select
import socket
from collections.abc import Callable, Sequence

from iamroles_agent.serving.listening import BACKLOG

PATIENCE = 0.2
"""Seconds for which a waiting connection is left to workers that have fewer."""
_TICK = 0.001
_OPEN = (1 << 32) - 1
"""The part of a worker's number that counts its connections."""
_RETRY = 1.0
"""Seconds without accepting after a failure, above all when descriptors run out."""

log = logging.getLogger("iamroles.server")


def shared_counts(workers: int) -> memoryview:
    """A number for each worker, in memory that forks share: process id, connections; 0: it accepts none."""
    return memoryview(mmap.mmap(-1, 8 * workers)).cast("Q")


class Acceptor:
    """Accepts for one worker.

    Args:
        socks: listening, not blocking.
        take: called with each connection's socket; the caller calls `closed` when that is over.
        counts: of all workers that accept from `socks`; None: this one alone.
        slot: this worker's index in it.
    """

    def __init__(
        self,
        socks: Sequence[socket.socket],
        take: Callable[[socket.socket], object],
        counts: memoryview | None = None,
        slot: int = 0,
    ) -> None:
        self._socks, self._take = socks, take
        self._counts, self._slot = shared_counts(1) if counts is None else counts, slot
        self._late: dict[int, int] = {}
        """Numbers of workers that others waited for in vain, by slot."""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._counts[slot] = os.getpid() << 32
        self._listen()

    def stop(self) -> None:
        """Accept what was left to others, then close the sockets of this process."""
        if self._counts[self._slot]:
            for sock in self._socks:
                for _ in range(BACKLOG):  # a flood must not keep it from stopping
                    if not self._accept_one(sock):
                        break
            self._pause()
            self._counts[self._slot] = 0
            for sock in self._socks:
                sock.close()

    def closed(self) -> None:
        if self._counts[self._slot]:
            self._counts[self._slot] -= 1

    def _listen(self) -> None:
        for sock in self._socks:
            self._loop.add_reader(sock, self._accept, sock)

    def _pause(self) -> None:
        for sock in self._socks:
            self._loop.remove_reader(sock)
        if self._timer is not None:
            self._timer.cancel()

    def _later(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        self._pause()
        self._timer = self._loop.call_later(seconds, call, *args)

    def _fewer(self) -> dict[int, int]:
        """The workers with fewer connections that may accept in time, and their numbers."""
        mine, late = self._counts[self._slot] & _OPEN, self._late
        return {
            slot: number
            for slot, number in enumerate(self._counts)
            if number and number & _OPEN < mine and late.get(slot) != number
        }

    def _accept(self, sock: socket.socket) -> None:
        if fewer := self._fewer():
            self._later(_TICK, self._wait, fewer, self._loop.time() + PATIENCE)
        else:
            self._accept_one(sock)

    def _accept_one(self, listener: socket.socket) -> bool:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            log.warning("cannot accept a connection: %s", error.strerror)
            self._later(_RETRY, self._listen)
            return False
        self._counts[self._slot] += 1
        self._take(sock)
        return True

    def _wait(self, fewer: dict[int, int], until: float) -> None:
        poller = select.poll()
        for sock in self._socks:
            poller.register(sock, select.POLLIN)
        if self._fewer() and poller.poll(0):
            if self._loop.time() < until:
                self._later(_TICK, self._wait, fewer, until)
                return
            self._late |= {slot: number for slot, number in fewer.items() if self._counts[slot] == number}
        self._listen()
