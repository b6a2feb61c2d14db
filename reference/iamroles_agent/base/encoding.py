"""Canonical base64url and strict JSON: a token has exactly one accepted spelling.

The decoders of the standard library are lenient: `base64` skips unknown bytes and ignores stray trailing
bits, `json` keeps the last of two equal members and reads NaN. Each leniency lets two parsers read one signed
text in two ways, so both are refused here (JWT-B64-001, JWT-JSON-001; RFC 7515 section 2; RFC 8725 section
2.4).
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable
from string import ascii_lowercase, ascii_uppercase
from typing import Any

VISIBLE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
"""A value that a header carries as it is: visible ASCII, with blanks inside alone."""
MAX_DEPTH = 16
"""Nesting of objects and arrays in a header, payload or key set; real documents need four."""
MAX_CONTAINERS = 1024
"""Objects and arrays in one document: each costs a call, and real tokens have a few dozen."""

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# One translation turns base64url into base64 and everything foreign ("+", "/", "=", white space) into "!",
# which a strict a2b_base64 refuses: the alphabet is checked at C speed, without a regular expression.
_TO_BASE64 = bytes(byte if byte in _ALPHABET else {45: 43, 95: 47}.get(byte, 33) for byte in range(256))
_PADDING = (b"", None, b"==", b"=")
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
# A canonical last character leaves the bits beyond the last byte zero (RFC 4648 section 3.5).
_LAST = (frozenset(b""), frozenset(b""), frozenset(b"AQgw"), frozenset(b"AEIMQUYcgkosw048"))


def lower_ascii(text: str) -> str:
    """Lower-case ASCII letters alone: U+212A does not become `k` (SPEC.md 5.20)."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


def encode_base64url(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515 section 2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_base64url(text: bytes) -> bytes:
    """Decode unpadded, canonical base64url.

    Raises:
        ValueError: padding, white space, a foreign character, an impossible length, stray trailing bits.
    """
    rest = len(text) & 3
    padding = _PADDING[rest]
    if padding is None:
        raise ValueError("not base64url: an impossible length")
    if rest and text[-1] not in _LAST[rest]:
        raise ValueError("not canonical base64url")
    try:
        return a2b_base64(text.translate(_TO_BASE64) + padding, strict_mode=True)
    except Base64Error:
        raise ValueError("not base64url") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a duplicate JSON member")
    return members


def _no_constant(name: str) -> Any:  # noqa: ANN401 - json's hook
    raise ValueError(f"{name} is not JSON")


# The scanner itself: `decode` around it costs a third more, for two regular expressions over white space.
_scan: Callable[[str, int], tuple[Any, int]] = vars(
    json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
)["scan_once"]
_SPACE = " \t\r\n"


def decode_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        ValueError: not UTF-8, a BOM, not one JSON object, a duplicate member at any level, a lone surrogate,
            NaN or an infinity, nesting deeper than `MAX_DEPTH`, objects and arrays above `MAX_CONTAINERS`.
    """
    # A flat object, the usual case, has few brackets and needs no further check.
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _check_shape(data)
    text = data.decode("utf-8")
    if not text.startswith("{"):
        text = text.lstrip(_SPACE)
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    if end != len(text) and text[end:].strip(_SPACE):
        raise ValueError("more than one JSON value")
    if type(value) is not dict:
        raise ValueError("not a JSON object")
    # "\ud800" is good JSON and bad Unicode: it could not be written to a log or sent in a header.
    if "\\" in text and ("\\ud" in text or "\\uD" in text):
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


# An unfinished string is read to the end: no quotation mark in it is tried as the start of another string.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]")))


def _check_shape(data: bytes) -> None:
    """Count and peel brackets at C speed, without a step of Python for each byte.

    Brackets of two kinds that do not match pass here, and the parser refuses them.
    """
    brackets = _STRINGS.sub(b"", data).translate(_ONE_BRACKET).translate(None, _NO_BRACKETS)
    if brackets.count(b"[") > MAX_CONTAINERS:
        raise ValueError(f"JSON of more than {MAX_CONTAINERS} objects and arrays")
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return
    raise ValueError(f"JSON nested deeper than {MAX_DEPTH}, or its brackets do not match")
