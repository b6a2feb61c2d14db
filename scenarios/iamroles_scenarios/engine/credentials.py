"""Credentials as failures show them: everything but the secret.

Test tokens hold no secret besides their signature. A pre-signed request is shown without its signature
and its session token.
"""

from __future__ import annotations

import base64
import re

_SHOWN = 1500
"""Characters of a token's header, of its claims, or of a pre-signed URL."""
_STS = re.compile(r"iam-sts-v\d+\.", re.IGNORECASE)
_HIDDEN = r"\g<1>…"
_SECRET = re.compile(r"((?:X-Amz-Signature|X-Amz-Security-Token)=)[^&#]*", re.IGNORECASE)


def readable(token: str) -> list[str]:
    """Return a JWT's header and claims, or a pre-signed URL, as lines to read; [] for anything else."""
    if (prefix := _STS.match(token)) is not None:
        return [f"pre-signed: {_cut(_SECRET.sub(_HIDDEN, _text(token[prefix.end() :])))}"]
    parts = token.split(".")
    if len(parts) != 3:
        return []
    return [
        f"token {title}: {_cut(_text(part))}"
        for title, part in zip(("header", "claims"), parts, strict=False)
    ]


def _text(part: str) -> str:
    try:
        text = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()
    except ValueError:
        return "<not base64url of UTF-8>"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _cut(text: str) -> str:
    return f"{text[:_SHOWN]}{'…' * (len(text) > _SHOWN)}"
