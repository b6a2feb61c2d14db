"""The credentials of this process, and whether a text holds one: no log, page or report may (SPEC.md 1.16).

Whatever makes a credential notes it (`jose.mint`, `mock.presign`, the mock cloud's tokens), so nobody has to
find it in what is sent. Of its secrets, a signature above all, pieces are kept: the first and the last
letters. A text is searched only if it has long runs of letters, which the logs of a sound agent hardly have.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator

_PIECE, _RUN = 24, 32
"""Letters of a piece, and of a run that is searched: each run of a secret's end holds a whole piece."""
_DISTINCT = 8
"""Different letters of a piece, at least: a signature of zeros says nothing."""
_KEPT = 400_000
"""Pieces; the oldest are forgotten."""
_LETTERS = re.compile(rb"[\w-]+")
_SHAPE = bytes(b"x"[0] if _LETTERS.fullmatch(bytes([code])) else b" "[0] for code in range(256))
_known: dict[bytes, str] = {}
"""Names of credentials by their pieces."""
_lock = threading.Lock()


def note(kind: str, credential: str, *secrets: str) -> str:
    """Remember a credential, and return it.

    Args:
        kind: in words, such as `token`.
        credential: the whole.
        secrets: what makes it one, each in a spelling that a log may have.
    """
    name = f"{kind} {hashlib.sha256(credential.encode('utf-8', 'replace')).hexdigest()[:12]}"
    with _lock:
        for run in _LETTERS.findall(" ".join(secrets).encode("utf-8", "replace")):
            for at in {0, _RUN - _PIECE, max(0, len(run) - _RUN), max(0, len(run) - _PIECE)}:
                piece = run[at : at + _PIECE]
                if len(piece) == _PIECE and len(set(piece)) >= _DISTINCT:
                    _known[piece] = name
        while len(_known) > _KEPT:
            del _known[next(iter(_known))]
    return credential


def note_token(token: str) -> str:
    """Remember a token by its signature, and return it. What has no third part has none."""
    parts = [part for part in token.split(".") if part]
    signed = len(parts) > 2 and not parts[-1].startswith(("ey", "ew"))  # which begin a JSON object
    return note("token", token, parts[-1]) if signed else token


def _held(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield begin, end and credential of each long run that holds a piece of it."""
    shape, at = data.translate(_SHAPE), 0
    while (at := shape.find(b"x" * _RUN, at)) >= 0:
        end = shape.find(b" ", at)
        end = len(data) if end < 0 else end
        for begin in range(at, end - _PIECE + 1):
            if (name := _known.get(data[begin : begin + _PIECE])) is not None:
                yield at, end, name
                break
        at = end


def held(text: str | bytes) -> set[str]:
    """Return the names of the credentials of which a text holds a piece."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    return {name for _, _, name in _held(data)}


def cut(text: str) -> str:
    """Return a text without what it holds of credentials."""
    data = text.encode("utf-8", "surrogatepass")
    for at, end, name in reversed(list(_held(data))):
        data = data[:at] + f"<cut: {name}>".encode() + data[end:]
    return data.decode("utf-8", "surrogatepass")
