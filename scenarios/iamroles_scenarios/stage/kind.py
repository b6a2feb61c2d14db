"""The difference between the stage's kinds: where parts run and how they are reached.

`World` and `Stage` are written once over this interface; `processes` and `containers` implement it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage.fork_server import ForkServer, first_folder
from iamroles_scenarios.stage.guard import Guard
from iamroles_scenarios.stage.part import Part
from iamroles_scenarios.stage.process import Child, Started
from iamroles_scenarios.stage.spec import AgentSpec

_MOCK_READY = 60.0
"""Seconds until a mock, or the echo backends, must be ready."""


class AgentPlace(Protocol):
    """A place for one agent, which may start again and again: the place outlives the process."""

    master: str
    """HAProxy's master CLI, for the world file of an agent that declares `live`; "" without HAProxy."""

    def write(self, document: Mapping[str, Any]) -> None:
        """Put the world file there; the place adds `agent.listen`."""

    def put(self, name: str, text: str) -> None:
        """Put a file beside the world file, in a running container too."""

    def mount(self, name: str) -> None:
        """Make such a name a link to its file, as Kubernetes mounts a ConfigMap; containers keep the file."""

    def start(self) -> Part:
        """Start the agent; its ready line has not been read yet."""

    def reached(self, ready: Mapping[str, Any]) -> tuple[str, str]:
        """From the ready line: `host:port` as HAProxy reaches the agent, and as the suite does.

        Also remembers the port, so that a restarted agent is found where it was.
        """

    def close(self) -> None:
        """Remove what the place left."""


@dataclass(frozen=True, slots=True)
class HaproxyRun:
    """One HAProxy process, this generation's."""

    part: Part
    runtime: Callable[[str], str]
    """Sends a Runtime API command and returns the answer; raises OSError while the socket is missing."""


class HaproxyPlace(Protocol):
    """A place for HAProxy. The listening address stays the same over reloads."""

    host: str
    port: int
    tls_port: int
    """Of the second address, for worlds whose settings have IAM_BIND_TLS."""
    master: str
    """The master CLI: a path or `host:port`, as the agent reaches it."""

    @property
    def version(self) -> str:
        """E.g. "3.0.11"."""

    def start(
        self, files: Mapping[str, str], settings: Mapping[str, str], replaced: HaproxyRun | None
    ) -> HaproxyRun:
        """Start HAProxy on these files; `replaced` finishes its live connections and ends."""

    def close(self) -> None:
        """Remove what the place left."""


def binds(settings: Mapping[str, str], plain: str, tls: str) -> dict[str, str]:
    """Return HAProxy's settings with the addresses before the words of IAM_BIND and IAM_BIND_TLS."""
    found = {**settings, "IAM_BIND": f"{plain} {settings.get('IAM_BIND', '')}".strip()}
    if "IAM_BIND_TLS" in settings:
        found["IAM_BIND_TLS"] = f"{tls} {settings['IAM_BIND_TLS']}"
    return found


def world_file(document: Mapping[str, Any], spec: AgentSpec, listen: str, master: str) -> str:
    """Return the text of a world file, which says where to listen and where HAProxy's master CLI is.

    A document that is broken on purpose may hold anything in their place, and a check may give a list of more
    addresses, with `{host}` for this one's. Only an agent that declares `live` gets the master CLI.
    """
    world = dict(document)
    settings, live = world.get("agent"), world.get("live", {})
    if settings is None or isinstance(settings, dict):
        settings, host = settings or {}, listen.rpartition(":")[0]
        more = settings["listen"] if isinstance(settings.get("listen"), list) else []
        every = [listen, *(str(one).replace("{host}", host) for one in more)]
        world["agent"] = {**settings, "listen": every if more else listen}
    if master and spec.features.get("live") and isinstance(live, dict):
        world["live"] = {"master_socket": master, **live}
    return json.dumps(world, indent=1)


@dataclass(frozen=True, slots=True)
class Mock:
    """A mock, which may still be on its way."""

    part: Part

    @property
    def url(self) -> str:
        """Return where the suite and the agent reach it, once it is ready.

        Raises:
            StageError: it did not become ready.
        """
        return f"http://{self.part.ready(_MOCK_READY)['address']}"


class StageKind(ABC):
    """A kind of stage. The mocks and the echo backends are shared by its worlds. Thread-safe."""

    kind: str

    def __init__(self) -> None:
        self._guard = Guard()
        self.directory = Path(tempfile.mkdtemp(prefix="iamroles-", dir=_short_directory()))
        """Ends with the stage, also after `kill -9`."""
        self._guard.note(f"dir {self.directory}")
        self.mocks: dict[str, Mock] = {}
        """Those that were started."""
        self._echoes: dict[frozenset[str], tuple[Part, dict[str, str]]] = {}
        self._fork_servers: dict[tuple[tuple[str, ...], Path, Path], ForkServer] = {}
        self._starting, self._echoing = threading.RLock(), threading.Lock()

    def mock(self, name: str) -> Mock:
        """Return `idp` or `cloud`, which is started when it is first wanted; it ends with the stage."""
        with self._starting:
            if name not in self.mocks:
                self.mocks[name] = Mock(self._start_mock(name))
            return self.mocks[name]

    def echo(self, names: frozenset[str]) -> tuple[Part, dict[str, str]]:
        """Echo backends of these names, one process for all: `host:port` by name as HAProxy reaches them."""
        with self._echoing:
            known = self._echoes.get(names)
            if known is None or not known[0].alive:
                part = self._start_mock("echo", *(f"--backend={name}" for name in sorted(names)))
                try:
                    known = part, part.ready(_MOCK_READY)["backends"]
                except StageError:
                    part.kill()
                    raise
                self._echoes[names] = known
            return known

    def tool(self, name: str, argv: Sequence[str], spec: AgentSpec) -> Part:
        """Start a command on this host, as the agent is started if both find the same modules first."""
        popen: Callable[..., Started] = subprocess.Popen
        if spec.command and first_folder(argv, spec.directory) == first_folder(spec.argv(), spec.directory):
            popen = self._popen(spec)
        return Child(name, argv, self._guard, cwd=spec.directory, popen=popen)

    def _popen(self, spec: AgentSpec) -> Callable[..., Started]:
        """Return what starts an agent's process: a fork server where it says what to import once.

        Some variables, such as PYTHONPATH or LD_PRELOAD, count for a process that begins, and for no fork.
        """
        if spec.env or not spec.preload:
            return subprocess.Popen
        return self._forking(spec.preload, first_folder(spec.argv(), spec.directory), spec.directory)

    def _forking(self, *key: *tuple[tuple[str, ...], Path, Path]) -> Callable[..., Started]:
        """Return the start of the fork server of these modules, first folder and directory."""
        with self._starting:
            if key not in self._fork_servers:
                self._fork_servers[key] = ForkServer(*key)
            return self._fork_servers[key].start

    def _parts(self) -> list[Part]:
        return [mock.part for mock in self.mocks.values()] + [part for part, _ in self._echoes.values()]

    def close(self) -> None:
        """Remove everything."""
        for part in self._parts():
            part.kill()
        for server in self._fork_servers.values():
            server.close()
        self._guard.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    @abstractmethod
    def host(self) -> str:
        """An address of this host on which HAProxy reaches what listens in this process."""

    @abstractmethod
    def _start_mock(self, name: str, *arguments: str) -> Part:
        """Start a module of `mock`, without waiting for it, where HAProxy, agent and suite reach it."""

    @abstractmethod
    def agent_place(self, spec: AgentSpec, world: str) -> AgentPlace:
        """A place for an agent in a world of this name."""

    @abstractmethod
    def reaches(self, address: str) -> bool:
        """Return whether HAProxy on this stage could connect to an outside agent at `host:port`."""

    @abstractmethod
    def haproxy_place(self, world: str) -> HaproxyPlace:
        """A place for HAProxy in a world of this name."""

    def _made(self, world: str) -> Path:
        """Make the directory of a world."""
        directory = self.directory / world
        directory.mkdir(exist_ok=True)
        return directory


def _short_directory() -> str | None:
    """Return where a Unix socket's path stays within its 108 bytes, whatever TMPDIR says."""
    return None if len(tempfile.gettempdir()) < 50 or not os.access("/tmp", os.W_OK) else "/tmp"  # noqa: S108
