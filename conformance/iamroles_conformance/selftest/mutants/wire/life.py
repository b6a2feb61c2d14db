"""Mutants of teardown and of a life among many connections: SPOP-BYE, SPOP-LIFE."""

from __future__ import annotations

import os
import time
from typing import Any

from iamroles_agent import listening, server
from iamroles_agent.server import Server, _Peer
from iamroles_agent.spop import frames
from iamroles_agent.spop.connection import Closed, Connection, State
from iamroles_agent.spop.errors import RemoteProtocolError
from iamroles_agent.spop.frames import FrameType
from iamroles_agent.spop.values import DataType
from iamroles_conformance.selftest.mutants.edits import pairs_out
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant


def _goodbye(make: Any) -> None:
    table = Connection._TRANSITIONS
    for state in (State.OPEN, State.READY):
        table[state, FrameType.HAPROXY_DISCONNECT] = make(table[state, FrameType.HAPROXY_DISCONNECT])


@mutant("wire.bye-unanswered", kills=["SPOP-BYE-001"], title="closes without AGENT-DISCONNECT")
def bye_unanswered() -> None:
    def make(sound: Any) -> Any:
        def goodbye(self: Any, frame: Any) -> None:
            sound(self, frame)
            self._outgoing.pop()

        return goodbye

    _goodbye(make)


@mutant("wire.bye-is-error", kills=["SPOP-BYE-002"], title="logs a normal disconnect as an error")
def bye_is_error() -> None:
    def make(sound: Any) -> Any:
        def handle(self: Any, event: Any) -> None:
            if isinstance(event, Closed):
                server.log.error("HAProxy disconnected with status %s", event.status)
            sound(self, event)

        return handle

    override(server._Peer, "_handle", make)


@mutant("wire.bye-strict", kills=["SPOP-BYE-003"], title="ignores a DISCONNECT without status-code")
def bye_strict() -> None:
    def make(sound: Any) -> Any:
        def goodbye(self: Any, frame: Any) -> None:
            try:
                pairs = frames.read_pairs(frame)
            except RemoteProtocolError:
                pairs = {}
            if b"status-code" in pairs:
                sound(self, frame)

        return goodbye

    _goodbye(make)


@mutant("wire.reset-is-fatal", kills=["SPOP-BYE-004"], title="stops accepting after a reset connection")
def reset_is_fatal() -> None:
    def make(sound: Any) -> Any:
        def connection_lost(self: Any, exc: Exception | None) -> None:
            if exc is not None:
                self._server._listener.close()
            sound(self, exc)

        return connection_lost

    override(_Peer, "connection_lost", make)


@mutant("wire.half-close-abandons", kills=["SPOP-BYE-005"], title="drops what is asked at a half-close")
def half_close_abandons() -> None:
    def eof_received(self: Any) -> bool:
        self._transport.abort()
        return False

    _Peer.eof_received = eof_received
    _Peer._recall = lambda self, key, context: None


@mutant("wire.bye-long", kills=["SPOP-BYE-006"], title="says goodbye in 400 bytes")
def bye_long() -> None:
    text = (DataType.STRING, b"x" * 400)
    pairs_out(lambda pairs: pairs | {"message": text} if "message" in pairs else pairs)


@mutant("wire.leaks", kills=["SPOP-LIFE-001"], title="keeps the descriptor of a peer that vanished")
def leaks() -> None:
    def make(sound: Any) -> Any:
        def connection_made(self: Any, transport: Any) -> None:
            os.dup(transport.get_extra_info("socket").fileno())
            sound(self, transport)

        return connection_made

    override(_Peer, "connection_made", make)


@mutant(
    "wire.all-or-none", kills=["SPOP-LIFE-002"], title="closes all connections when one breaks the protocol"
)
def all_or_none() -> None:
    def make(sound: Any) -> Any:
        def handle(self: Any, event: Any) -> None:
            sound(self, event)
            if isinstance(event, Closed) and event.fault:
                for peer in tuple(self._server.peers):
                    if peer is not self:
                        peer.abort()

        return handle

    override(_Peer, "_handle", make)


@mutant("wire.drops-at-sigterm", kills=["SPOP-LIFE-003"], title="drops everything at SIGTERM")
def drops_at_sigterm() -> None:
    async def drain(self: Any) -> None:
        self._listener.close()
        for peer in tuple(self.peers):
            peer.abort()

    Server.drain = drain


@mutant("wire.slow-accept", kills=["SPOP-LIFE-004"], title="takes 80 ms for each new connection")
def slow_accept() -> None:
    def make(sound: Any) -> Any:
        def connection_made(self: Any, transport: Any) -> None:
            time.sleep(0.08)
            sound(self, transport)

        return connection_made

    override(_Peer, "connection_made", make)


def _settings(**changed: object) -> None:
    def make(sound: Any) -> Any:
        def init(self: Any, gate: Any, settings: Any, **kwargs: Any) -> None:
            sound(self, gate, settings.model_copy(update=changed), **kwargs)

        return init

    override(Server, "__init__", make)


@mutant("wire.no-connection-limit", kills=["SPOP-LIFE-005"], title="has no limit on connections")
def no_connection_limit() -> None:
    _settings(max_connections=1 << 20)


@mutant("wire.no-handshake-timeout", kills=["SPOP-LIFE-006"], title="keeps connections that say nothing")
def no_handshake_timeout() -> None:
    _settings(handshake_timeout=3600.0)


@mutant("wire.all-interfaces", kills=["SPOP-LIFE-007"], title="listens on all interfaces")
def all_interfaces() -> None:
    override(listening, "bind", lambda sound: lambda listen: sound(listen.replace("127.0.0.1", "0.0.0.0")))
    override(listening, "address_of", lambda sound: lambda sock: sound(sock).replace("0.0.0.0", "127.0.0.1"))
