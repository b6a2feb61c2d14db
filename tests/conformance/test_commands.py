"""pytest and the command line as people use them: what is printed, and the exit codes."""

import sys
from pathlib import Path

import pytest
from invoking import AGENTS, agent_toml, finished, said

from iamroles_conformance.reports import report

_ROOT = Path(__file__).parents[2]
_KNOWN = '[known_failures]\n"gate.two-credentials.reason" = "ticket 7"\n'
_BY_SPOP = "--iamroles-lane=gate-spop"


def _pytest(*arguments, cwd=_ROOT):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--iamroles-stage=processes"]
    return finished(*command, *arguments, cwd=cwd, timeout=120)


@pytest.fixture
def agent(tmp_path):
    """An agent that refuses everybody."""
    return agent_toml(tmp_path, ["python", AGENTS / "blunt.py", "deny"], name="blunt", oidc=True, more=_KNOWN)


def test_a_report_that_cannot_be_written_is_told_before_a_check_is_played(tmp_path):
    (tmp_path / "file").touch()
    report_to = f"--iamroles-report={tmp_path / 'file'}"
    done = _pytest("--pyargs", "iamroles_conformance", "-k", "wire.hello", report_to)

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no report can be written there: File exists" in done.stderr


def test_the_suite_of_a_checkout_that_is_not_the_installed_one_is_refused(tmp_path):
    (tmp_path / "iamroles_conformance").mkdir()
    (tmp_path / "iamroles_conformance/test_conformance.py").touch()

    assert "Install this checkout by `pip install -e`" in _pytest(cwd=tmp_path).stdout


def test_the_plugin_is_cheap_where_it_is_not_used():
    program = (
        "import sys, iamroles_conformance.plugin;"
        "heavy = ('iamroles_scenarios', 'docker', 'boto', 'jinja2');"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = finished(sys.executable, "-c", program, check=True)

    assert done.stdout.strip() == "[]"


def test_pytest_has_an_item_for_each_check_and_says_why_one_failed(agent):
    done = _pytest("conformance", f"--iamroles-agent={agent}", _BY_SPOP, "-k", "no-token or two-cred")

    assert done.returncode == 1
    for told in (
        *("iamroles: judging blunt 1", "iamroles: The stage is processes: asked for."),
        *("FAIL: gate.two-credentials.refused[spop]", "TOKEN-COUNT-001 (MUST, ", "RFC 6750 section 2"),
        *("XFAIL", "known: ticket 7"),
        f"{_ROOT}/conformance/iamroles_conformance/test_conformance.py::gate.two-credentials.refused[spop]",
    ):
        assert told in done.stdout
    assert "Traceback" not in done.stdout


def test_pytest_runs_the_installed_suite_by_its_package_name(agent, tmp_path):
    options = [f"--iamroles-agent={agent}", f"--iamroles-report={tmp_path / 'report'}"]
    (tmp_path / "test_conformance.py").write_text("import pytest\ndef test_x(): pytest.skip('a stranger')\n")
    chosen = ("-k", "test_x or identity.sts or gate.no-token.refused and spop")
    done = _pytest("--pyargs", "iamroles_conformance", tmp_path, *options, *chosen, cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert " checks not applicable: the agent declares no sts\n" in done.stdout
    assert "a stranger" not in done.stdout
    assert (tmp_path / "report" / "report.html").is_file()


def test_a_thread_that_makes_loggers_disturbs_no_check(agent, tmp_path):
    (tmp_path / "makes_loggers.py").write_text(
        "import logging, sys, threading\n"
        "sys.setswitchinterval(1e-5)\n"
        "named = logging.Logger.manager.loggerDict\n"
        "[logging.getLogger(f'standing{at}') for at in range(200_000)]\n"
        "over = threading.Event()\n"
        "def make():\n"
        "    while not over.is_set(): logging.getLogger('passing') and named.pop('passing')\n"
        "maker = threading.Thread(target=make)\n"
        "def pytest_runtestloop(): maker.start()\n"
        "def pytest_unconfigure(): over.set() or maker.join()\n"
    )
    options = ("-p", "makes_loggers", f"--iamroles-agent={agent}", "-k", "gate.no-token and spop")
    done = _pytest("--pyargs", "iamroles_conformance", *options, cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr


def test_under_xdist_one_worker_has_all_checks_and_writes_the_report(agent, tmp_path):
    (tmp_path / "late_host.py").write_text(
        "from dataclasses import replace\n"
        "from iamroles_scenarios.declarations.results import Verdict\n"
        "from iamroles_scenarios.engine.run import Run\n"
        "played, late = Run.result, {Verdict.FAIL: Verdict.UNTESTABLE}\n"
        "def result(self, check):\n"
        "    found = played(self, check)\n"
        "    return replace(found, verdict=late.get(found.verdict, found.verdict))\n"
        "Run.result = result\n"
    )
    done = _pytest(
        *("-v", "-n", "2", "--dist", "loadgroup", "--pyargs", "iamroles_conformance", "-p", "late_host"),
        *(f"--iamroles-agent={agent}", f"--iamroles-report={tmp_path / 'report'}", _BY_SPOP),
        *("-k", "gate.no-token.refused or gate.no-token.challenge or gate.expired or gate.audience.refused"),
        cwd=tmp_path,
    )

    played = [line[:5] for line in done.stdout.splitlines() if line.startswith("[gw") and "%]" in line]
    assert len(played) > 3, done.stdout
    assert len(set(played)) == 1, done.stdout
    assert done.returncode == 6, done.stdout
    assert len(report.load(tmp_path / "report" / "report.json")["checks"]) == len(played)


def test_a_stage_that_cannot_work_ends_pytest_with_3(tmp_path):
    agent = agent_toml(tmp_path, ["python", AGENTS / "gone.py"], oidc=True)
    (tmp_path / "report.json").write_text("of an earlier run")
    report_to = f"--iamroles-report={tmp_path}"
    done = _pytest("conformance", f"--iamroles-agent={agent}", report_to, _BY_SPOP, "-k", "no-token")

    assert done.returncode == 3
    assert "the stage cannot be used" in done.stdout + done.stderr
    assert "gone.py" in done.stdout + done.stderr
    assert not (tmp_path / "report.json").exists()
    assert "Nothing was judged" in (tmp_path / "summary.md").read_text()


def test_pytest_refuses_a_lane_that_does_not_exist():
    done = _pytest("conformance", "--iamroles-lane=gait")

    assert done.returncode != 0
    assert "Unknown lane gait: say wire, gate, gate-spop" in done.stdout


RUN = "conformance run --stage=processes --lane=gate-spop"


def test_run_exits_0_when_all_passed(agent, tmp_path):
    directory = tmp_path / "report"
    told = said(RUN, f"--agent={agent}", "--check=gate.no-token", f"--report={directory}")

    assert "pass           gate.no-token.refused[spop]" in told
    assert (directory / "report.json").is_file()


def test_run_exits_1_when_one_did_not(agent):
    told = said(RUN, f"--agent={agent}", "--check=gate.expired.reason", code=1)

    assert "FAIL: gate.expired.reason[spop]" in told
    assert f"iamroles conformance run --agent={agent} --stage=processes --check" in told


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("run --check=nonsense", 2, "of this name"),
        ("run --agent=/nowhere/agent.toml --check=gate.expired", 2, "/nowhere/agent.toml: cannot be read"),
        ("run --agent-address=127.0.0.1:1 --lane=gate", 2, "already runs at 127.0.0.1:1"),
        ("run --agent-address=127.0.0.1:1 --allowed=/nowhere", 2, "cannot be read as JSON"),
        ("run --stage=processes --require=containers --check=gate.expired", 3, "drop one of the two"),
        ("explain TOKEN-TIME-002", 0, "gate.expires-midway.after[haproxy]"),
        ("explain gate.paths", 0, "PATH-AMBIGUOUS-001"),
        ("explain nonsense", 2, "nothing is called 'nonsense'"),
        ("list --lane=gate", 0, "gate.expired.refused[haproxy]"),
        ("list", 0, "not produced by any stage: a clock that steps, which takes `faketime` in the agent"),
        ("list --requirements", 0, "ROTATE-KEY-003"),
        ("--help", 0, "selftest"),
    ],
)
def test_the_command_says_what_it_did_not_do(words, code, told):
    assert told in said(f"conformance {words}", code=code)
