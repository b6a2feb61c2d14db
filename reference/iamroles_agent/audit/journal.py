"""The writer's side of an audit log: a chain and the file under it, through rotation, crashes and budgets.

All of it runs in the writer's thread. Lines come from the `Desk`, which numbers them in the caller's
thread; here they are cut into batches, sealed and put on disk. What was sealed and could not be written
stays in `hand`, in order, and goes wherever the path leads when it works again: the chain runs on over
files.

A new file begins with a `start` record that states the tree of all batches before it. Its number must be
taken in the same breath as the old file's `end`, so that no decision slips in between; the tree is known
only after the old file's last batch is sealed. So the line is made with a gap, and filled afterwards.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from iamroles_agent.audit.chain import Head, portions, seal
from iamroles_agent.audit.file import LogFile, over_budget, rotated_path
from iamroles_agent.audit.record import Value

GAP = b"\0"
"""Where the members of a `start` record go; no JSON text holds it."""

_log = logging.getLogger("iamroles.audit")

_SEALED = 1 << 18
"""Bytes of one batch in a file, at most: what proves a line holds its batch."""
_UNBROKEN = 4096 - 256
"""Bytes of one batch in a stream, without its seal: Linux writes up to 4,096 bytes into a pipe unbroken by
other writers (PIPE_BUF)."""
_SHARES = 8
"""Files that a budget of disk is divided into."""


class Desk(Protocol):
    """Where lines are made and numbered."""

    def take(self, mark: str = "", reason: str = "") -> bytearray:
        """All lines that wait, with a last one of this kind if it is named."""

    def turn(self) -> tuple[bytearray, bytes]:
        """All lines that wait and an `end`; and the `start` that follows, with a `GAP` for its members."""

    def start_members(self, reason: str, file: LogFile, after: Head) -> str:
        """The members of a `start` record."""

    def go_on(self, reason: str, file: LogFile, after: Head) -> None:
        """Make a `start` record in the midst of things."""

    def event(self, name: str, fields: Mapping[str, Value], /) -> None:
        """Record what happened to the log itself."""

    def told(self) -> None:
        """More is on disk."""


class Journal:
    """A chain on disk.

    Args:
        file: opened and locked.
        who: members of a seal that name the writer.
        desk: where lines come from.
        keep: bytes that the file and those it was rotated to may take; None: nothing is rotated or removed.
    """

    def __init__(self, file: LogFile, who: bytes, desk: Desk, *, keep: int | None) -> None:
        self.file = file
        self.safe = max(file.seq, file.last.seq)
        """The last record on disk."""
        self.stands = file.last
        """The chain as it stands in the file."""
        self.hand_bytes = 0
        """Sealed and not yet written."""
        self._who = who
        self._desk = desk
        self._keep = keep
        self._within: bool | None = None
        """Whether the budget is kept; None: not looked at yet."""
        self._head = file.last
        self._hand: deque[tuple[bytes, Head]] = deque()
        self._opening = b""
        self._already = file.unsealed

    def flow(self, *, closing: bool) -> None:
        """Write and sync all that waits.

        Raises:
            OSError, StartError: it has to be tried again.
        """
        if self._already:  # what a crash left is sealed where it stands
            self._seal(self._desk.take())
            self._put()
        if self.file.emptied():
            self._desk.go_on("truncated", self.file, self.stands)
        moved = self.file.moved()
        if self._hand:  # what could not be written before; where to is wherever the path leads now
            if moved:
                old, self.file, moved = self.file, self.file.follow(), False
                old.close()
                self._desk.go_on("rotated", self.file, self.stands)
            self._put()
        if moved:
            self._turn()
        self._seal(self._desk.take("end", "stopped") if closing else self._desk.take())
        self._put()
        if self._keep is not None and not closing:
            self._budget(self._keep)

    def _seal(self, lines: bytearray) -> None:
        lines[:0] = self._opening
        self._opening = b""
        for batch in portions(lines, _SEALED if self.file.regular else _UNBROKEN):
            self._head = seal(batch, self._head, self._who, self._already)
            self._already = b""
            self._hand.append((bytes(batch), self._head))
            self.hand_bytes += len(batch)

    def _put(self) -> None:
        while self._hand:
            batch, head = self._hand[0]
            self.file.write(batch)
            self.stands = head
            self._hand.popleft()
            self.hand_bytes -= len(batch)
            if not self.file.regular:
                self.safe = head.seq
                self._desk.told()
        if self.safe < self.stands.seq:
            self.file.sync(self.stands)
            self.safe = self.stands.seq
            self._desk.told()

    def _turn(self) -> None:
        """End the file, open what the path names now, and say in it which record it continues."""
        new = self.file.follow()
        try:
            lines, opening = self._desk.turn()
            self._seal(lines)
            self._opening = opening.replace(
                GAP, self._desk.start_members("rotated", new, self._head).encode()
            )
            self._put()
        except OSError:
            new.close()
            raise
        old, self.file = self.file, new
        old.close()

    def _budget(self, keep: int) -> None:
        """Rotate a file that has its share of the disk, and remove the oldest above the budget."""
        file, share = self.file, keep // _SHARES
        if file.path is None or not file.regular or (self._within and file.size < share):
            return
        try:
            if file.size >= share:
                file.path.rename(rotated_path(file.path, self.stands.seq))
            gone = over_budget(file.path, keep - share)
            for path, _ in gone:
                path.unlink(missing_ok=True)
        except OSError as error:  # no reason to refuse decisions, as long as they can be written
            if self._within is not False:
                _log.error("audit: %s cannot be kept within audit.keep: %s", file.path, error)
            self._within = False
            return
        self._within = True
        for path, size in gone:
            _log.warning("audit: %s is removed: audit.keep is spent", path)
            self._desk.event("removed", {"file": path.name, "bytes": size, "why": "audit.keep"})
        if file.moved():
            self._turn()
            self._seal(self._desk.take())
            self._put()
