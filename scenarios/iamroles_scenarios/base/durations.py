"""Durations as people write and read them: a number and a unit."""

from __future__ import annotations

import re

_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: object) -> float:
    """Seconds of `"800us"`, `"250ms"`, `"1.5h"`; signed in `"-120s"`, `"+5m"`.

    Raises:
        ValueError: not a duration.
    """
    match = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)(us|µs|ms|s|m|h|d)", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{value!r} is not a duration: write a string such as "500ms", "3s", "1m"')
    return float(match[1]) * _UNITS[match[2]]


def duration(microseconds: float) -> str:
    """Readable: `740 µs`, `12.3 ms`, `1.20 s`."""
    if abs(microseconds) < 1000:
        return f"{microseconds:.0f} µs"
    if abs(microseconds) < 1_000_000:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds / 1e6:.3g} s"
