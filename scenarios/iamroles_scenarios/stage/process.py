"""One child process of the stage: its own group, its output kept, gone when the stage is gone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from iamroles_scenarios.base.errors import AgentFileError
from iamroles_scenarios.stage.fork_server import environ
from iamroles_scenarios.stage.guard import Guard
from iamroles_scenarios.stage.output import Output
from iamroles_scenarios.stage.part import Part

_PYTHON = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""}
"""For agents in Python: what they say is heard at once, and a hundred starts compile them once."""
_STANDS = 5.0
"""Seconds that a process has to stand still."""


class Started(Protocol):
    """The part of `subprocess.Popen` that is used."""

    pid: int
    returncode: int | None
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None

    def wait(self) -> int:
        """Wait for its end, reap it, and give the exit code (negative: the signal)."""


class Child(Part):
    """A part as a child process. Its process group dies with `kill`, and with the stage through the guard.

    Once a process was reaped, its number and its group's may be given to somebody else: a machine that starts
    thousands of processes comes round within minutes. So a part that has ended is only looked at, and stays a
    zombie, until `kill` has signalled its group. After that nothing is signalled.

    Args:
        name: the part, for messages and logs.
        argv: command and arguments.
        guard: learns of the process group.
        env: additions to the environment.
        fds: descriptors that the child keeps, under the same numbers.
        popen: what starts it, called as `subprocess.Popen` is.

    Raises:
        StageError: the command cannot be started.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        guard: Guard,
        *,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        cwd: Path | None = None,
        popen: Callable[..., Started] = subprocess.Popen,
    ) -> None:
        self.name = name
        self._guard = guard
        try:
            self._process: Started = guard.start(
                popen,
                argv,
                stdin=subprocess.PIPE,  # never written: its end tells a part that the stage has gone
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**environ(), **_PYTHON, **(env or {})},
                pass_fds=fds,
                cwd=cwd,
                process_group=0,  # no session: where the kernel shares the CPU by sessions, judges starve
            )
        except OSError as error:
            remedy = "Is it executable (chmod +x), and the program there that its first line names (#!)?"
            remedy = f" {remedy}" if error.errno else ""
            raise AgentFileError(f"{name}: cannot start {argv[0]!r}: {error.strerror}.{remedy}") from error
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        assert self._process.stderr is not None  # noqa: S101
        self.stdout = Output(f"{name}-out", self._process.stdout)
        self.stderr = Output(f"{name}-err", self._process.stderr)

    @property
    def pid(self) -> int:
        """Process id, also of the group."""
        return self._process.pid

    @property
    def host_pid(self) -> int | None:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._ended() is None

    def _ended(self) -> int | None:
        """The exit code (negative: the signal) without reaping; None while it runs."""
        if self._process.returncode is not None:
            return self._process.returncode
        try:
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # another thread reaps it at this moment
            return self._process.wait()
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        if self._process.returncode is None:
            os.kill(self.pid, number)

    def send_to(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process that this one started."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def pause(self) -> None:
        """Freeze the whole group (SIGSTOP); returns when its first process stands."""
        self._signal_group(signal.SIGSTOP)
        end = time.monotonic() + _STANDS
        while _state(self._process.pid) not in ("T", "Z", "") and time.monotonic() < end:
            time.sleep(0.001)  # the kernel delivers the signal when it next runs the process

    def resume(self) -> None:
        """Let the group run again (SIGCONT)."""
        self._signal_group(signal.SIGCONT)

    def wait(self, within: float) -> int | None:
        """The exit code, or None if it still runs at the deadline."""
        if (code := self._ended()) is not None:
            return code
        with suppress(ProcessLookupError):
            number = os.pidfd_open(self.pid)
            try:
                poller = select.poll()
                poller.register(number, select.POLLIN)  # readable once the process has ended
                poller.poll(max(0.0, within) * 1000)
            finally:
                os.close(number)
        return self._ended()

    def kill(self) -> int:
        """SIGKILL to the whole group; idempotent."""
        self._signal_group(signal.SIGKILL)
        code = self._process.wait()
        self._guard.note(f"-{self.pid}")
        for output, stream in ((self.stdout, self._process.stdout), (self.stderr, self._process.stderr)):
            # A grandchild that left the group may hold the stream open; closing it under its reader blocks.
            if output.finish() and stream is not None:
                stream.close()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        return code

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _state(pid: int) -> str:
    """Return the letter of proc(5), "" if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2][:1]
    except OSError:
        return ""
