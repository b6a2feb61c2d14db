"""SPOP frames, messages and actions (SPOE.txt 3.2 to 3.4): built freely, good or broken; decoded strictly.

A `Frame` keeps its payload as bytes, so that a check can send anything at all; the readers below give the
payload its meaning. What HAProxy tolerates silently (a bad action ends the list, the rest is dropped) is an
error here: an agent's author wants to hear of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache

from iamroles_scenarios.base.errors import WireFormatError
from iamroles_scenarios.wire.codec import DataType, PayloadReader, Typed, Value, string, varint


class FrameType(IntEnum):
    """Frame types (SPOE.txt 3.2.2)."""

    UNSET = 0
    HAPROXY_HELLO = 1
    HAPROXY_DISCONNECT = 2
    NOTIFY = 3
    AGENT_HELLO = 101
    AGENT_DISCONNECT = 102
    ACK = 103


class Flags(IntFlag):
    """Frame flags; the other thirty bits are reserved."""

    FIN = 1
    ABORT = 2


class Scope(IntEnum):
    """Variable scopes (SPOE.txt 3.4)."""

    proc = 0
    sess = 1
    txn = 2
    req = 3
    res = 4


_SCOPES = frozenset(Scope)

STATUS = {
    0: "normal",
    1: "I/O error",
    2: "timeout",
    3: "frame is too big",
    4: "invalid frame",
    5: "version not found",
    6: "max-frame-size not found",
    7: "capabilities not found",
    8: "unsupported version",
    9: "max-frame-size too big or too small",
    10: "fragmentation not supported",
    11: "interlaced frames",
    12: "frame-id not found",
    13: "resource allocation error",
    99: "unknown error",
}
"""DISCONNECT status codes (SPOE.txt 3.5)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame without its length prefix.

    Args:
        type: a `FrameType`, or any byte.
        stream_id: 0 to 2**64 - 1.
        frame_id: 0 to 2**64 - 1.
        payload: KV list, messages or actions, encoded.
        flags: 32 bits.
    """

    type: int
    stream_id: int = 0
    frame_id: int = 0
    payload: bytes = b""
    flags: int = Flags.FIN

    def encode(self) -> bytes:
        """Length prefix and frame (SPOE.txt 3.2)."""
        return prefixed(self.body())

    def body(self) -> bytes:
        """The frame without its length prefix."""
        return (
            bytes([self.type])
            + self.flags.to_bytes(4, "big")
            + varint(self.stream_id)
            + varint(self.frame_id)
            + self.payload
        )

    @classmethod
    def decode(cls, body: bytes, base: int = 0) -> Frame:
        """Read a frame's head; the payload stays as it is.

        Raises:
            WireFormatError: shorter than seven bytes, or a broken varint.
        """
        reader = PayloadReader(body, base)
        kind = reader.byte("frame type")
        flags = int.from_bytes(reader.take(4, "frame flags"), "big")
        stream_id = reader.varint("stream-id")
        frame_id = reader.varint("frame-id")
        return cls(kind, stream_id, frame_id, reader.take(reader.left, "payload"), flags)

    @property
    def name(self) -> str:
        """The type as SPOE.txt spells it."""
        try:
            return FrameType(self.type).name.replace("_", "-")
        except ValueError:
            return f"TYPE-{self.type}"

    @property
    def fin(self) -> bool:
        return bool(self.flags & Flags.FIN)


def prefixed(body: bytes) -> bytes:
    """A length prefix before any bytes."""
    return len(body).to_bytes(4, "big") + body


# --- payloads: built ---------------------------------------------------------------------------------------

Arguments = Mapping[str, "Value | Typed"] | Iterable[tuple[str | bytes, "Value | Typed"]]
"""Names and values; pairs where names repeat or are empty."""


def encode_kv(items: Arguments) -> bytes:
    """A KV-LIST: untyped names, typed values."""
    pairs = items.items() if isinstance(items, Mapping) else items
    return b"".join([_item(name, value) for name, value in pairs])


@lru_cache(maxsize=1024, typed=True)  # most arguments are the same in most questions
def _item(name: str | bytes, value: Value | Typed) -> bytes:
    return string(name) + Typed.of(value).encode()


def encode_message(name: str | bytes, arguments: Arguments, *, count: int | None = None) -> bytes:
    """One message of a NOTIFY; `count` overrides the number of arguments it claims."""
    pairs = list(arguments.items()) if isinstance(arguments, Mapping) else list(arguments)
    return string(name) + bytes([len(pairs) if count is None else count]) + encode_kv(pairs)


def notify(stream_id: int, frame_id: int, *messages: bytes, flags: int = Flags.FIN) -> Frame:
    """A NOTIFY of encoded messages."""
    return Frame(FrameType.NOTIFY, stream_id, frame_id, b"".join(messages), flags)


HELLO: dict[str, Value] = {
    "supported-versions": "2.0",
    "max-frame-size": 16380,
    "capabilities": "pipelining,async",
    "engine-id": "C0FFEE00-0000-4000-8000-000000000001",
}
"""The first frame of HAProxy 2.6 to 3.0; 3.1 left out `async`. `max-frame-size` is a UINT32."""


def hello(items: Arguments | None = None) -> Frame:
    """A HAPROXY-HELLO (SPOE.txt 3.2.4)."""
    return Frame(FrameType.HAPROXY_HELLO, payload=encode_kv(as_hello(HELLO) if items is None else items))


def as_hello(items: Mapping[str, Value | Typed]) -> dict[str, Value | Typed]:
    """The items with the integer types HELLO and DISCONNECT ask for (UINT32)."""
    return {
        name: Typed(DataType.UINT32, value)
        if isinstance(value, int) and not isinstance(value, bool)
        else value
        for name, value in items.items()
    }


def disconnect(status: int = 0, message: str = "normal") -> Frame:
    """A HAPROXY-DISCONNECT (SPOE.txt 3.2.8)."""
    payload = encode_kv(as_hello({"status-code": status, "message": message}))
    return Frame(FrameType.HAPROXY_DISCONNECT, payload=payload)


# --- payloads: read ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a NOTIFY."""

    name: str
    arguments: tuple[tuple[str, Typed], ...]


@dataclass(frozen=True, slots=True)
class Action:
    """SET-VAR (value given) or UNSET-VAR (value None)."""

    scope: Scope
    name: str
    value: Typed | None

    def __str__(self) -> str:
        where = f"{self.scope.name}.{self.name}"
        return f"unset {where}" if self.value is None else f"{where}={self.value}:{self.value.type.name}"


def head_length(frame: Frame) -> int:
    """Bytes before the payload: the base of offsets inside it."""
    return 5 + len(varint(frame.stream_id)) + len(varint(frame.frame_id))


def read_kv(frame: Frame) -> list[tuple[str, Typed]]:
    """A KV-LIST to the payload's end; offsets count from the frame's start."""
    reader = PayloadReader(frame.payload, head_length(frame))
    items = []
    while reader.left:
        name = reader.name("key")
        items.append((name, reader.typed(f"value of {name!r}")))
    return items


def read_messages(frame: Frame) -> list[Message]:
    """The messages of a NOTIFY."""
    reader = PayloadReader(frame.payload, head_length(frame))
    messages = []
    while reader.left:
        name = reader.name("message name")
        count = reader.byte(f"number of arguments of {name!r}")
        arguments = []
        for number in range(count):
            key = reader.name(f"name of argument {number + 1} of {name!r}")
            arguments.append((key, reader.typed(f"argument {key!r} of {name!r}")))
        messages.append(Message(name, tuple(arguments)))
    return messages


def read_actions(frame: Frame) -> list[Action]:
    """The actions of an ACK, strictly (SPOE.txt 3.4).

    Raises:
        WireFormatError: an unknown action, a wrong number of arguments, a scope above 4, a broken value.
    """
    return list(_actions(frame.payload, head_length(frame)))


@lru_cache(maxsize=1024)  # an agent gives the same answer to most questions of a list
def _actions(payload: bytes, base: int) -> tuple[Action, ...]:
    reader, actions = PayloadReader(payload, base), []
    while reader.left:
        start = reader.offset
        kind = reader.byte("action type")
        if kind not in (1, 2):
            raise WireFormatError(f"unknown action type {kind}", start)
        what, arguments = ("SET-VAR", 3) if kind == 1 else ("UNSET-VAR", 2)
        count = reader.byte(f"number of arguments of {what}")
        if count != arguments:
            raise WireFormatError(f"{what} takes {arguments} arguments, this one says {count}", start)
        scope = reader.byte(f"scope of {what}")
        if scope not in _SCOPES:
            raise WireFormatError(f"{what} has the unknown scope {scope}", start)
        name = reader.name(f"variable name of {what}")
        value = reader.typed(f"value of {name!r}") if kind == 1 else None
        actions.append(Action(Scope(scope), name, value))
    return tuple(actions)


def variables(frame: Frame, scope: Scope = Scope.txn) -> dict[str, Value]:
    """Return what an ACK leaves set in a scope: SET of NULL equals unset, the last action on a name holds."""
    found: dict[str, Value] = {}
    for action in read_actions(frame):
        if action.scope is not scope:
            continue
        if action.value is None or action.value.value is None:
            found.pop(action.name, None)
        else:
            found[action.name] = action.value.value
    return found
