"""`.ci/repeat`: at most two failed tests are repeated, none of conformance, and never in silence."""

import json
from pathlib import Path

import pytest
from invoking import finished

REPEAT = Path(__file__).parents[1] / ".ci" / "repeat"
PYTEST = """#!/bin/sh
run=$(cat runs); echo $((run + 1)) >runs
echo "== FAILURES =="; echo "output $run"; cat .pytest_cache/v/cache/lastfailed
cp failed-$run .pytest_cache/v/cache/lastfailed; exit $(cat code-$run)
"""


@pytest.mark.parametrize(
    ("first", "alone", "code", "words"),
    [
        ("", "", 0, ""),
        ("a", "", 0, "| tests/test_a.py::test_a | failed | passed |"),
        ("a b", "", 0, "| tests/test_b.py::test_b | failed | passed |"),
        ("a b", "b", 1, "| tests/test_b.py::test_b | failed | failed |"),
        ("a[0]@test_a-0 b", "", 0, "| tests/test_a.py::test_a[0] | failed | passed |"),
        ("a b c", "", 1, "more than two"),
        ("a conformance", "", 1, "never repeated"),
        (None, "", 1, "the command itself failed"),
    ],
)
def test_a_failure_is_repeated_or_fails(tmp_path, first, alone, code, words):
    (tmp_path / ".pytest_cache/v/cache").mkdir(parents=True)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/pytest").write_text(PYTEST)
    (tmp_path / ".venv/bin/pytest").chmod(0o755)
    (tmp_path / "runs").write_text("1")
    for run, failed in ((1, first), (2, alone)):
        ids = {
            f"tests/test_{name.partition('[')[0]}.py::test_{name}": True for name in (failed or "").split()
        }
        (tmp_path / f"failed-{run}").write_text(json.dumps(ids, indent=2))
        (tmp_path / f"code-{run}").write_text("0" if failed == "" else "1")
    table = tmp_path / "table"
    done = finished(REPEAT, table, ".venv/bin/pytest", cwd=tmp_path)
    said = table.read_text() if table.exists() else done.stdout

    assert (done.returncode, words in said) == (code, True), done
    assert "@" not in said or not table.exists()
    assert table.exists() == (words[:1] == "|")
    assert (tmp_path / "runs").read_text().strip() == ("3" if table.exists() else "2")
    assert not table.exists() or "output 1" in said.partition("output 2")[0]
