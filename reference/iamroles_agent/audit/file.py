"""The file under an audit chain: opened by one writer, continued after a crash, followed through rotation.

Beside `audit.jsonl` stands `audit.jsonl.head` (`chain.Head`): where the chain stands on disk, renewed after
each sync. With it a chain continues after the log was rotated while the agent was down, and a log whose end
was cut off is detected: its head names a record that is missing.

One writer. `.audit.jsonl.lock` is locked as long as a writer lives. It is never rotated, so two writers
exclude each other even while the log itself has been moved away and is not opened again yet. Only this user
can open it: a reader of the log could lock the log itself, and keep the agent out. It stands beside what a
link leads to, which keeps out a second agent that reaches the log by another name. The kernel releases the
lock with the process.

After a crash the file may end in lines that no seal covers. Those that are whole stay, and the next batch's
seal covers them; a fragment is cut off.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from iamroles_agent.audit.chain import BEGIN, SEALED, Head, Tree
from iamroles_agent.base import files
from iamroles_agent.base.errors import InUseError, StartError

_BLOCK = 1 << 16


def head_path(path: Path) -> Path:
    """Return the path of a log's head file."""
    return path.with_name(path.name + ".head")


def lock_path(path: Path) -> Path:
    """Return the path of a log's lock file, beside what a link leads to."""
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name}.lock")


def worker_path(path: str, worker: int, turn: int = 0) -> Path:
    """Return the log of a worker: `audit.jsonl`, `audit.w1.jsonl`…, after a takeover `audit.w1.t1.jsonl`.

    All workers share a pipe or a terminal.
    """
    first = Path(path)
    if first.exists() and not first.is_file():
        return first
    mark = (f".w{worker}" if worker else "") + (f".t{turn}" if turn else "")
    return first.with_name(f"{first.stem}{mark}{first.suffix}")


def rotated_path(path: Path, seq: int) -> Path:
    """Return the new name of a log that the agent rotates itself; `seq` is about its last record's number."""
    # A new chain counts from 1, and files of an older one may be there.
    last = max((int(found.name.removesuffix(".gz")[-15:]) for found in _rotated(path)), default=0)
    return path.with_name(f"{path.name}.{max(seq, last + 1):015d}")


def _rotated(path: Path) -> list[Path]:
    name = re.compile(re.escape(path.name) + r"\.\d{15}(\.gz)?")
    return sorted(found for found in path.parent.iterdir() if name.fullmatch(found.name))


def over_budget(path: Path, keep: int) -> list[tuple[Path, int]]:
    """Return the oldest rotated files, with sizes, that must go so that the rest takes at most `keep`."""
    rotated = [(found, found.stat().st_size) for found in _rotated(path)]
    spent, gone = sum(size for _, size in rotated), 0
    while spent > keep:
        spent -= rotated[gone][1]
        gone += 1
    return rotated[:gone]


class LogFile:
    """A log that is open for appending, and locked; a path of None is standard error.

    `held` is the locked file of the log that this log follows, `within` the seconds for which another process
    may still write it. A missing file is created with mode 0640.

    Raises:
        OSError: the file cannot be opened.
        InUseError: another process writes it.
        StartError: it is not an audit log.
    """

    def __init__(self, path: Path | None, *, held: int | None = None, within: float = 0.0) -> None:
        self.path = path
        self.torn = 0
        """Bytes of an unfinished last line, left by a crash and cut off."""
        self.last = Head()
        """The chain as sealed in the file, or as the head file states it."""
        self.seq = 0
        """The last record, sealed or not."""
        self.unsealed = b""
        """Whole lines at the end that no seal covers."""
        self.missing = 0
        """Records that the head file vouches for and the log does not have."""
        self.size = self._begun = 0
        self._head: int | None = None
        self._lock: int | None = None
        if path is None:
            self._fd, self.regular = 2, False
            return
        files.target(path)  # a stranger's link would make the agent write where the stranger wants
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            found = os.fstat(self._fd)
            self.regular = stat.S_ISREG(found.st_mode)
            if self.regular and found.st_uid not in (0, os.geteuid()) and found.st_mode & stat.S_IWOTH:
                raise StartError(f"the audit log {path} belongs to user {found.st_uid}, who could change it")
            if self.regular:
                self._lock = _locked(path, held, within)
                self._head = _open_head(head_path(path))
                self._take_over(path)
        except BaseException:
            self.close()
            raise
        self.size = os.fstat(self._fd).st_size

    def _take_over(self, path: Path) -> None:
        assert self._head is not None  # noqa: S101 - opened just before
        vouched = Head.parse(os.pread(self._head, 1 << 14, 0).decode("ascii", "replace"))
        sealed, rest = self._read_tail(path)
        whole = rest[: rest.rfind(b"\n") + 1]
        self.torn = len(rest) - len(whole)
        found = _head_of(sealed, path) if sealed else Head()
        self.seq = _follows(whole, found.seq, path)
        if self.torn:
            if not rest[-self.torn :].startswith(BEGIN[: self.torn]):
                raise _foreign(path)
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - self.torn)
        self.unsealed = whole
        if vouched is not None and vouched.seq > found.seq:
            # An empty log was rotated while the agent was down. A log that ends before its head lost records;
            # the link to the head makes `audit verify` report the loss at exactly this position.
            self.last = vouched
            if sealed or _first(whole) not in (None, vouched.seq + 1):
                self.missing, self.unsealed = max(1, vouched.seq - self.seq), b""
            self.seq = max(self.seq, vouched.seq)
        elif vouched is not None and vouched.hash == found.hash:
            self.last = vouched
        else:
            self.last = found._replace(tree=tree_of(path))

    def _read_tail(self, path: Path) -> tuple[bytes, bytes]:
        """Read the last line that seals a batch, b"" if no line does, and the lines after it."""
        size = os.fstat(self._fd).st_size
        block = _BLOCK
        while True:
            begin = max(0, size - block)
            lines = os.pread(self._fd, block, begin).splitlines(keepends=True)
            first = 1 if begin else 0  # the block may begin inside a line
            for at in range(len(lines) - 1, first - 1, -1):
                if SEALED.search(lines[at]):
                    return lines[at], b"".join(lines[at + 1 :])
            if not begin:
                if lines and not _parsed(lines[0]) and not BEGIN.startswith(lines[0][: len(BEGIN)]):
                    raise _foreign(path)
                return b"", b"".join(lines)
            block *= 4

    def write(self, data: bytes) -> None:
        """Append a batch.

        Raises:
            OSError: the write failed. A regular file then ends where it did before. Standard error keeps what
                it took, and the next call, with the same batch, writes the rest.
        """
        rest = memoryview(data)[self._begun :]
        while rest:
            written = os.write(self._fd, rest)
            if self.regular and written < len(rest):
                # The disk is full in the middle of a batch. Remove the fragment: a file of whole batches can
                # be rotated, read or verified at any moment.
                os.ftruncate(self._fd, self.size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._begun, rest = self._begun + written, rest[written:]
        self._begun = 0
        if self.regular:
            self.size += len(data)

    def sync(self, head: Head) -> None:
        """Make what was written durable and store the head.

        Raises:
            OSError: the disk does not confirm it.
        """
        if self.regular and self._head is not None:
            os.fdatasync(self._fd)
            os.pwrite(self._head, str(head).encode(), 0)

    def moved(self) -> bool:
        """Return whether the log was rotated: the path names another file, or no file."""
        if self.path is None or not self.regular:
            return False
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        mine = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)

    def removed(self) -> bool:
        """Return whether the file has no name: what is written to it is lost."""
        return os.fstat(self._fd).st_nlink == 0

    def follow(self) -> LogFile:
        """Open the file that the path names now; it stays locked in between.

        Raises:
            OSError, StartError: as for a new `LogFile`. This file stays as it was.
        """
        return LogFile(self.path, held=self._lock)

    def emptied(self) -> bool:
        """Return whether the file was truncated (logrotate's `copytruncate`) since the last call."""
        if not self.regular:
            return False
        size = os.fstat(self._fd).st_size
        shorter, self.size = size < self.size, size
        return shorter

    def close(self) -> None:
        """Close the file and its lock; standard error stays open."""
        if self.path is not None:
            os.close(self._fd)
        for descriptor in (self._head, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._head = self._lock = None


def _open_head(path: Path) -> int:
    try:
        return files.open_beside(path, 0o640)
    except OSError as error:
        # What a link names would be overwritten.
        raise StartError(f"{path} cannot be the head of the audit log: {error.strerror}. Remove it") from None


def _locked(path: Path, held: int | None, within: float) -> int:
    there = lock_path(path)
    try:
        if held is not None and there.exists() and os.path.samestat(os.fstat(held), there.stat()):
            return os.dup(held)  # shares the lock
        return files.lock(there, within)
    except files.HeldError as error:
        raise InUseError(
            f"the audit log {path} is being written by {error.strerror}. "
            "Stop that one, or give each agent its own audit.path"
        ) from None
    except OSError as error:
        raise StartError(f"{error.filename} cannot lock the audit log: {error.strerror}") from None


def _foreign(path: Path) -> StartError:
    return StartError(
        f"{path} does not end in an audit record, so nothing is appended to it. "
        "Set audit.path to a file of its own, or move this one away"
    )


def _follows(lines: bytes, seq: int, path: Path) -> int:
    """Return the number of the last of these records, which must continue from `seq`."""
    for line in lines.splitlines():
        record = _parsed(line)
        if record is None or (seq and record["seq"] != seq + 1):
            raise _foreign(path)
        seq = record["seq"]
    return seq


def _first(lines: bytes) -> int | None:
    record = _parsed(lines.partition(b"\n")[0])
    return None if record is None else int(record["seq"])


def _head_of(line: bytes, path: Path) -> Head:
    record = _parsed(line)
    if record is None or not isinstance(record.get("hash"), str):
        raise _foreign(path)
    return Head(record["seq"], record["hash"])


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("seq")) is int else None


def tree_of(path: Path) -> Tree:
    """Compute the tree at the end of a file from the tree that a `start` record states, and its seals."""
    stated: tuple[Tree, int] | None = None
    entries: list[tuple[int, bytes]] = []
    with path.open("rb") as stream:
        for line in stream:
            sealed = SEALED.search(line)
            record = _parsed(line) if sealed or b'"kind":"start"' in line else None
            if record is None:
                continue
            if stated is None and record.get("kind") == "start":
                tree = Tree.stated(record.get("batches"), record.get("peaks"))
                after = record["after"] if type(record.get("after")) is int else 0
                stated = None if tree is None else (tree, after)
            if sealed:
                entries.append((record["seq"], bytes.fromhex(record["hash"])))
    tree, after = stated or (Tree(), 0)
    for seq, entry in entries:
        if seq > after:
            tree = tree.grown(entry)
    return tree
