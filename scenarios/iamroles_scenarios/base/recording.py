"""Recordings of what a check sent, saw and waited for, kept while it is played, whether it passes or not.

The places that talk to an agent note what passed (`note`, `connected`) and how much of its patience a wait
used up (`waited`). They need not know for whom: the recording travels in a context variable, also onto the
client's event loop. A new thread begins without one; `carried` gives it the caller's.

No secret is kept: the signature of a token, and a pre-signed request, are cut out of every text by
`without_secrets`, whatever a caller noted. A test token's header and claims stay: a reader needs them.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from math import inf
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_FIRST, _LAST = 40, 40
"""Exchanges and connections that are kept of those that came first, and of those that came last."""
_LONG = 6000
"""Characters that are kept of an exchange, or of a connection."""
# Possessive, and begun where a run begins: a token may have a hundred thousand characters.
_JWT = re.compile(
    r"(?<![\w-])(eyJ[\w-]{8,}+|[\w-]{20,}+(?=\.[\w-]{20,}+\.[\w-]{20,}))\.([\w-]*+)\.[\w%=+/-]*", re.ASCII
)
_PRESIGNED = re.compile(r"(iam-sts-v1.)([\w-]{12,}+)[^\s'\"]*", re.IGNORECASE)
_BEARER = re.compile(r"(Bearer +[^\s<'\"]{6})[^\s<'\"]{18,}", re.IGNORECASE)
_SIGNED = re.compile(r"((?:Signature|Security-Token)=)[^&\s'\"]{8,}", re.IGNORECASE)
_RUN = re.compile(r"[\w+/=-]{40,}+", re.ASCII)
_HEX = re.compile(r"(?:\b[0-9a-f]{2} ){24,}(?:[0-9a-f]{2}\b)?")


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait that ended as hoped, and how long it could have lasted."""

    what: str
    took: float
    """Seconds."""
    bound: float
    """Seconds, scaled as they were."""

    @property
    def margin(self) -> float:
        """The part of the bound that was left over: 1 for an answer at once, 0 for one at the last moment."""
        return 1.0 - self.took / self.bound if self.bound > 0 else 1.0


class _Ends:
    """The first and the last of many, and how many there were."""

    def __init__(self) -> None:
        self._first: list[tuple[str, tuple[object, ...]]] = []
        self._last: deque[tuple[str, tuple[object, ...]]] = deque(maxlen=_LAST)
        self._count = 0

    def add(self, head: str, *parts: object) -> None:
        self._count += 1
        (self._first if len(self._first) < _FIRST else self._last).append((head, parts))

    def texts(self, title: str) -> Iterator[str]:
        first = self._count - len(self._last)
        for number, (head, parts) in enumerate(self._first, 1):
            yield _shown(f"{title} {number} {head}", parts)
        if missing := first - len(self._first):
            yield f"--- {missing} more, not kept"
        for number, (head, parts) in enumerate(self._last, first + 1):
            yield _shown(f"{title} {number} {head}", parts)


def _shown(head: str, parts: tuple[object, ...]) -> str:
    texts = [part.decode("latin-1") if isinstance(part, bytes) else str(part) for part in parts]
    text = "\n\n".join(piece.replace("\r\n", "\n").rstrip() for piece in texts)
    left = f"\n… {len(text) - _LONG} more characters" if len(text) > _LONG else ""
    return f"--- {head.strip()}\n{text[:_LONG]}{left}"


class Recording:
    """Belongs to a check, or to a scenario, which has several.

    Args:
        keeps: whether texts are kept, or waits alone.
    """

    def __init__(self, *, keeps: bool) -> None:
        self.keeps = keeps
        self.narrowest: Wait | None = None
        """The wait that came nearest to its bound."""
        self.timed = False
        """True if a life, a bound or a wait was stretched by the scale, or the agent was silent."""
        self.bound = inf
        """Seconds of the last of them."""
        self.most, self.since = inf, 0.0
        """The greatest scale that counts, and since when, by the monotonic clock: see `fixed`."""
        self.starves = False
        """True if the check itself keeps the agent from running."""
        self._started = time.monotonic()
        self._exchanges = _Ends()
        self._connections = _Ends()
        self._lock = threading.Lock()

    def note(self, *parts: object) -> None:
        """Keep what was sent or seen; parts become text only when they are read."""
        if self.keeps:
            at = (time.monotonic() - self._started) * 1000
            with self._lock:
                self._exchanges.add(f"{at:.1f} ms", *parts)

    def connected(self, transcript: object) -> None:
        """Keep the transcript of a connection, which grows on."""
        if self.keeps:
            with self._lock:
                self._connections.add("", transcript)

    def waited(self, wait: Wait) -> None:
        """Keep a wait if none came nearer to its bound."""
        with self._lock:
            if self.narrowest is None or wait.margin < self.narrowest.margin:
                self.narrowest = wait

    def text(self) -> str:
        """Everything kept, to read; without secrets."""
        with self._lock:
            pieces = [*self._exchanges.texts("exchange"), *self._connections.texts("connection")]
        return without_secrets("\n".join(pieces))


_current: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recorded(*, keeps: bool | None = None) -> Iterator[Recording]:
    """A recording of what is done in this context; `keeps` is by default as in the recording around it."""
    around = _current.get()
    found = Recording(keeps=bool(around and around.keeps) if keeps is None else keeps)
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


def note(*parts: object) -> None:
    """Note something in the recording of this context, if there is one."""
    if (found := _current.get()) is not None:
        found.note(*parts)


def connected(transcript: object) -> None:
    """Note a connection in the recording of this context, if there is one."""
    if (found := _current.get()) is not None:
        found.connected(transcript)


def waited(what: str, took: float, bound: float) -> None:
    """Note a wait that ended as hoped after `took` of `bound` seconds."""
    if (found := _current.get()) is not None:
        found.waited(Wait(what, took, bound))


def timed(bound: float | None = None) -> None:
    """Note that time decides here: if the host was late meanwhile, a failure proves nothing.

    Args:
        bound: seconds of a life, a bound or a wait that begins; None or 0: of the one before.
    """
    if (found := _current.get()) is not None:
        found.timed = True
        found.bound = bound or found.bound


def fixed(bound: float, times: float) -> None:
    """Note that a limit decides from here on that no scale stretches, such as one of the agent's own.

    Args:
        bound: its seconds.
        times: how many times as long it is as what a sound agent needs on a quiet host.
    """
    timed(bound)
    if (found := _current.get()) is not None:
        found.most, found.since = times, time.monotonic()


def starves() -> None:
    """Note that the check keeps the agent from running, so that its waits say nothing about the host."""
    if (found := _current.get()) is not None:
        found.starves = True


def carried(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function as another thread may call it, once: with the recording of this context."""
    context = copy_context()

    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return context.run(function, *args, **kwargs)

    return call


def without_secrets(text: str) -> str:
    """A text without signatures: tokens are decoded, what is signed or random is cut.

    Checks break tokens in every way, so a signature may stand anywhere: whatever looks like one is cut too.
    Bytes in hexadecimal may be a piece of a token: where they spell a long run of letters, the first eight
    stay.
    """
    text = _JWT.sub(lambda found: f"<token {_opened(found[1])} . {_opened(found[2])}, no signature>", text)
    text = _PRESIGNED.sub(lambda found: f"{found[1]}<{_url(found[2])}>", text)
    text = _BEARER.sub(r"\1…<cut>", text)
    text = _SIGNED.sub(r"\1<cut>", text)
    text = _RUN.sub(lambda found: _cut(found[0]), text)
    return _HEX.sub(lambda found: _bytes(found[0]), text)


def _bytes(run: str) -> str:
    letters = re.search(rb"[\w.-]{24,}", bytes.fromhex(run.strip()))
    return f"{run[:24]}… <{len(run) // 3 - 8} more> " if letters else run


def _cut(run: str) -> str:
    """A run of letters, cut if it looks like a signature, as certificates do too."""
    random = any(map(str.isdigit, run)) and any(map(str.islower, run)) and any(map(str.isupper, run))
    return f"{run[:6]}…<{len(run) - 6} more>" if random else run


def _url(part: str) -> str:
    """A pre-signed request, of which `_SIGNED` cuts the secrets."""
    try:
        text = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode("ascii")
    except ValueError:
        return "cut"
    return text if text.isprintable() else "cut"


def _opened(part: str) -> str:
    try:
        return json.dumps(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))
    except (ValueError, RecursionError):
        return f"<{len(part)} characters>"
