"""Typed data (SPOE.txt section 3.1): a type byte, then the value.

The type is the byte's low nibble, flags are its high nibble (true is `0x11`); the drawing in the document
shows the reverse. Signed integers travel as 64-bit two's complement varints.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from iamroles_agent.spop import varint
from iamroles_agent.spop.errors import LocalProtocolError, invalid

Value = None | bool | int | bytes | IPv4Address | IPv6Address
"""STRING and BINARY are both bytes: the wire gives no character set."""


class DataType(IntEnum):
    """The low nibble of the type byte; 10 to 15 are reserved."""

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


_TYPES = tuple(DataType)
INTEGERS = frozenset({DataType.INT32, DataType.UINT32, DataType.INT64, DataType.UINT64})
_SIGNED = frozenset({DataType.INT32, DataType.INT64})
_SIGN_BIT = 1 << 63
_MODULUS = 1 << 64
_TRUE = 0x10
_RANGES = {
    DataType.INT32: range(-(1 << 31), 1 << 31),
    DataType.UINT32: range(1 << 32),
    DataType.INT64: range(-_SIGN_BIT, _SIGN_BIT),
    DataType.UINT64: range(_MODULUS),
}


def encode_string(text: bytes) -> bytes:
    """Encode an untyped string, as in names: its length, then its bytes."""
    return varint.encode(len(text)) + text


def encode(kind: DataType, value: Value) -> bytes:
    """Encode one typed value.

    Raises:
        LocalProtocolError: the value does not belong to the type.
    """
    match kind, value:
        case _, int() if not isinstance(value, bool) and value in _RANGES.get(kind, ()):
            return bytes((kind,)) + varint.encode(value % _MODULUS)
        case DataType.NULL, None:
            return b"\x00"
        case DataType.BOOL, bool():
            return b"\x11" if value else b"\x01"
        case ((DataType.STRING | DataType.BINARY), bytes()):
            return bytes((kind,)) + encode_string(value)
        case (DataType.IPV4, IPv4Address() as address) | (DataType.IPV6, IPv6Address() as address):
            return bytes((kind,)) + address.packed
        case _:
            raise LocalProtocolError(f"{kind.name} does not hold a {type(value).__name__} like this")


def read_string(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    """Read an untyped string at `pos`.

    Returns:
        Its bytes and the position after it.

    Raises:
        RemoteProtocolError: status 4, it runs past `end`.
    """
    length, pos = varint.read(data, pos, end)
    after = pos + length
    if after > end:
        raise invalid("a string runs past the end of its frame")
    return data[pos:after], after


def read(data: bytes, pos: int, end: int) -> tuple[DataType, Value, int]:
    """Read one typed value at `pos`.

    Returns:
        Its type, the value, the position after it.

    Raises:
        RemoteProtocolError: status 4, it runs past `end` or its type is reserved.
    """
    if pos >= end:
        raise invalid("a value is missing")
    head = data[pos]
    pos += 1
    match head & 0x0F:
        case DataType.STRING | DataType.BINARY as kind:
            text, pos = read_string(data, pos, end)
            return _TYPES[kind], text, pos
        case DataType.NULL:
            return DataType.NULL, None, pos
        case DataType.BOOL:
            return DataType.BOOL, bool(head & _TRUE), pos
        case DataType.IPV4:
            return DataType.IPV4, IPv4Address(_fixed(data, pos, 4, end)), pos + 4
        case DataType.IPV6:
            return DataType.IPV6, IPv6Address(_fixed(data, pos, 16, end)), pos + 16
        case kind if kind in INTEGERS:
            number, pos = varint.read(data, pos, end)
            if kind in _SIGNED and number & _SIGN_BIT:
                number -= _MODULUS
            return _TYPES[kind], number, pos
        case kind:
            raise invalid(f"data type {kind} is reserved")


def _fixed(data: bytes, pos: int, size: int, end: int) -> bytes:
    if pos + size > end:
        raise invalid("an address runs past the end of its frame")
    return data[pos : pos + size]
