"""Questions to an agent from any thread, also beside a running event loop: `decide` asks one, `Asker` many.

Their connections live on one background loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Self, TypeVar, cast

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import SilenceError, WireError, WireFormatError
from iamroles_scenarios.wire.client import MAX_ANSWER, Connection, Ended, question
from iamroles_scenarios.wire.frames import Action, Frame, FrameType, notify, read_actions, variables
from iamroles_scenarios.wire.transcript import Transcript

_T = TypeVar("_T")
_MOST = 8
_Asked = tuple[Mapping[str, Any], Mapping[str, Any] | None]
"""Arguments of `iam-check` and of `iam-context`."""


class _Background:
    """One event loop in one daemon thread, started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="spop-client", daemon=True).start()
            return self._loop

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine there and wait for it here."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


_background = _Background()


class _Round:
    """Questions, encoded, that a thread asks together, and their answers. The thread wakes up at the end."""

    def __init__(self, questions: Sequence[bytes]) -> None:
        self.left: Iterator[tuple[int, bytes]] = iter(enumerate(questions))
        self._found: dict[int, tuple[Frame, Transcript]] = {}
        self._count = len(questions)
        self._longest = 0.0
        self._ended = SimpleQueue[Exception | None]()

    def take(self, number: int, ack: Frame, transcript: Transcript, took: float) -> None:
        """Keep the answer to a question, which came after so many seconds."""
        self._found[number] = ack, transcript
        self._longest = max(self._longest, took)
        if len(self._found) == self._count:
            self._ended.put(None)

    def fail(self, error: Exception) -> None:
        """End without the answers that are missing; the first error counts."""
        self.left = iter(())
        self._ended.put(error)

    def result(self, read: Callable[[Frame], _T], timeout: float) -> list[_T]:
        """Wait for the end, and read the answers in the order of the questions."""
        error, answers = self._ended.get(), []
        for _, (ack, transcript) in sorted(self._found.items()):
            try:
                answers.append(read(ack))
            except WireFormatError as fault:
                raise WireError(f"the ACK is malformed: {fault}", transcript) from fault
        if answers:
            recording.waited("an ACK", self._longest, timeout)
        if error is not None:
            raise error
        return answers


class Asker:
    """A connection kept open for many questions; synchronous, safe to share between threads.

    Questions of several threads are pipelined: each has a stream-id of its own and gets its own ACK. An agent
    that does not announce pipelining gets the next one after its answer (SPOE.txt section 3.2.4.1), and many
    questions at once on more connections, as HAProxy does it.
    If the connection breaks, all questions that wait fail; the next one opens a new connection.

    Args:
        address: `host:port` or `unix:/path`.
        timeout: seconds for each answer.
        most: connections, at most, to an agent that does not pipeline; 1: it stays with its worker.
    """

    def __init__(self, address: str, *, timeout: float = 5.0, most: int = _MOST) -> None:
        self.address = address
        self.timeout = timeout
        self.most = most
        self._connection: Connection | None = None
        self._waiting: dict[int, tuple[_Round, int, float]] = {}
        """By stream-id, in the order of sending: round, number of the question in it, and when it went."""
        self._turns: deque[_Round] = deque()
        """Rounds that may send a question once the connection takes one, as often as they may."""
        self._alarm: asyncio.TimerHandle | None = None
        self._stream_id = 1
        self._opening: asyncio.Lock | None = None
        self._dropped = WireError("no connection yet")
        """How the last connection ended."""
        self._more: list[Asker] = []
        """On further connections, for an agent that does not announce pipelining."""
        self._pipelines = True
        self._limit = MAX_ANSWER
        """Bytes of the longest frame that was agreed on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def transcript(self) -> Transcript:
        """Return what passed on the present connection lately; empty without a connection."""
        return self._connection.transcript if self._connection else Transcript()

    @property
    def port(self) -> int:
        """Return the port of its connection, opened if need be; 0 for a Unix socket."""
        return next(iter(opened([self])))

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def decide(self, check: Mapping[str, Any], context: Mapping[str, Any] | None = None) -> dict[str, object]:
        """Ask for one verdict; as the function `decide`."""
        return cast("dict[str, object]", self._ask([(check, context)], variables, 1)[0])

    def decide_many(
        self, checks: Sequence[Mapping[str, Any]], *, window: int = 20
    ) -> list[dict[str, object]]:
        """Ask for many verdicts, up to `window` at a time, and give them in the order of the questions."""
        found = self._ask([(check, None) for check in checks], variables, window)
        return cast("list[dict[str, object]]", found)

    def actions_of(self, asked: Sequence[_Asked], *, window: int = 1) -> list[list[Action]]:
        """As `decide_many` for pairs of check and context, but the actions as they came, with their types."""
        return self._ask(asked, read_actions, window)

    def _ask(self, asked: Sequence[_Asked], read: Callable[[Frame], _T], window: int) -> list[_T]:
        window = min(window, len(asked))
        if self._connection is None or (window > 1 and not self._pipelines):
            _background.run(self._open(window))
        round_ = _Round([question(*pair).payload for pair in asked])
        _background.loop.call_soon_threadsafe(self._send, round_, window)
        return round_.result(read, self.timeout) if asked else []

    async def _open(self, window: int) -> None:
        await self.open_connection()
        if not self._pipelines:
            self._more = [one for one in self._more if one.connected or self.most > 1]
            lacking = min(window, self.most) - 1 - len(self._more)
            self._more += [Asker(self.address, timeout=self.timeout) for _ in range(lacking)]
            await asyncio.gather(*(one.open_connection() for one in self._more[: window - 1]))

    def join(self, others: list[Asker]) -> None:
        """Take over connections of the same worker; close them if the agent pipelines."""
        if self._pipelines:
            for one in others:
                one.close()
        else:
            self._more += others

    def close(self, *, reset: bool = False) -> None:
        """Close the connection, or reset it; the next question opens another."""

        async def drop() -> None:
            if reset and self._connection is not None:
                self._connection.reset()
            for asker in (self, *self._more):
                asker._drop(WireError("the asker was closed"))  # noqa: SLF001 - of this class

        _background.run(drop())

    def _send(self, round_: _Round, window: int) -> None:
        askers = [self] if self._pipelines else [self, *self._more][:window]
        for number, asker in enumerate(askers):
            asker._turns += [round_] * len(range(number, window, len(askers)))  # noqa: SLF001 - of this class
            asker._go_on()  # noqa: SLF001 - of this class

    def _go_on(self) -> None:
        """Send in one segment what may be sent now: an agent that does not pipeline gets one at a time."""
        raw, now = b"", _background.loop.time()
        while self._turns and (self._pipelines or not self._waiting):
            round_ = self._turns.popleft()
            if self._connection is None:
                round_.fail(self._dropped)
            elif (pair := next(round_.left, None)) is not None:
                frame = notify(self._stream_id, 1, pair[1]).encode()
                if (length := len(frame) - 4) > self._limit:
                    said = f"the agent takes frames of {self._limit} bytes, and this question has {length}"
                    round_.fail(WireError(f"{said} (SPEC.md 2.6)", self.transcript))
                    continue
                raw += frame
                self._waiting[self._stream_id] = round_, pair[0], now
                self._stream_id += 2
        if raw and self._connection:
            self._connection.write(raw)
            self._alarm = self._alarm or _background.loop.call_at(now + self.timeout, self._silent)

    def _silent(self) -> None:
        """Give up the questions whose time is over: each has the same, so the first ones come first."""
        self._alarm, now = None, _background.loop.time()
        for stream_id, (round_, _, began) in list(self._waiting.items()):
            if began + self.timeout > now:
                self._alarm = _background.loop.call_at(began + self.timeout, self._silent)
                break
            del self._waiting[stream_id]
            said = f"no ACK for stream {stream_id} in {self.timeout:g} s"
            round_.fail(SilenceError(said, self.transcript))
        self._go_on()

    async def open_connection(self) -> Connection:
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            if self._connection is None:
                connection = await Connection.open(self.address, within=self.timeout)
                try:
                    agreed = await connection.hello()
                except BaseException:
                    connection.close()
                    raise
                said, able = agreed.get("max-frame-size"), str(agreed.get("capabilities", ""))
                self._limit = said if isinstance(said, int) else MAX_ANSWER
                self._pipelines = "pipelining" in [name.strip() for name in able.split(",")]
                self._connection = connection
                # Not before the first question waits: if the connection has ended, that is its answer.
                asyncio.get_running_loop().call_soon(connection.listen, self._read)
            return self._connection

    def _read(self) -> None:
        now, answered = _background.loop.time(), set[int]()
        try:
            while (connection := self._connection) and (answer := connection.take()) is not None:
                if isinstance(answer, Ended):
                    raise WireError(f"the agent closed the connection ({answer.how})", connection.transcript)
                sent = self._waiting.get(answer.stream_id) if answer.type == FrameType.ACK else None
                if sent is None:
                    raise WireError(f"an unexpected {answer.name}", connection.transcript)
                round_, number, began = sent
                round_.take(number, answer, connection.transcript, now - began)
                answered.add(answer.stream_id)
        except WireError as error:
            self._drop(error)
        self._turns += [self._waiting.pop(stream_id)[0] for stream_id in answered & self._waiting.keys()]
        self._go_on()

    def _drop(self, error: WireError) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._dropped = None, error
        for round_, *_ in self._waiting.values():
            round_.fail(error)
        self._waiting.clear()
        self._go_on()


def reach(address: str, *, timeout: float = 5.0) -> None:
    """Open one connection to an agent and close it again.

    Raises:
        UnreachableError: nobody accepts there.
        ValueError, OverflowError: this is not an address.
    """

    async def once() -> None:
        (await Connection.open(address, within=timeout)).close()

    _background.run(once())


def decide(
    address: str, check: dict[str, Any], context: dict[str, Any] | None = None, *, timeout: float = 5.0
) -> dict[str, object]:
    """Ask an agent one question over a fresh connection and give the variables it set (SPEC.md section 3).

    Raises:
        WireError: no connection, no handshake, no ACK, or a malformed one; its text holds the transcript.
    """
    with Asker(address, timeout=timeout) as asker:
        return asker.decide(check, context)


def opened(askers: Sequence[Asker]) -> dict[int, Asker]:
    """Open their connections at once, and return them by port; 0 for a Unix socket."""

    async def ports() -> list[int]:
        return [one.port for one in await asyncio.gather(*(asker.open_connection() for asker in askers))]

    return dict(zip(_background.run(ports()), askers, strict=True))
