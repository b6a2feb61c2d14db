"""A small asyncio SPOP client and gates whose behaviour the test dictates."""

import asyncio
import contextlib
import socket
import struct
from pathlib import Path

from spop_transcript import DENY, cut, hello, show

from iamroles_agent.base.config import AgentSettings
from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_agent.serving.metrics import ConnectionStats
from iamroles_agent.serving.server import Server
from iamroles_agent.spop import actions


def descriptors():
    """Return how many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition):
    """Let the loop turn until the condition holds; the runner of `conftest.py` bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for must not know that it is watched
        await asyncio.sleep(0.001)


class DictatedGate:
    """A gate that does what the test says.

    Args:
        judge: the coroutine function that decides.
        memory: what is remembered.
    """

    def __init__(self, judge=None, memory=()):
        self.memory = dict(memory)
        self.details = []
        self.problem = ""
        self.asked = []
        self.keys = []
        self._judge = judge

    def recall(self, key, context, /):
        return self.memory.get(key)

    async def judge(self, check, context, key, /):
        self.asked.append(check)
        self.keys.append(key)
        return DENY if self._judge is None else await self._judge(check)

    def unhealthy(self):
        return self.problem

    def failed(self, context, detail, /):
        self.details.append(detail)
        return actions.encode_verdict(Decision(allow=False, reason=Reason.INTERNAL_ERROR))


class HeldGate(DictatedGate):
    """A gate that gives its verdict only after `gone_on` is set."""

    def __init__(self, verdict=DENY):
        super().__init__(self._hold)
        self.gone_on, self.verdict = asyncio.Event(), verdict

    async def _hold(self, check):
        await self.gone_on.wait()
        return self.verdict


@contextlib.asynccontextmanager
async def serving(gate, *, tls=None, **settings):
    """A server on a port of its own; nothing of it may be left afterwards."""
    settings = {"listen": "127.0.0.1:0", "drain_timeout": "1s"} | settings
    server = Server(gate, AgentSettings.model_validate(settings), stats=ConnectionStats(), tls=tls)
    await server.start()
    try:
        yield server
    finally:
        await server.drain()
        assert (server.stats.open, server.stats.pending, server.peers) == (0, 0, set())


class Client:
    """One connection, HAProxy's side."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self.raw = None
        """The frame that `receive` has shown last."""

    @classmethod
    async def connect(cls, address, *, greet=True, tls=None):
        if address.startswith("unix:"):
            client = cls(*await asyncio.open_unix_connection(address.removeprefix("unix:")))
        else:
            host, _, port = address.rpartition(":")
            client = cls(*await asyncio.open_connection(host.strip("[]"), int(port), ssl=tls))
        if greet:
            client.send(hello())
            assert (await client.receive()).startswith("AGENT-HELLO")
        return client

    def send(self, *data):
        self._writer.write(b"".join(data))

    async def frame(self):
        """The next frame, as it came."""
        head = await self._reader.readexactly(4)
        return head + await self._reader.readexactly(int.from_bytes(head, "big"))

    async def receive(self):
        """The next frame, as a line; at the end of the stream `(closed)`, `(cut off)` or `(reset)`."""
        try:
            data = await self.frame()
        except asyncio.IncompleteReadError as error:
            return "(cut off)" if error.partial else "(closed)"
        except ConnectionResetError:
            return "(reset)"
        (self.raw,) = cut(data)
        return show(self.raw)

    async def receive_all(self):
        """Everything up to the end of the stream."""
        lines = []
        while (line := await self.receive()) != "(closed)":
            lines.append(line)
        return lines

    def half_close(self):
        self._writer.write_eof()

    def vanish(self):
        """Close so that the agent gets a reset, as from a HAProxy that was killed with work under way."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self):
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def talking(gate, *, greet=True, **settings):
    """A server as of `serving`, and one connection to it."""
    async with serving(gate, **settings) as server:
        client = await Client.connect(server.address, greet=greet)
        try:
            yield server, client
        finally:
            await client.close()
