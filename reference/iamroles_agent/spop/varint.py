"""Variable-length integers (SPOE.txt section 3.1).

A value below 240 is its own byte. Otherwise the first byte is `0xF0 | low four bits`, and the rest, `(value -
240) >> 4`, follows in groups of seven bits, the least significant first; each byte but the last is 128 or
more. Each group is biased by 128, so every value has exactly one encoding: the agent may send bytes back as
it read them.
"""

from __future__ import annotations

from iamroles_agent.spop.errors import LocalProtocolError, invalid

MAX = (1 << 64) - 1
_LAST_SHIFT = 60
"""The tenth and last byte of a 64-bit value starts at this bit."""


def encode(value: int) -> bytes:
    """Encode an unsigned integer of at most 64 bits into 1 to 10 bytes.

    Raises:
        LocalProtocolError: the value is out of range.
    """
    if value < 240:
        if value < 0:
            raise LocalProtocolError(f"a varint is unsigned, got {value}")
        return bytes((value,))
    if value > MAX:
        raise LocalProtocolError("a varint has at most 64 bits")
    encoded = bytearray((0xF0 | value & 0x0F,))
    rest = (value - 240) >> 4
    while rest >= 128:
        encoded.append(0x80 | rest & 0x7F)
        rest = (rest - 128) >> 7
    encoded.append(rest)
    return bytes(encoded)


def read(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read the varint at `pos`, looking no further than `end`.

    Returns:
        The value and the position after it.

    Raises:
        RemoteProtocolError: status 4, it does not end before `end` or has more than 64 bits.
    """
    if pos >= end:
        raise invalid("an integer is missing")
    value = data[pos]
    pos += 1
    if value < 240:
        return value, pos
    shift = 4
    while pos < end:
        byte = data[pos]
        pos += 1
        value += byte << shift
        if byte < 128:
            if value > MAX:
                break
            return value, pos
        shift += 7
        if shift > _LAST_SHIFT:
            break
    else:
        raise invalid("an integer does not end")
    raise invalid("an integer has more than 64 bits")
