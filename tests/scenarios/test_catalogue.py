"""The catalogue hangs together: requirements, checks, the agent's own tests. Recipes can be minted."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from iamroles_conformance.commands.selftest import _names
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.scenario import scenarios
from iamroles_scenarios.jose import SigningKey, mint_for
from iamroles_scenarios.mock import presign

ROOT = Path(__file__).parents[2]
WITHIN = re.compile(r"Seen only from within: (\S+)::(\w+)$")
PROVEN = {name for check in plan() for name in check.requirements}


@pytest.mark.parametrize("item", catalogue().values(), ids=lambda item: item.id)
def test_each_requirement_is_proven_by_a_check_or_by_the_agents_own_test(item):
    within = WITHIN.search(item.text) or WITHIN.search(item.attack)

    assert (item.id in PROVEN) is (within is None)
    if within is not None:
        assert f"def {within[2]}(" in (ROOT / within[1]).read_text(encoding="utf-8")


def test_checks_name_requirements_that_exist_and_those_of_a_policy_requirements_of_policies():
    named = {name for check in plan() if check.id.startswith("policy.") for name in check.requirements}

    assert set(catalogue()) >= PROVEN
    assert named <= _names(("policy",))


def test_checks_of_the_wire_prove_all_of_spop_and_say_what_they_are():
    checks = plan(["wire"])

    assert {name for check in checks for name in check.requirements} == _names(("wire",))
    assert [check.id for check in checks if not check.id.startswith("wire.") or not check.title] == []


def test_requirements_of_the_gate_are_of_its_families():
    families = {"GATE", "TOKEN", "ROLE", "POLICY", "PATH", "ROTATE", "CLOUD"}

    assert {name.partition("-")[0] for name in _names(("gate",))} <= families


@pytest.fixture(scope="module")
def keys():
    return [SigningKey.generate(algorithm, kid=algorithm) for algorithm in ("RS256", "ES256")]


def recipes():
    return [
        pytest.param(recipe, id=f"{scenario.id}-{name}")
        for scenario in scenarios().values()
        if scenario.id.startswith("identity.")
        for name, recipe in scenario.tokens.items()
    ]


SESSION = presign.SessionKeys("ASIA" + "A" * 16, "secret" * 6, "token" * 40)


@pytest.mark.parametrize("recipe", recipes())
def test_recipes_can_be_minted_and_differ_from_the_sound_one(recipe, keys):
    now = time.time()
    if "sts" in recipe:
        made = presign.credential(recipe["sts"], SESSION, now, binding_value="edge-a")
        sound = presign.credential({}, SESSION, now, binding_value="edge-a")
        assert (made == sound) == (not recipe["sts"])
        return

    names = {recipe.get("issuer", "corp"), recipe.get("signer", "corp"), "corp", "outbound"}
    issuers = {name: SimpleNamespace(shape="generic", url=f"http://idp/{name}", keys=keys) for name in names}

    assert mint_for(recipe, issuers, now, default="corp")
