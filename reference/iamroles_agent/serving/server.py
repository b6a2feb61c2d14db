"""The sockets around the protocol: one `Server` per process, one `_Peer` per connection.

The order of things in `_Peer.data_received` is the hot path: all frames of a read, a single write for all
their ACKs. A question that the gate does not remember becomes a task, so a slow one (STS, a key set being
fetched) delays no other frame. A task ends in exactly one ACK, or in none because the peer is gone.

How a connection ends, whichever side ends it: AGENT-DISCONNECT (if any) is written, then only our half is
closed, and the agent drops what still arrives until HAProxy closes too, or `LINGER` passes. Closing both
halves at once while the peer is still sending makes the kernel send RST, which can destroy the frame that
says why.
"""

from __future__ import annotations

import asyncio
import logging
import random
import select
import socket
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

from iamroles_agent.base.config import AgentSettings
from iamroles_agent.serving import listening
from iamroles_agent.serving.accepting import Acceptor
from iamroles_agent.serving.bounded import Bounded, network_of, room
from iamroles_agent.serving.idle import Idle
from iamroles_agent.serving.metrics import ConnectionStats
from iamroles_agent.serving.tls import Tls
from iamroles_agent.spop import actions as action_codec
from iamroles_agent.spop.connection import (
    CheckRequested,
    CheckUnusable,
    Closed,
    Connection,
    Event,
    HelloReceived,
    State,
)
from iamroles_agent.spop.errors import LocalProtocolError, Status
from iamroles_agent.spop.messages import Context

if TYPE_CHECKING:
    from iamroles_agent.serving.gate import Gate

LINGER = 1.0
"""Seconds that HAProxy may take to close a connection that is over."""
DRAIN_GRACE = 0.05
"""Seconds after SIGTERM in which connections, and then frames, already on their way are still taken."""
GENTLY = 2.0
"""Seconds after a takeover, or beyond its age, in which a busy connection is not ended."""
MAX_COMING = 64
"""Connections in their TLS handshake at a time (`Bounded`)."""
_MOMENT = 0.1
"""Seconds without a question after which a goodbye is unlikely to cross one."""
_YOUNGEST = 0.75
"""Share of `max_connection_age` at which a connection may end: not all that began together end together."""
MAX_PENDING = 1024
"""Decisions under way on one connection before its reading pauses; HAProxy itself keeps to 20 frames."""

log = logging.getLogger("iamroles.server")


class Server:
    """Answers HAProxy on its listening sockets.

    Args:
        gate: decides; tests and benchmarks give fakes of its four methods.
        settings: address, limits and timeouts.
        socks: bound sockets to use, which the caller owns; else those of `settings.listen` are bound.
        stats: counters to fill; a new object if absent.
        counts, slot: see `Acceptor`.
        tls: of the TCP sockets; None: plain TCP.
    """

    def __init__(
        self,
        gate: Gate,
        settings: AgentSettings,
        *,
        socks: Sequence[socket.socket] = (),
        stats: ConnectionStats | None = None,
        counts: memoryview | None = None,
        slot: int = 0,
        tls: Tls | None = None,
    ) -> None:
        self.gate = gate
        self.tls = tls
        self.settings = settings
        self.stats = stats or ConnectionStats()
        self.peers: set[_Peer] = set()
        self.address = ""
        self._socks = socks
        self._counts, self._slot = counts, slot
        self._acceptor: Acceptor
        self._coming, self._handshakes = Bounded(sys.maxsize), Bounded(MAX_COMING)
        self._emptied = asyncio.Event()
        self.idle: Idle
        self.room = room()
        self.most = min(settings.max_connections, self.room)

    async def start(self) -> str:
        """Listen.

        Returns:
            The first address with its real port: `127.0.0.1:40123`, `[::1]:40123` or `unix:/path`.

        Raises:
            StartError: the address is taken, unknown or forbidden.
        """
        socks = self._socks or listening.open_all(self.settings)
        self.address = listening.address_of(socks[0])
        self._acceptor = Acceptor(socks, self._accepted, self._counts, self._slot)
        self.idle = Idle(self.peers, self.settings.idle_timeout)
        return self.address

    def _accepted(self, sock: socket.socket) -> None:
        if self._secured(sock):
            self._handshakes.begin(self._connect(sock), network_of(sock))
        else:  # it takes a turn of the event loop, and at the end all that wait come in one
            self._coming.begin(self._connect(sock))

    def _secured(self, sock: socket.socket) -> bool:
        return self.tls is not None and sock.family != socket.AF_UNIX

    async def _connect(self, sock: socket.socket) -> None:
        how: dict[str, Any] = {}
        peer = _Peer(self)
        try:
            if self.tls is not None and self._secured(sock):
                how = {"ssl": self.tls.context(), "ssl_handshake_timeout": self.settings.handshake_timeout}
            await asyncio.get_running_loop().connect_accepted_socket(lambda: peer, sock, **how)
        except (OSError, asyncio.CancelledError) as error:
            why = str(error) or "others waited for their handshake"
            log.warning("a connection could not be taken: %s", why)
            sock.close()
            if peer not in self.peers:  # else it was made just before, and `forget` follows
                self._acceptor.closed()

    async def drain(self, *, gently: bool = False) -> None:
        """Stop accepting, answer what is in flight, say goodbye; returns when all connections are closed.

        After `drain_timeout` the agent denies what is still undecided with `internal_error`.

        Args:
            gently: say goodbye to a connection right after its next answer, or after an idle moment, because
                a question that crosses a goodbye is lost; to all others after `GENTLY`.
        """
        # A connection that was made before this process heard of the end is still accepted and answered.
        await asyncio.sleep(DRAIN_GRACE)
        self._acceptor.stop()
        self.idle.stop()
        if not self._socks:
            listening.remove_unix(self.address)
        await asyncio.gather(self._coming.end(LINGER), self._handshakes.end(LINGER))
        if gently:
            await self._leave()
        for peer in tuple(self.peers):
            peer.drain()
        if await self._all_gone(self.settings.drain_timeout):
            return
        for peer in tuple(self.peers):
            peer.give_up("the agent is stopping")
        if not await self._all_gone(2 * LINGER):
            for peer in tuple(self.peers):
                peer.abort()

    async def _leave(self) -> None:
        """End each connection at a moment when no question can be on its way, if there is one in time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + GENTLY
        seen: dict[_Peer, int] = {}
        for peer in self.peers:
            peer.leave()
        while self.peers and loop.time() < end:
            for peer in tuple(self.peers):
                if peer.idle_since(seen.get(peer, -1)):
                    peer.say_goodbye()
                seen[peer] = peer.asked
            await asyncio.sleep(_MOMENT)

    async def _all_gone(self, seconds: float) -> bool:
        self._emptied.clear()
        if not self.peers:
            return True
        try:
            await asyncio.wait_for(self._emptied.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def recall(self, key: bytes, context: Context) -> bytes | None:
        """Look into the gate's memory; if that fails, the question is judged.

        No method of `_Peer`: in a cycle it would never be freed if a reload's `gc.freeze` found it open.
        """
        try:
            return self.gate.recall(key, context)
        except Exception:
            log.exception("the gate failed to recall a decision")
            return None

    def forget(self, peer: _Peer) -> None:
        self._acceptor.closed()
        self.peers.discard(peer)
        if not self.peers:
            self._emptied.set()


class _Life(IntEnum):
    """The state of a connection; it only grows. HAProxy's half is `_Peer._half_closed`."""

    SERVING = 0
    LEAVING = 1
    """To be ended right after the next answer."""
    DRAINING = 2
    """To be ended when nothing is under way."""
    OVER = 3
    """The last frames are written; what still arrives is dropped."""


_SERVING, _OVER = _Life.SERVING, _Life.OVER


class _Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._gate = server.gate
        self._stats = server.stats
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(
            server.recall, max_frame_size=server.settings.max_frame_size, unhealthy=self._gate.unhealthy
        )
        self._pending: dict[asyncio.Task[None], CheckRequested] = {}
        self._handshake: asyncio.TimerHandle | None = None
        self._farewell: asyncio.TimerHandle | None = None
        self._ageing: asyncio.TimerHandle | None = None
        self._why, self._busy_until = "the agent is stopping", 0.0
        self._life = _Life.SERVING
        self._half_closed = False
        self._secure = False
        """True for TLS."""
        self._writing_paused = False
        self.seen, self.since = 0, self._loop.time()
        """Questions at the last look of `idle`, and the time since which there were as many."""

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's own class
        self._name = listening.name_of(transport.get_extra_info("peername"))
        self._stats.accepted += 1
        tls = self._server.tls
        if transport.get_extra_info("ssl_object") is not None and tls is not None:
            self._secure = True
            if not tls.accepts(transport.get_extra_info("peercert")):
                log.warning("refused %s: its certificate carries no name of agent.tls.names", self._name)
                self._refuse("unknown certificate")
                return
        server, opened = self._server, self._stats.open
        # A connection that got its goodbye, and that HAProxy has not closed yet, takes only a descriptor.
        full = opened >= server.most or len(server.peers) >= server.room
        if full and not server.idle.make_room():
            log.warning("refused %s: %d connections are open, agent.max_connections", self._name, opened)
            self._refuse("too many connections")
            return
        server.peers.add(self)
        self._stats.open += 1
        self._handshake = self._loop.call_later(server.settings.handshake_timeout, self._no_handshake)

    def _refuse(self, why: str) -> None:
        self._stats.refused += 1
        self._life = _OVER
        self._connection.disconnect(Status.RESOURCES, why)
        self._transport.write(self._connection.data_to_send())
        self._transport.close()
        self._server.peers.add(self)  # it takes a descriptor: TLS waits for HAProxy's end
        self._farewell = self._loop.call_later(LINGER, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._life is _OVER:
            return
        connection, stats = self._connection, self._stats
        recalled, notifies = connection.recalled, connection.notifies
        events = connection.receive_data(data)
        stats.recalled += connection.recalled - recalled
        stats.notifies += connection.notifies - notifies
        for event in events:
            self._handle(event)
        if self._life is not _SERVING:
            self._end_if_answered()
        self._flush()
        if events:
            self._regulate()

    def eof_received(self) -> bool:
        """Half-closed: what was asked is still answered (SPOP-BYE-005)."""
        self._half_closed = True
        if self._pending and self._life is not _OVER and not self._secure:
            return True
        self._farewell = self._loop.call_later(LINGER, self._transport.abort)  # it may take no more answers
        return False

    def pause_writing(self) -> None:
        """HAProxy reads too slowly: read no more questions from it."""
        self._writing_paused = True
        self._regulate()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._regulate()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            log.debug("%s is gone: %s", self._name, exc)
        self._stop_timers()
        self._stats.open -= self._life is not _OVER
        if self._pending:
            log.info("%s vanished with %d decisions under way", self._name, len(self._pending))
        self._life = _OVER
        self._forget_pending()
        self._server.forget(self)

    # What the server calls

    @property
    def asked(self) -> int:
        return self._connection.notifies

    def idle_since(self, asked: int) -> bool:
        """Look whether no question came since `asked` was this number, and none is under way or unread."""
        return not (self.asked != asked or self._pending or self._connection.inside_frame or self._unread())

    def stuck_since(self, asked: int) -> bool:
        """Look whether no question came since `asked` was this number, and only HAProxy can go on: it owes
        the rest of a frame, or takes no answers.
        """
        return (
            self.asked == asked
            and not self._pending
            and (self._connection.inside_frame or self._writing_paused)
        )

    def _unread(self) -> bool:
        """Look whether data has arrived that this loop, if it is late, has not read yet."""
        poller = select.poll()
        poller.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poller.poll(0))

    def drain(self) -> None:
        """Answer what is under way or already sent, then say goodbye."""
        if self._life is not _OVER:
            self._farewell = self._loop.call_later(DRAIN_GRACE, self._grace_over)

    def leave(self) -> None:
        """Say goodbye right after the next answer: HAProxy, which waited for it, has not asked again yet."""
        if self._life is _SERVING:
            self._life, self._busy_until = _Life.LEAVING, self._loop.time() + GENTLY

    def _is_old(self, asked: int = -1) -> None:
        """End the connection after the next answer, or once it is idle: no question since it was `asked`.

        A connection that is stuck for `GENTLY` ends too: half a frame asks nothing.
        """
        if self._life is _SERVING:
            self._why = "the connection is old"
        self.leave()
        late = self._loop.time() >= self._busy_until
        if self.idle_since(asked) or (late and self.stuck_since(asked)):
            self.say_goodbye(self._why)
        else:
            self._ageing = self._loop.call_later(_MOMENT, self._is_old, self.asked)

    def give_up(self, detail: str) -> None:
        """Deny what is still undecided and say goodbye."""
        for event in self._pending.values():
            self._acknowledge(event, self._failed(event.context, detail))
        self._forget_pending()
        self.say_goodbye()

    def abort(self) -> None:
        self._transport.abort()

    # Events

    def _handle(self, event: Event) -> None:
        match event:
            case CheckRequested():
                if self._connection.state is State.READY:
                    task = self._loop.create_task(self._judge(event))
                    self._pending[task] = event
                    self._stats.pending += 1
            case CheckUnusable():
                self._acknowledge(event, self._failed(event.context, event.detail))
            case HelloReceived():
                if self._handshake is not None:
                    self._handshake.cancel()
                if age := self._server.settings.max_connection_age:
                    age *= random.uniform(_YOUNGEST, 1.0)  # noqa: S311 - no secret
                    self._ageing = self._loop.call_later(max(0.0, age - _MOMENT), self._is_old)
                log.debug(
                    "%s: HELLO from engine %r, frames of %d bytes",
                    self._name,
                    event.engine_id,
                    event.max_frame_size,
                )
            case Closed():
                if event.fault:
                    self._stats.protocol_errors += 1
                    log.warning(
                        "%s broke the protocol: %s (status %d)", self._name, event.message, event.status
                    )
                else:
                    log.debug("%s: closed with status %d, %s", self._name, event.status, event.message)
                self._end()

    async def _judge(self, event: CheckRequested) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this coroutine is only run as a task
        timeout = self._server.settings.decision_timeout
        try:
            async with asyncio.timeout(timeout):
                actions = await self._gate.judge(event.check, event.context, event.key)
            self._stats.judged += 1
        except TimeoutError:
            actions = self._failed(event.context, f"no decision within {timeout:g} s")
        except asyncio.CancelledError:
            if task not in self._pending:
                raise  # the peer is gone
            actions = self._failed(event.context, "the decision was cancelled")
        except Exception as error:
            log.exception("a decision failed")
            actions = self._failed(event.context, f"the decision failed: {type(error).__name__}")
        if self._pending.pop(task, None) is None:
            return
        self._stats.pending -= 1
        self._acknowledge(event, actions)
        self._end_if_answered()
        self._flush()
        self._regulate()

    def _failed(self, context: Context, detail: str) -> bytes:
        self._stats.failed += 1
        try:
            return self._gate.failed(context, detail)
        except Exception:
            log.exception("the gate failed to fail; denied without an audit line")
            return action_codec.LAST_RESORT

    def _acknowledge(self, event: CheckRequested | CheckUnusable, actions: bytes) -> None:
        """Queue the ACK; nothing once the connection is over."""
        if self._connection.state is not State.READY:
            return
        try:
            self._connection.acknowledge(event.ids, actions)
        except LocalProtocolError:
            log.exception("an answer could not be encoded; denied")
            self._connection.acknowledge(event.ids, action_codec.LAST_RESORT)

    # Flow and end

    def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)
            if self._life is _OVER and not self._half_closed:
                if self._secure:  # TLS has no half of a connection; `close` waits for HAProxy's end
                    self._transport.close()
                else:
                    self._transport.write_eof()

    def _regulate(self) -> None:
        """Read while HAProxy takes our answers and not too much is under way, and on to any end."""
        if self._half_closed:
            return
        wanted = self._life is _OVER or not (self._writing_paused or len(self._pending) >= MAX_PENDING)
        if wanted == self._transport.is_reading() or self._transport.is_closing():
            return
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _no_handshake(self) -> None:
        self._stats.handshake_timeouts += 1
        log.warning("%s sent no HELLO in time", self._name)
        self._connection.disconnect(Status.TIMEOUT, "no HELLO in time")
        self._end()
        self._flush()

    def _grace_over(self) -> None:
        self._life = max(self._life, _Life.DRAINING)
        self._end_if_answered()

    def _end_if_answered(self) -> None:
        """End a connection that is to be ended, or that HAProxy has half-closed, once all is answered.

        The goodbye goes out in one write with the answer: between two, the next question might be asked.
        """
        if self._pending or self._life is _OVER:
            return
        leaves = self._life is _Life.LEAVING and self.asked
        may_wait = leaves and not self._half_closed and self._loop.time() < self._busy_until
        if may_wait and (self._connection.inside_frame or self._unread()):
            return  # another question is here already
        if leaves or self._life is _Life.DRAINING:
            self.say_goodbye(self._why)
        elif self._half_closed:
            self._end()

    def say_goodbye(self, why: str = "the agent is stopping") -> bool:
        """End the connection from this side; return False if it was over."""
        if self._life is _OVER:
            return False
        self._connection.disconnect(Status.NORMAL, why)
        self._end()
        self._flush()
        return True

    def _end(self) -> None:
        """The connection is over; `_flush` writes the last frames and closes our half."""
        if self._life is _OVER:
            return
        self._life = _OVER
        self._stats.open -= 1
        self._forget_pending()
        self._stop_timers()
        self._regulate()
        if self._half_closed:
            self._loop.call_soon(self._transport.close)
        self._farewell = self._loop.call_later(LINGER, self._transport.abort)

    def _stop_timers(self) -> None:
        for timer in (self._handshake, self._farewell, self._ageing):
            if timer is not None:
                timer.cancel()

    def _forget_pending(self) -> None:
        """Cancel all decisions under way; their tasks see that they are no longer awaited."""
        pending, self._pending = self._pending, {}
        self._stats.pending -= len(pending)
        self._stats.forgotten += len(pending)
        for task in pending:
            task.cancel()
