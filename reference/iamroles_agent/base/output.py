"""Write to standard output and standard error without waiting for their reader.

A reader that stops (a full pipe, a stopped terminal, a stalled journal) must not delay a decision, a
heartbeat or a reload. `O_NONBLOCK` on the given descriptor would also hold for all other processes that share
it, so a pipe or terminal is opened again through /proc, and a socket gets `MSG_DONTWAIT`. If it cannot be
opened again, it is asked before each write whether it takes `PIPE_BUF` bytes. A file is written to directly.

A line that cannot be written at once waits in order, up to a bound. Lines over the bound are dropped and
counted, and the log reports them when the reader is back. A line of at most `PIPE_BUF` bytes leaves in one
write, so that lines of several processes do not tear.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import threading
import time
from collections import deque

log = logging.getLogger("iamroles.output")

_LONGEST = select.PIPE_BUF - 1
"""Bytes of a line of the log."""


class Output:
    """Descriptor 1 or 2; `limit` bytes may wait."""

    def __init__(self, fd: int, limit: int) -> None:
        self.dropped = 0
        """Lines that were not written and never will be."""
        self._limit = limit
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._unsaid = 0
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._poll: select.poll | None = None
        """Asks a pipe or terminal that cannot be opened again, because another user made it."""
        self._fd = self._number = fd
        self._open(fd)
        os.register_at_fork(after_in_child=self._forget)

    def _open(self, fd: int) -> None:
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(fd))
            elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._fd = os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

    def _forget(self) -> None:
        """Clear the queue in a forked child: the parent writes its lines."""
        self._lock = threading.Lock()
        self._waiting.clear()
        self._size = self._unsaid = 0

    def write(self, line: bytes) -> None:
        """Write a line, now or later."""
        with self._lock:
            if self._size + len(line) > self._limit:
                self.dropped += 1
                self._unsaid += 1
                return
            self._waiting.append(line)
            self._size += len(line)
            self._flush()

    def flush(self) -> bool:
        """Write waiting lines as far as possible now; return whether no line is left."""
        with self._lock:
            self._flush()
            return not self._waiting

    def drain(self, seconds: float) -> None:
        """Wait up to `seconds` for the reader, before the process ends."""
        deadline = time.monotonic() + seconds
        while not self.flush() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _flush(self) -> None:
        waiting = self._waiting
        while waiting:
            line = waiting[0]
            try:
                sent = self._send(line)
            except BlockingIOError:
                return
            except OSError:
                sent = len(line)  # nothing reads it
            self._size -= sent
            if sent < len(line):
                waiting[0] = line[sent:]
                continue
            waiting.popleft()
            if self._unsaid and not waiting:
                lost, self._unsaid = self._unsaid, 0
                if self._number == 1:  # its lines are JSON, for a program
                    log.warning("%d lines on standard output were dropped: nobody read them", lost)
                    continue
                note = f"{lost} lines of the log were dropped: nobody read them\n".encode()
                waiting.append(note)
                self._size += len(note)

    def _send(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._poll is not None:  # a pipe that is ready takes as much without waiting
            data = data[: select.PIPE_BUF]
            if not self._poll.poll(0):
                raise BlockingIOError
        return os.write(self._fd, data)


class Handler(logging.Handler):
    """Writes the log to an `Output`."""

    def __init__(self, out: Output) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; cut a single line that is longer than a pipe takes at once."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)
            return
        if len(line) > _LONGEST and b"\n" not in line[:-1]:
            line = line[: _LONGEST - 4] + "…\n".encode()
        self._out.write(line)


_outputs: dict[int, Output] = {}


def output(fd: int) -> Output:
    """Return the output on 1 or 2, opened once."""
    if fd not in _outputs:
        _outputs[fd] = Output(fd, (16 if fd == 1 else 1) << 20)
    return _outputs[fd]


def log_to_stderr(level: str) -> None:
    """Send the log to standard error, without waiting for its reader."""
    handler = Handler(output(2))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def flush() -> None:
    """Write the waiting lines of all outputs; never waits."""
    for out in _outputs.values():
        out.flush()
