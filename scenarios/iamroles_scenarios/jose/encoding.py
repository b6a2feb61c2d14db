"""Base64url, integers and JSON text, written by hand so that each can also be written wrongly."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""Any JSON value."""
Members = list[tuple[str, str]]
"""An object's members in order, values as JSON text: room for duplicates and for what no value can say."""

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def b64url(data: bytes) -> str:
    """Unpadded base64url (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: str) -> bytes:
    """Inverse of `b64url`.

    Raises:
        ValueError: not canonical unpadded base64url.
    """
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64url(data) != text:
        raise ValueError("not canonical unpadded base64url")
    return data


def part(token: str, index: int) -> Json:
    """Return the header (0) or the claims (1) of a compact JWS, unverified.

    Raises:
        ValueError: it is not base64url of JSON.
    """
    text = token.split(".")[index]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def b64url_uint(number: int, length: int | None = None) -> str:
    """Base64urlUInt (RFC 7518 section 2), left-padded to `length` octets where given (coordinates)."""
    return b64url(number.to_bytes(length or max(1, (number.bit_length() + 7) // 8), "big"))


def stray_bits(segment: str) -> str:
    """The same octets with non-zero unused bits in the last character; as it is without such bits."""
    if len(segment) % 4 not in (2, 3):
        return segment
    return segment[:-1] + _ALPHABET[_ALPHABET.index(segment[-1]) | 1]


def json_text(value: object) -> str:
    """Compact JSON; NaN and infinities are written as JavaScript would."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def members_of(table: dict[str, object]) -> Members:
    """The members of a table, values as JSON text."""
    return [(name, json_text(value)) for name, value in table.items()]


def object_text(members: Iterable[tuple[str, str]]) -> str:
    """An object's text from its members, duplicates and all."""
    return "{" + ",".join(f"{json_text(name)}:{value}" for name, value in members) + "}"


def nested_list(depth: int) -> str:
    """JSON text of lists nested `depth` deep; built as text because writers recurse."""
    return "[" * depth + "]" * depth
