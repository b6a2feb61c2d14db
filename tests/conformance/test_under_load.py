"""The judge under load: traffic flows beside the checks, and a verdict that only it sees fails the run."""

import re

import pytest
from invoking import agent_toml, said

RUN = "conformance run --stage=processes --lane=gate -q --under-load=40 --check=gate.rotation"


def test_traffic_flows_beside_the_checks_and_is_counted():
    assert int(re.search(r"under load: (\d+) answers, \d+ a second", said(RUN))[1]) > 20


def test_what_no_check_was_asked_for_is_seen_by_the_traffic(tmp_path):
    mutant = ["python", "-m", "iamroles_conformance.selftest.mutants", "gate.accepts-expired"]
    agent = agent_toml(tmp_path, [*mutant, "agent", "run"], oidc=True, reload="SIGHUP")
    told = said(RUN, "--agent", agent, code=1)

    assert "6 pass" in told
    assert re.search(r"flow (old|eve): false allow: status: expected 401, got 200", told)


@pytest.mark.parametrize("rate", ["-1", "fast"])
def test_a_rate_is_a_number(rate):
    assert said("conformance run --under-load", rate, code=2)
