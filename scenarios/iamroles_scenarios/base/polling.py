"""The loop in which the suite looks again until something is so."""

from __future__ import annotations

import time
from collections.abc import Iterator


def polls(seconds: float, every: float = 0.05) -> Iterator[bool]:
    """Yield False at once and each `every` seconds; once `seconds` are over yield True, for a last look."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield False
        time.sleep(every)
    yield True
