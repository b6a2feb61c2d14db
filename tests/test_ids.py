"""No check, requirement or mutant is lost: `ids.json` has those of commit 8f63ab3."""

import json
from pathlib import Path

from iamroles_conformance.selftest.registry import mutants
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.planning import current


def test_no_id_is_lost():
    today = {
        "checks": {check.name for check in plan()},
        "requirements": set(catalogue()),
        "mutants": set(mutants()),
    }
    before = json.loads(Path(__file__).with_name("ids.json").read_text(encoding="utf-8"))

    assert [name for kind, ids in before.items() for name in ids if current(name) not in today[kind]] == []
