"""Campaigns of the oracle against real agents: sound, without reload, and broken in ways it must find."""

import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest

from iamroles_scenarios.base.errors import CheckFailed, StageError
from iamroles_scenarios.checks.oracle.campaign import _Restarting, campaign
from iamroles_scenarios.checks.oracle.generate import draw
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage.reference import reference_agent

SPEC = reference_agent()
CONFLICT = next(number for number in range(100) if not draw(1, number, 0).loads)


def play(stage, spec, numbers, cases, *, shuffled=False, name=""):
    with (
        closing(Worlds(stage, spec, haproxy=False, namespace=f"-{name}")) as worlds,
        campaign(Target("gate-spop", stage, spec, worlds), 1, shuffled=shuffled) as played,
    ):
        return played.run(numbers, cases)


def broken(mutant):
    child = (sys.executable, "-m", "iamroles_conformance.selftest.mutants", mutant)
    return replace(SPEC, name=mutant, command=(*child, *SPEC.command[1:]))


def test_a_sound_agent_agrees_and_refuses_conflicts(stage):
    report = play(stage, SPEC, [0, CONFLICT, 1], 20, shuffled=True, name="sound")

    assert (report.worlds, report.refused) == (2, 1)
    assert report.cases == 2 * 2 * 20 + 10  # each world twice, and the one before asked again
    assert report.verdicts["allowed"] > 0
    assert "seed 1: 90 cases in 2 worlds agree, 1 worlds refused" in str(report)


def test_an_agent_that_cannot_reload_is_started_for_each_world(stage):
    spec = replace(SPEC, features={**SPEC.features, "reload": False})
    report = play(stage, spec, [0, CONFLICT, 1], 10, name="fresh")

    assert (report.worlds, report.refused, report.cases) == (2, 1, 20)


def test_an_agent_refuses_a_policy_by_its_end_alone_and_by_its_own_words(stage):
    def taken(code, within):
        spec = replace(SPEC, command=(sys.executable, "-c", code), env={}, preload=(), ready_within=within)
        world, target = SimpleNamespace(agent=None), SimpleNamespace(stage=stage, agent=spec)
        return _Restarting(SimpleNamespace(world=world, target=target)).take({"grants": [{"id": "G7"}]})

    with pytest.raises(StageError, match="no line"):
        taken("import time; time.sleep(600)", 0.1)
    assert taken("raise SystemExit('no')", 60) == {"reloaded": False, "error": "no"}


def test_a_disagreement_is_made_small_and_says_how_to_see_it_again(stage):
    with pytest.raises(CheckFailed) as caught:
        play(stage, broken("policy.first-match"), range(12), 60, name="first")

    message, evidence = caught.value.message, caught.value.evidence
    number = int(message.partition(" of world ")[2].partition(":")[0])
    assert f"iamroles conformance oracle --seed 1 --world {number}" in message
    assert 1 <= evidence.sent.count("grants: ") <= 2 < len(draw(1, number, 0).policy["grants"])
    assert "token roles: " in evidence.sent
    assert "allowed by " in evidence.expected
    assert "rule = " in evidence.received


def test_an_agent_that_takes_conflicts_is_found(stage):
    with pytest.raises(CheckFailed, match=r"takes up a policy whose grants .* conflict"):
        play(stage, broken("gate.loads-conflicts"), [0, CONFLICT], 5, name="conflicts")


def test_an_agent_that_refuses_sound_policies_is_found(stage):
    with pytest.raises(CheckFailed, match="refuses a policy that is sound"):
        play(stage, broken("policy.deaf-after-refusal"), [CONFLICT, 0], 5, name="deaf")
