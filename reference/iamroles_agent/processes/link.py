"""A member's connection to the parent: the socket around `control.member`, and questions and answers.

Reading never stops, so a member answers a ping while it builds a change in a thread. When the parent is gone
(the stream ends), all that waits for an answer fails, and `drained` is set: a member without a parent ends.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

from iamroles_agent.base import output
from iamroles_agent.base.clocks import SYSTEM, Clocks
from iamroles_agent.control.channel import ChannelError, Frames, Message, message, with_parts
from iamroles_agent.control.document import Document, Edits
from iamroles_agent.control.member import Member
from iamroles_agent.tokens.admission import Callers

log = logging.getLogger("iamroles.link")

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Startup:
    """The state that a member process starts with."""

    index: int
    document: Document
    channel: socket.socket
    listeners: list[socket.socket]
    """The agent's, which all workers accept from."""
    counts: memoryview
    """See `accepting.shared_counts`."""
    build_lock: int
    """A descriptor that a worker locks while it builds a policy: the others answer meanwhile. The lock of a
    member that dies is free (POSIX record locks)."""
    callers: Callers
    """Whom STS confirmed to any process."""
    used: dict[str, int]
    """For the fetcher: used signatures that count once, and until when they are kept (monotonic)."""
    why: str
    """How the member before it ended, "" for the first."""
    clocks: Clocks = SYSTEM


class LinkLost(Exception):  # noqa: N818 - what happened
    """The parent or the fetcher is gone, or too much is asked; the question has no answer."""


class Link(asyncio.Protocol):
    """See the module.

    Args:
        sock: the member's end of the socket pair.
        document: what the member was born with.
        stats: the numbers that each pong reports, bounded.
    """

    def __init__(self, sock: socket.socket, document: Document, stats: Callable[[], Body]) -> None:
        self._sock = sock
        self.member = Member(document, self.send, self._spawn)
        """This member's side of changes."""
        self._stats = stats
        self._frames = Frames()
        self._asks: dict[int, asyncio.Future[Body]] = {}
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.WriteTransport | None = None
        self._lost = False
        self.drained = asyncio.Event()
        """Set when this member must drain and end."""
        self.gently = False
        """True if another agent has taken over: end connections when they are idle."""
        self.serve = asyncio.Event()
        """Set when this member may serve."""
        self.summary: Body = {}
        """The parent's last report: `version`, `policy`, `workers`, `confirmed`, `fetcher`."""
        self.on_note: Callable[[Body], None] = lambda _body: None
        self.on_ask: dict[str, Callable[[Body], Awaitable[Body]]] = {}
        """The fetcher's answers to questions of workers, by topic. `after` in an answer holds it back until
        what the fetcher has proposed is in force."""

    @property
    def document(self) -> Document:
        return self.member.document

    async def open(self) -> None:
        """Begin to read, and to answer pings. SIGTERM to this process alone drains it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.drained.set)
        self._sock.setblocking(False)
        self._transport, _ = await loop.create_connection(lambda: self, sock=self._sock)

    def close(self) -> None:
        """Leave the parent, after all messages have been sent."""
        if self._transport is not None:
            self._transport.close()

    def up(self) -> None:
        """Report that what this member was born with is in force here."""
        self.send(message("up", version=self.document.version))

    def send(self, said: Message) -> None:
        """Send a message to the parent; does nothing if it is gone."""
        if self._transport is not None and not self._lost:
            self._transport.write(said.encode())

    async def ask(self, topic: str, body: Body) -> Body:
        """Ask the fetcher.

        Raises:
            LinkLost: there will be no answer.
        """
        answer = await self._request(lambda number: [message("ask", id=number, topic=topic, body=body)])
        if answer.get("error") == "busy":
            raise LinkLost("too many questions are under way")
        return answer

    def propose(self, edits: Edits) -> asyncio.Future[Body]:
        """Put parts in force everywhere, for the fetcher. It is sent at once, so that no later answer
        reaches the parent before it.

        Returns:
            The outcome: `{"done": true, "version": …, "workers": …, "confirmed": …}`, or
            `{"done": false, "error": …}`.

        Raises:
            LinkLost: the parent is gone.
        """
        return self._request(lambda number: with_parts("propose", edits, id=number))

    async def status(self) -> Body:
        """Ask the parent, for the fetcher, what it knows about the members.

        Raises:
            LinkLost: the parent is gone.
        """
        return await self._request(lambda number: [message("status", id=number)])

    def _request(self, make: Callable[[int], Iterable[Message]]) -> asyncio.Future[Body]:
        if self._lost:
            raise LinkLost("the parent is gone")
        number = next(self._numbers)
        future: asyncio.Future[Body] = asyncio.get_running_loop().create_future()

        def done(future: asyncio.Future[Body]) -> None:
            del self._asks[number]
            if not future.cancelled():
                future.exception()  # the caller may have been cancelled before it awaits this: no complaint

        future.add_done_callback(done)
        self._asks[number] = future
        for said in make(number):
            self.send(said)
        return future

    # What the parent says

    def data_received(self, data: bytes) -> None:
        try:
            for said in self._frames.receive(data):
                self._heard(said)
        except ChannelError:
            log.exception("the parent talks nonsense")
            self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._lost = True
        for future in self._asks.values():
            if not future.done():
                future.set_exception(LinkLost("the parent is gone"))
        self.drained.set()

    def _heard(self, said: Message) -> None:
        handle = self._HEARD.get(said.say)
        if handle is not None:
            handle(self, said)
        else:
            self.member.heard(said)

    def _ping(self, said: Message) -> None:
        self.summary = said.table("summary")
        self.send(message("pong", n=said.number("n"), stats=self._stats()))
        output.flush()

    def _drain(self, said: Message) -> None:
        self.gently = bool(said.head.get("gently"))
        self.drained.set()

    def _resolve(self, said: Message) -> None:
        future, body = self._asks.get(said.number("id")), said.table("body")
        if future is not None and not future.done():
            future.set_result(body)

    _HEARD: ClassVar[dict[str, Callable[[Link, Message], None]]] = {
        "ping": _ping,
        "serve": lambda self, _said: self.serve.set(),
        "drain": _drain,
        "note": lambda self, said: self.on_note(dict(said.head)),
        "answer": _resolve,
        "outcome": _resolve,
        "status": _resolve,
        "ask": lambda self, said: self._spawn(self._answer(said)),
    }

    async def _answer(self, said: Message) -> None:
        handle = self.on_ask.get(said.text("topic"))
        body: Body = {"error": "unknown topic"}
        try:
            if handle is not None:
                body = await handle(said.table("body"))
        except Exception as error:
            log.exception("a question could not be answered")
            body = {"error": f"{type(error).__name__}"}
        after = bool(body.pop("after", False))
        self.send(message("answer", id=said.number("id"), body=body, after=after))

    def _spawn(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
