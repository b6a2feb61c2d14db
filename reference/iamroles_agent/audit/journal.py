"""The writer's side of an audit log: a chain and the file under it, through rotation, crashes and budgets.

All of it runs in the writer's thread. Lines come from the `Audit`, which numbers them in the caller's thread;
here they are cut into batches, sealed and put on disk. A batch that was sealed and could not be written stays
in `_unwritten`, in order, and goes to the file that the path names when writing works again: the chain
continues across files.

A new file begins with a `start` record that states the tree of all batches before it. Its number must be
taken together with the old file's `end`, so that no decision comes between them, but the tree is known only
after the old file's last batch is sealed. So the line is made with a `GAP`, which is filled when the line is
sealed.

Any step may end with an error, also because memory is short. Lines that were taken stay in `_lines` until
their batch is sealed; the next attempt seals the rest.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from iamroles_agent.audit.chain import batches, seal
from iamroles_agent.audit.file import LogFile, over_budget, rotated_path
from iamroles_agent.base import files

if TYPE_CHECKING:
    from iamroles_agent.audit.chain import Head
    from iamroles_agent.audit.log import Audit

GAP = b"\0"
"""Stands for the members of a `start` record; no JSON text holds it."""

_log = logging.getLogger("iamroles.audit")

_SEALED = 1 << 18
"""Most bytes of a batch in a file: a proof of a line holds its whole batch."""
_START = 128
"""Bytes in which a `GAP` may be."""
_UNBROKEN = 4096 - 256
"""Most bytes of a batch in a stream, without its seal: Linux writes up to 4,096 bytes (PIPE_BUF) into a
pipe without interleaving those of other writers."""
_SHARES = 8
"""Files that a disk budget is divided into."""


class Journal:
    """A chain on disk, under a budget of `keep` bytes for the file and its rotated predecessors.

    `writer` has the members of a seal that name the writer. Without `keep` nothing is rotated or removed.
    """

    def __init__(self, file: LogFile, writer: bytes, audit: Audit, *, keep: int | None) -> None:
        self.file = file
        self.safe = max(file.seq, file.last.seq)
        """The last record on disk."""
        self.written = file.last
        """The chain as it stands in the file."""
        self.unwritten_bytes = 0
        """Bytes that are sealed and not yet written."""
        self._writer = writer
        self._audit = audit
        self._keep = keep
        self._within: bool | None = None
        """True if the log is within its budget; None: not checked yet."""
        self._head = file.last
        self._unwritten: deque[tuple[bytes, Head]] = deque()
        self._lines, self._sealed = bytearray(), 0
        """Lines that were taken, and how many of their bytes are sealed."""
        self._already = file.unsealed

    def flush(self, *, closing: bool) -> None:
        """Write and sync all lines that wait.

        Raises:
            OSError, StartError: the caller must try again.
        """
        if self._already:  # lines that a crash left are sealed in their own file
            self._take(self._audit.take)
            self._write()
        if self.file.emptied():
            self._audit.restart("truncated", self.file, self.written)
        moved = self.file.moved()
        if moved and (self._unwritten or self.file.removed()):  # all goes to the file that the path names now
            old, self.file, moved = self.file, self.file.follow(), False
            old.close()
            self._audit.restart("rotated", self.file, self.written)
        self._write()
        if moved:
            self._rotate()
        self._take(partial(self._audit.take, "end", "stopped") if closing else self._audit.take)
        self._write()
        if self._keep is not None and not closing:
            self._budget(self._keep)

    def _take(self, take: Callable[[], bytearray]) -> None:
        """Take lines, and seal them after those that an attempt took before memory ended."""
        self._seal()
        self._lines = take()
        self._seal()

    def _seal(self) -> None:
        if self._lines.find(GAP, 0, _START) >= 0:
            start = self._audit.start_members("rotated", self.file, self._head)
            self._lines = self._lines.replace(GAP, start.encode(), 1)
        for batch in batches(self._lines, _SEALED if self.file.regular else _UNBROKEN, self._sealed):
            end = self._sealed + len(batch)
            head = seal(batch, self._head, self._writer, self._already)
            waiting = self.unwritten_bytes + len(batch)
            self._unwritten.append((bytes(batch), head))
            # Nothing below takes memory: a batch is sealed once, or not at all.
            self._head, self._already = head, b""
            self._sealed, self.unwritten_bytes = end, waiting
        self._lines = bytearray()
        self._sealed = 0

    def _write(self) -> None:
        while self._unwritten:
            batch, head = self._unwritten[0]
            self.file.write(batch)
            self.written = head
            self._unwritten.popleft()
            self.unwritten_bytes -= len(batch)
            if not self.file.regular:
                self.safe = head.seq
                self._audit.wake_waiters()
        if self.safe < self.written.seq:
            self.file.sync(self.written)
            self.safe = self.written.seq
            self._audit.wake_waiters()

    def _rotate(self) -> None:
        """End the file, open the file that the path names now, and link it to the last record."""
        new = self.file.follow()
        try:
            self._take(self._audit.rotate)
            self._write()
        except BaseException:
            new.close()
            raise
        old, self.file = self.file, new
        old.close()

    def _budget(self, keep: int) -> None:
        """Rotate a file that has reached its share of the disk, and remove the oldest files over budget."""
        file, share = self.file, keep // _SHARES
        if file.path is None or not file.regular or (self._within and file.size < share):
            return
        try:
            real = files.target(file.path)  # a link stays where it is
            if file.size >= share:
                real.rename(rotated_path(real, self.written.seq))
            gone = over_budget(real, keep - share)
            for path, _ in gone:
                path.unlink(missing_ok=True)
        except OSError as error:  # decisions are not refused for this, as long as they can be written
            if self._within is not False:
                _log.error("audit: %s cannot be kept within audit.keep: %s", file.path, error)
            self._within = False
            return
        self._within = True
        for path, size in gone:
            _log.warning("audit: %s is removed: audit.keep is spent", path)
            self._audit.event("removed", {"file": path.name, "bytes": size, "why": "audit.keep"})
        if file.moved():
            self._rotate()
            self._take(self._audit.take)
            self._write()
