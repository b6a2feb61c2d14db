"""An agent that departs from `strict` and misses a SHOULD: not accused of it, nor said to conform to more."""

import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from invoking import agent_toml, said

from iamroles_conformance.selftest import record
from iamroles_conformance.selftest.registry import TOLERANT, modules, permitted
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.observation import Observation, falsely_allowed

pytest_plugins = ["pytester"]

MAY_ALLOW = {one.id for one in catalogue().values() if one.may_allow}
LETS_IN = re.compile(r"allow: expected False, got True|must not be allowed was allowed")


def test_may_allow_stands_where_a_permitted_mutant_was_seen_to_allow_and_nowhere_else():
    """Else a permitted agent fails for a false allow, or a false allow is a departure."""
    recorded = record.load(Path(__file__).with_name("mutants.json"))
    proves = {check.id: check.requirements for check in plan()}
    kept = [recorded[name] for name, one in permitted().items() if one.kills]
    red = [(check, text or "") for found in kept for check, text in found.items()]

    assert {name for check, text in red if LETS_IN.search(text) for name in proves[check]} == MAY_ALLOW


@pytest.mark.parametrize(
    ("right", "allow", "false"),
    [
        *(({"allow": False}, True, True), ({"allow": False}, False, False), ({"allow": True}, True, False)),
        *(({"status": [401, 503]}, True, True), ({"status": [200, 503]}, True, False)),
        *(({"status": 403}, True, True), ({"status": 101}, True, False), ({"path": "/"}, True, False)),
    ],
)
def test_an_allow_is_false_if_a_refusal_alone_is_right(right, allow, false):
    seen = Observation(200, allow, "", "")

    assert falsely_allowed(Expectation(**right), seen) is false
    assert falsely_allowed(Expectation(**right), Observation(401, False, "", "", others=(seen,))) is false


RUN = """conformance run --stage=processes --lane=wire --lane=gate-spop
    --check=identity.encoding.canonical --check=wire.health.closes"""


@pytest.fixture
def agent(tmp_path):
    twin = "identity.stray-bits,wire.health-stays"
    command = [sys.executable, "-m", "iamroles_conformance.selftest.mutants", twin, "agent", "run"]
    return agent_toml(tmp_path, command, oidc=True, preload=[*modules([TOLERANT])])


@pytest.mark.parametrize(("grade", "code"), [("core", 0), ("strict", 1)])
def test_a_departure_counts_in_strict_alone_and_a_warning_never(agent, tmp_path, grade, code):
    options = ("--agent", agent, "--grade", grade, "--report", tmp_path / "report")
    output = said(RUN, *options, code=code)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    told = report["statement"]
    junit = ET.parse(tmp_path / "report" / "junit.xml").getroot()[0]

    assert junit.get("failures") == str(code)
    assert "DEPARTURE from the grade strict" in output
    assert "WARNING: a SHOULD that failed" in output
    assert told["sentence"].endswith(
        "0 passed, 0 failed, 1 warning, 1 departure. That is no statement of conformance."
    )
    assert told["sentence"] in output
    assert "--check=wire.health.closes" in report["reproduce"]
    assert told["departures"] == ["identity.encoding.canonical[spop]"]
    assert told["warnings"] == ["wire.health.closes"]


def test_under_pytest_what_is_permitted_is_a_warning_and_what_the_stage_says_is_seen_at_once(agent, pytester):
    """Warnings are errors. The first run of containers builds images for minutes, and says so."""
    pytester.makepyfile(
        builds="""
        import click
        from iamroles_scenarios.engine import run
        real = run.open_stage
        def open_stage(*words):
            click.echo("Building the image x from y", err=True)
            return real(*words)
        run.open_stage = open_stage
        """
    )
    done = pytester.runpytest_subprocess(
        *("-p", "builds", "--pyargs", "iamroles_conformance", f"--iamroles-agent={agent}", "-W", "error"),
        *("--iamroles-stage=processes", "--iamroles-lane=wire", "-k", "wire.health.closes"),
    )

    assert done.ret == 0
    done.assert_outcomes(passed=1, warnings=1, deselected=None)
    done.stdout.fnmatch_lines(
        ["*ConformanceWarning: WARNING: a SHOULD that failed*", "warnings (SHOULD): wire.health.closes"]
    )
    done.stderr.fnmatch_lines(["Building the image x from y"])
