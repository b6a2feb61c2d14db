"""Questions to an agent from any thread, also beside a running event loop: `decide` asks one, `Asker` many.

Their connections live on one background loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Self, TypeVar, cast

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import SilenceError, WireError, WireFormatError
from iamroles_scenarios.wire.client import MAX_ANSWER, Connection, Ended, question
from iamroles_scenarios.wire.codec import Value
from iamroles_scenarios.wire.frames import HELLO, Action, Frame, FrameType, read_actions, variables
from iamroles_scenarios.wire.transcript import Transcript

_T = TypeVar("_T")
_MOST = 8


class _Background:
    """One event loop in one daemon thread, started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine there and wait for it here."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="spop-client", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


_background = _Background()


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
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._stream_id = 1
        self._opening: asyncio.Lock | None = None
        self._dropped = WireError("no connection yet")
        """How the last connection ended."""
        self._more: list[Asker] = []
        """On further connections, for an agent that does not announce pipelining."""
        self._turn: AbstractAsyncContextManager[object] = nullcontext()
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

    def actions_of(
        self, asked: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]], *, window: int = 1
    ) -> list[list[Action]]:
        """As `decide_many` for pairs of check and context, but the actions as they came, with their types."""
        return self._ask(asked, read_actions, window)

    def _ask(
        self,
        asked: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]],
        read: Callable[[Frame], _T],
        window: int,
    ) -> list[_T]:
        async def all_of_them() -> list[_T]:
            found: dict[int, _T] = {}
            left = iter(enumerate(asked))

            async def some(asker: Asker) -> None:
                for number, pair in left:
                    found[number] = await asker._asked(*pair, read)

            if (side_by_side := min(window, len(asked))) > 1:
                await self.open_connection()
                if not self._pipelines:
                    self._more = [one for one in self._more if one.connected or self.most > 1]
                    lacking = min(side_by_side, self.most) - 1 - len(self._more)
                    self._more += [Asker(self.address, timeout=self.timeout) for _ in range(lacking)]
                askers = [self, *self._more]
                await asyncio.gather(*(some(askers[at % len(askers)]) for at in range(side_by_side)))
            else:  # most often, and without a task of its own
                await some(self)
            return [found[number] for number in range(len(asked))]

        return _background.run(all_of_them())

    def join(self, others: list[Asker]) -> None:
        """Take over connections of the same worker; close them if the agent pipelines."""
        if self._pipelines:
            for one in others:
                one.close()
        else:
            self._more += others

    @property
    def _pipelines(self) -> bool:
        return isinstance(self._turn, nullcontext)

    def close(self, *, reset: bool = False) -> None:
        """Close the connection, or reset it; the next question opens another."""

        async def drop() -> None:
            if reset and self._connection is not None:
                self._connection.reset()
            for asker in (self, *self._more):
                asker._drop(WireError("the asker was closed"))  # noqa: SLF001 - of this class

        _background.run(drop())

    async def _asked(
        self, check: Mapping[str, Any], context: Mapping[str, Any] | None, read: Callable[[Frame], _T]
    ) -> _T:
        connection = self._connection or await self.open_connection()
        async with self._turn:
            if connection is not self._connection:  # it ended while this question waited for its turn
                raise self._dropped
            loop = asyncio.get_running_loop()
            stream_id, self._stream_id = self._stream_id, self._stream_id + 2
            waiting = self._waiting[stream_id] = loop.create_future()
            began = loop.time()
            try:
                raw = question(check, context, stream_id=stream_id).encode()
                if (length := len(raw) - 4) > self._limit:
                    raise WireError(
                        f"the agent agreed on frames of {self._limit} bytes, and this question has {length} "
                        "(SPEC.md 2.6)",
                        connection.transcript,
                    )
                await connection.send(raw)
                async with asyncio.timeout(self.timeout):
                    ack = await waiting
                recording.waited("an ACK", loop.time() - began, self.timeout)
                return read(ack)
            except TimeoutError:
                raise SilenceError(
                    f"no ACK for stream {stream_id} in {self.timeout:g} s", connection.transcript
                ) from None
            except WireFormatError as error:
                raise WireError(f"the ACK is malformed: {error}", connection.transcript) from error
            finally:
                self._waiting.pop(stream_id, None)

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
                pipelined = "pipelining" in [name.strip() for name in able.split(",")]
                self._turn = nullcontext() if pipelined else asyncio.Lock()
                self._connection = connection
                # Not before the first question waits: if the connection has ended, that is its answer.
                asyncio.get_running_loop().call_soon(connection.listen, self._read)
            return self._connection

    def _read(self) -> None:
        try:
            while (connection := self._connection) and (answer := connection.take()) is not None:
                if isinstance(answer, Ended):
                    raise WireError(f"the agent closed the connection ({answer.how})", connection.transcript)
                waiting = self._waiting.get(answer.stream_id) if answer.type == FrameType.ACK else None
                if waiting is None:
                    raise WireError(f"an unexpected {answer.name}", connection.transcript)
                if not waiting.done():
                    waiting.set_result(answer)
        except WireError as error:
            self._drop(error)

    def _drop(self, error: WireError) -> None:
        connection, self._connection, self._dropped = self._connection, None, error
        if connection is not None:
            connection.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)


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
    """Ask an agent one question over a fresh connection and give the variables it set.

    Args:
        address: `host:port` or `unix:/path`.
        check: arguments of `iam-check`, as `check_arguments` takes them.
        context: arguments of `iam-context`; by default some.
        timeout: seconds to connect, and for each answer.

    Returns:
        Variables in scope `txn` (SPEC.md section 3); unset ones are absent.

    Raises:
        WireError: no connection, no handshake, no ACK, or a malformed one; its text holds the transcript.
    """

    async def once() -> dict[str, Value]:
        connection = await Connection.open(address, within=timeout)
        try:
            await connection.hello(HELLO)
            ack = await connection.ask(question(check, context))
            return variables(ack)
        except WireFormatError as error:
            raise WireError(f"the agent's answer is malformed: {error}", connection.transcript) from error
        finally:
            connection.close()

    return cast("dict[str, object]", _background.run(once()))


def opened(askers: Sequence[Asker]) -> dict[int, Asker]:
    """Open their connections at once, and return them by port; 0 for a Unix socket."""

    async def ports() -> list[int]:
        return [one.port for one in await asyncio.gather(*(asker.open_connection() for asker in askers))]

    return dict(zip(_background.run(ports()), askers, strict=True))
