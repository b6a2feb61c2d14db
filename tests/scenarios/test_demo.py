"""The demo: what a newcomer sees, and that it does not say "as told" of what went otherwise."""

import re

import pytest
from invoking import agent_toml, said

from iamroles_scenarios.commands.demo import tour
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
async def mislead(self, *asked):
    decision, last = await real(self, *asked)
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
    output = said("demo")

    assert "The stage is processes" in " ".join(output.replace("│", " ").split())
    assert "--stage containers" in output
    assert f"{STEPS} of {STEPS} steps went as told." in output
    assert not re.search(r"eyJ[\w-]{8}", output)
    for told in (
        *("X-IAM-Principal", "ambiguous_role", "orders-rw", "token_expired", "key_unknown"),
        *("no verdict", "helper acts", "frames go and come, ", "words arrive, "),
    ):
        assert told in output
    ends = re.findall(r"closed by HAProxy, \d+\.\d\d s (?:after|before) (the [a-z' ]+)", output)
    assert ends == ["the token's end", "the token's end", "the revocation"]


OPEN = "NOT AS TOLD still open"


@pytest.mark.parametrize(
    ("program", "live", "steps", "told"),
    [
        (
            *(LATE, True, f"{TOUR} of {STEPS}"),
            {f"{OPEN} 1 s after the token's end": 2, f"{OPEN} 5 s after the revocation": 1},
        ),
        (LYING, False, f"{TOUR - 1} of {TOUR}", {"NOT AS TOLD": 2, "status: expected 401, got 503": 1}),
    ],
    ids=["a-stream-that-outlives-its-token", "a-step-that-goes-otherwise"],
)
def test_what_goes_otherwise_fails_it_there_alone(tmp_path, program, live, steps, told):
    """LATE tells HAProxy a later end and cuts nothing; LYING calls an expired token an internal error."""
    (tmp_path / "lying.py").write_text(program)
    agent = agent_toml(tmp_path, ["python", tmp_path / "lying.py"], oidc=True, reload="SIGHUP", live=live)

    output = said("demo --stage processes --agent", agent, code=1)
    output = output.rpartition("HAProxy IAM Roles")[2]  # of the last playing: there are more on a busy host

    assert f"{steps} steps went as told." in output
    for words, count in told.items():
        assert output.count(words) == count


def test_an_agent_that_does_not_start_is_a_fault_of_the_stage(tmp_path):
    agent = agent_toml(tmp_path, ["python", "-c", "raise SystemExit(4)"], oidc=True, reload="SIGHUP")

    told = said("demo --stage processes --agent", agent, code=3)
    assert "ended with exit code 4 before it was ready" in told


@pytest.mark.parametrize("name", ["status", "backend", "reason", "rule"])
def test_each_part_of_an_answer_is_compared(name):
    told = next(step.expect["told"] for step in tour().steps if step.request)
    seen = {"status": 200, "backend": "orders-ro", "reason": "-", "rule": "R1"}
    other = seen | {name: 503 if name == "status" else "other"}

    def observed(parts):
        about = {name: parts[name] for name in ("status", "backend", "reason")}
        return Observation(allow=True, error="", tags={"rule": parts["rule"]}, **about)

    assert mismatches(told, observed(seen), {}) == []
    [difference] = mismatches(told, observed(other), {})
    assert difference.startswith(name)


def test_help_needs_no_stage():
    assert "allow, deny, overlap" in said("demo --help")
