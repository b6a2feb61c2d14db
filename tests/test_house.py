"""What keeps the house small and readable: rooms, arrows between them, lines, class names, plain English.

A room is a file or folder directly under a package. An arrow is one room that imports another, also inside a
function or by a string. `ROOMS` lists the rooms of each package from the ground up: a room imports none that
stands after it. A ceiling is raised only by a commit that says why; CONTRIBUTING.md says how a change pays.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.split()
PLACES = {
    "iamroles_agent": "reference",
    "iamroles_tools": "reference",
    "iamroles_scenarios": "scenarios",
    "iamroles_conformance": "conformance",
    "iamroles_loadtests": "loadtests",
}
ROOMS = {
    "iamroles_agent": "base spop audit identity_header policy tokens control live serving processes commands "
    "main __main__",
    "iamroles_tools": "policy audit tokens haproxy commands",
    "iamroles_scenarios": "base wire jose mock stage traffic declarations engine checks commands",
    "iamroles_conformance": "errors selftest subject reports plugin commands test_conformance",
    "iamroles_loadtests": "asking measuring bench results pages locusting commands",
}
ARROWS = {"iamroles_agent": 40}
LINES = {
    "reference": 26_560,
    "scenarios": 38_210,
    "conformance": 12_095,
    "loadtests": 5_041,
    "benchmarks": 4_273,
    "tests": 38_010,
}
TRUSTED_LINES = 20_030
"""Of the agent: what an auditor must trust."""
DATA_LINES = 23_950
"""Of TOML and JSON: code must not hide as data."""
TRANSLATED = 50
"""Sentences of the constructions below, in docstrings, comments, messages, pages and data."""
CONSTRUCTIONS = {
    "the passive of tell": r"\b(?:is|are|was|were|be) told\b",
    "none for invalid or missing": r"\b(?:is|are) none\b",
    "`one that` without its noun": r"\b[Oo]ne that\b|\b[Oo]f one\b",
    "`who` for a thing": r"\bfor who\b|\b[Ww]hoever\b|\b[Ww]ho (?:asks|waits|comes|has|was not|does not)\b",
    "again, no longer, meanwhile": r"\banew\b|\bany more\b|\ball the while\b",
    "a number without its meaning": r"\bso (?:many|long|much) (?:times|seconds|after|as)\b",
    "`, for` in place of because": r", for (?:it|they|he|there|nobody|what)\b",
    "a negated noun": r"\b(?:is|are) no (?!longer|more than|t\b)[a-z]+",
}
TRANSLATED_START = r"(What|Of|Who|Whoever|Whether|Where|So many|How many|How long)\b"


def modules(package):
    base = ROOT / PLACES[package] / package
    found = {}
    for path in base.rglob("*.py"):
        parts = path.relative_to(base).with_suffix("").parts
        found[".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def imports(source, known):
    """Modules among `known` that a source imports, or names by a string such as `a.b` or `a.b:name`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.partition(":")[0])
    return found & known


def room(module):
    """The second name; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def arrows(package):
    """The files that make each arrow, by the rooms at its ends."""
    known = modules(package)
    found: dict[tuple[str, str], list[str]] = {}
    for name, path in known.items():
        for target in imports(path.read_text(), set(known)):
            ends = room(name), room(target)
            if all(ends) and ends[0] != ends[1]:
                found.setdefault(ends, []).append(f"{name} imports {target}")
    return found


def python_files(folder):
    return [ROOT / name for name in TRACKED if name.startswith(f"{folder}/") and name.endswith(".py")]


def texts():
    """Each page, docstring, comment, message and data file; true for the docstring of a function."""
    found: list[tuple[bool, str]] = []
    for name in TRACKED:
        source = (ROOT / name).read_text() if name.endswith((".md", ".toml", ".py")) else ""
        if name.endswith(".md") or (name.endswith(".toml") and "/data/" in name):
            found.append((False, source))
        if not name.endswith(".py"):
            continue
        nodes = list(ast.walk(ast.parse(source)))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        heads = {getattr(node.body[0], "value", None) for node in functions}
        constants = [node for node in nodes if isinstance(node, ast.Constant) and " " in str(node.value)]
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        found += [(node in heads, node.value) for node in constants if isinstance(node.value, str)]
        found += [(False, token.string) for token in tokens if token.type == tokenize.COMMENT]
    return found


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_stand_on_those_below_them(package):
    order = ROOMS[package].split()
    rooms = {name.split(".")[1] for name in modules(package) if "." in name}
    found = arrows(package)

    assert rooms == set(order)
    assert {ends: files for ends, files in found.items() if order.index(ends[1]) > order.index(ends[0])} == {}
    assert len(found) <= ARROWS.get(package, 100)


def test_the_agent_runs_without_the_tools():
    loaded = (
        "import sys; from iamroles_agent.commands import agent; from iamroles_agent.processes import worker;"
        "print([name for name in sys.modules if name.startswith('iamroles_tools')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", LINES)
def test_no_folder_grows(folder):
    assert sum(len(path.read_text().splitlines()) for path in python_files(folder)) <= LINES[folder]


def test_the_code_to_trust_stays_small():
    agent = python_files("reference/iamroles_agent")

    assert sum(len(path.read_text().splitlines()) for path in agent) <= TRUSTED_LINES


def test_data_does_not_grow():
    names = [name for name in TRACKED if name.endswith((".toml", ".json")) and "/reports/" not in name]

    assert sum(len((ROOT / name).read_text().splitlines()) for name in names) <= DATA_LINES


@pytest.mark.parametrize("package", ROOMS)
def test_a_class_name_stands_for_one_class(package):
    names = Counter(
        node.name
        for path in modules(package).values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )

    assert [name for name, count in names.items() if count > 1] == []


def test_sentences_do_not_read_as_a_translation():
    found = Counter()
    for heads, text in texts():
        found["a docstring that starts with no verb"] += bool(heads and re.match(TRANSLATED_START, text))
        for name, pattern in CONSTRUCTIONS.items():
            found[name] += len(re.findall(pattern, text))

    assert found.total() <= TRANSLATED, found
