"""Release large containers in slices.

When the last reference to a policy of 10,000 grants or to 100,000 identities goes, the interpreter frees them
all at once, and requests wait for tens of milliseconds. So the agent empties replaced containers in slices,
between which the event loop runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_SLICE = 200
"""Entries that are freed together."""
_PAUSE = 0.001
"""Seconds between two slices."""

Container = dict[Any, Any] | list[Any]


def release(containers: Iterable[Container]) -> None:
    """Empty containers that are out of use; without an event loop the last reference frees them."""
    left = [container for container in containers if container]
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if left:
        loop.call_later(_PAUSE, _step, loop, left)


def _step(loop: asyncio.AbstractEventLoop, left: list[Container]) -> None:
    container = left[-1]
    if isinstance(container, list):
        del container[-_SLICE:]
    else:
        for _ in range(min(_SLICE, len(container))):
            container.popitem()
    if not container:
        left.pop()
    if left:
        loop.call_later(_PAUSE, _step, loop, left)
