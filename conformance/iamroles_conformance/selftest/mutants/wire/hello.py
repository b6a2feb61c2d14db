"""Mutants of the handshake: SPOP-HELLO, SPOP-SIZE, SPOP-CAPS, SPOP-HEALTH."""

from __future__ import annotations

from typing import Any

from iamroles_agent.serving.server import _Peer
from iamroles_agent.spop import connection, frames, values
from iamroles_agent.spop.connection import Connection, HelloReceived, State
from iamroles_agent.spop.errors import invalid
from iamroles_agent.spop.frames import FrameType
from iamroles_agent.spop.values import DataType
from iamroles_conformance.selftest.mutants.edits import hello_text, pair_out, pairs_in, pairs_out
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import Override, mutant

_hello_when_ready = setting(
    Connection,
    "_TRANSITIONS",
    {**Connection._TRANSITIONS, (State.READY, FrameType.HAPROXY_HELLO): Connection._hello},
)


@mutant("wire.no-handshake", "SPOP-HELLO-001", "answers NOTIFY before any HELLO", _hello_when_ready)
@around(Connection, "__init__")
def _ready(sound: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    sound(self, *args, **kwargs)
    self.state = State.READY


def _refusing(bad: Any) -> Override:
    """Refuse a HELLO with such items."""

    def edit(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
        if b"max-frame-size" in pairs and bad(pairs):
            raise invalid("not these items")
        return pairs

    return pairs_in(edit)


mutant("wire.hello-ids", "SPOP-HELLO-002", "sends AGENT-HELLO with frame-id 1")(
    around(frames, "encode")(
        lambda sound, kind, ids, payload, flags=1: sound(
            kind, b"\x00\x01" if kind == FrameType.AGENT_HELLO else ids, payload, flags
        )
    )
)
mutant("wire.hello-items", "SPOP-HELLO-003", "leaves `capabilities` out of AGENT-HELLO")(
    pairs_out(lambda pairs: {key: value for key, value in pairs.items() if key != "capabilities"})
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
_DEFAULTS = {
    b"supported-versions": (DataType.STRING, b"2.0"),
    b"max-frame-size": (DataType.UINT32, 16380),
    b"capabilities": (DataType.STRING, b""),
}
mutant("wire.missing-default", "SPOP-HELLO-007", "takes a default for a missing HELLO item")(
    pairs_in(lambda pairs: _DEFAULTS | pairs)
)
_KNOWN = {b"supported-versions", b"max-frame-size", b"capabilities", b"healthcheck", b"engine-id"}
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


@mutant("wire.capabilities-closed", "SPOP-CAPS-002", "refuses a HELLO with an unknown capability")
@hello_text
def capabilities_closed(key: bytes, text: str) -> str:
    if key == b"capabilities" and "teleport" in text:
        raise invalid("unknown capability")
    return text


mutant("wire.health-stays", "SPOP-HEALTH-003", "keeps the connection of a health check")(
    pairs_in(lambda pairs: {key: value for key, value in pairs.items() if key != b"healthcheck"})
)


@mutant("wire.health-unanswered", "SPOP-HEALTH-001", "takes a health check for a fault")
@pairs_in
def health_unanswered(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
    if pairs.get(b"healthcheck"):
        raise invalid("a health check")
    return pairs


@mutant("wire.bool-nibble", "SPOP-HEALTH-002", "reads BOOL from the low nibble: FALSE is true")
@around(values, "read")
def bool_nibble(sound: Any, data: bytes, pos: int, end: int) -> Any:
    kind, value, after = sound(data, pos, end)
    return kind, (True if kind is DataType.BOOL else value), after
