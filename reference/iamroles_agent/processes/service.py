"""Reports to systemd (sd_notify(3), `Type=notify-reload`). The parent alone makes them, and never waits."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque

from iamroles_agent.control.plane import Plane


class Service:
    """The agent as its service manager sees it; takes the manager's variables out of the environment."""

    def __init__(self, plane: Plane, drain: float) -> None:
        take = os.environ.pop
        address, usec, pid = (take(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        self._plane, self._drain = plane, drain
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        watched = usec.isascii() and usec.isdigit() and pid in ("", str(os.getpid()))
        self._pause, self._feed_at = int(usec) / 2e6 if watched else 0.0, 0.0
        self._state = self._status = self.refused = self._fault = ""
        self._waiting: deque[str] = deque(maxlen=16)

    def enter(self, state: str, status: str, more: str = "") -> None:
        self._state = state
        self._waiting.append(f"{state}=1\nSTATUS={status}{more}")

    def reload(self) -> None:
        self.refused = ""
        self.enter("RELOADING", "reads the file again", f"\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def look(self) -> None:
        """Report what is new, and that the agent lives if at least one worker answers."""
        plane, members, now = self._plane, self._plane.members, time.monotonic()
        if members.stopping and self._state != "STOPPING":
            self.enter("STOPPING", "drains", f"\nEXTEND_TIMEOUT_USEC={int(self._drain * 1e6)}")
        elif members.served and not members.stopping and not plane.reloads.pending:
            why = self.refused and f", because the reload was refused: {self.refused}"
            confirmed = f"{plane.changes.confirmed} of {len(members.workers)} workers"
            status = f"policy {plane.document.policy} is in force in {confirmed}{why}"[:400]
            if not status.isprintable():  # it must be one line
                status = "".join(letter if letter.isprintable() else " " for letter in status)
            if self._state != "READY":
                self.enter("READY", status)
            elif status != self._status:  # a worker died, or came back
                self._waiting.append(f"STATUS={status}")
            self._status = status
        if self._pause and now >= self._feed_at and not self._waiting and members.answering:
            self._feed_at = now + self._pause
            self._waiting.append("WATCHDOG=1")
        try:
            while self._address and self._waiting:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                    sock.sendto(self._waiting[0].encode(), self._address)
                self._waiting.popleft()
        except OSError as error:  # what waits is sent at a later look
            if self._fault != (fault := error.strerror or str(error)):
                logging.getLogger("iamroles.service").warning("systemd takes no report: %s", fault)
            self._fault = fault
