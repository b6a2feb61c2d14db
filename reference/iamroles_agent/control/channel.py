"""Frames between the parent and its members: a head of JSON, and a body of bytes that only the last reader
decodes.

A frame is two lengths (32 bits each, big-endian), the head, the body. A frame above `LIMIT`, or a head that
is no JSON object with a `say`, is nonsense: the parent kills the member that sent it, and no other.

Parts of what is in force travel as `piece` messages, followed by the message that describes them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from iamroles_agent.control.document import Edits, Part

_LENGTHS = struct.Struct(">II")
LIMIT = 64 << 20
"""Bytes of a head or a body."""
_Value = TypeVar("_Value")


class ChannelError(Exception):
    """The other side talks nonsense."""


@dataclass(frozen=True, slots=True)
class Message:
    """One frame."""

    say: str
    """The kind of message: see the tables in docs/control-plane.md."""
    head: Mapping[str, Any]
    body: bytes = b""

    def encode(self) -> bytes:
        head = json.dumps({"say": self.say, **self.head}, separators=(",", ":")).encode()
        return _LENGTHS.pack(len(head), len(self.body)) + head + self.body

    def number(self, name: str) -> int:
        """An integer of the head.

        Raises:
            ChannelError: it is missing. As in `at`, `text`, `table`.
        """
        return self._member(name, int, "number")

    def at(self) -> float:
        return self._member("at", float, "time")

    def text(self, name: str) -> str:
        return self._member(name, str, "text")

    def table(self, name: str) -> dict[str, Any]:
        return self._member(name, dict, "object")

    def _member(self, name: str, kind: type[_Value], noun: str) -> _Value:
        value = self.head.get(name)
        if type(value) is not kind:
            raise ChannelError(f"{self.say} without the {noun} {name}")
        return value


def message(say: str, piece: bytes = b"", /, **head: Any) -> Message:  # noqa: ANN401 - JSON
    """A message to send."""
    return Message(say, head, piece)


def with_parts(say: str, edits: Edits, /, **head: Any) -> Iterator[Message]:  # noqa: ANN401 - JSON
    """A message and the pieces of its `parts`, in the order in which they must be sent."""
    parts: dict[str, Any] = {}
    for name, part in edits.items():
        parts[name] = None
        if part is not None:
            yield from (message("piece", piece) for piece in part.pieces)
            parts[name] = {"digest": part.digest, "pieces": len(part.pieces), "stamp": part.stamp}
    yield message(say, parts=parts, **head)


def read_parts(said: Message, pieces: list[bytes]) -> Edits:
    """The edits of a message that `with_parts` made; takes the pieces that came before it.

    Raises:
        ChannelError: they do not fit.
    """
    edits: dict[str, Part | None] = {}
    start = 0
    for name, about in said.table("parts").items():
        match about:
            case None:
                edits[name] = None
            case {"pieces": int(count), "digest": str(digest), "stamp": float(stamp)} if count >= 0:
                held, start = pieces[start : start + count], start + count
                edits[name] = Part.of(held, digest=digest, stamp=stamp)
            case _:
                raise ChannelError("a part without pieces, digest or stamp")
    if start != len(pieces):
        raise ChannelError(f"{start} pieces are described, {len(pieces)} were sent")
    pieces.clear()
    return edits


class Frames:
    """Cuts a channel's stream into messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def receive(self, data: bytes) -> Iterator[Message]:
        """Take bytes; give the messages that are whole now.

        Raises:
            ChannelError: the stream makes no sense and cannot be read further.
        """
        held = self._held
        held += data
        start = 0
        try:
            while len(held) - start >= _LENGTHS.size:
                head, body = _LENGTHS.unpack_from(held, start)
                if head > LIMIT or body > LIMIT:
                    raise ChannelError(f"a frame of {head} and {body} bytes")
                begin = start + _LENGTHS.size
                middle, end = begin + head, begin + head + body
                if len(held) < end:
                    break
                yield _read(bytes(held[begin:middle]), bytes(held[middle:end]))
                start = end
        finally:
            del held[:start]


def _read(head: bytes, body: bytes) -> Message:
    try:
        members = json.loads(head)
    except (ValueError, RecursionError):
        raise ChannelError("a head that is not JSON") from None
    if not isinstance(members, dict) or not isinstance(members.get("say"), str):
        raise ChannelError("a head that says nothing")
    return Message(members.pop("say"), members, body)
