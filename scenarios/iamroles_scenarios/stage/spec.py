"""`agent.toml`: how an agent is started and what it declares (SPEC.md section 8)."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from iamroles_scenarios.base.durations import seconds
from iamroles_scenarios.base.errors import AgentFileError

_TABLES = {"spec", "name", "version", "launch", "features", "haproxy", "known_failures"}
_LAUNCH = {"command", "image", "address", "build", "env", "preload", "ready_within"}
_HAPROXY = {"render", "settings"}
_KEY = re.compile(r'\s*(?:\[(?P<table>[\w.-]+)\]|(?P<quote>"?)(?P<key>[\w.\[\]-]+)(?P=quote)\s*=)')
_POLICY_VARIABLES = ("IAMROLES_POLICY", "IAMROLES_WORLD")
"""With the path of the world file; agents of vendors may still read the second, its deprecated synonym."""
AUTHORITIES = "authorities.pem"
"""The file beside the world file that SSL_CERT_FILE names; most worlds have none."""
PROCESSING = 2.0
"""Seconds that HAProxy waits for a verdict where a world does not say (docs/haproxy.md)."""
FEATURES = {
    "oidc": "true or false",
    "sts": "true or false",
    "live": "true or false",
    "renew": "true or false",
    "proof": "true or false",
    "certificate": "true or false",
    "dpop": "true or false",
    "actor": "true or false",
    "mcp": "true or false",
    "limits": "true or false",
    "age": "true or false",
    "workers": "true or false",
    "pair": "true or false; left out, it is true with the shipped HAProxy configuration",
    "identity": "true or false",
    "authorities": "true or false",
    "reload": 'a signal such as "SIGHUP", or false',
    "spop": "false where HAProxy asks by other means than SPOP; else leave it out",
}
"""The features that can be declared, and what each takes; checks need no others (a test holds it)."""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent under test. Exactly one of command, image and address is set; none where `spop` is false and
    HAProxy's own configuration decides.
    """

    name: str
    version: str
    directory: Path
    """The folder of `agent.toml`: a relative command or build path starts here."""
    path: Path = Path("agent.toml")
    """As the caller named it."""
    command: tuple[str, ...] = ()
    image: str = ""
    address: str = ""
    build: str = ""
    """With `command`: "python" runs it in the stage's own Python image where the stage uses containers, a
    directory with a Dockerfile builds an image for it; "" runs it as a process of the host there too."""
    env: dict[str, str] = field(default_factory=dict)
    ready_within: float = 20.0
    """Seconds until the ready line."""
    features: dict[str, Any] = field(default_factory=dict)
    haproxy: dict[str, Any] = field(default_factory=dict)
    known_failures: dict[str, str] = field(default_factory=dict)
    """Reason by check id."""
    preload: tuple[str, ...] = ()
    """Modules of an agent in Python that need not be imported at each start (`fork_server`)."""

    @classmethod
    def load(cls, path: Path | str) -> AgentSpec:
        """Read and check an `agent.toml`.

        Raises:
            AgentFileError: naming the file, the line, the key and the remedy.
        """
        path = Path(path)
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            remedy = "`iamroles conformance init` writes a first one"
            raise AgentFileError(f"{path}: cannot be read: {error.strerror}; {remedy}.") from error
        except (ValueError, RecursionError) as error:
            raise AgentFileError(f"{path}: is not TOML: {error}.") from error
        try:
            return cls.of(document, path)
        except AgentFileError as error:
            raise AgentFileError(located(path, error.message.removeprefix(f"{path}: "))) from None

    @classmethod
    def of(cls, document: dict[str, Any], path: Path) -> AgentSpec:
        """Check a parsed `agent.toml`; `path` names it in errors and anchors relative paths."""
        _known(document, _TABLES, path, "")
        if document.get("spec") != 1:
            raise AgentFileError(f"{path}: spec: must be 1, the version of the contract.")
        launch = _table(document, "launch", path)
        _known(launch, _LAUNCH, path, "launch.")
        ways = [key for key in ("command", "image", "address") if launch.get(key)]
        features = _features(document, path)
        haproxy = _table(document, "haproxy", path)
        if len(ways) != 1 and (ways or declares(features, "spop")):
            raise AgentFileError(f"{path}: launch: needs exactly one of command, image and address.")
        if not declares(features, "spop") and not haproxy.get("render"):
            raise AgentFileError(
                f"{path}: features.spop: is false, so haproxy.render must name the command that writes "
                "HAProxy's configuration."
            )
        command = _words(launch, "command", path, "launch.")
        if not _words(haproxy, "render", path, "haproxy.") and "render" in haproxy:
            raise AgentFileError(f"{path}: haproxy.render: is empty; name the command, or leave it out.")
        try:
            processing(_texts(haproxy, "settings", path, "haproxy."))
        except ValueError as error:
            raise AgentFileError(f"{path}: haproxy.settings.IAM_TIMEOUT_PROCESSING: {error}.") from None
        if (address := _text(launch, "address", path, "launch.")) and not is_address(address):
            raise AgentFileError(f"{path}: launch.address: is {address!r}; write host:port or unix:/path.")
        spec = cls(
            name=_text(document, "name", path) or path.parent.name,
            version=_text(document, "version", path),
            directory=path.resolve().parent,
            path=path,
            command=tuple(command),
            image=_text(launch, "image", path, "launch."),
            address=address,
            build=_text(launch, "build", path, "launch."),
            env=_texts(launch, "env", path, "launch."),
            preload=tuple(_words(launch, "preload", path, "launch.")),
            ready_within=_number(launch, "ready_within", 20.0, path, "launch."),
            features=features,
            haproxy=haproxy,
            known_failures=_texts(document, "known_failures", path),
        )
        _known(spec.haproxy, _HAPROXY, path, "haproxy.")
        if "render" not in spec.haproxy:
            spec.features.setdefault("pair", True)
        return spec

    @property
    def runs(self) -> bool:
        """Return whether the stage starts a process or container of it."""
        return bool(self.command or self.image)

    @property
    def spop(self) -> bool:
        """Return whether it speaks SPOP: then it can be judged on the wire and without HAProxy."""
        return declares(self.features, "spop")

    @property
    def reload_signal_name(self) -> str:
        """The signal that makes the agent read its world again, "" if it cannot."""
        return str(self.features.get("reload", "") or "")

    def environment(self, world: str) -> dict[str, str]:
        """The environment that the agent starts with, the path of its world file included."""
        found = self.env | dict.fromkeys(_POLICY_VARIABLES, world)
        if declares(self.features, "authorities"):
            found["SSL_CERT_FILE"] = str(Path(world).with_name(AUTHORITIES))
        return found

    def argv(self) -> list[str]:
        """The command with its program found: beside `agent.toml`, beside this Python, or on PATH.

        Raises:
            AgentFileError: it is in none of these places.
        """
        program, *rest = self.command
        return [find_program(program, self.directory, f"{self.path}: launch.command"), *rest]


def located(path: Path, said: str) -> str:
    """Put the file before a sentence `key: …`, and the line of this key or of the table that holds it."""
    key, lines, table = said.partition(": ")[0], {0: ""}, ""
    for number, row in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), 1):
        if found := _KEY.match(row):
            table = found["table"] or table
            here = found["table"] or ".".join(filter(None, (table, found["key"])))
            if f"{key}.".startswith(f"{here}."):
                lines[number] = here
    line = max(lines, key=lambda number: len(lines[number]))
    return f"{path}:{line}: {said}" if line else f"{path}: {said}"


def declares(features: Mapping[str, Any], name: str) -> bool:
    """Return whether these features have this one: SPOP unless denied, others if declared."""
    return bool(features.get(name, name == "spop"))


def processing(settings: Mapping[str, str]) -> float:
    """Return for how many seconds a HAProxy with these settings waits for a verdict.

    Raises:
        ValueError: the setting is not a duration.
    """
    value = settings.get("IAM_TIMEOUT_PROCESSING", f"{PROCESSING:g}s")
    return seconds(f"{value}ms" if value.isdecimal() else value)  # as HAProxy reads it


def is_address(text: str) -> bool:
    """Return whether an agent can be at this address: `host:port` or `unix:/path`."""
    host, _, port = text.rpartition(":")
    return text.startswith("unix:/") or bool(host and port.isdecimal() and 0 < int(port) < 65536)


def find_program(program: str, directory: Path | None, key: str = "launch.command") -> str:
    """Find a program beside `agent.toml`, in this virtual environment, or on PATH.

    Args:
        program: its name or path.
        directory: of `agent.toml`; None: a program of the suite, which no file there may stand in for.
        key: what names it, for the error.

    Raises:
        AgentFileError: it is nowhere.
    """
    if directory is not None and (found := directory / program).is_file():
        return str(found)
    if "/" not in program:
        if program in ("python", "python3"):
            return sys.executable
        beside = Path(sys.executable).parent / program
        if beside.is_file():
            return str(beside)
        if on_path := shutil.which(program):
            return on_path
    raise AgentFileError(
        f"{key}: {program!r} is neither in {directory}, nor beside {sys.executable}, nor on PATH: install "
        "it, or write its full path."
    )


def _features(document: dict[str, Any], path: Path) -> dict[str, Any]:
    features = _table(document, "features", path)
    _known(features, set(FEATURES), path, "features.")
    for name, value in features.items():
        sound = isinstance(value, bool)
        if name == "reload":
            sound = value is False or (isinstance(value, str) and value in signal.Signals.__members__)
        if not sound:
            raise AgentFileError(f"{path}: features.{name}: is {value!r}; write {FEATURES[name]}.")
    return features


def _known(table: dict[str, Any], known: set[str], path: Path, prefix: str) -> None:
    for key in table.keys() - known:
        near = get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
        raise AgentFileError(f"{path}: {prefix}{key}: unknown key; {hint}")


def _table(table: dict[str, Any], key: str, path: Path, prefix: str = "") -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise AgentFileError(f"{path}: {prefix}{key}: must be a table, [{prefix}{key}].")
    return value


def _words(table: dict[str, Any], key: str, path: Path, prefix: str) -> list[str]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise AgentFileError(f'{path}: {prefix}{key}: must be a list of strings, e.g. ["my-agent", "serve"].')
    return value


def _texts(table: dict[str, Any], key: str, path: Path, prefix: str = "") -> dict[str, str]:
    values = _table(table, key, path, prefix)
    for name, value in values.items():
        if not isinstance(value, str):
            raise AgentFileError(f"{path}: {prefix}{key}.{name}: must be a string, e.g. {str(value)!r}.")
    return values


def _text(table: dict[str, Any], key: str, path: Path, prefix: str = "") -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise AgentFileError(f"{path}: {prefix}{key}: must be a string.")
    return value


def _number(table: dict[str, Any], key: str, default: float, path: Path, prefix: str) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise AgentFileError(f"{path}: {prefix}{key}: must be a number above 0, of seconds.")
    return float(value)
