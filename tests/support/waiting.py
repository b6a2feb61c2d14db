"""Waiting for what has no event of its own."""

import time

PATIENCE = 20.0


def until(look, seconds=PATIENCE, why=""):
    """Return the first true thing that `look` returns."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, why
        time.sleep(0.005)
    return found
