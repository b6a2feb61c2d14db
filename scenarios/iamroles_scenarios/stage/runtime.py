"""HAProxy's Runtime API: one command, one answer (management.txt section 9.3)."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from typing import TYPE_CHECKING

from iamroles_scenarios.base.errors import StageError

if TYPE_CHECKING:
    from iamroles_scenarios.stage.kind import HaproxyRun

_TIMEOUT = 5.0
_RELOAD_WITHIN = 15.0
_RELOAD_AGAIN = 1.5
"""Seconds after which the signal is sent again: a master still busy with the reload before loses it."""


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


def reload_in_place(run: HaproxyRun) -> None:
    """Make a master start a new worker on its files; the old worker keeps its streams.

    Raises:
        StageError: no new worker appears in time.
    """
    before = _worker(run.runtime("show info"))
    deadline = time.monotonic() + _RELOAD_WITHIN
    while time.monotonic() < deadline:
        run.part.send(signal.SIGUSR2)
        again = time.monotonic() + _RELOAD_AGAIN
        while time.monotonic() < again:
            with contextlib.suppress(OSError):
                if _worker(run.runtime("show info")) not in ("", before):
                    return
            time.sleep(0.01)
    message = f"HAProxy was not reloaded within {_RELOAD_WITHIN:g} s."
    raise StageError(message, {"haproxy": run.part.log()})


def _worker(info: str) -> str:
    return next((line for line in info.splitlines() if line.startswith("Pid:")), "")
