"""Bounds of what strangers can take: conversations at a time, and descriptors."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Coroutine
from typing import Any

RESERVED = 256
"""Descriptors of a worker for all but SPOP connections: metrics, handshakes, files, key sets, STS."""
MOST = 32
"""Conversations at a time on a metrics port, and on the local socket."""


class Bounded:
    """Runs conversations, at most `most` at a time; if another begins, the oldest of them is cancelled.

    A conversation with a sound peer takes a moment. A peer that is slow, or silent, is ended by the next
    ones, and never keeps them out. Each conversation has a deadline of its own.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._tasks: dict[asyncio.Task[None], None] = {}

    def begin(self, conversation: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= self._most:
            oldest = next(iter(self._tasks))
            del self._tasks[oldest]
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(conversation)
        self._tasks[task] = None
        task.add_done_callback(lambda _: self._tasks.pop(task, None))

    async def end(self, within: float) -> None:
        """Wait for all conversations; cancel those that last longer."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)
        for task in tuple(self._tasks):
            task.cancel()


def raise_descriptors() -> None:
    """Take as many descriptors as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def room() -> int:
    """Return how many SPOP connections the descriptors of a worker allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else max(1, soft // 4, soft - RESERVED)
