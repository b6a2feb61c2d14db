"""Client text on its way into a record: credentials become hashes, and length is bounded.

A client may put a credential into a path, a host or a role name. The Authorization header never gets here, so
this is the second fence, not the first.

Why the patterns look as they do: every text here comes from strangers, so each pattern must cost the same for
each byte. A token pattern that may begin anywhere in a run of letters and read to its end is quadratic:
`eyJeyJeyJ…` of 14 kB once took 1.2 s. So a token begins only at the start of a run of token characters (the
look-behind), and no run is read twice (the possessive `+`).

A token (RFC 7515 section 7.1, RFC 7516 section 7.1) is parts of base64url with dots between them. Either
three parts in a row have 16 characters or more each, as in every signed token and in hardly any host name; or
a part is the beginning of a JSON object (`{"`, or `{` and white space) and a dot follows it.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode
from contextlib import suppress
from json.encoder import encode_basestring_ascii as quoted
from urllib.parse import unquote

_DOT = r"(?:=|%3[Dd])*+(?:\.|%2[Ee])"  # some pad the parts
_LONG = r"[A-Za-z0-9_-]{16,}+"
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_-])"
    rf"(?:{_LONG}{_DOT}{_LONG}{_DOT}{_LONG}"
    rf"|e(?:y[A-DI-L]|w[k-r0-3])[A-Za-z0-9_-]{{6,}}+(?={_DOT}))"  # base64url of `{` and `"` or white space
    rf"(?:{_DOT}[A-Za-z0-9_-]*+)*+"
)
_OTHER = re.compile(
    r"(?i:iam-sts-v1)(?:\.|%2[Ee])[A-Za-z0-9_%=.-]*+"
    r"|(?i:X-Amz-(?:Signature|Security-Token|Credential)(?:=|%3D)[^&\s]*+)"
    r"|(?i:(?:bearer|dpop)(?:\s|%20|\+)++[A-Za-z0-9._~/=-][A-Za-z0-9._~+/=%-]{7,}+)"
)
_SEAL = re.compile(rb"(?i:[?&]X-Amz-Signature=)([0-9a-f]{64})(?![^&])")
_MARKS = ("iam-sts-v1", "x-amz-", "bearer", "dpop")
_DEEP = 3
"""How often a text may be encoded and is still searched."""
_TOKEN_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.%"  # noqa: S105
_NAMED = 8
"""Credentials of a text that are named by their hash; further ones are only removed: hashing costs more."""
_NOTE = 24
"""Bytes for the note that text was left out."""


def credential_hash(credential: str) -> str:
    """Name a credential in the audit without revealing it: `sha256:` and 16 hex digits.

    All forms that a holder can give a credential have one name, so that none escapes a revocation by it: a
    token is named without its signature (ECDSA has two), a pre-signed request by its signature (its query has
    any order).
    """
    signed = credential.encode("utf-8", "surrogatepass")
    if signed.count(b".") == 2:
        signed = signed.rpartition(b".")[0]
    elif signed.startswith(b"iam-sts-v1."):
        with suppress(ValueError):
            found = _SEAL.search(urlsafe_b64decode(signed[11:] + b"=" * (-(len(signed) - 11) % 4)))
            signed = found[1] if found else signed
    return "sha256:" + hashlib.sha256(signed).hexdigest()[:16]


def redacted(text: str) -> str:
    """Replace each part of a text that looks like a credential by a hash that names it.

    A text whose credential shows only when it is decoded is given back decoded; each decoding begins with
    what is left of the one before it, so nothing that was found once is searched for its end again.
    """
    safe = plain = _struck(text)
    for _ in range(_DEEP):
        encoded, plain = plain, unquote(plain, "latin-1") if "%" in plain else plain
        if plain == encoded:
            break
        if (struck := _struck(plain)) != plain:
            safe = plain = struck
    return safe


def _struck(text: str) -> str:
    lower = text.lower()
    # `in` searches at C speed: nearly every text has no mark, and no pattern is tried.
    if any(mark in lower for mark in _MARKS):
        text = _without(_OTHER, text)
    if "." in text or "%2e" in lower:
        text = _without(_TOKEN, text)
    return text


def shown(text: str, limit: int) -> str:
    """Prepare client text for a record: redacted, and at most `limit` bytes long once it is quoted as JSON.

    Args:
        text: of any length.
        limit: bytes without the quotation marks, at least 64.

    Returns:
        The text; or its beginning and `…[+N]`, if about N characters were left out.
    """
    begin = text
    if len(text) > 2 * limit:
        # Half a token is not recognised as a token, so a run that the cut would go through is left out whole.
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
    def named(found: re.Match[str]) -> str:
        return f"[redacted {credential_hash(unquote(found[0], 'latin-1'))}]"

    text, count = pattern.subn(named, text, count=_NAMED)
    return text if count < _NAMED else pattern.sub("[redacted]", text)
