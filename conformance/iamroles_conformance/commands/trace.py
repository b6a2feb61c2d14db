"""`iamroles trace`: a captured SPOP byte stream as a transcript.

Made for the hour when an agent and HAProxy disagree: `tcpdump` or `socat -x` gives bytes, this says what they
mean, and where they stop meaning anything.
"""

from __future__ import annotations

import binascii
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import click

from iamroles_scenarios.base.errors import WireFormatError
from iamroles_scenarios.wire.frames import Frame, FrameType, head_length, read_actions, read_kv, read_messages
from iamroles_scenarios.wire.transcript import FROM_AGENT, TO_AGENT, describe, shorten

_FROM_HAPROXY = {
    FrameType.UNSET,
    FrameType.HAPROXY_HELLO,
    FrameType.HAPROXY_DISCONNECT,
    FrameType.NOTIFY,
}
_PLAUSIBLE = 1 << 24
"""Bytes: what is longer is not a frame, whatever was negotiated."""
_READERS = {
    FrameType.NOTIFY: read_messages,
    FrameType.ACK: read_actions,
    FrameType.HAPROXY_HELLO: read_kv,
    FrameType.AGENT_HELLO: read_kv,
    FrameType.HAPROXY_DISCONNECT: read_kv,
    FrameType.AGENT_DISCONNECT: read_kv,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a trace."""

    offset: int
    """Offset of the frame's length prefix, in bytes from the start of the stream."""
    text: str
    broken: bool = False


def trace_stream(data: bytes, sender: str = "auto", *, reveal: bool = False) -> Iterator[Line]:
    """Decode a stream.

    Args:
        data: bytes of a direction, or of both if whole frames take turns.
        sender: `haproxy`, `agent`, or `auto`: by each frame's type.
        reveal: show credentials as they are; else a hash and a length.
    """
    at = 0
    while at < len(data):
        if len(data) - at < 4:
            yield Line(at, f"!! ends inside a length prefix: {data[at:].hex(' ')}", broken=True)
            return
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 4 + length]
        if not 7 <= length <= _PLAUSIBLE:
            yield Line(at, f"!! length {length}: not SPOP, or out of step; {shorten(data[at:])}", broken=True)
            return
        if len(body) < length:
            yield Line(
                at, f"!! a frame of {length} bytes, {len(body)} are there; {shorten(body)}", broken=True
            )
            return
        yield _frame(body, at, sender, reveal=reveal)
        at += 4 + length


def _frame(body: bytes, at: int, sender: str, *, reveal: bool) -> Line:
    try:
        frame = Frame.decode(body, at + 4)
    except WireFormatError as error:
        return Line(at, f"!! broken frame {error}; {shorten(body)}", broken=True)
    from_haproxy = frame.type in _FROM_HAPROXY
    if sender != "auto":
        from_haproxy = sender == "haproxy"
    arrow = TO_AGENT if from_haproxy else FROM_AGENT
    if (fault := _fault(frame, at + 4, from_haproxy=from_haproxy)) is not None:
        head = f"{frame.name} stream={frame.stream_id} frame={frame.frame_id}"
        return Line(at, f"{arrow} {head} !! {fault}; {shorten(frame.payload)}", broken=True)
    return Line(at, f"{arrow} {describe(frame, reveal=reveal)}")


def _fault(frame: Frame, at: int, *, from_haproxy: bool) -> str | None:
    """Say what is wrong with a frame whose head could be read; offsets count from the stream's start."""
    if frame.type not in list(FrameType):
        return f"at byte {at}: unknown frame type {frame.type}"
    if (frame.type in _FROM_HAPROXY) is not from_haproxy:
        return f"at byte {at}: {frame.name} does not come from {'HAProxy' if from_haproxy else 'an agent'}"
    reader = _READERS.get(FrameType(frame.type))
    if reader is None or not frame.fin:
        return None
    try:
        reader(frame)
    except WireFormatError as error:
        where = "payload" if error.offset - head_length(frame) < len(frame.payload) else "payload's end"
        return f"at byte {at + error.offset} ({where}): {error.why}"
    return None


def from_hex(text: bytes) -> bytes | None:
    """Bytes of a hex dump (`xxd -p`, spaces, colons, `0x`), None if it is invalid."""
    bare = re.sub(rb"0x|[\s:,]", b"", text)
    if not bare or len(bare) % 2 or re.search(rb"[^0-9a-fA-F]", bare):
        return None
    return binascii.unhexlify(bare)


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--from",
    "sender",
    type=click.Choice(["haproxy", "agent", "auto"]),
    default="auto",
    show_default=True,
    help="Who sent these bytes; auto: by each frame's type, for both directions in one stream.",
)
@click.option("--hex", "as_hex", is_flag=True, help="The input is hexadecimal text, e.g. of xxd -p.")
@click.option("--reveal", is_flag=True, help="Show credentials; by default a hash and a length.")
def trace(*, file: BinaryIO, sender: str, as_hex: bool, reveal: bool) -> None:
    """Decode a captured SPOP byte stream, FILE or standard input, into a transcript.

    One line for each frame: offset, `>>` from HAProxy or `<<` from the agent, and its meaning. A broken frame
    is shown with the offset of the fault and why.

    Exit status: 0 if all of it is SPOP, 1 if something is broken, 2 if the input cannot be read.
    """
    data = file.read()
    if as_hex:
        decoded = from_hex(data)
        if decoded is None:
            raise click.UsageError("the input is not hexadecimal text")
        data = decoded
    if not data:
        raise click.UsageError("the input is empty")
    broken = False
    for line in trace_stream(data, sender, reveal=reveal):
        broken = broken or line.broken
        click.echo(f"{line.offset:8} {line.text}")
    sys.exit(1 if broken else 0)
