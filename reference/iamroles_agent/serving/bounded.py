"""Bounds of what strangers can take: conversations at a time, and descriptors."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from iamroles_agent.tokens.admission import client_network

RESERVED = 256
"""Descriptors of a worker for all but SPOP connections: metrics, handshakes, files, key sets, STS."""
MOST = 32
"""Conversations at a time on a metrics port, and on the local socket."""


class Bounded:
    """Runs conversations, at most `most` at a time; if another begins, one of them is cancelled: the oldest
    of the network that has the most.

    A conversation with a sound peer takes a moment. A peer that is slow, or silent, is ended by the next
    ones, and never keeps them out. Each conversation has a deadline of its own. A network that floods ends
    its own conversations.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._tasks: dict[asyncio.Task[None], str] = {}
        """Conversations and their peers' networks, the oldest first."""

    def begin(self, conversation: Coroutine[Any, Any, None], network: str = "") -> None:
        if len(self._tasks) >= self._most:
            [(most, _)] = Counter(self._tasks.values()).most_common(1)
            oldest = next(task for task, one in self._tasks.items() if one == most)
            del self._tasks[oldest]
            # After its first step: a coroutine that never ran would not close its connection.
            asyncio.get_running_loop().call_soon(oldest.cancel)
        task = asyncio.get_running_loop().create_task(conversation)
        self._tasks[task] = network
        task.add_done_callback(lambda _: self._tasks.pop(task, None))

    async def end(self, within: float) -> None:
        """Wait for all conversations; cancel those that last longer."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)
        for task in tuple(self._tasks):
            task.cancel()


def network_of(sock: socket.socket) -> str:
    """Name the network of a connection's peer; empty for a Unix socket, and if the peer is gone."""
    with suppress(OSError, ValueError, IndexError):
        return client_network(ip_address(sock.getpeername()[0].partition("%")[0]))
    return ""


def raise_descriptors() -> None:
    """Take as many descriptors as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def room() -> int:
    """Return how many SPOP connections the descriptors of a worker allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else max(1, soft // 4, soft - RESERVED)
