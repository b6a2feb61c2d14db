"""A running part of the stage, whether it is a process or a container, and what can be done to it."""

from __future__ import annotations

import signal
from typing import Any, Protocol

from iamroles_scenarios.stage.output import Output


class Part(Protocol):
    """A running part: `process.Child` or `container.Box`."""

    name: str
    stdout: Output
    stderr: Output

    @property
    def host_pid(self) -> int | None:
        """Its first process, as this host numbers it; None if it is not to be seen from here."""

    @property
    def alive(self) -> bool:
        """Return whether it still runs."""

    def ready(self, within: float, key: str = "ready", since: int = 0) -> dict[str, Any]:
        """Wait for its JSON line with `key` on standard output."""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its main process."""

    def send_to(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to one process of the part, by the number that it has there."""

    def pause(self) -> None:
        """Freeze it."""

    def resume(self) -> None:
        """Let it run again."""

    def stop(self, within: float = 3.0) -> int:
        """SIGTERM, then SIGKILL after `within` seconds; returns the exit code."""

    def wait(self, within: float) -> int | None:
        """The exit code, or None if it still runs at the deadline."""

    def kill(self) -> int:
        """SIGKILL; idempotent."""

    def log(self) -> str:
        """The tail of what it said."""
