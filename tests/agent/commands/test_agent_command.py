"""`iamroles agent run` as an operator meets it: the ready line, signals, and what bad input says."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

WORLD = {
    "version": 1,
    "agent": {"listen": "127.0.0.1:0"},
    "audit": {"path": "none"},
    "issuers": [
        {
            "name": "corp",
            "issuer": "http://127.0.0.1:9/corp",
            "insecure_http": True,
            "audiences": ["api"],
            "algorithms": ["RS256"],
        }
    ],
    "roles": [{"name": "reader", "arn": "arn:aws:iam::111122223333:role/reader"}],
    "backends": [{"name": "orders", "servers": ["127.0.0.1:9"]}],
    "grants": [{"id": "R1", "roles": ["reader"], "methods": ["GET"], "path": "/orders", "backend": "orders"}],
}


def write(path, **changes):
    path.write_text(json.dumps(WORLD | changes))
    return path


@contextmanager
def running(path, *variables):
    process = subprocess.Popen(
        [sys.executable, "-m", "iamroles_agent", "agent", "run"],
        env=os.environ | dict.fromkeys(variables or ["IAMROLES_POLICY"], str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, json.loads(process.stdout.readline() or "{}")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def refused(path):
    return subprocess.run(
        [sys.executable, "-m", "iamroles_agent", "agent", "run", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_it_says_where_it_serves_reloads_and_drains(tmp_path, workers):
    path = write(tmp_path / "world.json", agent={"listen": "127.0.0.1:0", "workers": workers})
    with running(path) as (process, ready):
        assert ready["ready"] is True
        assert ready["workers"] == workers
        host, port = ready["address"].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5):
            pass

        process.send_signal(signal.SIGHUP)
        first = json.loads(process.stdout.readline())
        assert first["reloaded"] is True

        write(path, grants=[], agent={"listen": "127.0.0.1:0", "workers": workers})
        process.send_signal(signal.SIGHUP)
        second = json.loads(process.stdout.readline())
        assert second["reloaded"] is True
        assert second["policy"] != first["policy"]

        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize("also", [[], ["IAMROLES_POLICY"]])
def test_the_former_name_of_the_variable_works_and_says_so(tmp_path, also):
    with running(write(tmp_path / "world.json"), "IAMROLES_WORLD", *also) as (process, ready):
        assert ready["ready"] is True
        process.terminate()
        assert ("IAMROLES_WORLD is deprecated" in process.communicate(timeout=20)[1]) == (not also)


def test_a_bad_file_leaves_the_old_policy_in_force_and_says_why(tmp_path):
    path = write(tmp_path / "world.json")
    with running(path) as (process, _):
        process.send_signal(signal.SIGHUP)
        before = json.loads(process.stdout.readline())
        write(path, grants=[WORLD["grants"][0] | {"backend": "nowhere"}])
        process.send_signal(signal.SIGHUP)
        after = json.loads(process.stdout.readline())

        assert after["reloaded"] is False
        assert "nowhere" in after["error"]
        assert after["policy"] == before["policy"]


def test_a_broken_policy_starts_nothing_and_lists_every_error(tmp_path):
    path = write(
        tmp_path / "world.json",
        multi_roll="union",
        roles=[{"name": "reader", "arn": "arn:aws:iam::1:role/reader"}],
        grants=[WORLD["grants"][0] | {"path": "/a/../b"}],
    )
    done = refused(path)

    assert done.returncode == 2
    assert done.stdout == ""
    for part in (
        "multi_roll",
        "multi_role",
        "roles[0].arn",
        "grants[0].path",
        "world.json",
        "nothing was started",
    ):
        assert part in done.stderr


def test_a_missing_file_is_one_sentence(tmp_path):
    done = refused(tmp_path / "absent.toml")

    assert done.returncode == 2
    assert "absent.toml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_busy_port_is_one_sentence(tmp_path, workers):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        listen = f"127.0.0.1:{busy.getsockname()[1]}"
        done = refused(write(tmp_path / "world.json", agent={"listen": listen, "workers": workers}))

    assert done.returncode == 3
    assert listen in done.stderr
    assert "Traceback" not in done.stderr
