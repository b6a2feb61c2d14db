"""HAProxy's files for a world, made by the command that the agent's `agent.toml` names."""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iamroles_scenarios.base.errors import ProxyFileError, StageError
from iamroles_scenarios.stage.part import Part
from iamroles_scenarios.stage.spec import AgentSpec, find_program

SHIPPED = (
    *("iamroles", "policy", "render", "--config", "{world}", "--output", "{output}"),
    *("--agent", "127.0.0.1:9901"),
)
"""The default of `[haproxy] render` in `agent.toml`: the shipped configuration. The agent's address
is not known yet while it runs; IAM_AGENT_1 brings it when HAProxy starts."""
AGENT_CA, AGENT_NAME, PROXY_CERTIFICATE = "agent-ca.pem", "agent.iamroles.test", "proxy.pem"
"""In a world with `agent.tls`: files beside HAProxy's own, and the name in the agent's certificate."""
_PROVEN = ("--agent-ca", AGENT_CA, "--agent-name", AGENT_NAME, "--agent-certificate", PROXY_CERTIFICATE)
ENTRY = ("iam-stage.cfg", "haproxy.cfg", "iam-routes.cfg")
"""The files HAProxy is started on, in this order; the first and the last may be absent."""
_STAGE = "global\n    httpclient.ssl.verify none\n"
"""Nothing shipped uses HAProxy's HTTP client, which reads all authorities of the host at each start."""
_ALERT = re.compile(r"\[ALERT\][^:]*: (?:config : )?(.*)")
_PLACE = re.compile(r"\[[^\]]*?([^/\]]+):(\d+)\]")
_LONGEST = 300
"""Characters of HAProxy's words in a sentence: its list of all that it would have taken is longer."""


def refusal(log: str) -> str:
    """Return HAProxy's words on the first line that it refuses: `haproxy.cfg line 7: …`."""
    alerts = [found[1].strip() for line in log.splitlines() if (found := _ALERT.search(line))]
    placed = [text for text in alerts if _PLACE.search(text)]
    if not alerts:
        return next((line for line in reversed(log.splitlines()) if line.strip()), "it says nothing")
    said = (placed or alerts)[0].removeprefix("parsing ")
    if found := _PLACE.search(said):
        rest = " ".join(f"{said[: found.start()]}{said[found.end() :]}".split()).strip(" :")
        said = f"{found[1]} line {found[2]}: {rest}"
    if len(said) > _LONGEST:
        said = f"{said[: _LONGEST // 2]} … {said[-_LONGEST // 2 :]}"
    return said + (f" (and {len(placed) - 1} more)" if len(placed) > 1 else "")


def _proven(document: Mapping[str, Any]) -> bool:
    """Return whether the agent must prove itself; a document that is broken on purpose may hold anything."""
    settings = document.get("agent")
    return isinstance(settings, dict) and "tls" in settings


def _bound(document: Mapping[str, Any]) -> list[Any]:
    """Return what the document says of bound tokens."""
    issuers = document.get("issuers")
    listed = [one for one in issuers if isinstance(one, dict)] if isinstance(issuers, list) else []
    found = [one["bound"] for one in listed if "bound" in one]
    return [found, document.get("dpop"), document.get("client_certificate")]


class Renderer:
    """Runs the render command; remembers what it wrote. Thread-safe.

    Args:
        spec: its `[haproxy]` table may hold `render`, a command with the placeholders `{world}` (the world
            file) and `{output}` (a directory). It runs beside `agent.toml`, and writes `haproxy.cfg` and
            whatever that one includes by relative name; docs/stage.md has the variables that HAProxy gets.
        start: starts a command (`StageKind.tool`).
    """

    def __init__(self, spec: AgentSpec, start: Callable[[str, Sequence[str], AgentSpec], Part]) -> None:
        self._spec, self._start = spec, start
        self._directory, self._path = spec.directory, spec.path
        self._command = tuple(spec.haproxy.get("render", SHIPPED))
        self.own = "" if self._command[: len(SHIPPED)] == SHIPPED else " ".join(self._command)
        """The command, where it is the vendor's and not the shipped one."""
        self._known: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def render(self, document: Mapping[str, Any]) -> dict[str, str]:
        """The files' texts by name.

        Raises:
            ProxyFileError: the command failed; with what it said.
            StageError: the same of the shipped one.
        """
        # Of a valid policy the shipped configuration takes these alone; of a vendor's who knows.
        facts: Any = document
        if not self.own:
            facts = document.get("backends", []), _proven(document), _bound(document), "resources" in document
        key = json.dumps(facts, sort_keys=True)
        with self._lock:
            if key not in self._known:
                self._known[key] = self._run(document)
            return self._known[key]

    def _run(self, document: Mapping[str, Any]) -> dict[str, str]:
        with tempfile.TemporaryDirectory(prefix="iamroles-render-") as scratch:
            world, output = Path(scratch, "world.json"), Path(scratch, "haproxy")
            world.write_text(json.dumps(document), encoding="utf-8")
            output.mkdir()
            program, *words = self._command
            argv = [
                find_program(program, self._directory if self.own else None, f"{self._path}: haproxy.render")
            ]
            argv += [word.replace("{world}", str(world)).replace("{output}", str(output)) for word in words]
            if words[-len(SHIPPED) + 1 :] == list(SHIPPED[1:]) and _proven(document):  # a mutant's as well
                argv += _PROVEN
            fault, began = ProxyFileError if self.own else StageError, time.monotonic()
            part, said = self._start("render", argv, self._spec), " ".join(self._command)
            code = part.wait(60.0)
            part.kill()
            logs = {"render": part.log()}
            if code != 0:
                how = "after 60 s" if code is None else f"with exit code {code}"
                failed = fault(f"Rendering HAProxy's configuration failed {how}: {said}", logs)
                failed.began = began if code is None else 0.0
                raise failed
            if not (output / "haproxy.cfg").is_file():
                raise fault(
                    f"`{said}` (haproxy.render) wrote no haproxy.cfg. It must write this "
                    "file into the directory that {output} stands for.",
                    logs,
                )
            files = {} if self.own else {ENTRY[0]: _STAGE}
            return files | {  # HAProxy takes bytes that are not UTF-8, in a comment, say
                path.name: path.read_text("utf-8", "surrogateescape")
                for path in output.iterdir()
                if path.is_file()
            }
