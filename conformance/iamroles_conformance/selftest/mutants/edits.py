"""Handles on the agent that several mutants pull: its frames in, its frames out, its HELLO.

Each takes a function that edits, and gives the `Override` of a mutant; most stand as a decorator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from iamroles_agent.spop import connection, frames, varint
from iamroles_agent.spop.connection import Connection
from iamroles_agent.spop.frames import FrameBuffer, FrameType, RawFrame
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import Override


def frames_in(edit: Callable[[RawFrame], RawFrame | None]) -> Override:
    """Change each frame as it is cut from the stream (`FrameBuffer.split`); None drops it."""

    @around(FrameBuffer, "split")
    def split(sound: Any, self: FrameBuffer, data: bytes) -> Iterator[RawFrame]:
        yield from (edited for frame in sound(self, data) if (edited := edit(frame)) is not None)

    return split


def frames_out(edit: Callable[[Connection, int, bytes, bytes, int], bytes]) -> Override:
    """Change each frame as it leaves (`Connection.data_to_send`).

    `edit` gets the connection, type, both ids' bytes, payload and flags; it gives whole frames.
    """

    @around(Connection, "data_to_send")
    def data_to_send(sound: Any, self: Connection) -> bytes:
        data, out = sound(self), b""
        while data:
            length, kind = int.from_bytes(data[:4], "big"), data[4]
            flags, end = int.from_bytes(data[5:9], "big"), 4 + length
            after = varint.read(data, varint.read(data, 9, end)[1], end)[1]
            out += edit(self, kind, data[9:after], data[after:end], flags)
            data = data[end:]
        return out

    return data_to_send


def acks_out(edit: Callable[[Connection, bytes, bytes], bytes]) -> Override:
    """Change each ACK as it leaves; `edit` gets the connection, both ids' bytes and the actions."""

    @frames_out
    def each(self: Connection, kind: int, ids: bytes, payload: bytes, flags: int) -> bytes:
        if kind == FrameType.ACK:
            return edit(self, ids, payload)
        return frames.encode(FrameType(kind), ids, payload, flags)

    return each


def actions_out(edit: Callable[[bytes], bytes]) -> Override:
    """Change the actions of each ACK as it leaves."""
    return acks_out(lambda _self, ids, actions: frames.encode(FrameType.ACK, ids, edit(actions)))


def pairs_out(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Override:
    """Change the items of AGENT-HELLO and AGENT-DISCONNECT (`frames.encode_pairs`)."""
    return around(frames, "encode_pairs")(lambda sound, pairs: sound(edit(dict(pairs))))


def pair_out(key: str, value: Any) -> Override:
    """Say another value for one of these items, where it is said at all."""
    return pairs_out(lambda pairs: pairs | {key: value} if key in pairs else pairs)


def pairs_in(edit: Callable[[dict[bytes, Any]], dict[bytes, Any]]) -> Override:
    """Change the items of HELLO and DISCONNECT as they are read (`frames.read_pairs`)."""
    return around(frames, "read_pairs")(lambda sound, frame: edit(sound(frame)))


def hello_text(edit: Callable[[bytes, str], str]) -> Override:
    """Change a text of the HELLO as it is read (`connection._text`); `edit` gets its key and the text."""
    return around(connection, "_text")(lambda sound, pairs, key, absent: edit(key, sound(pairs, key, absent)))
