"""HAProxy's Runtime API: one command, one answer (management.txt section 9.3)."""

from __future__ import annotations

import socket

_TIMEOUT = 5.0


def ask(address: str, command: str) -> str:
    """Send one command.

    Args:
        address: the path of a Unix socket, or `host:port`.
        command: e.g. "show info"; several may be joined by `;`.

    Raises:
        OSError: nobody answers there.
    """
    if "/" in address:
        connection = socket.socket(socket.AF_UNIX)
        target: object = address
    else:
        host, _, port = address.rpartition(":")
        connection = socket.socket()
        target = (host, int(port))
    with connection:
        connection.settimeout(_TIMEOUT)
        connection.connect(target)  # type: ignore[arg-type]
        connection.sendall(command.encode() + b"\n")
        answer = bytearray()
        while piece := connection.recv(65536):
            answer += piece
    return answer.decode("utf-8", "replace")
