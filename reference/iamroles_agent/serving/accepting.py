"""Who accepts a connection: all workers listen on one socket, and each gets as many as the others.

HAProxy opens few connections and keeps them, so whoever accepts one has its work for long. Each worker tells
the others how many it has, in memory that they share. Who has the fewest accepts at once. Who has more looks
again each millisecond whether it still has, and after `PATIENCE` accepts too: a worker that is stuck makes no
connection wait for long. It is waited for once, and then no more until its number changes.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import select
import socket
from collections.abc import Callable

from iamroles_agent.serving.listening import BACKLOG

PATIENCE = 0.2
"""Seconds for which a waiting connection is left to workers that have fewer."""
_TICK = 0.001
_OPEN = (1 << 32) - 1
"""The part of a worker's number that counts its connections."""
_RETRY = 1.0
"""Seconds without accepting where that fails, for want of descriptors above all."""

log = logging.getLogger("iamroles.server")


def shared_counts(places: int) -> memoryview:
    """A number for each worker, in memory that forks share: process id, connections; 0: it accepts none."""
    return memoryview(mmap.mmap(-1, 8 * places)).cast("Q")


class Acceptor:
    """Accepts for one worker.

    Args:
        sock: listening, not blocking.
        take: called with each connection's socket; `closed` has to be called when that is over.
        counts: of all workers that accept from `sock`; nobody else does if absent.
        place: this worker's in it.
    """

    def __init__(
        self,
        sock: socket.socket,
        take: Callable[[socket.socket], object],
        counts: memoryview | None = None,
        place: int = 0,
    ) -> None:
        self._sock, self._take = sock, take
        self._counts, self._place = shared_counts(1) if counts is None else counts, place
        self._late: dict[int, int] = {}
        """Workers that let others wait in vain, and the number that they had."""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._counts[place] = os.getpid() << 32
        self._listen()

    def stop(self) -> None:
        """Accept what others were to have, and then no more: this process lets go of the socket."""
        if self._counts[self._place]:
            for _ in range(BACKLOG):  # no flood keeps it from its end
                if not self._accept_one():
                    break
            self._pause()
            self._counts[self._place] = 0
            self._sock.close()

    def closed(self) -> None:
        if self._counts[self._place]:
            self._counts[self._place] -= 1

    def _listen(self) -> None:
        self._loop.add_reader(self._sock, self._accept)

    def _pause(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()

    def _later(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        self._pause()
        self._timer = self._loop.call_later(seconds, call, *args)

    def _fewer(self) -> dict[int, int]:
        """The workers with fewer connections that may accept in time, and their numbers."""
        mine, late = self._counts[self._place] & _OPEN, self._late
        return {
            place: number
            for place, number in enumerate(self._counts)
            if number and number & _OPEN < mine and late.get(place) != number
        }

    def _accept(self) -> None:
        if fewer := self._fewer():
            self._later(_TICK, self._wait, fewer, self._loop.time() + PATIENCE)
        else:
            self._accept_one()

    def _accept_one(self) -> bool:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            log.warning("cannot accept a connection: %s", error.strerror)
            self._later(_RETRY, self._listen)
            return False
        self._counts[self._place] += 1
        self._take(sock)
        return True

    def _wait(self, fewer: dict[int, int], until: float) -> None:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        if self._fewer() and poller.poll(0):
            if self._loop.time() < until:
                self._later(_TICK, self._wait, fewer, until)
                return
            self._late |= {place: number for place, number in fewer.items() if self._counts[place] == number}
        self._listen()
