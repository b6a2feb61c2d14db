"""The fork server: an agent that it forks behaves like an agent that the stage started."""

import json
import os
import signal
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from iamroles_conformance.selftest.registry import modules
from iamroles_scenarios.base.errors import AgentFileError
from iamroles_scenarios.base.family import children_of
from iamroles_scenarios.stage.fork_server import ForkServer, environ
from iamroles_scenarios.stage.guard import Guard
from iamroles_scenarios.stage.process import Child
from iamroles_scenarios.stage.processes import Processes
from iamroles_scenarios.stage.spec import AgentSpec

_ISSUER = {"name": "corp", "issuer": "http://127.0.0.1:9/corp", "insecure_http": True}
_SCRIPT = [str(Path(sys.executable).with_name("iamroles"))]
_MUTANT = [sys.executable, "-m", "iamroles_conformance.selftest.mutants"]
_POLICY = {
    "version": 1,
    "agent": {"listen": "127.0.0.1:0"},
    "issuers": [{**_ISSUER, "audiences": ["edge"], "algorithms": ["ES256"]}],
}


@pytest.fixture(scope="module")
def server():
    preload = ["iamroles_agent.commands.serve", *modules(["gate"])]
    with closing(ForkServer(preload, Path(_SCRIPT[0]).parent)) as found:
        yield found


@pytest.fixture
def started(server, tmp_path):
    world = tmp_path / "world.json"
    children = []

    def start(document=_POLICY, program=_SCRIPT):
        world.write_text(json.dumps(document))
        argv = [*program, "agent", "run"]
        env = {"IAMROLES_POLICY": world.name}
        children.append(Child("agent", argv, guard, env=env, cwd=tmp_path, popen=server.start))
        return children[-1]

    with closing(Guard()) as guard:
        yield start
        for child in children:
            child.kill()


def test_it_is_a_child_and_leads_a_group_of_its_own(started):
    child = started()
    child.ready(20.0)

    assert child.pid in children_of(os.getpid())
    assert os.getpgid(child.pid) == child.pid
    assert {os.getpgid(pid) for pid in children_of(child.pid)} == {child.pid}


def test_it_is_forked_and_runs_its_own_program(started):
    child = started()
    child.ready(20.0)

    command = Path(f"/proc/{child.pid}/cmdline").read_text()
    assert "fork_server.py" in command, "it was started, not forked"


def test_it_drains_on_sigterm_and_nothing_is_left(started):
    child = started()
    child.ready(20.0)

    assert child.stop(20.0) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_one_that_is_killed_says_so(started):
    child = started()
    child.ready(20.0)
    child.send(signal.SIGKILL)

    assert child.wait(20.0) == -signal.SIGKILL
    assert child.kill() == -signal.SIGKILL


def test_it_says_why_it_ends_and_with_which_code(started):
    child = started({"version": 2})

    assert child.wait(20.0) == 2
    assert child.stderr.finish(20.0)
    assert "nothing was started" in child.log()


def test_a_mutant_stays_in_its_own_process(started):
    broken, sound = started(program=[*_MUTANT, "no.such-mutant"]), started(program=[*_MUTANT, ""])

    assert broken.wait(20.0) == 1
    assert sound.ready(20.0)


def test_other_programs_are_started_as_ever(server, tmp_path):
    with closing(Guard()) as guard:
        child = Child("other", ["/bin/cat"], guard, cwd=tmp_path, popen=server.start)
        assert Path(f"/proc/{child.pid}/exe").resolve().name in ("cat", "coreutils")
        child.kill()


def test_a_module_that_cannot_be_imported_is_an_error_of_the_start(tmp_path):
    with (
        closing(Guard()) as guard,
        closing(ForkServer(["no_such_module"], tmp_path)) as server,
        pytest.raises(AgentFileError, match=r"launch\.preload"),
    ):
        Child("agent", _SCRIPT, guard, cwd=tmp_path, popen=server.start)


@pytest.mark.parametrize("program", [[sys.executable, "-m", "agent_of_mine"], ["bin/agent"]])
@pytest.mark.parametrize("preload", ["json", "helper_of_mine"])
def test_a_program_finds_the_modules_beside_it(tmp_path, program, preload):
    folder = tmp_path / "bin" if program == ["bin/agent"] else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "helper_of_mine.py").write_text("WORD = 'helped'\n")
    script = folder / ("agent" if program == ["bin/agent"] else "agent_of_mine.py")
    script.write_text(f"#!{sys.executable}\nfrom helper_of_mine import WORD\nprint(WORD)\n")
    script.chmod(0o755)
    spec = AgentSpec("mine", "", tmp_path, command=tuple(program), preload=(preload,))
    with closing(Processes()) as kind, closing(Guard()) as guard:
        child = Child("agent", spec.argv(), guard, cwd=tmp_path, popen=kind._popen(spec))
        assert child.wait(20.0) == 0
        assert child.stdout.finish(20.0)
        assert "helped" in child.log()
        child.kill()


def test_the_environment_is_copied_while_another_thread_changes_it():
    over = threading.Event()
    name = "IAMROLES_TEST_NAME"

    def toggle():
        while not over.is_set():
            os.environ[name] = "a test"
            os.environ.pop(name, None)

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        assert all(environ()["PATH"] == os.environ["PATH"] for _ in range(2000))
    finally:
        over.set()
        thread.join()
