"""Raw samples: seven integers an answer, packed into bytes that are allocated ahead.

Recording must not disturb what it records. Packing seven integers takes a tenth of a microsecond; turning
them into histograms takes longer and happens after the measured time
(`iamroles_loadtests.measuring.histogram`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

FIELDS = ("case", "due", "sent", "received", "noticed", "lag", "reported")
"""Fields of a record, all 64-bit integers. `case` is the number of the question's case; `due`, `sent`,
`received` (the kernel's stamp, or else `noticed`) and `noticed` (by this process) are nanoseconds of
CLOCK_REALTIME; `lag` is how late this process sent, in nanoseconds, by its own fault; `reported` is a number
out of the answer (see `Right.marker`), -1 without one."""
_RECORD = struct.Struct(f"{len(FIELDS)}q")
_CHUNK = 32_768
"""Records that are allocated at once."""


class Records:
    """Samples in the order of the answers."""

    __slots__ = ("_at", "_chunk", "_full")

    def __init__(self) -> None:
        self._full: list[bytearray] = []
        self._chunk = bytearray(_CHUNK * _RECORD.size)
        self._at = 0

    def add(  # noqa: PLR0917 - called a hundred thousand times a second
        self, case: int, due: int, sent: int, received: int, noticed: int, lag: int, reported: int
    ) -> None:
        at = self._at
        _pack(self._chunk, at, case, due, sent, received, noticed, lag, reported)
        at += _SIZE
        if at == _FULL:
            self._full.append(self._chunk)
            self._chunk = bytearray(_FULL)
            at = 0
        self._at = at

    def __len__(self) -> int:
        return (len(self._full) * _FULL + self._at) // _SIZE

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return _RECORD.iter_unpack(self.take())

    def take(self) -> bytes:
        """All records as native 64-bit integers, `len(FIELDS)` each."""
        return b"".join((*self._full, memoryview(self._chunk)[: self._at]))

    def clear(self) -> None:
        """Forget all, e.g. at the end of a warm-up."""
        self._full.clear()
        self._at = 0


_pack, _SIZE = _RECORD.pack_into, _RECORD.size
_FULL = _CHUNK * _SIZE
