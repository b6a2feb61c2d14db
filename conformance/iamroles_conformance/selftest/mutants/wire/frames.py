"""Mutants of reassembly, frames, varints and types: SPOP-FRAME, SPOP-VARINT, SPOP-FRAG, SPOP-TYPE."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from iamroles_agent.serving.server import _Peer
from iamroles_agent.spop import connection, messages, values, varint
from iamroles_agent.spop.connection import Connection, State
from iamroles_agent.spop.errors import invalid
from iamroles_agent.spop.frames import FrameBuffer, FrameType
from iamroles_agent.spop.values import DataType
from iamroles_conformance.selftest.mutants.edits import frames_in
from iamroles_conformance.selftest.mutants.override import around, setting, transition, without_memory
from iamroles_conformance.selftest.registry import Override, mutant

_HOARD: list[bytes] = []
mutant("wire.no-reassembly", "SPOP-FRAME-001", "forgets the beginning of a split frame")(
    setting(FrameBuffer, "_keep", lambda self, data, pos: None)
)


@mutant("wire.one-frame-per-read", "SPOP-FRAME-002", "looks at the first frame of a read only")
@around(FrameBuffer, "split")
def one_frame_per_read(sound: Any, self: Any, data: bytes) -> Iterator[Any]:
    for frame in sound(self, data):
        yield frame
        return


def _after_hello(change: Callable[[Any], None]) -> Override:
    """Change a connection once its HELLO is read."""

    @transition(State.OPEN, FrameType.HAPROXY_HELLO)
    def hello(sound: Any, self: Any, frame: Any) -> None:
        sound(self, frame)
        change(self)

    return hello


def _in_pieces(self: Any, *, ordered: bool) -> None:
    """`_Peer._flush`, each frame cut in two; in order, or as two tasks would."""
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
        elif self._ending and not self._eof:
            self._transport.write_eof()

    if len(queue) or self._ending:
        more()


mutant("wire.two-writes", "SPOP-FRAME-003", "writes length and body separately")(
    setting(_Peer, "_flush", lambda self: _in_pieces(self, ordered=True))
)
mutant("wire.interleaves", "SPOP-FRAME-004", "interleaves the bytes of concurrent ACKs")(
    setting(_Peer, "_flush", lambda self: _in_pieces(self, ordered=False))
)


@mutant("wire.no-size-limit", "SPOP-FRAME-005", "ignores the negotiated max-frame-size")
@_after_hello
def no_size_limit(connection: Any) -> None:
    connection._buffer.limit = 1 << 30


@mutant("wire.zero-length", "SPOP-FRAME-006", "waits for ever on a length of 0 to 6")
@around(Connection, "receive_data")
def zero_length(sound: Any, self: Any, data: bytes) -> Any:
    if len(data) >= 4 and int.from_bytes(data[:4], "big") < 7:
        return []
    return sound(self, data)


@mutant("wire.believes-length", "SPOP-FRAME-007", "allocates what a length prefix asks for")
@around(FrameBuffer, "_refuse")
def believes_length(sound: Any, self: Any, length: int) -> Any:
    if length > 1 << 24:
        _HOARD.append(b"\xff" * (48 << 20))
    return sound(self, length)


@around(Connection, "_dispatch")
def _wedging(sound: Any, self: Any, frame: Any) -> None:
    if frame.type not in connection._KNOWN:
        self.wedged = True
    sound(self, frame)


@mutant(
    "wire.wedges", "SPOP-FRAME-008", "stops reading after an unknown frame type", _wedging, without_memory
)
@around(Connection, "_inquire")
def _unless_wedged(sound: Any, self: Any, frame: Any, missed: Any) -> None:
    if not getattr(self, "wedged", False):
        sound(self, frame, missed)


@mutant("wire.all-flag-bits", "SPOP-FRAME-009", "refuses reserved flag bits")
@frames_in
def all_flag_bits(frame: Any) -> Any:
    if frame.flags & ~3:
        raise invalid("unknown flags")
    return frame


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


mutant("wire.no-fin", "SPOP-FRAG-001", "accepts a NOTIFY without FIN")(
    frames_in(lambda frame: frame._replace(flags=frame.flags | 1))
)
mutant("wire.unset-is-notify", "SPOP-FRAG-002", "takes a frame of type 0 for a NOTIFY")(
    frames_in(lambda frame: frame._replace(type=3) if frame.type == 0 else frame)
)
mutant("wire.abort-ignored", "SPOP-FRAG-003", "judges and allows an aborted NOTIFY")(
    frames_in(lambda frame: frame._replace(flags=frame.flags & ~2))
)


def _refusing_values(bad: Any) -> Override:
    @around(values, "read")
    def read(sound: Any, data: bytes, pos: int, end: int) -> Any:
        found = sound(data, pos, end)
        if bad(found[1]):
            raise invalid("what is that?")
        return found

    return read


mutant("wire.negative-integer", "SPOP-TYPE-001", "breaks on a negative integer")(
    _refusing_values(lambda value: isinstance(value, int) and value < 0)
)


@mutant("wire.ipv6-short", "SPOP-TYPE-001", "reads an IPv6 address as four bytes")
@around(values, "read")
def ipv6_short(sound: Any, data: bytes, pos: int, end: int) -> Any:
    kind, value, after = sound(data, pos, end)
    return kind, value, (after - 12 if kind is DataType.IPV6 else after)


@mutant("wire.reserved-type", "SPOP-TYPE-002", "skips a value of a reserved type")
@around(values, "read")
def reserved_type(sound: Any, data: bytes, pos: int, end: int) -> Any:
    if pos < end and data[pos] & 0x0F > 9:
        return DataType.NULL, None, values.read_string(data, pos + 1, end)[1]
    return sound(data, pos, end)


@mutant("wire.strict-utf8", "SPOP-TYPE-003", "dies of a string that is not UTF-8")
@_refusing_values
def strict_utf8(value: object) -> bool:
    if isinstance(value, bytes):
        value.decode()
    return False


@mutant("wire.off-by-four", "SPOP-TYPE-004", "counts the length prefix into the frame size")
@_after_hello
def off_by_four(connection: Any) -> None:
    connection._buffer.limit -= 4


@mutant("wire.fatal-frame", "SPOP-FUZZ-001", "dies of a value of a reserved type with flags")
@around(values, "read")
def fatal_frame(sound: Any, data: bytes, pos: int, end: int) -> Any:
    if pos < end and data[pos] & 0x0F > 9 and data[pos] & 0xF0:
        os._exit(70)
    return sound(data, pos, end)


@mutant("wire.spins", "SPOP-FUZZ-001", "works five seconds on a message of over 200 arguments")
@around(messages, "_read_message")
def spins(sound: Any, data: bytes, pos: int, end: int) -> Any:
    after = values.read_string(data, pos, end)[1]
    if after < end and data[after] > 200:
        time.sleep(5.0)
    return sound(data, pos, end)
