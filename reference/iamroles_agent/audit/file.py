"""The file under an audit chain: opened by one writer, continued after a crash, followed through rotation.

Beside `audit.jsonl` stands `audit.jsonl.head`: sequence number and hash of the last record that is on disk,
renewed after each sync. It lets a chain go on when the log was rotated while the agent was down, and it
betrays a log whose end was cut off: the head then names a record that is nowhere to be found.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from iamroles_agent.audit.record import GENESIS
from iamroles_agent.errors import StartError

_ATOMIC = 4096
"""Bytes that one write puts into a pipe unbroken by other writers (POSIX PIPE_BUF on Linux)."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last record of a chain."""

    seq: int = 0
    hash: str = GENESIS

    def __str__(self) -> str:
        return f"{self.seq:020d} {self.hash}\n"

    @classmethod
    def parse(cls, text: str) -> Head | None:
        """Read a head file's content; None for anything else."""
        seq, _, digest = text.strip().partition(" ")
        if not (seq.isdecimal() and len(digest) == 64 and digest.isalnum()):
            return None
        return cls(int(seq), digest)


def head_path(path: Path) -> Path:
    """Where a log's head is kept."""
    return path.with_name(path.name + ".head")


def worker_path(path: str, worker: int) -> Path:
    """The log of one worker: `audit.jsonl`, then `audit.w1.jsonl`, `audit.w2.jsonl`…"""
    first = Path(path)
    return first if worker == 0 else first.with_name(f"{first.stem}.w{worker}{first.suffix}")


class LogFile:
    """A log that is open for appending, and locked, so that two agents never braid two chains into one file.

    Args:
        path: the file; created with mode 0640 if absent. None: standard error.

    Raises:
        OSError: it cannot be opened.
        StartError: another agent writes it, or it holds something else than audit records.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.torn = 0
        """Bytes of an unfinished last line, left by a crash and cut off."""
        self.last = Head()
        """The last record in the file, or where the head file says that the chain stands."""
        self.missing = 0
        """Records that the head file vouches for and the log no longer has."""
        self._head: int | None = None
        if path is None:
            self._fd = 2
            self.regular = False
            return
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            self.regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if self.regular:
                self._take_over(path)
        except BaseException:
            self.close()
            raise
        self._size = os.fstat(self._fd).st_size

    def _take_over(self, path: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"the audit log {path} is being written by another process. "
                "Stop that one, or give each agent its own audit.path"
            ) from None
        found = self._read_tail(path)
        self._head = os.open(head_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        vouched = Head.parse(os.pread(self._head, 200, 0).decode("ascii", "replace"))
        if vouched is None or vouched.seq <= found.seq:
            self.last = found
        else:
            # An empty log was rotated while the agent was down; one that ends before its head lost records,
            # and linking to the head makes `audit verify` say so at exactly this place.
            self.last = vouched
            self.missing = vouched.seq - found.seq if found.seq else 0

    def _read_tail(self, path: Path) -> Head:
        size = os.fstat(self._fd).st_size
        block = 65536
        while True:
            tail = os.pread(self._fd, block, max(0, size - block))
            end = tail.rfind(b"\n") + 1
            begin = tail.rfind(b"\n", 0, end - 1) + 1 if end else 0
            if begin or block >= size:
                break
            block *= 4
        line, rest = tail[begin:end], tail[end:]
        head = _head_of(line) if line else Head()
        if head is None or (rest and not rest.startswith(b'{"time":"'[: len(rest)])):
            raise StartError(
                f"{path} does not end in an audit record, so nothing is appended to it. "
                "Set audit.path to a file of its own, or move this one away"
            )
        if rest:
            self.torn = len(rest)
            os.ftruncate(self._fd, size - len(rest))
        return head

    def write(self, data: bytearray) -> None:
        """Append whole lines; what was written is removed from the front of `data`.

        Raises:
            OSError: as the system says. A regular file then ends in a whole line, and `data` begins with one.
        """
        while data:
            written = os.write(self._fd, data if self.regular else data[: _chunk(data)])
            if self.regular:
                if written < len(data):
                    # The disk is full in the middle of a line. Take the fragment back: a file that ends in
                    # whole lines can be rotated away, read or verified at any moment.
                    whole = data.rfind(b"\n", 0, written) + 1
                    os.ftruncate(self._fd, self._size + whole)
                    if not whole:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    written = whole
                self._size += written
            del data[:written]

    def sync(self, head: Head) -> None:
        """Make what was written durable and note the head.

        Raises:
            OSError: the disk does not confirm it.
        """
        if not self.regular:
            return
        os.fdatasync(self._fd)
        if self._head is not None:
            os.pwrite(self._head, str(head).encode(), 0)

    def moved(self) -> bool:
        """Whether the path now names another file, or none: the log was rotated."""
        if self.path is None or not self.regular:
            return False
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        mine = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)

    def emptied(self) -> bool:
        """Whether the file was cut short in place (logrotate's `copytruncate`) since this was last asked."""
        if not self.regular:
            return False
        size = os.fstat(self._fd).st_size
        shorter, self._size = size < self._size, size
        return shorter

    def close(self) -> None:
        """Let go of the file and its lock; standard error stays open."""
        if self.path is not None:
            os.close(self._fd)
        if self._head is not None:
            os.close(self._head)
            self._head = None


def _chunk(data: bytearray) -> int:
    """Length of as many whole lines as one atomic write to a pipe may hold, at least one."""
    if len(data) <= _ATOMIC:
        return len(data)
    return (data.rfind(b"\n", 0, _ATOMIC) + 1) or (data.find(b"\n") + 1)


def _head_of(line: bytes) -> Head | None:
    try:
        record = json.loads(line)
        return Head(int(record["seq"]), str(record["hash"]))
    except (ValueError, KeyError, TypeError):
        return None
