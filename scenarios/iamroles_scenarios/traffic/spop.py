"""SPOP straight to an agent, as HAProxy speaks it: one HELLO, then NOTIFYs, many under way at once.

Each NOTIFY has a stream-id of its own, always two bytes long (240 to 2287), so that a frame is put together
from its length, a fixed head, the id and the question's bytes. Answers may come in any order. Those of a
read are judged together and what follows them is sent in one write. An answer that was found right is
remembered by its bytes.

With more than one question under way a receive stamp is that of the last byte that the kernel had, which may
belong to a later answer: then the times are this process's own (`Loop.stamped` says so).
"""

from __future__ import annotations

import itertools
import secrets
import ssl

from iamroles_scenarios.base.errors import WireFormatError
from iamroles_scenarios.traffic.clients import Address, Client, Owner
from iamroles_scenarios.traffic.polling import now
from iamroles_scenarios.traffic.questions import Asked, Question
from iamroles_scenarios.wire.codec import varint
from iamroles_scenarios.wire.frames import STATUS, Frame, FrameType, hello, read_kv, variables

_IDS = [varint(number) for number in range(240, 2288)]
_FRAME_LIMIT = 1 << 20
_KNOWN = 64
"""Right answers that are remembered for a question."""
_HEAD = bytes([FrameType.NOTIFY, 0, 0, 0, 1])
_REST = len(_HEAD) + 3
"""Bytes of a frame before its payload: type, flags, a stream-id of two bytes, a frame-id of a byte."""


class SpopClient(Client):
    """One connection to an agent with up to `in_flight` questions under way."""

    def __init__(
        self, loop: Owner, address: Address, *, tls: ssl.SSLContext | None = None, in_flight: int = 1
    ) -> None:
        super().__init__(loop, address, tls=tls)
        self.slots = in_flight
        self._greeted = self._reading = False
        self._received = b""
        self._under_way: dict[bytes, Asked] = {}
        """By stream-id, the oldest first."""
        self._queue: list[tuple[bytes, Asked]] = []
        """Frames that are not sent yet."""
        self._ids = itertools.cycle(_IDS)
        self._numbers = itertools.count(secrets.randbits(60))
        """For request ids; begins anywhere, so that those of two clients differ, also in forks."""

    @property
    def busy(self) -> bool:
        return bool(self._under_way)

    def overdue(self, before: int) -> bool:
        oldest = next(iter(self._under_way.values()), None)
        return oldest is not None and oldest.sent < before

    def ask(self, due: int, question: Question) -> None:
        """Send a NOTIFY; while answers are being read, with the others that they make room for."""
        stream = next(self._ids)
        while stream in self._under_way:
            stream = next(self._ids)
        payload = question.payload
        if question.around is not None:
            before, after = question.around
            payload = b"%b%016x%b" % (before, next(self._numbers), after)
        self._under_way[stream] = asked = Asked(question, due)
        frame = (_REST + len(payload)).to_bytes(4, "big") + _HEAD + stream + b"\x01" + payload
        self._queue.append((frame, asked))
        if not self._reading:
            self._flush()

    def _flush(self) -> None:
        if not self._queue:
            return
        sent = now()
        for _, asked in self._queue:
            if not asked.sent:  # else it has waited for a connection since then
                asked.send(sent, self.free_at)
        if not self.ready:
            if len(self._queue) == 1:
                self.connect()
        elif self._greeted:
            queue, self._queue = self._queue, []
            self.send(b"".join([frame for frame, _ in queue]))

    def opened(self) -> None:
        self._greeted, self._received = False, b""
        self.send(hello().encode())

    def feed(self, data: bytes, received: int, noticed: int) -> None:
        if self.slots > 1:
            received = noticed
        buffer = self._received + data if self._received else data
        at, size = 0, len(buffer)
        self._reading = True
        try:
            while size - at >= 4:
                end = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
                if end > size:
                    if end - at > _FRAME_LIMIT:
                        raise WireFormatError(f"a frame of {end - at - 4} bytes", at)
                    break
                self._frame(buffer[at + 4 : end], received, noticed)
                at = end
                if not self.ready:
                    return
        except WireFormatError as fault:
            self.lost(f"the agent's answer is malformed: {fault}")
            return
        finally:
            self._reading = False
        self._received = buffer[at:]
        self._flush()

    def _frame(self, body: bytes, received: int, noticed: int) -> None:
        if body[:1] == b"\x67" and self._greeted:
            stream = body[5:7]
            asked = self._under_way.get(stream)
            if asked is None or body[7:8] != b"\x01":
                raise WireFormatError("an ACK for nothing that was asked", 5)
            asked.received, asked.noticed = received, noticed
            self._done(stream, asked, body)
            return
        frame = Frame.decode(body)
        if frame.type == FrameType.AGENT_HELLO and not self._greeted:
            self._greeted = True
            if not self._queue:
                self.loop.idle_again(self)
        elif frame.type == FrameType.AGENT_DISCONNECT:
            items = {name: value.value for name, value in read_kv(frame)}
            status = items.get("status-code")
            said = STATUS.get(status, str(status)) if isinstance(status, int) else "no status"
            self.lost(f"the agent disconnected: {said}")
        else:
            raise WireFormatError(f"an unexpected {frame.name}", 0)

    def _done(self, stream: bytes, asked: Asked, body: bytes) -> None:
        question = asked.question
        self.free_at = asked.received
        payload = body[8:]
        if payload in question.known:
            del self._under_way[stream]
            self.loop.right(self, asked)
            return
        found = variables(Frame.decode(body))
        del self._under_way[stream]
        status = found.get("status")
        number = status if isinstance(status, int) else 0
        text = b"".join(f"{name}={_shown(value)}\n".encode() for name, value in sorted(found.items()))
        if (
            not question.changes
            and len(question.known) < _KNOWN
            and not question.judge(number, text, asked.sent, asked.received)
        ):
            question.known.add(payload)
        self.loop.answered(self, asked, number, text)

    def failed(self, why: str) -> None:
        lost = list(self._under_way.values())
        self._under_way.clear()
        self._queue.clear()
        self._greeted = False
        self._received = b""
        self.free_at = now()
        for asked in lost:
            self.loop.broke(self, asked, why)
        if not lost:
            self.loop.broke(self, None, why)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
