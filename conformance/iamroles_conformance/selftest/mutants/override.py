"""The one way in which a mutant changes the agent; imports nothing of it, so that listing does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def override(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace `owner.name` by what `make` makes of it."""
    setattr(owner, name, make(getattr(owner, name)))
