"""Blunt agents: processes that get SPOP wrong in one way each.

    python -m iamroles_scenarios.wire.blunt --behaviour wrong-id [--listen 127.0.0.1:0] [--delay 3] [--backend orders]

Behind HAProxy they show whether the configuration fails closed; before the wire lane, whether each check ends
by its deadline with a verdict on the agent. Whatever the behaviour gets wrong, the verdict it sends is a full
*allow*: a proxy that lets one request through has been caught. Without `--listen` the address is taken from
the world file (SPEC.md section 8), so that an `agent.toml` can name one as its command.
"""  # noqa: E501 - a command to copy

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

from iamroles_scenarios.base import process
from iamroles_scenarios.wire.codec import DataType, Typed, Value, string
from iamroles_scenarios.wire.frames import Flags, Frame, FrameType, as_hello, encode_kv, read_kv

_POLICY = "IAMROLES_POLICY"


@dataclass(frozen=True, slots=True)
class Manner:
    """The arguments of all behaviours."""

    delay: float
    """Seconds that `slow` and `allow-after-timeout` take."""
    backend: str
    """Named in the verdict."""


@dataclass(slots=True)
class Peer:
    """One connection of HAProxy, or of the suite."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    manner: Manner

    async def frames(self) -> list[Frame]:
        """The next frame in a list, empty at the end."""
        try:
            length = int.from_bytes(await self.reader.readexactly(4), "big")
            return [Frame.decode(await self.reader.readexactly(length))] if length < 1 << 20 else []
        except (asyncio.IncompleteReadError, OSError, ValueError):
            return []

    async def write(self, raw: bytes) -> None:
        """Send, and wait until it can be sent."""
        self.writer.write(raw)
        await self.writer.drain()

    def verdict(self) -> bytes:
        """A full allow, as a good agent would write it."""
        found: dict[str, Value] = {
            "status": 200,
            "role": "arn:aws:iam::111122223333:role/blunt",
            "principal": "blunt",
            "session": "blunt",
            "issuer": "blunt",
            "rule": "blunt",
            "backend": self.manner.backend,
            "expires": int(time.time()) + 600,
            "allow": True,
        }
        return b"".join(_set(name, value) for name, value in found.items())


def _set(name: str, value: Value) -> bytes:
    return b"\x01\x03\x02" + string(name) + Typed.of(value).encode()


def ack(frame: Frame, actions: bytes, *, stream_id: int | None = None) -> bytes:
    """An ACK to a NOTIFY."""
    chosen = frame.stream_id if stream_id is None else stream_id
    return Frame(FrameType.ACK, chosen, frame.frame_id, actions, Flags.FIN).encode()


Behaviour = Callable[[Peer], Awaitable[None]]


def greeted(answer: Callable[[Peer, Frame], Awaitable[None]]) -> Behaviour:
    """Make a behaviour: a sound handshake, health checks and goodbyes; each NOTIFY goes to `answer`."""

    @wraps(answer)
    async def behave(peer: Peer) -> None:
        while frames := await peer.frames():
            frame = frames[0]
            if frame.type == FrameType.HAPROXY_HELLO:
                items = {name: value.value for name, value in read_kv(frame)}
                said = as_hello({"version": "2.0", "max-frame-size": 16380, "capabilities": "pipelining"})
                if isinstance(offered := items.get("max-frame-size"), int):
                    said["max-frame-size"] = Typed(DataType.UINT32, min(offered, 16380))
                await peer.write(Frame(FrameType.AGENT_HELLO, payload=encode_kv(said)).encode())
                if items.get("healthcheck") is True:
                    return
            elif frame.type == FrameType.HAPROXY_DISCONNECT:
                farewell = encode_kv(as_hello({"status-code": 0, "message": "bye"}))
                await peer.write(Frame(FrameType.AGENT_DISCONNECT, payload=farewell).encode())
                return
            elif frame.type == FrameType.NOTIFY:
                await answer(peer, frame)

    return behave


async def silent(peer: Peer) -> None:
    """Reads and never says a word."""
    while await peer.reader.read(65536):
        pass


@greeted
async def mute(_peer: Peer, _frame: Frame) -> None:
    """Shakes hands and passes health checks, but never answers a NOTIFY."""


@greeted
async def allow_after_timeout(peer: Peer, frame: Frame) -> None:
    """Shakes hands at once; the allow comes when HAProxy has long given up."""
    await asyncio.sleep(peer.manner.delay)
    await peer.write(ack(frame, peer.verdict()))


async def slow(peer: Peer) -> None:
    """Waits before the handshake already, and before each answer again."""
    await asyncio.sleep(peer.manner.delay)
    await allow_after_timeout(peer)


async def closes(_peer: Peer) -> None:
    """Accepts and closes at once."""


async def http(peer: Peer) -> None:
    """A web server on the agent's port."""
    await peer.reader.read(1)
    await peer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


async def garbage(peer: Peer) -> None:
    """Answers with random bytes."""
    dice = random.Random(7)  # noqa: S311 - noise, the same each time
    while await peer.reader.read(65536):
        await peer.write(dice.randbytes(512))


@greeted
async def wrong_id(peer: Peer, frame: Frame) -> None:
    """An allow for another stream."""
    await peer.write(ack(frame, peer.verdict(), stream_id=frame.stream_id + 2))


@greeted
async def bad_action_first(peer: Peer, frame: Frame) -> None:
    """An action of unknown type, then the allow: HAProxy must not get as far as that."""
    await peer.write(ack(frame, b"\x09\x01\x02" + peer.verdict()))


@greeted
async def allow_then_bad_action(peer: Peer, frame: Frame) -> None:
    """The bare allow first, then a broken action: no backend and no tags come with it."""
    await peer.write(ack(frame, _set("allow", value=True) + b"\x01\x09\x02" + peer.verdict()))


@greeted
async def flood(peer: Peer, frame: Frame) -> None:
    """Shakes hands, then sends ACKs that nobody asked for as fast as they go."""
    batch = b"".join(ack(frame, b"", stream_id=frame.stream_id + 1000 + n) for n in range(200))
    while not peer.writer.is_closing():
        await peer.write(batch)


@greeted
async def half_ack(peer: Peer, frame: Frame) -> None:
    """The first half of an allow, and no more."""
    raw = ack(frame, peer.verdict())
    await peer.write(raw[: len(raw) // 2])


BEHAVIOURS: dict[str, Behaviour] = {
    behaviour.__name__.replace("_", "-"): behaviour
    for behaviour in (
        silent, mute, slow, closes, http, garbage, wrong_id, bad_action_first, allow_then_bad_action, flood,
        half_ack, allow_after_timeout,
    )
}  # fmt: skip
"""By name, as `--behaviour` takes it."""


async def serve(behave: Behaviour, options: process.MockOptions, manner: Manner) -> None:
    """Serve until stopped."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await behave(Peer(reader, writer, manner))
        writer.close()

    server = await asyncio.start_server(connected, options.host, options.port, backlog=1024)
    host, port = server.sockets[0].getsockname()[:2]
    await process.until_stopped(options, address=process.joined(host, port))
    server.close()


def _address(arguments: argparse.Namespace) -> str:
    """`--listen`, else the world file's `agent.listen`."""
    if arguments.listen is not None or _POLICY not in os.environ:
        return arguments.listen or "127.0.0.1:0"
    world = json.loads(Path(os.environ[_POLICY]).read_text(encoding="utf-8"))
    return str(world.get("agent", {}).get("listen", "127.0.0.1:0"))


def main(argv: list[str] | None = None) -> None:
    """Run one blunt agent."""
    parser = process.parser("iamroles_scenarios.wire.blunt", "An SPOE agent that gets one thing wrong.")
    parser.set_defaults(listen=None)
    parser.add_argument("--behaviour", choices=sorted(BEHAVIOURS), required=True)
    parser.add_argument("--delay", type=float, default=3.0, metavar="SECONDS", help="for the slow ones")
    parser.add_argument("--backend", default="orders", help="name in the verdict")
    arguments = parser.parse_args(argv)
    arguments.listen = _address(arguments)
    options = process.options(arguments)
    process.run(serve(BEHAVIOURS[arguments.behaviour], options, Manner(arguments.delay, arguments.backend)))


if __name__ == "__main__":
    main(sys.argv[1:])
