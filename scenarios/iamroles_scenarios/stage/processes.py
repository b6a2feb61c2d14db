"""The stage of processes: everything a child of this process, on loopback, on ephemeral ports.

No port is ever guessed. The mocks, the agent and the backends bind port 0 and say what they got. HAProxy
cannot, so the stage binds port 0 itself and hands the socket over (`bind fd@N`): nobody can take the port
between choosing and using it, and a reload starts the next HAProxy on the very same socket.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage import haproxies
from iamroles_scenarios.stage.guard import Guard
from iamroles_scenarios.stage.kind import AgentPlace, HaproxyPlace, HaproxyRun, Mock, StageKind
from iamroles_scenarios.stage.part import Part
from iamroles_scenarios.stage.process import Child
from iamroles_scenarios.stage.rendering import ENTRY
from iamroles_scenarios.stage.runtime import ask, reload_in_place
from iamroles_scenarios.stage.spec import AgentSpec

_MOCK_READY = 30.0
_MASTER = "m"
"""HAProxy's master CLI; short, as a Unix socket's path has 108 bytes at most."""
LOOPBACK = "127.0.0.1"


class MockProcess:
    """A mock as a child process."""

    def __init__(self, name: str, guard: Guard) -> None:
        self.part: Part = Child(
            name,
            [
                sys.executable,
                "-m",
                f"iamroles_scenarios.mock.{name}",
                "--listen",
                f"{LOOPBACK}:0",
                "--exit-with-parent",
            ],
            guard,
        )

    @property
    def url(self) -> str:
        return f"http://{self.part.ready(_MOCK_READY)['address']}"

    @property
    def control_url(self) -> str:
        """The same: suite and agent share the loopback."""
        return self.url


def add_master(document: dict[str, Any], spec: AgentSpec, master: str) -> None:
    """Tell an agent that declares `live` where HAProxy's master CLI is."""
    live = document.get("live", {})
    if master and spec.features.get("live") and isinstance(live, dict):
        document["live"] = {"master_socket": master, **live}


class AgentProcess:
    """A place for an agent as a child process."""

    def __init__(self, spec: AgentSpec, directory: Path, guard: Guard, host: str = LOOPBACK) -> None:
        self._spec = spec
        self._guard = guard
        self._directory = directory
        self._host = host
        self._port = 0
        self._document: dict[str, Any] = {}
        self.master = ""

    def write(self, document: Mapping[str, Any]) -> None:
        """Put down the world file, whole or not at all."""
        self._document = dict(document)
        settings = self._document.get("agent")
        listen = {"listen": f"{self._host}:{self._port}"}
        # A document that is broken on purpose may hold anything under "agent".
        if settings is None or isinstance(settings, dict):
            self._document["agent"] = {**(settings or {}), **listen}
        add_master(self._document, self._spec, self.master)
        self.put(self._world.name, json.dumps(self._document, indent=1))

    def put(self, name: str, text: str) -> None:
        fresh = self._directory / f"{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self._directory / name)

    @property
    def _world(self) -> Path:
        return self._directory / "world.json"

    def start(self) -> Part:
        """Start the agent's command with IAMROLES_POLICY."""
        env = self._spec.environment(str(self._world))
        spec = self._spec
        return Child("agent", spec.argv(), self._guard, env=env, cwd=spec.directory, popen=spec.popen)

    def reached(self, ready: Mapping[str, Any]) -> tuple[str, str]:
        """The same address for HAProxy and the suite."""
        address = str(ready["address"])
        if not self._port and (port := address.rpartition(":")[2]).isdecimal():
            self._port = int(port)
            self.write(self._document)
        return address, address

    def close(self) -> None:
        """Remove the directory, HAProxy's part of it too: a stage may see thousands of worlds."""
        shutil.rmtree(self._directory, ignore_errors=True)


class HaproxyProcess:
    """A place for HAProxy as a child process, on a socket that this process holds."""

    host = LOOPBACK

    def __init__(self, binary: str, directory: Path, guard: Guard) -> None:
        self._binary = binary
        self._directory = directory
        self._guard = guard
        self.master = str(directory / _MASTER)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]

    @property
    def version(self) -> str:
        return haproxies.version(self._binary)

    def start(
        self, files: Mapping[str, str], settings: Mapping[str, str], replaced: HaproxyRun | None
    ) -> HaproxyRun:
        """Start the master and a worker, or reload: the same master, a new worker, the same sockets."""
        # Always the same directory: the master, which a reload keeps, reads its files again.
        folder = self._directory / "haproxy"
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        control = folder / "s"  # short: a Unix socket's path has 108 bytes at most
        if replaced is not None and replaced.part.alive:
            reload_in_place(replaced)
            return replaced
        argv = [self._binary, "-W", "-db", "-S", self.master]
        for name in ENTRY:
            if name in files:
                argv += ["-f", str(folder / name)]
        env = {
            "IAM_MAXCONN": str(haproxies.affordable_maxconn()),
            "IAM_THREADS": haproxies.THREADS,
            **settings,
            "IAM_BIND": f"fd@{self._socket.fileno()} {settings.get('IAM_BIND', '')}".strip(),
            "IAM_STATS_SOCKET": str(control),
        }
        part = Child("haproxy", argv, self._guard, env=env, fds=[self._socket.fileno()])
        return HaproxyRun(part, lambda command: ask(str(control), command))

    def close(self) -> None:
        self._socket.close()


class Processes(StageKind):
    """Parts as child processes.

    Args:
        haproxy: see `haproxies.find`; None is also fine for worlds without HAProxy where none is installed.
    """

    kind = "processes"

    def __init__(self, haproxy: str | None = None) -> None:
        self._haproxy = haproxy
        if haproxy is not None:
            haproxies.find(haproxy)
        self._guard = Guard()
        self._directory = Path(tempfile.mkdtemp(prefix="iamroles-", dir=_short_directory()))
        self._guard.note(f"dir {self._directory}")
        self._echoes: dict[frozenset[str], tuple[Child, dict[str, str]]] = {}
        self._mocks: list[MockProcess] = []
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        return LOOPBACK

    def start_mock(self, name: str) -> Mock:
        self._mocks.append(MockProcess(name, self._guard))
        return self._mocks[-1]

    def echo(self, names: frozenset[str]) -> tuple[Part, dict[str, str]]:
        """One process serves all names of a world; worlds with the same names share it."""
        with self._lock:
            known = self._echoes.get(names)
            if known is None or not known[0].alive:
                argv = [sys.executable, "-m", "iamroles_scenarios.mock.echo", "--listen", f"{LOOPBACK}:0"]
                for name in sorted(names):
                    argv += ["--backend", name]
                part = Child("echo", [*argv, "--exit-with-parent"], self._guard)
                try:
                    known = part, part.ready(_MOCK_READY)["backends"]
                except StageError:
                    part.kill()
                    raise
                self._echoes[names] = known
            return known

    def agent_place(self, spec: AgentSpec, world: str) -> AgentPlace:
        if spec.image:
            raise StageError(
                f"{spec.name} is a container image ({spec.image}): it needs the containers stage, "
                "--iamroles-stage=containers."
            )
        return AgentProcess(spec, self._made(world), self._guard)

    def reaches(self, address: str) -> bool:  # noqa: ARG002 - HAProxy is a process like any other here
        return True

    def haproxy_place(self, world: str) -> HaproxyPlace:
        return HaproxyProcess(haproxies.find(self._haproxy), self._made(world), self._guard)

    def _made(self, world: str) -> Path:
        directory = self._directory / world
        directory.mkdir(exist_ok=True)
        return directory

    def close(self) -> None:
        for mock in self._mocks:
            mock.part.kill()
        for part, _ in self._echoes.values():
            part.kill()
        self._guard.close()
        with suppress(OSError):
            shutil.rmtree(self._directory)


def _short_directory() -> str | None:
    """Return where a Unix socket's path stays within its 108 bytes, whatever TMPDIR says."""
    return None if len(tempfile.gettempdir()) < 50 or not os.access("/tmp", os.W_OK) else "/tmp"  # noqa: S108
