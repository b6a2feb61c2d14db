"""The suite's waits: for some seconds, and until something is so. The end of the run ends both."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

_NEVER = threading.Event()
run_over: ContextVar[threading.Event] = ContextVar("run_over", default=_NEVER)
"""Set when the run ends that plays in this context: what waits then goes on, and fails by itself."""


def rest(seconds: float) -> bool:
    """Sleep until the run ends at the latest; return whether it goes on."""
    return not run_over.get().wait(max(0.0, seconds))


def polls(seconds: float, every: float = 0.05) -> Iterator[bool]:
    """Yield False at once and each `every` seconds; once `seconds` are over yield True, for a last look."""
    end, goes_on = time.monotonic() + seconds, True
    while goes_on and time.monotonic() < end:
        yield False
        goes_on = rest(every)
    yield True
