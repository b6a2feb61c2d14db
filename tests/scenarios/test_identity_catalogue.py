"""The identity part hangs together: requirements, scenarios, flows, mutants, recipes."""

import re
import time
from pathlib import Path

import pytest

from iamroles_conformance.selftest.registry import mutants
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import Catalogue, catalogue, load
from iamroles_scenarios.declarations.scenario import scenarios
from iamroles_scenarios.jose import SigningKey, mint_for
from iamroles_scenarios.mock import presign

ROOT = Path(__file__).parents[2]
WITHIN = re.compile(r"Seen only from within: (\S+)::(\w+)$")


def identity():
    directory = ROOT / "scenarios" / "iamroles_scenarios" / "data" / "requirements"
    return Catalogue(
        item for item in load(directory).values() if f'id = "{item.id}"' in _text(directory / "identity.toml")
    )


def _text(path):
    return path.read_text(encoding="utf-8")


def unseen():
    """Requirements that no black box can see, and the agent's own test of each."""
    found = {name: WITHIN.search(f"{item.text} {item.attack}") for name, item in identity().items()}
    return {name: match for name, match in found.items() if match}


def test_each_entry_is_proven_by_a_check_or_by_the_agents_own_test():
    proven = {name for check in plan() for name in check.requirements}

    assert set(identity()) - proven == set(unseen())


def test_the_agents_own_tests_exist():
    for name, match in unseen().items():
        assert f"def {match[2]}(" in _text(ROOT / match[1]), name


def test_each_must_that_is_seen_has_a_mutant():
    killed = {name for found in mutants(("identity",)).values() for name in found.kills}
    musts = {name for name, item in identity().items() if item.level == "MUST"}

    assert musts - killed == set(unseen()) & musts


def test_checks_name_requirements_that_exist():
    for check in plan():
        if check.id.startswith("identity."):
            assert set(check.requirements) <= set(catalogue()), check.id


class Issuer:
    """As much of an issuer as minting needs."""

    shape = "generic"

    def __init__(self, name, keys):
        self.url = f"http://idp/{name}"
        self.keys = keys


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
    issuers = {name: Issuer(name, keys) for name in names}

    assert mint_for(recipe, issuers, now, default="corp")
