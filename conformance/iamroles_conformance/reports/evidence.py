"""Facts that a report can be compared with: digests of all inputs, seeds, and the machine of the run."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from iamroles_conformance.reports import contract
from iamroles_scenarios.base.errors import AgentFileError
from iamroles_scenarios.checks.policy import oracle
from iamroles_scenarios.stage import AgentSpec
from iamroles_scenarios.wire import fuzz


def digests(agent: AgentSpec) -> dict[str, str]:
    """SHA-256 of suite, SPEC.md, scenarios and agent, each as `sha256:<hex>`.

    The agent's is of the first file that its command names: the program, or the script that a program on
    PATH reads. Of an image the stage's engine knows more; its name is given. A running agent has none.
    """
    found = {
        "suite": _tree(Path(str(files("iamroles_conformance")))),
        "scenarios": _tree(Path(str(files("iamroles_scenarios")))),
        "SPEC.md": _sum([("SPEC.md", contract.spec().encode())]),
    }
    if agent.image:
        found["agent"] = f"image {agent.image}"
    elif (program := _program(agent)) is not None:
        found["agent"] = _sum([(program.name, program.read_bytes())])
    return found


def seeds() -> dict[str, str]:
    """Whatever chance decides in a run starts from one of these."""
    return {"oracle": os.environ.get(oracle.SEED_VARIABLE) or str(oracle.SEED), "fuzz": str(fuzz.SEED)}


def environment() -> dict[str, str]:
    """The machine, in words that name nobody."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processors": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
    }


def _program(agent: AgentSpec) -> Path | None:
    own = (agent.directory / word for word in agent.command)
    # A script of `sh -c` is longer than a name may be: `Path.is_file` raises an error there.
    paths = [path for path in own if os.path.isfile(path)]  # noqa: PTH113
    if not paths and agent.command:
        with suppress(AgentFileError):
            paths = [Path(agent.argv()[0])]
    return paths[0] if paths and os.access(paths[0], os.R_OK) else None


def _tree(root: Path) -> str:
    paths = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return _sum((path.relative_to(root).as_posix(), path.read_bytes()) for path in paths)


def _sum(parts: Iterable[tuple[str, bytes]]) -> str:
    whole = hashlib.sha256()
    for name, content in parts:
        whole.update(f"{name}\0{len(content)}\0".encode())
        whole.update(content)
    return f"sha256:{whole.hexdigest()}"
