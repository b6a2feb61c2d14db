"""The difference between the stage's kinds: where parts run and how they are reached.

`World` and `Stage` are written once over this interface; `processes` and `containers` implement it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from iamroles_scenarios.stage.part import Part
from iamroles_scenarios.stage.spec import AgentSpec


class AgentPlace(Protocol):
    """A place for one agent, which may start again and again: the place outlives the process."""

    master: str
    """HAProxy's master CLI, for the world file of an agent that declares `live`; "" without HAProxy."""

    def write(self, document: Mapping[str, Any]) -> None:
        """Put the world file there; the place adds `agent.listen`."""

    def put(self, name: str, text: str) -> None:
        """Put a file beside the world file, in a running container too."""

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


class Mock(Protocol):
    """A started mock. It may still be on its way: the URLs wait for its ready line."""

    part: Part

    @property
    def url(self) -> str:
        """As the agent sees it. Raises StageError if it did not become ready."""

    @property
    def control_url(self) -> str:
        """As the suite sees it."""


class StageKind(ABC):
    """A kind of stage."""

    kind: str

    @property
    @abstractmethod
    def host(self) -> str:
        """An address of this host on which HAProxy reaches what listens in this process."""

    @abstractmethod
    def start_mock(self, name: str) -> Mock:
        """Start `idp` or `cloud`, without waiting for it; it ends with the stage."""

    @abstractmethod
    def echo(self, names: frozenset[str]) -> tuple[Part, dict[str, str]]:
        """Echo backends of these names: `host:port` by name as HAProxy reaches them. Shared by worlds."""

    @abstractmethod
    def agent_place(self, spec: AgentSpec, world: str) -> AgentPlace:
        """A place for an agent in a world of this name."""

    @abstractmethod
    def reaches(self, address: str) -> bool:
        """Return whether HAProxy on this stage could connect to an outside agent at `host:port`."""

    @abstractmethod
    def haproxy_place(self, world: str) -> HaproxyPlace:
        """A place for HAProxy in a world of this name."""

    @abstractmethod
    def close(self) -> None:
        """Remove everything."""
