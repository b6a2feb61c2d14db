"""Durations as people write and read them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}


def microseconds(value: object) -> float:
    """Microseconds of `"800us"`, `"25ms"`, `"1.5s"`.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)(us|µs|ms|s)", value)):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError('a latency is a string such as "800us", "25ms", "1.5s"')


Latency = Annotated[float, BeforeValidator(microseconds)]
"""Microseconds, written with a unit."""


def duration(microseconds: float) -> str:
    """Readable: `740 µs`, `12.3 ms`, `1.20 s`."""
    if abs(microseconds) < 1000:
        return f"{microseconds:.0f} µs"
    if abs(microseconds) < 1_000_000:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds / 1e6:.3g} s"
