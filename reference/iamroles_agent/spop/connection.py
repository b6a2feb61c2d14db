"""The state machine of a connection: bytes in, events and bytes out.

Theory of operation
-------------------
A connection is OPEN until it has answered a HAPROXY-HELLO, READY while it answers NOTIFYs, CLOSED after it
sent or received a DISCONNECT. `_TRANSITIONS` has the handler of each frame in each state; a frame without a
handler is the peer's fault and ends the connection.

`receive_data` handles all bytes of a read. Most NOTIFYs repeat an earlier question: the gate recalls the
encoded actions by the bytes of the question (`messages` explains why that is sound), and the ACK goes to the
outgoing bytes at once. Only a new question becomes a `CheckRequested` event; its ACK follows when
`acknowledge` is called, in any order, because SPOP's pipelining lets ACKs overtake each other. `data_to_send`
then returns all ACKs and replies since the last call as one run of whole frames, for a single write.

The agent announces `pipelining` if HAProxy offers `async` too, as 2.6 to 3.0 do. A later HAProxy must not
pipeline: if unread ACKs fill its buffer (16 kB), it never reads them, yet goes on asking there. The agent
never announces fragmentation or async: each frame must carry FIN.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, Protocol

from iamroles_agent.spop import actions as action_codec
from iamroles_agent.spop import frames, messages
from iamroles_agent.spop.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    Status,
    invalid,
)
from iamroles_agent.spop.frames import ABORT, FIN, FrameBuffer, FrameType, RawFrame
from iamroles_agent.spop.messages import Check, Context
from iamroles_agent.spop.values import INTEGERS, DataType, Value

VERSION = "2.0"
_MAJOR = VERSION.partition(".")[0]
_PIPELINING, _ASYNC = "pipelining", "async"
_MAX_MESSAGE = 255
"""Bytes of a DISCONNECT's `message`."""
_ACK_HEAD = struct.Struct(">IBI")


class Recall(Protocol):
    """The gate's memory."""

    def __call__(self, key: bytes, context: Context, /) -> bytes | None:
        """Return the encoded actions for an earlier question, or None."""


class State(Enum):
    """The state of a connection."""

    OPEN = auto()
    READY = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class HelloReceived:
    """The handshake is over."""

    max_frame_size: int
    """Bytes, as negotiated; binds both sides."""
    pipelining: bool
    engine_id: str
    """"" if HAProxy sent none."""


@dataclass(frozen=True, slots=True)
class CheckRequested:
    """A new question: judge it, then `acknowledge(ids, actions)`."""

    ids: bytes
    context: Context
    check: Check
    key: bytes


@dataclass(frozen=True, slots=True)
class CheckUnusable:
    """A question whose only possible answer is a deny: `acknowledge(ids, <deny>)`."""

    ids: bytes
    context: Context
    detail: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over: send `data_to_send()`, forget what is pending, close."""

    status: Status | int
    """The status that the agent or HAProxy sent (any integer)."""
    message: str
    fault: bool
    """True if the peer broke the protocol; False for a normal end."""


Event = HelloReceived | CheckRequested | CheckUnusable | Closed


class Connection:
    """The agent's side of an SPOP connection, without its socket.

    Args:
        recall: looks up the actions of a question by its bytes; must not block.
        max_frame_size: the greatest frame this agent accepts or sends, in bytes.
        unhealthy: returns why a health check must fail now, or "".
    """

    def __init__(
        self, recall: Recall, *, max_frame_size: int, unhealthy: Callable[[], str] = lambda: ""
    ) -> None:
        if max_frame_size < frames.MIN_NEGOTIABLE:
            raise LocalProtocolError(f"max_frame_size is at least {frames.MIN_NEGOTIABLE}")
        self.state = State.OPEN
        self.recalled = 0
        """NOTIFYs answered from the gate's memory."""
        self.notifies = 0
        self._recall = recall
        self._unhealthy = unhealthy
        self._buffer = FrameBuffer(max_frame_size)
        self._outgoing: list[bytes] = []
        self._events: list[Event] = []

    @property
    def max_frame_size(self) -> int:
        """Bytes; negotiated, or the agent's own limit before that."""
        return self._buffer.limit

    @property
    def inside_frame(self) -> bool:
        """True if part of a frame has arrived: an end of the stream now cuts the frame."""
        return self._buffer.pending > 0

    def receive_data(self, data: bytes) -> list[Event]:
        """Take the bytes of a read and return the events, in order.

        Never raises for a fault of the peer: a broken frame ends in `Closed`. Call `data_to_send` after it.
        """
        if self._is_closed():
            return []
        events: list[Event] = []
        self._events = events
        outgoing, recall, glance = self._outgoing, self._recall, messages.glance
        try:
            for frame in self._buffer.split(data):
                kind, flags, ids, buffer, start, end = frame
                if kind != FrameType.NOTIFY or flags & 3 != FIN or self.state is not State.READY:
                    self._dispatch(frame)
                    if self._is_closed():
                        break
                    continue
                self.notifies += 1
                missed = None
                if (seen := glance(buffer, start, end)) is not None:
                    context, missed = seen
                    if (actions := recall(missed, context)) is not None:
                        self.recalled += 1
                        length = 5 + len(ids) + len(actions)
                        if length <= self._buffer.limit:
                            outgoing += (_ACK_HEAD.pack(length, FrameType.ACK, FIN), ids, actions)
                        else:
                            self._shorten(ids, context, actions)
                        continue
                self._inquire(frame, missed)
        except RemoteProtocolError as error:
            self._close(error.status, error.message, fault=True)
        return events

    def acknowledge(self, ids: bytes, actions: bytes) -> None:
        """Answer a NOTIFY; drop tags if the frame would be too long, never the verdict.

        Raises:
            LocalProtocolError: the connection is not READY.
        """
        if self.state is not State.READY:
            raise LocalProtocolError("there is nothing to acknowledge before HELLO or after DISCONNECT")
        fitting = action_codec.shorten(actions, self._buffer.limit - 5 - len(ids))
        self._outgoing.append(frames.encode(FrameType.ACK, ids, fitting))

    def disconnect(self, status: Status, message: str) -> None:
        """End the connection from this side; do nothing if it is closed."""
        if self.state is not State.CLOSED:
            self._close(status, message, fault=False)

    def data_to_send(self) -> bytes:
        """Return all bytes since the last call; only whole frames."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def _is_closed(self) -> bool:
        return self.state is State.CLOSED

    def _inquire(self, frame: RawFrame, missed: bytes | None) -> None:
        """Parse a NOTIFY; try the memory, unless its key was already `missed`; else ask."""
        inquiry = messages.parse(frame.data, frame.start, frame.end)
        if inquiry.problem:
            self._events.append(CheckUnusable(frame.ids, inquiry.context, inquiry.problem))
        elif inquiry.check is None:
            self.acknowledge(frame.ids, b"")
        elif inquiry.key != missed and (actions := self._recall(inquiry.key, inquiry.context)) is not None:
            self.recalled += 1
            self._shorten(frame.ids, inquiry.context, actions)
        else:
            self._events.append(CheckRequested(frame.ids, inquiry.context, inquiry.check, inquiry.key))

    def _shorten(self, ids: bytes, context: Context, actions: bytes) -> None:
        """Acknowledge with remembered actions that may have to lose tags."""
        try:
            self.acknowledge(ids, actions)
        except LocalProtocolError as error:
            self._events.append(CheckUnusable(ids, context, str(error)))

    def _dispatch(self, frame: RawFrame) -> None:
        if frame.type not in _KNOWN:
            return  # a type of a later protocol is skipped
        if not frame.flags & FIN or frame.type == FrameType.UNSET:
            raise RemoteProtocolError(Status.NO_FRAGMENTATION, "fragmentation was not negotiated")
        handle = self._TRANSITIONS.get((self.state, FrameType(frame.type)))
        if handle is None:
            raise invalid(f"{FrameType(frame.type).name} is not expected while {self.state.name}")
        handle(self, frame)

    def _hello(self, frame: RawFrame) -> None:
        pairs = frames.read_pairs(frame)
        versions = _text(pairs, b"supported-versions", Status.NO_VERSION)
        if _MAJOR not in {version.strip().partition(".")[0] for version in versions.split(",")}:
            raise RemoteProtocolError(Status.BAD_VERSION, f"this agent speaks SPOP {VERSION}")
        size = _size(pairs)
        offered = _text(pairs, b"capabilities", Status.NO_CAPABILITIES)
        pipelining = {_PIPELINING, _ASYNC} <= {name.strip() for name in offered.split(",")}
        checked = pairs.get(b"healthcheck") == (DataType.BOOL, True)
        if checked and (problem := self._unhealthy()):
            # The health check must fail for an agent that can only refuse.
            self._close(Status.RESOURCES, problem, fault=False)
            return
        self._buffer.limit = min(size, self._buffer.limit)
        answer: dict[str, tuple[DataType, Value]] = {
            "version": (DataType.STRING, VERSION.encode()),
            "max-frame-size": (DataType.UINT32, self._buffer.limit),
            "capabilities": (DataType.STRING, _PIPELINING.encode() if pipelining else b""),
        }
        self._outgoing.append(
            frames.encode(FrameType.AGENT_HELLO, frames.NO_IDS, frames.encode_pairs(answer))
        )
        if checked:
            self.state = State.CLOSED
            self._events.append(Closed(Status.NORMAL, "health check", fault=False))
            return
        self.state = State.READY
        engine = pairs.get(b"engine-id", (DataType.NULL, None))[1]
        name = engine.decode("latin-1") if isinstance(engine, bytes) else ""
        self._events.append(HelloReceived(self._buffer.limit, pipelining, name))

    def _aborted(self, frame: RawFrame) -> None:
        """Answer a NOTIFY that HAProxy gave up (ABORT) with an empty ACK."""
        if not frame.flags & ABORT:
            raise invalid("NOTIFY is not expected here")
        self.notifies += 1
        self.acknowledge(frame.ids, b"")

    def _goodbye(self, frame: RawFrame) -> None:
        """Answer a HAPROXY-DISCONNECT with status 0, even if it cannot be read."""
        status, message = int(Status.NORMAL), "HAProxy disconnected"
        try:
            pairs = frames.read_pairs(frame)
        except RemoteProtocolError:
            pairs = {}
        match pairs.get(b"status-code"):
            case (kind, int(number)) if kind in INTEGERS:
                status = number
        match pairs.get(b"message"):
            case (DataType.STRING, bytes(text)):
                message = text[:_MAX_MESSAGE].decode("latin-1")
        self._disconnect_frame(Status.NORMAL, "goodbye")
        self._events.append(Closed(status, message, fault=False))

    def _close(self, status: Status, message: str, *, fault: bool) -> None:
        self._disconnect_frame(status, message)
        self._events.append(Closed(status, message, fault))

    def _disconnect_frame(self, status: Status, message: str) -> None:
        self.state = State.CLOSED
        pairs: dict[str, tuple[DataType, Value]] = {
            "status-code": (DataType.UINT32, int(status)),
            "message": (DataType.STRING, message.encode("ascii", "replace")[:_MAX_MESSAGE]),
        }
        payload = frames.encode_pairs(pairs)
        self._outgoing.append(frames.encode(FrameType.AGENT_DISCONNECT, frames.NO_IDS, payload))

    _TRANSITIONS: ClassVar[dict[tuple[State, FrameType], Callable[[Connection, RawFrame], None]]] = {
        (State.OPEN, FrameType.HAPROXY_HELLO): _hello,
        (State.OPEN, FrameType.HAPROXY_DISCONNECT): _goodbye,
        (State.READY, FrameType.NOTIFY): _aborted,
        (State.READY, FrameType.HAPROXY_DISCONNECT): _goodbye,
    }


_KNOWN = frozenset(FrameType)


def _text(pairs: dict[bytes, tuple[DataType, Value]], key: bytes, absent: Status) -> str:
    kind, value = pairs.get(key, (DataType.NULL, None))
    if kind is DataType.NULL:
        raise RemoteProtocolError(absent, f"HELLO has no {key.decode()}")
    if kind is not DataType.STRING or not isinstance(value, bytes):
        raise invalid(f"{key.decode()} is not a string")
    return value.decode("latin-1")


def _size(pairs: dict[bytes, tuple[DataType, Value]]) -> int:
    kind, value = pairs.get(b"max-frame-size", (DataType.NULL, None))
    if kind is DataType.NULL:
        raise RemoteProtocolError(Status.NO_FRAME_SIZE, "HELLO has no max-frame-size")
    if kind not in INTEGERS or not isinstance(value, int):
        raise invalid("max-frame-size is not an integer")
    if value < frames.MIN_NEGOTIABLE:
        raise RemoteProtocolError(
            Status.BAD_FRAME_SIZE, f"max-frame-size is {value}, the least is {frames.MIN_NEGOTIABLE}"
        )
    return value
