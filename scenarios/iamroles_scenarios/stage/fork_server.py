"""Starts Python agents by fork, from one process that has imported their modules once.

An agent's start is mostly imports: a quarter of a second of CPU for the reference agent, which a run starts
two hundred times, and the self-test a thousand times. A forked agent is what `subprocess.Popen` would have
started: a child of the judge, leader of its group, with its own pipes, environment, directory, signals and
exit code. It runs its own program from the first line on; only what that imports is there already. The kernel
makes it a child of the judge and not of this process (CLONE_PARENT of clone(2)). Only a process of one thread
may call that. So this file is run by path, and imports the standard library and those modules alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iamroles_scenarios.stage.process import Started

_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
"""Number of clone(2). On other machines `subprocess.Popen` starts each agent."""
_CLONE_PARENT = 0x8000
_LONGEST = 1 << 20
"""Bytes of an order: arguments and environment."""
_PATIENCE, _END = 60.0, 5.0
"""Seconds for the imports and a fork, and for the server's end."""


def environ() -> dict[str, str]:
    """Copy the environment, also while pytest, in another thread, takes the name of its test out of it."""
    return {name: value for name in list(os.environ) if (value := os.environ.get(name)) is not None}


class Forked:
    """A forked agent, as far as the stage uses a `subprocess.Popen` (`stage.process.Started`).

    Args:
        pid: a child of this process.
        pipes: this process's ends of its standard streams.
    """

    def __init__(self, pid: int, pipes: Sequence[int]) -> None:
        self.pid = pid
        self.stdin: IO[bytes] | None = os.fdopen(pipes[0], "wb", 0)
        self.stdout: IO[bytes] | None = os.fdopen(pipes[1], "rb")
        self.stderr: IO[bytes] | None = os.fdopen(pipes[2], "rb")
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def wait(self) -> int:
        with self._lock:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self.returncode


class ForkServer:
    """The judge's end of the fork server. Thread-safe.

    Args:
        preload: the modules that it imports.
        first: the folder in which it looks for modules first (`first_folder`).
        cwd: its working directory while it imports them.
    """

    def __init__(self, preload: Sequence[str], first: Path, cwd: Path | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for side in (ours, theirs):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
        ours.settimeout(_PATIENCE)
        self._socket, self._lock = ours, threading.Lock()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this very module
                [sys.executable, "-P", __file__, str(theirs.fileno()), str(first), *preload],
                stdin=subprocess.DEVNULL,
                env={**environ(), "PYTHONUNBUFFERED": "1"},  # as the stage starts an agent
                pass_fds=[theirs.fileno()],
                cwd=cwd,
                process_group=0,
            )

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        **how: Any,  # noqa: ANN401 - of Popen; the stage asks for what every fork gets
    ) -> Started:
        """Start a program of this Python, in a group of its own; any other as `subprocess.Popen` does.

        Raises:
            OSError: the fork server has ended, or stands still.
        """
        if _CLONE is None or not _ours(argv):
            return subprocess.Popen(argv, env=env, cwd=cwd, **how)  # noqa: S603 - as the stage would
        order = json.dumps([list(argv), dict(env), str(cwd or Path.cwd())]).encode()
        (theirs_in, ours_in), (ours_out, theirs_out), (ours_err, theirs_err) = (os.pipe() for _ in range(3))
        theirs = [theirs_in, theirs_out, theirs_err]
        try:
            with self._lock:
                socket.send_fds(self._socket, [order], theirs)
                pid = int(self._socket.recv(64))
        except (OSError, ValueError) as error:
            self._socket.close()  # an answer that comes late must not pass for that to the next order
            why = "the fork server ended, or did not import launch.preload (see above)"
            raise OSError(None, why) from error
        finally:
            for number in theirs:
                os.close(number)
        return Forked(pid, [ours_in, ours_out, ours_err])

    def close(self) -> None:
        """End it; the agents that it forked go on."""
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:  # it is stopped
            self._process.kill()
            self._process.wait()


def first_folder(argv: Sequence[str], cwd: Path) -> Path:
    """Return where a program looks for modules first: with -m in its cwd, else in the script's folder."""
    return cwd if argv[0] == sys.executable else Path(argv[0]).resolve().parent


def _ours(argv: Sequence[str]) -> bool:
    """Return whether this is `python -m MODULE …`, or a script, of the Python that runs the suite."""
    if argv[0] == sys.executable:
        return argv[1:2] == ["-m"]
    with Path(argv[0]).open("rb") as program:
        mark, _, interpreter = program.readline(4096).decode("utf-8", "replace").strip().rpartition("#!")
    found, ours = Path(interpreter), Path(sys.executable)  # pip may write `python3`, where this is `python`
    return not mark and found.parent == ours.parent and found.name.startswith("python")


def _fork() -> int:
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid: int = ctypes.PyDLL(None).syscall(_CLONE, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid:
        python.PyOS_AfterFork_Parent()
    else:
        python.PyOS_AfterFork_Child()
    return pid


def _serve(orders: socket.socket) -> list[str]:
    """Fork for each order until the judge ends. Return in the children alone, with their arguments."""
    while True:
        order, numbers, _, _ = socket.recv_fds(orders, _LONGEST, 3)
        if not order:
            sys.exit()
        pid = _fork()
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # both do it, so the group exists before either goes on
        if pid:
            orders.send(str(pid).encode())
            for number in numbers:
                os.close(number)
            continue
        for stream, number in enumerate(numbers):
            os.dup2(number, stream)
            os.close(number)
        orders.close()
        sys.stdout = os.fdopen(1, "w", 1, closefd=False)  # the former one may believe that it can seek
        argv, env, directory = json.loads(order)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(directory)
        return list(argv)


def _run(argv: list[str]) -> None:
    """Run the program, as Python would have been started with it."""
    module = argv[0] == sys.executable
    sys.argv = argv[2:] if module else argv
    if module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    for name in ("pkgutil", *sys.argv[3:]):  # `runpy.run_path` imports it
        import_module(name)
    gc.freeze()
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
