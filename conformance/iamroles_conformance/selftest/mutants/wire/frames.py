"""Mutants of frames and what is in them: reassembly, varints, types, questions, answers, and their order."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from iamroles_agent.serving.server import _OVER, _Peer
from iamroles_agent.spop import actions, connection, frames, messages, values, varint
from iamroles_agent.spop.connection import Connection, HelloReceived, State
from iamroles_agent.spop.errors import RemoteProtocolError, invalid
from iamroles_agent.spop.frames import FrameBuffer, FrameType
from iamroles_agent.spop.values import DataType
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.edits import acks_out, actions_out, frames_in
from iamroles_conformance.selftest.mutants.override import around, before, fail, rescue, setting, transition
from iamroles_conformance.selftest.registry import Override, mutant

# --- frames: SPOP-FRAME, SPOP-FRAG


@mutant("wire.one-frame-per-read", "SPOP-FRAME-002", "looks at the first frame of a read only")
@around(FrameBuffer, "split")
def one_frame_per_read(sound: Any, self: Any, data: bytes) -> Iterator[Any]:
    for frame in sound(self, data):
        yield frame
        return


def _limit(change: Callable[[int], int]) -> Override:
    """Change the size of the frames that a connection accepts, once its HELLO is read."""

    @transition(State.OPEN, FrameType.HAPROXY_HELLO)
    def hello(sound: Any, self: Any, frame: Any) -> None:
        sound(self, frame)
        self._buffer.limit = change(self._buffer.limit)

    return hello


def _in_pieces(self: Any, *, ordered: bool) -> None:
    """Flush each frame in two pieces: in order, or as two tasks would."""
    data = self._connection.data_to_send()
    queue: list[bytes] = self.__dict__.setdefault("queue", [])
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        queue += [data[:5], data[5:end]]
        data = data[end:]
    if not ordered:
        queue.sort(key=lambda piece: len(piece) != 5)

    def more() -> None:
        if self._transport.is_closing():
            return
        if queue:
            self._transport.write(queue.pop(0))
            self._loop.call_later(0.003, more)
        elif self._life is _OVER and not self._half_closed:
            self._transport.write_eof()

    if len(queue) or self._life is _OVER:
        more()


def _waits(sound: Any, self: Any, data: bytes) -> Any:
    return [] if len(data) >= 4 and int.from_bytes(data[:4], "big") < 7 else sound(self, data)


_hoard: list[bytes] = []


@mutant("wire.believes-length", "SPOP-FRAME-007", "allocates what a length prefix asks for")
@before(FrameBuffer, "_refuse")
def believes_length(_self: Any, length: int) -> None:
    if length > 1 << 24:
        _hoard.append(b"\xff" * (48 << 20))


def _inquires(when: Callable[[Any, Any], Any]) -> Override:
    """Leave a question unanswered unless `when(connection, frame)`."""
    return around(Connection, "_inquire")(
        lambda sound, self, frame, missed: sound(self, frame, missed) if when(self, frame) else None
    )


@before(Connection, "_dispatch")
def _wedging(self: Any, frame: Any) -> None:
    if frame.type not in connection._KNOWN:
        self.wedged = True


mutant("wire.no-reassembly", "SPOP-FRAME-001", "forgets the beginning of a split frame")(
    setting(FrameBuffer, "_keep", lambda self, data, pos: None)
)
mutant("wire.two-writes", "SPOP-FRAME-003", "writes length and body separately")(
    setting(_Peer, "_flush", lambda self: _in_pieces(self, ordered=True))
)
mutant("wire.interleaves", "SPOP-FRAME-004", "interleaves the bytes of concurrent ACKs")(
    setting(_Peer, "_flush", lambda self: _in_pieces(self, ordered=False))
)
mutant("wire.no-size-limit", "SPOP-FRAME-005", "ignores the negotiated max-frame-size")(
    _limit(lambda _agreed: 1 << 30)
)
mutant("wire.zero-length", "SPOP-FRAME-006", "waits for ever on a length of 0 to 6")(
    around(Connection, "receive_data")(_waits)
)
mutant("wire.wedges", "SPOP-FRAME-008", "stops reading after an unknown frame type")(
    _wedging, _inquires(lambda self, _frame: not getattr(self, "wedged", False)), edit.without_memory
)
mutant("wire.all-flag-bits", "SPOP-FRAME-009", "refuses reserved flag bits")(
    frames_in(lambda frame: fail(invalid("unknown flags")) if frame.flags & ~3 else frame)
)
mutant("wire.no-fin", "SPOP-FRAG-001", "accepts a NOTIFY without FIN")(
    frames_in(lambda frame: frame._replace(flags=frame.flags | 1))
)
mutant("wire.unset-is-notify", "SPOP-FRAG-002", "takes a frame of type 0 for a NOTIFY")(
    frames_in(lambda frame: frame._replace(type=3) if frame.type == 0 else frame)
)
mutant("wire.abort-ignored", "SPOP-FRAG-003", "judges and allows an aborted NOTIFY, after the others")(
    around(FrameBuffer, "split")(lambda sound, *data: sorted(sound(*data), key=lambda each: each.flags & 2)),
    frames_in(lambda frame: frame._replace(flags=frame.flags & ~2)),
)
mutant("wire.off-by-four", "SPOP-TYPE-004", "counts the length prefix into the frame size")(
    _limit(lambda agreed: agreed - 4)
)

# --- varints and types: SPOP-VARINT, SPOP-TYPE, SPOP-FUZZ


@mutant("wire.varint-unbounded", "SPOP-VARINT-001", "takes varints of any length")
@around(varint, "read")
def varint_unbounded(_sound: Any, data: bytes, pos: int, end: int) -> tuple[int, int]:
    value, pos, shift = data[pos], pos + 1, 4
    if value < 240:
        return value, pos
    while pos < end:
        byte = data[pos]
        pos += 1
        value += byte << shift
        if byte < 128:
            break
        shift += 7
    return value, pos


@mutant("wire.varint-leb128", "SPOP-VARINT-002", "drops the continuation bits of a varint")
@around(varint, "read")
def varint_leb128(sound: Any, data: bytes, pos: int, end: int) -> tuple[int, int]:
    value, after = sound(data, pos, end)
    return (value - (128 << 4) if after - pos > 2 else value), after


def _value(change: Callable[[Any, Any, int], tuple[Any, Any, int]]) -> Override:
    """Change a typed value as it is read: its type, its value, and the offset behind it."""
    return around(values, "read")(lambda sound, data, pos, end: change(*sound(data, pos, end)))


def _utf8(kind: Any, value: Any, after: int) -> Any:
    if isinstance(value, bytes):
        value.decode()
    return kind, value, after


@mutant("wire.reserved-type", "SPOP-TYPE-002", "skips a value of a reserved type")
@around(values, "read")
def reserved_type(sound: Any, data: bytes, pos: int, end: int) -> Any:
    if pos < end and data[pos] & 0x0F > 9:
        return DataType.NULL, None, values.read_string(data, pos + 1, end)[1]
    return sound(data, pos, end)


@mutant("wire.fatal-frame", "SPOP-FUZZ-001", "dies of a value of a reserved type with flags")
@before(values, "read")
def fatal_frame(data: bytes, pos: int, end: int) -> None:
    if pos < end and data[pos] & 0x0F > 9 and data[pos] & 0xF0:
        os._exit(70)


@mutant("wire.spins", "SPOP-FUZZ-001", "works five seconds on a message of over 200 arguments")
@before(messages, "_read_message")
def spins(data: bytes, pos: int, end: int) -> None:
    at = values.read_string(data, pos, end)[1]
    if at < end and data[at] > 200:
        time.sleep(5.0)


mutant("wire.negative-integer", "SPOP-TYPE-001", "breaks on a negative integer")(
    _value(
        lambda kind, value, after: (
            fail(invalid("negative")) if isinstance(value, int) and value < 0 else (kind, value, after)
        )
    )
)
mutant("wire.ipv6-short", "SPOP-TYPE-001", "reads an IPv6 address as four bytes")(
    _value(lambda kind, value, after: (kind, value, after - 12 if kind is DataType.IPV6 else after))
)
mutant("wire.strict-utf8", "SPOP-TYPE-003", "dies of a string that is not UTF-8")(_value(_utf8))
mutant("wire.bool-nibble", "SPOP-HEALTH-002", "reads BOOL from the low nibble: FALSE is true")(
    _value(lambda kind, value, after: (kind, True if kind is DataType.BOOL else value, after))
)

# --- questions: SPOP-MSG


@mutant("wire.last-message-wins", "SPOP-MSG-008", "judges the last of two iam-check messages")
@around(messages, "parse")
def last_message_wins(sound: Any, data: bytes, start: int, end: int) -> Any:
    found = sound(data, start, end)
    if not found.problem or "messages" not in found.problem:
        return found
    pos, check, key = start, None, b""
    while pos < end:
        first = pos
        name, arguments, _, pos = messages._read_message(data, pos, end)
        if name == messages.CHECK:
            check, key = messages._check(arguments), data[first:pos]
    return messages.Inquiry(found.context, check, key)


@mutant("wire.last-argument-wins", "SPOP-MSG-004", "takes the last of two arguments of the same name")
@around(messages, "_read_message")
def last_argument_wins(sound: Any, data: bytes, pos: int, end: int) -> Any:
    name, arguments, _doubled, after = sound(data, pos, end)
    return name, arguments, False, after


@mutant("wire.stops-at-unknown", "SPOP-MSG-002", "stops reading at an unknown message")
@around(messages, "parse")
def stops_at_unknown(sound: Any, data: bytes, start: int, end: int) -> Any:
    pos = start
    while pos < end:
        name, _, _, after = messages._read_message(data, pos, end)
        if name not in (messages.CONTEXT, messages.CHECK):
            break
        pos = after
    return sound(data, start, pos)


_last_token = [""]


@mutant("wire.null-is-last-token", "SPOP-MSG-006", "leaves the last token in place of a NULL")
@around(messages, "_check")
def null_is_last_token(sound: Any, arguments: Any) -> Any:
    check = sound(arguments)
    if check.authorization:
        _last_token[0] = check.authorization
    elif check.authorization is None and not check.missing:
        return replace(check, authorization=_last_token[0])
    return check


def _known(frame: Any) -> Any:
    empty = frame.start == frame.end
    return empty or messages.parse(frame.data, frame.start, frame.end).check or b"iam-c" in frame.data


def _missing(arguments: Any, check: Any) -> Any:
    extra = any(name.startswith(b"x-") for name in arguments)
    return replace(check, missing=("nothing",)) if extra else check


mutant("wire.lies-believed", "SPOP-MSG-007", "answers a message that it could not read")(
    rescue(messages, "parse", RemoteProtocolError)(lambda *_: messages.Inquiry(messages.Context()))
)
mutant("wire.unknown-silent", "SPOP-MSG-001", "does not answer unknown messages")(
    _inquires(lambda _self, frame: _known(frame))
)
mutant("wire.empty-silent", "SPOP-MSG-003", "does not answer an empty NOTIFY")(
    _inquires(lambda _self, frame: frame.start != frame.end)
)
mutant("wire.missing-argument", "SPOP-MSG-005", "judges on with an empty path or method")(
    around(messages, "_check")(lambda sound, arguments: replace(sound(arguments), missing=()))
)
mutant("wire.extra-argument", "SPOP-MSG-005", "refuses an iam-check with an unknown argument")(
    around(messages, "_check")(lambda sound, arguments: _missing(arguments, sound(arguments)))
)

# --- answers: SPOP-ACK, SPOP-ACTION


@mutant("wire.ack-one-of-two", "SPOP-ACK-001", "answers one of two pipelined frames")
@acks_out
def ack_one_of_two(self: Any, ids: bytes, actions: bytes) -> bytes:
    self.answers = not getattr(self, "answers", False)
    return frames.encode(FrameType.ACK, ids, actions) if self.answers else b""


@mutant("wire.answers-by-id", "SPOP-ACK-005", "gives the first answer again for the same ids")
@acks_out
def answers_by_id(self: Any, ids: bytes, actions: bytes) -> bytes:
    kept = self.__dict__.setdefault("kept", {}).setdefault(ids, actions)
    return frames.encode(FrameType.ACK, ids, kept)


def _ids(change: Any) -> Override:
    def each(_self: Any, ids: bytes, actions: bytes) -> bytes:
        stream_id, pos = varint.read(ids, 0, len(ids))
        frame_id = varint.read(ids, pos, len(ids))[0]
        ids = b"".join(map(varint.encode, change(stream_id, frame_id)))
        return frames.encode(FrameType.ACK, ids, actions)

    return acks_out(each)


@mutant("wire.never-unsets", "SPOP-ACTION-005", "leaves variables of the request before")
@actions_out
def never_unsets(encoded: bytes) -> bytes:
    return b"".join(actions._encode(one) for one in actions.decode(encoded) if one.kind is not None)


_ALLOW_LENGTH = len(b"\x01\x03\x02\x05allow\x11")
mutant("wire.ack-twice", "SPOP-ACK-001", "sends each ACK twice")(
    acks_out(lambda _self, ids, actions: 2 * frames.encode(FrameType.ACK, ids, actions))
)
mutant("wire.ack-no-fin", "SPOP-ACK-001", "sends ACKs without FIN")(
    acks_out(lambda _self, ids, actions: frames.encode(FrameType.ACK, ids, actions, flags=0))
)
mutant("wire.stream-zero", "SPOP-ACK-002", "does not answer stream-id 0")(
    frames_in(lambda frame: None if frame.type == 3 and frame.ids[0] == 0 else frame)
)
mutant("wire.ids-16-bits", "SPOP-ACK-003", "keeps 16 bits of a stream-id")(
    _ids(lambda stream_id, frame_id: (stream_id & 0xFFFF, frame_id))
)
mutant("wire.ids-31-bits", "SPOP-ACK-003", "keeps 31 bits of a stream-id")(
    _ids(lambda stream_id, frame_id: (stream_id & 0x7FFFFFFF, frame_id))
)
mutant("wire.frame-id-one", "SPOP-ACK-004", "answers every frame as frame 1")(
    _ids(lambda stream_id, _frame_id: (stream_id, 1))
)
mutant("wire.tags-not-dropped", "SPOP-ACK-006", "sends ACKs larger than negotiated")(
    setting(actions, "shorten", lambda encoded, _limit: encoded)
)
mutant("wire.unset-three-arguments", "SPOP-ACTION-001", "says UNSET-VAR has three arguments")(
    around(actions, "unset_var")(lambda sound, *args: b"\x02\x03" + sound(*args)[2:])
)
mutant("wire.verdict-first", "SPOP-ACTION-002", "puts the verdict before the tags")(
    actions_out(lambda actions: actions[-_ALLOW_LENGTH:] + actions[:-_ALLOW_LENGTH])
)
mutant("wire.long-name", "SPOP-ACTION-003", "sets a variable with a name of 70 characters")(
    actions_out(lambda actions: b"\x01\x03\x02\x3e" + b"n" * 62 + b"\x11" + actions)
)
mutant("wire.name-with-dash", "SPOP-ACTION-004", "sets a variable with a dash in its name")(
    actions_out(lambda actions: b"\x01\x03\x02\x07my-role\x11" + actions)
)

# --- order and failures: SPOP-PIPE, SPOP-FAIL

_pipelining = [True]


@before(connection, "_text")
def _noting_pipelining(pairs: Any, key: bytes, _absent: Any) -> None:
    if key == b"capabilities" and key in pairs:
        _pipelining[0] = bool(pairs[key][1])


@edit.frames_out
def _two_by_two(self: Connection, kind: int, ids: bytes, payload: bytes, flags: int) -> bytes:
    whole = frames.encode(FrameType(kind), ids, payload, flags)
    if kind == FrameType.AGENT_HELLO:
        self.__dict__["alone"] = not _pipelining[0]
    if kind != FrameType.ACK or not self.__dict__.get("alone"):
        return whole
    held: list[bytes] = self.__dict__.setdefault("held", [])
    held.append(whole)
    return b"".join((held.pop(0), held.pop(0))) if len(held) > 1 else b""


@before(_Peer, "_handle")
def _noting_engine(self: Any, event: Any) -> None:
    if isinstance(event, HelloReceived):
        self.engine = event.engine_id


@around(_Peer, "_flush")
def _through_another(sound: Any, self: Any) -> None:
    engine = getattr(self, "engine", None)
    others = [
        peer
        for peer in self._server.peers
        if peer is not self and engine == "one-engine" and getattr(peer, "engine", None) == engine
    ]
    if others and self._life is not _OVER and self._connection.notifies:
        others[0]._transport.write(self._connection.data_to_send())
    else:
        sound(self)


@mutant("wire.failure-silent", "SPOP-FAIL-001", "does not answer where the handler fails")
@around(_Peer, "_judge")
async def failure_silent(sound: Any, self: Any, event: Any) -> None:
    if event.check.missing:
        self._pending.pop(asyncio.current_task(), None)
    else:
        await sound(self, event)


mutant("wire.in-order", "SPOP-PIPE-001", "answers in order: a slow token blocks the others")(
    edit.one_by_one, edit.without_memory
)
mutant("wire.waits-for-second", "SPOP-PIPE-002", "without pipelining, waits for a second frame")(
    _noting_pipelining, _two_by_two
)
mutant("wire.other-connection", "SPOP-PIPE-003", "sends ACKs on any connection of the engine")(
    _noting_engine, _through_another
)
mutant("wire.allow-on-failure", "SPOP-FAIL-001", "allows on an internal error")(
    actions_out(lambda actions: actions[:-1] + b"\x11" if b"internal_error" in actions else actions)
)
