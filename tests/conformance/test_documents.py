"""Strict TOML: every problem with file, line, key and what to do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iamroles_scenarios.base.errors import DocumentError
from iamroles_scenarios.checks.fault import NOT_PRODUCED, not_produced
from iamroles_scenarios.declarations.catalogue import load as load_catalogue
from iamroles_scenarios.declarations.documents import lines_of, parse
from iamroles_scenarios.declarations.scenario import Scenario, merged, policy_of, scenarios
from iamroles_scenarios.declarations.scenario import load as load_scenarios

_GOOD = """id = "gate.example"
title = "An example"
why = "It shows what a scenario file holds."

[world]
policy = "orders"

[tokens.reader]
roles = ["reader"]

[checks.opens]
title = "the reader gets in"
requirements = ["GATE-ALLOW-001"]

[[steps]]
request = { token = "reader" }
expect.opens = { status = 200 }
"""


def _problems(text):
    with pytest.raises(DocumentError) as caught:
        parse(text, Scenario, "example.toml")
    return caught.value.problems


def test_a_good_scenario_loads():
    scenario = parse(_GOOD, Scenario, "example.toml")

    assert [check.id for check in scenario.planned("gate")] == ["gate.example.opens"]


@pytest.mark.parametrize(
    ("old", "new", "place", "what"),
    [
        ('token = "reader" }', 'tokken = "reader" }', ":16: steps[0].request.tokken", "Unknown key"),
        ("status = 200", 'status = "200"', ":17: steps[0].expect.opens.status", "valid integer"),
        ("status = 200", "", ":17: steps[0].expect.opens", "at least one thing"),
        ('policy = "orders"', "", ":5: world.policy", "Add it"),
        ("expect.opens", "expect.closes", "example.toml", "does not declare"),
        ('token = "reader"', 'token = "writer"', "example.toml", "which `tokens` does not declare"),
        ('title = "the reader gets in"', "title = 7", ":12: checks.opens.title", "valid string"),
        ("status = 200", "absent = ['cookie']", "example.toml", 'lanes = ["gate"]'),
    ],
)
def test_a_problem_names_file_line_key_and_remedy(old, new, place, what):
    assert old in _GOOD
    problems = _problems(_GOOD.replace(old, new))

    assert any(place in problem and what in problem for problem in problems), problems


def test_a_step_is_exactly_one_thing():
    assert "exactly one of" in _problems(_GOOD.replace("expect.opens", 'agent = "kill"\nexpect.opens'))[0]


def test_all_problems_of_all_files_come_at_once(tmp_path):
    (tmp_path / "a.toml").write_text(_GOOD.replace("gate.example", "GATE"), encoding="utf-8")
    (tmp_path / "b.toml").write_text("id = ", encoding="utf-8")
    (tmp_path / "c.toml").write_text(_GOOD, encoding="utf-8")
    (tmp_path / "d.toml").write_text(_GOOD, encoding="utf-8")
    with pytest.raises(DocumentError) as caught:
        load_scenarios(tmp_path)

    text = str(caught.value)
    assert "a.toml:1: id" in text
    assert "b.toml: not TOML" in text
    assert "d.toml: id: gate.example is taken" in text


_REQUIREMENT = """[[requirement]]
id = "{id}"
level = "MUST"
class = "wire"
source = "SPEC.md"
text = "It must be so."
attack = "It is not so."
"""


def test_an_id_is_given_once(tmp_path):
    (tmp_path / "a.toml").write_text(_REQUIREMENT.format(id="A-B-001"), encoding="utf-8")
    (tmp_path / "b.toml").write_text("\n" + _REQUIREMENT.format(id="A-B-001"), encoding="utf-8")
    with pytest.raises(
        DocumentError, match=r"b\.toml:3: requirement\[0\]\.id: A-B-001 is already in a\.toml:2"
    ):
        load_catalogue(tmp_path)


def test_a_requirement_has_every_field(tmp_path):
    text = _REQUIREMENT.format(id="a-b-1").replace('attack = "It is not so."\n', "")
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(DocumentError) as caught:
        load_catalogue(tmp_path)

    assert any("requirement[0].attack" in problem for problem in caught.value.problems)
    assert any("a.toml:2: requirement[0].id" in problem for problem in caught.value.problems)


def test_every_world_of_a_scenario_exists():
    assert all(policy_of(scenario.world)["version"] == 1 for scenario in scenarios().values())


_KEYS = st.text("abcdefghij", min_size=1, max_size=3)
_PLAIN = st.recursive(st.integers(0, 9), lambda of: st.dictionaries(_KEYS, of, max_size=3), max_leaves=8)
_TABLES = st.dictionaries(_KEYS, _PLAIN, max_size=4)


@given(_TABLES, _TABLES)
def test_merging_twice_is_merging_once(base, over):
    once = merged(base, over)

    assert merged(once, over) == once
    assert merged(base, {}) == base
    assert set(once) == set(base) | set(over)


def test_lists_of_named_tables_merge_by_name():
    base = {"grants": [{"id": "R1", "roles": ["a"], "path": "/x"}, {"id": "R2"}]}
    over = {"grants": [{"id": "R1", "roles": ["b"]}, {"id": "R3"}]}

    assert merged(base, over) == {
        "grants": [{"id": "R1", "roles": ["b"], "path": "/x"}, {"id": "R2"}, {"id": "R3"}]
    }


@given(st.lists(_KEYS, min_size=1, max_size=6, unique=True), st.integers(1, 4))
def test_lines_of_finds_every_key_where_it_was_written(names, gap):
    text = ("\n" * gap).join(f"[[steps]]\n{name} = 1" for name in names)
    lines = lines_of(text)
    written = text.splitlines()

    for index, name in enumerate(names):
        assert written[lines["steps", index, name] - 1] == f"{name} = 1"


def test_faults_that_no_stage_produces_are_named_wherever_faults_are_played():
    told = not_produced(["gate.allow", "fault.host.disk"])
    page = (Path(__file__).parents[2] / "docs" / "under-fire.md").read_text(encoding="utf-8")

    assert len(told) == len(NOT_PRODUCED)
    assert not_produced(["gate.allow"]) == []
    assert [what for what in NOT_PRODUCED if f"- {what}" not in page] == []
