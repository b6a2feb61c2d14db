"""The stage of processes: everything a child of this process, on loopback, on ephemeral ports.

No port is ever guessed. The mocks, the agent and the backends bind port 0 and say what they got. HAProxy
cannot, so the stage binds port 0 itself and hands the socket over (`bind fd@N`): nobody can take the port
between choosing and using it, and a reload starts the next HAProxy on the very same socket.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage import haproxies
from iamroles_scenarios.stage.guard import Guard
from iamroles_scenarios.stage.kind import AgentPlace, HaproxyPlace, HaproxyRun, StageKind, binds, world_file
from iamroles_scenarios.stage.part import Part
from iamroles_scenarios.stage.process import Child, Started
from iamroles_scenarios.stage.rendering import ENTRY
from iamroles_scenarios.stage.runtime import ask, reload_in_place
from iamroles_scenarios.stage.spec import AgentSpec

_MASTER = "m"
"""HAProxy's master CLI; short, as a Unix socket's path has 108 bytes at most."""
LOOPBACK = "127.0.0.1"
_MOCKS = ("iamroles_scenarios.mock.control", "iamroles_scenarios.mock.issuer", "h11", "wsproto.connection")
"""Modules that the mocks share: a run starts thirty echo backends."""
_OLDER = 3600.0
"""Seconds before now at which one of four files of a name was written, as a copy that keeps its time. The
others may follow each other within a second."""
_ONE_PAGE = 4096
"""Bytes up to which every third TOML file of a name is written in place, if it is as long as the former."""


class AgentProcess:
    """A place for an agent as a child process."""

    def __init__(
        self,
        spec: AgentSpec,
        directory: Path,
        guard: Guard,
        popen: Callable[..., Started],
        host: str = LOOPBACK,
    ) -> None:
        self._spec = spec
        self._guard = guard
        self._popen = popen
        self._directory = directory
        self._host = host
        self._port = 0
        self._document: Mapping[str, Any] = {}
        self._written = Counter[str]()
        self.master = ""

    def write(self, document: Mapping[str, Any]) -> None:
        """Put down the world file, whole or not at all."""
        self._document = document
        listen = f"{self._host}:{self._port}"
        # A path is relative to the world file, as SPEC.md 6.1 says; the agent runs elsewhere.
        master = os.path.relpath(self.master, self._directory) if "/" in self.master else self.master
        self.put(self._world.name, world_file(document, self._spec, listen, master))

    def put(self, name: str, text: str) -> None:
        fresh = self._directory / f"{name}.new"
        fresh.touch(0o600 if name.endswith(".key") else 0o666)
        content = text.encode(errors="surrogateescape")
        fresh.write_bytes(content)
        written = time.time() - _OLDER * (self._written[name] % 4 == 1)
        os.utime(fresh, (written, written))
        self._written[name] += 1
        place = (self._directory / name).resolve()
        third = self._written[name] % 3 == 0 and name.endswith(".toml")
        if third and place.stat().st_size == len(content) <= _ONE_PAGE:
            with place.open("r+b") as file:
                file.write(content)
        else:
            fresh.replace(place)

    def mount(self, name: str) -> None:
        (self._directory / name).symlink_to(f"mounted-{name}")

    @property
    def _world(self) -> Path:
        return self._directory / "world.json"

    def start(self) -> Part:
        """Start the agent's command with IAMROLES_POLICY."""
        env = self._spec.environment(str(self._world))
        spec = self._spec
        return Child("agent", spec.argv(), self._guard, env=env, cwd=spec.directory, popen=self._popen)

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
        self._sockets = [_bound(), _bound()]
        self.port, self.tls_port = (int(one.getsockname()[1]) for one in self._sockets)

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
            (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        control = folder / "s"  # short: a Unix socket's path has 108 bytes at most
        if replaced is not None and replaced.part.alive:
            reload_in_place(replaced)
            return replaced
        argv = [self._binary, "-W", "-db", "-S", self.master]
        for name in ENTRY:
            if name in files:
                argv += ["-f", str(folder / name)]
        plain, tls = (one.fileno() for one in self._sockets)
        env = {
            "IAM_MAXCONN": str(haproxies.affordable_maxconn()),
            "IAM_THREADS": haproxies.THREADS,
            "IAM_PEER": f"unix@{folder / 'p'} mode 600",
            **binds(settings, f"fd@{plain}", f"fd@{tls}"),
            "IAM_STATS_SOCKET": str(control),
        }
        # HAProxy 2.6 looks for a server's certificate in the working directory, whatever `default-path` says.
        part = Child("haproxy", argv, self._guard, env=env, fds=[plain, tls], cwd=folder)
        return HaproxyRun(part, lambda command: ask(str(control), command))

    def close(self) -> None:
        for one in self._sockets:
            one.close()


def _bound() -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((LOOPBACK, 0))
    return found


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
        super().__init__()

    @property
    def host(self) -> str:
        return LOOPBACK

    def _start_mock(self, name: str, *arguments: str) -> Part:
        argv = [sys.executable, "-m", f"iamroles_scenarios.mock.{name}", "--listen", f"{LOOPBACK}:0"]
        popen = self._forking(_MOCKS, self.directory, self.directory)
        argv += [*arguments, "--exit-with-parent"]
        return Child(name, argv, self._guard, cwd=self.directory, popen=popen)

    def agent_place(self, spec: AgentSpec, world: str) -> AgentPlace:
        if spec.image:
            raise StageError(
                f"{spec.name} is a container image ({spec.image}): it needs the containers stage, "
                "--stage=containers."
            )
        return AgentProcess(spec, self._made(world), self._guard, self._popen(spec))

    def reaches(self, address: str) -> bool:  # noqa: ARG002 - HAProxy is a process like any other here
        return True

    def haproxy_place(self, world: str) -> HaproxyPlace:
        return HaproxyProcess(haproxies.find(self._haproxy), self._made(world), self._guard)
