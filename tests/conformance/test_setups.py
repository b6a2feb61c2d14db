"""Faults of a set-up are reported as such: one clear sentence, and the documented exit code."""

import itertools
import re
import signal
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from invoking import AGENTS, agent_toml, finished, said
from listening import nowhere
from marked import Marked

from iamroles_conformance.commands import doctor
from iamroles_conformance.reports import report
from iamroles_conformance.selftest.registry import permitted
from iamroles_conformance.selftest.runner import Selftest
from iamroles_conformance.subject import default_agent_toml
from iamroles_scenarios.base import lateness
from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of
from iamroles_scenarios.stage import AgentSpec, open_stage
from iamroles_scenarios.stage.images import Images

RUN = "conformance run --stage=processes"
HELLO = f"{RUN} --lane=wire --check=wire.hello"


def _faulty(directory, fault, *state):
    """`agent.toml` of an agent with a fault; with a state it is sound in its first world."""
    every = {"oidc": True, "sts": True, "live": True, "limits": True, "reload": "SIGHUP"}
    return agent_toml(directory, [sys.executable, AGENTS / "faulty.py", fault, *state], **every)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        *(("refuses", "unknown key"), ("nobody-listens", "cannot be connected to")),
        *(("no-address", "address"), ("no-line", 'lacks "address"')),
    ],
)
def test_an_agent_that_cannot_be_judged_is_exit_3_with_one_sentence(tmp_path, fault, words):
    (tmp_path / "report.json").write_text("of an earlier run")

    told = said(HELLO, "--agent", _faulty(tmp_path, fault), f"--report={tmp_path}", code=3)

    assert words in told
    assert words in ET.parse(tmp_path / "junit.xml").find("testcase/error").text
    assert not (tmp_path / "report.json").exists()
    assert "It must" in told
    assert "FAIL" not in told
    assert "Traceback" not in told


def test_an_agent_that_dies_midway_is_told_with_its_exit_code_and_log(tmp_path):
    told = said(HELLO, "--agent", _faulty(tmp_path, "dies"), f"--report={tmp_path / 'out'}", code=1)

    assert "the agent ended with exit code 9" in told
    found = report.load(tmp_path / "out" / "report.json")
    failed = [one for one in found["checks"] if one["verdict"] == "fail"]
    assert failed
    assert len(found["findings"]) == 1
    assert all("exit code 9" in one["message"] for one in failed)
    assert "out of luck" in failed[0]["evidence"]["logs"]["agent"]


LATER = ("identity.caller.host", "policy.oracle.order", "live.refused", "proxy.health.silent")
"""A check of each lane, each with a world of its own."""


def test_an_agent_that_dies_is_one_finding_and_one_verdict_in_every_lane(tmp_path):
    found = _judged(_faulty(tmp_path, "dies-of-a-question"), tmp_path, "gate.audience", *LATER)

    assert {check["lane"] for check in found["checks"]} == {"gate", "gate-spop", "proxy"}
    assert found["totals"] == {"fail": len(found["checks"])}
    [finding] = found["findings"]
    assert f"exit code 9 while it was judged: {len(found['checks'])} checks" in finding
    assert "out of luck" in finding


@pytest.mark.parametrize(
    ("fault", "words", "lanes"),
    [
        ("refuses", "ended with exit code 1 before it was ready", LATER),
        ("nobody-listens", "cannot be connected to", LATER),
        ("no-address", "cannot be connected to", LATER[:1]),
        ("no-line", 'lacks "address"', LATER[:1]),
    ],
)
def test_a_later_world_that_cannot_be_used_fails_its_checks(tmp_path, monkeypatch, fault, words, lanes):
    monkeypatch.setattr(lateness, "delay", lambda *_: lateness.Delay(0.0, 1.0))  # no time decides here
    agent = _faulty(tmp_path, fault, tmp_path / "state")

    found = _judged(agent, tmp_path, "identity.header.ignored", *lanes)

    later = [check for check in found["checks"] if not check["name"].startswith("identity.header")]
    assert {check["verdict"] for check in later} == {"fail"}
    touched = sum(words in check["message"] for check in found["checks"])  # the first too, if played again
    assert any(words in finding and f"{touched} checks" in finding for finding in found["findings"])
    assert all('"issuers"' in check["evidence"]["sent"] for check in later), "the world file is not shown"


@pytest.mark.parametrize(
    ("kind", "applies", "does_not"),
    [
        ("sts", {"wire", "sts"}, {"gate", "oidc", "policy", "live"}),
        ("oidc", {"wire", "gate", "oidc", "policy"}, {"sts", "live"}),
    ],
)
def test_an_agent_of_one_kind_of_credential_is_judged_by_what_it_declares(tmp_path, kind, applies, does_not):
    command = [sys.executable, AGENTS / "only.py", kind, "agent", "run"]
    agent = agent_toml(tmp_path, command, live=True, **{kind: True})
    chosen = ["wire.pipeline", "wire.message", "gate.audience", "identity.sts-form", "policy.union"]
    chosen += ["live.revoke.sts"]

    verdicts: dict[str, set[str]] = {}
    for check in _judged(agent, tmp_path, *chosen, code=0)["checks"]:
        for name in check["classes"]:
            verdicts.setdefault(name, set()).add(check["verdict"])
    assert verdicts == {key: {"pass"} for key in applies} | {key: {"not-applicable"} for key in does_not}


def _judged(agent, directory, *checks, code=1):
    chosen = [f"--check={check}" for check in checks]
    said(RUN, "--agent", agent, f"--report={directory / 'out'}", *chosen, code=code)
    return report.load(directory / "out" / "report.json")


_SOUND = '[launch]\naddress = "127.0.0.1:1"\n[features]\noidc = true\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spec = 1\nname = x", "agent.toml: is not TOML: Invalid value (at line 2, column 8)."),
        (
            f'spec = 1\n{_SOUND}[known_failures]\n"wire.hello.itmes" = "why"',
            "known_failures.wire.hello.itmes: no such check. Did you mean wire.hello.items?",
        ),
    ],
)
def test_a_mistake_in_the_file_is_exit_2_with_the_place_in_it(tmp_path, text, words):
    (tmp_path / "agent.toml").write_text(text)
    told = said(HELLO, "--agent", tmp_path / "agent.toml", code=2)

    assert words in told
    assert len(told.strip().splitlines()) == 1, "more than one sentence"


def test_a_misspelt_selection_is_exit_2_and_names_the_nearest(tmp_path):
    """Beside a name that is right it would narrow the run unseen."""
    told = said(HELLO, "--agent", default_agent_toml(), "--check=wire.hello.itmes", code=2)
    assert "--check wire.hello.itmes" in told
    assert "Did you mean wire.hello.items?" in told

    told = said(HELLO, "--agent", default_agent_toml(), "--check=JWKS-STORM-003", code=2)
    assert "JWKS-STORM-003: no check plays this requirement" in told


def test_a_failure_tells_every_failing_step_and_the_token_without_its_signature(tmp_path):
    agent = agent_toml(tmp_path, [sys.executable, AGENTS / "blunt.py", "allow"], oidc=True)
    options = ("--agent", agent, "--check=gate.role-route.segment[spop]", f"--report={tmp_path / 'out'}")
    output = said(RUN, *options, code=1)

    [check] = report.load(tmp_path / "out" / "report.json")["checks"]
    told = re.findall(r"^  (step \d+.*status: expected 403, got 200.*)$", output, re.MULTILINE)
    assert len(told) == len(set(told)) == 5, output
    assert all(line in check["message"] for line in told)
    assert 'token claims: {"iss":' in output
    assert '"aud":' in output
    assert not re.search(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", output), "a whole token was printed"


def test_a_command_that_is_not_there_is_exit_2(tmp_path):
    agent = agent_toml(tmp_path, ["./no-such-agent"], oidc=True)

    assert "no-such-agent" in said(HELLO, "--agent", agent, code=2)


def test_a_dead_address_is_exit_3_and_the_doctor_says_so(tmp_path):
    address = nowhere()
    (tmp_path / "agent.toml").write_text(f'spec = 1\n[launch]\naddress = "{address}"\n')

    for named in ("--agent-address", address), ("--agent", tmp_path / "agent.toml"):
        run = said("conformance run", *named, code=3)
        assert "cannot be connected to" in run
        assert "HARNESS" not in run
    assert address in said("conformance doctor --agent-address", address, code=3)


def test_the_doctor_starts_a_program_that_only_its_image_has(tmp_path, engine):
    (tmp_path / "serve").write_text("#!/usr/bin/env python3\n" + (AGENTS / "puppet.py").read_text())
    (tmp_path / "serve").chmod(0o755)
    (tmp_path / "Dockerfile").write_text(f"FROM {Images(engine).python()}\nCOPY serve /opt/agent/serve\n")
    agent = Path(agent_toml(tmp_path, ["/opt/agent/serve"]))
    agent.write_text(agent.read_text().replace("[features]", 'build = "."\n[features]'))
    try:
        assert "starts, answers HELLO" in said("conformance doctor --agent", agent)
    finally:
        engine.images.remove(Images(engine).directory(tmp_path), force=True)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        *(("nobody-listens", "says that it serves"), ("no-address", "says that it serves 'here', but")),
        *(("no-line", 'lacks "address"'), ("refuses", "unknown key")),
        ("dies-of-a-question", "says that it serves"),
    ],
)
def test_the_doctor_finds_what_a_run_would(tmp_path, fault, words):
    told = said("conformance doctor --agent", _faulty(tmp_path, fault), code=3)

    assert words in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("built", "words"),
    [
        ("Built with Lua version : Lua 5.4.7\n\t[SPOE] spoe", "3.5.0 at"),
        ("Feature list : -LUA +OPENSSL\n\t[ SPOE] spoe", "built without Lua Backends with streams"),
        ("Built with Lua version : Lua 5.4.7\n\t[COMP] compression", "built without SPOE It cannot ask"),
        ("", "built without SPOE and Lua It cannot ask an agent: build it with USE_SPOE=1"),
    ],
)
def test_the_doctor_says_what_haproxy_was_built_without(tmp_path, monkeypatch, built, words):
    program = tmp_path / "haproxy"
    program.write_text(f"#!/bin/sh\necho 'HAProxy version 3.5.0 2026/11/01'\ncat <<'E'\n{built}\nE\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    found = next(item for item in doctor._haproxy() if item.what == "HAProxy (path)")

    assert words in f"{found.said} {found.remedy}"
    assert found.good is ("SPOE" not in found.said)


def test_the_doctor_loads_nothing_that_it_does_not_use():
    text = "import sys; from iamroles_conformance.commands.conformance import conformance as c\n"
    text += "try: c(['doctor'])\nfinally: print(sorted({'boto3', 'moto', 'hypothesis'} & sys.modules.keys()))"

    done = finished(sys.executable, "-c", text)

    assert done.returncode == 0, done.stderr
    assert "starts, answers HELLO and one question" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_init_writes_what_the_suite_reads_and_overwrites_nothing(tmp_path):
    for code in (0, 2):
        said("conformance init", tmp_path, "--command", "./mine serve", "--name", 'my "agent"', code=code)

    spec = AgentSpec.load(tmp_path / "agent.toml")
    assert (spec.name, list(spec.command)) == ('my "agent"', ["./mine", "serve"])
    assert "conformance run" in (tmp_path / ".github/workflows/conformance.yml").read_text()


def test_a_running_agent_that_is_sound_is_exit_0_and_one_that_refuses_what_it_should_allow_is_not(tmp_path):
    (tmp_path / "check.json").write_text('{"authorization": null, "method": "GET", "host": "a", "path": "/"}')
    wrong = f"conformance run --check=wire.hello.engine-id --allowed={tmp_path}/check.json --agent-address"
    with open_stage("processes") as stage:
        stage.idp.issuer("corp")
        policy = policy_of(WorldSpec(policy="orders"))
        sound = AgentSpec.load(default_agent_toml())
        spec = Selftest(stage, sound)._mutated([permitted()["tolerant.null-first"]])
        with stage.world(spec, policy, haproxy=False) as world:
            words = "conformance run --check=wire.life.sigterm --check=wire.hello --check=wire.type.all"
            words += " --agent-address"
            told = said(words, world.agent.spop_address)
            assert "is the token of --allowed still good?" in said(wrong, world.agent.spop_address, code=1)

    assert "not-applicable wire.life.sigterm" in told
    assert "conforms to" not in told


STUCK = """
import asyncio
from iamroles_agent.base.reasons import Reason
from iamroles_agent.main import main
from iamroles_agent.serving.gate import Gate
real = Gate._decide
async def stuck(self, *asked):
    decision, last = await real(self, *asked)
    if decision.reason is Reason.TOKEN_EXPIRED:
        await asyncio.Event().wait()
    return decision, last
Gate._decide = stuck
main(["agent", "run"])
"""


def test_a_run_that_is_interrupted_reports_what_was_played_and_leaves_nothing(tmp_path):
    """Nothing that is asked for an expired token ends before the signal does it."""
    (tmp_path / "stuck.py").write_text(STUCK)
    agent = agent_toml(tmp_path, [sys.executable, tmp_path / "stuck.py"], oidc=True, reload="SIGHUP")
    chosen = ["--lane=gate-spop", "--lane=gate", "--time-scale=60", f"--report={tmp_path}"]
    chosen += [f"--check={name}" for name in ("gate.audience", "gate.expired", "identity.times")]
    with Marked("conformance", "run", "--stage=processes", f"--agent={agent}", *chosen) as run:
        passes = (line for line in run.stdout if line.startswith("pass "))
        seen = list(itertools.islice(passes, 3))

        run.send_signal(signal.SIGTERM)
        rest = run.stdout.read()

    assert run.returncode == 130
    assert "interrupted: " in rest
    found = report.load(tmp_path / "report.json")
    passed = {check["name"] for check in found["checks"] if check["verdict"] == "pass"}
    assert {line.split()[1] for line in seen} <= passed
    assert set(found["not_played"]) >= {"gate.expired.refused[spop]", "gate.expired.refused[haproxy]"}
    assert "harness-error" not in found["totals"], "an interrupted check is reported as played"
    assert not run.family()
