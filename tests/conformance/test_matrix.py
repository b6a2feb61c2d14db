"""The support table over several versions of HAProxy."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from iamroles_conformance.matrix import Column, as_markdown, matrix


def _column(version: str, **verdicts: str) -> Column:
    requirements = [
        {"id": name.replace("_", "-"), "text": f"text of {name}", "verdict": verdict}
        for name, verdict in verdicts.items()
    ]
    return Column(version, {"haproxy": f"{version}.1", "requirements": requirements})


def test_the_table_has_every_requirement_and_every_version() -> None:
    columns = [
        _column("2.8", A_001="pass"),
        _column("3.0", A_001="fail", B_001="pass"),
        Column("3.2", fault="none"),
    ]

    assert as_markdown(columns).splitlines() == [
        "| requirement | HAProxy 2.8.1 | HAProxy 3.0.1 | HAProxy 3.2 |",
        "|---|---|---|---|",
        "| `A-001` text of A_001 | pass | fail | not played |",
        "| `B-001` text of B_001 |  | pass | not played |",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--check=nonsense"], 2, "zero checks"),
        (["--haproxy=9.9", "--stage=processes", "--check=gate.expired"], 3, "HAProxy 9.9: not played"),
    ],
)
def test_nothing_is_skipped_in_silence(arguments: list[str], code: int, said: str) -> None:
    done = CliRunner().invoke(matrix, arguments)

    assert done.exit_code == code
    assert said in done.output
