"""An event loop without a selector, a thread or a clock of its own: `schedules` decides what comes next.

Each process of the agent has one. It runs what is ready, in order, as asyncio's own loop does, and stops.
What the world does to a process happens between two runs: bytes arrive on a stream, a thread has finished,
time has passed. A process dies by never being run again.
"""

import asyncio
import heapq
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from tokens_support import Clock

START = 1_800_000_000.0
"""Epoch seconds, and monotonic ones: where a schedule begins."""


class Job:
    """Work that a process gave to a thread: it runs at one moment, and is reported at a later one."""

    def __init__(self, future: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        self.future, self.work = future, work
        self.ran = False

    def run(self) -> None:
        self.ran = True
        try:
            self.result, self.error = self.work(), None
        except Exception as error:  # noqa: BLE001 - carried to the task that awaits
            self.error = error

    def report(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Pipe(asyncio.Transport):
    """One end of a stream, as a protocol sees it.

    What the protocol writes goes to `out`; what arrives waits in `held` until `deliver` is called.
    """

    def __init__(self, out: Callable[[bytes], None]) -> None:
        super().__init__()
        self._out = out
        self.held: deque[bytes] = deque()
        self.ended = self.closed = self.half = False
        """The other side has ended; this side is closed; this side said its last."""
        self.paused = False
        self.protocol: Any = None

    def deliver(self, part: float = 1.0) -> bool:
        """Give the protocol the next bytes, or a part of them; whether there were any."""
        if self.closed or self.paused or self.protocol is None:
            return False
        if self.held:
            data = self.held.popleft()
            if part < 1.0 and len(data) > 1:
                here = 1 + int(part * (len(data) - 1))
                data, rest = data[:here], data[here:]
                self.held.appendleft(rest)
            self.protocol.data_received(data)
            return True
        if self.ended:
            self.ended = False
            if not self.protocol.eof_received():
                self.close()
            return True
        return False

    @property
    def waiting(self) -> bool:
        """Return whether there is something to deliver."""
        return not self.closed and not self.paused and self.protocol is not None and (
            bool(self.held) or self.ended
        )  # fmt: skip

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.9", 40000) if name == "peername" else default

    def write(self, data: Any) -> None:
        if not self.closed and not self.half:
            self._out(data)

    def write_eof(self) -> None:
        self.half = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connection_lost(None)

    abort = close

    def is_reading(self) -> bool:
        return not self.paused

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Ear:
    """A listening socket, as far as the agent looks at one."""

    family = socket.AF_INET
    waiting: Pipe | None = None
    """The connection that is accepted next."""

    def listen(self, backlog: int) -> None:
        pass

    def setblocking(self, flag: bool) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def accept(self) -> tuple[Any, None]:
        if self.waiting is None:
            raise BlockingIOError
        pipe, self.waiting = self.waiting, None
        return pipe, None

    def close(self) -> None:
        pass


class Loop(asyncio.BaseEventLoop):
    """See the module: asyncio's own, but for what would wait.

    Args:
        time: of all processes.
        pipe: the process's channel to its parent.
        wrong: told of each exception that nobody caught.
    """

    def __init__(self, time: Clock, pipe: Pipe, wrong: Callable[[str], None]) -> None:
        super().__init__()
        self.time = time  # type: ignore[method-assign,assignment]
        self.pipe, self._wrong = pipe, wrong
        self.jobs: list[Job] = []
        self.ear: Ear | None = None
        self.accept: Callable[[], Any] | None = None
        """Accepts what waits at `ear`, while the process listens."""
        self.terminate: Callable[[], object] | None = None
        """The handler of SIGTERM."""

    def run(self) -> None:
        """Run all that is ready or due."""
        ready, timers, now = self._ready, self._scheduled, self.time.now
        while timers and timers[0]._when <= now:
            timer = heapq.heappop(timers)
            if not timer._cancelled:
                ready.append(timer)
        if not ready:
            return
        asyncio._set_running_loop(self)
        try:
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
                handle = None  # type: ignore[assignment]
        finally:
            asyncio._set_running_loop(None)

    def inside(self, work: Callable[[], Any]) -> Any:
        """Call something as the loop would, then run what that made ready."""
        asyncio._set_running_loop(self)
        try:
            result = work()
        finally:
            asyncio._set_running_loop(None)
        self.run()
        return result

    # What asyncio asks of a loop

    def run_in_executor(self, executor: object, work: Any, *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        self.jobs.append(Job(future, (lambda: work(*args)) if args else work))
        return future

    def add_signal_handler(self, number: int, callback: Any, *args: Any) -> None:
        self.terminate = callback

    async def create_connection(self, factory: Any, **about: Any) -> Any:
        protocol = self.pipe.protocol = factory()
        return self.pipe, protocol

    def add_reader(self, ear: Any, callback: Any, *args: Any) -> None:
        self.ear, self.accept = ear, partial(callback, *args)

    def remove_reader(self, ear: Any) -> bool:
        self.accept = None
        return True

    async def connect_accepted_socket(self, factory: Any, pipe: Any, **about: Any) -> Any:
        pipe.protocol = factory()
        pipe.protocol.connection_made(pipe)
        return pipe, pipe.protocol

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None:  # not a task that was left behind by a process that died
            self._wrong(f"{context['message']}: {type(error).__name__}: {error}")

    def _write_to_self(self) -> None:
        """Nothing waits that would have to be woken."""

    def __del__(self, *_about: object) -> None:
        """A dead process's loop was never closed."""
