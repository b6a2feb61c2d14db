"""Write the HAProxy configuration of a policy: static files and a file of routes (docs/haproxy.md).

`haproxy.cfg` and `iam.spoe.cfg` are the same for every policy, except for the settings at the top of the
first. `iam-routes.cfg` holds the agents and the policy's backends. A backend named ``x`` becomes the section
``route-x``: with the prefix, an agent's answer can never name another section.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import files
from ipaddress import ip_address
from math import ceil
from pathlib import Path
from typing import Any

import click

from iamroles_agent.base.config import Backend, Config
from iamroles_agent.base.errors import ConfigError, Problem
from iamroles_agent.base.files import write as write_file
from iamroles_agent.commands.shared import end, ends_if_unsound
from iamroles_agent.policy.checks import tls_faults
from iamroles_agent.policy.load import load

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_TIME = re.compile(r"(?!0+[a-z]*$)([0-9]{1,9}(us|ms)?|[0-9]{1,6}s|[0-9]{1,4}m|[0-9]{1,2}h|[0-9]d)")
"""HAProxy takes 0 for an endless wait, and does not start with more than 2^31 milliseconds."""
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_PRESET = re.compile(r'^(?P<lead> +(pre)?setenv +(?P<name>IAM_[A-Z_]+) +)"(?P<value>[^"]*)"$', re.MULTILINE)
_VARIABLE = re.compile(r'"\$\{(\w+)\[\*\]\}"|\$\{(\w+)\}')

_BLOCK = re.compile(r"^ *\.if .*?^ *\.endif\n", re.MULTILINE | re.DOTALL)
_BRANCH = re.compile(r"^ *\.(if|elif|else|endif) ?(.*)\n", re.MULTILINE)
_AT_LEAST = re.compile(r"(!?)version_atleast\((\d+)\.(\d+)(\.\d+)?\)")
_SAYS = re.compile(r'(!?)(?:streq\("\$(\w+)","(.*?)"\)|defined\((\w+)\))')
RELEASES = ("2.6", "2.8", "3.0", "3.1", "3.2")
"""The releases for which `--haproxy` writes."""

_PATH = click.Path(path_type=Path)
_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_OPTIONS = "command line"
_LONGEST_PATH = 97
"""Bytes: HAProxy keeps ten of the kernel's 107 for the name of a temporary file."""
_MOST_CONNECTIONS = 500_000_000
"""A connection takes two descriptors, and Linux lets a process have 2^30."""
_ADDRESSES = 'Give one "host:port" or more; an agent may also be "unix:/path"'


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's choices; None keeps the default in `haproxy.cfg`."""

    agents: tuple[str, ...]
    """`host:port` or `unix:/path`, at least one."""
    agent_ca: str | None = None
    """PEM file of the authorities that must have issued the agents' certificates, on TCP."""
    agent_certificate: str | None = None
    """PEM file with HAProxy's own certificate and key, for the agents."""
    agent_name: str | None = None
    """DNS name in the agents' certificates; None: each agent's own host name."""
    chroot: str | None = None
    """HAProxy's `chroot`, from inside of which it sees Unix sockets."""
    bind: str | None = None
    stats_socket: str | None = None
    log: str | None = None
    realm: str | None = None
    maxconn: int | None = None
    timeout_processing: str | None = None
    haproxy: str | None = None
    """One of `RELEASES`, to leave out what is for others; None: for all, by HAProxy's own `.if`."""

    def presets(self) -> dict[str, str]:
        """Return the given settings by the name of their environment variable."""
        given = {
            name: value
            for name, value in asdict(self).items()
            if value is not None and name not in {"chroot", "haproxy"} and not name.startswith("agent")
        }
        if self.chroot is not None:
            given["peer"] = _peer(self.chroot.rstrip("/"))
        return {f"IAM_{name.upper()}": str(value) for name, value in given.items()}


def configuration(config: Config, settings: Settings, *, source: str = "the policy") -> dict[str, str]:
    """Make the configuration's files; messages and the written file name `source` as the policy's file.

    Returns:
        Texts by file name: `haproxy.cfg`, `iam.spoe.cfg`, `iam-routes.cfg`, `iam-live.lua`.

    Raises:
        ConfigError: HAProxy cannot express some backends; each with its key.
    """
    if problems := list(_problems(config, settings, source)):
        raise ConfigError(problems)
    says = environment(config, settings)
    texts = {
        "haproxy.cfg": _PRESET.sub(lambda one: f'{one["lead"]}"{says[one["name"]]}"', shipped("haproxy.cfg")),
        "iam.spoe.cfg": shipped("iam.spoe.cfg"),
        "iam-routes.cfg": _routes(config, settings, source),
    }
    if settings.haproxy is not None:
        texts = {name: for_release(text, settings.haproxy) for name, text in texts.items()}
        texts["haproxy.cfg"] = guard(settings.haproxy) + texts["haproxy.cfg"]
    return {**texts, "iam-live.lua": shipped("iam-live.lua")}


def for_release(text: str, release: str, values: Mapping[str, str] | None = None) -> str:
    """Leave out the branches of `.if` that do not hold on a release, e.g. "3.0".

    Given `values` of the environment, write them into the text and leave no `.if`: a condition on a patch
    release counts as false then, because older patches' rules refuse more.
    """
    text = _BLOCK.sub(lambda block: _branches(block[0], release, values), text)
    return text if values is None else _VARIABLE.sub(lambda one: values[one[1] or one[2]], text)


def _branches(block: str, release: str, values: Mapping[str, str] | None) -> str:
    _, *parts = _BRANCH.split(block)
    kept = ""
    for word, condition, body in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
        holds = word == "else" or (word != "endif" and _holds(condition, release, values))
        if word == "endif":
            return f"{kept}.endif\n" if kept else ""
        if holds and not kept:
            return body
        if holds:
            return f"{kept}.else\n{body}.endif\n"
        if holds is None and values is None:
            kept += f"{'.elif' if kept else '.if'} {condition}\n{body}"
    raise ValueError(block)


def _holds(condition: str, release: str, values: Mapping[str, str] | None) -> bool | None:
    """Tell if a condition holds on every patch of a release; None if HAProxy itself must tell."""
    if (found := _AT_LEAST.fullmatch(condition)) is None:
        if values is None:
            return None
        if _SAYS.sub("", condition).strip(" &|"):
            raise ValueError(condition)
        return any(
            all(
                (defined in values if defined else values[name] == text) != bool(no)
                for no, name, text, defined in _SAYS.findall(one)
            )
            for one in condition.split("||")
        )
    wanted, has = (int(found[2]), int(found[3])), tuple(map(int, release.split(".")))
    return None if found[4] and has == wanted else (has >= wanted) != bool(found[1])


def guard(release: str) -> str:
    """Make HAProxy refuse to start on files of another release: rules that it needs may be left out."""
    major, minor = release.split(".")
    return (
        f".if !version_atleast({release})\n"
        f'    .alert "these files are for HAProxy {release}"\n'
        f".elif version_atleast({major}.{int(minor) + 1})\n"
        f'    .alert "these files are for HAProxy {release}"\n'
        ".endif\n"
    )


def shipped(name: str) -> str:
    """Read a file of this directory: a whole file to write, or a piece of `iam-routes.cfg`."""
    return files("iamroles_tools.haproxy").joinpath(name).read_text()


def write(texts: dict[str, str], output: Path) -> None:
    """Write the files, each whole or not at all, so that a reload never reads part of a file.

    Raises:
        OSError: the directory or a file cannot be written.
    """
    for directory in (*reversed(output.parents), output):
        directory.mkdir(0o755, exist_ok=True)  # nobody else may write it, whatever the umask
    for name, text in texts.items():
        write_file(output / name, text.encode(errors="backslashreplace"))  # of the policy's file name


def environment(config: Config, settings: Settings) -> dict[str, str]:
    """Return the value of each setting of `haproxy.cfg`, by the name of its variable."""
    defaults = {one["name"]: one["value"] for one in _PRESET.finditer(shipped("haproxy.cfg"))}
    return defaults | settings.presets() | _bound(config)


def _peer(chroot: str) -> str:
    """Return where a reload hands its tables over: one path for the new worker, which binds it from outside
    of the chroot, and the old one inside.

    A link in the chroot that names the chroot itself makes them one place, and without the link HAProxy does
    not start. An abstract socket would serve as well, but every process of the host could connect to it.
    """
    return f"unix@{chroot}{chroot}/iam-peer.sock mode 600 user haproxy"


def _bound(config: Config) -> dict[str, str]:
    """Return what the policy says of MCP, streams and bound tokens, by the name of its variable."""
    found = {"IAM_MCP": "yes"} if config.resources else {}
    if any(backend.renew for backend in config.backends):
        found["IAM_RENEW"] = "yes"
    if not config.binds:
        return found
    found["IAM_BOUND"] = "yes"
    if config.client_certificate is not None:
        found["IAM_CERTIFICATE_FROM"] = " ".join(config.client_certificate.from_)
    if (dpop := config.dpop) is not None:
        found["IAM_DPOP"] = " ".join(dpop.algorithms)
        if dpop.replay == "proxy":
            found["IAM_REPLAY"] = f"{ceil(1000 * (dpop.max_age + 2 * dpop.leeway))}ms"
    return found


def _routes(config: Config, settings: Settings, source: str) -> str:
    renews, counts = (name in _bound(config) for name in ("IAM_RENEW", "IAM_REPLAY"))
    head = shipped("agents.cfg").format(
        source=source.replace("\n", " "),
        servers="\n".join(
            f'    server agent-{index} "${{IAM_AGENT_{index}-{_address(agent, settings.chroot)}}}"'
            + agent_tls(settings, agent)
            for index, agent in enumerate(settings.agents, 1)
        ),
        lua=(shipped("lua.cfg") if any(backend.streams for backend in config.backends) else "")
        + (shipped("counters.cfg") if renews and counts else ""),
    )
    section = "\n" + shipped("backend.cfg")
    return head + "".join(
        section.format(
            name=backend.name,
            streams=_streams(backend).replace("{counter}", "3" if counts else "1"),
            servers="\n".join(
                f"    server {backend.name}-{index} {server}{_tls(backend, server)}"
                for index, server in enumerate(backend.servers, 1)
            ),
        )
        for backend in config.backends
    )


def _streams(backend: Backend) -> str:
    """Return the lines that end or refuse streams in a backend."""
    names = [*(["renew"] if backend.renew else []), "streams"] if backend.streams else ["no-streams"]
    text = "\n".join(shipped(f"{name}.cfg").rstrip() for name in names)
    return text.replace("{name}", backend.name)


def _tls(backend: Backend, server: str) -> str:
    """Return the words of a `server` line that demand a certificate of `ca` with the name."""
    if (tls := backend.tls) is None:
        return ""
    name = tls.name or server.rpartition(":")[0]
    words = f" ssl verify required ca-file {tls.ca} sni str({name}) check-sni {name} verifyhost {name}"
    return f"{words} crt {tls.certificate}" if tls.certificate else words


def agent_tls(settings: Settings, agent: str) -> str:
    """Return the words of a `server` line by which HAProxy believes an agent on TCP, and is believed."""
    if settings.agent_ca is None or agent.startswith("unix:"):
        return ""
    name = settings.agent_name or agent.rpartition(":")[0]
    words = f" ssl ssl-min-ver TLSv1.2 verify required ca-file {settings.agent_ca} verifyhost {name}"
    return f"{words} crt {settings.agent_certificate}"


def _address(agent: str, chroot: str | None) -> str:
    """Return an address in HAProxy's words, as it sees that from inside its chroot."""
    path = agent.removeprefix("unix:")
    if path != agent and chroot:
        path = f"/{Path(path).relative_to(chroot)}"
    return agent if path == agent else f"unix@{path}"


def _problems(config: Config, settings: Settings, source: str) -> Iterator[Problem]:
    """Find values that HAProxy cannot express, or that would add words to its configuration.

    The loader refuses most of them, but code may make a `Config` without the loader.
    """
    for index, backend in enumerate(config.backends):
        key = f"backends[{index}]"
        if not _NAME.fullmatch(backend.name):
            remedy = "Use up to 100 letters, digits, '.', '_', ':' and '-'"
            yield Problem(source, f"{key}.name", f"{backend.name!r} cannot name a section", remedy)
        if not backend.servers:
            yield Problem(source, f"{key}.servers", "no servers to route to", _ADDRESSES)
        for number, server in enumerate(backend.servers):
            if not _is_host_port(server):
                yield Problem(source, f"{key}.servers[{number}]", f"{server!r} is not an address", _ADDRESSES)
        for fault in tls_faults(key, backend):
            yield Problem(source, fault.key, fault.message, fault.remedy)
    yield from unshared(config, len(settings.agents), source)
    yield from unusable(config, settings, config.agent.addresses)


def unshared(config: Config, agents: int, source: str) -> Iterator[Problem]:
    """Find what several agents must have together, and have each for itself."""
    if agents > 1 and config.identity_header is not None and config.identity_header.secrets is None:
        wrong = f"{agents} agents would have keys of their own: a server that asks one refuses the others'"
        remedy = 'Name a file of secrets that all agents have (docs/backends.md, "Several agents")'
        yield Problem(source, "identity_header.secrets", wrong, remedy)


def unusable(config: Config, settings: Settings, own: Collection[str]) -> Iterator[Problem]:
    """Find options that HAProxy cannot express, or that would add words to its configuration.

    The policy's `[agent.tls]` holds for the agents in `own`.
    """
    yield from _agent_problems(settings)
    on_tcp = any(agent in own and not agent.startswith("unix:") for agent in settings.agents)
    if on_tcp and (settings.agent_ca is None) != (config.agent.tls is None):
        given, has = ("missing", "has") if settings.agent_ca is None else ("given", "has no")
        wrong = f"is {given}, and the policy {has} [agent.tls]"
        yield Problem(_OPTIONS, "--agent-ca", wrong, "HAProxy and agent both speak TLS, or neither does")
    if settings.timeout_processing and not _TIME.fullmatch(settings.timeout_processing):
        wrong = f"{settings.timeout_processing!r} is not a time for HAProxy"
        yield Problem(_OPTIONS, "--timeout-processing", wrong, "Write `500ms` or `2s`")
    if "%" in (settings.realm or ""):
        yield Problem(_OPTIONS, "--realm", f"HAProxy reads a format in {settings.realm!r}", "Leave out %")
    for name, value in settings.presets().items():
        if not re.fullmatch(r'[^"\\$\x00-\x1f\x7f]{1,200}', value):
            option = f"--{name.removeprefix('IAM_').lower().replace('_', '-')}"
            remedy = "Leave out quotes, backslashes, dollar signs and control characters"
            yield Problem(_OPTIONS, option, f"{value!r} cannot stand in HAProxy's configuration", remedy)


def _agent_problems(settings: Settings) -> Iterator[Problem]:
    for agent in settings.agents:
        path = agent.removeprefix("unix:")
        if not (_is_host_port(agent) or re.fullmatch(r"unix:/[A-Za-z0-9._/-]{1,200}", agent)):
            yield Problem(_OPTIONS, "--agent", f"{agent!r} is not an address to connect to", _ADDRESSES)
        elif path != agent and settings.chroot and not is_below(path, settings.chroot):
            wrong = f"{path} is not below {settings.chroot}, so HAProxy cannot reach it"
            yield Problem(_OPTIONS, "--chroot", wrong, "Let the agent listen below it, or leave --chroot out")
        elif path != agent:
            size = len(_address(agent, settings.chroot).removeprefix("unix@"))
            if size > _LONGEST_PATH:
                wrong = f"{path} has {size} bytes as HAProxy sees it, and HAProxy takes {_LONGEST_PATH}"
                yield Problem(_OPTIONS, "--agent", wrong, "Let the agent listen at a shorter path")
        elif settings.agent_ca and not settings.agent_name and _is_ip(agent):
            wrong = f"{agent} is not a DNS name, which the agent's certificate could carry"
            yield Problem(_OPTIONS, "--agent-name", wrong, "Give the name in the agent's certificate")
    if (settings.agent_ca is None) != (settings.agent_certificate is None):
        wrong = "of --agent-ca and --agent-certificate only one is given"
        yield Problem(
            _OPTIONS, "--agent-ca", wrong, "HAProxy and agent prove who they are to each other: give both"
        )
    if not settings.agents:
        yield Problem(_OPTIONS, "--agent", "no agent to ask", _ADDRESSES)
    for option in ("agent_ca", "agent_certificate", "agent_name", "chroot"):
        value = getattr(settings, option)
        if value is not None and not re.fullmatch(r"[A-Za-z0-9._/-]{1,200}", value):
            wrong = f"{value!r} cannot stand in HAProxy's configuration"
            remedy = "Use up to 200 letters, digits, '.', '_', '/' and '-'"
            yield Problem(_OPTIONS, f"--{option.replace('_', '-')}", wrong, remedy)


def is_below(path: str, directory: str) -> bool:
    """Tell if a path names something in a directory, without a way out of it."""
    return Path(directory) in Path(path).parents and ".." not in Path(path).parts


def _is_host_port(text: str) -> bool:
    found = _HOST_PORT.fullmatch(text)
    return found is not None and 0 < int(found["port"]) < 65536


def _is_ip(address: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(address.rpartition(":")[0].strip("[]")))
    return False


_ELSEWHERE = ("agents", "bind", "chroot", "log", "maxconn", "stats_socket")
"""Options that say what the controller decides."""


@click.command("render")
@click.option(
    "--for",
    "platform",
    type=click.Choice(["kubernetes-ingress"]),
    help="Write iam-kubernetes.yaml instead, for HAProxy Technologies' ingress controller.",
)
@click.option("--image", help="With --for: the agent's image.")
@click.option("--namespace", help="With --for: of the agents.  [default: iam]")
@click.option("--controller", metavar="NAMESPACE/CONFIGMAP", help="With --for: the controller's ConfigMap.")
@click.option("--cluster-domain", "domain", help="With --for.  [default: cluster.local]")
@click.option("--replicas", type=click.IntRange(1, 50), help="With --for: agents.  [default: 2]")
@click.option("--client-ca", metavar="NAMESPACE/SECRET", help="With --for: of clients' certificates.")
@click.option("--secret", is_flag=True, default=None, help="With --for: the policy becomes a Secret.")
@click.option("--config", "path", type=_PATH, required=True, help="The policy, TOML or JSON.")
@click.option("--output", type=_DIRECTORY, required=True, help="Directory to write.")
@click.option(
    "--agent",
    "agents",
    multiple=True,
    help="Where an agent listens: host:port or unix:/path; several for redundancy. Default: the "
    "first of `agent.listen`.",
)
@click.option(
    "--agent-ca",
    metavar="FILE",
    help="For agents on TCP with [agent.tls]: authorities that must have issued the agents' certificates.",
)
@click.option("--agent-certificate", metavar="FILE", help="HAProxy's certificate and key, for the agents.")
@click.option("--agent-name", help="DNS name in the agents' certificates. Default: the host of --agent.")
@click.option(
    "--chroot", metavar="DIRECTORY", help="HAProxy's chroot: Unix sockets are written as seen inside."
)
@click.option(
    "--haproxy",
    type=click.Choice(RELEASES),
    help="Leave out what is for other releases. Default: files for all, which look at HAProxy's version.",
)
@click.option("--bind", help="Where HAProxy listens (IAM_BIND).")
@click.option("--stats-socket", help="HAProxy's Runtime API socket (IAM_STATS_SOCKET).")
@click.option("--log", help="HAProxy's log target (IAM_LOG).")
@click.option("--realm", help="Realm of WWW-Authenticate (IAM_REALM).")
@click.option(
    "--maxconn", type=click.IntRange(1, _MOST_CONNECTIONS), help="Most client connections (IAM_MAXCONN)."
)
@click.option(
    "--timeout-processing", help="How long a request waits for its verdict (IAM_TIMEOUT_PROCESSING)."
)
def render(
    path: Path,
    output: Path,
    agents: tuple[str, ...],
    platform: str | None,
    **choices: Any,  # noqa: ANN401
) -> None:
    """Write HAProxy's configuration for a policy: haproxy.cfg, iam.spoe.cfg, iam-routes.cfg, iam-live.lua.

    Exit status: 0 written, 2 for a wrong policy or option, 3 if the directory cannot be written.
    """
    names = ("image", "namespace", "controller", "domain", "replicas", "client_ca", "secret")
    cluster = {name: value for name in names if (value := choices.pop(name)) is not None}
    with ends_if_unsound():
        config = load(path)
        if platform is None:
            if cluster:
                words = click.get_current_context().command.params
                named = next(word.opts[0] for word in words if word.name in cluster)
                raise click.UsageError(f"{named} goes with --for kubernetes-ingress")
            settings = Settings(agents or tuple(config.agent.addresses[:1]), **choices)
            texts = configuration(config, settings, source=path.name)
        else:
            texts = {"iam-kubernetes.yaml": _manifests(config, path, {"agents": agents, **choices}, cluster)}
    try:
        write(texts, output)
    except OSError as error:
        end(3, f"{error.filename}: cannot be written: {error.strerror}")
    for name in texts:
        click.echo(str(output / name))


def _manifests(config: Config, path: Path, choices: dict[str, Any], cluster: dict[str, Any]) -> str:
    from iamroles_tools.haproxy import kubernetes  # noqa: PLC0415 - it builds on this module

    if wrong := [name for name in _ELSEWHERE if choices[name]]:
        raise click.UsageError(
            f"--{wrong[0].replace('_', '-').rstrip('s')} is the ingress controller's affair"
        )
    if "image" not in cluster:
        raise click.UsageError("--image says which image the agents run")
    release = choices.pop("haproxy") or RELEASES[-1]
    settings = Settings(**{**choices, "haproxy": release})
    return kubernetes.manifests(config, path, settings, kubernetes.Cluster(**cluster))
