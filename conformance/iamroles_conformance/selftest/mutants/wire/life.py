"""Mutants of teardown and of a life among many connections: SPOP-BYE, SPOP-LIFE."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from iamroles_agent.serving import listening, server
from iamroles_agent.serving.server import Server, _Peer
from iamroles_agent.spop import frames
from iamroles_agent.spop.connection import Closed, State
from iamroles_agent.spop.errors import RemoteProtocolError
from iamroles_agent.spop.frames import FrameType
from iamroles_agent.spop.values import DataType
from iamroles_conformance.selftest.mutants.edits import pair_out
from iamroles_conformance.selftest.mutants.override import around, both, setting, transition, without_memory
from iamroles_conformance.selftest.registry import Apply, mutant


def _goodbye(replacement: Callable[..., None]) -> Apply:
    """Take a DISCONNECT otherwise, in both states that know one."""
    kind = FrameType.HAPROXY_DISCONNECT
    return both(*(transition(state, kind)(replacement) for state in (State.OPEN, State.READY)))


@mutant("wire.bye-unanswered", kills=["SPOP-BYE-001"], title="closes without AGENT-DISCONNECT")
@_goodbye
def bye_unanswered(sound: Any, self: Any, frame: Any) -> None:
    sound(self, frame)
    self._outgoing.pop()


@mutant("wire.bye-is-error", kills=["SPOP-BYE-002"], title="logs a normal disconnect as an error")
@around(server._Peer, "_handle")
def bye_is_error(sound: Any, self: Any, event: Any) -> None:
    if isinstance(event, Closed):
        server.log.error("HAProxy disconnected with status %s", event.status)
    sound(self, event)


@mutant("wire.bye-strict", kills=["SPOP-BYE-003"], title="ignores a DISCONNECT without status-code")
@_goodbye
def bye_strict(sound: Any, self: Any, frame: Any) -> None:
    try:
        pairs = frames.read_pairs(frame)
    except RemoteProtocolError:
        pairs = {}
    if b"status-code" in pairs:
        sound(self, frame)


@mutant("wire.reset-is-fatal", kills=["SPOP-BYE-004"], title="stops accepting after a reset connection")
@around(_Peer, "connection_lost")
def reset_is_fatal(sound: Any, self: Any, exc: Exception | None) -> None:
    if exc is not None:
        self._server._acceptor.stop()
    sound(self, exc)


@around(_Peer, "eof_received")
def _abort_at_half_close(_sound: Any, self: Any) -> bool:
    self._transport.abort()
    return False


mutant(
    "wire.half-close-abandons",
    kills=["SPOP-BYE-005"],
    title="drops what is asked at a half-close",
    apply=both(_abort_at_half_close, without_memory),
)


mutant(
    "wire.bye-long",
    kills=["SPOP-BYE-006"],
    title="says goodbye in 400 bytes",
    apply=pair_out("message", (DataType.STRING, b"x" * 400)),
)


@mutant("wire.leaks", kills=["SPOP-LIFE-001"], title="keeps the descriptor of a peer that vanished")
@around(_Peer, "connection_made")
def leaks(sound: Any, self: Any, transport: Any) -> None:
    os.dup(transport.get_extra_info("socket").fileno())
    sound(self, transport)


@mutant(
    "wire.all-or-none", kills=["SPOP-LIFE-002"], title="closes all connections when one breaks the protocol"
)
@around(_Peer, "_handle")
def all_or_none(sound: Any, self: Any, event: Any) -> None:
    sound(self, event)
    if isinstance(event, Closed) and event.fault:
        for peer in tuple(self._server.peers):
            if peer is not self:
                peer.abort()


@mutant("wire.drops-at-sigterm", kills=["SPOP-LIFE-003"], title="drops everything at SIGTERM")
@around(Server, "drain")
async def drops_at_sigterm(_sound: Any, self: Any, **_how: Any) -> None:
    self._acceptor.stop()
    for peer in tuple(self.peers):
        peer.abort()


@mutant("wire.slow-accept", kills=["SPOP-LIFE-004"], title="takes 80 ms for each new connection")
@around(_Peer, "connection_made")
def slow_accept(sound: Any, self: Any, transport: Any) -> None:
    time.sleep(0.08)
    sound(self, transport)


def _settings(**changed: object) -> Apply:
    @around(Server, "__init__")
    def init(sound: Any, self: Any, gate: Any, settings: Any, **kwargs: Any) -> None:
        sound(self, gate, settings.model_copy(update=changed), **kwargs)

    return init


mutant(
    "wire.no-connection-limit",
    kills=["SPOP-LIFE-005"],
    title="has no limit on connections",
    apply=_settings(max_connections=1 << 20),
)


mutant(
    "wire.no-handshake-timeout",
    kills=["SPOP-LIFE-006"],
    title="keeps connections that say nothing",
    apply=_settings(handshake_timeout=3600.0),
)


_bound = around(listening, "bind")(lambda sound, listen: sound(listen.replace("127.0.0.1", "0.0.0.0")))
_named = around(listening, "address_of")(lambda sound, sock: sound(sock).replace("0.0.0.0", "127.0.0.1"))
mutant(
    "wire.all-interfaces",
    kills=["SPOP-LIFE-007"],
    title="listens on all interfaces",
    apply=both(_bound, _named),
)


mutant(
    "wire.reads-on",
    kills=["SPOP-UNREAD-002"],
    title="takes questions from a peer that reads nothing, and keeps their answers",
    apply=setting(_Peer, "pause_writing", lambda _self: None),
)


@mutant("wire.short-writes", kills=["SPOP-UNREAD-001"], title="loses what a full socket does not take")
@around(_Peer, "_flush")
def short_writes(sound: Any, self: Any) -> None:
    if self._transport.get_write_buffer_size():
        self._connection.data_to_send()
    sound(self)


@mutant(
    "wire.waits-for-readers",
    kills=["SPOP-UNREAD-001"],
    title="serves nobody else while one peer reads nothing",
)
@around(_Peer, "data_received")
def waits_for_readers(sound: Any, self: Any, data: bytes) -> None:
    if any(peer._transport.get_write_buffer_size() for peer in self._server.peers if peer is not self):
        self._loop.call_later(0.05, self.data_received, data)
    else:
        sound(self, data)
