"""The agent reports to systemd: a real datagram socket reads it, as systemd does."""

import os
import re
import signal
import socket
import sys
import time
from contextlib import closing, contextmanager, suppress

import pytest
from programs import PATIENCE
from test_server_supervisor import PROGRAM, Agent, alive, ask
from waiting import until


class Manager:
    """A service manager: a socket, and what came."""

    def __init__(self, address):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address.replace("@", "\0", 1))
        self.sock.settimeout(PATIENCE)
        self.fed = 0

    def next(self):
        """Return the next report that is not a feed."""
        while True:
            said = self.sock.recv(1 << 16).decode()
            if said != "WATCHDOG=1":
                return dict(line.split("=", 1) for line in said.split("\n"))
            self.fed += 1

    def feeds(self, seconds):
        """Count the feeds of the time to come."""
        before, end = self.fed, time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                self.fed += self.sock.recv(1 << 16) == b"WATCHDOG=1"
            except TimeoutError:
                break
        self.sock.settimeout(PATIENCE)
        return self.fed - before


@contextmanager
def managed(tmp_path, workers=2, *, address=None, state="one", **environment):
    address = address or str(tmp_path / "notify")
    manager = Manager(address)
    with closing(Agent(tmp_path, sys.executable, *PROGRAM)) as agent, closing(manager.sock):
        agent.state.write_text(state)
        given = os.environ | {"NOTIFY_SOCKET": address} | environment
        agent.start("127.0.0.1:0", str(workers), str(agent.state), env=given)
        yield agent, manager


@pytest.mark.parametrize("abstract", [False, True])
def test_a_life_in_reports(tmp_path, abstract):
    name = f"@iamroles-test-{os.getpid()}" if abstract else None
    with managed(tmp_path, address=name) as (agent, manager):
        assert manager.next() == {"READY": "1", "STATUS": "policy one is in force in 2 of 2 workers"}
        address = agent.line()["address"]

        before = time.monotonic_ns() // 1000
        agent.reload("two")
        said = manager.next()
        assert before <= int(said.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert said == {"RELOADING": "1", "STATUS": "reads the file again"}
        assert manager.next() == {"READY": "1", "STATUS": "policy two is in force in 2 of 2 workers"}
        assert ask(address)[1] == "two"

        agent.reload("bad")
        assert manager.next()["RELOADING"] == "1"
        said = manager.next()
        assert said["READY"] == "1"
        assert re.match(
            "policy two is in force in 2 of 2 workers, because the reload was refused: .*bad", said["STATUS"]
        )

        agent.process.terminate()
        said = manager.next()
        assert said.pop("EXTEND_TIMEOUT_USEC").isdigit()
        assert said == {"STOPPING": "1", "STATUS": "drains"}
        assert agent.ended() == 0


def test_the_status_says_that_a_worker_is_missing_and_is_back(tmp_path):
    with managed(tmp_path) as (agent, manager):
        manager.next()
        agent.line()
        os.kill(min(agent.workers()), signal.SIGKILL)

        assert manager.next() == {"STATUS": "policy one is in force in 1 of 2 workers"}
        assert manager.next() == {"STATUS": "policy one is in force in 2 of 2 workers"}


def test_ready_waits_for_the_last_of_several_reloads(tmp_path):
    with managed(tmp_path) as (agent, manager):
        manager.next()
        agent.line()
        agent.state.write_text("wait")
        members = agent.children()
        agent.process.send_signal(signal.SIGHUP)
        assert manager.next()["RELOADING"] == "1"
        until(lambda: len(agent.children() - members) == 1)
        (loader,) = agent.children() - members
        os.kill(loader, signal.SIGSTOP)
        agent.state.write_text("two")
        agent.process.send_signal(signal.SIGHUP)
        assert manager.next()["RELOADING"] == "1"
        os.kill(loader, signal.SIGKILL)

        assert manager.next() == {"READY": "1", "STATUS": "policy two is in force in 2 of 2 workers"}
        assert [agent.line()["reloaded"], agent.line()["reloaded"]] == [False, True]


def test_a_report_is_one_line_whatever_an_error_says(tmp_path):
    """`long report` has 3,000 lines."""
    with managed(tmp_path) as (agent, manager):
        manager.next()
        agent.line()
        agent.reload("long report")
        manager.next()

        assert set(manager.next()) == {"READY", "STATUS"}


def test_no_ready_from_an_agent_that_cannot_start(tmp_path):
    with managed(tmp_path, state="die") as (agent, manager):
        assert agent.ended() == 3
        assert "STOPPING" in manager.next()


def test_the_watchdog_is_fed_while_a_worker_answers(tmp_path):
    with managed(tmp_path, WATCHDOG_USEC="500000") as (agent, manager):
        manager.next()
        address = agent.line()["address"]
        assert manager.feeds(1.0) >= 2

        for pid in (workers := agent.workers()):  # frozen workers are replaced, and the feeding goes on
            os.kill(pid, signal.SIGSTOP)
        until(lambda: len(agent.workers() - workers) == 2)
        until(lambda: not any(alive(pid) for pid in workers))
        assert ask(address)[1] == "one"
        assert manager.feeds(1.0) >= 2

        os.kill(agent.process.pid, signal.SIGSTOP)
        manager.feeds(0.5)
        assert manager.feeds(1.0) == 0
        os.kill(agent.process.pid, signal.SIGCONT)
        assert manager.feeds(2.0) >= 2


def test_the_watchdog_starves_while_no_worker_answers(tmp_path):
    with managed(tmp_path, state="mortal", WATCHDOG_USEC="500000") as (agent, manager):
        manager.next()
        agent.line()
        first, second = agent.workers()
        os.kill(first, signal.SIGKILL)
        until(lambda: "ended with status 7" in agent.log())
        assert manager.feeds(1.0) >= 1  # one answers
        os.kill(second, signal.SIGKILL)
        until(lambda: not alive(second))
        manager.feeds(0.5)

        assert manager.feeds(1.0) == 0


@pytest.mark.parametrize(("usec", "pid"), [("500000", "1"), ("half a second", ""), ("0", ""), ("", "")])
def test_a_watchdog_of_another_process_or_of_no_time_is_not_fed(tmp_path, usec, pid):
    with managed(tmp_path, 1, WATCHDOG_USEC=usec, WATCHDOG_PID=pid) as (_, manager):
        manager.next()

        assert manager.feeds(1.0) == 0


@pytest.mark.parametrize("where", ["/nowhere/notify", "vsock:2:1234", "/" + "x" * 200])
def test_a_manager_that_does_not_listen_is_reported_once(tmp_path, where):
    with managed(tmp_path, 1, NOTIFY_SOCKET=where) as (agent, _):
        agent.line()
        assert agent.reload("two")["reloaded"] is True
        assert agent.ended(signal.SIGTERM) == 0
        assert agent.log().count("systemd takes no report") == 1


def test_a_manager_that_is_busy_gets_the_reports_later_and_delays_nothing(tmp_path):
    with managed(tmp_path, 1) as (agent, manager), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        manager.next()
        agent.line()
        other.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                other.sendto(b"NOISE=1", str(tmp_path / "notify"))

        assert agent.reload("two")["reloaded"] is True
        while "NOISE" in (said := manager.next()):
            pass
        assert (said.keys(), manager.next()["READY"]) == ({"RELOADING", "STATUS", "MONOTONIC_USEC"}, "1")
