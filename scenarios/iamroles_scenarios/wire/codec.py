"""The smallest parts of SPOP: varints, strings, typed data (SPOE.txt 3.1), strictly decoded.

Two things here are easy to get wrong, and agents do:

*Varints* are not LEB128. The first byte holds values below 240 whole; otherwise it gives its four low bits
and each next byte gives seven, and every step *subtracts* the range the shorter forms already cover. So each
value has exactly one encoding, and 2**64 - 1 takes ten bytes: more than ten, or a sum above 2**64 - 1, is an
error and never a wrap-around.

*Type bytes* hold the type in the low nibble and flags in the high one (TRUE is 0x11); the drawing in SPOE.txt
reads the other way round. Signed integers of both widths travel as 64-bit two's complement.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from iamroles_scenarios.base.errors import WideVarint, WireFormatError

_U64 = 1 << 64
_S63 = 1 << 63


class DataType(IntEnum):
    """Types of typed data (SPOE.txt 3.1); 5 is UINT64, whatever the document's table calls it."""

    NULL = 0
    BOOL = 1
    INT32 = 2
    UINT32 = 3
    INT64 = 4
    UINT64 = 5
    IPV4 = 6
    IPV6 = 7
    STRING = 8
    BINARY = 9


_RANGES = {
    DataType.INT32: (-(1 << 31), (1 << 31) - 1),
    DataType.UINT32: (0, (1 << 32) - 1),
    DataType.INT64: (-_S63, _S63 - 1),
    DataType.UINT64: (0, _U64 - 1),
}

Value = None | bool | int | str | bytes | IPv4Address | IPv6Address
"""Typed data in Python; a STRING that is not UTF-8 stays bytes."""


@dataclass(frozen=True, slots=True)
class Typed:
    """A value with its type on the wire."""

    type: DataType
    value: Value

    @classmethod
    def of(cls, value: Value | Typed) -> Typed:
        """Type a Python value as HAProxy would: its integers are INT64, its texts STRING."""
        match value:
            case Typed():
                return value
            case None:
                return cls(DataType.NULL, None)
            case bool():
                return cls(DataType.BOOL, value)
            case int():
                return cls(DataType.INT64, value)
            case str():
                return cls(DataType.STRING, value)
            case bytes():
                return cls(DataType.BINARY, value)
            case IPv4Address():
                return cls(DataType.IPV4, value)
            case IPv6Address():
                return cls(DataType.IPV6, value)
        raise TypeError(f"{value!r} has no SPOP type")

    def encode(self) -> bytes:
        """Type byte and value (SPOE.txt 3.1). Integers out of range are written all the same."""
        match self.value:
            case None:
                return b"\x00"
            case bool():
                return b"\x11" if self.value else b"\x01"
            case int():
                return bytes([self.type]) + varint(self.value % _U64)
            case IPv4Address() | IPv6Address():
                return bytes([self.type]) + self.value.packed
        return bytes([self.type]) + string(self.value)

    def __str__(self) -> str:
        match self.value:
            case None:
                return "NULL"
            case bool():
                return "true" if self.value else "false"
            case str() | bytes():
                return quote(self.value)
        return str(self.value)


def quote(text: str | bytes) -> str:
    """Printable form of a string of any bytes, cut where a reader has seen enough."""
    shown = repr(text[:160]).replace("\n", "\\n")
    return shown if len(text) <= 160 else f"{shown}… ({len(text)} in all)"


def varint(value: int) -> bytes:
    """Encode 0 <= value < 2**64 (SPOE.txt 3.1, "Peers encoding")."""
    if not 0 <= value < _U64:
        raise ValueError(f"a varint holds 0 to 2**64 - 1, not {value}")
    if value < 240:
        return bytes([value])
    out = bytearray([0xF0 | value & 0x0F])
    value = (value - 240) >> 4
    while value >= 128:
        out.append(0x80 | value & 0x7F)
        value = (value - 128) >> 7
    out.append(value)
    return bytes(out)


def string(text: str | bytes) -> bytes:
    """Length and bytes, untyped: a name, or the body of a STRING or BINARY."""
    raw = text.encode() if isinstance(text, str) else text
    return varint(len(raw)) + raw


address = lru_cache(ip_address)
"""An IP address from its text."""


class PayloadReader:
    """Walks bytes strictly; every fault is a `WireFormatError` with its offset.

    Args:
        data: the bytes.
        base: what to add to offsets in errors, so that they count from the start of the frame or stream.
    """

    def __init__(self, data: bytes, base: int = 0) -> None:
        self._data = data
        self._at = 0
        self._base = base

    @property
    def offset(self) -> int:
        """Return where the next byte is, counted from `-base`."""
        return self._base + self._at

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def fail(self, why: str, at: int | None = None) -> WireFormatError:
        """An error at an offset, by default here."""
        return WireFormatError(why, self.offset if at is None else at)

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise self.fail(f"{what} of {count} bytes runs {count - self.left} past the end of the frame")
        start, self._at = self._at, self._at + count
        return self._data[start : self._at]

    def byte(self, what: str) -> int:
        return self.take(1, what)[0]

    def varint(self, what: str) -> int:
        """A varint of at most ten bytes and 64 bits."""
        start = self.offset
        value = self.byte(what)
        if value < 240:
            return value
        shift = 4
        for _ in range(9):
            if not self.left:
                raise self.fail(f"{what}: the varint does not end within the frame", start)
            byte = self.byte(what)
            value += byte << shift
            if byte < 128:
                if value >= _U64:
                    raise WideVarint(f"{what}: the varint exceeds 2**64 - 1", start)
                return value
            shift += 7
        raise WideVarint(f"{what}: the varint has more than ten bytes", start)

    def string(self, what: str) -> bytes:
        start = self.offset
        length = self.varint(f"length of {what}")
        if length > self.left:
            raise self.fail(f"{what} says {length} bytes, the frame has {self.left} left", start)
        return self.take(length, what)

    def name(self, what: str) -> str:
        """An untyped string shown as text; foreign bytes are escaped."""
        return self.string(what).decode("utf-8", "backslashreplace")

    def typed(self, what: str) -> Typed:
        """Typed data; reserved types and integers beyond their type's range are errors."""
        start = self.offset
        head = self.byte(f"type of {what}")
        try:
            kind = DataType(head & 0x0F)
        except ValueError:
            raise self.fail(f"{what} has the reserved type {head & 0x0F}", start) from None
        match kind:
            case DataType.NULL:
                return Typed(kind, None)
            case DataType.BOOL:
                return Typed(kind, bool(head & 0x10))
            case DataType.IPV4:
                return Typed(kind, IPv4Address(self.take(4, what)))
            case DataType.IPV6:
                return Typed(kind, IPv6Address(self.take(16, what)))
            case DataType.BINARY:
                return Typed(kind, self.string(what))
            case DataType.STRING:
                return Typed(kind, _text(self.string(what)))
        return Typed(kind, self._integer(kind, what, start))

    def _integer(self, kind: DataType, what: str, start: int) -> int:
        value = self.varint(what)
        if kind in (DataType.INT32, DataType.INT64) and value >= _S63:
            value -= _U64
        low, high = _RANGES[kind]
        if not low <= value <= high:
            raise self.fail(f"{what}: {value} is outside {kind.name}", start)
        return value


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
