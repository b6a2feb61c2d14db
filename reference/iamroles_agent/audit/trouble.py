"""When a log cannot be written: why, what becomes of decisions meanwhile, and how it is told afterwards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from iamroles_agent.audit.record import members, timestamp

_log = logging.getLogger("iamroles.audit")

LIMIT = 64 << 20
"""Bytes that may wait for the disk before decisions count as not recordable."""
PATIENCE = 2.0
"""Seconds beyond `sync` that the disk may take before they do."""


class Trouble:
    """The trouble of one log. Its owner's lock guards it.

    Args:
        admit: whether decisions are answered although they cannot be recorded (`on_error = "allow"`).
        sync: the declared window, seconds.
        clock: epoch seconds.
        name: of the log, for messages.
        look: called when trouble begins, so that the writer tries until it ends.
    """

    def __init__(
        self,
        *,
        admit: bool,
        sync: float,
        clock: Callable[[], float],
        name: Callable[[], str],
        look: Callable[[], None],
    ) -> None:
        self.admit = admit
        self.patience = sync + PATIENCE
        self.blocked = ""
        """Why nothing can be recorded; "" where it can."""
        self.writing_since = 0.0
        """When the writer began what it is doing, by the monotonic clock; 0: it is idle."""
        self.lost_ever = 0
        self.overruled: int | None = None
        """The first record of a decision that was then answered otherwise."""
        self._lost = 0
        self._since = 0.0
        self._clock, self._name, self._look = clock, name, look

    def failing(self) -> bool:
        """Whether decisions cannot be recorded right now."""
        if self.blocked:
            return True
        since = self.writing_since
        if not since or time.monotonic() - since < self.patience:
            return False
        self.block(f"the disk has not answered for {self.patience:g} s")
        return True

    def room(self, waiting: int) -> bool:
        """Whether one more decision may wait beside so many bytes; counts it as lost if not."""
        if self.admit and waiting < LIMIT:
            return True
        self._lost += 1
        self.lost_ever += 1
        return False

    def overrule(self, seq: int) -> bool:
        """Answer a decision whose record waits; whether as it is."""
        if not self.admit and self.overruled is None:
            self.overruled = seq
        return self.admit

    def block(self, why: str) -> None:
        """Trouble begins, if it has not."""
        if self.blocked:
            return
        self.blocked, self._since = why, self._clock()
        self._look()
        _log.error(
            "audit: %s cannot be written: %s; decisions are now %s (audit.on_error = %s)",
            self._name(),
            why,
            "answered unrecorded" if self.admit else "refused",
            "allow" if self.admit else "deny",
        )

    def end(self) -> str:
        """Trouble is over, if there was any; returns the members of the `gap` record that tells it, or ""."""
        if not self.blocked:
            return ""
        _log.error("audit: %s is written again; %d decisions are not on record", self._name(), self._lost)
        why, lost, overruled = self.blocked, self._lost, self.overruled
        self.blocked, self._lost, self.overruled = "", 0, None
        if not lost and overruled is None:
            return ""
        return members(
            {
                "kind": "gap",
                "lost": lost,
                "since": timestamp(self._since),
                "overruled": overruled,
                "answered": "allow" if self.admit else "deny",
                "detail": why,
            }
        )
