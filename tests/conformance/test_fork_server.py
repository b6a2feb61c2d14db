"""The fork server: an agent that it forks behaves like an agent that the stage started."""

import json
import os
import signal
import sys
from contextlib import closing

import pytest

from iamroles_conformance.selftest.fork_server import ForkServer
from iamroles_scenarios.base.family import children_of
from iamroles_scenarios.stage.guard import Guard
from iamroles_scenarios.stage.process import Child

_ISSUER = {"name": "corp", "issuer": "http://127.0.0.1:9/corp", "insecure_http": True}
_POLICY = {
    "version": 1,
    "agent": {"listen": "127.0.0.1:0"},
    "issuers": [{**_ISSUER, "audiences": ["edge"], "algorithms": ["ES256"]}],
}


@pytest.fixture(scope="module")
def server():
    with ForkServer() as found:
        yield found


@pytest.fixture
def started(server, tmp_path):
    world = tmp_path / "world.json"
    children = []

    def start(document=_POLICY, mutants=""):
        world.write_text(json.dumps(document))
        argv = [sys.executable, "-m", "iamroles_conformance.selftest.mutants", mutants, "agent", "run"]
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
    broken, sound = started(mutants="no.such-mutant"), started()

    assert broken.wait(20.0) == 1
    assert sound.ready(20.0)
