"""SPEC.md is whole: clauses and requirements agree, and so do tables and schema; examples hold."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from invoking import said

from iamroles_scenarios.checks.oracle.generate import draw
from iamroles_scenarios.checks.oracle.judge import judge
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.scenario import policy_of, scenarios

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "conformance" / "SPEC.md").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "reference" / "policy.schema.json").read_text(encoding="utf-8"))
WORLDS = ROOT / "scenarios" / "iamroles_scenarios" / "data" / "worlds"
STANDARDS = re.compile(r"SPOE\.txt|RFC \d|OpenID Connect|AWS |CVE-|Amazon |FIPS|HAProxy's|docs/", re.ASCII)
"""Sources of a requirement without a clause; docs only beside a clause (a test below)."""
NOON = 1_800_000_000
EXAMPLE = tomllib.loads(re.search(r"### Decision.*?```toml\n(.*?)```", SPEC, re.DOTALL)[1])


def _clauses():
    """The text of each clause by its number."""
    parts = re.split(r'<a id="c-(\d+-\d+)"></a>', SPEC)
    bodies = (re.split(r"\n#", body)[0] for body in parts[2::2])
    return {number.replace("-", "."): body for number, body in zip(parts[1::2], bodies, strict=True)}


def _named(text):
    lists = re.findall(r"\[((?:[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)+-\d{3}\s*)+)\]", text)
    return {name for one in lists for name in one.split()}


# --- clauses and requirements ------------------------------------------------------------------------------


def test_each_clause_has_an_anchor_and_its_number_once_and_in_order():
    anchors = re.findall(r'<a id="c-(\d+)-(\d+)"></a>\*\*(\d+)\.(\d+)\*\*', SPEC)

    assert len(anchors) == SPEC.count('<a id="c-') - len(re.findall(r'<a id="c-\d+"></a>', SPEC))
    assert all(anchor[:2] == anchor[2:] for anchor in anchors)
    numbers = [(int(section), int(clause)) for section, clause, *_ in anchors]
    assert numbers == sorted(set(numbers))


def test_clauses_and_requirements_point_at_each_other():
    by_clause = {number: _named(body) for number, body in _clauses().items()}
    by_catalogue: dict[str, set[str]] = {number: set() for number in by_clause}
    for item in catalogue().values():
        for number in item.clauses:
            assert number in by_clause, f"{item.id}: SPEC.md has no clause {number}"
            by_catalogue[number].add(item.id)

    assert by_clause == by_catalogue


def test_what_has_no_clause_is_demanded_by_a_standard():
    bare = [item for item in catalogue().values() if not item.clauses]
    assert not [f"{one.id}: {one.source}" for one in bare if not STANDARDS.match(one.source)]
    assert not [one.id for one in bare if "docs/" in one.source or "SPEC.md" in one.source]


def test_what_is_strict_is_a_clause_marked_so_and_the_other_way_round():
    strict = {item.id for item in catalogue().values() if item.grade == "strict"}
    marked = {name for body in _clauses().values() for name in _named(body.partition("*strict*")[2])}

    assert marked == strict


def test_a_must_is_judged_by_a_check_that_is_no_should_and_not_strict():
    """Else a MUST that fails is a warning. SHOULDs and what is seen only from within have none."""
    checks = [check for check in plan() if check.must and check.grade == "core"]
    judged = {name for check in checks for name in check.requirements}
    core = {number: body.partition("*strict*")[0] for number, body in _clauses().items()}
    bare = {number for number, body in core.items() if _named(body) and not _named(body) & judged}
    classes = {number: {catalogue()[name].class_ for name in _named(core[number])} for number in bare}

    assert {number for number in bare if classes[number] != {"inside"}} == {"2.4", "8.6"}
    assert "SHOULD" in core["2.4"] and "SHOULD" in core["8.6"]  # noqa: PT018


def test_a_clause_without_a_requirement_says_so():
    """Such clauses describe what the suite itself needs of an agent to play anything at all."""
    assert [number for number, body in _clauses().items() if not _named(body)] == ["8.1", "8.2"]


def test_the_table_at_the_top_lists_every_section():
    assert re.findall(r"^\| \[(\d+)\]", SPEC, re.MULTILINE) == re.findall(r'<a id="c-(\d+)"></a>', SPEC)


def test_clauses_that_the_text_refers_to_are_there():
    known = set(_clauses())
    pairs = re.findall(r"\((\d\.\d+)\)|and \((\d\.\d+)\)", SPEC)
    referred = {number for pair in pairs for number in pair if number}

    assert referred <= known


# --- tables ------------------------------------------------------------------------------------------------


def _tables():
    """Rows of each policy table, by its name in the text."""
    found: dict[str, list[list[str]]] = {}
    pattern = r"\n\*\*(?:`\[\[?([a-z_.]+)\]\]?`|\((top)\))\*\*\n\n\| key [^\n]*\n[^\n]*\n((?:\|[^\n]*\n)+)"
    for name, top, rows in re.findall(pattern, SPEC):
        cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows.strip().splitlines()]
        found[name or top] = [[cell.strip() for cell in row] for row in cells]
    return found


def _schema_of(name):
    if name == "top":
        return SCHEMA
    place: dict[str, Any] = SCHEMA
    for part in name.split("."):
        text = json.dumps(place["properties"][part])
        place = SCHEMA["$defs"][re.search(r"#/\$defs/(\w+)", text)[1]]
    return place


def _types(schema):
    """Words that the column of types must have."""
    words: list[str] = []
    for one in schema.get("anyOf", [schema]):
        match one:
            case {"$ref": _}:
                words.append("table")
            case {"type": "array", "items": {"$ref": _}}:
                words.append("tables")
            case {"type": "array"}:
                words.append("list of texts")
            case {"enum": values}:
                words += [f'"{value}"' for value in values]
            case {"const": value}:
                words.append(f'"{value}"' if isinstance(value, str) else f"integer {value}")
            case {"type": "string"}:
                words.append("text|duration")
            case {"type": kind} if kind != "null":
                words.append(kind)
                words += [str(one[bound]) for bound in ("minimum", "maximum") if bound in one]
    return words


def test_every_table_of_the_schema_is_written_out():
    tables = {"top", *(key for key, value in SCHEMA["properties"].items() if "$defs" in json.dumps(value))}

    assert set(_tables()) == tables | {"agent.tls", "backends.tls"}


@pytest.mark.parametrize("name", sorted(_tables()))
def test_a_table_says_what_the_schema_says(name):
    schema, rows = _schema_of(name), _tables()[name]
    properties = {key: value for key, value in schema["properties"].items() if key != "$schema"}

    assert [row[0].strip("`") for row in rows] == list(properties)
    for cell, required, default, kind, meaning in rows:
        key = cell.strip("`")
        told = properties[key]
        assert required == ("yes" if key in schema.get("required", ()) else "no"), key
        if told.get("default") is not None:
            assert default == f"`{json.dumps(told['default'])}`", key
        assert not (required == "yes" and default), key
        assert all(re.search(rf"\b(?:{word})", kind) or word in kind for word in _types(told)), (key, kind)
        assert meaning, key


def _keys(document, schema, path=""):
    """Keys of a document that the schema does not have."""
    unknown: list[str] = []
    for key, value in document.items():
        if key not in schema["properties"]:
            unknown.append(f"{path}{key}")
            continue
        reference = re.search(r"#/\$defs/(\w+)", json.dumps(schema["properties"][key]))
        for entry in value if isinstance(value, list) else [value]:
            if reference and isinstance(entry, dict):
                unknown += _keys(entry, SCHEMA["$defs"][reference[1]], f"{path}{key}.")
    return unknown


@pytest.mark.parametrize("world", sorted(WORLDS.glob("*.toml")), ids=lambda path: path.stem)
def test_worlds_use_documented_keys_only(world):
    assert not _keys(tomllib.loads(world.read_text(encoding="utf-8")), SCHEMA)


def test_scenarios_override_documented_keys_only():
    meant = {"unknown-key"}
    for scenario in scenarios().values():
        assert not _keys(policy_of(scenario.world), SCHEMA), scenario.id
        for step in scenario.steps:
            if step.reload and step.reload.accepted:
                assert not set(_keys(step.reload.override, SCHEMA)) - meant, scenario.id


@pytest.mark.parametrize("seed", range(40))
def test_the_oracle_draws_documented_keys_only(seed):
    assert not _keys(draw(seed, seed, 1).policy, SCHEMA)


# --- examples ----------------------------------------------------------------------------------------------


def _examples():
    rows: list[tuple[str, list[str]]] = []
    for number, body in _clauses().items():
        head = "| roles of the token |"
        if head in body:
            lines = body[body.index(head) :].strip().splitlines()[2:]
            rows += [(number, [cell.strip() for cell in line.split("|")[1:-1]]) for line in lines]
    return rows


@pytest.mark.parametrize("example", _examples(), ids=lambda row: f"{row[0]}: {' | '.join(row[1])}")
def test_an_example_is_what_the_oracle_decides(example):
    roles, asks, scope, request, verdict = example[1]
    method, *host, path = request.split()
    arns = [
        name if name.startswith("arn:") else f"arn:aws:iam::111111111111:role/{name}"
        for name in re.findall(r"`([^`]+)`", roles)
    ]
    claims = {"roles": arns, "iat": NOON - 60, "exp": NOON + 3540}
    if scope:
        claims["scope"] = scope.strip("`")
    asked = {"method": method, "path": path, "src": "192.0.2.7", "role": asks.strip("`") or None}
    asked["host"] = host[0] if host else "api.example.com"
    found = judge(EXAMPLE, claims, asked, NOON)
    word, *rule = verdict.split()

    assert (found.reason or "allow") == word
    assert not rule or rule[0].strip("`") in found.rules


def test_each_rule_of_the_decision_has_an_example():
    rules = {number for number in _clauses() if number.startswith("6.") and int(number[2:]) >= 10}
    without = rules - {number for number, _ in _examples()}

    assert without == {"6.18", "6.24", "6.25", "6.26"}, "sources, loading, and what the others add up to"


# --- delivery ----------------------------------------------------------------------------------------------


def test_the_command_prints_it():
    clause = said("conformance spec 6.12")

    assert said("conformance spec").strip() == SPEC.strip()
    assert clause.startswith("6.12")
    assert "The active set" in clause
    assert said("conformance spec 6.99", code=2)


def test_a_section_is_printed_whole():
    section = said("conformance spec 8")

    assert section.startswith("## 8. ")
    assert "**8.5**" in section
    assert "## 9" not in section
    assert "<a id" not in section
