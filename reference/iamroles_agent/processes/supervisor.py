"""The parent: forks the members of the agent, watches them, and owns what is in force.

This is the shell around `control.plane`: processes, socket pairs, signals and the clock. The parent has no
event loop and no thread, so that a fork is always of a simple process and a replacement can be made at any
time; and no contact with the outside, so that the outside cannot keep it busy. It never waits: it writes to
channels, standard output and standard error as far as they take it.

Signals: SIGHUP reloads, SIGTERM and SIGINT drain. Members ignore SIGINT and SIGHUP, because a terminal sends
these to the whole group. A member whose channel ends drains, so a killed parent leaves no member behind.

It prints the launch contract on standard output (SPEC.md section 8): one `ready` line when all members are
ready, and one line for each reload.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import random
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import uvloop

from iamroles_agent import __version__
from iamroles_agent.base.config import AgentSettings
from iamroles_agent.base.errors import ConfigError, StartError
from iamroles_agent.base.output import output
from iamroles_agent.control.channel import ChannelError, Frames, Message, message, with_parts
from iamroles_agent.control.document import Document, Parts
from iamroles_agent.control.plane import Plane
from iamroles_agent.control.slots import (
    FETCHER,
    LOADER,
    Fail,
    Fork,
    Kill,
    Print,
    Scheduled,
    Send,
    Timing,
    slot_name,
)
from iamroles_agent.processes.cpu_time import CpuTime
from iamroles_agent.processes.link import Startup
from iamroles_agent.processes.service import Service
from iamroles_agent.serving import listening
from iamroles_agent.serving.accepting import shared_counts
from iamroles_agent.serving.server import LINGER
from iamroles_agent.tokens import proof
from iamroles_agent.tokens.admission import Callers

_KILL_MARGIN = 3.0
"""Seconds beyond the drain after which a member that is not gone is killed."""
_READ = 1 << 16
_SHORT = 0.05
"""Seconds before the parent asks for memory again."""
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
"""Options of prctl(2), Linux: the signal that this process gets when its parent dies, and its name."""

log = logging.getLogger("iamroles.supervisor")


Life = Coroutine[Any, Any, None]


class Crew(Protocol):
    """Makes the members."""

    def worker(self, startup: Startup) -> Life:
        """Run a worker. Raises StartError, ConfigError: it cannot start."""

    def fetcher(self, startup: Startup) -> Life:
        """Run the fetcher. Raises as `worker`."""

    def load(self) -> Parts:
        """Read and check the configuration, in a process of its own.

        Raises:
            ConfigError: every problem of it.
        """


@dataclass(slots=True)
class _Process:
    """A member's process and the parent's end of its channel."""

    index: int
    pid: int
    channel: socket.socket
    cpu_time: CpuTime
    frames: Frames = field(default_factory=Frames)
    out: deque[memoryview] = field(default_factory=deque)
    open: bool = True


class Supervisor:
    """See the module.

    Args:
        settings: `[agent]` of the start.
        document: in force at the start.
        crew: makes the members.
        timing: of the control plane.
        saves: whether there is a state directory.
        listeners: the sockets of the agent that this one takes over from.
    """

    def __init__(
        self,
        settings: AgentSettings,
        document: Document,
        crew: Crew,
        *,
        timing: Timing | None = None,
        saves: bool = False,
        on_ready: Callable[[], None] = lambda: None,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        self._settings, self._crew = settings, crew
        self._processes: dict[int, _Process] = {}
        self.plane = Plane(
            document,
            settings.workers,
            clock=time.monotonic,
            timing=timing,
            scheduled=self._scheduled,
            saves=saves,
        )
        self._service = Service(self.plane, settings.drain_timeout + 2 * LINGER + _KILL_MARGIN)
        self._selector, self._on_ready = selectors.DefaultSelector(), on_ready
        self._inherited = {listening.address_of(sock): sock for sock in listeners}
        self._listeners: list[socket.socket] = []
        self._counts, self._callers = shared_counts(settings.workers), Callers()
        self._stop_at: float | None = None
        """Monotonic time at which members that still live are killed."""
        self._failure, self._killed = "", False
        self._out = output(1)

    def run(self) -> int:
        """Run until SIGTERM or SIGINT.

        Returns:
            The exit status: 0, or 1 if a member had to be killed in the end.

        Raises:
            StartError: the agent did not start; no process of it is left.
        """
        proof.OWN_KEY = os.urandom(32)  # what imported the module may have forked other agents, too
        self._listeners = listening.open_all(self._settings, list(self._inherited.values()))
        self._addresses = [listening.address_of(sock) for sock in self._listeners]
        for text in listening.warnings(self._addresses, self._settings):
            log.warning("%s", text)
        self._build_lock = os.memfd_create("iamroles-build")
        wake, waker = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})  # see `commands.serve`
        self._selector.register(wake, selectors.EVENT_READ, lambda _: self._signalled(wake.recv(4096)))
        try:
            self.plane.start()
            self._watch()
        finally:
            self._kill_all()
            signal.set_wakeup_fd(-1)
            self._selector.close()
            os.close(self._build_lock)
            for sock in (wake, waker, *self._listeners):
                sock.close()
            for address in () if self.plane.left else self._addresses:
                listening.remove_dead(address)
            self._out.drain(1.0)
        if self._failure:
            raise StartError(self._failure)
        return 1 if self._killed else 0

    def _watch(self) -> None:
        self._perform()
        while not self.plane.finished:
            timeout = max(0.0, self.plane.due() - time.monotonic())
            for key, mask in self._selector.select(timeout):
                key.data(mask)
            self._reap()
            self.plane.tick()
            self._perform()
            self._out.flush()
            output(2).flush()
            if self.plane.left:
                self._stop()
            self._service.look()
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                self._kill_all()

    def _perform(self) -> None:
        while effects := self.plane.take():
            for effect in effects:
                match effect:
                    case Fork():
                        self._fork(effect)
                    case Kill():
                        self._kill(effect)
                    case Send():
                        self._send(effect.slot, effect.message)
                    case Print():
                        self._print(effect.line)
                    case Fail():
                        self._failure = self._failure or effect.why
                        self._stop()

    def _print(self, line: dict[str, Any]) -> None:
        if "ready" in line:
            line = {
                "ready": True,
                "address": self._addresses[0],
                **({"addresses": self._addresses} if len(self._addresses) > 1 else {}),
                "pid": os.getpid(),
                "version": __version__,
                "workers": self._settings.workers,
                "policy": self.plane.document.policy,
                "in_force": self.plane.document.version,
            }
            self._on_ready()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # the first line is printed first
            for address in self._inherited.keys() - self._addresses:
                listening.remove_unix(address)
        self._service.refused = line.get("error", "")
        self._out.write(json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    # Processes

    def _fork(self, effect: Fork) -> None:
        if effect.why:
            log.error("%s is replaced: %s", slot_name(effect.slot), effect.why)
        pair: tuple[socket.socket, ...] = ()
        try:
            pair = ours, theirs = socket.socketpair()
            parent, pid = os.getpid(), os.fork()
        except OSError as error:
            for sock in pair:
                sock.close()
            log.error("%s cannot be made: %s", slot_name(effect.slot), error.strerror)
            self.plane.died(effect.slot, f"fork failed: {error.strerror}")
            return
        if pid == 0:
            status = 1
            try:
                ours.close()
                self._become_child(effect.slot, parent)
                status = self._live(effect, theirs)
            finally:
                output(1).flush()
                output(2).drain(0.5)
                os._exit(status)
        theirs.close()
        ours.setblocking(False)
        process = self._processes[effect.slot] = _Process(effect.slot, pid, ours, CpuTime(pid))
        self._selector.register(ours, selectors.EVENT_READ, lambda mask: self._ready(process, mask))
        self.plane.forked(effect.slot, pid)

    def _become_child(self, slot: int, parent: int) -> None:
        """Close all that is the parent's, above all the other members' channels."""
        signal.set_wakeup_fd(-1)
        # A stopped member is woken when the parent dies, so that it finds that out and frees the address.
        # The loader just ends. It has no thread to listen to its channel, because on some kernels a thread of
        # low priority that is about to end keeps the parent that reaps its process busy.
        end = signal.SIGKILL if slot == LOADER else signal.SIGCONT
        name = b"iamroles-fetcher" if slot == FETCHER else b"iamroles-w%d" % slot
        with contextlib.suppress(OSError, AttributeError):
            prctl = ctypes.CDLL(None).prctl
            prctl(_PR_SET_PDEATHSIG, end, 0, 0, 0)
            if slot != LOADER:
                prctl(_PR_SET_NAME, name, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before prctl
            os._exit(1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        random.seed()

    def _live(self, effect: Fork, channel: socket.socket) -> int:
        """Run a child; returns its exit status."""
        index = effect.slot
        if index == LOADER:
            for sock in self._listeners:
                sock.close()
            return _load(self._crew, channel)
        startup = Startup(
            index=index,
            document=self.plane.document,
            channel=channel,
            listeners=self._listeners,
            counts=self._counts,
            build_lock=self._build_lock,
            callers=self._callers,
            used=self.plane.used,
            why=effect.why,
        )
        life = self._crew.fetcher if index == FETCHER else self._crew.worker
        last_words = channel.dup()  # the loop closes the channel
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(life(startup))
        except (StartError, ConfigError) as error:
            _send(last_words, message("failed", error=str(error)))
            return 3
        except Exception as error:
            log.exception("%s failed", slot_name(index))
            what = f"{slot_name(index)} failed: {type(error).__name__}: {error}"
            _send(last_words, message("failed", error=what))
            return 1
        return 0

    def _kill(self, effect: Kill) -> None:
        process = self._processes.get(effect.slot)
        if process is not None:
            if effect.slot != LOADER:
                log.error("%s (pid %d) is killed: %s", slot_name(effect.slot), process.pid, effect.why)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        for process in list(self._processes.values()):
            try:
                pid, status = os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = process.pid, 0
            if pid:
                self._died(process, os.waitstatus_to_exitcode(status))

    def _died(self, process: _Process, code: int) -> None:
        while process.open and self._read(process):
            pass  # read its last words
        self._shut(process)
        del self._processes[process.index]
        if process.index >= 0:
            self._counts[process.index] = 0  # no worker must wait for it to accept
        how = f"signal {-code}" if code < 0 else f"status {code}"
        if process.index != LOADER and (code != 0 or self._stop_at is None):
            log.error("%s (pid %d) ended with %s", slot_name(process.index), process.pid, how)
        self.plane.died(process.index, how)

    def _scheduled(self, index: int) -> Scheduled:
        process = self._processes.get(index)
        return Scheduled() if process is None else process.cpu_time.look()

    # Channels

    def _send(self, slot: int, said: Message) -> None:
        process = self._processes.get(slot)
        if process is None or not process.open:
            return
        process.out.append(memoryview(said.encode()))
        self._write(process)

    def _write(self, process: _Process) -> None:
        out = process.out
        try:
            while out:
                sent = process.channel.send(out[0])
                if sent < len(out[0]):
                    out[0] = out[0][sent:]
                    break
                out.popleft()
        except BlockingIOError:
            pass
        except OSError:
            out.clear()  # it is dying; `_reap` will find it
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if out else 0)
        key = self._selector.get_key(process.channel)
        if key.events != events:
            self._selector.modify(process.channel, events, key.data)

    def _ready(self, process: _Process, mask: int) -> None:
        if process.open and mask & selectors.EVENT_WRITE:
            self._write(process)
        if process.open and mask & selectors.EVENT_READ:
            self._read(process)

    def _read(self, process: _Process) -> bool:
        """Take a member's messages; true if there may be more."""
        try:
            data = process.channel.recv(_READ)
        except BlockingIOError:
            return False
        except MemoryError:  # the data stays in the channel; no event says when memory is back
            time.sleep(_SHORT)
            return False
        except OSError:
            data = b""
        if not data:
            self._shut(process)
            return False
        try:
            for said in process.frames.receive(data):
                self.plane.heard(process.index, said)
        except ChannelError as error:
            self._shut(process)
            self.plane.nonsense(process.index, str(error))
            return False
        return True

    def _shut(self, process: _Process) -> None:
        """Close a channel. Its member is of no use without it, and ends."""
        if process.open:
            process.open = False
            self._selector.unregister(process.channel)
            process.channel.close()
            process.out.clear()

    # Signals

    def _signalled(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop()
        if signal.SIGHUP in numbers:
            if not self.plane.members.stopping:
                self._service.reload()
            self.plane.load()

    def _stop(self) -> None:
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self._settings.drain_timeout + 2 * LINGER + _KILL_MARGIN
            self.plane.stop()
            for sock in self._listeners:  # a connection that nobody would accept is refused at once
                sock.close()

    def _kill_all(self) -> None:
        for process in self._processes.values():
            self._killed = self._killed or process.index != LOADER
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_MARGIN  # a file system that does not answer may hold it for ever
        for process in list(self._processes.values()):
            with contextlib.suppress(ChildProcessError):
                while not os.waitpid(process.pid, os.WNOHANG)[0] and time.monotonic() < deadline:
                    time.sleep(_SHORT)
            self._shut(process)
            del self._processes[process.index]
            self.plane.died(process.index, "signal 9")


def _load(crew: Crew, channel: socket.socket) -> int:
    """Run the loader; the members that answer questions go first."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(10)
    try:
        parts = crew.load()
    except ConfigError as error:
        return _send(channel, message("refused", error=str(error)))
    except Exception as error:
        log.exception("the configuration cannot be read")
        return _send(channel, message("refused", error=str(error) or type(error).__name__))
    for said in with_parts("loaded", parts):
        _send(channel, said)
    return 0


def _send(channel: socket.socket, said: Message) -> int:
    """Send a message from a process without an event loop; 0, its exit status."""
    with contextlib.suppress(OSError):
        channel.setblocking(True)
        channel.sendall(said.encode())
    return 0
