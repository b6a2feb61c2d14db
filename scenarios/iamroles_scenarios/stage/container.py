"""One container of the stage, with the same face as a child process."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.stage.images import pack
from iamroles_scenarios.stage.output import Output, chunked_lines
from iamroles_scenarios.stage.part import Part

HOME = "/iamroles"
"""The folder in a container for files of the stage."""
_FREEZES = 5.0
"""Seconds within which the engine freezes a container."""


class Box(Part):
    """A part as a running container.

    Args:
        engine: where it runs.
        name: the part, for messages and logs.
        image: image name.
        command: its command; empty: the image's own.
        network: network to join.
        address: its address there.
        files: contents by path, put there before it starts.
        env: its environment.
        labels: on the container.
        folder: its working directory; None: the image's.

    Raises:
        StageError: the engine cannot create or start it.
    """

    def __init__(
        self,
        engine: docker.DockerClient,
        name: str,
        image: str,
        command: Sequence[str],
        *,
        network: str,
        address: str,
        files: Mapping[str, str],
        env: Mapping[str, str],
        labels: Mapping[str, str],
        folder: str | None = None,
    ) -> None:
        self.name = name
        api = engine.api
        try:
            created = api.create_container(
                image,
                list(command) or None,
                environment=dict(env),
                labels=dict(labels),
                working_dir=folder,
                stdin_open=True,  # a mock that ends with its standard input must not end at once
                host_config=api.create_host_config(
                    network_mode=network,
                    extra_hosts={"host.docker.internal": "host-gateway"},
                    cap_add=["NET_BIND_SERVICE"],
                ),
                networking_config={
                    "EndpointsConfig": {network: {"IPAMConfig": {"IPv4Address": address}}},
                },
            )
            self._container = engine.containers.get(created["Id"])
            self._uid = self._user()
            self.put(files)
            streams = [
                self._container.attach(stdout=out, stderr=not out, stream=True, logs=True)
                for out in (True, False)
            ]
            self._container.start()
            self._container.reload()
        except DockerException as error:
            raise StageError(f"{name}: the engine cannot start {image}: {_said(error)}") from error
        pid = int(self._container.attrs["State"]["Pid"])
        self._pid = pid if pid and Path(f"/proc/{pid}").is_dir() else None
        self.stdout, self.stderr = (Output(name, chunked_lines(_until_gone(stream))) for stream in streams)
        self._code: int | None = None

    def put(self, files: Mapping[str, str]) -> None:
        if files:
            contents = {
                path.lstrip("/"): text.encode(errors="surrogateescape") for path, text in files.items()
            }
            # With its moment: an agent may see by that alone that a file was replaced.
            self._container.put_archive("/", pack(contents, at=time.time(), uid=self._uid))

    def _user(self) -> int:
        """Return the number of the image's user, which the image may name."""
        user = self._container.attrs["Config"]["User"].partition(":")[0] or "0"
        if user.isdigit():
            return int(user)
        archive, _ = self._container.get_archive("/etc/passwd")
        found = re.search(rf"[\n\0]{re.escape(user)}:[^:]*:(\d+)".encode(), b"".join(archive))
        return int(found[1]) if found else 0

    @property
    def host_pid(self) -> int | None:
        """See `part.Part`; an engine on another host numbers other processes."""
        return self._pid

    @property
    def alive(self) -> bool:
        """Return whether it still runs (a paused one does)."""
        if self._code is not None:
            return False
        try:
            self._container.reload()
        except NotFound:
            return False
        return self._container.status in ("running", "paused")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its main process."""
        with suppress(APIError):
            self._container.kill(signal=number.name)

    def send_to(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process in the container, by its number there."""
        self._container.exec_run(["sh", "-c", f"kill -{int(number)} {pid}"])

    def pause(self) -> None:
        """Freeze it (cgroup freezer): a busy kernel may give up at first.

        Raises:
            StageError: it runs, and the engine did not freeze it.
        """
        for last in polls(_FREEZES):
            try:
                self._container.pause()
            except APIError as error:
                if self._container.id is None or not self.alive or self._frozen():
                    return
                if last:
                    raise StageError(f"{self.name} could not be frozen: {error.explanation}") from error
            else:
                return

    def _frozen(self) -> bool:
        self._container.reload()
        return bool(self._container.attrs["State"]["Paused"])

    def resume(self) -> None:
        with suppress(APIError):
            self._container.unpause()

    def wait(self, within: float) -> int | None:
        """The exit code, or None if it still runs at the deadline."""
        if self._code is not None:
            return self._code
        deadline = time.monotonic() + within
        try:
            return int(self._container.wait(timeout=max(0.05, deadline - time.monotonic()))["StatusCode"])
        except (requests.exceptions.RequestException, DockerException):
            return None

    def kill(self) -> int:
        """SIGKILL and removal; idempotent. Returns the exit code, negative for a signal as for processes."""
        if self._code is not None:
            return self._code
        with suppress(APIError):
            self._container.kill()
        code = self.wait(10.0)
        with suppress(DockerException):
            self._container.remove(force=True, v=True)
        for output in (self.stdout, self.stderr):
            output.finish()
        code = 137 if code is None else code
        self._code = 128 - code if code > 128 else code
        return self._code


def _until_gone(stream: Iterator[bytes]) -> Iterator[bytes]:
    """A stream's pieces; a connection that breaks off ends it."""
    with suppress(requests.exceptions.RequestException, DockerException, OSError, ValueError):
        yield from stream


def _said(error: DockerException) -> str:
    return str(getattr(error, "explanation", None) or error)[:300]
