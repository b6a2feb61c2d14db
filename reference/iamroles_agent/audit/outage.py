"""An outage of the log: since when it cannot be written, why, and what happens to decisions meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from iamroles_agent.audit.record import members, timestamp
from iamroles_agent.base.clocks import Clock
from iamroles_agent.base.config import AuditSettings

_log = logging.getLogger("iamroles.audit")

LIMIT = 64 << 20
"""Bytes that may wait for the disk before decisions count as not recordable."""
PATIENCE = 2.0
"""Seconds beyond `sync` that the disk may take before they do."""


class Outage:
    """The outages of a log. Its owner's lock guards it.

    `name` returns the log's name, for messages. `wake` is called when an outage begins, so that the writer
    tries until it ends.
    """

    def __init__(
        self, settings: AuditSettings, clock: Clock, name: Callable[[], str], wake: Callable[[], None]
    ) -> None:
        self.admit = settings.on_error == "allow"
        """True if decisions are answered although they cannot be recorded."""
        self.patience = settings.sync + PATIENCE
        self.why = ""
        """Why nothing can be recorded; "" outside an outage."""
        self.writing_since = 0.0
        """When the writer began its current write, by the monotonic clock; 0: it is idle."""
        self.lost_ever = 0
        self._overruled: int | None = None
        """The first record whose decision was then answered otherwise."""
        self._lost = 0
        self._since = 0.0
        self._clock, self._name, self._wake = clock, name, wake

    def lasts(self) -> bool:
        """Return whether decisions cannot be recorded now; begin an outage if the writer is stuck."""
        if not self.why:
            since = self.writing_since
            if not since or time.monotonic() - since < self.patience:
                return False
            self.begin(f"the disk has not answered for {self.patience:g} s")
        return True

    def admits(self, waiting: int) -> bool:
        """Return whether one more decision may wait beside `waiting` bytes; count it as lost if not."""
        if self.admit and waiting < LIMIT:
            return True
        self._lost += 1
        self.lost_ever += 1
        return False

    def answer(self, seq: int) -> bool:
        """Return whether a decision whose record still waits is answered as it is."""
        if not self.admit and self._overruled is None:
            self._overruled = seq
        return self.admit

    def begin(self, why: str) -> None:
        """Begin an outage, unless one lasts already."""
        if self.why:
            return
        self.why, self._since = why, self._clock()
        self._wake()
        _log.error(
            "audit: %s cannot be written: %s; decisions are now %s (audit.on_error = %s)",
            self._name(),
            why,
            "answered unrecorded" if self.admit else "refused",
            "allow" if self.admit else "deny",
        )

    def end(self) -> str:
        """End an outage, if one lasts; return the members of the `gap` record that reports it, or ""."""
        if not self.why:
            return ""
        _log.error("audit: %s is written again; %d decisions are not on record", self._name(), self._lost)
        gap = {
            "kind": "gap",
            "lost": self._lost,
            "since": timestamp(self._since),
            "overruled": self._overruled,
            "answered": "allow" if self.admit else "deny",
            "detail": self.why,
        }
        text = "" if not self._lost and self._overruled is None else members(gap)
        self.why, self._lost, self._overruled = "", 0, None
        return text
