"""HAProxy's side of SPOP: one connection to an agent, in asyncio (`asker` is for threads).

Frames go whole, byte by byte or many in one segment; answers are read strictly; a transcript has all that
passed.

How a connection ends is three things on the network and one to the protocol: FIN, RST, or an
AGENT-DISCONNECT before either. Only `Connection.receive` tells them apart; checks ask `Connection.ended`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, cast

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import SilenceError, TooSlow, UnreachableError, WireError, WireFormatError
from iamroles_scenarios.wire import frames as wire_frames
from iamroles_scenarios.wire.codec import Typed, Value
from iamroles_scenarios.wire.codec import address as ip
from iamroles_scenarios.wire.frames import Frame, FrameType, as_hello, encode_message, hello, notify, read_kv
from iamroles_scenarios.wire.transcript import FROM_AGENT, NOTE, TO_AGENT, Transcript, shorten

OMIT = object()
"""As a value of `check` or `context`: leave this argument out of the message."""
MAX_ANSWER = 1 << 20
"""No sane frame is longer, whatever was negotiated."""
MAX_UNREAD = 4 << 20
"""Bytes kept unread before reading pauses."""
_TIMEOUT = 2
"""The status code of SPOE.txt section 3.3 for "a timeout occurred"."""
_SENDING = 4.0
"""Seconds in which the judge must have sent a HELLO; agents wait 5 s for it (6.1)."""
MAX_FRAMES = 2000
"""Frames that `ended` reads before it calls them a flood."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The agent's side of the connection is over."""

    how: str
    """`FIN` or `RST`."""


class _Pipe(asyncio.Protocol):
    """Keeps what arrives, and in which pieces."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.pieces: list[int] = []
        self.ended: Ended | None = None
        self.arrived = asyncio.Event()
        self.hear: Callable[[], None] = self.arrived.set
        self.writable = asyncio.Event()
        self.writable.set()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > MAX_UNREAD:  # an agent that floods fills its own socket, not our memory
            self.transport.pause_reading()
        self.pieces.append(len(data))
        self.hear()

    def eof_received(self) -> bool:
        self.ended = self.ended or Ended("FIN")
        self.hear()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self.ended or Ended("RST" if exc else "FIN")
        self.hear()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


class Connection:
    """One connection to an agent. Use `open`."""

    def __init__(
        self, transport: asyncio.Transport, pipe: _Pipe, transcript: Transcript, timeout: float
    ) -> None:
        self._transport = transport
        self._pipe = pipe
        self.transcript = transcript
        self._since = time.monotonic()
        """When it was opened; 0.0 once something was sent."""
        self.timeout = timeout
        """Seconds that `receive` waits by default."""

    @classmethod
    async def open(cls, address: str, *, within: float = 5.0) -> Self:
        """Connect to an agent.

        Args:
            address: `host:port` or `unix:/path`.
            within: seconds to connect, and the default for each answer.

        Raises:
            UnreachableError: no connection in time.
        """
        loop = asyncio.get_running_loop()
        transcript = Transcript()
        try:
            async with asyncio.timeout(within):
                if address.startswith("unix:"):
                    transport, pipe = await loop.create_unix_connection(_Pipe, address.removeprefix("unix:"))
                else:
                    host, _, port = address.rpartition(":")
                    transport, pipe = await loop.create_connection(_Pipe, host.strip("[]"), int(port))
        except (OSError, TimeoutError) as error:
            why = str(error) or f"no answer in {within:g} s"
            raise UnreachableError(f"cannot connect to the agent at {address}: {why}", transcript) from error
        transcript.add(NOTE, f"connected to {address}")
        recording.connected(transcript)
        return cls(transport, pipe, transcript, within)

    @property
    def name(self) -> object:
        """Return the address of its own end: host and port, or text."""
        return self._transport.get_extra_info("sockname")

    @property
    def port(self) -> int:
        """Return the port of its own end; 0 for a Unix socket."""
        return int(self.name[1]) if isinstance(self.name, tuple) else 0

    # --- sending -------------------------------------------------------------------------------------------

    async def send(self, *frames: Frame | bytes, piece: int | None = None, gap: float = 0.0003) -> None:
        """Send frames or raw bytes, all in one segment unless told otherwise.

        Args:
            frames: frames, or bytes as they are (length prefix and all).
            piece: send in pieces of so many bytes, each in a segment of its own.
            gap: seconds between pieces: enough for an agent to wake and read each.

        Raises:
            TooSlow: the judge took so long that an agent may have given the connection up.
        """
        began, self._since = self._since or time.monotonic(), 0.0
        raw = b"".join(frame if isinstance(frame, bytes) else frame.encode() for frame in frames)
        if piece is None:
            self.write(raw)
        else:
            self.transcript.add(TO_AGENT, raw, f" [in pieces of {piece}]")
            await asyncio.to_thread(self._send_pieces, raw, piece, gap)
        late = time.monotonic() - began - (gap * len(raw[::piece]) if piece else 0.0)
        if late > _SENDING and raw[4:5] == bytes([FrameType.HAPROXY_HELLO]):
            raise TooSlow(f"the judge took {late:.1f} s, less pauses, to send a HELLO of {len(raw)} bytes")
        if not self._pipe.writable.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._pipe.writable.wait(), self.timeout)

    def _send_pieces(self, raw: bytes, piece: int, gap: float) -> None:
        """Send pieces from a thread: if each took a turn of a busy loop, an agent could give a HELLO up."""
        with suppress(OSError), self._transport.get_extra_info("socket").dup() as sock:
            sock.settimeout(_SENDING)
            while raw and not self._transport.is_closing():
                raw = raw[sock.send(raw[:piece]) :]
                time.sleep(gap)
        if raw:
            self.transcript.add(NOTE, f"{len(raw)} bytes not sent")

    def write(self, raw: bytes) -> None:
        """Send bytes at once, and do not wait until the agent takes them."""
        self.transcript.add(TO_AGENT, raw)
        if self._transport.is_closing():
            self.transcript.add(NOTE, f"closed by the agent, {len(raw)} bytes not sent")
        else:
            self._transport.write(raw)

    def keep_only(self, lines: int) -> None:
        """Shorten the transcript: for those who say much on one connection."""
        self.transcript.lines = deque(self.transcript.lines, maxlen=lines)

    def half_close(self) -> None:
        """Send FIN; answers may still come."""
        self.transcript.add(TO_AGENT, "(FIN, reading on)")
        if self._transport.can_write_eof() and not self._transport.is_closing():
            with suppress(OSError):  # the agent was faster and the connection is gone
                self._transport.write_eof()

    def reset(self) -> None:
        """End with RST, as a killed peer does."""
        self.transcript.add(TO_AGENT, "(RST)")
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def close(self) -> None:
        self._transport.close()

    # --- receiving -----------------------------------------------------------------------------------------

    def listen(self, hear: Callable[[], None]) -> None:
        """Call this whenever there may be something to `take`, in place of `receive`."""
        self._pipe.hear = hear
        hear()

    def take(self) -> Frame | Ended | None:
        """Return the next frame, or how the connection ended; None: neither is here yet."""
        answer = self._next() or self._pipe.ended
        if isinstance(answer, Ended):
            left = f", {len(self._pipe.buffer)} bytes of a frame before it" if self._pipe.buffer else ""
            self.transcript.add(FROM_AGENT, f"({answer.how}{left})")
        elif answer is not None:
            self.transcript.add(FROM_AGENT, answer)
        return answer

    async def receive(self, within: float | None = None) -> Frame | Ended:
        """The next frame, or how the connection ended.

        Raises:
            SilenceError: neither came in time.
            WireError: bytes that do not form a frame.
        """
        seconds = self.timeout if within is None else within
        began = asyncio.get_running_loop().time()
        deadline = began + seconds
        while (answer := self.take()) is None:
            self._pipe.arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._pipe.arrived.wait()
            except TimeoutError:
                self.transcript.add(NOTE, f"nothing for {seconds:g} s")
                raise SilenceError(f"the agent sent nothing for {seconds:g} s", self.transcript) from None
        if isinstance(answer, Frame):
            recording.waited("a frame", asyncio.get_running_loop().time() - began, seconds)
        return answer

    def _next(self) -> Frame | None:
        buffer = self._pipe.buffer
        if len(buffer) < 4:
            return None
        length = int.from_bytes(buffer[:4], "big")
        if not 7 <= length <= MAX_ANSWER:
            self.transcript.add(FROM_AGENT, f"RAW {shorten(bytes(buffer))}")
            raise WireError(f"the agent sent a frame length of {length}: not SPOP", self.transcript)
        if len(buffer) < 4 + length:
            return None
        body = bytes(buffer[4 : 4 + length])
        del buffer[: 4 + length]
        if len(buffer) <= MAX_UNREAD and not self._transport.is_reading():
            self._transport.resume_reading()
        try:
            return Frame.decode(body)
        except WireFormatError as error:
            self.transcript.add(FROM_AGENT, f"BROKEN FRAME {error}; {shorten(body)}")
            raise WireError(f"the agent sent a broken frame: {error}", self.transcript) from error

    async def expect(self, kind: FrameType, within: float | None = None) -> Frame:
        """The next frame, which must be of a type.

        Raises:
            WireError: another frame, an end, or silence.
            SilenceError: the agent's patience ended first: that is the host's slowness, or the agent's.
        """
        answer = await self.receive(within)
        if isinstance(answer, Ended):
            raise WireError(
                f"expected {kind.name}, but the agent closed the connection ({answer.how})", self.transcript
            )
        if answer.type == FrameType.AGENT_DISCONNECT and kind != answer.type and _gave_up(answer):
            raise SilenceError(
                f"expected {kind.name}, got {answer.name} with status 2, timeout", self.transcript
            )
        if answer.type != kind:
            raise WireError(f"expected {kind.name}, got {answer.name}", self.transcript)
        return answer

    async def ended(self, within: float | None = None) -> list[Frame]:
        """Read to the end of the connection, however it ends, and give the frames before it.

        Raises:
            SilenceError: it did not end in time.
        """
        seconds = self.timeout if within is None else within
        began = asyncio.get_running_loop().time()
        frames: list[Frame] = []
        try:
            async with asyncio.timeout(seconds):
                while isinstance(answer := await self.receive(seconds * 2), Frame):
                    frames.append(answer)
                    if len(frames) > MAX_FRAMES:
                        raise WireError(f"the agent floods: over {MAX_FRAMES} frames", self.transcript)
        except TimeoutError:
            self.transcript.add(NOTE, f"still open after {seconds:g} s")
            raise SilenceError(
                f"the agent did not close the connection within {seconds:g} s", self.transcript
            ) from None
        recording.waited("the connection's end", asyncio.get_running_loop().time() - began, seconds)
        return frames

    @property
    def pieces(self) -> list[int]:
        """Sizes of the reads so far: on one machine, a single write of a small frame is never split."""
        return self._pipe.pieces

    # --- conversations -------------------------------------------------------------------------------------

    async def hello(self, items: Mapping[str, Value | Typed] | None = None) -> dict[str, Value]:
        """Shake hands and give what the AGENT-HELLO said.

        Args:
            items: the HELLO's items; by default those of HAProxy 3.
        """
        await self.send(hello(None if items is None else as_hello(items)))
        frame = await self.expect(FrameType.AGENT_HELLO)
        return {name: value.value for name, value in read_kv(frame)}

    async def ask(self, frame: Frame, within: float | None = None) -> Frame:
        """Send a NOTIFY and give its ACK; one question at a time.

        Raises:
            WireError: anything but an ACK with the same ids and FIN.
        """
        await self.send(frame)
        ack = await self.expect(FrameType.ACK, within)
        if (ack.stream_id, ack.frame_id) != (frame.stream_id, frame.frame_id):
            raise WireError(
                f"the ACK answers {ack.stream_id}/{ack.frame_id}, "
                f"the NOTIFY was {frame.stream_id}/{frame.frame_id}",
                self.transcript,
            )
        if not ack.flags & wire_frames.Flags.FIN:
            raise WireError("the ACK has no FIN", self.transcript)
        return ack


def _gave_up(bye: Frame) -> bool:
    """Return whether an AGENT-DISCONNECT says that the agent would not wait any longer (status 2)."""
    with contextlib.suppress(WireFormatError):
        return any(name == "status-code" and item.value == _TIMEOUT for name, item in read_kv(bye))
    return False


# --- questions in the terms of SPEC.md section 2 -----------------------------------------------------------

_CHECK: dict[str, Any] = {"authorization": None, "authorization-count": 0, "role": None, "method": "GET"}
_CHECK |= {"host": "localhost", "path": "/", "src": ip("127.0.0.1")}


def check_arguments(check: Mapping[str, Any]) -> dict[str, Value | Typed]:
    """Fill an `iam-check` up to SPEC.md section 2: as HAProxy sends it for such a request.

    Args:
        check: any of the section's arguments; `src` as text or address; `OMIT` leaves one out. Defaults: no
            credential, GET / from 127.0.0.1.
    """
    count = int(check.get("authorization") not in (None, OMIT))
    merged = {**_CHECK, "authorization-count": count, **check}
    if isinstance(merged["src"], str):
        merged["src"] = ip(merged["src"])
    return {name: value for name, value in merged.items() if value is not OMIT}


def context_arguments(context: Mapping[str, Any] | None = None) -> dict[str, Value | Typed]:
    """Fill an `iam-context` up to SPEC.md section 2."""
    merged: dict[str, Any] = {"request-id": "wire-1", "src-port": 40000, "stream": 1} | dict(context or {})
    return {name: value for name, value in merged.items() if value is not OMIT}


_CONTEXT = encode_message("iam-context", context_arguments())
"""The first message of most questions."""


def question(
    check: Mapping[str, Any],
    context: Mapping[str, Any] | None = None,
    *,
    stream_id: int = 1,
    frame_id: int = 1,
) -> Frame:
    """The NOTIFY that HAProxy sends for the group `iam-check-group`."""
    return notify(
        stream_id,
        frame_id,
        encode_message("iam-context", context_arguments(context)) if context else _CONTEXT,
        encode_message("iam-check", check_arguments(check)),
    )
