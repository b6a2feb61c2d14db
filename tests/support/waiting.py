"""Waiting for what has no event of its own."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 20.0


def until(look: Callable[[], Any], seconds: float = PATIENCE, why: str = "") -> Any:
    """Return the first true thing that `look` returns."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, why
        time.sleep(0.005)
    return found
