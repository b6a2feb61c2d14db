"""One interface over the kinds of stage."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage import haproxies
from iamroles_scenarios.stage.kind import StageKind
from iamroles_scenarios.stage.rendering import Renderer
from iamroles_scenarios.stage.spec import AgentSpec
from iamroles_scenarios.stage.world import Between, World

if TYPE_CHECKING:
    from docker import DockerClient

    from iamroles_scenarios.mock.clients import CloudClient, IdpClient

KINDS = ("auto", "containers", "processes")


class _Urls(Mapping[str, str]):
    """`{idp}` and `{sts}` as the agent sees them; asking for one waits until that mock is ready."""

    _PARTS: ClassVar[dict[str, str]] = {"idp": "idp", "sts": "cloud"}

    def __init__(self, kind: StageKind) -> None:
        self._kind = kind

    def __getitem__(self, name: str) -> str:
        return self._kind.mock(self._PARTS[name]).url

    def __iter__(self) -> Iterator[str]:
        return iter(self._PARTS)

    def __len__(self) -> int:
        return len(self._PARTS)


class Stage:
    """A place to put worlds up, with the mocks they share; a context manager. Thread-safe.

    Attributes:
        kind: "containers" or "processes".
        why: one sentence: which kind, and why.
        directory: a folder of this host, which ends with the stage, also after `kill -9`.
        urls: `idp` and `sts`, as the agent sees them.
    """

    def __init__(self, kind: StageKind, why: str) -> None:
        self.kind = kind.kind
        self.why = why
        self.directory = kind.directory
        self._kind = kind
        self.urls: Mapping[str, str] = _Urls(kind)
        self._worlds: set[World] = set()
        self._numbers = itertools.count(1)
        self._renderers: dict[str, Renderer] = {}
        self._lock = threading.Lock()
        self._idp: IdpClient | None = None
        self._cloud: CloudClient | None = None

    @property
    def host(self) -> str:
        """An address of this host on which the stage's parts reach what listens in this process."""
        return self._kind.host

    @property
    def idp(self) -> IdpClient:
        from iamroles_scenarios.mock.control_client import IdpClient  # noqa: PLC0415 - worlds without mocks start faster

        with self._lock:
            if self._idp is None:
                self._idp = IdpClient(self.urls["idp"])
            return self._idp

    @property
    def cloud(self) -> CloudClient:
        from iamroles_scenarios.mock.clients import CloudClient  # noqa: PLC0415

        with self._lock:
            if self._cloud is None:
                self._cloud = CloudClient(self.urls["sts"])
            return self._cloud

    def world(
        self,
        agent: AgentSpec,
        policy: Mapping[str, Any],
        *,
        haproxy: bool = True,
        settings: Mapping[str, str] | None = None,
        between: Between | None = None,
        files: Mapping[str, str] | None = None,
        late: bool = False,
    ) -> World:
        """Start an agent under a policy, and HAProxy before it.

        Args:
            agent: what to start.
            policy: SPEC.md section 6 as JSON; `{idp}` and `{sts}` stand for the mocks' URLs, and backends
                without servers get an echo backend.
            haproxy: False: the agent alone.
            settings: HAProxy's settings by environment variable, e.g. {"IAM_TIMEOUT_PROCESSING": "500ms"},
                over those of `[haproxy.settings]` in `agent.toml`; {"IAM_LOG_LEVEL": "emerg"} silences its
                record. IAM_BIND holds what follows the address, e.g. "ssl crt site.pem", and IAM_BIND_TLS the
                same for a second address, `World.tls_proxy`.
            files: texts by name, beside HAProxy's own files and the agent's world file.
            between: what stands between HAProxy and the agent, e.g. a `relay.Relay`; its caller ends it.
            late: HAProxy starts when it is first asked for, and may fail then.

        Raises:
            StageError: a part did not start; with its log.
        """
        world = World(self._kind, self.urls, agent, f"w{next(self._numbers)}")
        with self._lock:
            self._worlds.add(world)
        try:
            renderer = self._renderer(agent) if haproxy else None
            chosen = {**agent.haproxy.get("settings", {}), **(settings or {})}
            world.start(policy, renderer, chosen, between, files)
            if haproxy and not late:
                _ = world.haproxy
        except BaseException:
            self.release(world)
            raise
        world.on_close = self.forget
        return world

    def _renderer(self, agent: AgentSpec) -> Renderer:
        key = f"{agent.directory}\n{agent.haproxy.get('render')}"
        with self._lock:
            return self._renderers.setdefault(key, Renderer(agent, self._kind.tool))

    def forget(self, world: World) -> None:
        with self._lock:
            self._worlds.discard(world)

    def release(self, world: World) -> None:
        world.close()
        self.forget(world)

    def logs(self) -> dict[str, str]:
        return {name: mock.part.log() for name, mock in list(self._kind.mocks.items())}

    def close(self) -> None:
        """Close every world, then the mocks; idempotent."""
        with self._lock:
            worlds, self._worlds = list(self._worlds), set()
        with ThreadPoolExecutor(4, thread_name_prefix="close") as pool:
            list(pool.map(World.close, worlds))
        for client in (self._idp, self._cloud):
            if client is not None:
                client.close()
        self._idp = self._cloud = None
        self._kind.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_stage(kind: str = "auto", require: str | None = None, haproxy: str | None = None) -> Stage:
    """Open a stage.

    Args:
        kind: "processes", "containers", or "auto": containers where an engine answers, else processes.
        require: "containers" turns a missing engine into an error under "auto" too.
        haproxy: which HAProxy: a version ("2.6", "2.8", "3.0", "3.2"), or for processes a path, "path" or
            "wheel". None: on processes the environment's IAMROLES_HAPROXY, else the kind's default.

    Raises:
        StageError, SelectionError: the kind that was asked for is not possible here, or HAProxy is missing.
    """
    engine, why = _engine(kind, require)
    if engine is not None:
        from iamroles_scenarios.stage.containers import Containers  # noqa: PLC0415

        return Stage(Containers(engine, haproxy), why)
    from iamroles_scenarios.stage.processes import Processes  # noqa: PLC0415

    return Stage(Processes(haproxy), why)


@dataclass(frozen=True, slots=True)
class Offer:
    """The stage that would be opened."""

    kind: str
    why: str
    """As `Stage.why`."""
    versions: tuple[str, ...]
    """Releases of HAProxy that it can start, oldest first."""


def offered(kind: str = "auto", require: str | None = None) -> Offer:
    """Return what `open_stage` would open, and which HAProxy it has; starts nothing.

    Raises:
        StageError: the kind that was asked for is not possible here.
    """
    engine, why = _engine(kind, require)
    if engine is None:
        return Offer("processes", why, tuple(haproxies.here()))
    engine.close()
    return Offer("containers", why, tuple(haproxies.RELEASES))


def _engine(kind: str, require: str | None) -> tuple[DockerClient | None, str]:
    """The engine for a stage of containers, None for one of processes; and why."""
    if kind not in KINDS:
        raise StageError(f"{kind!r} is not a kind of stage: say {', '.join(KINDS)}.")
    if require not in (None, "", "containers"):
        raise StageError(f'{require!r} cannot be required: say "containers".')
    if require and kind == "processes":
        raise StageError(
            "Containers are required, but the stage of processes was asked for: drop one of the two."
        )
    if kind == "processes":
        return None, "The stage is processes: asked for."
    from iamroles_scenarios.stage.docker import find_engine  # noqa: PLC0415 - docker's client is slow

    engine, reason = find_engine()
    if engine is not None:
        return engine, f"The stage is containers: {reason}."
    if kind == "containers" or require:
        raise StageError(
            f"Containers are required, but {reason}: start a Docker engine, or choose processes."
        )
    return None, f"The stage is processes: {reason}."
