"""Give a path one reading, or refuse it (SPEC.md section 7; PATH-AMBIGUOUS-001, PATH-NORMAL-001).

Why so strict: the agent judges a string, the proxy forwards a string, and the backend resolves a string.
Every known bypass needs two of the three to read it differently. `/orders/%2e%2e/admin` is below `/orders`
for a plain comparison and is `/admin` for a server that decodes. `/admin;x` is another segment here and
`/admin` for a servlet container. `%C0%AE` is invalid here and a dot for a lax decoder. `..%20` is a name here
and `..` for a server that trims. So a path with two readings is refused, not repaired. Two repairs are safe,
because RFC 3986 section 6.2.2 gives them one meaning: the case of hex digits and the encoding of unreserved
characters. HAProxy's `normalize-uri` makes the same repairs in the path that it forwards.
"""

from __future__ import annotations

import re

from iamroles_agent.base.reasons import Reason, Refusal

_PLAIN = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*+)++/?", re.ASCII)
"""Paths without `%` and without a segment that starts with a dot: nearly all traffic."""
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DOUBLE = re.compile(r"%25[0-9A-Fa-f]{2}")
_FORBIDDEN_ENCODED = frozenset({0x2F, 0x5C, 0x3B, 0x7F, *range(0x20)})
_FORBIDDEN_PLAIN = re.compile(r"[^\x21-\x7e]|[;\\#?]")
_TEXT = re.compile(r"%(?:[89A-F]|20)")
"""Escapes that make a closer look at the decoded text necessary."""
_FOLDS = re.compile(
    "[\u037e\u2024\u2025\u2100\u2101\u2105\u2106\ufe14\ufe30\ufe52\ufe54\ufe68\ufe6a"
    "\uff05\uff0e\uff0f\uff1b\uff3c]"
)
"""Letters of which Unicode's compatibility forms (NFKC) make `.`, `..`, `;`, `%`, `\\` or a text with `/`."""
_OUTER_BLANK = re.compile(r"(?:^|/)[\s\ufeff]|[\s\ufeff](?:/|\Z)")
_HEX = "0123456789ABCDEFabcdef"
# The meaning of each pair of digits in a table: a path may consist of triplets alone, and a function call for
# each costs ten times as much.
_TRIPLETS = {
    high + low: chr(byte) if (byte := int(high + low, 16)) in _UNRESERVED else f"%{high}{low}".upper()
    for high in _HEX
    for low in _HEX
    if int(high + low, 16) not in _FORBIDDEN_ENCODED
}

_BYTES = {triplet: chr(int(triplet, 16)) for triplet in _TRIPLETS}


def canonical(path: str) -> str:
    """Normalise a request's path, without query, as the proxy forwards it.

    Args:
        path: begins with `/`; percent-encoding as sent.

    Returns:
        The path with unreserved characters decoded and hex digits upper-case. A trailing `/` is kept:
        `segments` ignores it.

    Raises:
        Refusal: `path_ambiguous`; its detail names the reason.
    """
    if _PLAIN.fullmatch(path) or path == "/":
        return path
    if not path.startswith("/"):
        raise _ambiguous("does not start with /")
    if _FORBIDDEN_PLAIN.search(path):
        raise _ambiguous("holds `;`, `\\`, `#`, `?`, a space, a control byte or a byte above 0x7E")
    decoded = _decoded(path)
    if _DOUBLE.search(decoded):
        raise _ambiguous("is percent-encoded twice")
    parts = decoded[1:].split("/")
    if "." in parts or ".." in parts:
        raise _ambiguous("holds a dot segment")
    if "" in parts[:-1]:
        raise _ambiguous("holds an empty segment")
    if _TEXT.search(decoded):
        _check_text(decoded)
    return decoded


def segments(path: str) -> tuple[str, ...]:
    """Split a canonical path; one trailing `/` is ignored, and `/` has no segments."""
    trimmed = path[1:-1] if path.endswith("/") else path[1:]
    return tuple(trimmed.split("/")) if trimmed else ()


def _decoded(path: str) -> str:
    first, *rest = path.split("%")
    try:
        return first + "".join([_TRIPLETS[part[:2]] + part[2:] for part in rest])
    except KeyError as missing:
        digits = str(missing.args[0])
    if len(digits) < 2 or digits.strip(_HEX):
        raise _ambiguous("has broken percent-encoding")
    raise _ambiguous(f"holds an encoded delimiter or control byte, %{digits.upper()}")


def _check_text(decoded: str) -> None:
    """Check the text that the escapes spell.

    Raises:
        Refusal: `path_ambiguous`.
    """
    try:
        first, *rest = decoded.split("%")
        text = (
            (first + "".join([_BYTES[part[:2]] + part[2:] for part in rest]))
            .encode("latin-1")
            .decode("utf-8")
        )
    except UnicodeDecodeError:
        raise _ambiguous("is not UTF-8") from None
    if _FOLDS.search(text):
        raise _ambiguous("holds a letter that folds into a delimiter or a dot")
    if _OUTER_BLANK.search(text):
        raise _ambiguous("holds a segment that begins or ends with a blank")


def _ambiguous(what: str) -> Refusal:
    return Refusal(Reason.PATH_AMBIGUOUS, f"the path {what}")
