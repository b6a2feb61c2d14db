"""Ctrl-C and SIGTERM end a command with 130 and a word; SIGKILL at once. Nothing that it started is left."""

import signal

import pytest
from marked import Marked
from waiting import until

PATIENCE = 60.0
COMMANDS = {
    "load run --rate 50 --duration 600": ("multiprocessing-fork", 1),
    "load locust --rate 50 -- --headless --processes 2 -t 600s": ("locust -f", 3),
    "bench gate": ("haproxy -W", 2),
    "demo": ("haproxy -W", 2),
}
"""The number of processes of each kind to wait for. A process that has just been started is not known to its
guard: it would outlive SIGKILL."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_ended_leaves_nothing(command, number, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first, *rest = command.split(" -- ")
    words = [*first.split(), "--stage=processes", *(["--", *rest[0].split()] if rest else [])]
    with Marked(*words) as process:
        part, count = COMMANDS[command]
        until(lambda: sum(part in line for line in process.family().values()) >= count, PATIENCE)

        process.send_signal(number)
        code = process.wait(PATIENCE)

        if number is signal.SIGKILL:
            until(lambda: not process.family(), PATIENCE)  # the guards' work, after its end
        else:
            said = process.stderr.read()
            assert (code, said[-12:]) == (130, "interrupted\n"), said
            assert not process.family()
            assert not list(tmp_path.iterdir())


def test_no_loop_that_starves_an_agent_outlives_its_judge():
    with Marked("conformance", "run", "--stage=processes", "--check=fault.host.cpu") as process:
        until(lambda: sum("getppid" in line for line in process.family().values()) >= 4, PATIENCE)
        process.kill()
        process.wait(PATIENCE)
        until(lambda: not process.family(), PATIENCE)
