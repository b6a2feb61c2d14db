"""The judge under load: traffic flows beside the checks, and a verdict that only it sees fails the run."""

import re

import pytest
from click.testing import CliRunner

from iamroles_conformance.commands.conformance import conformance

_MUTANT = """
spec = 1
name = "expired"
version = "1"
[launch]
command = ["python", "-m", "iamroles_conformance.selftest.mutants", "gate.accepts-expired", "agent", "run"]
[features]
oidc = true
reload = "SIGHUP"
"""


def _run(*arguments):
    command = ["run", "--stage", "processes", "--lane", "gate", "-q", "--under-load", "40", *arguments]
    return CliRunner().invoke(conformance, command)


def test_traffic_flows_beside_the_checks_and_is_counted():
    done = _run("--check", "gate.rotation")

    assert done.exit_code == 0, done.output
    count = re.search(r"under load: (\d+) answers, \d+ a second", done.output)
    assert count is not None
    assert int(count[1]) > 20


def test_what_no_check_was_asked_for_is_seen_by_the_traffic(tmp_path):
    agent = tmp_path / "agent.toml"
    agent.write_text(_MUTANT, encoding="utf-8")
    done = _run("--agent", str(agent), "--check", "gate.rotation")

    assert "6 pass" in done.output
    assert re.search(r"flow (old|eve): false allow: status: expected 401, got 200", done.output)
    assert done.exit_code == 1


def test_a_running_agent_is_not_put_under_load():
    done = CliRunner().invoke(conformance, ["run", "--agent-address", "127.0.0.1:1", "--under-load", "5"])

    assert done.exit_code == 2
    assert "--under-load needs an agent that the stage starts" in done.output


@pytest.mark.parametrize("rate", ["-1", "fast"])
def test_a_rate_is_a_number(rate):
    assert CliRunner().invoke(conformance, ["run", "--under-load", rate]).exit_code == 2
