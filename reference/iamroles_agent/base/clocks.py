"""The clocks of a process, in one value: so that an agent can run on a time that is not the host's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Clocks(NamedTuple):
    """Both give seconds."""

    epoch: Callable[[], float] = time.time
    """Since 1970: when credentials end."""
    monotonic: Callable[[], float] = time.monotonic
    """Never jumps, one for all processes of a host: ages of key sets."""


SYSTEM = Clocks()
"""The host's."""
