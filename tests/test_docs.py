"""The documents name what exists: commands and their options, files, variables."""

import re
import shlex
import tomllib
from collections import Counter
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path

import click
import pytest

(_INSTALLED,) = entry_points(group="console_scripts", name="iamroles")
MAIN: click.Group = _INSTALLED.load()
ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "conformance/SPEC.md"])
CODE = re.compile(r"^```[^\n]*\n(?P<block>.*?)^```|`(?P<inline>[^`\n]+)`", re.MULTILINE | re.DOTALL)
FOLDERS = r"reference|scenarios|conformance|loadtests|tests|docs|\.ci|\.github|packaging"
NOT_WORDS = re.compile(r"[…\[\]<>{}|]")
"""A placeholder, or prose about a command: nothing to look up."""


def lines(page):
    """Everything that stands as code: lines of blocks, continued lines joined, and inline code."""
    for match in CODE.finditer(page.read_text(encoding="utf-8")):
        text = match["block"] if match["block"] is not None else match["inline"]
        yield from text.replace("\\\n", " ").splitlines()


def commands(line):
    """`iamroles …` invocations of a line of shell, as words."""
    for part in re.split(r"&&|\|\||[;|]", line.removeprefix("$ ")):
        words = part.split(" #")[0].strip()
        if re.match(r"(\.venv/bin/)?(haproxy-iam-roles|iamroles)( |$)", words):
            try:
                yield shlex.split(words)[1:]
            except ValueError:
                yield words.split()[1:]


def unknown(words):
    """Return what a command line names that `iamroles` does not have, "" for nothing."""
    command: click.Command = MAIN
    context = click.Context(click.Command("iamroles"))
    options: set[str] = {"--help", "-h", "--version"}
    for word in words:
        if NOT_WORDS.search(word) or word == "--":  # what follows is another program's
            return ""
        if word.startswith("-"):
            name = word.split("=")[0]
            if not re.fullmatch(r"--?[a-z][a-z0-9-]*,?", name):
                return ""
            if name.rstrip(",") not in options and not name.rstrip(",").startswith("--iamroles-"):
                return f"{' '.join(words)}: no option {name}"
        elif isinstance(command, click.Group):
            inner = command.get_command(context, word.rstrip(","))
            if inner is None:
                return f"{' '.join(words)}: no command {word}"
            command = inner
            options |= {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page):
    wrong = [said for line in lines(page) for words in commands(line) if (said := unknown(words))]

    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_exist(page):
    pattern = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]+")
    wrong = []
    for line in lines(page):
        for name in pattern.findall(line):
            path = name.rstrip(".").split("::")[0]
            if "<" not in line and not path.startswith("docs/site") and not any(ROOT.glob(path.rstrip("/"))):
                wrong.append(path)

    assert wrong == []


@pytest.fixture(scope="module")
def source():
    return "".join(
        path.read_text(encoding="utf-8")
        for folder in ("reference", "scenarios", "conformance", "loadtests", "tests", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cfg", ".toml", ".lua", "") and path.is_file()
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_exist(page, source):
    named = {
        name
        for line in lines(page)
        for name in re.findall(r"\b(?:IAM|IAMROLES)_[A-Z0-9_]+\b", line)
        if not re.search(r"_\d+$", name)
    }

    assert {name for name in named if name not in source} == set()


def test_the_test_sees_what_is_not_there():
    assert unknown(["conformance", "run", "--no-such"]) == "conformance run --no-such: no option --no-such"
    assert unknown(["polcy", "check"]) == "polcy check: no command polcy"
    assert unknown(["policy", "check", "file.toml", "--format", "json"]) == ""
    found = commands("$ iamroles policy check a.toml && .venv/bin/iamroles demo")
    assert [*found] == [["policy", "check", "a.toml"], ["demo"]]


FAULTS = {
    file.stem: tomllib.loads(file.read_text())["fault"]
    for file in (ROOT / "benchmarks/faults").glob("*.toml")
}


@pytest.mark.parametrize(
    ("walk", "whole"),
    [
        ("", "{} faults (`benchmarks/faults/`). 28 of them"),
        ("fresh", "Of {} faults four"),
        ("walk_first", "Of the first {} faults"),
        ("walk_third", "wrote {} more faults"),
        ("walk_fourth", "was played, {} faults"),
        ("walk_fifth", "The other {} faults"),
        ("walk_sixth", "Of the fifth walk, {} faults"),
        ("walk_seventh", "the sixth walk, {} faults"),
        ("walk_eighth", "Of the seventh walk, {} faults"),
        ("walk_ninth", "Of the eighth walk, {} faults"),
    ],
)
def test_the_page_counts_the_faults_from_the_source_as_their_rows_do(walk, whole):
    later = ("audit", "fresh", "walk")
    former = {name: found for name, found in FAULTS.items() if not name.startswith(later)}
    rows = FAULTS[walk] if walk else list(chain(*former.values()))
    judged = [row for row in rows if not row.get("same") and not row.get("permitted")]
    real = Counter(row["kind"] for row in judged)
    seen = Counter(row["kind"] for row in judged if not row.get("missed"))
    table = [f"| {kind} | {real[kind]} | {seen[kind]} |" for kind in sorted(real, key=str.lower)]
    table.append(f"| all | {real.total()} | {seen.total()} |")
    text = (ROOT / "docs/derived-checks.md").read_text()

    assert "\n".join(table) in text
    assert whole.format(len(rows)) in text
    assert f"saw {seen.total()} at first, which is {100 * seen.total() // real.total()} %" in text


def test_each_fault_changes_a_text_that_stands_once():
    rows = list(chain(*FAULTS.values()))

    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert ((ROOT / "reference" / row["file"]).read_text().count(row["old"]), row["id"]) == (1, row["id"])
