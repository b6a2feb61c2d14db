"""The agent that is judged: an `agent.toml`, or the address of a running one. pytest and the CLI share it."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from iamroles_scenarios.base.errors import SelectionError, SuiteError
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import Grade
from iamroles_scenarios.declarations.scenario import ALL_LANES, PlannedCheck
from iamroles_scenarios.engine.run import Options, Run
from iamroles_scenarios.stage import AgentSpec
from iamroles_scenarios.stage.spec import is_address


def default_agent_toml() -> Path:
    """The reference agent's: of the checkout if this is one, else the packaged copy."""
    package = Path(str(files("iamroles_conformance")))
    checkout = package.parent / "agent.toml"
    return checkout if checkout.is_file() else package / "agent.toml"


@dataclass(frozen=True, slots=True)
class Subject:
    """The agent that the user named on the command line."""

    agent: str | None = None
    """Path of an `agent.toml`; None: the default one."""
    address: str | None = None
    """`host:port` or `unix:/path` of an agent that already runs."""
    allowed: str | None = None
    """File with arguments of an `iam-check` that this running agent allows."""
    lanes: tuple[str, ...] = ()
    """() for all that can be played."""
    stage: str = "auto"
    require: str | None = None
    haproxy: str | None = None
    scale: float = 1.0
    load: float = 0.0
    """Questions a second that flow beside the checks."""
    grade: Grade = "core"
    """By which the run ends well: `strict` counts departures as failures."""

    def spec(self) -> AgentSpec:
        """The agent.

        Raises:
            StageError: the file is missing or wrong.
            SelectionError: the address is invalid.
        """
        if self.address and not is_address(self.address):
            raise SelectionError(f"--agent-address {self.address}: write host:port or unix:/path.")
        if self.address and self.agent is None:
            return AgentSpec(
                name=f"agent at {self.address}", version="", directory=Path.cwd(), address=self.address
            )
        spec = AgentSpec.load(Path(self.agent) if self.agent else default_agent_toml())
        return replace(spec, command=(), image="", address=self.address) if self.address else spec

    def planned(self) -> list[PlannedCheck]:
        """The checks of the lanes asked for; of a running agent, by default those of the wire.

        Raises:
            SelectionError: an unknown lane.
        """
        if unknown := set(self.lanes) - set(ALL_LANES):
            raise SelectionError(f"Unknown lane {', '.join(sorted(unknown))}: say {', '.join(ALL_LANES)}.")
        lanes = self.lanes or ALL_LANES
        with suppress(SuiteError):  # `run` says what is wrong with the file
            lanes = self.lanes or (("wire",) if self.spec().address else ALL_LANES)
        return plan(lanes)

    def run(
        self, planned: list[PlannedCheck], *, transcripts: bool = False, budget: float | None = None
    ) -> Run:
        """A run of these checks, not yet opened.

        Args:
            planned: which.
            transcripts: whether results keep all that passed.
            budget: seconds for the run; it then plays them in this order.

        Raises:
            SelectionError, StageError: see `Run` and `spec`.
        """
        options = Options(
            stage=self.stage,
            require=self.require,
            haproxy=self.haproxy,
            scale=self.scale,
            allowed=self.allowed_arguments(),
            transcripts=transcripts,
            budget=budget,
            load=self.load,
        )
        gc.freeze()  # what is loaded and planned by now stays: to search it again and again takes time
        gc.set_threshold(20_000)
        return Run(self.spec_for("--under-load") if self.load else self.spec(), planned, options)

    def spec_for(self, what: str) -> AgentSpec:
        """The agent, if it can be asked with an issuer's tokens in worlds of its own.

        Raises:
            SelectionError: it runs already, or takes no such tokens.
        """
        spec = self.spec()
        if spec.address:
            raise SelectionError(f"{what} needs an agent that the stage starts, not a running one.")
        if not spec.features.get("oidc"):
            raise SelectionError(f"{what} asks with an issuer's tokens: it needs an agent with `oidc`.")
        return spec

    def allowed_arguments(self) -> Mapping[str, Any] | None:
        """Read the file `allowed`.

        Raises:
            StageError: the file is missing or wrong.
        """
        return _arguments(self.allowed)

    def arguments(self, prefix: str) -> list[str]:
        """The options that say the same again, with `--iamroles-` or `--` before each."""
        said = {
            "agent": self.agent,
            "agent-address": self.address,
            "allowed": self.allowed,
            "stage": None if self.stage == "auto" else self.stage,
            "require": self.require,
            "haproxy": self.haproxy,
            "grade": None if self.grade == "core" else self.grade,
            "time-scale": None if self.scale == 1.0 else f"{self.scale:g}",
            "under-load": f"{self.load:g}" if self.load else None,
        }
        return [f"{prefix}{name}={value}" for name, value in said.items() if value]


def _arguments(path: str | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SelectionError(f"{path}: cannot be read as JSON: {error}.") from error
    if not isinstance(found, dict):
        raise SelectionError(f"{path}: must be an object: the arguments of an iam-check.")
    return found
