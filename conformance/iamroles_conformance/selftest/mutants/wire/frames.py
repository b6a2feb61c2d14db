"""Mutants of reassembly, frames, varints and types: SPOP-FRAME, SPOP-VARINT, SPOP-FRAG, SPOP-TYPE."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from iamroles_agent.server import _Peer
from iamroles_agent.spop import connection, messages, values, varint
from iamroles_agent.spop.connection import Connection, State
from iamroles_agent.spop.errors import invalid
from iamroles_agent.spop.frames import FrameBuffer, FrameType
from iamroles_agent.spop.values import DataType
from iamroles_conformance.selftest.mutants.edits import frames_in
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant

_HOARD: list[bytes] = []


@mutant("wire.no-reassembly", kills=["SPOP-FRAME-001"], title="forgets the beginning of a split frame")
def no_reassembly() -> None:
    FrameBuffer._keep = lambda self, data, pos: None


@mutant("wire.one-frame-per-read", kills=["SPOP-FRAME-002"], title="looks at the first frame of a read only")
def one_frame_per_read() -> None:
    def make(sound: Any) -> Any:
        def split(self: Any, data: bytes) -> Iterator[Any]:
            for frame in sound(self, data):
                yield frame
                return

        return split

    override(FrameBuffer, "split", make)


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


@mutant("wire.two-writes", kills=["SPOP-FRAME-003"], title="writes length and body separately")
def two_writes() -> None:
    _Peer._flush = lambda self: _in_pieces(self, ordered=True)


@mutant("wire.interleaves", kills=["SPOP-FRAME-004"], title="interleaves the bytes of concurrent ACKs")
def interleaves() -> None:
    _Peer._flush = lambda self: _in_pieces(self, ordered=False)


@mutant("wire.no-size-limit", kills=["SPOP-FRAME-005"], title="ignores the negotiated max-frame-size")
def no_size_limit() -> None:
    table = Connection._TRANSITIONS
    sound = table[State.OPEN, FrameType.HAPROXY_HELLO]

    def hello(self: Any, frame: Any) -> None:
        sound(self, frame)
        self._buffer.limit = 1 << 30

    table[State.OPEN, FrameType.HAPROXY_HELLO] = hello


@mutant("wire.zero-length", kills=["SPOP-FRAME-006"], title="waits for ever on a length of 0 to 6")
def zero_length() -> None:
    def make(sound: Any) -> Any:
        def receive_data(self: Any, data: bytes) -> Any:
            if len(data) >= 4 and int.from_bytes(data[:4], "big") < 7:
                return []
            return sound(self, data)

        return receive_data

    override(Connection, "receive_data", make)


@mutant("wire.believes-length", kills=["SPOP-FRAME-007"], title="allocates what a length prefix asks for")
def believes_length() -> None:
    def make(sound: Any) -> Any:
        def refuse(self: Any, length: int) -> Any:
            if length > 1 << 24:
                _HOARD.append(b"\xff" * (48 << 20))
            return sound(self, length)

        return refuse

    override(FrameBuffer, "_refuse", make)


@mutant("wire.wedges", kills=["SPOP-FRAME-008"], title="stops reading after an unknown frame type")
def wedges() -> None:
    def make(sound: Any) -> Any:
        def dispatch(self: Any, frame: Any) -> None:
            if frame.type not in connection._KNOWN:
                self.wedged = True
            sound(self, frame)

        return dispatch

    def make_recall(sound: Any) -> Any:
        def inquire(self: Any, frame: Any, missed: Any) -> None:
            if not getattr(self, "wedged", False):
                sound(self, frame, missed)

        return inquire

    override(connection.Connection, "_dispatch", make)
    override(connection.Connection, "_inquire", make_recall)
    _without_memory()


def _without_memory() -> None:
    """Every NOTIFY takes the long way, through `_inquire`."""
    _Peer._recall = lambda self, key, context: None


@mutant("wire.all-flag-bits", kills=["SPOP-FRAME-009"], title="refuses reserved flag bits")
def all_flag_bits() -> None:
    def edit(frame: Any) -> Any:
        if frame.flags & ~3:
            raise invalid("unknown flags")
        return frame

    frames_in(edit)


@mutant("wire.varint-unbounded", kills=["SPOP-VARINT-001"], title="takes varints of any length")
def varint_unbounded() -> None:
    def read(data: bytes, pos: int, end: int) -> tuple[int, int]:
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

    varint.read = read


@mutant("wire.varint-leb128", kills=["SPOP-VARINT-002"], title="drops the continuation bits of a varint")
def varint_leb128() -> None:
    def make(sound: Any) -> Any:
        def read(data: bytes, pos: int, end: int) -> tuple[int, int]:
            value, after = sound(data, pos, end)
            return (value - (128 << 4) if after - pos > 2 else value), after

        return read

    override(varint, "read", make)


@mutant("wire.no-fin", kills=["SPOP-FRAG-001"], title="accepts a NOTIFY without FIN")
def no_fin() -> None:
    frames_in(lambda frame: frame._replace(flags=frame.flags | 1))


@mutant("wire.unset-is-notify", kills=["SPOP-FRAG-002"], title="takes a frame of type 0 for a NOTIFY")
def unset_is_notify() -> None:
    frames_in(lambda frame: frame._replace(type=3) if frame.type == 0 else frame)


@mutant("wire.abort-ignored", kills=["SPOP-FRAG-003"], title="judges and allows an aborted NOTIFY")
def abort_ignored() -> None:
    frames_in(lambda frame: frame._replace(flags=frame.flags & ~2))


@mutant("wire.negative-integer", kills=["SPOP-TYPE-001"], title="breaks on a negative integer")
def negative_integer() -> None:
    _refusing_values(lambda value: isinstance(value, int) and value < 0)


@mutant("wire.ipv6-short", kills=["SPOP-TYPE-001"], title="reads an IPv6 address as four bytes")
def ipv6_short() -> None:
    def make(sound: Any) -> Any:
        def read(data: bytes, pos: int, end: int) -> Any:
            kind, value, after = sound(data, pos, end)
            return kind, value, (after - 12 if kind is DataType.IPV6 else after)

        return read

    override(values, "read", make)


def _refusing_values(bad: Any) -> None:
    def make(sound: Any) -> Any:
        def read(data: bytes, pos: int, end: int) -> Any:
            found = sound(data, pos, end)
            if bad(found[1]):
                raise invalid("what is that?")
            return found

        return read

    override(values, "read", make)


@mutant("wire.reserved-type", kills=["SPOP-TYPE-002"], title="skips a value of a reserved type")
def reserved_type() -> None:
    def make(sound: Any) -> Any:
        def read(data: bytes, pos: int, end: int) -> Any:
            if pos < end and data[pos] & 0x0F > 9:
                return DataType.NULL, None, values.read_string(data, pos + 1, end)[1]
            return sound(data, pos, end)

        return read

    override(values, "read", make)


@mutant("wire.strict-utf8", kills=["SPOP-TYPE-003"], title="dies of a string that is not UTF-8")
def strict_utf8() -> None:
    def bad(value: object) -> bool:
        if isinstance(value, bytes):
            value.decode()
        return False

    _refusing_values(bad)


@mutant("wire.off-by-four", kills=["SPOP-TYPE-004"], title="counts the length prefix into the frame size")
def off_by_four() -> None:
    table = Connection._TRANSITIONS
    sound = table[State.OPEN, FrameType.HAPROXY_HELLO]

    def hello(self: Any, frame: Any) -> None:
        sound(self, frame)
        self._buffer.limit -= 4

    table[State.OPEN, FrameType.HAPROXY_HELLO] = hello


@mutant("wire.fatal-frame", kills=["SPOP-FUZZ-001"], title="dies of a value of a reserved type with flags")
def fatal_frame() -> None:
    def make(sound: Any) -> Any:
        def read(data: bytes, pos: int, end: int) -> Any:
            if pos < end and data[pos] & 0x0F > 9 and data[pos] & 0xF0:
                os._exit(70)
            return sound(data, pos, end)

        return read

    override(values, "read", make)


@mutant("wire.spins", kills=["SPOP-FUZZ-001"], title="works five seconds on a message of over 200 arguments")
def spins() -> None:
    def make(sound: Any) -> Any:
        def read_message(data: bytes, pos: int, end: int) -> Any:
            after = values.read_string(data, pos, end)[1]
            if after < end and data[after] > 200:
                time.sleep(5.0)
            return sound(data, pos, end)

        return read_message

    override(messages, "_read_message", make)
