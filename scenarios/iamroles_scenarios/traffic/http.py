"""HTTP/1.1 on one connection: one question at a time, the answer read strictly.

An answer ends where its head says: by `Content-Length`, by chunks, or with the connection (RFC 9112 section
6.3). What contradicts itself, and bytes that nobody asked for, are faults: on a shared proxy they are how one
client gets the answer of another. Heads repeat, so what one means is remembered by its bytes.
"""

from __future__ import annotations

import ssl
from typing import NamedTuple

from iamroles_scenarios.traffic.clients import Address, Client, Owner
from iamroles_scenarios.traffic.polling import now
from iamroles_scenarios.traffic.questions import Asked, Question

_HEAD_LIMIT = 65_536
_KEPT = 65_536
"""Bytes of a body that are kept for judging; the rest of a long stream is counted and dropped."""
_MEMORY = 512
_TIMED_OUT = (b"HTTP/1.1 408", b"HTTP/1.0 408")
"""A server may say so on a connection that it closes for want of a request (RFC 9110 section 15.5.9)."""
CHUNKED, UNTIL_CLOSE = -1, -2
"""Lengths that are not known ahead."""


class AnswerError(ValueError):
    """An answer that is not HTTP/1.1."""


class Head(NamedTuple):
    """The content of a head."""

    status: int
    length: int
    """Bytes of the body, or CHUNKED, or UNTIL_CLOSE."""
    close: bool
    """The connection ends after this answer."""


def read_head(head: bytes) -> Head:
    """Read status line and fields, without the empty line at the end (RFC 9112 sections 4 to 6).

    Raises:
        AnswerError: not HTTP/1.x, or its length is contradictory.
    """
    line, *fields = head.split(b"\r\n")
    version, _, rest = line.partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit() or rest[3:4] not in (b" ", b""):
        raise AnswerError(f"not an HTTP/1.1 status line: {line[:80]!r}")
    status = int(rest[:3])
    lengths: set[bytes] = set()
    codings = options = b""
    for field in fields:
        name, colon, value = field.partition(b":")
        if not colon or not name or name != name.strip():
            raise AnswerError(f"not a header field: {field[:80]!r}")
        match name.lower():
            case b"content-length":
                lengths.update(part.strip() for part in value.split(b","))
            case b"transfer-encoding":
                codings += b"," + value.lower()
            case b"connection":
                options += b"," + value.lower()
    words = {word.strip() for word in options.split(b",")}
    close = b"close" in words or (version == b"HTTP/1.0" and b"keep-alive" not in words)
    if status < 200 or status in (204, 304):
        return Head(status, 0, close)
    if codings:
        if codings.split(b",")[-1].strip() != b"chunked":
            return Head(status, UNTIL_CLOSE, True)
        return Head(status, CHUNKED, close or bool(lengths))
    if not lengths:
        return Head(status, UNTIL_CLOSE, True)
    if len(lengths) > 1 or not (length := lengths.pop()).isdigit():
        raise AnswerError("contradictory Content-Length")
    return Head(status, int(length), close)


class Reader:
    """One answer from its pieces."""

    def __init__(self, *, bodiless: bool = False) -> None:
        self._bodiless = bodiless
        self._raw = b""
        self._left = 0
        self._trailer = False
        self.head: Head | None = None
        self.text = b""
        """Head and body, without the framing of chunks; of a long body its begin."""

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; returns what follows the answer once it is whole, None while it is not.

        Raises:
            AnswerError: this is no HTTP/1.1 answer.
        """
        self._raw += data
        while self.head is None:
            end = self._raw.find(b"\r\n\r\n")
            if end < 0:
                if len(self._raw) > _HEAD_LIMIT:
                    raise AnswerError("a head without an end")
                return None
            head = read_head(self._raw[:end])
            text, self._raw = self._raw[: end + 4], self._raw[end + 4 :]
            if head.status >= 200 or head.status == 101:
                self.head, self.text = head, text
                self._left = 0 if self._bodiless else head.length
        if self.head.status == 101 or self._left == 0:
            return self._raw
        if self._left == UNTIL_CLOSE:
            self._keep(self._raw)
            self._raw = b""
            return None
        return self._chunks() if self.head.length == CHUNKED else self._counted()

    @property
    def ends_with_connection(self) -> bool:
        """The end of the connection is the end of this answer."""
        return self.head is not None and self._left == UNTIL_CLOSE

    def _counted(self) -> bytes | None:
        piece, self._raw = self._raw[: self._left], self._raw[self._left :]
        self._keep(piece)
        self._left -= len(piece)
        return None if self._left else self._raw

    def _chunks(self) -> bytes | None:
        """Decode what is whole (RFC 9112 section 7.1). `_left` is CHUNKED before a size, else the bytes of a
        chunk and its line end that are still to come."""
        while True:
            if self._left > 0:
                piece, self._raw = self._raw[: self._left], self._raw[self._left :]
                content = max(0, self._left - 2)
                self._keep(piece[:content])
                self._left -= len(piece)
                if self._left:
                    return None
                self._left = CHUNKED
            line, end, rest = self._raw.partition(b"\r\n")
            if not end:
                if len(line) > 4096:
                    raise AnswerError("a chunk size without an end")
                return None
            self._raw = rest
            if self._trailer:
                if not line:
                    return self._raw
                continue
            try:
                size = int(line.partition(b";")[0].strip(), 16)
            except ValueError:
                raise AnswerError(f"not a chunk size: {line[:20]!r}") from None
            if size:
                self._left = size + 2
            else:
                self._trailer = True

    def _keep(self, piece: bytes) -> None:
        if len(self.text) < _KEPT:
            self.text += piece[: _KEPT - len(self.text)]


class HttpClient(Client):
    """A keep-alive connection to a proxy or server.

    Args:
        loop: whose client this is.
        address: where to.
        tls: speak TLS by this context.
        fresh: one connection for each request.
        again: nanoseconds in which to do as clients must (RFC 9112 section 9.3.1): a server may close an idle
            connection at any time, so a request that met such an end within them, before any byte of an
            answer, is sent once more on a new one. What is cut off later was being worked on, and is lost.
    """

    def __init__(
        self,
        loop: Owner,
        address: Address,
        *,
        tls: ssl.SSLContext | None = None,
        fresh: bool = False,
        again: int = 0,
    ) -> None:
        super().__init__(loop, address, tls=tls)
        self._fresh, self._again = fresh, again
        self._used = False
        """True once this connection has had an answer."""
        self._asked: Asked | None = None
        self._reader: Reader | None = None

    @property
    def busy(self) -> bool:
        return self._asked is not None and not self._asked.question.endless

    def overdue(self, before: int) -> bool:
        return self.busy and self._asked is not None and self._asked.sent < before

    def ask(self, due: int, question: Question) -> None:
        """Send a request; without a connection, connect first, at the request's cost."""
        self._asked = asked = Asked(question, due)
        asked.send(now(), self.free_at)
        if self.ready:
            self.send(question.payload)
        else:
            self.connect()

    def held(self) -> tuple[Question, int, bytes] | None:
        """The stream it holds, if any: question, status and begin of the answer."""
        asked, reader = self._asked, self._reader
        if asked is None or not asked.question.endless:
            return None
        head = None if reader is None else reader.head
        return asked.question, 0 if head is None else head.status, b"" if reader is None else reader.text

    def opened(self) -> None:
        self._used = False
        if self._asked is not None:
            self.send(self._asked.question.payload)
        else:
            self.loop.idle_again(self)

    def feed(self, data: bytes, received: int, noticed: int) -> None:
        asked = self._asked
        if asked is None and data.startswith(_TIMED_OUT):
            self.lost("the server closed the connection")
            return
        if asked is None:
            self.loop.stray(f"bytes that nobody asked for: {data[:60]!r}")
            self.close()
            return
        asked.received, asked.noticed = received, noticed
        if self._reader is None:
            end = data.find(b"\r\n\r\n")
            head = _heads.get(data[:end])
            if head is not None and len(data) == end + 4 + head.length and not asked.question.bodiless:
                self._done(asked, head, data)
                return
            self._reader = Reader(bodiless=asked.question.bodiless)
        try:
            rest = self._reader.feed(data)
        except AnswerError as fault:
            self.lost(str(fault))
            return
        if rest is None:
            return
        head, text = self._reader.head, self._reader.text
        assert head is not None  # noqa: S101 - the answer is whole
        if head.length >= 0 and not head.close:
            if len(_heads) >= _MEMORY:
                _heads.clear()
            _heads[text[: text.find(b"\r\n\r\n")]] = head
        if rest:
            self.loop.stray(f"bytes that nobody asked for: {rest[:60]!r}")
            self.close()
        self._done(asked, head, text)

    def _done(self, asked: Asked, head: Head, text: bytes) -> None:
        self._asked = self._reader = None
        self._used = True
        self.free_at = asked.received
        if head.close or self._fresh:
            self.close()
        self.loop.answered(self, asked, head.status, text)

    def failed(self, why: str) -> None:
        """Count the question as a fault, unless the connection's end was the answer's."""
        asked, reader = self._asked, self._reader
        if asked and reader is None and self._used and not asked.again and now() - asked.sent < self._again:
            asked.again = True
            self.connect()
            return
        self._asked = self._reader = None
        self.free_at = now()
        if asked is None:
            self.loop.broke(self, None, why)
        elif reader is not None and reader.head is not None and reader.ends_with_connection:
            asked.received = asked.noticed = self.free_at
            self.loop.answered(self, asked, reader.head.status, reader.text)
        else:
            self.loop.broke(self, asked, why)


_heads: dict[bytes, Head] = {}
"""Heads of answers with a known length that leave the connection open."""
