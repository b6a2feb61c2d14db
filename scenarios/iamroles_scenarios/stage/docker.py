"""Finding a Docker engine that the containers stage can use, and clearing up after stages that crashed."""

from __future__ import annotations

import os
import platform
import socket
from contextlib import suppress
from pathlib import Path

import docker
from docker.constants import DEFAULT_UNIX_SOCKET
from docker.errors import DockerException
from testcontainers.core.docker_client import DockerClient as Discovery
from testcontainers.core.docker_client import get_docker_host

LABEL = "iamroles.stage"
"""On everything the stage makes; the value is the stage's id."""
OWNER = "iamroles.owner"
"""Label of the owner: host name, process id and that process's start time."""


def find_engine() -> tuple[docker.DockerClient | None, str]:
    """A client of an engine on this host, or None; and why, as the end of a sentence.

    The stage reaches its containers by their addresses on the bridge, and its host processes listen on the
    bridge's gateway, so the engine must run on this very Linux host.
    """
    if platform.system() != "Linux":
        return None, f"the stage's containers need Linux, this is {platform.system()}"
    try:
        # testcontainers knows DOCKER_HOST, contexts and ~/.testcontainers.properties.
        client = Discovery(timeout=120, max_pool_size=200).client
        client.api.trust_env = False  # it is on this host: no proxy stands before it
        info = client.info()
    except (
        DockerException,
        OSError,
        ValueError,
    ) as error:  # ValueError: a DOCKER_HOST that is not an address
        return None, f"no Docker engine answers ({_said(error)})"
    if info.get("OSType") != "linux":
        return None, f"the Docker engine runs {info.get('OSType')} containers"
    gateway = _bridge_gateway(client)
    if gateway is None or not _is_local(gateway):
        return None, "the Docker engine that answers is not on this host"
    return client, f"Docker engine {info.get('ServerVersion', '?')} answers"


def _said(error: BaseException) -> str:
    """Why nothing answers, in words; the client's own message buries it under three layers of libraries."""
    address = (get_docker_host() or DEFAULT_UNIX_SOCKET).replace("http+unix://", "unix://")
    if address.startswith("unix://"):
        address = "/" + address.removeprefix("unix://").lstrip("/")
    cause = _cause(error)
    match cause:
        case FileNotFoundError():
            return f"no socket exists at {address}"
        case PermissionError():
            return f"permission denied on {address}: join the group that owns it, or run as root"
        case ConnectionRefusedError():
            return f"connection refused at {address}"
        case TimeoutError():
            return f"silence at {address}"
        case socket.gaierror():
            return f"the host of {address} is unknown"
        case _:
            text = str(cause).splitlines()
            return f"at {address}: {text[0][:200] if text else type(cause).__name__}"


def _cause(error: BaseException) -> BaseException:
    """The system's error at the bottom of a chain of exceptions, else the last of the chain."""
    found = error
    while True:
        if isinstance(found, OSError) and found.errno is not None:
            return found
        below = [part for part in found.args if isinstance(part, BaseException)]
        below += [part for part in (found.__cause__, found.__context__) if part is not None]
        if not below:
            return found
        found = below[0]


def _bridge_gateway(client: docker.DockerClient) -> str | None:
    with suppress(DockerException, KeyError, IndexError, TypeError):
        settings = client.networks.get("bridge").attrs["IPAM"]["Config"]
        return str(settings[0]["Gateway"])
    return None


def _is_local(address: str) -> bool:
    """Return whether an address belongs to this host: then, and only then, it can be bound."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


def owner() -> str:
    """Return a name for this process, distinct from any process that gets its number later."""
    return f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}"


def sweep(client: docker.DockerClient) -> int:
    """Remove what stages of dead processes of this host left; returns how many things that were."""
    removed = 0
    for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        if _is_orphan(container.labels):
            with suppress(DockerException):
                container.remove(force=True, v=True)
                removed += 1
    for network in client.networks.list(filters={"label": LABEL}):
        if _is_orphan(network.attrs.get("Labels") or {}):
            with suppress(DockerException):
                network.remove()
                removed += 1
    return removed


def _is_orphan(labels: dict[str, str]) -> bool:
    host, _, rest = labels.get(OWNER, "").partition("/")
    number, _, started = rest.partition("/")
    if host != socket.gethostname() or not number.isdecimal():
        return False
    return _started(int(number)) != started


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot (proc(5), field 22 of stat); "" if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]
