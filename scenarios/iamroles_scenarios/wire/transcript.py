"""A conversation over SPOP, readable: `>> NOTIFY …` from HAProxy's side, `<< ACK …` from the agent's.

Credentials are shown as a hash and a length: a failed check is pasted into tickets.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from dataclasses import dataclass, field

from iamroles_scenarios.base.errors import WireFormatError
from iamroles_scenarios.wire import frames
from iamroles_scenarios.wire.codec import Typed
from iamroles_scenarios.wire.frames import Flags, Frame, FrameType, read_actions, read_kv, read_messages

TO_AGENT = ">>"
FROM_AGENT = "<<"
NOTE = "--"
_SECRET = "authorization"  # noqa: S105 - the argument's name


@dataclass(slots=True)
class Transcript:
    """Lines with milliseconds since the connection was opened; the last two hundred.

    Lines are kept as what passed and written out only when read: a fuzzer never pays for them.
    """

    lines: deque[tuple[float, str, str | bytes | Frame, str]] = field(
        default_factory=lambda: deque(maxlen=200)
    )
    started: float = field(default_factory=time.monotonic)

    def add(self, direction: str, what: str | bytes | Frame, remark: str = "") -> None:
        """Note what passed: `TO_AGENT`, `FROM_AGENT` or `NOTE`."""
        self.lines.append((time.monotonic() - self.started, direction, what, remark))

    def copy(self) -> Transcript:
        return Transcript(self.lines.copy(), self.started)

    def __str__(self) -> str:
        return "\n".join(
            f"{at * 1000:9.1f} ms {direction} {_shown(what)}{remark}"
            for at, direction, what, remark in self.lines
        )


def _shown(what: str | bytes | Frame) -> str:
    match what:
        case str():
            return what
        case bytes():
            return describe_bytes(what)
    return describe(what)


def describe(frame: Frame, *, reveal: bool = False) -> str:
    """One line: type, ids, flags, and the payload as far as it decodes.

    Args:
        frame: any frame; a broken payload is shown with the offset and why.
        reveal: show credentials as they are.
    """
    head = f"{frame.name} stream={frame.stream_id} frame={frame.frame_id} {_flags(frame.flags)}"
    try:
        payload = _payload(frame, reveal=reveal)
    except WireFormatError as error:
        payload = f"BROKEN {error}; payload {shorten(frame.payload)}"
    return f"{head} {payload}".rstrip()


def describe_bytes(raw: bytes, *, reveal: bool = False) -> str:
    """One or more whole frames in a write, or hexadecimal if they do not form frames."""
    parts, rest = [], raw
    while len(rest) >= 4 and 7 <= int.from_bytes(rest[:4], "big") <= len(rest) - 4:
        length = int.from_bytes(rest[:4], "big")
        try:
            parts.append(describe(Frame.decode(rest[4 : 4 + length]), reveal=reveal))
        except WireFormatError as error:
            parts.append(f"BROKEN FRAME {error}; {shorten(rest[: 4 + length])}")
        rest = rest[4 + length :]
    if rest:
        parts.append(f"RAW {shorten(rest)}")
    return " | ".join(parts)


def shorten(raw: bytes, limit: int = 48) -> str:
    """Hexadecimal, cut."""
    shown = raw[:limit].hex(" ")
    return shown if len(raw) <= limit else f"{shown} … ({len(raw)} bytes)"


def _flags(flags: int) -> str:
    names = [flag.name or "" for flag in Flags if flags & flag]
    if reserved := flags & ~3:
        names.append(f"RESERVED-{reserved:#x}")
    return "+".join(names) or "no-flags"


def _payload(frame: Frame, *, reveal: bool) -> str:
    match frame.type:
        case FrameType.NOTIFY:
            return " ".join(
                f"{message.name}({' '.join(_argument(*pair, reveal=reveal) for pair in message.arguments)})"
                for message in read_messages(frame)
            )
        case FrameType.ACK:
            return " ".join(map(str, read_actions(frame)))
        case FrameType.HAPROXY_DISCONNECT | FrameType.AGENT_DISCONNECT:
            return " ".join(_status(name, value) for name, value in read_kv(frame))
        case FrameType.HAPROXY_HELLO | FrameType.AGENT_HELLO:
            return " ".join(f"{name}={value}" for name, value in read_kv(frame))
    return shorten(frame.payload)


def _status(name: str, value: Typed) -> str:
    if name == "status-code" and isinstance(value.value, int):
        return f"{name}={value} ({frames.STATUS.get(value.value, 'not assigned')})"
    return f"{name}={value}"


def _argument(name: str, value: Typed, *, reveal: bool) -> str:
    if name == _SECRET and not reveal and isinstance(value.value, str | bytes):
        raw = value.value.encode() if isinstance(value.value, str) else value.value
        return f"{name}=<{len(raw)} bytes, sha256:{hashlib.sha256(raw).hexdigest()[:16]}>"
    return f"{name}={value}"
