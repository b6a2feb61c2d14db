"""The stage of containers: one network, one container for each part.

The network has an explicit subnet, so that addresses can be given out: a part listens on an address known
before it starts, keeps it when it is restarted, and is reached under it by its neighbours and by the suite
alike. (Docker gives fixed addresses only in such a network; which subnet is free it is asked first.) An
agent that has only a `command` is a process of the host; it listens on the network's gateway.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from typing import Any

import docker
from docker.errors import APIError, DockerException
from docker.types import IPAMConfig, IPAMPool

from iamroles_scenarios.base.errors import SelectionError, StageError
from iamroles_scenarios.stage import docker as engines
from iamroles_scenarios.stage import haproxies
from iamroles_scenarios.stage.container import HOME, Box
from iamroles_scenarios.stage.guard import Guard
from iamroles_scenarios.stage.images import Images
from iamroles_scenarios.stage.kind import AgentPlace, HaproxyPlace, HaproxyRun, StageKind, binds, world_file
from iamroles_scenarios.stage.part import Part
from iamroles_scenarios.stage.processes import AgentProcess
from iamroles_scenarios.stage.rendering import ENTRY
from iamroles_scenarios.stage.runtime import ask, reload_in_place
from iamroles_scenarios.stage.spec import AgentSpec

DEFAULT_HAPROXY = "3.0"
_PORT = 8080
_TLS_PORT = 8443
_RUNTIME_PORT = 9999
_AGENT_PORT = 9901
_MASTER_PORT = 9998
_MAXCONN = "8000"
"""An engine may allow its containers no more than 20,000 descriptors; a connection takes two."""
_WORLD = f"{HOME}/world.json"


class Net:
    """The stage's network, its addresses, and how to start a container in it."""

    def __init__(self, client: docker.DockerClient, guard: Guard) -> None:
        self.client = client
        self._guard = guard
        self.id = uuid.uuid4().hex[:12]
        self.labels = {engines.LABEL: self.id, engines.OWNER: engines.owner()}
        guard.note(f"docker {engines.LABEL}={self.id}")
        self._network, subnet, self.gateway = self._create()
        self._free = (host for host in subnet.hosts() if str(host) != self.gateway)
        self._returned: list[str] = []
        self._lock = threading.Lock()

    def _create(self) -> tuple[Any, IPv4Network, str]:
        name = f"iamroles-{self.id}"
        for _ in range(10):
            scout = self.client.networks.create(f"{name}-scout", labels=self.labels)
            scout.reload()
            pool = scout.attrs["IPAM"]["Config"][0]
            scout.remove()
            try:
                network = self.client.networks.create(
                    name,
                    labels=self.labels,
                    ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=pool["Subnet"], gateway=pool["Gateway"])]),
                )
            except APIError as error:  # another took the subnet between the two calls
                last = error
                continue
            return network, IPv4Network(pool["Subnet"]), str(pool["Gateway"])
        raise StageError(f"The Docker engine gives no network: {last}")

    def take(self) -> str:
        """An address that no part has."""
        with self._lock:
            if self._returned:
                return self._returned.pop()
            found = next(self._free, None)
            if found is None:
                raise StageError("The stage's network has no address left: close worlds that are done with.")
            return str(found)

    def close(self) -> None:
        """Remove the network, and whatever still stands in it."""
        label = f"{engines.LABEL}={self.id}"
        for box in self.client.containers.list(all=True, filters={"label": label}, ignore_removed=True):
            with contextlib.suppress(DockerException):
                box.remove(force=True, v=True)
        with contextlib.suppress(DockerException):
            self._network.remove()
            self._guard.note("docker ")

    def give_back(self, address: str) -> None:
        """The part at this address is gone."""
        with self._lock:
            self._returned.append(address)

    def start(
        self,
        name: str,
        image: str,
        command: list[str],
        address: str,
        *,
        files: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> Box:
        return Box(
            self.client,
            name,
            image,
            command,
            network=self._network.name,
            address=address,
            files=files or {},
            env=env or {},
            labels=self.labels,
            folder=folder,
        )


class AgentBox:
    """A place for an agent in a container, always at the same address."""

    def __init__(self, spec: AgentSpec, net: Net, image: str) -> None:
        self._spec = spec
        self._net = net
        self._image = image
        self._address = net.take()
        self.master = ""
        self._files: dict[str, str] = {}
        self._text = ""
        self._box: Box | None = None

    def write(self, document: Mapping[str, Any]) -> None:
        """Put down the world file, in the running container too."""
        self._text = world_file(document, self._spec, f"{self._address}:{_AGENT_PORT}", self.master)
        if self._box is not None and self._box.alive:
            self._box.put({_WORLD: self._text})

    def put(self, name: str, text: str) -> None:
        """In the running container, and in those that follow it."""
        self._files[f"{HOME}/{name}"] = text
        if self._box is not None and self._box.alive:
            self._box.put({f"{HOME}/{name}": text})

    def mount(self, name: str) -> None:
        pass

    def start(self) -> Part:
        """A new container from the same image."""
        if self._box is not None:
            self._box.kill()
        self._box = self._net.start(
            "agent",
            self._image,
            list(self._spec.command),
            self._address,
            files={**self._files, _WORLD: self._text},
            env=self._spec.environment(_WORLD),
        )
        return self._box

    def reached(self, ready: Mapping[str, Any]) -> tuple[str, str]:
        """The ready line's port at the container's address, for HAProxy and the suite alike."""
        port = str(ready["address"]).rpartition(":")[2]
        return (f"{self._address}:{port}",) * 2

    def close(self) -> None:
        if self._box is not None:
            self._box.kill()
        self._net.give_back(self._address)


class HaproxyBox:
    """A place for HAProxy in a container, as master and worker, so that it can be reloaded in place."""

    port, tls_port = _PORT, _TLS_PORT

    def __init__(self, net: Net, image: str) -> None:
        self._net = net
        self._image = image
        self.host = net.take()
        self.master = f"{self.host}:{_MASTER_PORT}"
        self._exact = ""

    @property
    def version(self) -> str:
        if not self._exact:
            said = self._net.client.containers.run(self._image, ["haproxy", "-v"], remove=True)
            self._exact = haproxies.parse_version(said.decode(errors="replace"), self._image)
        return self._exact

    def start(
        self, files: Mapping[str, str], settings: Mapping[str, str], replaced: HaproxyRun | None
    ) -> HaproxyRun:
        """Start the container, or reload it: the same master, a new worker, the same sockets."""
        placed = {f"{HOME}/haproxy/{name}": text for name, text in files.items()}
        if replaced is not None and replaced.part.alive:
            assert isinstance(replaced.part, Box)  # noqa: S101 - made by start
            replaced.part.put(placed)
            reload_in_place(replaced)
            return replaced
        command = ["haproxy", "-W", "-db", "-S", f"ipv4@{self.host}:{_MASTER_PORT}"]
        for name in ENTRY:
            if name in files:
                command += ["-f", f"{HOME}/haproxy/{name}"]
        env = {
            "IAM_MAXCONN": _MAXCONN,
            "IAM_THREADS": haproxies.THREADS,
            "IAM_PEER": f"unix@{HOME}/haproxy/p mode 600",
            **binds(settings, f"{self.host}:{_PORT}", f"{self.host}:{_TLS_PORT}"),
            "IAM_STATS_SOCKET": f"ipv4@{self.host}:{_RUNTIME_PORT}",
        }
        folder = f"{HOME}/haproxy"  # see `HaproxyProcess.start`
        box = self._net.start(
            "haproxy", self._image, command, self.host, files=placed, env=env, folder=folder
        )
        return HaproxyRun(box, lambda command: ask(f"{self.host}:{_RUNTIME_PORT}", command))

    def close(self) -> None:
        """Its address may be used again."""
        self._net.give_back(self.host)


class Containers(StageKind):
    """Parts as containers.

    Args:
        client: an engine of this host.
        haproxy: "2.6", "2.8", "3.0" (None) or "3.2".

    Raises:
        SelectionError, StageError: another HAProxy; images cannot be built, or the engine refuses.
    """

    kind = "containers"

    def __init__(self, client: docker.DockerClient, haproxy: str | None = None) -> None:
        self._client = client
        self._haproxy = haproxy or DEFAULT_HAPROXY
        if self._haproxy not in haproxies.RELEASES:
            choices = ", ".join(haproxies.RELEASES)
            raise SelectionError(f"HAProxy {haproxy!r} is not among the stage's images: choose {choices}.")
        self._images = Images(client)
        super().__init__()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="stage")
        try:
            engines.sweep(client)
            haproxy_image = self._pool.submit(self._images.haproxy, self._haproxy)
            self._net = Net(client, self._guard)
            self._python = self._images.python()
            self._haproxy_image = haproxy_image.result()
        except DockerException as error:
            self._abandon()
            raise StageError(f"The Docker engine refuses: {str(error)[:300]}") from error
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._pool.shutdown()
        self._guard.close()

    @property
    def host(self) -> str:
        return self._net.gateway

    def _start_mock(self, name: str, *arguments: str) -> Part:
        address = self._net.take()
        command = ["python3", "-m", f"iamroles_scenarios.mock.{name}", "--listen", f"{address}:0", *arguments]
        return self._net.start(name, self._python, command, address)

    def agent_place(self, spec: AgentSpec, world: str) -> AgentPlace:
        """A container from the agent's image, or a host process on the network's gateway."""
        if spec.image:
            return AgentBox(spec, self._net, spec.image)
        if spec.build == "python":
            return AgentBox(spec, self._net, self._python)
        if spec.build:
            return AgentBox(spec, self._net, self._images.directory(spec.directory / spec.build))
        return AgentProcess(spec, self._made(world), self._guard, self._popen(spec), self._net.gateway)

    def reaches(self, address: str) -> bool:
        host = address.rpartition(":")[0].strip("[]")
        return not (host == "localhost" or host.startswith("127.") or host in ("::1", ""))

    def haproxy_place(self, world: str) -> HaproxyPlace:  # noqa: ARG002 - a container is its own place
        return HaproxyBox(self._net, self._haproxy_image)

    def close(self) -> None:
        list(self._pool.map(lambda part: part.kill(), self._parts()))
        self._pool.shutdown()
        self._net.close()
        super().close()
