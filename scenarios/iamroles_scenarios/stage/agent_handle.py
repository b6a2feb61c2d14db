"""The agent of a world: starting and ending it, its world file, its output."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage.composer import Composer
from iamroles_scenarios.stage.kind import AgentPlace
from iamroles_scenarios.stage.part import Part
from iamroles_scenarios.stage.spec import AgentSpec

_REMEDY = (
    " It must serve every policy of SPEC.md section 6, and print the ready line of section 8 once it listens"
    " (`iamroles conformance spec 8`)."
)
_DIES = 5.0
"""Seconds in which the kernel ends a process that was killed."""


class AgentHandle:
    """The agent of a world."""

    def __init__(self, spec: AgentSpec, place: AgentPlace | None, composer: Composer) -> None:
        self.spec = spec
        self._place = place
        self._composer = composer
        self._part: Part | None = None
        self._past: list[str] = []
        self.parts: list[Part] = []
        """A part for each start, those that have ended too."""
        self._left: list[Part] = []
        """Parts whose first process was killed alone."""
        self._paused = False
        self._asked_to_end = True
        """True once it was asked to end, and before it has begun."""
        self._gone: int | None = None
        """The exit code of an agent that ended by itself before its world was closed."""
        self._lock = threading.RLock()
        self.inner_address = _for_haproxy(spec.address)
        """As HAProxy reaches it, and writes that: `host:port`, or `unix@/path`."""
        self.spop_address = spec.address
        """`host:port` or `unix:/path` as the suite reaches it."""
        self.ready: dict[str, Any] = {}
        """The ready line."""
        self.spread = False
        """True once all its workers held connections together."""

    def write(self, document: Mapping[str, Any], master: str = "") -> None:
        """Put down the world file that the next start or reload reads; `master` is HAProxy's master CLI."""
        if self._place is not None:
            self._place.master = master or self._place.master
            self._place.write(document)

    def put(self, name: str, text: str) -> None:
        """Put a file beside the world file."""
        if self._place is not None:
            self._place.put(name, text)

    def mount(self, name: str) -> None:
        """Make a name beside the world file a link to its file."""
        if self._place is not None:
            self._place.mount(name)

    def start(self) -> None:
        """Start it, or start it again after `kill` or `stop`, on the same address; wait until it is ready.

        Raises:
            StageError: it did not become ready; with the tail of its log.
        """
        with self._lock:
            if self._place is None or (self._part is not None and self._part.alive):
                return
            self._keep_log()
            part = self._place.start()
            self.parts.append(part)
            try:
                self.ready = part.ready(self.spec.ready_within)
            except StageError as error:
                part.kill()
                error.message += _REMEDY
                raise
            self._part = part
            self._paused = self._asked_to_end = False
            if not isinstance(self.ready.get("address"), str):
                self.kill()
                raise StageError(
                    f'agent: the ready line lacks "address": "host:port": {json.dumps(self.ready)}.{_REMEDY}',
                    {"agent": part.log()},
                )
            inner, self.spop_address = self._place.reached(self.ready)
            self.inner_address = _for_haproxy(inner)

    def kill(self) -> None:
        with self._lock:
            self._asked_to_end = True
            self._running("killed").kill()

    def kill_first(self) -> None:
        """SIGKILL to its first process alone, with which a container ends; what stays ends with the world."""
        if self.pid is None:
            self.kill()
            return
        with self._lock:
            self._asked_to_end = True
            part = self._running("killed, but for its children")
            part.send(signal.SIGKILL)
            part.wait(_DIES)
            self._left.append(part)

    def stop(self, within: float = 15.0) -> int:
        """SIGTERM, and SIGKILL after `within` seconds; returns the exit code (0: it drained and left)."""
        with self._lock:
            self._asked_to_end = True
            return self._running("stopped").stop(within)

    def pause(self) -> None:
        """Freeze it: it keeps its connections and says nothing."""
        with self._lock:
            self._running("paused").pause()
            self._paused = True

    def resume(self) -> None:
        with self._lock:
            self._running("resumed").resume()
            self._paused = False

    @property
    def pid(self) -> int | None:
        """Its process on this host; None for a container, or while it does not run."""
        pid = getattr(self._part, "pid", None)
        return pid if isinstance(pid, int) else None

    @property
    def host_pid(self) -> int | None:
        """Its first process as this host numbers it, in a container too; None where it is not to be seen."""
        return None if self._part is None else self._part.host_pid

    def terminate(self) -> None:
        """SIGTERM, without waiting for what it does."""
        self._asked_to_end = True
        self._running("terminated").send(signal.SIGTERM)

    def wait(self, within: float) -> int | None:
        """The exit code, or None if it still runs after `within` seconds."""
        return self._running("waited for").wait(within)

    @property
    def alive(self) -> bool:
        return self._part is not None and self._part.alive

    def ended(self, within: float = 0.0) -> int | None:
        """Return the exit code if it ends unasked within these seconds; else None."""
        if self._asked_to_end or self._part is None:
            return self._gone
        if not within and self._part.alive:
            return None
        code = self._part.wait(within or 1.0)
        if self._asked_to_end:  # meanwhile: another thread has closed the world
            return self._gone
        if code is not None:
            self._part.stderr.finish()  # so that its last words are in the log
        return code

    def reload(self, policy: Mapping[str, Any], *, within: float = 10.0) -> dict[str, Any]:
        """Replace the world file, send the reload signal, and wait for the `{"reloaded": …}` line.

        Returns:
            That line: `{"reloaded": true}` or `{"reloaded": false, "error": "…"}`.

        Raises:
            StageError: the agent declares no reload signal, or does not answer by the deadline.
        """
        return self.reload_document(self._composer.document(policy), within=within)

    def reload_document(self, document: Mapping[str, Any], *, within: float = 10.0) -> dict[str, Any]:
        """`reload` with the document as it is: nothing replaced, nothing filled in."""
        with self._lock:
            part, mark = self._signalled(document)
            return part.ready(within, "reloaded", mark)

    def begin_reload(self, policy: Mapping[str, Any]) -> None:
        """Replace the world file and send the reload signal, without a look at the answer."""
        with self._lock:
            self._signalled(self._composer.document(policy))

    def _signalled(self, document: Mapping[str, Any]) -> tuple[Part, int]:
        part = self._running("reloaded")
        if not self.spec.reload_signal_name:
            raise StageError(f"{self.spec.name} declares no features.reload signal in agent.toml.")
        self.write(document)
        mark = part.stdout.mark
        part.send(signal.Signals[self.spec.reload_signal_name])
        return part, mark

    def logs(self) -> str:
        """Return what it said last, over its restarts."""
        with self._lock:
            return "\n".join([*self._past, self._part.log() if self._part else ""]).strip()

    def lines(self) -> list[str]:
        """Standard error of the running process, line by line."""
        return self._part.stderr.lines() if self._part else []

    def wait_line(self, accept: Callable[[str], bool], within: float = 5.0) -> str | None:
        """The first line on standard error that is accepted; None at the deadline."""
        return self._part.stderr.wait(accept, within=within) if self._part else None

    def close(self) -> None:
        with self._lock:
            if self._part is not None:
                self._gone, self._asked_to_end = self.ended(), True
                if self._paused:
                    self._part.kill()
                self._part.stop(2.0)
            for part in self._left:
                part.kill()
            if self._place is not None:
                self._place.close()
                self._place = None  # a second call would give back an address that another part has by then

    def _keep_log(self) -> None:
        if self._part is not None:
            self._past = [*self._past[-2:], self._part.log()]

    def _running(self, verb: str) -> Part:
        recording.note(f"the agent is {verb}")
        if self._part is None:
            where = (
                f"runs at {self.spec.address}, outside the stage" if self.spec.address else "has no process"
            )
            raise StageError(f"{self.spec.name} {where}: it cannot be {verb}.")
        return self._part


def _for_haproxy(address: str) -> str:
    """An agent's address in HAProxy's words, which has another one for a Unix socket."""
    return f"unix@{path}" if (path := address.removeprefix("unix:")) != address else address
