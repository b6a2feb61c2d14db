"""Frames as HAProxy sends them, and conversations with the state machine as transcripts.

`>>` is what HAProxy sent, `<<` what the agent sent, `--` an event. Expected bytes of the codec itself are
written out in `test_spop_codec.py`, so the decoding used for these readable lines is not its own witness.
"""

from __future__ import annotations

from ipaddress import ip_address

from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_agent.spop import actions, frames, values, varint
from iamroles_agent.spop.connection import CheckRequested, CheckUnusable, Closed, Connection, HelloReceived
from iamroles_agent.spop.frames import FIN, FrameBuffer, FrameType, RawFrame
from iamroles_agent.spop.messages import Context
from iamroles_agent.spop.values import DataType, Value

ALLOW = actions.encode_verdict(
    Decision(allow=True, role="arn:aws:iam::111111111111:role/r", backend="b", expires=9)
)
DENY = actions.encode_verdict(Decision(allow=False, reason=Reason.NO_GRANT))
ALLOWED = "status=200 role=b'arn:aws:iam::111111111111:role/r' backend=b'b' expires=9 allow=True"
DENIED = "status=403 reason=b'no_grant' error=b'insufficient_scope' allow=False"
FAILED = "status=503 reason=b'internal_error' allow=False"
"""The same, and `internal_error`, as `show` writes them."""
HELLO = {
    "supported-versions": (DataType.STRING, b"2.0"),
    "max-frame-size": (DataType.UINT32, 16380),
    "capabilities": (DataType.STRING, b"pipelining,async"),
}


def frame(kind: int, payload: bytes = b"", *, ids: tuple[int, int] = (0, 0), flags: int = FIN) -> bytes:
    return frames.encode(kind, b"".join(map(varint.encode, ids)), payload, flags)  # type: ignore[arg-type]


def hello(*, without: str = "", flags: int = FIN, **changed: tuple[DataType, Value]) -> bytes:
    """HAPROXY-HELLO; `_` in keyword names stands for `-`."""
    pairs = HELLO | {name.replace("_", "-"): pair for name, pair in changed.items()}
    pairs.pop(without, None)
    return frame(FrameType.HAPROXY_HELLO, frames.encode_pairs(pairs), flags=flags)


def disconnect(status: int = 0, message: bytes = b"bye") -> bytes:
    pairs = {"status-code": (DataType.UINT32, status), "message": (DataType.STRING, message)}
    return frame(FrameType.HAPROXY_DISCONNECT, frames.encode_pairs(pairs))


def argument(name: str, kind: DataType, value: Value) -> bytes:
    return values.encode_string(name.encode()) + values.encode(kind, value)


def message(name: str, *arguments: bytes, count: int | None = None) -> bytes:
    return (
        values.encode_string(name.encode())
        + bytes((len(arguments) if count is None else count,))
        + b"".join(arguments)
    )


def context_message(request_id: bytes = b"r1", src_port: int = 40000, stream: int | None = 7) -> bytes:
    arguments = [
        argument("request-id", DataType.STRING, request_id),
        argument("src-port", DataType.INT64, src_port),
    ]
    if stream is not None:
        arguments.append(argument("stream", DataType.INT64, stream))
    return message("iam-context", *arguments)


CHECK_ARGUMENTS: dict[str, tuple[DataType, Value]] = {
    "authorization": (DataType.STRING, b"Bearer x"),
    "authorization-count": (DataType.INT64, 1),
    "role": (DataType.NULL, None),
    "method": (DataType.STRING, b"GET"),
    "host": (DataType.STRING, b"a.example"),
    "path": (DataType.STRING, b"/orders"),
    "src": (DataType.IPV4, ip_address("192.0.2.1")),
}


def check_message(*, without: str = "", **changed: tuple[DataType, Value]) -> bytes:
    pairs = CHECK_ARGUMENTS | {name.replace("_", "-"): pair for name, pair in changed.items()}
    pairs.pop(without, None)
    return message("iam-check", *(argument(name, *pair) for name, pair in pairs.items()))


def notify(payload: bytes | None = None, *, ids: tuple[int, int] = (1, 1), flags: int = FIN) -> bytes:
    if payload is None:
        payload = context_message() + check_message()
    return frame(FrameType.NOTIFY, payload, ids=ids, flags=flags)


def cut(data: bytes, limit: int = 1 << 24) -> list[RawFrame]:
    return list(FrameBuffer(limit).split(data))


def show(raw: RawFrame) -> str:
    """One line for a frame: `ACK 1/1 FIN allow=true …`."""
    stream, pos = varint.read(raw.ids, 0, len(raw.ids))
    number, _ = varint.read(raw.ids, pos, len(raw.ids))
    flags = "".join(f" {name}" for bit, name in ((1, "FIN"), (2, "ABORT")) if raw.flags & bit)
    name = FrameType(raw.type).name.replace("_", "-") if raw.type in set(FrameType) else f"TYPE-{raw.type}"
    return f"{name} {stream}/{number}{flags}{_payload(raw)}"


def _payload(raw: RawFrame) -> str:
    if raw.type == FrameType.ACK:
        told = [
            f" {action.name}={action.value!r}"
            for action in actions.decode(raw.data[raw.start : raw.end])
            if action.kind is not None
        ]
        return "".join(told) or " (nothing)"
    if raw.type in (FrameType.AGENT_HELLO, FrameType.AGENT_DISCONNECT):
        return "".join(f" {key.decode()}={value!r}" for key, (_, value) in frames.read_pairs(raw).items())
    return ""


class Talk:
    """A conversation with a `Connection`.

    Args:
        memory: what the gate remembers, by the bytes of the question.
    """

    def __init__(self, memory: dict[bytes, bytes] | None = None, *, max_frame_size: int = 16380) -> None:
        self.memory = memory or {}
        self.recalls: list[tuple[bytes, Context]] = []
        self.connection = Connection(self._recall, max_frame_size=max_frame_size)
        self.lines: list[str] = []
        self.asked: list[CheckRequested] = []

    def _recall(self, key: bytes, context: Context, /) -> bytes | None:
        self.recalls.append((key, context))
        return self.memory.get(key)

    def send(self, *data: bytes) -> Talk:
        """One read that brings all of `data`."""
        for event in self.connection.receive_data(b"".join(data)):
            self.lines.append(f"-- {self._event(event)}")
        return self._sent()

    def answer(self, number: int, actions_: bytes) -> Talk:
        """Acknowledge the question of that number, 0 the first."""
        self.connection.acknowledge(self.asked[number].ids, actions_)
        return self._sent()

    def _sent(self) -> Talk:
        self.lines += [f"<< {show(raw)}" for raw in cut(self.connection.data_to_send())]
        return self

    def _event(self, event: object) -> str:
        match event:
            case HelloReceived(size, pipelining, engine):
                return f"hello {size} {'pipelining' if pipelining else 'one by one'} {engine}".rstrip()
            case CheckRequested(_, context, check, _):
                self.asked.append(event)
                return f"check {context.request_id} {check.method} {check.path}"
            case CheckUnusable(_, context, detail):
                return f"unusable {context.request_id}: {detail}"
            case Closed(status, text, fault):
                return f"closed {int(status)}{' by fault' if fault else ''}: {text}"
        raise AssertionError(event)


GREETED = [
    "-- hello 16380 pipelining",
    "<< AGENT-HELLO 0/0 FIN version=b'2.0' max-frame-size=16380 capabilities=b'pipelining'",
]
"""The beginning of every conversation after `hello()`."""


def greeted(memory: dict[bytes, bytes] | None = None, **settings: int) -> Talk:
    talk = Talk(memory, **settings).send(hello())
    talk.lines.clear()
    return talk
