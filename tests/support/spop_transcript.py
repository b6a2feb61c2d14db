"""Frames as HAProxy sends them, and conversations with the state machine as transcripts.

`>>` is what HAProxy sent, `<<` what the agent sent, `--` an event. Expected bytes of the codec itself are
written out in `test_spop_codec.py`, so the decoding used for these readable lines is not its own witness.
"""

from ipaddress import ip_address

from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_agent.spop import actions, frames, values, varint
from iamroles_agent.spop.connection import CheckRequested, CheckUnusable, Closed, Connection, HelloReceived
from iamroles_agent.spop.frames import FIN, FrameBuffer, FrameType
from iamroles_agent.spop.messages import Check
from iamroles_agent.spop.values import DataType

_ROLE = "arn:aws:iam::111111111111:role/"
ALLOW = actions.encode_verdict(Decision(allow=True, role=f"{_ROLE}r", backend="b", expires=9))
_WHO = {"role": f"{_ROLE}reader", "principal": "alice", "session": "s-1", "issuer": "corp"}
YES = Decision(allow=True, **_WHO, rule="R1", backend="orders", expires=1_800_003_600)
DENY = actions.encode_verdict(Decision(allow=False, reason=Reason.NO_GRANT))
ALLOWED = "status=200 role=b'arn:aws:iam::111111111111:role/r' backend=b'b' expires=9 allow=True"
DENIED = "status=403 reason=b'no_grant' allow=False"
FAILED = "status=503 reason=b'internal_error' allow=False"
"""The same, and `internal_error`, as `show` writes them."""
HELLO = {
    "supported-versions": (DataType.STRING, b"2.0"),
    "max-frame-size": (DataType.UINT32, 16380),
    "capabilities": (DataType.STRING, b"pipelining,async"),
}


def frame(kind, payload=b"", *, ids=(0, 0), flags=FIN):
    return frames.encode(kind, b"".join(map(varint.encode, ids)), payload, flags)


def hello(*, without="", flags=FIN, **changed):
    """HAPROXY-HELLO; `_` in keyword names stands for `-`."""
    pairs = HELLO | {name.replace("_", "-"): pair for name, pair in changed.items()}
    pairs.pop(without, None)
    return frame(FrameType.HAPROXY_HELLO, frames.encode_pairs(pairs), flags=flags)


def disconnect(status=0, message=b"bye"):
    pairs = {"status-code": (DataType.UINT32, status), "message": (DataType.STRING, message)}
    return frame(FrameType.HAPROXY_DISCONNECT, frames.encode_pairs(pairs))


def argument(name, kind, value):
    return values.encode_string(name.encode()) + values.encode(kind, value)


def message(name, *arguments, count=None):
    size = bytes((len(arguments) if count is None else count,))
    return values.encode_string(name.encode()) + size + b"".join(arguments)


def context_message(request_id=b"r1", src_port=40000, stream=7):
    arguments = [
        argument("request-id", DataType.STRING, request_id),
        argument("src-port", DataType.INT64, src_port),
    ]
    if stream is not None:
        arguments.append(argument("stream", DataType.INT64, stream))
    return message("iam-context", *arguments)


CHECK_ARGUMENTS = {
    "authorization": (DataType.STRING, b"Bearer x"),
    "authorization-count": (DataType.INT64, 1),
    "role": (DataType.NULL, None),
    "method": (DataType.STRING, b"GET"),
    "host": (DataType.STRING, b"a.example"),
    "path": (DataType.STRING, b"/orders"),
    "src": (DataType.IPV4, ip_address("192.0.2.1")),
}
USUAL = Check("Bearer x", 1, None, "GET", "a.example", "/orders", ip_address("192.0.2.1"))
"""The question that these arguments are."""


def check_message(*, without="", **changed):
    pairs = CHECK_ARGUMENTS | {name.replace("_", "-"): pair for name, pair in changed.items()}
    pairs.pop(without, None)
    return message("iam-check", *(argument(name, *pair) for name, pair in pairs.items()))


ASKED = check_message()
KNOWN = {ASKED: ALLOW}
"""A memory that holds the answer to the usual question."""


def notify(payload=None, *, ids=(1, 1), flags=FIN):
    if payload is None:
        payload = context_message() + ASKED
    return frame(FrameType.NOTIFY, payload, ids=ids, flags=flags)


def cut(data, limit=1 << 24):
    return list(FrameBuffer(limit).split(data))


def show(raw):
    """One line for a frame: `ACK 1/1 FIN allow=true …`."""
    stream, pos = varint.read(raw.ids, 0, len(raw.ids))
    number, _ = varint.read(raw.ids, pos, len(raw.ids))
    flags = "".join(f" {name}" for bit, name in ((1, "FIN"), (2, "ABORT")) if raw.flags & bit)
    name = FrameType(raw.type).name.replace("_", "-") if raw.type in set(FrameType) else f"TYPE-{raw.type}"
    return f"{name} {stream}/{number}{flags}{_payload(raw)}"


def variables(payload):
    """Return the variables that an ACK sets."""
    return {action.name: action.value for action in actions.decode(payload) if action.kind is not None}


def _payload(raw):
    if raw.type == FrameType.ACK:
        told = variables(raw.data[raw.start : raw.end])
        return "".join(f" {name}={value!r}" for name, value in told.items()) or " (nothing)"
    if raw.type in (FrameType.AGENT_HELLO, FrameType.AGENT_DISCONNECT):
        return "".join(f" {key.decode()}={value!r}" for key, (_, value) in frames.read_pairs(raw).items())
    return ""


class Talk:
    """A conversation with a `Connection`.

    Args:
        memory: what the gate remembers, by the bytes of the question.
    """

    def __init__(self, memory=None, *, max_frame_size=16380):
        self.memory = memory or {}
        self.recalls = []
        self.connection = Connection(self._recall, max_frame_size=max_frame_size)
        self.lines = []
        self.asked = []

    def _recall(self, key, context, /):
        self.recalls.append((key, context))
        return self.memory.get(key)

    def send(self, *data):
        """One read that brings all of `data`."""
        for event in self.connection.receive_data(b"".join(data)):
            self.lines.append(f"-- {self._event(event)}")
        return self._sent()

    def answer(self, number, actions_):
        """Acknowledge the question of that number, 0 the first."""
        self.connection.acknowledge(self.asked[number].ids, actions_)
        return self._sent()

    def _sent(self):
        self.lines += [f"<< {show(raw)}" for raw in cut(self.connection.data_to_send())]
        return self

    def _event(self, event):
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


def greeted(memory=None, **settings):
    talk = Talk(memory, **settings).send(hello())
    talk.lines.clear()
    return talk
