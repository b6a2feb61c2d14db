"""Ctrl-C and SIGTERM end a command with 130 and a word; SIGKILL at once. Nothing that it started is left."""

import signal

import pytest
from marked import Marked
from waiting import until

PATIENCE = 60.0
COMMANDS = {
    "load run --rate 50 --duration 600": ("multiprocessing-fork", 1, "TERM KILL"),
    "load locust --rate 50 -- --headless --processes 2 -t 600s": ("locust -f", 3, "INT TERM KILL"),
    "bench gate": ("haproxy -W", 2, "TERM KILL"),
    "demo": ("haproxy -W", 2, "INT KILL"),
}
"""The number of processes of each kind to wait for (a new one is not known to its
guard and would outlive SIGKILL), and signals. SIGTERM is Ctrl-C to all but locust (`iamroles_agent.main`)."""


@pytest.mark.parametrize(
    ("command", "ends"), [(one, n) for one in COMMANDS for n in COMMANDS[one][2].split()]
)
def test_a_command_that_is_ended_leaves_nothing(command, ends, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first, *rest = command.split(" -- ")
    words = [*first.split(), "--stage=processes", *(["--", *rest[0].split()] if rest else [])]
    with Marked(*words) as process:
        part, count, _ = COMMANDS[command]
        until(lambda: sum(part in line for line in process.family().values()) >= count, PATIENCE)

        process.send_signal(signal.Signals[f"SIG{ends}"])
        code = process.wait(PATIENCE)

        if ends == "KILL":
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
