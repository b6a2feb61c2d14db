"""Processes and signals: `workers = N` on one address, each with its own event loop, or one process alone.

With one worker this process serves itself. With more, it forks them and only watches: it never starts an
event loop or a thread, so that a fork is always of a simple process and a replacement can be made at any
time. It and each worker share a socket pair. Down go the commands `reload` and `drain`; up come JSON lines:
`ready`, `reloaded`, `failed`. An end of file says that the other one is dead, whatever killed it: a worker
without its parent drains, a parent without a worker makes a new one. Terminal and process-group signals
therefore do no harm: workers ignore SIGINT and SIGHUP, the parent passes them on as commands.

What is printed on standard output is the launch contract (SPEC.md section 8): one `ready` line when all
workers are ready, and one line for each reload.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import uvloop

from iamroles_agent import __version__, listening
from iamroles_agent.config import AgentSettings
from iamroles_agent.errors import ConfigError, StartError
from iamroles_agent.server import LINGER, ConnectionStats, Gate, Server

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0
"""Seconds before a dead worker is replaced; doubled each time, until one lives `HEALTHY` seconds."""
HEALTHY = 10.0
_KILL_MARGIN = 3.0
"""Seconds beyond the drain in which a worker must be gone, else it is killed."""
_RELOAD, _DRAIN = "reload", "drain"

log = logging.getLogger("iamroles.supervisor")

Line = dict[str, object]
"""A line of JSON."""


class App(Protocol):
    """What one worker runs beside the sockets."""

    @property
    def gate(self) -> Gate:
        """Who decides; asked for after `start`."""

    async def start(self, connections: ConnectionStats, /) -> None:
        """Get ready to decide. `connections` are the counters that the server of this worker fills.

        Raises:
            StartError, ConfigError: the worker cannot start.
        """

    async def reload(self) -> Line:
        """Take up a changed file, or keep all as it was.

        Returns:
            `{"reloaded": true, …}` or `{"reloaded": false, "error": "…"}`.
        """

    async def close(self) -> None:
        """Release everything; all connections are closed by then. Called after a failed `start`, too."""


Build = Callable[[int], App]
"""Makes the app of the worker with this index, 0 to workers - 1; called in the worker's own process."""


def serve(settings: AgentSettings, build: Build) -> int:
    """Run until SIGTERM or SIGINT.

    Returns:
        The exit status: 0, or 1 if a worker had to be killed.

    Raises:
        StartError, ConfigError: nothing runs any more.
    """
    if settings.workers == 1:
        return _serve_alone(settings, build)
    return Supervisor(settings, build).run()


async def _work(
    app: App,
    settings: AgentSettings,
    sock: socket.socket | None,
    commands: asyncio.Queue[str],
    report: Callable[[Line], None],
) -> None:
    """The life of one worker."""
    connections = ConnectionStats()
    try:
        await app.start(connections)
        server = Server(app.gate, settings, sock=sock, stats=connections)
        report({"ready": True, "address": await server.start()})
        while await commands.get() == _RELOAD:
            report(await _reload(app))
        await server.drain()
    finally:
        await app.close()


async def _reload(app: App) -> Line:
    try:
        return await app.reload()
    except Exception as error:
        log.exception("the reload failed; what was in force stays in force")
        return {"reloaded": False, "error": str(error) or type(error).__name__}


def _say(line: Line) -> None:
    """Print a line of the launch contract. A reader that went away is no reason to stop serving."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _ready_line(address: object, workers: int) -> Line:
    return {
        "ready": True,
        "address": address,
        "pid": os.getpid(),
        "version": __version__,
        "workers": workers,
    }


# One process


def _serve_alone(settings: AgentSettings, build: Build) -> int:
    def report(line: Line) -> None:
        _say(_ready_line(line["address"], 1) if "ready" in line else line)

    async def main() -> None:
        commands: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, commands.put_nowait, _RELOAD)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, commands.put_nowait, _DRAIN)
        await _work(build(0), settings, None, commands, report)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    return 0


# Several processes: the worker's side


async def _work_for(
    parent: socket.socket, settings: AgentSettings, build: Build, index: int, reservation: socket.socket
) -> None:
    """A worker: commands come from the parent, whose death is the command to drain."""
    commands: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, commands.put_nowait, _DRAIN)
    reader, _ = await asyncio.open_unix_connection(sock=parent.dup())

    async def listen() -> None:
        while command := await reader.readline():
            commands.put_nowait(command.decode().strip())
        commands.put_nowait(_DRAIN)

    listener = loop.create_task(listen())
    try:
        sock = listening.join(reservation)
        await _work(build(index), settings, sock, commands, lambda line: _send(parent, line))
    finally:
        listener.cancel()


def _send(channel: socket.socket, line: Line) -> None:
    with contextlib.suppress(OSError):
        channel.sendall(json.dumps(line).encode() + b"\n")


def _run_worker(
    parent: socket.socket, settings: AgentSettings, build: Build, index: int, reservation: socket.socket
) -> int:
    """Exit status of a worker."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work_for(parent, settings, build, index, reservation))
    except (StartError, ConfigError) as error:
        _send(parent, {"failed": str(error)})
        return 3
    except Exception as error:
        log.exception("worker %d failed", index)
        _send(parent, {"failed": f"worker {index} failed: {type(error).__name__}: {error}"})
        return 1
    return 0


# Several processes: the parent's side


@dataclass(slots=True)
class _Worker:
    """One of N places; the process in it may change."""

    index: int
    pid: int = 0
    """0 while there is no process."""
    channel: socket.socket | None = None
    received: bytes = b""
    ready: bool = False
    since: float = 0.0
    """Monotonic time of the start, or, without a process, of the next attempt."""
    backoff: float = FIRST_BACKOFF
    error: str = ""


@dataclass(slots=True)
class _Reload:
    """A reload that is going round."""

    waiting: set[int]
    outcomes: dict[int, Line] = field(default_factory=dict)

    def line(self) -> Line:
        """One outcome for all: only true if it is for each."""
        failed = {index: line for index, line in self.outcomes.items() if line.get("reloaded") is not True}
        if not self.outcomes:
            return {"reloaded": False, "error": "no worker lived to reload", "workers": 0}
        if not failed:
            return {**next(iter(self.outcomes.values())), "workers": len(self.outcomes)}
        line = {**next(iter(failed.values())), "reloaded": False}
        return line if len(failed) == len(self.outcomes) else {**line, "failed_workers": sorted(failed)}


class Supervisor:
    """Forks the workers and watches them.

    Args:
        settings: with `workers` of 2 or more.
        build: makes the app of a worker, in its process.
    """

    def __init__(self, settings: AgentSettings, build: Build) -> None:
        self._settings = settings
        self._build = build
        self._workers = [_Worker(index) for index in range(settings.workers)]
        self._selector = selectors.DefaultSelector()
        self._served = False
        """Whether all have been ready once: from then on a dead worker is replaced."""
        self._reload: _Reload | None = None
        self._reload_again = False
        self._stop_at: float | None = None
        """Monotonic time at which what still lives is killed."""
        self._failure = ""
        self._killed = False

    def run(self) -> int:
        """As `serve`."""
        self._reservation = listening.reserve(self._settings.listen)
        address = listening.address_of(self._reservation)
        wake, waker = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, lambda *_: None) for number in handled}
        former = signal.set_wakeup_fd(waker.fileno())
        self._selector.register(wake, selectors.EVENT_READ, lambda: self._signalled(wake.recv(64)))
        try:
            for worker in self._workers:
                self._fork(worker)
            self._watch(address)
        finally:
            self._kill_all()
            signal.set_wakeup_fd(former)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            for sock in (wake, waker, self._reservation):
                sock.close()
            listening.remove_unix(address)
        if self._failure:
            raise StartError(self._failure)
        return 1 if self._killed else 0

    def _watch(self, address: str) -> None:
        while self._stop_at is None or any(worker.pid for worker in self._workers):
            for key, _ in self._selector.select(self._patience()):
                key.data()
            now = time.monotonic()
            if self._stop_at is not None:
                if now >= self._stop_at:
                    self._kill_all()
                continue
            for worker in self._workers:
                if not worker.pid and now >= worker.since:
                    self._fork(worker)
            if not self._served and all(worker.ready for worker in self._workers):
                self._served = True
                _say(_ready_line(address, len(self._workers)))

    def _patience(self) -> float | None:
        """Seconds until something is due without an event."""
        due = [worker.since for worker in self._workers if not worker.pid]
        if self._stop_at is not None:
            due = [self._stop_at]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _fork(self, worker: _Worker) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ours.close()
                self._become_worker()
                status = _run_worker(theirs, self._settings, self._build, worker.index, self._reservation)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        theirs.close()
        ours.setblocking(False)
        worker.pid, worker.channel, worker.received = pid, ours, b""
        worker.ready, worker.since, worker.error = False, time.monotonic(), ""
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._heard(worker))

    def _become_worker(self) -> None:
        """In the child: let go of all that is the parent's, above all the other workers' channels."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _heard(self, worker: _Worker) -> None:
        """Something came from a worker, or its end."""
        assert worker.channel is not None  # noqa: S101 - it has just been selected
        try:
            data = worker.channel.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._died(worker)
            return
        *lines, worker.received = (worker.received + data).split(b"\n")
        for raw in lines:
            line = json.loads(raw)
            if "ready" in line:
                worker.ready = True
                if self._stop_at is not None:
                    self._command(worker, _DRAIN)
            elif "failed" in line:
                worker.error = line["failed"]
            else:
                self._reloaded(worker.index, line)

    def _died(self, worker: _Worker) -> None:
        assert worker.channel is not None  # noqa: S101 - see `_heard`
        self._selector.unregister(worker.channel)
        worker.channel.close()
        worker.channel = None
        _, status = os.waitpid(worker.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        lived = time.monotonic() - worker.since
        worker.pid = 0
        was_ready, worker.ready = worker.ready, False
        if self._stop_at is None:
            if not self._served:
                self._failure = worker.error or f"worker {worker.index} ended with {how} before it was ready"
                self._stop()
            else:
                worker.backoff = FIRST_BACKOFF if was_ready and lived >= HEALTHY else worker.backoff
                log.error(
                    "worker %d ended with %s after %.1f s, replaced in %.1f s%s",
                    worker.index, how, lived, worker.backoff, f": {worker.error}" if worker.error else "",
                )  # fmt: skip
                worker.since = time.monotonic() + worker.backoff
                worker.backoff = min(2 * worker.backoff, LONGEST_BACKOFF)
        self._reloaded(worker.index, None)

    def _signalled(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop()
        elif signal.SIGHUP in numbers:
            self._start_reload()

    def _stop(self) -> None:
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self._settings.drain_timeout + 2 * LINGER + _KILL_MARGIN
            for worker in self._workers:
                self._command(worker, _DRAIN)

    def _start_reload(self) -> None:
        if self._stop_at is not None:
            return
        if self._reload is not None:
            self._reload_again = True  # the file may have changed after some worker has read it
            return
        self._reload = _Reload({worker.index for worker in self._workers if worker.pid})
        for worker in self._workers:
            self._command(worker, _RELOAD)
        self._finish_reload()

    def _reloaded(self, index: int, outcome: Line | None) -> None:
        """A worker has reloaded, or (None) died: the one that takes its place reads the file anew."""
        if self._reload is None or index not in self._reload.waiting:
            return
        self._reload.waiting.discard(index)
        if outcome is not None:
            self._reload.outcomes[index] = outcome
        self._finish_reload()

    def _finish_reload(self) -> None:
        if self._reload is None or self._reload.waiting:
            return
        _say(self._reload.line())
        self._reload = None
        if self._reload_again:
            self._reload_again = False
            self._start_reload()

    def _command(self, worker: _Worker, command: str) -> None:
        if worker.channel is not None:
            with contextlib.suppress(OSError):
                worker.channel.sendall(command.encode() + b"\n")

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.pid:
                self._killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                self._died(worker)
