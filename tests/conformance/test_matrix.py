"""Several versions of HAProxy: which can be played, what the tables say, and what the command ends with."""

import json

import pytest
from invoking import AGENTS, agent_toml, said

from iamroles_conformance.commands.matrix import chosen, exit_code
from iamroles_conformance.reports.matrix import BEGIN, END, Column, as_markdown, page
from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.stage.stage import Offer, offered

PROCESSES = Offer("processes", "The stage is processes: asked for.", ("2.8", "3.0"))
CONTAINERS = Offer("containers", "The stage is containers: it answers.", ("2.6", "2.8", "3.0", "3.2"))


def _column(version, **verdicts):
    names = {name.replace("_", "-"): verdict for name, verdict in verdicts.items()}
    found = {
        "haproxy": f"{version}.1",
        "product": {"name": "an|agent", "version": "1"},
        "stage": {"kind": "containers"},
        "finished": "2026-11-24T10:00:00+00:00",
        "passed": "fail" not in names.values(),
        "checks": [{"name": name, "lane": "gate", "verdict": verdict} for name, verdict in names.items()],
        "requirements": [{"id": name, "verdict": verdict} for name, verdict in names.items()],
    }
    return Column(version, found)


# --- which versions ---------------------------------------------------------------------------------------


def test_nothing_asked_for_is_all_that_is_there_and_what_is_listed_or_repeated_is_played_once():
    assert "2.8" in offered("processes").versions, "the wheel's release"
    assert chosen([], PROCESSES) == ["2.8", "3.0"]
    assert chosen(["3.2, 2.6", "3.2"], CONTAINERS) == ["3.2", "2.6"]


def test_a_version_that_cannot_run_is_an_error_with_a_remedy():
    with pytest.raises(StageError) as caught:
        chosen(["2.6,3.0,3.2"], PROCESSES)

    assert caught.value.message == (
        "HAProxy 2.6, 3.2 cannot run on the stage of processes, which has 2.8, 3.0: --stage=containers, "
        "with a Docker engine, has 2.6, 2.8, 3.0, 3.2. The stage is processes: asked for."
    )


def test_a_host_without_any_is_an_error():
    with pytest.raises(StageError, match="which has none"):
        chosen([], Offer("processes", "", ()))


# --- tables -----------------------------------------------------------------------------------------------


def test_the_table_has_every_requirement_and_every_version():
    columns = [
        _column("2.8", GATE_ALLOW_001="pass"),
        _column("3.0", GATE_ALLOW_001="fail", GATE_TAG_002="pass"),
        Column("3.2", fault="no | image"),
    ]

    assert as_markdown(columns) == [
        *("| HAProxy | stage | agent | checks | verdicts | played |", "|---|---|---|---|---|---|"),
        "| 2.8.1 | containers | an\\|agent 1 | 1 | 1 pass | 2026-11-24 |",
        "| 3.0.1 | containers | an\\|agent 1 | 2 | 1 pass, 1 fail | 2026-11-24 |",
        *("| 3.2 | | | 0 | not played: no \\| image | |", "", "| requirement | | 2.8.1 | 3.0.1 | 3.2 |"),
        "|---|---|---|---|---|",
        f"| `GATE-ALLOW-001` | {catalogue()['GATE-ALLOW-001'].text} | pass | fail | not played |",
        f"| `GATE-TAG-002` | {catalogue()['GATE-TAG-002'].text} | | pass | not played |",
    ]


def test_a_page_keeps_what_stands_around_the_table(tmp_path):
    path = tmp_path / "support.md"
    path.write_text(f"# Ours\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")

    for _ in range(2):
        page(path).write(as_markdown([_column("2.8", GATE_ALLOW_001="pass")]))

    text = path.read_text()
    assert text.startswith(f"# Ours\n\n{BEGIN}\n| HAProxy |")
    assert text.endswith(f"|\n{END}\n\nThe end.\n")
    assert "old" not in text
    assert text.count("GATE-ALLOW-001") == 1


# --- the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ([_column("2.8", A="pass"), _column("3.0", A="pass")], 0),
        ([_column("2.8", A="pass"), _column("3.0", A="fail")], 1),
        ([_column("2.8", A="pass"), Column("3.0", fault="gone")], 3),
        ([_column("2.8", A="fail"), Column("3.0", fault="gone")], 1),
    ],
)
def test_the_exit_code_is_the_worst_of_all(columns, code):
    assert exit_code(columns) == code


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--stage=processes --check=nonsense", 2, "of this name"),
        ("--haproxy=9.9 --stage=processes", 3, "HAProxy 9.9 cannot run on the stage of processes"),
        ("--stage=processes --require=containers", 3, "drop one of the two"),
        ("--check=gate.expired --docs=page.md", 2, "leave out --check"),
        (
            "--stage=processes --check=gate.expired --agent=/no/agent.toml",
            2,
            "/no/agent.toml: cannot be read",
        ),
    ],
)
def test_nothing_is_skipped_in_silence(words, code, told):
    assert told in said(f"conformance matrix {words}", code=code)


def test_each_version_has_its_result_and_a_failure_its_command(tmp_path):
    words = "conformance matrix --stage=processes --haproxy=2.8 --check=gate.expired.reason[haproxy] --output"
    agent = agent_toml(tmp_path, ["python", AGENTS / "blunt.py", "deny"], oidc=True)
    told = said(words, tmp_path, f"--agent={agent}", code=1)

    path = tmp_path / "haproxy-2.8" / "report.json"
    found = json.loads(path.read_text())
    assert found["haproxy"].startswith("2.8.")
    assert found["passed"] is False
    assert "HAProxy 2.8." in told
    assert "left out: 2.6" in told
    assert "again: iamroles conformance run" in told
    assert "--lane=proxy '--check=gate.expired.reason[haproxy]'\n" in told

    said(words, tmp_path, "--agent", agent_toml(tmp_path, ["false"], oidc=True), code=3)
    assert not path.exists(), "a report of an earlier run"
