"""A relay between HAProxy and the agent: sees each frame, can hold the answers, can take pipelining away.

What goes on between the two cannot be seen from outside, so a check that needs it ("one question at a time",
"in flight while HAProxy reloads") puts a relay there instead of guessing with a clock. It passes frames on as
they are, with two exceptions. Without pipelining it strikes that word from the HELLO of both sides: HAProxy
then holds the agent for one that lacks it, in every release, whatever the agent can do. And answers may be
held; when they are let go, each connection gets its own last one first, in one write, because a pipelined
answer is found by its ids and not by its place.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from iamroles_scenarios.errors import WireFormatError
from iamroles_scenarios.wire.codec import Typed
from iamroles_scenarios.wire.frames import Frame, FrameType, encode_kv, prefixed, read_kv

_CONNECT = 5.0
_PIPELINING = "pipelining"


@dataclass(slots=True, eq=False)
class Link:
    """One connection of HAProxy and its continuation to the agent."""

    haproxy: socket.socket
    agent: socket.socket
    check: bool = False
    """Whether it is a health check."""
    announced: str = ""
    """The capabilities that the agent announced, before the relay struck any."""
    asked: int = 0
    """NOTIFY frames seen."""
    waiting: int = 0
    """NOTIFY frames without an answer passed on."""
    deepest: int = 0
    """The most that ever waited at a time."""
    held: list[bytes] = field(default_factory=list)

    def end(self) -> None:
        """Close both sides; whoever reads from them notices."""
        for one in (self.haproxy, self.agent):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


class Relay:
    """Relays frames between HAProxy and an agent; a thread for each direction of each connection.

    Args:
        host: where to listen; the port is ephemeral.
        agent: the agent's `host:port`.
        pipelining: False strikes the capability from both HELLOs.
    """

    def __init__(self, host: str, agent: str, *, pipelining: bool = True) -> None:
        name, _, port = agent.rpartition(":")
        self._agent = (name.strip("[]"), int(port))
        self._pipelining = pipelining
        self._holding = False
        self._changed = threading.Condition()
        self._listener = socket.create_server((host, 0), backlog=256)
        self.links: list[Link] = []
        """Every connection so far, health checks included."""
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    @property
    def address(self) -> str:
        """`host:port` that HAProxy is to ask."""
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    # --- what a check does and sees ------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep answers back from now on."""
        with self._changed:
            self._holding = True

    def release(self) -> None:
        """Let the answers go, each connection's last one first, and keep no more."""
        with self._changed:
            self._holding = False
            for link in self.links:
                link.waiting -= len(link.held)
                data, link.held = b"".join(reversed(link.held)), []
                with suppress(OSError):  # HAProxy has given up on that connection
                    link.haproxy.sendall(data)

    def wait_held(self, count: int, within: float) -> bool:
        """Until so many answers are held; False at the deadline."""
        with self._changed:
            return self._changed.wait_for(lambda: self.held >= count, within)

    @property
    def held(self) -> int:
        """How many answers are held."""
        return sum(len(link.held) for link in self.links)

    @property
    def deepest(self) -> int:
        """The most questions that ever waited side by side on one connection."""
        return max((link.deepest for link in self.links), default=0)

    def asking(self) -> list[Link]:
        """The connections on which something was asked."""
        return [link for link in self.links if link.asked]

    def close(self) -> None:
        """End every connection and listen no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            links = list(self.links)
        for link in links:
            link.end()

    # --- relaying ------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                haproxy, _ = self._listener.accept()
            except OSError:
                return
            try:
                agent = socket.create_connection(self._agent, timeout=_CONNECT)
            except OSError:  # as if HAProxy itself had been refused
                haproxy.close()
                continue
            agent.settimeout(None)
            for one in (haproxy, agent):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(haproxy, agent)
            with self._changed:
                self.links.append(link)
            for direction in (self._from_haproxy, self._from_agent):
                threading.Thread(target=self._guarded, args=(direction, link), daemon=True).start()

    def _guarded(self, direction: object, link: Link) -> None:
        """One direction until either side ends; then the other ends too."""
        assert callable(direction)  # noqa: S101 - one of the two below
        try:
            with suppress(OSError, ValueError, WireFormatError):  # gone, closed here, or no frame
                direction(link)
        finally:
            link.end()

    def _from_haproxy(self, link: Link) -> None:
        for said in _frames(link.haproxy):
            body, frame = said, Frame.decode(said)
            if frame.type == FrameType.HAPROXY_HELLO:
                link.check = any(
                    name == "healthcheck" and item.value is True for name, item in read_kv(frame)
                )
                body = self._struck(frame)
            elif frame.type == FrameType.NOTIFY:
                with self._changed:
                    link.asked += 1
                    link.waiting += 1
                    link.deepest = max(link.deepest, link.waiting)
                    self._changed.notify_all()
            link.agent.sendall(prefixed(body))

    def _from_agent(self, link: Link) -> None:
        for said in _frames(link.agent):
            body, frame = said, Frame.decode(said)
            if frame.type == FrameType.AGENT_HELLO:
                link.announced = str(dict(read_kv(frame)).get("capabilities", Typed.of("")).value)
                body = self._struck(frame)
            with self._changed:
                if frame.type == FrameType.ACK:
                    if self._holding:
                        link.held.append(prefixed(body))
                        self._changed.notify_all()
                        continue
                    link.waiting -= 1
                link.haproxy.sendall(prefixed(body))

    def _struck(self, frame: Frame) -> bytes:
        """The body of a HELLO without the capability, unless it may stay."""
        if self._pipelining:
            return frame.body()
        items = []
        for name, item in read_kv(frame):
            value = item
            if name == "capabilities":
                words = [word.strip() for word in str(item.value).split(",")]
                value = Typed.of(",".join(word for word in words if word != _PIPELINING))
            items.append((name, value))
        return replace(frame, payload=encode_kv(items)).body()


def _frames(stream: socket.socket) -> Iterator[bytes]:
    """Frame bodies until the stream ends."""
    with stream.makefile("rb") as reader:
        while len(head := reader.read(4)) == 4:
            length = int.from_bytes(head, "big")
            body = reader.read(length)
            if len(body) < length:
                return
            yield body
