"""A proxy's behaviour is never an agent's failure: HAProxy that is broken, lacks a feature, or dies."""

import json
import re
import sys

import pytest
from invoking import AGENTS, agent_toml, said

from iamroles_conformance.reports import bundle, report
from iamroles_conformance.subject import default_agent_toml
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.planning import selected_by
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.engine.run import Options, Run
from iamroles_scenarios.stage import AgentSpec
from iamroles_scenarios.stage.agent_handle import AgentHandle
from iamroles_scenarios.stage.rendering import refusal

_OLD = """#!/bin/sh
[ "$1" = -v ] && echo 'HAProxy version 1.8.30 2020/01/01' && exit 0
echo "[ALERT] parsing [haproxy.cfg:7] : unknown keyword 'filter spoe'" >&2
exit 1
"""


RUN = "conformance run --stage=processes --lane=gate --check=gate.no-token --check=gate.audience"


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("#!/bin/sh\nexit 1\n", 3, "does not say which HAProxy it is"),
        (_OLD, 3, "HAProxy 1.8.30 refused its configuration.\n--- haproxy\n[ALERT] parsing"),
        ("no program", 2, "haproxy: cannot start"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_nothing_is_judged(tmp_path, program, code, words):
    binary = tmp_path / "haproxy"
    binary.write_text(program)
    binary.chmod(0o755)
    told = said(RUN, f"--haproxy={binary}", code=code)

    assert words in told
    assert "FAIL" not in told
    assert "Traceback" not in told


def _own(directory, *broken):
    """`agent.toml` of the reference agent with a configuration of its own, which has these lines too.

    With a file `later` in the directory the first configuration is sound.
    """
    (directory / "render.py").write_text(_RENDER.format(lines="".join(f"    {line}\\n" for line in broken)))
    own = f'[haproxy]\nrender = ["{sys.executable}", "render.py", "{{world}}", "{{output}}", "{{more}}"]\n'
    command = [sys.executable, "-m", "iamroles_agent", "agent", "run"]
    imports = ["iamroles_agent.commands.serve"]
    return agent_toml(directory, command, more=own, preload=imports, oidc=True, reload="SIGHUP")


_RENDER = """\
import pathlib, subprocess, sys
world, output, _more = sys.argv[1:]
done = [sys.executable, "-m", "iamroles_agent", "policy", "render", "--config", world, "--output", output]
subprocess.run([*done, "--agent", "127.0.0.1:9901"], check=True)
later = pathlib.Path("later")
if later.exists():
    later.unlink()
else:
    with pathlib.Path(output, "haproxy.cfg").open("a") as file:
        file.write("backend mine\\n{lines}")
"""


def test_a_configuration_of_the_vendors_own_that_haproxy_refuses_is_one_sentence_and_exit_3(tmp_path):
    agent = _own(tmp_path, "srever a 127.0.0.1:80", "http-request allow_all")

    for command in (RUN, "conformance doctor"):
        output = said(command, f"--agent={agent}", code=3)
        [told] = [line for line in output.splitlines() if "refused what" in line]
        assert re.search(r"render\.py .* wrote: haproxy\.cfg line \d+: unknown keyword 'srever'", told)
        assert "(and 1 more)" in told
        assert "FAIL" not in output
        assert "Traceback" not in output


def test_a_later_one_is_one_finding_and_fails_its_checks_as_a_world_that_the_agent_refuses(tmp_path):
    agent = _own(tmp_path, "srever a 127.0.0.1:80")
    (tmp_path / "later").touch()
    more = (
        "--lane=proxy --check=live.refused --check=proxy.threads --check=policy.union --check=gate.rotation"
    )
    said(f"{RUN} {more}", f"--agent={agent}", f"--report={tmp_path / 'out'}", code=1)

    found = report.load(tmp_path / "out" / "report.json")
    failed = [one for one in found["checks"] if one["verdict"] == "fail"]
    assert failed
    assert "harness-error" not in found["totals"]
    [finding] = found["findings"]
    assert "unknown keyword 'srever'" in finding
    assert f"{len(failed)} check" in finding
    assert all("haproxy.cfg line" in one["message"] for one in failed)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit", "Rendering HAProxy's configuration failed with exit code 1"),
        ("print", "(haproxy.render) wrote no haproxy.cfg"),
    ],
)
def test_a_render_command_that_fails_is_exit_3_with_what_it_said(tmp_path, program, words):
    agent = _own(tmp_path)
    (tmp_path / "render.py").write_text(f"{program}('no template for grants')")
    told = said(RUN, f"--agent={agent}", code=3)

    assert words in told
    assert "no template for grants" in told


_ONE_WORD = """\
file = pathlib.Path(output, 'haproxy.cfg')
file.write_text(file.read_text().replace('[*]', ''))
"""


def test_a_configuration_that_does_not_take_tls_is_told_what_it_must_do(tmp_path):
    agent = _own(tmp_path)
    render = tmp_path / "render.py"
    render.write_text(render.read_text() + _ONE_WORD)
    told = said(f"{RUN} --check=fire.certificate --grade=strict", f"--agent={agent}", code=6)

    assert "HAProxy's configuration must split IAM_BIND into words" in told


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            "[ALERT]    (7) : config : parsing [/tmp/x/haproxy.cfg:6] : 'bind' : bad",
            "haproxy.cfg line 6: 'bind' : bad",
        ),
        ("[ALERT] 1/2 (7) : parsing [/x/iam-routes.cfg:9]: unknown", "iam-routes.cfg line 9: unknown"),
        (
            "[ALERT]    (7) : config : backend 'b', server 's' [/x/haproxy.cfg:22] : no such file",
            "haproxy.cfg line 22: backend 'b', server 's' : no such file",
        ),
        ("[NOTICE] (7) : x\n[ALERT]    (7) : config : no proxy was found", "no proxy was found"),
        ("", "it says nothing"),
    ],
)
def test_the_words_of_haproxy_are_found(log, words):
    assert refusal(log) == words


def test_a_proxy_that_dies_in_the_middle_is_one_finding_and_exit_3(tmp_path):
    agent = agent_toml(tmp_path, [sys.executable, AGENTS / "faulty.py", "kills-the-proxy"], oidc=True)
    told = said(RUN, f"--agent={agent}", f"--report={tmp_path / 'out'}", code=3)

    found = report.load(tmp_path / "out" / "report.json")
    assert (set(found["totals"]), len(found["findings"])) == ({"harness-error"}, 1)
    assert "HAProxy ended by signal 9 while it was used, so that says nothing about the agent" in told
    assert "could not be judged" in found["findings"][0]
    assert "FAIL" not in told


def test_a_replay_that_its_own_stage_spoils_accuses_no_report(tmp_path):
    agent = _own(tmp_path)
    with (tmp_path / "render.py").open("a") as file:
        file.write(_ONE_WORD)
    only = "conformance run --stage=processes --lane=gate --check=gate.no-token --check=fire.certificate"
    said(only, f"--agent={agent}", f"--report={tmp_path}", code=6)
    found = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "killer").mkdir()
    kills = [sys.executable, AGENTS / "faulty.py", "kills-the-proxy"]
    killer = agent_toml(tmp_path / "killer", kills, oidc=True)

    cases = ((agent, "fire", "untestable", 6), (killer, "gate", "harness-error", 3))
    for judged, family, verdict, code in cases:
        checks = [one | {"verdict": "pass"} for one in found["checks"] if one["name"].startswith(family)]
        passed = {one["name"]: CheckResult(one["check"], (), Verdict.PASS) for one in checks}
        document = report.derived(report.parsed(json.dumps(found | {"checks": checks}), ""))
        bundle.write(tmp_path / "e", document, passed)  # as on a better stage

        verify = ("conformance verify-report --stage=processes --haproxy=2.8", tmp_path / "e")
        told = said(*verify, f"--agent={judged}", code=code)
        assert re.search(rf"NOT JUDGED .*: the report says pass, here it was {verdict}", told)
        assert re.search(r"NOTE +HAProxy here is 2\.8\.\d+, the report's [\d.]+", told)
        assert re.search(r" 0 differ, \d+ could not be judged here", told)
        assert "DIFFERS" not in told


def test_a_fork_server_that_dies_accuses_no_agent(monkeypatch):
    ends = AgentHandle.kill
    monkeypatch.setattr(AgentHandle, "kill", lambda one: (one._place._popen.__self__.close(), ends(one)))
    planned = plan(select=selected_by(["gate.agent-down"]))
    with Run(AgentSpec.load(default_agent_toml()), planned, Options(stage="processes")) as run:
        results = list(run.results())

    assert {result.verdict for result in results} <= {Verdict.HARNESS_ERROR, Verdict.PASS}
    assert any("the fork server ended" in result.message for result in results)


@pytest.mark.parametrize("check", ["live.expiry.ends", "proxy.threads.verdicts", "gate.agent-down"])
def test_whatever_a_check_sees_of_a_dead_proxy_accuses_no_agent(check, monkeypatch):
    """HAProxy of each world is killed as soon as the world stands: what was asked then has no answer."""
    from iamroles_scenarios.stage.world import World

    started = World.start

    def start(world, *args, **options):
        started(world, *args, **options)
        if armed and world._haproxy is not None:
            world.haproxy._runs[-1].part.kill()

    armed: list[bool] = []
    monkeypatch.setattr(World, "start", start)
    planned = [one for one in plan(select=selected_by([check])) if "spop" not in one.name]
    with Run(AgentSpec.load(default_agent_toml()), planned, Options(stage="processes")) as run:
        armed.append(True)
        results = list(run.results())

    assert results
    assert {result.verdict for result in results} == {Verdict.HARNESS_ERROR}
    assert all("HAProxy ended by signal 9" in result.cause for result in results)
