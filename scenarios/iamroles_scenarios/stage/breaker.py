"""A relay that breaks what passes it: between any two parts that speak TCP, on both kinds of stage.

It listens in this process, on an address that the stage's parts reach, and passes bytes on to another one as
they come. `breaks` puts a fault in force, for connections that are open and those to come; `mends` ends it.
What is left to chance (after how many bytes a connection is reset, how late a piece is) comes from a seed.
`relay` is one for frames of SPOP, which it reads and holds; this one never looks into the bytes.

===========  =============================================================================================
fault        what happens to the bytes
===========  =============================================================================================
``refused``  nobody listens, and what was open is reset: the other side is gone
``cut``      nothing passes in either direction, and no side gets a sign: a cable is pulled
``reset``    each connection is reset after some hundred bytes at most
``half``     the answering side's end is passed on after some bytes, as if it had said all; the rest is lost
``late``     each piece comes a tenth of a second late, more or less
``drip``     one byte at a time, and a pause after each of a line's end: a reader gets them alone
===========  =============================================================================================
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self

FAULTS = ("refused", "cut", "reset", "half", "late", "drip")
_PIECE = 1 << 16
_LATE = 0.1
"""Seconds, about, that a piece is late."""
_ALONE = 0.003
"""Seconds in which the other side reads a byte of a line's end, before the next one comes."""
_SOON = 300
"""Bytes at most after which a connection is reset, or half of it ends."""
_PATIENCE = 10.0
"""Seconds for what this process asks of its own thread."""


class Breaker:
    """See the module; a context manager.

    Args:
        host: where to listen; the port is ephemeral and stays the same.
        to: `host:port` of whom it stands before; may be set later.
        seed: of what is left to chance.
    """

    def __init__(self, host: str, to: str = "", *, seed: int = 1) -> None:
        self.to = to
        self._chance = random.Random(seed)  # noqa: S311 - a fault, not a secret
        self._fault = ""
        self.longest = 0.0
        """Seconds that this process took to pass a piece byte by byte, since the fault is in force."""
        # Held while nobody listens, so that no connection of this host gets the port meanwhile.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind((host, 0))
        self._name: tuple[str, int] = self._port.getsockname()[:2]
        self._links: set[Link] = set()
        self._tls: ssl.SSLContext | None = None
        self._tried = threading.Semaphore(0)
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="breaker", daemon=True)
        self._thread.start()
        self._in_loop(self._become(""))

    @property
    def address(self) -> str:
        """`host:port` to give in place of the address that it stands before."""
        return f"{self._name[0]}:{self._name[1]}"

    @property
    def open(self) -> int:
        """Return how many connections pass it now."""
        return len(self._links)

    def breaks(self, fault: str) -> None:
        """Put one of `FAULTS` in force, in place of any other."""
        if fault not in FAULTS:
            raise ValueError(f"unknown fault {fault!r}; known are {', '.join(FAULTS)}")
        self._in_loop(self._become(fault))

    def mends(self) -> None:
        """All is well from now on; a connection that a fault has ended stays ended."""
        self._in_loop(self._become(""))

    def shows(self, tls: ssl.SSLContext | None) -> None:
        """Reset what is open, and speak TLS on new connections; plain TCP without a context."""
        self.breaks("refused")
        self._tls, self._tried = tls, threading.Semaphore(0)
        self.mends()

    def wait_tried(self, within: float) -> bool:
        """Wait for the next connection, whatever became of it, since `shows`; false at the deadline."""
        return self._tried.acquire(timeout=within)

    def close(self) -> None:
        """End everything; idempotent."""
        if self._loop.is_closed():
            return
        self._in_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()
        self._port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_about: object) -> None:
        self.close()

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    async def _become(self, fault: str) -> None:
        self._fault, self.longest = fault, 0.0
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if fault == "refused":
            if self._server is not None:
                self._server.close()
                self._server = None
            for link in tuple(self._links):
                link.reset()
        elif self._server is None:
            await self._listen(socket.create_server(self._name, backlog=256, reuse_port=True))
        for link in tuple(self._links):
            link.left = self._chance.randrange(_SOON)

    async def _end(self) -> None:
        await self._become("refused")
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, listener: socket.socket) -> None:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections have it from there
        self._server = await asyncio.start_server(self._accepted, sock=listener)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.to.rpartition(":")
        server = self._server
        self._tried.release()
        try:
            if self._tls is not None:
                # Not by the server, because a handshake that the other side ends was a try as well. The mark
                # keeps asyncio from complaining of an end that comes with the handshake.
                writer.transport.get_protocol()._over_ssl = True  # type: ignore[attr-defined]  # noqa: SLF001
                await writer.start_tls(self._tls)
            onward, back = await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, asyncio.CancelledError):  # by `_end`; asyncio logs a task cancelled here
            writer.transport.abort()
            return
        link = self._linked(writer, back)
        if server is None or server is not self._server:  # it was refused in its handshake, and reset here
            link.reset()
            return
        link.left = self._chance.randrange(_SOON)
        self._links.add(link)
        try:
            asking = self._pass(link, reader, back, answering=False)
            await asyncio.gather(asking, self._pass(link, onward, writer, answering=True))
        except asyncio.CancelledError:
            return
        finally:
            self._links.discard(link)
            link.close()

    def _linked(self, asker: asyncio.StreamWriter, answerer: asyncio.StreamWriter) -> Link:
        return Link(asker, answerer)

    async def _pass(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answering: bool
    ) -> None:
        """One direction, until it ends."""
        with suppress(OSError):
            while data := await reader.read(_PIECE):
                if not await self._piece(link, data, writer, answering=answering):
                    return
            if writer.can_write_eof():
                writer.write_eof()
            else:  # TLS
                writer.close()

    async def _piece(self, link: Link, data: bytes, writer: asyncio.StreamWriter, *, answering: bool) -> bool:
        """Pass a piece on as the fault in force has it; whether the direction goes on."""
        while self._fault == "cut":
            await self._changed.wait()
        match self._fault:
            case "reset" | "half":
                kept, link.left = data[: link.left], link.left - len(data)
                if link.left < 0 and self._fault == "reset":
                    writer.write(kept)
                    link.reset()
                    return False
                if link.left < 0 and answering:
                    writer.write(kept)
                    writer.write_eof()
                    return False
                writer.write(data)
            case "late":
                await asyncio.sleep(_LATE * self._chance.uniform(0.5, 1.5))
                writer.write(data)
            case "drip":
                began = time.monotonic()
                for at in range(len(data)):
                    writer.write(data[at : at + 1])
                    await writer.drain()
                    await asyncio.sleep(_ALONE if data[at] in b"\r\n" else 0)
                    self.longest = max(self.longest, time.monotonic() - began)
            case _:
                writer.write(data)
        await writer.drain()
        return True


class Link:
    """A connection and its continuation."""

    def __init__(self, asker: asyncio.StreamWriter, answerer: asyncio.StreamWriter) -> None:
        self._writers = asker, answerer
        self.left = 0
        """Bytes until it is reset, or half of it ends."""

    def reset(self) -> None:
        """Both sides get a reset (SO_LINGER 0)."""
        for writer in self._writers:
            with suppress(OSError, AttributeError):  # None, if its TLS has ended
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
