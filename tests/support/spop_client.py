"""A small asyncio SPOP client and gates whose behaviour the test dictates."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from spop_transcript import DENY, Talk, cut, frame, hello, notify, show

from iamroles_agent.base.config import AgentSettings
from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_agent.serving.server import ConnectionStats, Server
from iamroles_agent.spop import actions
from iamroles_agent.spop.frames import RawFrame
from iamroles_agent.spop.messages import Check, Context

__all__ = ["Client", "DictatedGate", "HeldGate", "Talk", "frame", "notify", "serving", "talking", "until"]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds; the runner of `conftest.py` bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for must not know that it is watched
        await asyncio.sleep(0.001)


class DictatedGate:
    """A gate that does what the test says.

    Args:
        judge: the coroutine function that decides.
        memory: what is remembered.
    """

    def __init__(self, judge: Callable[[Check], Awaitable[bytes]] | None = None, memory: Any = ()) -> None:
        self.memory: dict[bytes, bytes] = dict(memory)
        self.details: list[str] = []
        self.problem = ""
        self.asked: list[Check] = []
        self.keys: list[bytes | None] = []
        self._judge = judge

    def recall(self, key: bytes, context: Context, /) -> bytes | None:
        return self.memory.get(key)

    async def judge(self, check: Check, context: Context, key: bytes | None, /) -> bytes:
        self.asked.append(check)
        self.keys.append(key)
        return DENY if self._judge is None else await self._judge(check)

    def unhealthy(self) -> str:
        return self.problem

    def failed(self, context: Context, detail: str, /) -> bytes:
        self.details.append(detail)
        return actions.encode_verdict(Decision(allow=False, reason=Reason.INTERNAL_ERROR))


class HeldGate(DictatedGate):
    """A gate that gives its verdict only after `gone_on` is set."""

    def __init__(self, verdict: bytes = DENY) -> None:
        super().__init__(self._hold)
        self.gone_on, self.verdict = asyncio.Event(), verdict

    async def _hold(self, check: Check) -> bytes:
        await self.gone_on.wait()
        return self.verdict


@contextlib.asynccontextmanager
async def serving(gate: DictatedGate, **settings: Any) -> AsyncIterator[Server]:
    """A server on a port of its own; nothing of it may be left afterwards."""
    settings = {"listen": "127.0.0.1:0", "drain_timeout": "1s"} | settings
    server = Server(gate, AgentSettings.model_validate(settings), stats=ConnectionStats())
    await server.start()
    try:
        yield server
    finally:
        await server.drain()
        assert (server.stats.open, server.stats.pending, server.peers) == (0, 0, set())


class Client:
    """One connection, HAProxy's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.raw: RawFrame | None = None
        """The frame that `receive` has shown last."""

    @classmethod
    async def connect(cls, address: str, *, greet: bool = True) -> Client:
        if address.startswith("unix:"):
            client = cls(*await asyncio.open_unix_connection(address.removeprefix("unix:")))
        else:
            host, _, port = address.rpartition(":")
            client = cls(*await asyncio.open_connection(host.strip("[]"), int(port)))
        if greet:
            client.send(hello())
            assert (await client.receive()).startswith("AGENT-HELLO")
        return client

    def send(self, *data: bytes) -> None:
        self._writer.write(b"".join(data))

    async def frame(self) -> bytes:
        """The next frame, as it came."""
        head = await self._reader.readexactly(4)
        return head + await self._reader.readexactly(int.from_bytes(head, "big"))

    async def receive(self) -> str:
        """The next frame, as a line; at the end of the stream `(closed)`, `(cut off)` or `(reset)`."""
        try:
            data = await self.frame()
        except asyncio.IncompleteReadError as error:
            return "(cut off)" if error.partial else "(closed)"
        except ConnectionResetError:
            return "(reset)"
        (self.raw,) = cut(data)
        return show(self.raw)

    async def receive_all(self) -> list[str]:
        """Everything up to the end of the stream."""
        lines = []
        while (line := await self.receive()) != "(closed)":
            lines.append(line)
        return lines

    def half_close(self) -> None:
        self._writer.write_eof()

    def vanish(self) -> None:
        """Close so that the agent gets a reset, as from a HAProxy that was killed with work under way."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def talking(
    gate: DictatedGate, *, greet: bool = True, **settings: Any
) -> AsyncIterator[tuple[Server, Client]]:
    """A server as of `serving`, and one connection to it."""
    async with serving(gate, **settings) as server:
        client = await Client.connect(server.address, greet=greet)
        try:
            yield server, client
        finally:
            await client.close()
