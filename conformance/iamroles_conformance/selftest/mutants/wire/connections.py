"""Mutants of a connection's life among others: SPOP-HELLO, SIZE, CAPS, HEALTH, BYE, LIFE, UNREAD."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from iamroles_agent.serving import idle, listening, server
from iamroles_agent.serving.server import Server, _Peer
from iamroles_agent.spop import connection, frames
from iamroles_agent.spop.connection import Closed, Connection, HelloReceived, State
from iamroles_agent.spop.errors import RemoteProtocolError, invalid
from iamroles_agent.spop.frames import FrameType
from iamroles_agent.spop.values import DataType
from iamroles_conformance.selftest.mutants import edits
from iamroles_conformance.selftest.mutants.edits import hello_text, pair_out, pairs_in, without_memory
from iamroles_conformance.selftest.mutants.override import after, around, before, fail, setting, transition
from iamroles_conformance.selftest.registry import Override, both, mutant

# --- the handshake: HELLO, SIZE, CAPS, HEALTH

_DEFAULTS = {
    b"supported-versions": (DataType.STRING, b"2.0"),
    b"max-frame-size": (DataType.UINT32, 16380),
    b"capabilities": (DataType.STRING, b""),
}
_KNOWN = {*_DEFAULTS, b"healthcheck", b"engine-id"}
_hello_when_ready = setting(
    Connection,
    "_TRANSITIONS",
    {**Connection._TRANSITIONS, (State.READY, FrameType.HAPROXY_HELLO): Connection._hello},
)


@after(Connection, "__init__")
def _ready(self: Any, *_args: Any, **_how: Any) -> None:
    self.state = State.READY


def _refusing(bad: Callable[[dict[bytes, Any]], Any]) -> Override:
    """Refuse a HELLO if `bad(items)`."""
    return pairs_in(
        lambda pairs: fail(invalid("not these items")) if b"max-frame-size" in pairs and bad(pairs) else pairs
    )


mutant("wire.no-handshake", "SPOP-HELLO-001", "answers NOTIFY before any HELLO")(_ready, _hello_when_ready)
mutant("wire.hello-ids", "SPOP-HELLO-002", "sends AGENT-HELLO with frame-id 1")(
    around(frames, "encode")(
        lambda sound, kind, ids, payload, flags=1: sound(
            kind, b"\x00\x01" if kind == FrameType.AGENT_HELLO else ids, payload, flags
        )
    )
)
mutant("wire.hello-items", "SPOP-HELLO-003", "leaves `capabilities` out of AGENT-HELLO")(
    edits.pairs_out(lambda pairs: {key: value for key, value in pairs.items() if key != "capabilities"})
)
mutant("wire.hello-version", "SPOP-HELLO-004", "answers with version 2.1")(
    setting(connection, "VERSION", "2.1")
)
mutant("wire.versions-whole", "SPOP-HELLO-005", "compares supported-versions as a whole")(
    hello_text(lambda key, text: "9.9" if key == b"supported-versions" and text != "2.0" else text)
)
mutant("wire.versions-substring", "SPOP-HELLO-006", "looks for a 2 anywhere in supported-versions")(
    hello_text(lambda key, text: "2.0" if key == b"supported-versions" and "2" in text else text)
)
mutant("wire.missing-default", "SPOP-HELLO-007", "takes a default for a missing HELLO item")(
    pairs_in(lambda pairs: _DEFAULTS | pairs)
)
mutant("wire.unknown-key", "SPOP-HELLO-008", "refuses a HELLO with an unknown key")(
    _refusing(lambda pairs: not pairs.keys() <= _KNOWN)
)
mutant("wire.key-order", "SPOP-HELLO-009", "reads the HELLO by position")(
    _refusing(lambda pairs: next(iter(pairs)) != b"supported-versions")
)
mutant("wire.engine-id-required", "SPOP-HELLO-010", "refuses a HELLO without engine-id")(
    _refusing(lambda pairs: b"engine-id" not in pairs)
)
mutant("wire.hello-again", "SPOP-HELLO-011", "answers a second HELLO")(_hello_when_ready)
mutant("wire.handshake-timer", "SPOP-HELLO-012", "never disarms the handshake timer")(
    around(_Peer, "_handle")(
        lambda sound, self, event: None if isinstance(event, HelloReceived) else sound(self, event)
    )
)
mutant("wire.size-fixed", "SPOP-SIZE-001", "always says max-frame-size 16380")(
    pair_out("max-frame-size", (DataType.UINT32, 16380))
)
mutant("wire.size-tiny", "SPOP-SIZE-002", "accepts a max-frame-size under 256")(
    setting(frames, "MIN_NEGOTIABLE", 0)
)
mutant("wire.size-echo", "SPOP-SIZE-003", "echoes HAProxy's max-frame-size")(
    around(Connection, "__init__")(
        lambda sound, self, recall, *, max_frame_size, **more: sound(
            self, recall, max_frame_size=2**32, **more
        )
    )
)
mutant("wire.capabilities-echo", "SPOP-CAPS-001", "echoes the list of capabilities")(
    pair_out("capabilities", (DataType.STRING, b"pipelining,async"))
)
mutant("wire.capabilities-closed", "SPOP-CAPS-002", "refuses a HELLO with an unknown capability")(
    hello_text(
        lambda key, text: (
            fail(invalid("unknown capability")) if key == b"capabilities" and "teleport" in text else text
        )
    )
)
mutant("wire.health-stays", "SPOP-HEALTH-003", "keeps the connection of a health check")(
    pairs_in(lambda pairs: {key: value for key, value in pairs.items() if key != b"healthcheck"})
)
mutant("wire.health-unanswered", "SPOP-HEALTH-001", "takes a health check for a fault")(
    pairs_in(lambda pairs: fail(invalid("a health check")) if pairs.get(b"healthcheck") else pairs)
)

# --- teardown: BYE


def _goodbye(replacement: Callable[..., None]) -> Override:
    """Replace the handler of a DISCONNECT, in both states that have one."""
    kind = FrameType.HAPROXY_DISCONNECT
    return both(*(transition(state, kind)(replacement) for state in (State.OPEN, State.READY)))


@mutant("wire.bye-unanswered", "SPOP-BYE-001", "closes without AGENT-DISCONNECT")
@_goodbye
def bye_unanswered(sound: Any, self: Any, frame: Any) -> None:
    sound(self, frame)
    self._outgoing.pop()


@mutant("wire.bye-is-error", "SPOP-BYE-002", "logs a normal disconnect as an error")
@before(_Peer, "_handle")
def bye_is_error(_self: Any, event: Any) -> None:
    if isinstance(event, Closed):
        server.log.error("HAProxy disconnected with status %s", event.status)


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
@before(_Peer, "connection_lost")
def reset_is_fatal(self: Any, error: Exception | None) -> None:
    if error is not None:
        self._server._acceptor.stop()


mutant("wire.half-close-abandons", "SPOP-BYE-005", "drops what is asked at a half-close")(
    around(_Peer, "eof_received")(lambda _sound, self: bool(self._transport.abort())), without_memory
)
mutant("wire.bye-long", "SPOP-BYE-006", "says goodbye in 400 bytes")(
    pair_out("message", (DataType.STRING, b"x" * 400))
)

# --- many connections: LIFE, UNREAD


@mutant("wire.all-or-none", "SPOP-LIFE-002", "closes all connections when one breaks the protocol")
@after(_Peer, "_handle")
def all_or_none(self: Any, event: Any) -> None:
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


@mutant("wire.denies-at-sigterm", "SPOP-LIFE-009", "denies at SIGTERM what is in flight")
@around(Server, "drain")
async def denies_at_sigterm(sound: Any, self: Any, **how: Any) -> None:
    for peer in tuple(self.peers):
        peer.give_up("the agent is stopping")
    await sound(self, **how)


@mutant("wire.short-writes", "SPOP-UNREAD-001", "loses what a full socket does not take")
@before(_Peer, "_flush")
def short_writes(self: Any) -> None:
    if self._transport.get_write_buffer_size():
        self._connection.data_to_send()


@mutant("wire.waits-for-readers", "SPOP-UNREAD-001", "serves nobody else while one peer reads nothing")
@around(_Peer, "data_received")
def waits_for_readers(sound: Any, self: Any, data: bytes) -> None:
    if any(peer._transport.get_write_buffer_size() for peer in self._server.peers if peer is not self):
        self._loop.call_later(0.05, self.data_received, data)
    else:
        sound(self, data)


def settings(**changed: object) -> Override:
    """Change settings of the policy."""
    return around(Server, "__init__")(
        lambda sound, self, gate, settings, **how: sound(
            self, gate, settings.model_copy(update=changed), **how
        )
    )


mutant("wire.leaks", "SPOP-LIFE-001", "keeps the descriptor of a peer that vanished")(
    before(_Peer, "connection_made")(
        lambda _self, transport: os.dup(transport.get_extra_info("socket").fileno())
    )
)
mutant("wire.slow-accept", "SPOP-LIFE-004", "takes 250 ms for each new connection")(
    before(_Peer, "connection_made")(lambda _self, _transport: time.sleep(0.25))
)
mutant("wire.no-connection-limit", "SPOP-LIFE-005", "has no limit on connections")(
    settings(max_connections=1 << 20)
)
mutant("wire.two-for-one", "SPOP-LIFE-005", "ends an idle connection, and refuses the new one all the same")(
    setting(idle, "IDLE", 0.0), around(idle.Idle, "make_room")(lambda sound, self: sound(self) and False)
)
mutant("wire.no-handshake-timeout", "SPOP-LIFE-006 SPOP-LIFE-008", "keeps connections that say nothing")(
    settings(handshake_timeout=3600.0)
)
mutant("wire.never-old", "SPOP-AGE-001", "keeps connections for ever")(settings(max_connection_age=None))
mutant("wire.old-in-flight", "SPOP-AGE-001", "ends an old connection with a question under way")(
    setting(_Peer, "_is_old", lambda self, _asked=-1: self.say_goodbye())
)
mutant("wire.old-silently", "SPOP-AGE-001", "ends an old connection without AGENT-DISCONNECT")(
    around(_Peer, "say_goodbye")(
        lambda sound, self, why="": self.abort() if why == "the connection is old" else sound(self, why)
    )
)
mutant("wire.old-together", "SPOP-AGE-002", "ends all connections at one and the same age")(
    setting(server, "_YOUNGEST", 1.0)
)
mutant("wire.all-interfaces", "SPOP-LIFE-007", "listens on all interfaces")(
    around(listening, "bind")(lambda sound, at, *how: sound(at.replace("127.0.0.1", "0.0.0.0"), *how))
)
mutant("wire.reads-on", "SPOP-UNREAD-002", "takes questions from a peer that reads nothing, keeps answers")(
    setting(_Peer, "pause_writing", lambda _self: None)
)
