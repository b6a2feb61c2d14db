"""The wire lane and its catalogue belong together, and none of the seventy requirements is lost."""

from __future__ import annotations

from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.engine import wire_lane as lane


def spop():
    return {name: item for name, item in catalogue().items() if item.family == "SPOP"}


def test_all_seventy_are_there():
    numbers = {origin for item in spop().values() for origin in item.origin}

    assert numbers == {f"spop {number}" for number in range(1, 71)}


def test_every_requirement_has_a_check_and_every_check_a_requirement():
    proven = {name for check in lane.checks() for name in check.requirements}

    assert proven == set(spop())


def test_checks_say_what_they_are():
    for check in lane.checks():
        assert check.id.startswith("wire."), check.id
        assert check.title, check.id
        assert check.run.__doc__, check.id
