"""`iamroles agent run` as an operator meets it: the ready line, signals, and what bad input says."""

import json
import os
import signal
import socket
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from policies import grant
from programs import IAMROLES, PATIENCE, Program, iamroles, world
from waiting import until


def write(path, **changes):
    path.write_text(json.dumps(world(**changes)))
    return path


@contextmanager
def running(path, *variables):
    with closing(Program(path.parent, *IAMROLES, "agent", "run")) as agent:
        agent.start(env=os.environ | dict.fromkeys(variables or ["IAMROLES_POLICY"], str(path)))
        ready = agent.line()
        assert ready["ready"] is True
        yield agent, ready


def refused(path):
    return iamroles("agent", "run", "--config", path)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_says_where_it_serves_reloads_unless_the_file_is_bad_and_drains(tmp_path, workers):
    settings = {"listen": "127.0.0.1:0", "workers": workers, "control_socket": "a.sock"}
    path = write(tmp_path / "world.json", agent=settings)
    with running(path) as (agent, ready):
        assert ready["workers"] == workers
        host, port = ready["address"].rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=5).close()
        first = agent.reload()
        write(path, grants=[grant("R1", "reader", "GET", "/orders", "nowhere")], agent=settings)
        bad = agent.reload()
        for beside in ((), ("--state-dir", tmp_path)):
            asked = iamroles("agent", "status", "--config", path, *beside)
            assert (asked.returncode, first["policy"] in asked.stdout) == (0, True), asked
        write(path, grants=[], agent=settings)
        second = agent.reload()
        assert (first["reloaded"], bad["reloaded"], second["reloaded"]) == (True, False, True)
        assert "nowhere" in bad["error"]
        assert first["policy"] == bad["policy"] != second["policy"]
        assert agent.ended(signal.SIGTERM) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGHUP, 3)])
def test_a_signal_before_it_serves_does_not_kill_it(tmp_path, number, status):
    """It waits for an agent that is to hand over, and cannot start when that one hangs up."""
    write(tmp_path / "world.json", agent={"listen": "127.0.0.1:0", "state_dir": "."})
    with (
        socket.socket(socket.AF_UNIX) as former,
        closing(Program(tmp_path, *IAMROLES, "agent", "run")) as agent,
    ):
        former.bind(str(tmp_path / "agent.sock"))
        former.listen()
        agent.start("--take-over", "--config", str(tmp_path / "world.json"))
        conversation, _ = former.accept()
        with conversation:
            agent.process.send_signal(number)
            if number is signal.SIGTERM:
                assert agent.ended() == status
        assert agent.ended() == status


def test_sighup_before_it_serves_reads_the_policy_again(tmp_path):
    def signalled():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        os.kill(os.getpid(), signal.SIGHUP)

    path = write(tmp_path / "world.json")
    with closing(Program(tmp_path, *IAMROLES, "agent", "run", "--config", str(path))) as agent:
        agent.start(popen=subprocess.Popen, preexec_fn=signalled)
        assert agent.line()["ready"] is True
        assert agent.line()["reloaded"] is True
        assert agent.ended(signal.SIGTERM) == 0


@pytest.mark.parametrize("also", [[], ["IAMROLES_POLICY"]])
def test_the_former_name_of_the_variable_works_and_says_so(tmp_path, also):
    with running(write(tmp_path / "world.json"), "IAMROLES_WORLD", *also) as (agent, _):
        agent.ended(signal.SIGTERM)
        assert ("IAMROLES_WORLD is deprecated" in agent.log()) == (not also)


def test_the_former_name_of_the_variable_counts_only_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("IAMROLES_WORLD", str(tmp_path / "absent.json"))
    with running(write(tmp_path / "world.json")) as (agent, _):
        assert agent.ended(signal.SIGTERM) == 0


def test_no_file_gets_the_number_of_a_closed_standard_stream(tmp_path):
    """The log once went into the lock of the state directory; it could have been the audit."""
    here = tmp_path / "a.sock"
    path = write(tmp_path / "world.json", agent={"listen": f"unix:{here}", "state_dir": "state"})
    closed = "sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh"
    with subprocess.Popen([*closed, *IAMROLES, "agent", "run", "--config", path]) as agent:
        until(here.exists)
        streams = [Path(f"/proc/{agent.pid}/fd/{number}").readlink() for number in range(3)]
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(PATIENCE) == 0
    assert set(map(str, streams)) == {os.devnull}
    assert "WARNING" not in (tmp_path / "state" / "lock").read_text()


def test_a_broken_policy_starts_nothing_and_lists_every_error(tmp_path):
    path = write(
        tmp_path / "world.json",
        multi_roll="union",
        roles=[{"name": "reader", "arn": "arn:aws:iam::1:role/reader"}],
        grants=[grant("R1", "reader", "GET", "/a/../b", "orders")],
    )
    done = refused(path)

    assert done.returncode == 2
    assert done.stdout == ""
    keys = ["multi_roll", "multi_role", "roles[0].arn", "grants[0].path"]
    for part in (*keys, "world.json", "nothing was started"):
        assert part in done.stderr


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_missing_file_and_a_busy_port_are_one_sentence(tmp_path, workers):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        listen = f"127.0.0.1:{busy.getsockname()[1]}"
        path = write(tmp_path / "world.json", agent={"listen": listen, "workers": workers})
        done = refused(path if workers else tmp_path / "absent.toml")

    assert done.returncode == (3 if workers else 2)
    assert (listen if workers else "absent.toml") in done.stderr
    assert "Traceback" not in done.stderr
