"""The demo: what a newcomer sees, and that it does not say "as told" of what went otherwise."""

import re

import pytest
from click.testing import CliRunner

from iamroles_scenarios.commands.demo import demo, tour
from iamroles_scenarios.commands.demo_streams import STREAMS
from iamroles_scenarios.engine.observation import Observation, mismatches

TOUR = sum(step.request is not None for step in tour().steps)
STEPS = TOUR + STREAMS

LYING = """
import asyncio, json, os, pathlib, sys
from iamroles_agent.base import reasons
from iamroles_agent.serving import gate
from iamroles_agent.main import main
real = gate.Gate._decide
async def mislead(self, state, check):
    decision, last = await real(self, state, check)
    if decision.reason is reasons.Reason.TOKEN_EXPIRED:
        raise RuntimeError("never mind")
    return decision, last
gate.Gate._decide = mislead
main(["agent", "run"])
"""

LATE = """
import asyncio
from iamroles_agent.live.cutter import Cutter
from iamroles_agent.main import main
from iamroles_agent.spop import actions
real = actions.set_var
actions.set_var = lambda scope, name, kind, value: real(
    scope, name, kind, value + 60 if name == "expires" else value
)
Cutter.look = lambda self: asyncio.sleep(0)
main(["agent", "run"])
"""


def test_every_step_goes_as_told():
    done = CliRunner().invoke(demo, ["--stage", "processes"])

    assert done.exit_code == 0, done.output
    assert f"{STEPS} of {STEPS} steps went as told." in done.output
    assert not re.search(r"eyJ[\w-]{8}", done.output)
    for told in (
        "X-IAM-Principal",
        "ambiguous_role",
        "orders-rw",
        "token_expired",
        "key_unknown",
        "no verdict",
        "frames go and come, ",
        "words arrive, ",
    ):
        assert told in done.output
    ends = re.findall(r"closed by HAProxy, \d+\.\d\d s (?:after|before) (the [a-z' ]+)", done.output)
    assert ends == ["the token's end", "the token's end", "the revocation"]


def test_a_stream_that_outlives_its_token_fails_it(tmp_path):
    """An agent that tells HAProxy a later end, and cuts nothing, is caught by all three streams alone."""
    program = tmp_path / "lying.py"
    program.write_text(LATE)
    agent = tmp_path / "agent.toml"
    agent.write_text(
        f'spec = 1\nname = "late"\n[launch]\ncommand = ["python", "{program}"]\n'
        '[features]\noidc = true\nreload = "SIGHUP"\nlive = true\n'
    )

    done = CliRunner().invoke(demo, ["--stage", "processes", "--agent", str(agent)])

    assert done.exit_code == 1, done.output
    assert f"{TOUR} of {STEPS} steps went as told." in done.output
    assert done.output.count("NOT AS TOLD still open 1 s after the token's end") == 2
    assert "NOT AS TOLD still open 5 s after the revocation" in done.output


def test_a_step_that_goes_otherwise_fails_it(tmp_path):
    """An agent that calls an expired token an internal error is caught at exactly that step."""
    program = tmp_path / "lying.py"
    program.write_text(LYING)
    agent = tmp_path / "agent.toml"
    agent.write_text(
        f'spec = 1\nname = "lying"\n[launch]\ncommand = ["python", "{program}"]\n'
        '[features]\noidc = true\nreload = "SIGHUP"\n'
    )

    done = CliRunner().invoke(demo, ["--stage", "processes", "--agent", str(agent)])

    assert done.exit_code == 1, done.output
    assert f"{TOUR - 1} of {TOUR} steps went as told." in done.output
    assert done.output.count("NOT AS TOLD") == 2
    assert "status: expected 401, got 503" in done.output


def test_an_agent_that_does_not_start_is_a_fault_of_the_stage(tmp_path):
    agent = tmp_path / "agent.toml"
    agent.write_text(
        'spec = 1\nname = "gone"\n[launch]\ncommand = ["python", "-c", "raise SystemExit(4)"]\n'
        '[features]\noidc = true\nreload = "SIGHUP"\n'
    )

    done = CliRunner().invoke(demo, ["--stage", "processes", "--agent", str(agent)])

    assert done.exit_code == 3
    assert "ended with exit code 4 before it was ready" in done.output


@pytest.mark.parametrize("name", ["status", "backend", "reason", "rule"])
def test_each_part_of_an_answer_is_compared(name):
    told = next(step.expect["told"] for step in tour().steps if step.request)
    seen = {"status": 200, "backend": "orders-ro", "reason": "-", "rule": "R1"}
    other = seen | {name: 503 if name == "status" else "other"}

    def observed(parts):
        return Observation(
            status=parts["status"],
            allow=True,
            error="",
            backend=parts["backend"],
            reason=parts["reason"],
            tags={"rule": parts["rule"]},
        )

    assert mismatches(told, observed(seen), {}) == []
    [difference] = mismatches(told, observed(other), {})
    assert difference.startswith(name)


def test_help_needs_no_stage():
    assert "allow, deny, overlap" in CliRunner().invoke(demo, ["--help"]).output
