"""The output of a part: lines kept as they come, so that a reader can wait for one instead of sleeping."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from iamroles_scenarios.base import recording

_KEPT = 20_000
TAIL = 40
"""Lines of a part's log that go with an error."""


class Output:
    """Lines of a stream, read by a thread of its own until the stream ends.

    The last 20,000 lines are kept. Every line has a number, so that a reader can wait for what comes *after*
    something it did (`mark`, then `wait(…, since=mark)`).
    """

    def __init__(self, name: str, lines: Iterable[bytes]) -> None:
        self._name = name
        self._kept: deque[str] = deque(maxlen=_KEPT)
        self._count = 0
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(lines,), name=f"output-{name}", daemon=True)
        self._thread.start()

    def _read(self, lines: Iterable[bytes]) -> None:
        try:
            for line in lines:
                with self._changed:
                    self._kept.append(line.decode("utf-8", "replace").rstrip("\r\n"))
                    self._count += 1
                    self._changed.notify_all()
        except (OSError, ValueError):
            pass  # closed under the reader: the part is gone
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    @property
    def mark(self) -> int:
        with self._changed:
            return self._count

    @property
    def dropped(self) -> int:
        """Lines that are no longer kept."""
        with self._changed:
            return self._count - len(self._kept)

    def lines(self, since: int = 0) -> list[str]:
        """The lines kept, from number `since` on."""
        with self._changed:
            return self._after(since)

    def _after(self, since: int) -> list[str]:
        first = self._count - len(self._kept)
        return list(self._kept)[max(0, since - first) :]

    def wait(self, accept: Callable[[str], bool], *, within: float, since: int = 0) -> str | None:
        """The first line from `since` on that is accepted; None at the deadline or the stream's end.

        Args:
            accept: judges one line.
            within: seconds.
            since: a `mark`.
        """
        began = time.monotonic()
        deadline = began + within
        with self._changed:
            while True:
                fresh = self._after(since)
                since = self._count
                if (found := next(filter(accept, fresh), None)) is not None:
                    recording.waited(f"a line of {self._name}", time.monotonic() - began, within)
                    return found
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._changed.wait(left)

    def finish(self, within: float = 1.0) -> bool:
        """Wait until the stream has ended, so that the tail is whole; returns whether it has."""
        self._thread.join(within)
        return not self._thread.is_alive()

    def tail(self, count: int = TAIL) -> str:
        """The last lines, as one text."""
        return "\n".join(self.lines()[-count:])


def chunked_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a stream that arrives in pieces of any size."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest
