"""A new release takes over: the running agent hands its sockets to the next one, and refuses no connection.

The next agent reads its configuration, then asks on the local socket of the running agent for its listening
sockets. The sockets themselves travel (SCM_RIGHTS), so what waits in their queues is not lost; with them go
the local socket and the lock of the state directory. The next agent reads what is in force from the state
directory, where the running agent has just saved it. When it is ready it says `taken`; only then does the
running agent drain, and answers `leaves`. If the next agent dies before that, the running one goes on as if
nothing had happened. If the conversation ends before that while the running agent lives, it goes on too, and
the next one ends: two agents must not decide. If the running agent is stopped before that, it ends and leaves
its sockets to the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iamroles_agent.base.errors import StartError
from iamroles_agent.processes import local_socket
from iamroles_agent.serving import listening

COMMAND = "hand-over"
_TAKEN = b"taken\n"
LEAVES = b"leaves\n"
"""The answer of the running agent, once its parent was told to end."""
_PATIENCE = 30.0
"""Seconds for the running agent to answer."""
_LONGEST = 300.0
"""Seconds that the next agent may take until it is ready."""
_LAST = 3.0
"""Seconds in which the running agent's parent ends, if it was stopped and its fetcher has ended."""
_SOCKETS = 3
"""The fewest descriptors: a listening socket, the local socket, the lock; other listening sockets follow."""
_MOST = 64


@dataclass(slots=True)
class Inheritance:
    """The sockets and the lock that the running agent handed over."""

    listeners: list[socket.socket]
    local: socket.socket
    lock: int
    _connection: socket.socket
    _path: Path
    """Of the local socket."""
    _answers: bool
    """False for a running agent of a release that does not answer `taken`."""
    _running: int | None
    """A pidfd of the running agent's parent; None: it is gone, or this process cannot tell."""

    def taken(self) -> None:
        """Tell the running agent to go, and wait for its answer.

        Raises:
            StartError: it ended the conversation, and goes on or was stopped meanwhile.
        """
        try:
            self._connection.sendall(_TAKEN)
            if self._answers and self._connection.recv(len(LEAVES)) != LEAVES:
                raise ConnectionResetError
        except OSError:
            if self._running is not None and not select.select([self._running], [], [], _LAST)[0]:
                raise StartError("the running agent ended the hand-over, and goes on: start again") from None
            used = (sock for sock in self.listeners if sock.family == socket.AF_UNIX and sock.fileno() >= 0)
            for path in (self._path, *(Path(sock.getsockname()) for sock in used)):
                if not path.exists():
                    raise StartError(f"the running agent removed {path} and ended: start again") from None
        finally:
            self.forget()

    def forget(self) -> None:
        """Close the connection in a child: only the parent may say `taken`."""
        self._connection.close()
        if self._running is not None:
            os.close(self._running)
            self._running = None


def take(path: Path, addresses: Sequence[str]) -> Inheritance | None:
    """Ask the agent that answers at `path` for its sockets; None if no agent does.

    Args:
        path: of the local socket.
        addresses: where the next agent listens; one of them must be of the running one, which HAProxy asks.

    Raises:
        StartError: that agent does not hand over, and goes on.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_PATIENCE)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise _no(path, error.strerror or str(error)) from None
    try:
        local_socket.check_peer(connection, path)
        connection.sendall(json.dumps({"command": COMMAND}).encode() + b"\n")
        line, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, _MOST)
        if not line:
            raise ValueError("it ended the conversation; it may be stopping, try again")
        answer = json.loads(line)
    except (OSError, ValueError) as error:
        connection.close()
        raise _no(path, str(error)) from None
    if "error" in answer or len(descriptors) < _SOCKETS:
        connection.close()
        raise _no(path, str(answer.get("error", "it sent no sockets")))
    lock = descriptors.pop(2)
    first, local, *others = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    listeners = [first, *others]
    found = [listening.address_of(sock) for sock in listeners]
    if not any(listening.same(address, listen) for address in found for listen in addresses):
        for sock in (*listeners, local, connection):
            sock.close()
        os.close(lock)
        where = f"it listens on {', '.join(found)}, but this agent must listen on {', '.join(addresses)}"
        raise _no(path, f"{where}: keep one of them until HAProxy asks at another")
    running = _pidfd(answer["pid"]) if answer.get("namespace") == _namespace() else None
    return Inheritance(listeners, local, lock, connection, path, "namespace" in answer, running)


def _pidfd(pid: object) -> int | None:
    with contextlib.suppress(OSError):
        return os.pidfd_open(pid) if isinstance(pid, int) and pid > 0 else None
    return None


def _namespace() -> str:
    """Name the PID namespace: in another container a number names another process."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _no(path: Path, why: str) -> StartError:
    return StartError(f"the agent that answers at {path} cannot be taken over from: {why}. It goes on")


async def give(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    listeners: Sequence[socket.socket],
    local: socket.socket,
    lock: int,
) -> bool:
    """Hand over, in the running agent, and wait.

    Returns:
        Whether the next agent is ready, so that this one must end.
    """
    # A descriptor of our own: the stream's socket is not made for sending descriptors.
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as sock:
        first, *others = (listener.fileno() for listener in listeners)
        said = json.dumps({"pid": os.getppid(), "namespace": _namespace()}).encode()
        socket.send_fds(sock, [said], [first, local.fileno(), lock, *others])
    try:
        async with asyncio.timeout(_LONGEST):
            return await reader.readline() == _TAKEN
    except (TimeoutError, OSError, ValueError):
        return False
