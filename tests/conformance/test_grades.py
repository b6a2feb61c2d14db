"""An agent that departs from `strict` and misses a SHOULD: not accused of it, nor said to conform to more."""

import json

import pytest
from click.testing import CliRunner

from iamroles_conformance.commands.conformance import conformance

pytest_plugins = ["pytester"]

_AGENT = """
spec = 1
name = "twin"
version = "1"

[launch]
command = ["python", "-m", "iamroles_conformance.selftest.mutants", "%s", "agent", "run"]

[features]
oidc = true
"""
_TWIN = "identity.stray-bits,wire.health-stays"


@pytest.fixture
def agent(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(_AGENT % _TWIN, encoding="utf-8")
    return path


@pytest.mark.parametrize(("grade", "code"), [("core", 0), ("strict", 1)])
def test_a_departure_counts_in_strict_alone_and_a_warning_never(agent, tmp_path, grade, code):
    done = CliRunner().invoke(
        conformance,
        [
            *("run", "--agent", str(agent), "--stage", "processes", "--lane", "wire", "--lane", "gate-spop"),
            *("--check", "identity.encoding.canonical", "--check", "wire.health.closes", "--grade", grade),
            *("--report", str(tmp_path / "report")),
        ],
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    told = report["statement"]

    assert done.exit_code == code, done.output
    assert "DEPARTURE from the grade strict" in done.output
    assert "WARNING: a SHOULD that failed" in done.output
    assert told["sentence"].endswith(
        "0 passed, 0 failed, 1 warning, 1 departure. That is no statement of conformance."
    )
    assert told["sentence"] in done.output
    assert "--check=wire.health.closes" in report["reproduce"]
    assert told["departures"] == ["identity.encoding.canonical[spop]"]
    assert told["warnings"] == ["wire.health.closes"]


def test_under_pytest_what_is_permitted_is_a_warning_even_where_warnings_are_errors(agent, pytester):
    done = pytester.runpytest_subprocess(
        *("--pyargs", "iamroles_conformance", f"--iamroles-agent={agent}", "-W", "error"),
        *("--iamroles-stage=processes", "--iamroles-lane=wire", "-k", "wire.health.closes"),
    )

    assert done.ret == 0
    done.assert_outcomes(passed=1, warnings=1, deselected=None)
    done.stdout.fnmatch_lines(
        ["*ConformanceWarning: WARNING: a SHOULD that failed*", "warnings (SHOULD): wire.health.closes"]
    )
