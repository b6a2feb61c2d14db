"""The wire lane and its catalogue belong together."""

from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import catalogue


def spop():
    return {name: item for name, item in catalogue().items() if name.startswith("SPOP-")}


def test_every_requirement_has_a_check_and_every_check_a_requirement():
    proven = {name for check in plan(["wire"]) for name in check.requirements}

    assert proven == set(spop())


def test_checks_say_what_they_are():
    for check in plan(["wire"]):
        assert check.id.startswith("wire."), check.id
        assert check.title, check.id
