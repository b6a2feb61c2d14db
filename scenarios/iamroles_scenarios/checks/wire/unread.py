"""Wire checks: a peer that keeps asking and reads nothing, or late, or a few bytes at a time.

The peer's windows are small, so that the kernel holds little and the agent must hold the rest, or stop
reading. The peer sees which: an agent that does not stop takes every question.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence, Untestable, WireFormatError
from iamroles_scenarios.checks.wire.teardown import launched
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.wire.client import question
from iamroles_scenarios.wire.frames import Frame, FrameType, hello
from iamroles_scenarios.wire.judge import DEADLINE, probe, session
from iamroles_scenarios.wire.target import WireTarget

_WINDOW, _SEGMENT = 4096, 536
"""Bytes of the peer's receive buffer and of its segments; an agent's kernel then holds some ten thousand."""
_STUCK = 3.0
"""Seconds, times the scale, without a byte taken: the agent has stopped reading, and does not only pause."""
_UNREAD = 4 << 20
"""Bytes of unread answers at which an agent must have stopped reading."""
_FEW = 1 << 20
"""Bytes of answers that are more than both kernels hold here."""
_OWED = 1 << 14
"""Bytes of answers that a peer must leave unread, or it has not read late: kernels hold some of them."""
_SIP = 1024
"""Bytes that a slow reader takes at a time."""
_ENDS = 15.0
"""Seconds, times the scale, from SIGTERM to the end of an agent whose `drain_timeout` is 1 s."""


class _Peer:
    """A connection that sends frames, and reads only on `receive`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._tail = b""
        """The part of the last question that the agent did not take."""
        self.sent = 0
        """Questions that the agent took whole."""

    async def receive(self) -> Frame:
        while len(self._rest) < 4 or len(self._rest) < 4 + int.from_bytes(self._rest[:4], "big"):
            piece = await self._loop.sock_recv(self._sock, _SIP)
            if not piece:
                raise ConnectionError("closed")
            self._rest += piece
        end = 4 + int.from_bytes(self._rest[:4], "big")
        body, self._rest = self._rest[4:end], self._rest[end:]
        try:
            return Frame.decode(body)
        except WireFormatError as error:
            raise CheckFailed(f"an answer that was read late is not a frame: {error}") from error

    async def asks(self, check: Mapping[str, Any], count: int, stuck: float) -> bool:
        """Send `count` questions; return False if the agent stops reading or closes before it took them
        all."""
        for number in range(1, count + 1):
            raw = question(check, stream_id=number).encode()
            while raw:
                try:
                    taken = self._sock.send(raw)
                except BlockingIOError:
                    if not await self._writable(stuck):
                        self._tail = (
                            raw if len(raw) < len(question(check, stream_id=number).encode()) else b""
                        )
                        return False
                except OSError:
                    return False
                else:
                    raw = raw[taken:]
            self.sent = number
        return True

    async def _writable(self, seconds: float) -> bool:
        ready = asyncio.Event()
        self._loop.add_writer(self._sock, ready.set)
        try:
            async with asyncio.timeout(seconds):
                await ready.wait()
        except TimeoutError:
            return False
        finally:
            self._loop.remove_writer(self._sock)
        return True

    @property
    def owed(self) -> int:
        """The number of answers that come once the last question is complete."""
        return self.sent + bool(self._tail)

    async def goes_on(self) -> None:
        """Send the rest of the last question, if a part is missing."""
        if self._tail:
            await self._loop.sock_sendall(self._sock, self._tail)
            self.sent, self._tail = self.owed, b""


@asynccontextmanager
async def _peer(target: WireTarget, address: str) -> AsyncIterator[_Peer]:
    """Yield a peer with small windows, after its handshake."""
    loop = asyncio.get_running_loop()
    if path := address.removeprefix("unix:") if address.startswith("unix:") else "":
        sock, where = socket.socket(socket.AF_UNIX), path
    else:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        where = (host, int(port))  # type: ignore[assignment]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WINDOW)
    sock.setblocking(False)
    with sock:
        async with asyncio.timeout(target.seconds(DEADLINE)):
            await loop.sock_connect(sock, where)
            peer = _Peer(sock)
            await loop.sock_sendall(sock, hello().encode())
            await peer.receive()
        yield peer


def _wordy(target: WireTarget) -> Mapping[str, Any]:
    """Return the question with the longest answer."""
    return probe(target) if target.crowded is None else target.crowded


async def _length(target: WireTarget, address: str | None = None) -> int:
    """Return the bytes of the answer to it, which the agent may remember from then on."""
    async with session(target, address=address) as connection:
        await connection.send(question(_wordy(target)))
        return len((await connection.expect(FrameType.ACK)).encode())


@check("wire.unread.whole", "SPOP-UNREAD-001")
async def whole(target: WireTarget) -> str:
    """A peer that reads late gets each answer once and whole, and nobody else waits.

    Questions until the answers fill every buffer; others are served; then the peer reads in sips. An
    agent may close the connection instead (8.8).
    """
    length = await _length(target)
    async with session(target) as other, _peer(target, target.address) as peer:
        all_taken = await peer.asks(_wordy(target), _FEW // length + 1, target.seconds(_STUCK))
        await other.must_serve()
        owed, rest = peer.owed, asyncio.ensure_future(peer.goes_on())
        acks: list[Frame] = []
        try:
            async with asyncio.timeout(target.seconds(4 * DEADLINE)):
                while len(acks) < owed:
                    acks.append(await peer.receive())
        except ConnectionError:
            return f"the agent closed the connection after {len(acks)} answers of {owed}"
        except TimeoutError:
            raise CheckFailed(
                f"{owed} questions, but {len(acks)} answers once the peer reads again",
                Evidence(expected="one answer for each"),
            ) from None
        finally:
            rest.cancel()
    if owed * length < _OWED:
        raise Untestable(f"the agent stopped reading after {owed} questions, whose answers the kernel holds")
    async with session(target) as connection:
        asked = [question(_wordy(target), stream_id=number) for number in range(1, owed + 1)]
        connection.must_answer_each(asked, acks)
        for ack in acks[:1] + acks[-1:]:
            connection.must_judge(ack)
    return f"{owed} answers read late" + ("" if all_taken else "; the agent had stopped reading meanwhile")


@check("wire.unread.bounded", "SPOP-UNREAD-002")
async def bounded(target: WireTarget) -> str:
    """An agent stops reading from a peer that reads nothing, or closes the connection.

    An agent that takes questions without end keeps all their answers.
    """
    length = await _length(target)
    count = _UNREAD // length
    async with _peer(target, target.address) as peer:
        if await peer.asks(_wordy(target), count, target.seconds(_STUCK)):
            raise CheckFailed(
                f"the agent read {count} questions from a peer that reads nothing: it holds their answers",
                Evidence(expected=f"it stops before {_UNREAD >> 20} MiB of answers"),
            )
        async with session(target) as other:
            await other.must_serve()
    return f"stopped at {peer.sent} questions, {peer.sent * length >> 10} KiB of answers"


@check("wire.unread.sigterm", "SPOP-LIFE-003")
async def sigterm(target: WireTarget) -> None:
    """SIGTERM ends an agent whose answers nobody reads."""
    async with launched(target, {"drain_timeout": "1s"} if "limits" in target.features else {}) as process:
        count = _FEW // await _length(target, process.spop_address) + 1
        async with _peer(target, process.spop_address) as peer:
            await peer.asks(_wordy(target), count, target.seconds(_STUCK))
            process.terminate()
            status = await asyncio.to_thread(process.wait, target.seconds(_ENDS))
    if status != 0:
        what = "still runs" if status is None else f"exited with {status}"
        raise CheckFailed(f"after SIGTERM the agent {what}", Evidence(expected="exit 0"))
