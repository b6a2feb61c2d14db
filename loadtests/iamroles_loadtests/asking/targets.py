"""Targets of a measurement: the gate on a stage, any URL, or any SPOE agent.

A target knows where requests go, what is asked there and which answers are right, and whose CPU time can be
read. `Gate` sets a stage and asks the pools of `questions`; the other two ask one question of a stranger.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import urlsplit

from iamroles_loadtests.asking import gate_config
from iamroles_loadtests.asking.cpu import Finder
from iamroles_loadtests.asking.plan import Ask, Phase, Pools
from iamroles_loadtests.asking.questions import POPULATIONS, Asking, straight
from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of
from iamroles_scenarios.stage import AgentSpec, Stage, World, open_stage
from iamroles_scenarios.stage.agent_handle import AgentHandle
from iamroles_scenarios.stage.reference import reference_agent
from iamroles_scenarios.stage.rendering import SHIPPED
from iamroles_scenarios.traffic import Address, Right

QUIET = {"IAM_LOG_LEVEL": "emerg"}
"""HAProxy's record is silenced: on a shared machine the suite's own reading of it would be measured."""
_RENDER = ("python", "-m", "iamroles_loadtests.asking.gate_config", "{world}", "{output}")
_AGE = {"max_connection_age": "1s"}
LIFE = 3500.0
"""Seconds that good tokens live: the policy takes none that live longer than an hour."""


class TargetError(Exception):
    """The requested target cannot be measured."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The pools that a run needs."""

    seconds: float
    """The run's length at most, for tokens that die during it."""
    new: int = 0
    """Tokens never seen before, for the paired measurement; 0: no pairs."""
    populations: Sequence[str] = ()
    hostile: bool = False
    cold: int = 0
    """Tokens for a phase in which every one is new."""
    tls: bool = False
    """Clients speak TLS to the gate."""
    streams: bool = False
    """A backend that streams."""
    second: bool = False
    """A second agent, which HAProxy knows, and which does not run yet; connections to both end of age."""


@dataclass(slots=True)
class Target:
    """A place to put load on."""

    address: str
    pools: Pools
    about: dict[str, Any]
    """`target` of result.json."""
    protocol: Literal["http", "spop"] = "http"
    tls: bool = False
    steady: str = "mix"
    """The pool of ordinary load."""
    paired: bool = False
    """True if it has the pools `unasked`, `remembered` and `new`."""
    parts: Mapping[str, Finder] = field(default_factory=dict)
    world: World | None = None
    second: AgentHandle | None = None
    """See `Wanted.second`."""

    def questions(self) -> list[int]:
        """Return the bytes that HAProxy has sent to each agent; of a connection when it ends."""
        assert self.world is not None  # noqa: S101 - only a gate on a stage has a second agent
        rows = csv.DictReader(self.world.haproxy.runtime("show stat iam-agents 4 -1").splitlines())
        return [int(row["bin"]) for row in rows]

    def phase(self, **more: Any) -> Phase:  # noqa: ANN401 - Phase checks
        """Make a phase of ordinary load, or what the keywords say."""
        about = {"address": self.address, "protocol": self.protocol, "tls": self.tls}
        return Phase.model_validate({**about, "weights": {self.steady: 1.0}, **more})

    def still_there(self) -> None:
        """Raise a StageError if the agent died."""
        if self.world is not None and not self.world.agent.spec.address and not self.world.agent.alive:
            raise StageError("The agent died under load.", self.world.logs())


@contextmanager
def gate(
    agent: AgentSpec,
    wanted: Wanted,
    *,
    kind: str = "auto",
    haproxy: str | None = None,
    straight_on: bool = False,
) -> Iterator[Target]:
    """A gate on a stage of its own.

    Args:
        agent: who answers.
        wanted: which pools.
        kind: of stage.
        haproxy: which one.
        straight_on: ask the agent itself by SPOP, without HAProxy.

    Raises:
        StageError, ControlError: a part of the stage failed.
        TargetError: TLS is wanted of a configuration that is the agent's own, or the run outlasts its tokens.
    """
    own = bool(agent.haproxy.get("render")) and tuple(agent.haproxy["render"]) != SHIPPED
    if wanted.seconds > LIFE:
        raise TargetError(
            f"This run may take {wanted.seconds:,.0f} s, and its tokens live {LIFE:,.0f} s: make it shorter."
        )
    if wanted.tls and own:
        raise TargetError("TLS needs the shipped HAProxy configuration: give the URL of your own with --url.")
    with open_stage(kind, haproxy=haproxy) as stage, TemporaryDirectory(prefix="iamroles-load-") as scratch:
        issuer = stage.idp.issuer("corp")
        issuer.add_key("RS256")
        issuer.add_key("ES256")
        asking = Asking(issuer.mint, life=LIFE)
        second = _second(stage, agent, scratch) if wanted.second else None
        asks = {} if second is None else {"IAM_AGENT_2": second.inner_address}
        with _world(stage, agent, scratch, wanted, asks, own=own, haproxy=not straight_on) as world:
            about: dict[str, Any] = {
                "kind": "stage",
                "agent": {"name": agent.name, "version": agent.version},
                "stage": stage.kind,
            }
            if straight_on:
                yield _straight(world, asking, about)
                return
            about["haproxy"] = world.haproxy.version
            if own:
                about["configuration"] = "the agent's own"
            address = world.proxy.url.removeprefix("http://")
            yield Target(
                address,
                _pools(asking, wanted, paired=not own),
                {**about, "address": address},
                tls=wanted.tls,
                paired=not own and wanted.new > 0,
                parts={
                    "haproxy": lambda: world.haproxy.host_pid,
                    "agent": lambda: world.agent.host_pid,
                },
                world=world,
                second=second,
            )


def _second(stage: Stage, agent: AgentSpec, scratch: str) -> AgentHandle:
    """Start an agent to learn its address, and stop it: it will come back there."""
    policy = gate_config.orders_policy() | {"agent": _AGE, "audit": {"path": f"{scratch}/second.jsonl"}}
    found = stage.world(agent, policy, haproxy=False).agent
    found.stop()
    return found


def _world(
    stage: Stage,
    agent: AgentSpec,
    scratch: str,
    wanted: Wanted,
    asks: Mapping[str, str],
    *,
    own: bool,
    haproxy: bool,
) -> World:
    bare = own or not haproxy
    policy = dict(policy_of(WorldSpec(policy="orders"))) if bare else gate_config.orders_policy()
    if agent.directory == reference_agent().directory:
        # By default it writes its audit to standard error, which the stage reads: on the same cores.
        folder = scratch if stage.kind == "processes" else "/tmp"  # noqa: S108 - the container's own
        policy["audit"] = {"path": f"{folder}/audit.jsonl"}
    if asks:
        policy["agent"] = _AGE
    if bare:
        return stage.world(agent, policy, settings=QUIET, haproxy=haproxy)
    for backend in policy["backends"]:
        if wanted.streams and backend["name"] == "export":
            del backend["servers"]
            backend["streams"] = True  # an echo backend of the stage answers
    words = [*(["--tls"] if wanted.tls else []), *(["--second"] if asks else [])]
    render = {**agent.haproxy, "render": [*_RENDER, *words]}
    return stage.world(replace(agent, haproxy=render), policy, settings={**QUIET, **asks})


def _pools(asking: Asking, wanted: Wanted, *, paired: bool) -> Pools:
    pools = {"mix": asking.mix(wanted.seconds)}
    if paired and wanted.new:
        pools |= asking.paired(wanted.new)
    for name in wanted.populations:
        pools[name] = asking.population(POPULATIONS[name])
    if wanted.hostile:
        pools["hostile"] = asking.hostile()
    if wanted.streams:
        pools["stream"] = [asking.stream()]
    if wanted.cold:
        pools["cold"] = asking.paired(wanted.cold)["new"]
    return pools


def _straight(world: World, asking: Asking, about: dict[str, Any]) -> Target:
    token = asking.token("known", "reader")
    check = {
        "authorization": f"Bearer {token}",
        "host": "api.example.com",
        "path": "/orders/1",
        "src": "127.0.0.1",
    }
    right = Right(200, (b"allow=true\n", b"principal=known\n"))
    address = world.agent.spop_address
    return Target(
        address,
        {"mix": [straight(check, "remembered", right)]},
        {**about, "address": address, "lane": "spop"},
        protocol="spop",
        parts={"agent": lambda: world.agent.host_pid},
        world=world,
    )


def url(
    where: str,
    *,
    method: str = "GET",
    fields: Sequence[tuple[str, str]] = (),
    right: Right | None = None,
    pids: Mapping[str, int] | None = None,
) -> Target:
    """Any HTTP/1.1 server.

    Args:
        where: `http://host:port/path` or `https://…`.
        method: of the requests.
        fields: header fields; without a Host among them, that of the URL is sent.
        right: which answers are right.
        pids: processes on this host whose CPU time is read, by name.

    Raises:
        TargetError: not such a URL.
    """
    try:
        parts = urlsplit(where)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise TargetError(f"not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TargetError(f"{place(where)!r}: write http://host:port/path or https://host:port/path")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not any(name.lower() == "host" for name, _ in fields):
        fields = [("Host", parts.netloc.rpartition("@")[2]), *fields]
    lines = [f"{method} {path} HTTP/1.1"]
    for name, value in fields:
        if any(character in name + value for character in "\r\n\0"):
            raise TargetError(f"header {name!r}: a line break cannot be sent")
        lines.append(f"{name}: {value}")
    if method in ("POST", "PUT", "PATCH"):
        lines.append("Content-Length: 0")
    ask = Ask(
        case=f"{method} {parts.path or '/'}",
        payload="\r\n".join([*lines, "", ""]),
        right=right or Right(),
        bodiless=method == "HEAD",
    )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Target(
        f"{host}:{port}",
        {"mix": [ask]},
        {"kind": "url", "address": place(where)},
        tls=parts.scheme == "https",
        parts=_fixed(pids),
    )


def place(where: str) -> str:
    """Return a URL without what may be a credential: user, password and query."""
    parts = urlsplit(where)
    query = "..." if parts.query else ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="").geturl()


def spoe(
    address: str,
    *,
    check: Mapping[str, Any] | None = None,
    right: Right | None = None,
    pids: Mapping[str, int] | None = None,
) -> Target:
    """Any SPOE agent, asked the contract's question.

    Args:
        address: `host:port` or `unix:/path`.
        check: arguments of `iam-check`.
        right: which answers are right; None: any.
        pids: as for `url`.

    Raises:
        TargetError: no address, or no such host.
    """
    try:
        Address.of(address)
    except ValueError as error:
        raise TargetError(str(error)) from error
    except OSError as error:
        raise TargetError(f"{address!r}: {error.strerror}") from error
    ask = straight(check or {}, "question", right or Right(0))
    return Target(
        address,
        {"mix": [ask]},
        {"kind": "spoe", "address": address, "lane": "spop"},
        protocol="spop",
        parts=_fixed(pids),
    )


def _fixed(pids: Mapping[str, int] | None) -> dict[str, Finder]:
    return {name: partial(int, pid) for name, pid in (pids or {}).items()}
