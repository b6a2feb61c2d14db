"""The judge under load: traffic flows beside the checks, and a verdict that only it sees fails the run."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from invoking import agent_toml, said

from iamroles_conformance.commands.run import _code
from iamroles_conformance.errors import ExitCode
from iamroles_scenarios.declarations.results import CheckResult, Verdict

LATE = CheckResult("a.b", ("A-001",), Verdict.UNTESTABLE)
ENDED = replace(LATE, verdict=Verdict.HARNESS_ERROR, cause="it ended")
DEPARTS = replace(LATE, verdict=Verdict.DEPARTURE)
RUN = "conformance run --stage=processes --lane=gate -q --under-load=40 --check=gate.rotation"


def test_traffic_flows_beside_the_checks_and_is_counted():
    assert int(re.search(r"under load: (\d+) answers, \d+ a second", said(RUN))[1]) > 20


def test_what_no_check_was_asked_for_is_seen_by_the_traffic(tmp_path):
    mutant = ["python", "-m", "iamroles_conformance.selftest.mutants", "gate.accepts-expired"]
    agent = agent_toml(tmp_path, [*mutant, "agent", "run"], oidc=True, reload="SIGHUP")
    told = said(RUN, "--agent", agent, f"--report={tmp_path}", code=1)

    assert "6 pass" in told
    *_, load = suite = ET.parse(tmp_path / "junit.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("tests"), "false allow" in load[0].text) == ("1", "7", True)
    assert re.search(r"flow (old|eve): false allow: status: expected 401, got 200", told)


@pytest.mark.parametrize(
    ("results", "grade", "wrong", "code"),
    [
        *(([LATE], "core", True, ExitCode.FAILED), ([LATE], "core", False, ExitCode.FAILED)),
        *(([ENDED], "core", True, ExitCode.FAILED), ([ENDED], "core", False, ExitCode.STAGE_FAULT)),
        ([ENDED, DEPARTS], "core", False, ExitCode.STAGE_FAULT),
        ([ENDED, DEPARTS], "strict", False, ExitCode.FAILED),
    ],
)
def test_a_proxy_that_ended_excuses_no_wrong_answer_and_no_failure_of_the_grade(results, grade, wrong, code):
    assert _code({"load_sound": False, "passed": False}, results, grade, wrong=wrong) == code


@pytest.mark.parametrize("rate", ["-1", "fast"])
def test_a_rate_is_a_number(rate):
    assert said("conformance run --under-load", rate, code=2)
