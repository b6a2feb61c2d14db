"""A relay between HAProxy and the agent: sees each frame, can hold the answers, can take pipelining away.

What goes on between the two cannot be seen from outside, so a check that needs it ("one question at a time",
"in flight while HAProxy reloads") puts a relay there instead of guessing with a clock. It passes frames on as
they are, with three exceptions. Without pipelining it strikes that word from the HELLO of both sides: HAProxy
then takes the agent for an agent that lacks it, in every release, whatever the agent can do. It strikes
`async` from the agent's, because a HAProxy that may get an answer on any connection waits for that of a
connection which has ended until its time is up. And answers may be held; when they are let go, each
connection gets its own last one first, in one write, because a pipelined answer is found by its ids.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import replace

from iamroles_scenarios.base.errors import WireFormatError
from iamroles_scenarios.stage import breaker
from iamroles_scenarios.wire.codec import Typed
from iamroles_scenarios.wire.frames import Frame, FrameType, encode_kv, prefixed, read_kv

_ASYNC, _PIPELINING = "async", "pipelining"


class RelayedLink(breaker.Link):
    """One connection of HAProxy and its continuation to the agent."""

    def __init__(self, haproxy: asyncio.StreamWriter, agent: asyncio.StreamWriter) -> None:
        super().__init__(haproxy, agent)
        self.haproxy = haproxy
        self.check = False
        """True for a health check."""
        self.announced = ""
        """The capabilities that the agent announced, before the relay struck any."""
        self.asked = 0
        """NOTIFY frames seen."""
        self.over = asyncio.Event()
        """Set from the agent's goodbye on."""
        self.waiting: dict[tuple[int, int], tuple[int, bytes]] = {}
        """NOTIFY frames without an answer passed on, by stream and frame: when they came, what they ask."""
        self.deepest = 0
        """The most that ever waited at a time."""
        self.held: list[tuple[tuple[int, int], bytes]] = []


class Relay(breaker.Breaker):
    """Relays frames between HAProxy and an agent.

    Args:
        host: where to listen; the port is ephemeral.
        agent: the agent's `host:port`.
        pipelining: False strikes the capability from both HELLOs.
    """

    def __init__(self, host: str, agent: str, *, pipelining: bool = True) -> None:
        self._unsaid = () if pipelining else (_PIPELINING,)
        self._holding, self._late = False, 0.0
        self._moved = threading.Condition()
        self.links: list[RelayedLink] = []
        """Every connection so far, health checks included."""
        self.crossed: list[tuple[int, int]] = []
        """When questions and a goodbye of the agent passed each other, as `Outcomes.excuses`."""
        self.again: list[tuple[int, int]] = []
        """Those of `crossed` that HAProxy asked because the question before had crossed a goodbye too."""
        self._crossers: set[bytes] = set()
        super().__init__(host, agent)

    # --- what a check does and sees ------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep answers back from now on."""
        with self._moved:
            self._holding = True

    def release(self) -> None:
        """Let the answers go, each connection's last one first, and keep no more."""
        with self._moved:
            self._holding = False
            for link in self.links:
                for asked, _ in link.held:
                    link.waiting.pop(asked, None)
                data, link.held = b"".join(said for _, said in reversed(link.held)), []
                self._loop.call_soon_threadsafe(link.haproxy.write, data)

    def leaves(self, late: float) -> None:
        """Refuse connections from now on, and keep questions for a time, or until the agent's goodbye.

        Args:
            late: in seconds.
        """
        self._late = late
        if self._server is not None:
            self._loop.call_soon_threadsafe(self._server.close)

    def wait_held(self, count: int, within: float) -> bool:
        """Until so many answers are held; False at the deadline."""
        with self._moved:
            return self._moved.wait_for(lambda: self.held >= count, within)

    @property
    def held(self) -> int:
        return sum(len(link.held) for link in self.links)

    @property
    def asked(self) -> int:
        return sum(link.asked for link in self.links)

    @property
    def deepest(self) -> int:
        """The most questions that ever waited side by side on one connection."""
        return max((link.deepest for link in self.links), default=0)

    def asking(self) -> list[RelayedLink]:
        """The connections on which something was asked."""
        return [link for link in self.links if link.asked]

    # --- relaying ------------------------------------------------------------------------------------------

    def _linked(self, asker: asyncio.StreamWriter, answerer: asyncio.StreamWriter) -> RelayedLink:
        link = RelayedLink(asker, answerer)
        with self._moved:
            self.links.append(link)
        return link

    async def _pass(
        self,
        link: breaker.Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answering: bool,
    ) -> None:
        """Pass on one direction until either side ends or sends no frame; then end the other.

        After an agent's goodbye HAProxy is heard to its end: what it asks until it has read the goodbye is
        lost, and nobody would see that if the connection were closed at once.
        """
        assert isinstance(link, RelayedLink)  # noqa: S101 - `_linked` made it
        read = self._from_agent if answering else self._from_haproxy
        try:
            with suppress(OSError, EOFError, WireFormatError):
                while True:
                    length = int.from_bytes(await reader.readexactly(4), "big")
                    goes_on = read(link, await reader.readexactly(length))
                    if self._late and not answering:
                        with suppress(TimeoutError):
                            await asyncio.wait_for(link.over.wait(), self._late)
                    if goes_on and (answering or not link.over.is_set()):
                        writer.write(prefixed(goes_on))
                        await writer.drain()
        finally:
            if not (answering and link.over.is_set()):
                link.close()

    def _from_haproxy(self, link: RelayedLink, said: bytes) -> bytes:
        frame = Frame.decode(said)
        if frame.type == FrameType.HAPROXY_HELLO:
            link.check = any(name == "healthcheck" and item.value is True for name, item in read_kv(frame))
            return _struck(frame, *self._unsaid)
        if frame.type == FrameType.NOTIFY:
            with self._moved:
                asked = frame.stream_id, frame.frame_id
                link.asked += 1
                link.waiting[asked] = time.time_ns(), frame.payload
                link.deepest = max(link.deepest, len(link.waiting))
                if link.over.is_set():
                    self._note_crossing(link, asked)
                self._moved.notify_all()
        return said

    def _from_agent(self, link: RelayedLink, said: bytes) -> bytes:
        """Return what goes on; nothing of an answer that is held."""
        frame = Frame.decode(said)
        asked = frame.stream_id, frame.frame_id
        if frame.type == FrameType.AGENT_HELLO:
            link.announced = str(dict(read_kv(frame)).get("capabilities", Typed.of("")).value)
            return _struck(frame, _ASYNC, *self._unsaid)
        if frame.type == FrameType.ACK:
            with self._moved:
                if self._holding:
                    link.held.append((asked, prefixed(said)))
                    self._moved.notify_all()
                    return b""
                link.waiting.pop(asked, None)
        elif frame.type == FrameType.AGENT_DISCONNECT:
            link.over.set()
            with self._moved:
                for asked in link.waiting:
                    self._note_crossing(link, asked)
        return said

    def _note_crossing(self, link: RelayedLink, asked: tuple[int, int]) -> None:
        asked_at, question = link.waiting[asked]
        self.crossed.append((asked_at, time.time_ns()))
        if question in self._crossers:  # it names its request; from 3.1 on each connection counts streams
            self.again.append(self.crossed[-1])
        self._crossers.add(question)


def _struck(frame: Frame, *struck: str) -> bytes:
    """Return the body of a HELLO without these capabilities."""
    items = []
    for name, item in read_kv(frame):
        value = item
        if name == "capabilities":
            words = [word.strip() for word in str(item.value).split(",")]
            value = Typed.of(",".join(word for word in words if word not in struck))
        items.append((name, value))
    return replace(frame, payload=encode_kv(items)).body() if struck else frame.body()
