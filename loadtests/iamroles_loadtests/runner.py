"""One load run: set the stage, let locust loose in a process of its own, judge what it brought back."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iamroles_loadtests.mix import Plan, cases
from iamroles_loadtests.slo import Slo, cost, judged
from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of
from iamroles_scenarios.errors import StageError
from iamroles_scenarios.stage import AgentSpec, Stage, World, open_stage

FORMAT = 1
"""Version of `result.json`."""
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_GRACE = 60.0
"""Seconds beyond the run until a generator that does not end is killed."""
_SETTINGS = {"IAM_LOG_LEVEL": "emerg"}
"""HAProxy's record is silenced: on a shared machine the suite's own reading of it would be measured."""


@dataclass(frozen=True)
class Run:
    """What is asked for."""

    agent: AgentSpec
    stage: str = "auto"
    haproxy: str | None = None
    rate: float = 300.0
    duration: float = 30.0
    warmup: float = 2.0
    users: int = 8
    seed: int = 1


class GeneratorError(Exception):
    """Locust broke; says nothing about the gate.

    Args:
        message: what happened.
        log: the end of its log.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(f"{message}\n{log}".strip())


def run(asked: Run, slo: Slo) -> dict[str, Any]:
    """Measure a gate.

    Returns:
        The result, as `result.json` holds it.

    Raises:
        StageError, ControlError: a part of the stage failed.
        GeneratorError: locust failed.
    """
    with open_stage(asked.stage, haproxy=asked.haproxy) as stage:
        issuer = stage.idp.issuer("corp")
        policy = policy_of(WorldSpec(policy="orders"))
        with stage.world(asked.agent, policy, settings=_SETTINGS) as world:
            plan = Plan(
                rate=asked.rate,
                users=asked.users,
                duration=asked.duration,
                warmup=asked.warmup,
                seed=asked.seed,
                cases=cases(issuer.mint, rate=asked.rate, duration=asked.duration),
            )
            ledger = generate(plan, world.proxy.url)
            if not world.agent.spec.address and not world.agent.alive:
                raise StageError("The agent died under load.", world.logs())
            return _result(asked, slo, stage, world, ledger)


def generate(plan: Plan, url: str) -> dict[str, Any]:
    """Run locust against a gate.

    Args:
        plan: what to ask; holds tokens, so it is put down where only this user reads it, and removed.
        url: of the gate.

    Raises:
        GeneratorError: it ended without a result.
    """
    with tempfile.TemporaryDirectory(prefix="iamroles-load-") as directory:
        place = Path(directory)
        (place / "plan.json").write_text(plan.model_dump_json(), encoding="utf-8")
        result = place / "result.json"
        command = [
            *(sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), "--headless", "--only-summary"),
            *("-u", str(plan.users), "-r", str(plan.users)),
            *("--host", url, "--exit-code-on-error", "0"),
            *("--loglevel", "WARNING"),
        ]
        environment = {
            **os.environ,
            "IAMROLES_LOAD_PLAN": str(place / "plan.json"),
            "IAMROLES_LOAD_RESULT": str(result),
        }
        try:
            done = subprocess.run(  # noqa: S603 - our own command
                command,
                cwd=place,  # locust reads locust.conf of the working directory
                env=environment,
                check=False,
                capture_output=True,
                text=True,
                timeout=plan.duration + plan.patience + _GRACE,
            )
        except subprocess.TimeoutExpired as error:
            raise GeneratorError(f"locust did not end within {error.timeout:g} s") from error
        if done.returncode or not result.is_file():
            log = "\n".join((done.stderr + done.stdout).splitlines()[-25:])
            raise GeneratorError(f"locust ended with exit code {done.returncode} and no result", log)
        ledger: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if not ledger["answers"] and not ledger["faults"]:
        raise GeneratorError("locust sent no request", done.stderr[-2000:])
    return ledger


def _result(asked: Run, slo: Slo, stage: Stage, world: World, ledger: dict[str, Any]) -> dict[str, Any]:
    objectives = judged(slo, ledger)
    return {
        "format": FORMAT,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "agent": {"name": asked.agent.name, "version": asked.agent.version},
        "stage": {"kind": stage.kind, "why": stage.why, "haproxy": world.haproxy.version},
        "machine": {"cpus": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
        "offered": {
            "rate": asked.rate,
            "duration": asked.duration,
            "warmup": asked.warmup,
            "users": asked.users,
            "seed": asked.seed,
        },
        "met": all(objective.met for objective in objectives),
        "objectives": [objective.as_dict() for objective in objectives],
        "check_cost": cost(ledger),
        **ledger,
    }
