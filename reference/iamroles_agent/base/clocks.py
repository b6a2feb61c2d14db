"""The clocks of a process, in one value, so that an agent can run on another time than the host's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

Clock = Callable[[], float]
"""Returns seconds: since 1970, or on a clock that never jumps."""


class Clocks(NamedTuple):
    """The two clocks of a process."""

    epoch: Clock = time.time
    """Seconds since 1970: when credentials end."""
    monotonic: Clock = time.monotonic
    """Never jumps, the same for all processes of a host: ages of key sets."""


SYSTEM = Clocks()
"""The host's."""
