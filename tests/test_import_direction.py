"""The judge shares no code with a player: the direction of imports between the five packages."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "iamroles_agent": ROOT / "reference/iamroles_agent",
    "iamroles_tools": ROOT / "reference/iamroles_tools",
    "iamroles_scenarios": ROOT / "scenarios/iamroles_scenarios",
    "iamroles_conformance": ROOT / "conformance/iamroles_conformance",
    "iamroles_loadtests": ROOT / "loadtests/iamroles_loadtests",
}
MAY_IMPORT = {
    "iamroles_agent": set(),
    "iamroles_tools": {"iamroles_agent"},
    "iamroles_scenarios": set(),
    "iamroles_conformance": {"iamroles_scenarios"},
    "iamroles_loadtests": {"iamroles_scenarios"},
}
# Mutants are overrides of the reference agent, so they alone name it.
MUTANTS = PACKAGES["iamroles_conformance"] / "selftest" / "mutants"


def imported(source, known=frozenset(PACKAGES)):
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function in {"import_module", "__import__"}:
                names.add(str(node.args[0].value).split(".")[0])
    return names & known


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    wrong = {}
    files = list(PACKAGES[package].rglob("*.py"))
    assert files
    for file in files:
        if file.is_relative_to(MUTANTS):
            continue
        if found := imported(file.read_text()) - MAY_IMPORT[package] - {package}:
            wrong[str(file.relative_to(ROOT))] = found

    assert wrong == {}


def test_the_test_sees_each_way_to_import():
    source = (
        "import iamroles_agent.spop\ndef f():\n"
        "  from iamroles_conformance import x\n  import_module('iamroles_loadtests.y')"
    )

    assert imported(source) == {"iamroles_agent", "iamroles_conformance", "iamroles_loadtests"}


def test_only_agent_tests_and_changed_agents_import_the_agent():
    may = (ROOT / "tests/agent", ROOT / "tests/tools", ROOT / "tests/support")
    wrong = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("*.py")
        if "iamroles_agent" in imported(file.read_text()) and not any(map(file.is_relative_to, may))
    ]

    assert wrong == []


def test_no_test_imports_a_benchmark():
    files = (ROOT / "tests").rglob("*.py")
    wrong = [file.name for file in files if imported(file.read_text(), frozenset({"benchmarks"}))]

    assert wrong == []
