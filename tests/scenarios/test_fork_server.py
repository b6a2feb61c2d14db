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
    with closing(ForkServer(["iamroles_agent.commands.serve", *modules(["gate"])])) as found:
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
        closing(ForkServer(["no_such_module"])) as server,
        pytest.raises(AgentFileError, match=r"launch\.preload"),
    ):
        Child("agent", _SCRIPT, guard, cwd=tmp_path, popen=server.start)


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
