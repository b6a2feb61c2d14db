"""Mutants of the handshake: SPOP-HELLO, SPOP-SIZE, SPOP-CAPS, SPOP-HEALTH."""

from __future__ import annotations

from typing import Any

from iamroles_agent.server import _Peer
from iamroles_agent.spop import connection, frames, values
from iamroles_agent.spop.connection import Connection, HelloReceived, State
from iamroles_agent.spop.errors import invalid
from iamroles_agent.spop.frames import FrameType
from iamroles_agent.spop.values import DataType
from iamroles_conformance.selftest.mutants.edits import hello_text, pairs_in, pairs_out
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant


@mutant("wire.no-handshake", kills=["SPOP-HELLO-001"], title="answers NOTIFY before any HELLO")
def no_handshake() -> None:
    def make(sound: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            sound(self, *args, **kwargs)
            self.state = State.READY

        return init

    override(Connection, "__init__", make)
    table = Connection._TRANSITIONS
    table[State.READY, FrameType.HAPROXY_HELLO] = table[State.OPEN, FrameType.HAPROXY_HELLO]


@mutant("wire.hello-ids", kills=["SPOP-HELLO-002"], title="sends AGENT-HELLO with frame-id 1")
def hello_ids() -> None:
    def make(sound: Any) -> Any:
        return lambda kind, ids, payload, flags=1: sound(
            kind, b"\x00\x01" if kind == FrameType.AGENT_HELLO else ids, payload, flags
        )

    override(frames, "encode", make)


@mutant("wire.hello-items", kills=["SPOP-HELLO-003"], title="leaves `capabilities` out of AGENT-HELLO")
def hello_items() -> None:
    pairs_out(lambda pairs: {key: value for key, value in pairs.items() if key != "capabilities"})


@mutant("wire.hello-version", kills=["SPOP-HELLO-004"], title="answers with version 2.1")
def hello_version() -> None:
    connection.VERSION = "2.1"


@mutant("wire.versions-whole", kills=["SPOP-HELLO-005"], title="compares supported-versions as a whole")
def versions_whole() -> None:
    hello_text(lambda key, text: "9.9" if key == b"supported-versions" and text != "2.0" else text)


@mutant(
    "wire.versions-substring", kills=["SPOP-HELLO-006"], title="looks for a 2 anywhere in supported-versions"
)
def versions_substring() -> None:
    hello_text(lambda key, text: "2.0" if key == b"supported-versions" and "2" in text else text)


@mutant("wire.missing-default", kills=["SPOP-HELLO-007"], title="takes a default for a missing HELLO item")
def missing_default() -> None:
    defaults = {
        b"supported-versions": (DataType.STRING, b"2.0"),
        b"max-frame-size": (DataType.UINT32, 16380),
        b"capabilities": (DataType.STRING, b""),
    }
    pairs_in(lambda pairs: defaults | pairs)


@mutant("wire.unknown-key", kills=["SPOP-HELLO-008"], title="refuses a HELLO with an unknown key")
def unknown_key() -> None:
    known = {b"supported-versions", b"max-frame-size", b"capabilities", b"healthcheck", b"engine-id"}

    def edit(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
        if b"max-frame-size" in pairs and not pairs.keys() <= known:
            raise invalid("unknown key")
        return pairs

    pairs_in(edit)


@mutant("wire.key-order", kills=["SPOP-HELLO-009"], title="reads the HELLO by position")
def key_order() -> None:
    def edit(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
        if b"max-frame-size" in pairs and next(iter(pairs)) != b"supported-versions":
            raise invalid("not the first key")
        return pairs

    pairs_in(edit)


@mutant("wire.engine-id-required", kills=["SPOP-HELLO-010"], title="refuses a HELLO without engine-id")
def engine_id_required() -> None:
    def edit(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
        if b"max-frame-size" in pairs and b"engine-id" not in pairs:
            raise invalid("who is it?")
        return pairs

    pairs_in(edit)


@mutant("wire.hello-again", kills=["SPOP-HELLO-011"], title="answers a second HELLO")
def hello_again() -> None:
    table = Connection._TRANSITIONS
    table[State.READY, FrameType.HAPROXY_HELLO] = table[State.OPEN, FrameType.HAPROXY_HELLO]


@mutant("wire.handshake-timer", kills=["SPOP-HELLO-012"], title="never disarms the handshake timer")
def handshake_timer() -> None:
    override(
        _Peer,
        "_handle",
        lambda sound: lambda self, event: None if isinstance(event, HelloReceived) else sound(self, event),
    )


@mutant("wire.size-fixed", kills=["SPOP-SIZE-001"], title="always says max-frame-size 16380")
def size_fixed() -> None:
    size = (DataType.UINT32, 16380)
    pairs_out(lambda pairs: pairs | {"max-frame-size": size} if "max-frame-size" in pairs else pairs)


@mutant("wire.size-tiny", kills=["SPOP-SIZE-002"], title="accepts a max-frame-size under 256")
def size_tiny() -> None:
    frames.MIN_NEGOTIABLE = 0


@mutant("wire.size-echo", kills=["SPOP-SIZE-003"], title="echoes HAProxy's max-frame-size")
def size_echo() -> None:
    override(
        Connection,
        "__init__",
        lambda sound: lambda self, recall, *, max_frame_size: sound(self, recall, max_frame_size=2**32),
    )


@mutant("wire.capabilities-echo", kills=["SPOP-CAPS-001"], title="echoes the list of capabilities")
def capabilities_echo() -> None:
    echo = (DataType.STRING, b"pipelining,async,fragmentation")
    pairs_out(lambda pairs: pairs | {"capabilities": echo} if "capabilities" in pairs else pairs)


@mutant(
    "wire.capabilities-closed", kills=["SPOP-CAPS-002"], title="refuses a HELLO with an unknown capability"
)
def capabilities_closed() -> None:
    def edit(key: bytes, text: str) -> str:
        if key == b"capabilities" and "teleport" in text:
            raise invalid("unknown capability")
        return text

    hello_text(edit)


@mutant("wire.health-stays", kills=["SPOP-HEALTH-001"], title="keeps the connection of a health check")
def health_stays() -> None:
    pairs_in(lambda pairs: {key: value for key, value in pairs.items() if key != b"healthcheck"})


@mutant("wire.bool-nibble", kills=["SPOP-HEALTH-002"], title="reads BOOL from the low nibble: FALSE is true")
def bool_nibble() -> None:
    def make(sound: Any) -> Any:
        def read(data: bytes, pos: int, end: int) -> Any:
            kind, value, after = sound(data, pos, end)
            return kind, (True if kind is DataType.BOOL else value), after

        return read

    override(values, "read", make)
