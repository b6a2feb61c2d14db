"""The server's side of a WebSocket (RFC 6455) that echoes, without I/O."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_MESSAGE = 1 << 20
_CONTINUATION, _CLOSE, _PING, _PONG = 0x0, 0x8, 0x9, 0xA


def accept(key: str, headers: Mapping[str, str]) -> bytes:
    """The 101 response to a handshake with this `Sec-WebSocket-Key` (section 4.2.2)."""
    digest = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {digest}\r\n{more}\r\n"
    ).encode()


def frame(opcode: int, payload: bytes) -> bytes:
    """An unmasked final frame (section 5.2)."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
    return head + payload


class Echo:
    """Bytes of the client in, bytes for the client out."""

    def __init__(self) -> None:
        self.closed = False
        self._buffer = b""
        self._message = b""
        self._opcode = 0

    def feed(self, data: bytes) -> bytes:
        """What to send in answer; look at `closed` afterwards."""
        self._buffer += data
        out = []
        while not self.closed and (taken := self._take()) is not None:
            out.append(self._handle(*taken))
        return b"".join(out)

    def _take(self) -> tuple[bool, int, bytes] | None:
        """One whole frame from the buffer: final, opcode, unmasked payload."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1] & 0x7F, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(buffer) < 2 + width:
                return None
            size, start = int.from_bytes(buffer[2 : 2 + width], "big"), 2 + width
        if not buffer[1] & 0x80 or size > _MAX_MESSAGE:  # section 5.1: a client must mask
            return True, -1, b""
        end = start + 4 + size
        if len(buffer) < end:
            return None
        mask, payload, self._buffer = buffer[start : start + 4], buffer[start + 4 : end], buffer[end:]
        pad = (mask * (size // 4 + 1))[:size]
        plain = (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
        return bool(buffer[0] & 0x80), buffer[0] & 0x0F, plain

    def _handle(self, final: bool, opcode: int, payload: bytes) -> bytes:
        if opcode == -1:
            self.closed = True
            return frame(_CLOSE, struct.pack("!H", 1002))
        if opcode == _CLOSE:
            self.closed = True
            return frame(_CLOSE, payload[:2])
        if opcode == _PING:
            return frame(_PONG, payload)
        if opcode == _PONG:
            return b""
        if opcode != _CONTINUATION:
            self._opcode, self._message = opcode, b""
        self._message += payload
        if len(self._message) > _MAX_MESSAGE:
            self.closed = True
            return frame(_CLOSE, struct.pack("!H", 1009))
        return frame(self._opcode, self._message) if final else b""
