"""The audit log: every decision and termination on record, in a chain that shows what was tampered with.

Theory of operation. The event loop formats a record, links it into the chain (`audit_record.Chain`) and
appends its bytes to a buffer: a few microseconds, no system call. One thread takes the buffer, at most a
quarter of the declared `sync` window after its first record, writes it and makes it durable; writing and
syncing release the interpreter, so a slow disk never delays a verdict. The chain is linked in the caller,
not in the thread, because a thread that computes would hold the interpreter for milliseconds at a time.

What may be lost. A killed process loses what its buffer held: less than `sync`. A power cut loses what was
not yet synced: `sync`. With `sync = "0s"` a decision is answered only when its record is on disk.

What happens when the log cannot be written (a full disk, a disk slower than the load). Records that were
acknowledged stay in memory, in order, and are written as soon as it works again. New decisions are, by
`on_error`, refused, or answered and buffered up to a bound and then dropped. Either way it is said at once
on standard error, counted in the metrics, and afterwards stated in the log itself by a `gap` record with how
many decisions it does not hold, from when to when, and why.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from iamroles_agent.audit.file import Head, LogFile, worker_path
from iamroles_agent.audit.record import (
    FORMAT,
    Chain,
    PreparedRecord,
    members,
    prepare,
    termination,
    timestamp,
)
from iamroles_agent.config import AuditSettings
from iamroles_agent.errors import StartError
from iamroles_agent.identity import Decision

_log = logging.getLogger("iamroles.audit")

_BATCH = 1 << 20
"""Bytes after which the writer does not wait any longer."""
_LIMIT = 64 << 20
"""Bytes the buffer may hold before decisions count as not recordable."""
_LINGER = 0.25
_RETRY = 0.2
"""Seconds between attempts to write while that fails."""
_SYNC_PATIENCE = 5.0
"""Seconds a `sync = "0s"` decision waits for the disk before it counts as not recorded."""


@dataclass(frozen=True, slots=True)
class AuditState:
    """What the metrics and the operator see."""

    records: int
    """Records linked since the start."""
    lost: int
    """Decisions that are not on record, since the start."""
    failures: int
    """Failed attempts to write."""
    failing: bool
    """Whether decisions can not be recorded right now."""
    buffered: int
    """Bytes that are not on disk yet."""


class Audit:
    """The log of one worker process. Thread-safe; one per process and path.

    Args:
        settings: `[audit]`.
        worker: number of the worker process; workers after the first have files of their own
            (`audit_file.worker_path`), each with its own chain.
        clock: epoch seconds.

    Raises:
        StartError: the log cannot be opened, is in use, is not an audit log, or is required and absent.
    """

    def __init__(
        self, settings: AuditSettings, *, worker: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        if settings.path == "none" and settings.required:
            raise StartError('audit.required is true and audit.path is "none". Name a file, or "stderr"')
        self.settings = settings
        self._worker = worker
        self._clock = clock
        self._admit_unrecorded = settings.on_error == "allow"
        self._durable = settings.sync == 0.0
        self._linger = min(settings.sync / 4, _LINGER)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._written = threading.Condition()
        self._pending = bytearray()
        self._hand = bytearray()
        self._hand_head = Head()
        self._blocked = ""
        self._lost = self._lost_ever = self._failures = self._first = 0
        self._lost_since = 0.0
        self._overruled: int | None = None
        self._safe = 0
        self._closing = False
        self._file: LogFile | None = None
        self._chain = Chain(worker=worker, clock=clock)
        self._thread: threading.Thread | None = None
        if settings.path != "none":
            self._start()

    def _start(self) -> None:
        self._file = file = self._open()
        self._chain = Chain(worker=self._worker, clock=self._clock, seq=file.last.seq, head=file.last.hash)
        self._safe = self._first = file.last.seq
        if file.missing:
            _log.error(
                "the audit log %s ends %d records before its head says: records were removed. "
                "`iamroles audit verify` shows where",
                file.path,
                file.missing,
            )
        self._append(self._start_body("started", file))
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def _open(self) -> LogFile:
        if self.settings.path == "stderr":
            return LogFile(None)
        path = worker_path(self.settings.path, self._worker)
        try:
            return LogFile(path)
        except OSError as error:
            raise StartError(
                f"the audit log {path} cannot be opened: {error.strerror}. "
                "Create its directory, writable for the agent, or change audit.path"
            ) from error

    # What the gate calls.

    @staticmethod
    def prepare(
        decision: Decision,
        *,
        src: str,
        method: str,
        host: str,
        path: str,
        requested_role: str | None = None,
        policy_version: str,
        generation: int,
        enforced: bool = True,
    ) -> PreparedRecord:
        """All of the record that requests with the same verdict share; see `audit_record.prepare`."""
        return prepare(
            decision,
            src=src,
            method=method,
            host=host,
            path=path,
            requested_role=requested_role,
            policy_version=policy_version,
            generation=generation,
            enforced=enforced,
        )

    def record(
        self,
        prepared: PreparedRecord,
        request_id: str,
        src_port: int | None = None,
        stream: int | None = None,
    ) -> bool:
        """Record one use of a verdict.

        Returns:
            Whether the decision may be answered as it is: False where it could not be recorded and
            `on_error` is `deny`; the caller then refuses with `internal_error`.
        """
        if self._file is None:
            return True
        with self._lock:
            if self._blocked and not self._room():
                return self._admit_unrecorded
            self._append(prepared.body, request_id, src_port, stream)
            seq = self._chain.seq
        return self._await_disk(seq) if self._durable else True

    def decision(
        self,
        decision: Decision,
        *,
        request_id: str,
        src: str,
        src_port: int | None = None,
        stream: int | None = None,
        method: str,
        host: str,
        path: str,
        requested_role: str | None = None,
        policy_version: str,
        generation: int,
        enforced: bool = True,
    ) -> bool:
        """Prepare and record in one go, for a verdict that is not cached. Returns as `record` does."""
        prepared = prepare(
            decision,
            src=src,
            method=method,
            host=host,
            path=path,
            requested_role=requested_role,
            policy_version=policy_version,
            generation=generation,
            enforced=enforced,
        )
        return self.record(prepared, request_id, src_port, stream)

    def termination(
        self,
        *,
        request_id: str,
        src: str,
        src_port: int | None,
        principal: str,
        session: str,
        role: str,
        backend: str,
        cause: str,
        expires: int | None,
        stream: int | None = None,
    ) -> bool:
        """Record that a live connection was cut, e.g. `cause="token_expired"`. Returns as `record` does."""
        prepared = termination(
            principal=principal,
            session=session,
            role=role,
            src=src,
            backend=backend,
            cause=cause,
            expires=expires,
        )
        return self.record(prepared, request_id, src_port, stream)

    def policy(self, version: str, *, accepted: bool, detail: str = "") -> None:
        """Record that a policy was put into force or turned down (change management)."""
        if self._file is None:
            return
        body = members({"kind": "policy", "policy": version, "accepted": accepted, "detail": detail or None})
        with self._lock:
            self._append(body)

    def reopen(self) -> None:
        """Look now whether the log was rotated (SIGHUP); before each batch it is looked at anyway."""
        self._wake.set()
        self._hurry.set()

    def state(self) -> AuditState:
        """Counters since the start."""
        return AuditState(
            self._chain.seq - self._first,
            self._lost_ever,
            self._failures,
            self._blocked != "",
            len(self._pending) + len(self._hand),
        )

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything recorded so far is on disk; False if that did not happen in time."""
        if self._file is None:
            return True
        with self._lock:
            seq = self._chain.seq
        self._hurry.set()
        self._wake.set()
        with self._written:
            return self._written.wait_for(lambda: self._safe >= seq, timeout)

    def close(self) -> None:
        """Write what is left, end the chain, let go of the file. What cannot be written is said and lost."""
        if self._thread is None or self._file is None:
            return
        self._closing = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(_SYNC_PATIENCE)
        if self._thread.is_alive():  # stuck in a write that never returns
            _log.error("the audit log %s does not take its last records", self._name)
            return
        self._file.close()
        self._file = self._thread = None

    # Under the lock, in the caller's thread.

    def _append(
        self, body: str, request_id: str | None = None, src_port: int | None = None, stream: int | None = None
    ) -> None:
        pending = self._pending
        if not pending:
            self._wake.set()
        self._chain.link(pending, body, request_id, src_port, stream)
        if len(pending) >= _BATCH:
            self._hurry.set()
            if len(pending) >= _LIMIT and not self._blocked:
                self._block(f"the disk is slower than the load: {_LIMIT >> 20} MiB wait to be written")

    def _room(self) -> bool:
        """Whether a record may still be buffered while the log fails; counts the decision as lost if not."""
        if self._admit_unrecorded and len(self._pending) < _LIMIT:
            return True
        self._lost += 1
        self._lost_ever += 1
        return False

    def _block(self, why: str) -> None:
        self._blocked = why
        self._lost_since = self._clock()
        _log.error(
            "audit: %s cannot be written: %s; decisions are now %s (audit.on_error = %s)",
            self._name,
            why,
            "answered unrecorded" if self._admit_unrecorded else "refused",
            self.settings.on_error,
        )

    def _unblock(self) -> None:
        if not self._blocked:
            return
        _log.error("audit: %s is written again; %d decisions are not on record", self._name, self._lost)
        why, self._blocked = self._blocked, ""
        if self._lost or self._overruled is not None:
            since, lost, self._lost = self._lost_since, self._lost, 0
            overruled, self._overruled = self._overruled, None
            self._append(
                members(
                    {
                        "kind": "gap",
                        "lost": lost,
                        "since": timestamp(since),
                        "overruled": overruled,
                        "answered": self.settings.on_error,
                        "detail": why,
                    }
                )
            )

    def _start_body(self, reason: str, file: LogFile, after: int | None = None) -> str:
        return members(
            {
                "kind": "start",
                "format": FORMAT,
                "reason": reason,
                "pid": os.getpid(),
                "sync": self.settings.sync,
                "on_error": self.settings.on_error,
                "after": after,
                "torn": file.torn or None,
                "missing": file.missing or None,
            }
        )

    @property
    def _name(self) -> str:
        return "standard error" if self._file is None or self._file.path is None else str(self._file.path)

    def _await_disk(self, seq: int) -> bool:
        self._hurry.set()
        with self._written:
            self._written.wait_for(lambda: self._safe >= seq or self._blocked != "", _SYNC_PATIENCE)
            if self._safe >= seq:
                return True
        with self._lock:
            if not self._blocked:
                self._block(f"no answer from the disk within {_SYNC_PATIENCE:g} s")
            if not self._admit_unrecorded and self._overruled is None:
                self._overruled = seq
        return self._admit_unrecorded

    # The writer thread.

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._hurry.wait(self._linger)
            self._wake.clear()
            self._hurry.clear()
            closing = self._closing  # read once: what is recorded until `close` must still be taken below
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
        """Write and sync what is there; False if it has to be tried again."""
        try:
            self._flow(closing)
        except Exception as error:  # noqa: BLE001 - whatever it is, decisions must not go on unrecorded
            self._failures += 1
            with self._lock:
                if not self._blocked:
                    self._block(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}")
            with self._written:
                self._written.notify_all()
            return False
        with self._lock:
            self._unblock()
        return True

    def _flow(self, closing: bool) -> None:
        file = self._file
        assert file is not None  # noqa: S101 - the thread only runs while a file is open
        if file.emptied():
            self._continue("truncated", file)
        moved = file.moved()
        if self._hand:  # what could not be written before; where to is wherever the path leads now
            if moved:
                old, self._file = file, self._open()
                old.close()
                file, moved = self._file, False
                self._continue("rotated", file)
            self._put(file)
        if moved:
            file = self._follow(file)
        self._take("end" if closing else "", "stopped")
        self._put(file)

    def _take(self, mark: str, reason: str, following: LogFile | None = None) -> None:
        with self._lock:
            if mark:
                self._append(members({"kind": mark, "reason": reason}))
            self._hand, self._pending = self._pending, bytearray()
            self._hand_head = Head(self._chain.seq, self._chain.head)
            if following is not None:  # in the same breath, so that no decision slips in before it
                self._append(self._start_body("rotated", following, after=self._chain.seq))

    def _put(self, file: LogFile) -> None:
        file.write(self._hand)
        file.sync(self._hand_head)
        with self._written:
            self._safe = self._hand_head.seq
            self._written.notify_all()

    def _follow(self, old: LogFile) -> LogFile:
        """End the old file, open what the path names now, and say in it which record it continues."""
        new = self._open()
        self._take("end", "rotated", following=new)
        try:
            self._put(old)
        except OSError:
            new.close()
            raise
        self._file = new
        old.close()
        return new

    def _continue(self, reason: str, file: LogFile) -> None:
        with self._lock:
            self._append(self._start_body(reason, file, after=self._safe))
