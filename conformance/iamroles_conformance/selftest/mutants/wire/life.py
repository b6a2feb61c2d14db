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
from iamroles_conformance.selftest.mutants.override import around, setting, transition, without_memory
from iamroles_conformance.selftest.registry import Override, both, mutant


def _goodbye(replacement: Callable[..., None]) -> Override:
    """Take a DISCONNECT otherwise, in both states that know one."""
    kind = FrameType.HAPROXY_DISCONNECT
    return both(*(transition(state, kind)(replacement) for state in (State.OPEN, State.READY)))


@mutant("wire.bye-unanswered", "SPOP-BYE-001", "closes without AGENT-DISCONNECT")
@_goodbye
def bye_unanswered(sound: Any, self: Any, frame: Any) -> None:
    sound(self, frame)
    self._outgoing.pop()


@mutant("wire.bye-is-error", "SPOP-BYE-002", "logs a normal disconnect as an error")
@around(server._Peer, "_handle")
def bye_is_error(sound: Any, self: Any, event: Any) -> None:
    if isinstance(event, Closed):
        server.log.error("HAProxy disconnected with status %s", event.status)
    sound(self, event)


@mutant("wire.bye-strict", "SPOP-BYE-003", "ignores a DISCONNECT without status-code")
@_goodbye
def bye_strict(sound: Any, self: Any, frame: Any) -> None:
    try:
        pairs = frames.read_pairs(frame)
    except RemoteProtocolError:
        pairs = {}
    if b"status-code" in pairs:
        sound(self, frame)


@mutant("wire.reset-is-fatal", "SPOP-BYE-004", "stops accepting after a reset connection")
@around(_Peer, "connection_lost")
def reset_is_fatal(sound: Any, self: Any, exc: Exception | None) -> None:
    if exc is not None:
        self._server._acceptor.stop()
    sound(self, exc)


@mutant("wire.half-close-abandons", "SPOP-BYE-005", "drops what is asked at a half-close", without_memory)
@around(_Peer, "eof_received")
def _abort_at_half_close(_sound: Any, self: Any) -> bool:
    self._transport.abort()
    return False


mutant("wire.bye-long", "SPOP-BYE-006", "says goodbye in 400 bytes")(
    pair_out("message", (DataType.STRING, b"x" * 400))
)


@mutant("wire.leaks", "SPOP-LIFE-001", "keeps the descriptor of a peer that vanished")
@around(_Peer, "connection_made")
def leaks(sound: Any, self: Any, transport: Any) -> None:
    os.dup(transport.get_extra_info("socket").fileno())
    sound(self, transport)


@mutant("wire.all-or-none", "SPOP-LIFE-002", "closes all connections when one breaks the protocol")
@around(_Peer, "_handle")
def all_or_none(sound: Any, self: Any, event: Any) -> None:
    sound(self, event)
    if isinstance(event, Closed) and event.fault:
        for peer in tuple(self._server.peers):
            if peer is not self:
                peer.abort()


@mutant("wire.drops-at-sigterm", "SPOP-LIFE-003", "drops everything at SIGTERM")
@around(Server, "drain")
async def drops_at_sigterm(_sound: Any, self: Any, **_how: Any) -> None:
    self._acceptor.stop()
    for peer in tuple(self.peers):
        peer.abort()


@mutant("wire.slow-accept", "SPOP-LIFE-004", "takes 80 ms for each new connection")
@around(_Peer, "connection_made")
def slow_accept(sound: Any, self: Any, transport: Any) -> None:
    time.sleep(0.08)
    sound(self, transport)


def _settings(**changed: object) -> Override:
    @around(Server, "__init__")
    def init(sound: Any, self: Any, gate: Any, settings: Any, **kwargs: Any) -> None:
        sound(self, gate, settings.model_copy(update=changed), **kwargs)

    return init


mutant("wire.no-connection-limit", "SPOP-LIFE-005", "has no limit on connections")(
    _settings(max_connections=1 << 20)
)
mutant("wire.no-handshake-timeout", "SPOP-LIFE-006", "keeps connections that say nothing")(
    _settings(handshake_timeout=3600.0)
)
_bound = around(listening, "bind")(lambda sound, listen: sound(listen.replace("127.0.0.1", "0.0.0.0")))
_named = around(listening, "address_of")(lambda sound, sock: sound(sock).replace("0.0.0.0", "127.0.0.1"))
mutant("wire.all-interfaces", "SPOP-LIFE-007", "listens on all interfaces")(_bound, _named)
mutant(
    "wire.reads-on",
    "SPOP-UNREAD-002",
    "takes questions from a peer that reads nothing, and keeps their answers",
)(setting(_Peer, "pause_writing", lambda _self: None))


@mutant("wire.short-writes", "SPOP-UNREAD-001", "loses what a full socket does not take")
@around(_Peer, "_flush")
def short_writes(sound: Any, self: Any) -> None:
    if self._transport.get_write_buffer_size():
        self._connection.data_to_send()
    sound(self)


@mutant("wire.waits-for-readers", "SPOP-UNREAD-001", "serves nobody else while one peer reads nothing")
@around(_Peer, "data_received")
def waits_for_readers(sound: Any, self: Any, data: bytes) -> None:
    if any(peer._transport.get_write_buffer_size() for peer in self._server.peers if peer is not self):
        self._loop.call_later(0.05, self.data_received, data)
    else:
        sound(self, data)
