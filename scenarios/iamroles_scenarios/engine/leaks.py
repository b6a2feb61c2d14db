"""Search the outputs of a run's worlds for the run's credentials (SPEC.md 1.16).

Each world is searched when it is closed: all that the agent and HAProxy wrote. What is found says which
output, which kind of credential, and the begin of its hash: never the credential.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from iamroles_scenarios.base import sent

if TYPE_CHECKING:
    from iamroles_scenarios.stage import World


class Leaks:
    """Belongs to the worlds of a run; safe to use from many threads."""

    def __init__(self) -> None:
        self._open: dict[World, None] = {}
        self._found: dict[str, set[str]] = {}
        """Names of credentials by output."""
        self._lock = threading.Lock()
        self.letters = self.missed = 0
        """Letters that were searched, and lines that nobody kept."""

    def watch(self, world: World) -> None:
        """Search a world's outputs when it is closed."""
        former, self._open[world] = world.on_close, None

        def closed(which: World) -> None:
            if former is not None:
                former(which)
            if self._open.pop(which, which) is None:
                self._search(which)

        world.on_close = closed

    def _search(self, world: World) -> None:
        for part, stream in world.outputs():
            text = "\n".join(stream.lines())
            names = sent.held(text)
            with self._lock:
                self.letters, self.missed = self.letters + len(text), self.missed + stream.dropped
                if names:
                    self._found.setdefault(f"what the {part} writes", set()).update(names)

    def found(self) -> list[str]:
        """Return a sentence for each output so far that holds credentials, open worlds included."""
        for world in list(self._open):
            self._search(world)
        return [
            f"{output} holds {len(names)} credential{'s' * (len(names) != 1)}: {', '.join(sorted(names)[:5])}"
            for output, names in sorted(self._found.items())
        ]
