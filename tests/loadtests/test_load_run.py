"""Whole load runs, a few seconds each: a good gate passes, a wrong verdict or a missed objective does not."""

import json
import textwrap

import pytest
from click.testing import CliRunner

from iamroles_loadtests.commands.load import load

SHORT = ("--stage", "processes", "--rate", "150", "--duration", "2.5", "--warmup", "0.5", "--users", "4")
LENIENT = """
[rate]
at_least = 0.5
[latency]
p99 = "10s"
"""
MISLED = """
import dataclasses
from iamroles_agent import gate
from iamroles_agent.main import main

real = gate.Gate._decide
CHANGES = [
    {"principal": "mallory"},
    {"backend": "export"},
    {"allow": False, "reason": gate.Reason.NO_GRANT},
]

async def mislead(self, state, check):
    decision, last = await real(self, state, check)
    name, _, number = decision.principal.partition("-")
    if decision.allow and name == "caller" and int(number) < 15:
        decision = dataclasses.replace(decision, **CHANGES[int(number) % 3])
    return decision, last

gate.Gate._decide = mislead
main(["agent", "run"])
"""


def loaded(*arguments: object):
    return CliRunner().invoke(load, [str(argument) for argument in arguments])


@pytest.fixture
def lenient(tmp_path):
    path = tmp_path / "slo.toml"
    path.write_text(LENIENT)
    return path


def test_a_good_gate(tmp_path, lenient):
    done = loaded("run", *SHORT, "--slo", lenient, "--report", tmp_path / "out")

    assert done.exit_code == 0, done.output
    assert "SLO met" in done.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["wrong"] == result["faults"] == 0
    assert result["answers"] > 200
    assert {name for name, case in result["cases"].items() if case["answers"]} > {"expired", "allowed-read"}
    assert 20 < result["latency"]["p50"] < 5_000_000
    assert "eyJ" not in (tmp_path / "out" / "result.json").read_text()
    assert "SLO met" in (tmp_path / "out" / "summary.txt").read_text()

    again = loaded("report", tmp_path / "out")
    assert again.exit_code == 0
    assert "allowed-read" in again.output
    pair = loaded("report", tmp_path / "out", tmp_path / "out" / "result.json")
    assert "x1.00" in pair.output


def test_injected_wrong_verdicts_fail_the_run(tmp_path, lenient):
    """Some callers get another's name, some the wrong backend, some a refusal: each kind is seen."""
    program = tmp_path / "misled.py"
    program.write_text(MISLED)
    agent = tmp_path / "agent.toml"
    agent.write_text(f'spec = 1\nname = "misled"\n[launch]\ncommand = ["python", "{program}"]\n')

    done = loaded("run", *SHORT, "--slo", lenient, "--agent", agent, "--json")

    assert done.exit_code == 1, done.output
    result = json.loads(done.output)
    assert result["wrong"] > 0
    assert result["faults"] == 0
    told = " ".join(example["wrong"] for example in result["examples"])
    for said in (
        "principal 'mallory' where 'caller-",
        "backend 'export' where 'orders-r",
        "status 403 where 200",
    ):
        assert said in told
    missed = [objective["name"] for objective in result["objectives"] if not objective["met"]]
    assert missed == ["wrong verdicts"]


def test_a_missed_objective_fails_the_run(tmp_path):
    slo = tmp_path / "slo.toml"
    slo.write_text('[latency]\np50 = "1us"\n[rate]\nat_least = 0.5\n')

    done = loaded("run", *SHORT, "--slo", slo)

    assert done.exit_code == 1
    assert "NOT met  latency p50" in done.output
    assert "SLO NOT met" in done.output


def test_an_agent_that_does_not_start_is_a_fault_of_the_stage(tmp_path):
    agent = tmp_path / "agent.toml"
    agent.write_text('spec = 1\nname = "gone"\n[launch]\ncommand = ["python", "-c", "raise SystemExit(4)"]\n')

    done = loaded("run", *SHORT, "--agent", agent)

    assert done.exit_code == 3
    assert "exit code 4" in done.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[latency]\np50 = "fast"\n', "slo.toml:2: latency.p50"),
        ("[latency]\np50 = 5\n", "slo.toml:2: latency.p50"),
        ("[rate]\nat_most = 1.0\n", "slo.toml:2: rate.at_most"),
        ("[latency\n", "not TOML"),
    ],
)
def test_bad_objectives_start_nothing(tmp_path, text, said):
    slo = tmp_path / "slo.toml"
    slo.write_text(textwrap.dedent(text))

    done = loaded("run", "--slo", slo)

    assert done.exit_code == 2
    assert said in done.output


def test_bad_arguments():
    assert loaded("run", "--duration", "2", "--warmup", "2").exit_code == 2
    assert loaded("run", "--slo", "absent.toml").exit_code == 2
    assert loaded("report", __file__).exit_code == 2
