"""Frames between the parent and its members: a head of JSON, and a body of bytes that nobody but the last
reader decodes.

A frame is two lengths (32 bits each, big-endian), the head, the body. There is no limit that a report could
run into, short of `LIMIT`: past that, or where a head is no JSON object with a `say`, the other side talks
nonsense, and that costs the other side its life, nobody else.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_LENGTHS = struct.Struct(">II")
LIMIT = 64 << 20
"""Bytes of a head or a body."""


class ChannelError(Exception):
    """The other side talks nonsense."""


@dataclass(frozen=True, slots=True)
class Message:
    """One frame."""

    say: str
    """Which message it is: the tables in docs/control-plane.md."""
    head: Mapping[str, Any]
    body: bytes = b""

    def encode(self) -> bytes:
        head = json.dumps({"say": self.say, **self.head}, separators=(",", ":")).encode()
        return _LENGTHS.pack(len(head), len(self.body)) + head + self.body

    def number(self, name: str) -> int:
        """An integer of the head.

        Raises:
            ChannelError: it is none.
        """
        value = self.head.get(name)
        if type(value) is not int:
            raise ChannelError(f"{self.say} without the number {name}")
        return value

    def text(self, name: str) -> str:
        """A text of the head.

        Raises:
            ChannelError: it is none.
        """
        value = self.head.get(name)
        if not isinstance(value, str):
            raise ChannelError(f"{self.say} without the text {name}")
        return value

    def table(self, name: str) -> dict[str, Any]:
        """An object of the head.

        Raises:
            ChannelError: it is none.
        """
        value = self.head.get(name)
        if not isinstance(value, dict):
            raise ChannelError(f"{self.say} without the object {name}")
        return value


def message(say: str, piece: bytes = b"", /, **head: Any) -> Message:  # noqa: ANN401 - JSON
    """A message to send."""
    return Message(say, head, piece)


class Frames:
    """Cuts the stream of one channel into messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def receive(self, data: bytes) -> Iterator[Message]:
        """Messages that are whole now.

        Raises:
            ChannelError: the stream makes no sense; it cannot be read any further.
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
        raise ChannelError("a head that is no JSON") from None
    if not isinstance(members, dict) or not isinstance(members.get("say"), str):
        raise ChannelError("a head that says nothing")
    return Message(members.pop("say"), members, body)
