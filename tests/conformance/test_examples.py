"""Worked examples are started and judged for real."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from invoking import said

from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import AgentFileError
from iamroles_scenarios.declarations.planning import selected_by
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.stage import AgentSpec, haproxies

CONFORMANCE = Path(__file__).parents[2] / "conformance"


def _played(name, *patterns):
    if "node" in (CONFORMANCE / "examples" / name / "agent.toml").read_text() and not shutil.which("node"):
        pytest.skip("needs node (Debian: apt install nodejs)")
    subject = Subject(agent=str(CONFORMANCE / "examples" / name / "agent.toml"), stage="processes")
    planned = list(filter(selected_by(patterns), subject.planned()))
    with subject.run(planned) as run:
        return {check.name: run.result(check) for check in planned}


def _haproxy():
    return tuple(int(part) for part in haproxies.version(haproxies.find()).split(".")[:2])


def _failed(results):
    return {name: one.message for name, one in results.items() if one.verdict is not Verdict.PASS}


def test_the_agent_in_node_answers_on_the_wire_and_through_haproxy():
    checks = ("wire.ack.exactly-one", "gate.allow", "gate.expired", "identity.sts.answer-size")
    checks += ("identity.derived.signatures",)  # it took PSS signatures without their zero octet
    results = _played("node", *checks)

    assert _failed(results) == {}
    assert len(results) > 10


def test_an_http_service_is_judged_through_haproxy_alone():
    results = _played("auth-request", "gate.allow", "gate.agent-down", "wire.ack.exactly-one")

    spop = [one for name, one in results.items() if not name.endswith("[haproxy]")]
    assert {one.verdict for one in spop} == {Verdict.NOT_APPLICABLE}
    assert _failed({name: one for name, one in results.items() if name.endswith("[haproxy]")}) == {}


@pytest.mark.skipif(_haproxy() < (3, 0), reason="json_query of lists needs HAProxy 3.0")
def test_haproxy_alone_decides_and_has_no_agent_that_could_be_killed():
    faults = ("fault.host.agent", "fault.host.memory")
    results = _played("jwt-verify", "gate.allow", "gate.foreign-key", "gate.agent-down", *faults)

    through = {name: one for name, one in results.items() if name.endswith("[haproxy]") or name in faults}
    killed = {name: one for name, one in through.items() if name.startswith(("gate.agent-down", *faults))}
    assert {one.verdict for one in killed.values()} == {Verdict.NOT_APPLICABLE}
    assert {one.message for one in killed.values()} == {"the agent declares no process of its own"}
    assert _failed({name: one for name, one in through.items() if name not in killed}) == {}


@pytest.mark.skipif(_haproxy() < (3, 0), reason="json_query of lists needs HAProxy 3.0")
def test_haproxy_reads_the_rules_of_a_grant_and_a_deny_at_the_root(tmp_path):
    rule = {"roles": ["all"], "path": "/", "methods": ["PUT"]}
    policy = {
        "version": 1,
        "agent": {"listen": "127.0.0.1:1"},
        "issuers": [
            {"name": "one", "issuer": "https://[::1]:1", "audiences": ["a"], "algorithms": ["ES256"]}
        ],
        "roles": [{"name": "all", "arn": "arn:aws:iam::111111111111:role/all"}],
        "backends": [{"name": "all", "servers": ["127.0.0.1:1"]}],
        "grants": [rule | {"id": "yes", "backend": "all"}],
        "denies": [rule | {"id": "no"}],
    }
    (tmp_path / "world.json").write_text(json.dumps(policy))
    program = CONFORMANCE / "examples" / "jwt-verify" / "render.py"

    subprocess.run([sys.executable, program, "world.json", "."], cwd=tmp_path, check=True)

    files = [word for name in ("haproxy.cfg", "iam-routes.cfg") for word in ("-f", name)]
    subprocess.run([haproxies.find(), "-c", *files], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("example", "needs", "without"),
    [
        ("jwt-verify", (3, 0), "HAProxy 3.0 is needed"),
        ("jwt-verify-cert", (3, 3), r"haproxy\.cfg line \d+: .*unknown converter 'jwt_verify_cert'"),
    ],
)
def test_an_example_takes_a_haproxy_that_has_its_converters_and_an_older_one_says_what_it_lacks(
    example, needs, without
):
    recent = _haproxy() >= needs
    words = "conformance run --stage=processes --lane=gate --check=gate.foreign-key --agent"
    told = said(words, CONFORMANCE / "examples" / example / "agent.toml", code=0 if recent else 3)

    assert recent or re.search(without, told)


@pytest.mark.parametrize("name", ["spoe-forge", "haproxyspoa"])
def test_an_adapter_is_described_as_the_contract_says(name):
    spec = AgentSpec.load(CONFORMANCE / "examples" / name / "agent.toml")

    assert spec.runs
    assert spec.spop


def test_without_spop_somebody_must_write_haproxys_configuration(tmp_path):
    agent = tmp_path / "agent.toml"
    agent.write_text('spec = 1\nname = "x"\n[features]\nspop = false\n')

    with pytest.raises(AgentFileError, match=r"haproxy\.render must name the command"):
        AgentSpec.load(agent)


@pytest.mark.parametrize(("words", "what"), [("fuzz", "the fuzzer"), ("oracle", "the oracle")])
def test_a_command_that_asks_over_spop_refuses_an_agent_without_it(tmp_path, words, what):
    agent = tmp_path / "agent.toml"
    agent.write_text('spec = 1\n[features]\nspop = false\noidc = true\n[haproxy]\nrender = ["x"]\n')

    told = said(f"conformance {words} --agent", agent, code=2)

    assert f"{agent}: features.spop: is false, but {what} asks over SPOP alone" in told
