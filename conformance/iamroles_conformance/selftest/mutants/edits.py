"""Handles on the agent that several mutants pull: its frames in, its frames out, its HELLO.

They override names where the agent looks them up, so each says which one that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from iamroles_agent.spop import connection, frames, varint
from iamroles_agent.spop.frames import FrameBuffer, FrameType, RawFrame


def frames_in(edit: Callable[[RawFrame], RawFrame | None]) -> None:
    """Change each frame as it is cut from the stream (`FrameBuffer.split`); None drops it."""
    sound = FrameBuffer.split

    def split(self: FrameBuffer, data: bytes) -> Iterator[RawFrame]:
        for frame in sound(self, data):
            edited = edit(frame)
            if edited is not None:
                yield edited

    setattr(FrameBuffer, "split", split)  # noqa: B010 - assigning a method is what mypy forbids


def frames_out(edit: Callable[[connection.Connection, int, bytes, bytes, int], bytes]) -> None:
    """Change each frame as it leaves (`Connection.data_to_send`).

    `edit` gets the connection, type, both ids' bytes, payload and flags; it gives whole frames.
    """
    sound = connection.Connection.data_to_send

    def data_to_send(self: connection.Connection) -> bytes:
        data, out = sound(self), b""
        while data:
            length, kind = int.from_bytes(data[:4], "big"), data[4]
            flags, end = int.from_bytes(data[5:9], "big"), 4 + length
            after = varint.read(data, varint.read(data, 9, end)[1], end)[1]
            out += edit(self, kind, data[9:after], data[after:end], flags)
            data = data[end:]
        return out

    setattr(connection.Connection, "data_to_send", data_to_send)  # noqa: B010


def acks_out(edit: Callable[[connection.Connection, bytes, bytes], bytes]) -> None:
    """Change each ACK as it leaves; `edit` gets the connection, both ids' bytes and the actions."""

    def each(self: connection.Connection, kind: int, ids: bytes, payload: bytes, flags: int) -> bytes:
        if kind == FrameType.ACK:
            return edit(self, ids, payload)
        return frames.encode(FrameType(kind), ids, payload, flags)

    frames_out(each)


def actions_out(edit: Callable[[bytes], bytes]) -> None:
    """Change the actions of each ACK as it leaves."""
    acks_out(lambda _self, ids, actions: frames.encode(FrameType.ACK, ids, edit(actions)))


def pairs_out(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the items of AGENT-HELLO and AGENT-DISCONNECT (`frames.encode_pairs`)."""
    sound = frames.encode_pairs
    setattr(frames, "encode_pairs", lambda pairs: sound(edit(dict(pairs))))  # noqa: B010


def pairs_in(edit: Callable[[dict[bytes, Any]], dict[bytes, Any]]) -> None:
    """Change the items of HELLO and DISCONNECT as they are read (`frames.read_pairs`)."""
    sound = frames.read_pairs
    setattr(frames, "read_pairs", lambda frame: edit(sound(frame)))  # noqa: B010


def hello_text(edit: Callable[[bytes, str], str]) -> None:
    """Change a text of the HELLO as it is read (`connection._text`); `edit` gets its key and the text."""
    sound = connection._text

    def text(pairs: Any, key: bytes, absent: Any) -> str:
        return edit(key, sound(pairs, key, absent))

    setattr(connection, "_text", text)  # noqa: B010
