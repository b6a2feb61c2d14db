"""Client text on its way into a record: credentials become hashes, and length is bounded.

A path, a host or a role name may hold what looks like a credential, because a client put it there. The
Authorization header is never handed over, so this is the second fence, not the first.

Why the patterns look as they do: every text here is a stranger's, so each pattern costs a constant for each
byte, whatever the bytes. A token pattern that may begin anywhere in a run of letters and read to its end is
quadratic: `eyJeyJeyJ…` of 14 kB once took 1.2 s. So a token begins only where a run of
token characters begins (the look-behind), and no run is read twice (the possessive `+`).

What counts as a token (RFC 7515 section 7.1, RFC 7516 section 7.1): parts of base64url with dots between.
Either three in a row have 16 characters or more each, as every signed token has and hardly a host name;
or a part reads as the beginning of a JSON object (`{"`, or `{` and white space), with a dot after it.
"""

from __future__ import annotations

import hashlib
import re
from json.encoder import encode_basestring_ascii as quoted

_DOT = r"(?:\.|%2[Ee])"
_LONG = r"[A-Za-z0-9_-]{16,}+"
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_-])"
    rf"(?:{_LONG}{_DOT}{_LONG}{_DOT}{_LONG}"
    rf"|e(?:y[A-DI-L]|w[k-r0-3])[A-Za-z0-9_-]{{6,}}+(?={_DOT}))"  # base64url of `{` and `"` or white space
    rf"(?:{_DOT}[A-Za-z0-9_-]*+)*+"
)
_OTHER = re.compile(
    r"iam-sts-v1\.[A-Za-z0-9_=-]*+"
    r"|(?i:X-Amz-(?:Signature|Security-Token|Credential)(?:=|%3D)[^&\s]*+)"
    r"|(?i:bearer(?:\s|%20|\+)++[A-Za-z0-9._~/=-][A-Za-z0-9._~+/=-]{7,}+)"
)
_MARKS = ("iam-sts-v1.", "x-amz-", "bearer")
_TOKEN_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.%"  # noqa: S105
_NAMED = 8
"""So many credentials of one text are named by their hash, the others only left out: hashing costs more."""
_NOTE = 24
"""Room for the note that something was left out."""


def credential_hash(credential: str) -> str:
    """`sha256:` and 16 hex digits: names a credential in the audit without revealing it (A15)."""
    return "sha256:" + hashlib.sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def redacted(text: str) -> str:
    """The text with anything that looks like a credential replaced by a hash that still names it."""
    lower = text.lower()
    # `in` searches at C speed: nearly every text holds none of these, and no pattern is tried.
    if any(mark in lower for mark in _MARKS):
        text = _without(_OTHER, text)
    if "." in text or "%2e" in lower:
        text = _without(_TOKEN, text)
    return text


def shown(text: str, limit: int) -> str:
    """Client text for a record: redacted, and at most `limit` bytes long once it is quoted as JSON.

    Args:
        text: of any length.
        limit: bytes without the quotation marks, at least 64.

    Returns:
        The text; or its beginning and `…[+N]`, where about N characters were left out.
    """
    begin = text
    if len(text) > 2 * limit:
        # Half a token is not recognised as one, so what the cut would go through is left out whole.
        begin = text[: 2 * limit].rstrip(_TOKEN_CHARACTERS)
    safe = redacted(begin)
    if begin is text and len(quoted(safe)) - 2 <= limit:
        return safe
    room = limit - _NOTE
    kept = safe[:room]
    if len(quoted(kept)) - 2 > room:
        kept = kept[: room // (6 if kept.isascii() else 12)]  # an escape takes 6 bytes, a pair of them 12
    return f"{kept}…[+{len(text) - len(begin) + len(safe) - len(kept)}]"


def _without(pattern: re.Pattern[str], text: str) -> str:
    text, found = pattern.subn(lambda match: f"[redacted {credential_hash(match[0])}]", text, count=_NAMED)
    return text if found < _NAMED else pattern.sub("[redacted]", text)
