"""A world: one agent under one policy, and HAProxy before it."""

from __future__ import annotations

import csv
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, repeat
from typing import Any, Self

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import ProxyFileError, StageError
from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.stage.agent_handle import AgentHandle
from iamroles_scenarios.stage.composer import Composer
from iamroles_scenarios.stage.kind import HaproxyPlace, HaproxyRun, StageKind
from iamroles_scenarios.stage.output import Output
from iamroles_scenarios.stage.part import Part
from iamroles_scenarios.stage.rendering import Renderer, refusal
from iamroles_scenarios.stage.spec import AgentSpec, processing

_POLL = 0.005
"""Seconds between two looks at a socket that cannot announce itself."""
_START = 10.0
"""Seconds until HAProxy must answer."""
_HANDED_OVER = 8.0
"""Seconds until a reload has brought the used proofs of bound tokens to the new worker (docs/haproxy.md)."""


Between = Callable[[str, str], str]
"""Puts something between HAProxy and the agent: from an address of this host that HAProxy reaches, and the
agent's `host:port`, to the `host:port` that HAProxy shall ask (`relay.Relay`)."""


class HaproxyHandle:
    """The HAProxy of a world."""

    def __init__(
        self,
        place: HaproxyPlace,
        renderer: Renderer,
        composer: Composer,
        settings: Mapping[str, str],
    ) -> None:
        self.place = place
        """The place where it runs, or will."""
        self._renderer = renderer
        self._composer = composer
        self._settings = dict(settings)
        self._files: dict[str, str] = {}
        self._beside: dict[str, str] = {}
        self._runs: list[HaproxyRun] = []
        self._gone: int | None = None
        self._fault: StageError | None = None
        """Why it did not start."""
        self.closed = False
        """True once its world is over: nothing more is started on it."""
        self._lock = threading.RLock()

    @property
    def version(self) -> str:
        return self.place.version

    @property
    def master(self) -> str:
        """The master CLI, as an agent reaches it."""
        return self.place.master

    @property
    def processing(self) -> float:
        """Return for how many seconds it waits for a verdict."""
        return processing(self._settings)

    def put(self, name: str, text: str) -> None:
        """Put a file beside the rendered ones, for the next start or reload."""
        self._beside[name] = text

    def start(self, document: Mapping[str, Any], asks: Callable[[], str]) -> None:
        """Start on the files of a document, if it has not been; wait until the Runtime API answers.

        Args:
            document: the world file.
            asks: says whom it asks, `host:port`.

        Raises:
            ProxyFileError: HAProxy refused what the agent's own `render` wrote, or did not answer.
            StageError: the same of the shipped configuration.
        """
        with self._lock:
            if self._fault is not None:
                raise self._fault
            if self._runs or self.closed:
                return
            try:
                self._files = dict(self._renderer.render(document))
                self._settings["IAM_AGENT_1"] = asks()
                self._begin(None)
            except StageError as fault:
                self._fault = fault
                raise

    def reload(self, policy: Mapping[str, Any] | None = None) -> None:
        """Start a new process on the same listening socket; the old one keeps its live connections and ends.

        Args:
            policy: render the configuration for this one; None: the same configuration again.
        """
        with self._lock:
            if policy is not None:
                self._files = self._renderer.render(self._composer.document(policy))
            proofs = self._proofs(old=True)
            self._begin(self._runs[-1])
            if proofs > 0:
                any(self._proofs() not in range(proofs) for _last in polls(_HANDED_OVER, _POLL))

    def _proofs(self, *, old: bool = False) -> int:
        """Return how many used proofs HAProxy remembers, -1: none ever; `old`: when it can hand them over."""
        said = ""
        with suppress(OSError):
            said = self.runtime("show table")
        found = re.search(r"^# table: iam-proof,.* used:(\d+)", said, re.MULTILINE)
        if old and found and self.version.startswith("2."):  # within 5 s of a cold start it cannot
            done = re.compile(r" flags=0x[0-9a-f]*[37bf] resync")  # in both bits: nothing more to learn
            any(done.search(self.runtime("show peers")) for _last in polls(_HANDED_OVER, _POLL))
        return int(found[1]) if found else -bool(said)  # it may not have answered

    def restart(self) -> None:
        """SIGKILL, then a new one on the same files: what was open ends without a word."""
        with self._lock:
            recording.note("HAProxy is killed, and started again")
            self._runs[-1].part.kill()
            self._begin(None)

    def _begin(self, replaced: HaproxyRun | None) -> None:
        began = time.monotonic()
        run = self.place.start({**self._files, **self._beside}, self._settings, replaced)
        for last in polls(_START, _POLL):
            with suppress(OSError):
                if "Pid:" in run.runtime("show info"):
                    break
            if not run.part.alive:
                run.part.wait(1.0)
                run.part.stderr.finish()  # so that its last words are in the log
                log = run.part.log()
                run.part.kill()
                raise self._unusable(f"HAProxy {self.version} refused its configuration.", log)
            if last:
                log = run.part.log()
                run.part.kill()
                fault = self._unusable(f"HAProxy did not answer within {_START:g} s.", log)
                fault.began, fault.pid = began, run.part.host_pid
                raise fault
        if run is not replaced:  # a container's master reloads in place
            self._runs.append(run)

    def _unusable(self, what: str, log: str) -> StageError:
        """Say in one sentence whose fault it is that HAProxy does not run."""
        if not self._renderer.own:
            return StageError(what, {"haproxy": log})
        said = refusal(log) if "refused" in what else "the file must use IAM_STATS_SOCKET (docs/stage.md)"
        what = what.replace("its configuration.", f"what `{self._renderer.own}` wrote:")
        return ProxyFileError(f"{what} {said}", {"haproxy": log})

    @property
    def parts(self) -> list[Part]:
        """Return what runs or ran of it, a part for each generation."""
        return [run.part for run in self._runs]

    @property
    def host_pid(self) -> int | None:
        """The first process of the last generation, as this host numbers it; None if it is not to be seen."""
        return self._runs[-1].part.host_pid

    @property
    def worker(self) -> int:
        """Process id of the worker that takes new connections, as its part numbers it."""
        found = re.search(r"^Pid: *(\d+)", self.runtime("show info"), re.MULTILINE)
        return int(found[1]) if found else 0

    def send_to(self, worker: int, number: signal.Signals) -> None:
        """Send a signal to a worker, also to an old one."""
        self._runs[-1].part.send_to(worker, number)

    def runtime(self, command: str) -> str:
        """Send a Runtime API command, return the answer.

        Raises:
            OSError: HAProxy is gone.
        """
        return self._runs[-1].runtime(command)

    @property
    def agents(self) -> list[dict[str, str]]:
        """Return the statistics of each agent that HAProxy asks; [] if it has no backend `iam-agents`."""
        lines = self.runtime("show stat iam-agents 4 -1").splitlines()
        return list(csv.DictReader(line for line in lines if "," in line))

    def agent_is_up(self, agents: int = 1) -> bool:
        """Return whether HAProxy's health check holds this many agents for good, or all that it knows."""
        held = [row["status"].startswith(("UP", "no check")) for row in self.agents]
        return bool(held) and sum(held) >= min(agents, len(held))

    def wait_agent(self, up: bool, within: float = 10.0, agents: int = 1) -> bool:
        """Wait until the health check says so; returns whether it did by the deadline."""
        began = time.monotonic()
        if not any(self.agent_is_up(agents) == up for _last in polls(within, _POLL)):
            return False
        recording.note(f"HAProxy holds the agent for {'up' if up else 'down'}")
        recording.waited("a health check", time.monotonic() - began, within)
        return True

    @property
    def log_mark(self) -> tuple[int, ...]:
        """Return how many lines each generation has said so far, for `log_lines`."""
        return tuple(run.part.stdout.mark for run in list(self._runs))

    def log_lines(self, since: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """HAProxy's own record, one object for each request (docs/haproxy.md has the fields).

        Args:
            since: a `log_mark`; lines before it are left out.
        """
        return [
            found
            for run, first in zip(list(self._runs), chain(since, repeat(0)), strict=False)
            for line in run.part.stdout.lines(first)
            if (found := _record(line)) is not None
        ]

    def wait_log(
        self, accept: Callable[[dict[str, Any]], bool], within: float = 5.0
    ) -> dict[str, Any] | None:
        """The first record that is accepted; None at the deadline. A record is written after the answer."""

        def fits(line: str) -> bool:
            found = _record(line)
            return found is not None and accept(found)

        for run in self._runs[:-1]:
            if (line := next(filter(fits, run.part.stdout.lines()), None)) is not None:
                return _record(line)
        last = self._runs[-1].part.stdout.wait(fits, within=within)
        return None if last is None else _record(last)

    def logs(self) -> str:
        """Return its last words: warnings, then records."""
        return "\n".join(
            text
            for run in self._runs[-2:]
            for text in (run.part.stderr.tail(), run.part.stdout.tail())
            if text
        )

    def ended(self) -> int | None:
        """The exit code, if it ended by itself; None if it runs, or was asked to end."""
        if self.closed or not self._runs or self._runs[-1].part.alive:
            return self._gone
        return self._runs[-1].part.wait(1.0)

    def close(self) -> None:
        with self._lock:
            if self.closed:
                return
            self._gone, self.closed = self.ended(), True
            for run in self._runs:
                run.part.kill()
            self.place.close()


def _record(line: str) -> dict[str, Any] | None:
    with suppress(ValueError):
        found = json.loads(line) if line.startswith("{") else None
        return found if isinstance(found, dict) else None
    return None


class Proxy:
    """The address at which the suite speaks HTTP."""

    def __init__(self, host: str, port: int, scheme: str = "http") -> None:
        self.host = host
        self.port = port
        self._scheme = scheme

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.host}:{self.port}"


class World:
    """An agent under a policy, and HAProxy before it; a context manager.

    Attributes:
        agent: the agent.
        document: the world file as it was at the start.
    """

    def __init__(self, kind: StageKind, urls: Mapping[str, str], spec: AgentSpec, name: str) -> None:
        self.name = name
        self._kind = kind
        self._composer = Composer(kind, urls)
        self._spec = spec
        self._haproxy: HaproxyHandle | None = None
        self._between: Between | None = None
        self._neighbours: list[AgentHandle] = []
        self.document: dict[str, Any] = {}
        self.on_close: Callable[[World], None] | None = None
        place = kind.agent_place(spec, name) if spec.runs else None
        self.agent = AgentHandle(spec, place, self._composer)

    def start(
        self,
        policy: Mapping[str, Any],
        renderer: Renderer | None,
        settings: Mapping[str, str],
        between: Between | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Bring the agent up. HAProxy starts when somebody asks for it."""
        self.document = self._composer.document(policy)
        if renderer is not None:
            self._place_haproxy(renderer, settings, files or {})
        self._between = between
        for name, text in (files or {}).items():
            self.agent.put(name, text)
        self.agent.write(self.document, "" if self._haproxy is None else self._haproxy.master)
        try:
            self.agent.start()
        except StageError as error:
            if set(error.logs) == {"agent"}:
                error.world = json.dumps(self.document)
            raise

    def _place_haproxy(
        self, renderer: Renderer, settings: Mapping[str, str], beside: Mapping[str, str]
    ) -> None:
        if self._spec.address and not self._kind.reaches(self._spec.address):
            raise StageError(
                f"HAProxy in a container cannot reach {self._spec.address} on the host: let the agent "
                "listen on an address of the host's, or choose the stage of processes."
            )
        place = self._kind.haproxy_place(self.name)
        self._haproxy = HaproxyHandle(place, renderer, self._composer, settings)
        for name, text in beside.items():
            self._haproxy.put(name, text)

    def _asked(self) -> str:
        if self._between is None:
            return self.agent.inner_address
        return self._between(self._kind.host, self.agent.spop_address)

    def neighbour(self) -> AgentHandle:
        """Start a second agent on the same world file and HAProxy's master CLI; HAProxy never asks it.

        Files that the world needs beside its own are `put` for each of them. Closed with the world.
        """
        place = self._kind.agent_place(self._spec, f"{self.name}n")
        found = AgentHandle(self._spec, place, self._composer)
        self._neighbours.append(found)
        found.write(self.document, self.haproxy.master)
        found.start()
        # Agents are distinguished by where they listen: from its second start on that is its own port, not 0.
        found.stop()
        found.start()
        return found

    @property
    def proxy(self) -> Proxy:
        """Return where HAProxy listens.

        Raises:
            StageError: as `haproxy`.
        """
        place = self.haproxy.place
        return Proxy(place.host, place.port)

    @property
    def tls_proxy(self) -> Proxy:
        """Return where HAProxy listens by IAM_BIND_TLS, which the world's settings must have.

        Raises:
            StageError: as `haproxy`.
        """
        place = self.haproxy.place
        return Proxy(place.host, place.tls_port, "https")

    @property
    def haproxy(self) -> HaproxyHandle:
        """HAProxy, which has been started.

        Raises:
            StageError: the world has no HAProxy, or it did not start (`HaproxyHandle.start`).
        """
        if self._haproxy is None:
            raise StageError("This world has no HAProxy: it was made with haproxy=False.")
        self._haproxy.start(self.document, self._asked)
        return self._haproxy

    def haproxy_ended(self) -> int | None:
        """HAProxy's exit code, where it ended by itself; None without HAProxy too."""
        return None if self._haproxy is None else self._haproxy.ended()

    @property
    def host_pids(self) -> list[int | None]:
        """The first processes of agents and HAProxy, as this host numbers them, ended ones too."""
        return [part.host_pid for _, part in self._parts()]

    def logs(self) -> dict[str, str]:
        found = {"agent": self.agent.logs()}
        if self._haproxy is not None:
            found["haproxy"] = self._haproxy.logs()
        found |= {name: part.log() for name, part in self._composer.echo.items()}
        return found

    def _parts(self) -> Iterator[tuple[str, Part]]:
        for agent in (self.agent, *self._neighbours):
            yield from (("agent", part) for part in agent.parts)
        yield from () if self._haproxy is None else (("HAProxy", part) for part in self._haproxy.parts)

    def outputs(self) -> Iterator[tuple[str, Output]]:
        """Yield all that agents and HAProxy wrote, over their restarts, each with the name of its part."""
        for name, part in self._parts():
            for stream in (part.stdout, part.stderr):
                if not part.alive:
                    stream.finish()
                yield name, stream

    def close(self) -> None:
        """Stop HAProxy and the agents; idempotent."""
        for neighbour in self._neighbours:
            neighbour.close()
        if self._haproxy is not None:
            self._haproxy.close()
        self.agent.close()
        if self.on_close is not None:
            self.on_close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
