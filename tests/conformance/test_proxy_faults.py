"""A proxy's behaviour is never an agent's failure: HAProxy that is broken, lacks a feature, or dies."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from iamroles_conformance.commands.conformance import conformance
from iamroles_conformance.reports import report
from iamroles_conformance.subject import default_agent_toml
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.planning import selected_by
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.engine.run import Options, Run
from iamroles_scenarios.stage import AgentSpec
from iamroles_scenarios.stage.rendering import refusal

_FAULTY = Path(__file__).parent / "agents" / "faulty.py"
_OLD = """#!/bin/sh
[ "$1" = -v ] && echo 'HAProxy version 1.8.30 2020/01/01' && exit 0
echo "[ALERT] parsing [haproxy.cfg:7] : unknown keyword 'filter spoe'" >&2
exit 1
"""


def _run(*options):
    args = ["run", "--stage=processes", "--lane=gate", "--check=gate.no-token", "--check=gate.audience"]
    return CliRunner().invoke(conformance, [*args, *options])


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("#!/bin/sh\nexit 1\n", 3, "does not say which HAProxy it is"),
        (_OLD, 3, "HAProxy 1.8.30 refused its configuration.\n--- haproxy\n[ALERT] parsing"),
        ("no program", 2, "haproxy: cannot start"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_nothing_is_judged(tmp_path, program, code, said):
    binary = tmp_path / "haproxy"
    binary.write_text(program)
    binary.chmod(0o755)
    done = _run(f"--haproxy={binary}")

    assert done.exit_code == code, done.output
    assert said in done.output
    assert "FAIL" not in done.output
    assert "Traceback" not in done.output


def _own(directory, *broken):
    """`agent.toml` of the reference agent with a configuration of its own, which has these lines too.

    With a file `later` in the directory the first configuration is sound.
    """
    (directory / "render.py").write_text(_RENDER.format(lines="".join(f"    {line}\\n" for line in broken)))
    (directory / "agent.toml").write_text(
        f'spec = 1\nname = "own"\n[launch]\ncommand = ["{sys.executable}", "-m", "iamroles_agent", "agent", '
        "\"run\"]\n[features]\noidc = true\nreload = 'SIGHUP'\n"
        f'[haproxy]\nrender = ["{sys.executable}", "render.py", "{{world}}", "{{output}}"]\n'
    )
    return str(directory / "agent.toml")


_RENDER = """\
import pathlib, subprocess, sys
world, output = sys.argv[1:]
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
    run = _run(f"--agent={agent}")
    doctor = CliRunner().invoke(conformance, ["doctor", "--agent", agent])

    for done in (run, doctor):
        assert done.exit_code == 3, done.output
        [told] = [line for line in done.output.splitlines() if "refused what" in line]
        assert re.search(r"render\.py .* wrote: haproxy\.cfg line \d+: unknown keyword 'srever'", told)
        assert "(and 1 more)" in told
        assert "FAIL" not in done.output
        assert "Traceback" not in done.output


def test_a_later_one_is_one_finding_and_fails_its_checks_as_a_world_that_the_agent_refuses(tmp_path):
    agent = _own(tmp_path, "srever a 127.0.0.1:80")
    (tmp_path / "later").touch()
    checks = (
        "--check=live.refused",
        "--check=proxy.threads",
        "--check=policy.union",
        "--check=gate.rotation",
    )
    done = _run(f"--agent={agent}", f"--report={tmp_path / 'out'}", "--lane=proxy", *checks)

    found = report.load(tmp_path / "out" / "report.json")
    failed = [one for one in found["checks"] if one["verdict"] == "fail"]
    assert done.exit_code == 1, done.output
    assert failed
    assert "harness-error" not in found["totals"]
    [finding] = found["findings"]
    assert "unknown keyword 'srever'" in finding
    assert f"{len(failed)} check" in finding
    assert all("haproxy.cfg line" in one["message"] for one in failed)


def test_a_render_command_that_fails_is_exit_3_with_what_it_said(tmp_path):
    agent = _own(tmp_path)
    (tmp_path / "render.py").write_text("raise SystemExit('no template for grants')")
    done = _run(f"--agent={agent}")

    assert done.exit_code == 3, done.output
    assert "Rendering HAProxy's configuration failed with exit code 1" in done.output
    assert "no template for grants" in done.output


def test_a_configuration_that_does_not_take_tls_is_told_what_it_must_do(tmp_path):
    agent = _own(tmp_path)
    render = tmp_path / "render.py"
    one_word = (
        "file = pathlib.Path(output, 'haproxy.cfg')\nfile.write_text(file.read_text().replace('[*]', ''))\n"
    )
    render.write_text(render.read_text() + one_word)
    done = _run(f"--agent={agent}", "--check=fire.certificate", "--grade=strict")

    assert done.exit_code == 1, done.output
    assert "HAProxy's configuration must split IAM_BIND into words" in done.output


@pytest.mark.parametrize(
    ("log", "said"),
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
def test_the_words_of_haproxy_are_found(log, said):
    assert refusal(log) == said


def test_a_proxy_that_dies_in_the_middle_is_one_finding_and_exit_3(tmp_path):
    agent = tmp_path / "agent.toml"
    launch = f'[launch]\ncommand = ["{sys.executable}", "{_FAULTY}", "kills-the-proxy"]'
    agent.write_text(f'spec = 1\nname = "assassin"\n{launch}\n[features]\noidc = true\n')
    done = _run(f"--agent={agent}", f"--report={tmp_path / 'out'}")

    found = report.load(tmp_path / "out" / "report.json")
    assert done.exit_code == 3, done.output
    assert set(found["totals"]) == {"harness-error"}
    assert len(found["findings"]) == 1
    assert "HAProxy ended by signal 9 while it was used, so that says nothing about the agent" in done.output
    assert "could not be judged" in found["findings"][0]
    assert "FAIL" not in done.output


@pytest.mark.parametrize("check", ["live.expiry.ends", "proxy.threads.verdicts", "gate.agent-down"])
def test_whatever_a_check_sees_of_a_dead_proxy_accuses_no_agent(check, monkeypatch):
    """HAProxy of each world is killed as soon as the world stands: what was asked then has no answer."""
    from iamroles_scenarios.stage.world import World

    started = World.start

    def start(world, *args, **options):
        started(world, *args, **options)  # type: ignore[arg-type]
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
