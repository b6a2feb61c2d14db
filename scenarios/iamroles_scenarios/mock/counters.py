"""Named counts that a scenario can wait on, so that it never has to sleep."""

from __future__ import annotations

import asyncio
from collections import Counter


class Counters:
    """Counts by name; waiting ends when a count is reached. For one event loop."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._changed = asyncio.Condition()
        self._wakers: set[asyncio.Task[None]] = set()

    def add(self, name: str) -> None:
        """Count one and wake those who wait."""
        self._counts[name] += 1
        waker = asyncio.ensure_future(self._wake())
        self._wakers.add(waker)
        waker.add_done_callback(self._wakers.discard)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def snapshot(self) -> dict[str, int]:
        return dict(self._counts)

    async def wait(self, name: str, at_least: int, timeout: float) -> bool:  # noqa: ASYNC109 - the deadline is data
        """Return whether `name` reached `at_least` within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self._counts[name] >= at_least)
        except TimeoutError:
            return self._counts[name] >= at_least
        return True
