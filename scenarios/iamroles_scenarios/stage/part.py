"""A running part of the stage, whether it is a process or a container, and what can be done to it."""

from __future__ import annotations

import json
import signal
import time
from typing import Any, Protocol

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage.output import Output

_ENDING = 0.5
"""Seconds in which a part whose streams have ended ends itself, unless it lives on without them."""


class Part(Protocol):
    """A running part: `process.Child` or `container.Box`."""

    name: str
    stdout: Output
    stderr: Output

    @property
    def host_pid(self) -> int | None:
        """Its first process, also if it has ended, as this host numbers it; None if it is not to be seen."""

    @property
    def alive(self) -> bool:
        """Return whether it still runs."""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its main process."""

    def send_to(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to one process of the part, by the number that it has there."""

    def pause(self) -> None:
        """Freeze it."""

    def resume(self) -> None:
        """Let it run again."""

    def wait(self, within: float) -> int | None:
        """The exit code, or None if it still runs at the deadline."""

    def kill(self) -> int:
        """SIGKILL; idempotent."""

    def ready(self, within: float, key: str = "ready", since: int = 0) -> dict[str, Any]:
        """Wait for its JSON line with `key` on standard output.

        Raises:
            StageError: the part ended, or the deadline passed.
        """
        began = time.monotonic()
        line = self.stdout.wait(lambda text: json_with(text, key) is not None, within=within, since=since)
        found = None if line is None else json_with(line, key)
        if found is not None:
            return found
        code = self.wait(_ENDING)
        if code is not None:
            self.stderr.finish()
            how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            what = "it was ready" if key == "ready" else f'it printed a line with "{key}"'
            raise StageError(f"{self.name} ended {how} before {what}.", {self.name: self.log()})
        why = f'printed no line with "{key}" on standard output within {within:g} s'
        error = StageError(f"{self.name} {why}.", {self.name: self.log()})
        error.began, error.pid = began, self.host_pid
        raise error

    def stop(self, within: float = 3.0) -> int:
        """SIGTERM, then SIGKILL after `within` seconds; returns the exit code (negative: the signal)."""
        if self.alive:
            self.resume()
            self.send(signal.SIGTERM)
            self.wait(within)
        return self.kill()

    def log(self) -> str:
        """The tail of standard error, and of standard output if that says more."""
        return self.stderr.tail() or self.stdout.tail()


def json_with(text: str, key: str) -> dict[str, Any] | None:
    """Return the JSON object on a line, if it has this key; a part that is not ready may print others."""
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or key not in found or (key == "ready" and found[key] is not True):
        return None
    return found
