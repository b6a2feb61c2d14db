"""The local socket: a process of this host and this user may ask the running agent.

One connection, one question: a line of JSON with a `command`, answered by a line of JSON. The socket is
owner-only by its mode, and each peer's user is checked as well (SO_PEERCRED), because a mode says nothing
about the holder of a descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from iamroles_agent.base.errors import StartError
from iamroles_agent.serving import listening
from iamroles_agent.serving.bounded import Bounded

log = logging.getLogger("iamroles.local_socket")

Body = dict[str, Any]
Command = Callable[[Body], Awaitable[Body]]
Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_LONGEST = 1 << 20
"""Bytes of a question."""
_PATIENCE = 5.0
"""Seconds for a question to arrive."""
_KEEPS_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""Closing a server leaves its path alone: another agent may have taken the socket over."""
_CREDENTIALS = struct.Struct("3i")


def bind(path: Path) -> socket.socket:
    """Listen, for this user alone.

    Raises:
        StartError: the path cannot be used, or another agent answers there.
    """
    try:
        sock = listening.bind(f"{listening.UNIX}{path}")
    except StartError as error:
        raise StartError(f"agent.control_socket: {error}") from None
    sock.listen(64)
    return sock


class LocalSocket:
    """Answers on a socket that `bind` made.

    Args:
        sock: listening.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.commands: dict[str, Command] = {}
        """By the `command` of a question; called with the whole question."""
        self.conversations: dict[str, Conversation] = {}
        """Commands that write their own answers, and may go on talking."""
        self.sock = sock
        """The listening socket."""
        self._server: asyncio.Server | None = None
        self._guests = Bounded()

    async def open(self) -> None:
        # A copy: a server that is closed closes its socket, and the next fetcher needs it.
        self._server = await asyncio.start_unix_server(
            lambda *streams: self._guests.begin(self._meet(*streams)),
            sock=self.sock.dup(),
            limit=_LONGEST,
            **_KEEPS_PATH,
        )

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                line = await reader.readline()
            question = _read(line)
            command = "" if question is None else str(question["command"])
            if not _is_own(writer.get_extra_info("socket")):
                answer = {"error": "you are another user"}
            elif talk := self.conversations.get(command):
                await talk(reader, writer)
                return
            else:
                answer = await self._answer(command, question)
            writer.write(json.dumps(answer).encode() + b"\n")
            async with asyncio.timeout(_PATIENCE):
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            pass  # a peer that does not ask, or does not listen, gets nothing
        finally:
            writer.close()

    async def _answer(self, command: str, question: Body | None) -> Body:
        if question is None:
            return {"error": 'ask with a line of JSON: {"command": "status"}'}
        if command not in self.commands:
            return {"error": f"no such command here; known: {', '.join(sorted(self.commands))}"}
        try:
            return await self.commands[command](question)
        except Exception as error:
            log.exception("the command %r failed", command)
            return {"error": f"{type(error).__name__}: {error}"}


def _read(line: bytes) -> Body | None:
    """A question; None if it is not a JSON object with a command."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and "command" in found:
            return found
    return None


def _is_own(peer: Any) -> bool:  # noqa: ANN401 - uvloop's own class
    return _user_of(peer) in (os.geteuid(), 0)


def _user_of(peer: Any) -> int:  # noqa: ANN401 - as above
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def check_peer(sock: socket.socket, path: Path) -> None:
    """Look whether the agent's user, or root, answers at a path.

    Raises:
        PermissionError: another user does.
    """
    if (user := _user_of(sock)) not in (0, os.geteuid(), path.parent.stat().st_uid):
        raise PermissionError(errno.EPERM, f"user {user} answers there, which is not the agent's")


class NoAgentError(OSError):
    """No agent listens at a path."""


def ask(path: Path, question: Body, *, timeout: float = 10.0) -> Body:
    """Ask a running agent; blocks.

    Raises:
        NoAgentError: nothing is there, or nobody listens.
        OSError: it cannot be asked, does not answer, or another user answers.
        ValueError: the answer is not a JSON object.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoAgentError(error.errno, error.strerror) from None
        check_peer(sock, path)
        sock.sendall(json.dumps(question).encode() + b"\n")
        with sock.makefile("rb") as file:
            found = json.loads(file.readline())
    if not isinstance(found, dict):
        raise ValueError("an answer that is not an object")
    return found
