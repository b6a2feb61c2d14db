"""The audit log: every decision on record, in a chain that shows tampering.

Theory of operation. The event loop formats a line and appends its bytes to a buffer: about a microsecond, no
system call, no hash. One thread takes the buffer, at most a quarter of the declared `sync` window after its
first record, seals it (`chain`), writes it and makes it durable. Hashing, writing and syncing release the
interpreter's lock, so neither a long batch nor a slow disk delays a verdict.

A verdict is written once. Its full record is written when a file first uses it; each later use is one short
line with the number of that record. After a rotation everything is written in full again, so each file stands
alone. A stream has no files and may be cut anywhere: there every record is full.

What may be lost. A killed process loses its buffer: less than `sync`. A power cut loses what was not yet
synced: `sync`. With `sync = "0s"` a decision is answered only when its record is on disk: `record` takes it
at once, `confirmed` waits for it, and requests that come meanwhile share the next write.

When the log cannot be written: the disk is full or read-only, slower than the load, or has not answered for
longer than `sync` and a patience of 2 s, or the reader of standard error stalls. Records that were
acknowledged stay in memory, in order, and are written as soon as it works again. New decisions are, by
`on_error`, refused, or answered and buffered up to a bound and then dropped. Either way the agent says so at
once on standard error and counts it in the metrics. Afterwards a `gap` record in the log itself states how
many decisions it does not hold, from when to when, and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path

from iamroles_agent import __version__
from iamroles_agent.audit.chain import Head
from iamroles_agent.audit.file import LogFile, worker_path
from iamroles_agent.audit.journal import GAP, Journal
from iamroles_agent.audit.outage import LIMIT, Outage
from iamroles_agent.audit.record import (
    FORMAT,
    PreparedRecord,
    Value,
    event_members,
    members,
    request_member,
    timestamp,
)
from iamroles_agent.base.clocks import Clock
from iamroles_agent.base.config import AuditSettings
from iamroles_agent.base.errors import ENDING, InUseError, StartError

_log = logging.getLogger("iamroles.audit")

_BATCH = 1 << 20
"""Bytes after which the writer starts at once."""
_LINGER = 0.25
_RETRY = 0.2
"""Seconds between attempts to write while that fails."""
_LAST_PATIENCE = 5.0
"""Seconds that `close` waits for the disk."""
_KNOWN = 1024
"""Refusals of a credential, which the gate does not remember, that a file still holds in full only once."""
_TURNS = 8
"""Logs of their own that successive takeovers may open."""


Origin = tuple[str | None, int | None, int | None]
"""Request id, client port and HAProxy's stream of a record."""
NO_ORIGIN: Origin = (None, None, None)


@dataclass(frozen=True, slots=True)
class AuditState:
    """The log's state for the metrics and the operator."""

    records: int
    """Records made since the start."""
    lost: int
    """Decisions that are not on record, since the start."""
    failures: int
    """Failed attempts to write."""
    failing: bool
    """True while decisions cannot be recorded."""
    buffered: int
    """Bytes that are not on disk yet."""


class Audit:
    """The log of a worker process. Thread-safe, except for `confirmed`; one per process and path.

    Args:
        settings: `[audit]`.
        worker: number of the worker process; workers after the first have files of their own
            (`file.worker_path`), each with its own chain.
        clock: epoch seconds.
        takeover: whether to use a file of its own while another process still writes the usual one.

    Raises:
        StartError: the log cannot be opened, is in use, or is not an audit log.
    """

    def __init__(
        self,
        settings: AuditSettings,
        *,
        worker: int = 0,
        clock: Clock = time.time,
        takeover: bool = False,
    ) -> None:
        self.settings = settings
        self._worker = worker
        self._turns = range(_TURNS + 1 if takeover else 1)
        self._turn_taken = 0
        self._clock = clock
        self._linger = min(settings.sync / 4, _LINGER)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._outage = Outage(settings, clock, lambda: self._name, self._wake.set)
        self._written = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[tuple[int, asyncio.Future[bool]]] = deque()
        self._failures = 0
        self._closing = False
        # Lines, in the caller's thread and under the lock.
        self._pending = bytearray()
        self._seq = self._first = 0
        self._millisecond = -1
        self._prefix = ""
        self._end = "}\n"
        self._brief = True
        self._file_token = object()
        self._known: dict[str, str] = {}
        self._journal: Journal | None = None
        self._thread: threading.Thread | None = None
        if settings.path != "none":
            self._start()

    def _start(self) -> None:
        file = self._open()
        life = f',"writer":"{secrets.token_hex(4)}"'
        turn = f',"turn":{self._turn_taken}' if self._turn_taken else ""
        writer = f',"worker":{self._worker}{turn},"agent":"{__version__}"'
        self._end = "}\n" if file.regular else life + "}\n"
        self._brief = file.regular
        self._journal = journal = Journal(
            file, (writer + life if file.regular else writer).encode(), self, keep=self.settings.keep
        )
        self._first = self._seq = journal.safe
        if file.missing:
            _log.error(
                "the audit log %s ends %d records before its head says: records were removed. "
                "`iamroles audit verify` shows where",
                file.path,
                file.missing,
            )
        with self._lock:
            self._append(self.start_members("started", file, journal.written))
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def _open(self) -> LogFile:
        if self.settings.path == "stderr":
            return LogFile(None)
        for turn in self._turns:
            self._turn_taken = turn
            path = Path(self.settings.path)
            try:
                path = worker_path(self.settings.path, self._worker, turn)
                return LogFile(path, within=ENDING if len(self._turns) == 1 else 0.0)
            except InUseError:
                if turn == self._turns[-1]:
                    raise
            except OSError as error:
                raise StartError(
                    f"the audit log {path} cannot be opened: {error.strerror}. "
                    "Create its directory, writable for the agent, or change audit.path"
                ) from error
        raise AssertionError  # the last turn returned or raised

    # What the gate calls.

    @property
    def durable(self) -> bool:
        """True if an answer has to wait for `confirmed`."""
        return self._journal is not None and self.settings.sync == 0.0

    @property
    def refusing(self) -> bool:
        """True if only `internal_error` could be answered now."""
        with self._lock:
            return not self._outage.admit and self._outage.lasts()

    def record(
        self,
        prepared: PreparedRecord,
        request_id: str,
        src_port: int | None = None,
        stream: int | None = None,
    ) -> bool:
        """Record one use of a verdict. Never waits for the disk.

        Returns:
            Whether the decision may be answered as it is (if `durable`, after `confirmed`): False if it could
            not be recorded and `on_error` is `deny`; the caller then refuses with `internal_error`.
        """
        if self._journal is None:
            return True
        with self._lock:
            outage = self._outage
            busy = outage.writing_since or outage.why
            if busy and outage.lasts() and not outage.admits(len(self._pending)):
                return outage.admit
            in_file = prepared.file is self._file_token
            try:
                body = prepared.use if in_file else self._first_use(prepared)
                self._append(body, (request_id, src_port, stream))
            except MemoryError:  # its number goes to another record
                prepared.file = None
                self._known.pop(prepared.body, None)
                raise
        return True

    def confirmed(self) -> Awaitable[bool]:
        """Wait until everything recorded so far is on disk. From one event loop only.

        Returns:
            As `record` does.
        """
        return self._confirmed(self._seq)

    async def _confirmed(self, seq: int) -> bool:
        journal = self._journal
        if journal is None or journal.safe >= seq:
            return True
        self._loop = loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((seq, future))
        if journal.safe >= seq or self._outage.why:
            self._confirm()
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._outage.patience)
        except TimeoutError:
            with self._lock:
                self._outage.begin(f"no answer from the disk within {self._outage.patience:g} s")
            self._confirm()
            return await future

    def event(
        self,
        name: str,
        fields: Mapping[str, Value] | None = None,
        *,
        request_id: str | None = None,
        src_port: int | None = None,
        stream: int | None = None,
    ) -> None:
        """Record an event beside decisions: a worker was replaced, a stream was cut, a file was removed.

        Never refused and never waited for, because the event cannot be undone. The name is one word; see
        `record.event_members` for the bounds of the fields.
        """
        self._note(event_members(name, fields or {}), (request_id, src_port, stream))

    def policy(self, version: str, *, accepted: bool, detail: str = "") -> None:
        """Record that a policy was put in force or rejected (change management)."""
        self._note(
            members({"kind": "policy", "policy": version, "accepted": accepted, "detail": detail or None})
        )

    def _note(self, body: str, origin: Origin = NO_ORIGIN) -> None:
        if self._journal is None:
            return
        with self._lock:
            if len(self._pending) < 2 * LIMIT:  # a disk that has been stuck for days
                self._append(body, origin)

    def reopen(self) -> None:
        """Check now whether the log was rotated (SIGHUP); each batch checks it too."""
        self._wake.set()
        self._hurry.set()

    def state(self) -> AuditState:
        with self._lock:
            return AuditState(
                self._seq - self._first,
                self._outage.lost_ever,
                self._failures,
                self._outage.lasts(),
                self._buffered,
            )

    @property
    def _buffered(self) -> int:
        return len(self._pending) + (0 if self._journal is None else self._journal.unwritten_bytes)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything recorded so far is on disk; False if that did not happen in time."""
        journal = self._journal
        if journal is None:
            return True
        with self._lock:
            seq = self._seq
        self.reopen()
        with self._written:
            return self._written.wait_for(lambda: journal.safe >= seq, timeout)

    def close(self) -> None:
        """Write the remaining records, end the chain, close the file; log an error if they are lost."""
        if self._thread is None or self._journal is None:
            return
        self._closing = True
        self.reopen()
        self._thread.join(_LAST_PATIENCE)
        if self._thread.is_alive():  # stuck in a write that never returns
            _log.error("the audit log %s does not take its last records", self._name)
            return
        self._journal.file.close()
        self._journal = self._thread = None

    # Lines: under the lock, in the caller's thread.

    def _append(self, body: str, origin: Origin = NO_ORIGIN) -> None:
        pending = self._pending
        if not pending:
            self._wake.set()
        seq = self._seq + 1
        pending += self._line(seq, body, origin)
        self._seq = seq  # not before: memory may end
        if len(pending) >= _BATCH:
            self._hurry.set()
            if self._buffered >= LIMIT:
                self._outage.begin(f"the disk is slower than the load: {LIMIT >> 20} MiB wait to be written")

    def _line(self, seq: int, body: str, origin: Origin = NO_ORIGIN) -> bytes:
        request_id, src_port, stream = origin
        now = self._clock()
        millisecond = int(now * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._prefix = f'{{"time":"{timestamp(now)}","seq":'
        if request_id is not None and src_port is not None and stream is not None:  # the usual case
            request = request_member(request_id)
            return (
                f'{self._prefix}{seq},"request":{request},"port":{src_port},"stream":{stream}{body}{self._end}'
            ).encode()
        request = "" if request_id is None else f',"request":{request_member(request_id)}'
        port = "" if src_port is None else f',"port":{src_port}'
        last = "" if stream is None else f',"stream":{stream}'
        return f"{self._prefix}{seq}{request}{port}{last}{body}{self._end}".encode()

    def _first_use(self, prepared: PreparedRecord) -> str:
        """Return the members for a verdict whose object does not know yet that this file holds it."""
        if not self._brief:
            return prepared.body
        prepared.file = self._file_token
        use = self._known.get(prepared.body)
        if use is not None:
            prepared.use = use
            return use
        prepared.use = f',"use":{self._seq + 1}'
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[prepared.body] = prepared.use
        return prepared.body

    # Called by the journal, in its thread.

    def take(self, kind: str = "", reason: str = "") -> bytearray:
        """Take all lines that wait, and a last line of this kind if one is given."""
        with self._lock:
            rest = bytearray()
            if kind:
                self._append(members({"kind": kind, "reason": reason}))
            lines, self._pending = self._pending, rest
            return lines

    def rotate(self) -> bytearray:
        """Take all lines that wait and an `end`; the `start` that follows, with a `GAP` in it, waits then."""
        with self._lock:
            self._forget_uses()
            seq = self._seq + 2
            start = bytearray(self._line(seq, GAP.decode()))
            self._pending += self._line(seq - 1, members({"kind": "end", "reason": "rotated"}))
            lines, self._pending, self._seq = self._pending, start, seq
            return lines

    def restart(self, reason: str, file: LogFile, after: Head) -> None:
        """Make a `start` record in the middle of a file: which record its first one follows."""
        with self._lock:
            self._forget_uses()
            self._append(self.start_members(reason, file, after))

    def _forget_uses(self) -> None:
        self._file_token = object()
        self._known.clear()

    def start_members(self, reason: str, file: LogFile, after: Head) -> str:
        """Make the members of a `start` record: reason, settings, the chain and tree that it continues."""
        peaks = ",".join(f'"{peak.hex()}"' for peak in after.tree.peaks)
        return (
            members(
                {
                    "kind": "start",
                    "format": FORMAT,
                    "reason": reason,
                    "pid": os.getpid(),
                    "sync": self.settings.sync,
                    "on_error": self.settings.on_error,
                    "after": after.seq or None,
                    "torn": file.torn or None,
                    "missing": file.missing or None,
                }
            )
            + f',"batches":{after.tree.size},"peaks":[{peaks}]'
        )

    @property
    def _name(self) -> str:
        path = None if self._journal is None else self._journal.file.path
        return "standard error" if path is None else str(path)

    def _confirm(self) -> None:
        """Answer the waiters whose record is on disk, or will not be in time; on the event loop."""
        waiting, safe = self._waiting, 0 if self._journal is None else self._journal.safe
        while waiting and (waiting[0][0] <= safe or self._outage.why):
            seq, future = waiting.popleft()
            if not future.done():
                future.set_result(seq <= safe or self._outage.answer(seq))

    def wake_waiters(self) -> None:
        """Wake the waiters: more records are on disk, or will not be in time."""
        with self._written:
            self._written.notify_all()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits
                self._loop.call_soon_threadsafe(self._confirm)

    # The writer thread.

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._hurry.wait(self._linger)
            self._wake.clear()
            self._hurry.clear()
            closing = self._closing  # read once: records until `close` must still be taken below
            done = self._drain(closing)
            if closing:
                if not done:
                    _log.error("audit: the last records of %s are lost", self._name)
                return
            if not done:
                self._hurry.clear()
                self._hurry.wait(_RETRY)
                self._wake.set()

    def _drain(self, closing: bool) -> bool:
        """Write and sync all lines; return False if the writer must try again."""
        assert self._journal is not None  # noqa: S101 - the thread runs only while there is a journal
        self._outage.writing_since = time.monotonic()
        try:
            self._journal.flush(closing=closing)
            with self._lock:
                if gap := self._outage.end():
                    self._append(gap)
        except Exception as error:  # noqa: BLE001 - after any error decisions must not stay unrecorded
            self._failures += 1
            with self._lock, contextlib.suppress(MemoryError):  # of its message; the writer lives on
                self._outage.begin(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}")
            return False
        else:
            return True
        finally:
            self._outage.writing_since = 0.0
            self.wake_waiters()
