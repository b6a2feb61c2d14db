"""The processes of an agent: one address, one ready line, one outcome of a reload, nobody left over.

Faults are real ones: SIGKILL, SIGSTOP, a worker that talks nonsense or never answers.
"""

import ctypes
import os
import random
import resource
import signal
import sys
from collections import Counter
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
from programs import Program
from running_agent import answered, connect, receive
from spop_transcript import hello, notify
from waiting import until

from iamroles_agent import __version__

_PTRACE_SEIZE = 0x4206
PROGRAM = "-m", "tests.support.supervised_agent"


class Agent(Program):
    """The program, and the file that says its policy."""

    @property
    def state(self):
        return self.directory / "state"

    def reload(self, state):
        self.state.write_text(state)
        return super().reload()

    def workers(self):
        return self.children("iamroles-w")


@contextmanager
def running(tmp_path, workers, *, state="one", listen="127.0.0.1:0"):
    with closing(Agent(tmp_path, sys.executable, *PROGRAM)) as agent:
        agent.state.write_text(state)
        agent.start(listen, str(workers), str(agent.state))
        yield agent


@contextmanager
def started(*arguments, **options):
    """An agent that said that it is ready, and its address."""
    with running(*arguments, **options) as agent:
        yield agent, agent.line()["address"]


def ask(address):
    """Pid and state of the worker that answers a new connection."""
    with connect(address) as sock:
        return asked(sock)


def asked(sock):
    answer = answered(sock)
    return int(answer["principal"]), answer["session"].decode()


def ask_until_heard(address, pids):
    """States of these workers, asked until each has answered."""
    states: dict[int, str] = {}
    with ExitStack() as held:  # a worker without connections gets the next

        def all_heard():
            pid, state = asked(held.enter_context(connect(address)))
            states[pid] = state
            return pids <= set(states)

        until(all_heard)
    return {states[pid] for pid in pids}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("workers", [1, 3])
def test_life(tmp_path, workers):
    with running(tmp_path, workers) as agent:
        ready = agent.line()
        pids = agent.workers()

        said = {"ready": True, "address": ready["address"], "pid": agent.process.pid, "policy": "one"}
        assert ready == said | {"version": __version__, "workers": workers, "in_force": 1}
        assert len(pids) == workers
        assert ask_until_heard(ready["address"], pids) == {"one"}

        assert agent.reload("two") == confirmed("two", 2, workers)
        assert ask_until_heard(ready["address"], pids) == {"two"}

        assert agent.ended(signal.SIGTERM) == 0
        assert not any(alive(pid) for pid in pids)


def confirmed(policy, version, workers):
    return {"reloaded": True, "policy": policy, "version": version, "workers": workers, "confirmed": workers}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_reload_changes_nothing(tmp_path, workers):
    """3,000 errors are more than a socket's buffer holds."""
    with started(tmp_path, workers) as (agent, address):
        said = {"bad": "caf\udce9: the file is bad", "crash": "the reload crashed", "long report": "is wrong"}
        for state, error in said.items():
            line = agent.reload(state)
            assert line["reloaded"] is False
            assert error in line["error"]
            assert (line["policy"], line["version"]) == ("one", 1)
            assert ask(address)[1] == "one"
        assert str(line["error"]).count("\n") == 2999
        assert agent.reload("two")["reloaded"] is True


def test_a_reload_that_one_worker_refuses_changes_nothing_anywhere(tmp_path):
    with started(tmp_path, 3) as (agent, address):
        line = agent.reload("bad for one")

        assert line["reloaded"] is False
        assert "it is bad for worker 1" in line["error"]
        assert ask_until_heard(address, agent.workers()) == {"one"}
        assert agent.reload("two")["reloaded"] is True
        assert ask_until_heard(address, agent.workers()) == {"two"}


def test_a_frozen_loader_is_an_answer(tmp_path):
    with started(tmp_path, 1) as (agent, address):
        members = {*agent.workers(), *agent.children("iamroles-f")}
        agent.state.write_text("wait")
        agent.process.send_signal(signal.SIGHUP)
        until(lambda: len(agent.children() - members) == 1)
        (loader,) = agent.children() - members
        os.kill(loader, signal.SIGSTOP)

        line = agent.line()
        assert line["reloaded"] is False
        assert "the loader did nothing" in line["error"]
        assert agent.reload("two")["reloaded"] is True
        assert ask(address)[1] == "two"


@pytest.mark.parametrize("workers", [1, 4])
def test_a_frozen_worker_is_replaced_and_swallows_no_reload(tmp_path, workers):
    with started(tmp_path, workers) as (agent, address):
        before = agent.workers()
        victim = ask(address)[0]
        os.kill(victim, signal.SIGSTOP)

        line = agent.reload("two")
        assert line["reloaded"] is True
        until(lambda: len(agent.workers() - before) == 1)
        (fresh,) = agent.workers() - before

        assert ask_until_heard(address, {fresh, *(before - {victim})}) == {"two"}
        assert "no heartbeat" in agent.log()
        assert not alive(victim)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("slow for one", "it did not prepare version 2"),
        ("deaf for one", ""),
        ("nonsense of one", "it talked nonsense: a head that is not JSON"),
    ],
)
def test_a_worker_that_fails_a_phase_is_replaced_with_the_new_version(tmp_path, state, why):
    """Also a worker that is killed for silence, because it blocks its event loop."""
    with started(tmp_path, 3) as (agent, address):
        before = agent.workers()

        line = agent.reload(state)

        assert line["reloaded"] is True
        assert why in agent.log()
        until(lambda: len(agent.workers() - before) == 1 and len(agent.workers()) == 3)
        assert ask_until_heard(address, agent.workers()) == {state}
        assert agent.reload("after")["confirmed"] == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_terminated_with_work_under_way(tmp_path, workers):
    with running(tmp_path, workers) as agent, connect(agent.line()["address"]) as sock:
        sock.sendall(hello() + notify())
        agent.process.terminate()

        assert receive(sock) == {}
        assert receive(sock)["allow"] is True
        assert receive(sock) == {}
        assert agent.ended() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_all_killed_workers_are_replaced_with_the_version_in_force(tmp_path, workers):
    """Whatever the file says meanwhile."""
    with started(tmp_path, workers) as (agent, address):
        agent.reload("two")
        agent.state.write_text("three, which nobody took up")
        before = agent.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(agent.workers() - before) == workers)

        assert ask_until_heard(address, agent.workers()) == {"two"}
        assert "ended with signal 9" in agent.log()
        assert agent.reload("four") == confirmed("four", 3, workers)
        assert agent.ended(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_fetcher_is_replaced(tmp_path, number):
    with started(tmp_path, 2) as (agent, _):
        (fetcher,) = agent.children("iamroles-f")
        os.kill(fetcher, number)

        assert agent.reload("two")["reloaded"] is True
        until(lambda: bool(agent.children("iamroles-f") - {fetcher}))
        assert agent.ended(signal.SIGTERM) == 0


def test_a_parent_without_descriptors_survives_and_replaces_later(tmp_path):
    with started(tmp_path, 2) as (agent, address):
        pid, before = agent.process.pid, agent.workers()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        former = resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        os.kill(min(before), signal.SIGKILL)
        until(lambda: "cannot be made: Too many open files" in agent.log())
        assert agent.reload("two")["error"] == "the loader ended with fork failed: Too many open files"

        resource.prlimit(pid, resource.RLIMIT_NOFILE, former)
        until(lambda: len(agent.workers()) == 2)
        assert agent.reload("three")["reloaded"] is True
        until(lambda: ask_until_heard(address, agent.workers()) == {"three"})


@pytest.mark.parametrize("who", ["members", "frozen members", "a loader"])
def test_nobody_outlives_a_killed_parent(tmp_path, who):
    """They would hold the address, and the next agent could not start."""
    with started(tmp_path, 2) as (agent, address):
        members = agent.children()
        if who == "a loader":
            agent.state.write_text("wait")
            agent.process.send_signal(signal.SIGHUP)
            until(lambda: bool(agent.children() - members))
        for pid in members if who == "frozen members" else ():
            os.kill(pid, signal.SIGSTOP)
        everybody = agent.children()
        agent.process.kill()
        until(lambda: not any(alive(pid) for pid in everybody))

    with running(tmp_path, 2, listen=str(address)) as agent:
        assert agent.line()["ready"] is True


def test_connections_that_wait_for_a_killed_worker_are_answered_by_the_next(tmp_path):
    with started(tmp_path, 1) as (agent, address):
        (victim,) = agent.workers()
        os.kill(victim, signal.SIGSTOP)
        with connect(address) as sock:
            sock.sendall(hello() + notify())
            os.kill(victim, signal.SIGKILL)
            receive(sock)
            assert receive(sock)["principal"] != str(victim)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_each_worker_gets_as_many_connections_as_the_others(tmp_path, workers, kind):
    listen = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path / 'agent.sock'}"
    with started(tmp_path, workers, state="patient", listen=listen) as (agent, address), ExitStack() as held:
        socks = [held.enter_context(connect(address)) for _ in range(15)]
        spread = Counter(asked(sock)[0] for sock in socks)

        assert set(spread) == agent.workers()
        assert max(spread.values()) - min(spread.values()) <= 1


def test_a_replaced_worker_gets_its_share(tmp_path):
    with started(tmp_path, 2, state="patient") as (agent, address), ExitStack() as held:

        def connected():
            return asked(held.enter_context(connect(address)))[0]

        spread = Counter(connected() for _ in range(8))
        victim, other = spread
        assert spread[other] == 4
        os.kill(victim, signal.SIGKILL)
        until(lambda: connected() not in spread)  # while it is alone, it takes what comes
        (fresh,) = agent.workers() - {other}
        status = Counter(connected() for _ in range(3))

        assert status == {fresh: 3}


def test_a_frozen_worker_lets_others_accept(tmp_path):
    with started(tmp_path, 3) as (agent, address), ExitStack() as held:
        victim = min(agent.workers())
        os.kill(victim, signal.SIGSTOP)
        socks = [held.enter_context(connect(address)) for _ in range(30)]

        assert victim not in {asked(sock)[0] for sock in socks}


def test_connections_outlive_workers_that_never_accepted_them(tmp_path):
    """A client that connects while a worker is killed is answered, or cut off at once with that worker."""
    with started(tmp_path, 3) as (agent, address):
        answered = 0
        for _ in range(12):
            before = agent.workers()
            with ExitStack() as held:
                socks = [held.enter_context(connect(address)) for _ in range(8)]
                os.kill(random.choice(sorted(before)), signal.SIGKILL)
                for sock in socks:
                    with suppress(AssertionError, ConnectionError):
                        answered += asked(sock)[0] > 0
            until(lambda before=before: len(agent.workers()) == 3 and agent.workers() != before)

        assert answered > 0
        assert agent.reload("two")["confirmed"] == 3


def test_unix_socket_outlives_a_worker(tmp_path):
    path = tmp_path / "agent.sock"
    with started(tmp_path, 2, listen=f"unix:{path}") as (agent, address):
        before = agent.workers()
        os.kill(min(before), signal.SIGTERM)
        until(lambda: len(agent.workers() - before) == 1)

        assert ask(address)[1] == "one"
        assert agent.ended(signal.SIGTERM) == 0
        assert not path.exists()


@pytest.mark.parametrize(
    ("state", "why"), [("refuse", "worker 1 will not"), ("die", "worker 1 ended with status 7")]
)
def test_a_worker_that_cannot_start_stops_everything(tmp_path, state, why):
    with running(tmp_path, 3, state=state) as agent:
        assert agent.ended() == 3
        assert why in agent.log()
        assert agent.process.stdout.read() == b""


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_busy_port(tmp_path, first, second):
    """Even workers that share a port never share it with another agent."""
    (tmp_path / "second").mkdir()
    with started(tmp_path, first) as (_, address):
        with running(tmp_path / "second", second, listen=str(address)) as other:
            assert other.ended() == 3
            said = f"cannot listen on {address}: another process listens there; stop it, or choose another"
            assert other.log().splitlines()[-1] == f"{said} `agent.listen`"
        assert ask(address)[1] == "one"


def test_a_stuck_worker_is_killed_in_the_end_and_one_that_cannot_die_is_left(tmp_path):
    """A file system that does not answer may hold it; here a tracer does, if the sandbox allows it."""
    with started(tmp_path, 2, state="stuck") as (agent, _):
        held, *_ = pids = agent.workers()
        traced = ctypes.CDLL(None).ptrace(_PTRACE_SEIZE, held, None, None) == 0

        assert agent.ended(signal.SIGTERM) == 1
        if traced:
            os.waitpid(held, 0)
        assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("nonsense", 'write "host:port", "[ipv6]:port" or "unix:/path"'),
        ("127.0.0.1:99999", 'write "host:port"'),
        ("192.0.2.1:0", "it is not an address of this host"),
        ("no-such-host.invalid:0", "is not an address of this host"),
        ("unix:/proc/agent.sock", "cannot listen on unix:/proc/agent.sock"),
        ("unix:{}/log", "a file that is not a socket is there"),
    ],
)
def test_addresses_that_cannot_be(tmp_path, listen, why):
    with running(tmp_path, 1, listen=listen.format(tmp_path)) as agent:
        assert agent.ended() == 3
        assert why in agent.log().splitlines()[-1]


def test_a_stale_unix_socket_is_replaced_but_a_live_one_is_not(tmp_path):
    path, other = tmp_path / "agent.sock", tmp_path / "b"
    other.mkdir()
    with started(tmp_path, 1, listen=f"unix:{path}") as (agent, _):
        with running(other, 1, listen=f"unix:{path}") as second:
            assert second.ended() == 3
            assert "another process listens there" in second.log()
        agent.ended(signal.SIGKILL)
    assert path.is_socket()
    with started(other, 1, listen=f"unix:{path}") as (_, address):
        assert ask(address)[1] == "one"
