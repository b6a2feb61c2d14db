"""Frames (SPOE.txt section 3.2).

A frame is `u32 length | u8 type | u32 flags | varint stream-id | varint frame-id | payload`, big-endian; the
length does not count itself. The two ids are one run of bytes here: a varint has only one encoding
(`varint`), and the agent only sends ids back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from iamroles_agent.spop import values, varint
from iamroles_agent.spop.errors import RemoteProtocolError, Status, invalid
from iamroles_agent.spop.values import DataType, Value

FIN = 0x1
ABORT = 0x2
MIN_LENGTH = 7
"""Type, flags, two one-byte ids."""
MIN_NEGOTIABLE = 256
"""The smallest max-frame-size of the protocol (SPOE.txt section 3.2.4)."""
NO_IDS = b"\x00\x00"
"""The ids of HELLO and DISCONNECT."""
_HEAD = struct.Struct(">IBI")


class FrameType(IntEnum):
    """Types of HAProxy's frames (below 100) and of an agent's."""

    UNSET = 0
    HAPROXY_HELLO = 1
    HAPROXY_DISCONNECT = 2
    NOTIFY = 3
    AGENT_HELLO = 101
    AGENT_DISCONNECT = 102
    ACK = 103


class RawFrame(NamedTuple):
    """A frame inside the bytes that brought it: nothing of the payload is copied."""

    type: int
    flags: int
    ids: bytes
    """Both varints, as received."""
    data: bytes
    start: int
    """Offset of the payload in `data`."""
    end: int


def encode(kind: FrameType, ids: bytes, payload: bytes, flags: int = FIN) -> bytes:
    """Build one frame, its length prefix included."""
    return _HEAD.pack(5 + len(ids) + len(payload), kind, flags) + ids + payload


def encode_pairs(pairs: dict[str, tuple[DataType, Value]]) -> bytes:
    """Encode a key/value list, the payload of HELLO and DISCONNECT."""
    return b"".join(
        values.encode_string(key.encode()) + values.encode(kind, value)
        for key, (kind, value) in pairs.items()
    )


def read_pairs(frame: RawFrame) -> dict[bytes, tuple[DataType, Value]]:
    """Read the key/value list of a HELLO or DISCONNECT; the last value of a repeated key counts.

    Raises:
        RemoteProtocolError: status 4.
    """
    pairs: dict[bytes, tuple[DataType, Value]] = {}
    pos = frame.start
    while pos < frame.end:
        key, pos = values.read_string(frame.data, pos, frame.end)
        kind, value, pos = values.read(frame.data, pos, frame.end)
        pairs[key] = kind, value
    return pairs


class FrameBuffer:
    """Cuts a byte stream into frames.

    Bytes of an unfinished frame wait in a growing array and are not read again until the whole frame has
    come: a frame that comes byte by byte costs linear time. A length is judged as soon as its four bytes have
    come, so a peer can make the agent hold at most one frame of `limit` bytes. The limit excludes the prefix
    and may change between frames.
    """

    __slots__ = ("_partial", "_wanted", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._partial = bytearray()
        self._wanted = 0

    @property
    def pending(self) -> int:
        return len(self._partial)

    def split(self, data: bytes) -> Iterator[RawFrame]:
        """Yield the frames that `data` completes, in order.

        Raises:
            RemoteProtocolError: status 3 for a length above `limit`, 4 for one below 7 or broken ids.
        """
        partial = self._partial
        if partial:
            partial += data
            if len(partial) < self._wanted:
                return
            data = bytes(partial)
            partial.clear()
        pos, size = 0, len(data)
        unpack, new = _HEAD.unpack_from, tuple.__new__
        while size - pos >= 4 + MIN_LENGTH:
            length, kind, flags = unpack(data, pos)
            if not MIN_LENGTH <= length <= self.limit:
                raise self._refuse(length)
            end = pos + 4 + length
            if end > size:
                break
            first = pos + 9
            start = first + 2
            if data[first] >= 240 or data[first + 1] >= 240:
                start = varint.read(data, varint.read(data, first, end)[1], end)[1]
            yield new(RawFrame, (kind, flags, data[first:start], data, start, end))
            pos = end
        if pos < size:
            self._keep(data, pos)

    def _keep(self, data: bytes, pos: int) -> None:
        """Keep the unfinished rest, unless its length is refused."""
        self._wanted = 4
        if len(data) - pos >= 4:
            length = int.from_bytes(data[pos : pos + 4], "big")
            if not MIN_LENGTH <= length <= self.limit:
                raise self._refuse(length)
            self._wanted = 4 + length
        self._partial += data[pos:]

    def _refuse(self, length: int) -> RemoteProtocolError:
        if length < MIN_LENGTH:
            return invalid(f"a frame of {length} bytes is too short")
        return RemoteProtocolError(
            Status.TOO_BIG, f"a frame of {length} bytes exceeds the maximum of {self.limit}"
        )
