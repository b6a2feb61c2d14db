"""Read a compact JWS strictly (RFC 7515 section 7.1; JWT-FORM, JWT-B64, JWT-JSON).

All of it happens before a signature is checked, so every byte may come from an attacker. The size is judged
first, then the form. A header is never followed (`jku`, `x5u`, `jwk`, `x5c` are ignored), and a `kid` is only
a dictionary key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from iamroles_agent.base.encoding import decode_base64url, decode_object, lower_ascii
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens.keys import kid_allowed


@dataclass(frozen=True, slots=True)
class Header:
    """The used members of a JOSE header."""

    alg: str
    kid: str | None
    typ: str
    """Lower-case, without `application/`; "jwt" if the header has none (SPEC.md section 6, `types`)."""


class Jws(NamedTuple):
    """A well-formed token; nothing in it is verified."""

    header: Header
    payload: dict[str, Any]
    signing_input: bytes
    signature: bytes


def parse(token: bytes, max_bytes: int = 8192) -> Jws:
    """Split and decode a compact JWS.

    Raises:
        Refusal: `token_too_large` above `max_bytes`, before anything is decoded; `token_malformed`.
    """
    if len(token) > max_bytes:
        raise Refusal(Reason.TOKEN_TOO_LARGE, f"{len(token)} bytes, at most {max_bytes} are read")
    parts = token.split(b".", 3)
    if len(parts) != 3:
        dots = token.count(b".")
        kind = "an encrypted token (JWE) is not accepted" if dots == 4 else "a JWS has three"
        raise Refusal(Reason.TOKEN_MALFORMED, f"{dots + 1} parts: {kind}")
    protected, body, seal = parts
    try:
        header = read_header(protected)
    except ValueError as error:
        raise Refusal(Reason.TOKEN_MALFORMED, f"header: {_reason(error)}") from None
    try:
        payload = decode_object(decode_base64url(body))
    except (ValueError, RecursionError) as error:
        raise Refusal(Reason.TOKEN_MALFORMED, f"payload: {_reason(error)}") from None
    try:
        signature = decode_base64url(seal)
    except ValueError as error:
        raise Refusal(Reason.TOKEN_MALFORMED, f"signature: {error}") from None
    return Jws(header, payload, token[: len(protected) + len(body) + 1], signature)


def _reason(error: Exception) -> str:
    # The JSON and UTF-8 decoders quote their input: only our own sentences may reach the audit line.
    return str(error) if type(error) is ValueError else "not UTF-8 JSON"


def read_header(protected: bytes) -> Header:
    """Read a header as `_read_header` does; headers of usual length are read once."""
    return _usual_header(protected) if len(protected) <= _USUAL else _read_header(protected)


def _read_header(protected: bytes) -> Header:
    """Decode and judge a protected header; a pure function of its bytes.

    Raises:
        ValueError: it is malformed; the message quotes nothing of the header.
    """
    try:
        members = decode_object(decode_base64url(protected))
    except RecursionError:
        raise ValueError("nested too deep") from None
    alg, kid, typ = members.get("alg"), members.get("kid"), members.get("typ", "JWT")
    if not isinstance(alg, str):
        raise ValueError("`alg` is not a string")
    if "kid" in members and not kid_allowed(kid):
        raise ValueError("`kid` is not a string of 1 to 256 characters")
    if not isinstance(typ, str):
        raise ValueError("`typ` is not a string")
    # No extension is implemented, so none may be critical (RFC 7515 section 4.1.11), an empty list included.
    for name, why in FORBIDDEN:
        if name in members:
            raise ValueError(why)
    cty = members.get("cty")
    if cty is not None and (not isinstance(cty, str) or media(cty) == "jwt"):
        raise ValueError("`cty` says that a token is nested in it")
    return Header(alg, kid, media(typ))


# All tokens of a key have the same header, byte for byte. Errors are not cached, and a flood of different
# headers costs only their parsing.
_usual_header = lru_cache(maxsize=256)(_read_header)
_USUAL = 512
"""Bytes of a header that is kept."""

FORBIDDEN = (
    ("crit", "`crit`: no critical extension is understood"),
    ("b64", "`b64` (RFC 7797) is not accepted in a JWT"),
    ("zip", "`zip`: compression is not accepted"),
)
"""Members of a header that no signed token may have, and why."""


def media(typ: str) -> str:
    """Return a `typ` as `Header.typ` has it."""
    return lower_ascii(typ).removeprefix("application/")
