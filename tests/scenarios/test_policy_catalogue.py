"""The policy lane as a whole: each requirement has a check and a mutant, or a test from within."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from iamroles_conformance.selftest.registry import mutants
from iamroles_scenarios.checks.plan import plan

ROOT = Path(__file__).parents[2]
ENTRIES = tomllib.loads(
    (files("iamroles_scenarios") / "data" / "requirements" / "policy.toml").read_text(encoding="utf-8")
)["requirement"]
WITHIN = re.compile(r"Seen only from within: (\S+)::(\w+)$")
CHECKS = plan()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_each_requirement_is_proven_somewhere(entry):
    proven = [check.name for check in CHECKS if entry["id"] in check.requirements]
    within = WITHIN.search(entry["text"])
    if within is None:
        assert proven != []
    else:
        assert proven == []
        assert f"def {within[2]}(" in (ROOT / within[1]).read_text(encoding="utf-8")


def test_each_must_that_is_seen_has_a_mutant():
    killed = {name for found in mutants(("policy",)).values() for name in found.kills}
    musts = {
        entry["id"] for entry in ENTRIES if entry["level"] == "MUST" and not WITHIN.search(entry["text"])
    }

    assert musts - killed == set()


def test_checks_of_this_lane_name_its_requirements():
    known = {entry["id"] for entry in ENTRIES}
    strange = [
        check.name
        for check in CHECKS
        if check.id.startswith("policy.") and not set(check.requirements) <= known
    ]

    assert strange == []
