"""A proxy's behaviour is never an agent's failure: HAProxy that is broken, lacks a feature, or dies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from iamroles_conformance.commands.conformance import conformance
from iamroles_conformance.reports import report
from iamroles_conformance.subject import default_agent_toml
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.engine.run import Options, Run, plan, selected_by
from iamroles_scenarios.stage import AgentSpec

_FAULTY = Path(__file__).parent / "agents" / "faulty.py"
_OLD = """#!/bin/sh
[ "$1" = -v ] && echo 'HAProxy version 1.8.30 2020/01/01' && exit 0
echo "[ALERT] parsing [haproxy.cfg:7] : unknown keyword 'filter spoe'" >&2
exit 1
"""


def _run(*options: str) -> Result:
    args = ["run", "--stage=processes", "--lane=gate", "--check=gate.no-token", "--check=gate.audience"]
    return CliRunner().invoke(conformance, [*args, *options])


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("#!/bin/sh\nexit 1\n", 3, "does not say which HAProxy it is"),
        (_OLD, 3, "HAProxy 1.8.30 refused its configuration.\n--- haproxy\n[ALERT] parsing"),
        ("no program", 2, "haproxy: cannot start"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_nothing_is_judged(
    tmp_path: Path, program: str, code: int, said: str
) -> None:
    binary = tmp_path / "haproxy"
    binary.write_text(program)
    binary.chmod(0o755)
    done = _run(f"--haproxy={binary}")

    assert done.exit_code == code, done.output
    assert said in done.output
    assert "FAIL" not in done.output
    assert "Traceback" not in done.output


def test_a_proxy_that_dies_in_the_middle_is_one_finding_and_exit_3(tmp_path: Path) -> None:
    agent = tmp_path / "agent.toml"
    launch = f'[launch]\ncommand = ["{sys.executable}", "{_FAULTY}", "kills-the-proxy"]'
    agent.write_text(f'spec = 1\nname = "assassin"\n{launch}\n[features]\noidc = true\n')
    done = _run(f"--agent={agent}", f"--report={tmp_path / 'out'}")

    found = report.load(tmp_path / "out" / "report.json")
    assert done.exit_code == 3, done.output
    assert set(found["totals"]) == {"harness-error"}
    assert len(found["findings"]) == 1
    assert "HAProxy ended by signal 9 while it was used, so that says nothing about the agent" in done.output
    assert "could not be judged" in found["findings"][0]
    assert "FAIL" not in done.output


@pytest.mark.parametrize("check", ["live.expiry.ends", "proxy.threads.verdicts", "gate.agent-down"])
def test_whatever_a_check_sees_of_a_dead_proxy_accuses_no_agent(
    check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy of each world is killed as soon as the world stands: what was asked then has no answer."""
    from iamroles_scenarios.stage.world import World

    started = World.start

    def start(world: World, *args: object, **options: object) -> None:
        started(world, *args, **options)  # type: ignore[arg-type]
        if armed and world._haproxy is not None:
            world._haproxy._runs[-1].part.kill()

    armed: list[bool] = []
    monkeypatch.setattr(World, "start", start)
    planned = [one for one in plan(select=selected_by([check])) if "spop" not in one.name]
    with Run(AgentSpec.load(default_agent_toml()), planned, Options(stage="processes")) as run:
        armed.append(True)
        results = list(run.results())

    assert results
    assert {result.verdict for result in results} == {Verdict.HARNESS_ERROR}
    assert all("HAProxy ended by signal 9" in result.cause for result in results)
