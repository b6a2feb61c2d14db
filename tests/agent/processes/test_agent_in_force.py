"""The state in force in a running agent, with one worker and with four: over deaths, outages and restarts."""

import fcntl
import json
import os
import resource
import select
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial

import pytest
from policies import grant
from programs import IAMROLES, PATIENCE, Program, iamroles, world
from running_agent import answered, connect, question, receive
from spop_transcript import hello, notify
from strangers import STRANGER, as_root, let_in, played_by
from tokens_support import EC_KEY, OTHER_EC_KEY, public_jwk, publishing, token_of
from waiting import until

from iamroles_agent.base.errors import StartError
from iamroles_agent.commands.status_text import as_text
from iamroles_agent.processes import handover, local_socket
from iamroles_agent.serving import listening
from iamroles_agent.spop.values import DataType

SETTINGS = {"listen": "127.0.0.1:0", "drain_timeout": "1s", "state_dir": "state"}


@pytest.fixture
def server():
    with publishing() as made:
        yield made


@pytest.fixture(params=[1, 4])
def workers(request):
    return int(request.param)


class Running(Program):
    """An agent and its configuration; it may be started more than once."""

    def __init__(self, directory, server, workers, **changes):
        self.path = directory / "world.json"
        command = *IAMROLES, "agent", "run", "--config", str(self.path)
        super().__init__(directory, *command, "--state-dir", str(directory / "state"))
        self.world = world(
            server.url,
            agent=SETTINGS | {"workers": workers},
            metrics={"listen": "127.0.0.1:0"},
            keys={"refresh": "1h", "cooldown": "10s", "timeout": "5s"},
        )
        self.write(**changes)

    def write(self, **changes):
        self.world |= changes
        self.path.write_text(json.dumps(self.world))

    def start(self, *options, **how):
        super().start(*options, **how)
        ready = self.line()
        self.address = ready["address"]
        return ready

    def reload(self, **changes):
        self.write(**changes)
        return super().reload()

    def ask(self, token):
        """Return what a new connection is answered: `allow`, or the reason."""
        [answer] = self.all_say(token, 1)
        return answer

    def all_say(self, token, count=24):
        """Return what so many connections are answered that each worker has some."""
        with ExitStack() as held:
            socks = [held.enter_context(connect(self.address)) for _ in range(count)]
            answers = [answered(sock, question(token)) for sock in socks]
        return {"allow" if said["allow"] else str(said["reason"].decode()) for said in answers}

    def command(self, name, *options):
        return iamroles("agent", name, *options, "--config", self.path)

    def status(self):
        return local_socket.ask(self.directory / "state" / "agent.sock", {"command": "status"})

    def health(self):
        """Return it of the last worker that said where its metrics are."""
        url = self.log().rpartition("metrics on ")[2].split()[0].replace("/metrics", "/healthz")
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@contextmanager
def running(directory, server, workers, **changes):
    with closing(Running(directory, server, workers, **changes)) as agent:
        agent.start()
        yield agent


@pytest.fixture
def agent(tmp_path, server, workers):
    with running(tmp_path, server, workers) as made:
        yield made


def forged(server, kid):
    return token_of(server.url, OTHER_EC_KEY, kid, jti=kid)


def test_a_removed_grant_stays_removed_when_everybody_is_killed(agent, server, workers):
    """The file says something else by then."""
    token, grants = token_of(server.url), agent.world["grants"]
    assert agent.all_say(token) == {"allow"}
    line = agent.reload(grants=[])
    assert (line["version"], line["confirmed"]) == (3, workers)  # the key set was the second
    agent.write(grants=grants)
    before = agent.children()
    for pid in before:
        with suppress(ProcessLookupError):  # a loader ends by itself
            os.kill(pid, signal.SIGKILL)
    until(lambda: len(agent.children() - before) == workers + 1)

    assert agent.all_say(token) == {"no_grant"}


def test_what_was_accepted_outlives_the_agent(agent, server):
    """Killed as a whole, it comes back with what was accepted, and its keys: whatever the file says."""
    token = token_of(server.url)
    assert agent.ask(token) == "allow"
    accepted = agent.reload(grants=[])
    assert accepted["saved"] is True
    agent.ended(signal.SIGKILL)
    server.replies["/jwks"] = lambda _: (500, {}, b"")
    agent.path.write_text("garbage")

    settings, host = agent.world["agent"], agent.address.rpartition(":")[0]
    with socket.create_server((host, 0)) as busy:
        agent.write(agent=settings | {"listen": f"{host}:{busy.getsockname()[1]}"})
        with pytest.raises(AssertionError, match="ended"):  # it fails, which is not an orderly end
            agent.start()
    agent.write(agent=settings)
    agent.ended()
    agent.path.write_text("garbage")
    assert agent.start()["policy"] == accepted["policy"]
    assert agent.all_say(token) == {"no_grant"}
    assert agent.ended(signal.SIGTERM) == 0
    agent.write(grants=[grant("R2", "reader", "GET", "/orders", "orders")])
    agent.start()
    assert agent.all_say(token) == {"allow"}  # after an orderly end the file counts


def test_whose_parent_was_killed_starts_again_at_once(tmp_path, server):
    """The members of before end in a moment, and until then hold the sockets, the log and its lock."""
    with socket.create_server(("127.0.0.9", 0)) as free:  # where no other test takes the port after it
        metrics = {"listen": f"127.0.0.9:{free.getsockname()[1]}"}
    settings, audit = (
        SETTINGS | {"workers": 2, "listen": f"unix:{tmp_path}/agent.sock"},
        {"path": f"{tmp_path}/audit"},
    )
    with running(tmp_path, server, 2, agent=settings, metrics=metrics, audit=audit) as agent:
        for _ in range(5):
            agent.process.kill()
            agent.process.wait()
            agent.start()
        agent.write(agent=settings | {"listen": "127.0.0.1:0"})
        other = agent.command("run")
        assert other.returncode == 3
        assert f"process {agent.process.pid}" in other.stderr


def test_a_replaced_policy_stays_replaced_though_the_next_one_did_not_fit_on_the_disk(tmp_path, server):
    with running(tmp_path, server, 1) as agent:
        token = token_of(server.url)
        assert agent.ask(token) == "allow"
        index = tmp_path / "state" / "in-force.json"
        until(lambda: json.loads(index.read_text())["version"] == 2)  # the key set is saved late
        [fetcher] = agent.children("iamroles-fetch")
        resource.prlimit(fetcher, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        line = agent.reload(grants=[])
        assert (line["reloaded"], line["saved"], line["save_error"]) == (True, False, "File too large")
        done = agent.command("run", "--state-dir", tmp_path / "state", "--take-over")
        assert "what is in force cannot be saved: File too large. It goes on" in done.stderr
        agent.ended(signal.SIGKILL)
        server.replies["/jwks"] = lambda _: (500, {}, b"")
        agent.start()

        assert agent.ask(token) == "no_grant"  # of the file; and by the keys that were kept
        assert agent.reload(grants=[])["saved"] is True

        agent.write(grants=[grant("R2", "reader", "GET", "/orders", "orders")])
        resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        assert agent.ended(signal.SIGTERM) == 0
        agent.start()
        assert agent.ask(token) == "allow"


class Asker(threading.Thread):
    """Asks one question after the other, on another connection after each goodbye; counts what got lost."""

    def __init__(self, agent, token):
        super().__init__(daemon=True)
        self.agent, self.token = agent, token
        self.answers = []
        self.lost = self.goodbyes = 0
        self.ending = False
        self.start()

    def end(self):
        """Return how many questions got lost, and the answers to the others."""
        self.ending = True
        self.join()
        return self.lost, set(self.answers)

    def run(self):
        while not self.ending:
            with connect(self.agent.address) as sock:
                sock.sendall(hello())
                receive(sock)
                while not self.ending and not self._told_to_go(sock):
                    sock.sendall(notify(question(self.token)))
                    try:
                        said = receive(sock)
                    except (AssertionError, OSError):
                        said = {}
                    if not said:  # a goodbye in place of an answer, or no answer at all
                        self.lost += 1
                        break
                    self.answers.append(said["allow"])
                    time.sleep(0.001)

    def _told_to_go(self, sock):
        told = bool(select.select([sock], [], [], 0)[0])
        self.goodbyes += told
        return told


def test_a_new_agent_takes_over_without_a_lost_question(agent, server, workers):
    old = agent.process
    token = token_of(server.url)
    assert agent.ask(token) == "allow"
    askers = [Asker(agent, token) for _ in range(6)]
    idle = connect(agent.address)
    assert answered(idle, question(token))["allow"] is True
    until(lambda: all(len(asker.answers) > 50 for asker in askers))

    agent.write(agent={**agent.world["agent"], "workers": 5 - workers})
    agent.start("--take-over")
    assert old.wait(PATIENCE) == 0
    heard = [len(asker.answers) for asker in askers]
    until(lambda: all(len(asker.answers) > n + 50 for asker, n in zip(askers, heard, strict=True)))
    assert [asker.end() for asker in askers] == [(0, {True})] * 6
    assert all(asker.goodbyes for asker in askers)
    assert receive(idle) == {}  # a goodbye, at a time when nothing was asked
    assert "Traceback" not in agent.log()
    idle.close()
    assert agent.status()["pid"] == agent.process.pid
    assert agent.reload(grants=[])["saved"] is True
    assert agent.all_say(token) == {"no_grant"}
    assert agent.ended(signal.SIGTERM) == 0
    assert old.stdout is not None
    old.stdout.close()


def test_take_overs_move_from_tcp_to_a_unix_socket_without_a_lost_question(tmp_path, server):
    """At any time HAProxy asks at an address that the agent before and the next agent both have."""
    path = tmp_path / "spop" / "agent.sock"
    with running(tmp_path, server, 2) as agent, ExitStack() as held:
        token, tcp, unix = token_of(server.url), agent.address, f"unix:{path}"
        asker = Asker(agent, token)
        for listen, asked_at in (([unix, tcp], unix), (unix, unix), ([unix, tcp], tcp), (tcp, tcp)):
            old, heard = agent.process, len(asker.answers)
            held.callback(old.stdout.close)
            agent.write(agent={**agent.world["agent"], "listen": listen})
            agent.start("--take-over")
            agent.address = asked_at
            assert old.wait(PATIENCE) == 0
            until(lambda heard=heard: len(asker.answers) > heard + 50)
            assert agent.status()["listen"] == (listen if isinstance(listen, str) else ", ".join(listen))
            assert path.is_socket() is (unix in listen)
            if listen == unix:
                with pytest.raises(ConnectionRefusedError):
                    connect(tcp)
        assert asker.end() == (0, {True})
        assert agent.ended(signal.SIGTERM) == 0


def test_a_new_agent_that_does_not_get_ready_changes_nothing(tmp_path, server):
    with running(tmp_path, server, 2) as agent:
        token, old = token_of(server.url), agent.process
        for changes, why in (
            ({"audit": {"path": "/nonexistent/audit"}}, "cannot be opened"),
            ({"agent": {**agent.world["agent"], "listen": "127.0.0.1:9"}}, "it listens on"),
        ):
            agent.path.write_text(json.dumps(agent.world | changes))
            done = agent.command("run", "--take-over")
            assert done.returncode == 3
            assert why in done.stderr
            assert agent.ask(token) == "allow"

        assert old.poll() is None
        line = agent.reload(grants=[])
        assert (line["confirmed"], line["saved"]) == (2, True)


@contextmanager
def handing_over(local, take):
    """The future of `take`, and both ends of its conversation, which has got as far as the sockets."""
    there = local.rename(local.with_name("moved.sock"))
    with socket.socket(socket.AF_UNIX) as relay, socket.socket(socket.AF_UNIX) as old:
        relay.bind(str(local))
        relay.listen()
        with ThreadPoolExecutor() as pool:
            done = pool.submit(take)
            new = relay.accept()[0]
            old.connect(str(there))
            old.sendall(new.recv(1 << 16))
            line, descriptors, _, _ = socket.recv_fds(old, 1 << 16, 16)
            with new:
                yield done, old, new, partial(socket.send_fds, new, [line], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def test_a_new_agent_takes_up_what_changed_in_its_file_while_it_got_ready(tmp_path, server):
    with running(tmp_path, server, 1) as agent:
        token, local, before = token_of(server.url), tmp_path / "state" / "agent.sock", agent.process
        with handing_over(local, partial(agent.start, "--take-over")) as (done, old, new, hand):
            agent.write(grants=[])
            hand()
            old.sendall(new.recv(16))
            new.sendall(old.recv(16))
            done.result()
        assert before.wait(PATIENCE) == 0
        before.stdout.close()
        until(lambda: agent.all_say(token) == {"no_grant"})


@pytest.mark.parametrize("unread", [b"", b"taken\n"])
def test_a_new_agent_ends_if_the_hand_over_ended_and_the_running_one_goes_on(tmp_path, server, unread):
    with running(tmp_path, server, 2) as agent:
        token, local = token_of(server.url), tmp_path / "state" / "agent.sock"
        with handing_over(local, partial(agent.command, "run", "--take-over")) as (done, _old, new, hand):
            hand()
            if unread:
                assert new.recv(16, socket.MSG_PEEK) == unread
            new.close()

        assert done.result().returncode == 3
        assert "goes on" in done.result().stderr
        assert agent.ask(token) == "allow"
        assert agent.process.poll() is None


def test_an_agent_that_is_stopped_while_another_gets_ready_leaves_it_what_it_took(tmp_path, server):
    """It once removed the sockets and parts of what is in force, and the next agent ended or lacked them."""
    spop = tmp_path / "spop.sock"
    with running(tmp_path, server, 2) as agent:
        token, local, before = token_of(server.url), tmp_path / "state" / "agent.sock", agent.process
        agent.write(agent={**agent.world["agent"], "listen": [f"unix:{spop}", agent.address]})
        agent.start("--take-over")
        before.wait(PATIENCE)
        before.stdout.close()
        before = agent.process
        agent.write(agent={**agent.world["agent"], "listen": f"unix:{spop}"}, grants=[])
        with handing_over(local, partial(agent.start, "--take-over")) as (done, _old, new, hand):
            local.with_name("moved.sock").rename(local)
            before.send_signal(signal.SIGTERM)
            assert before.wait(PATIENCE) == 0
            waiting = connect(f"unix:{spop}")
            hand()
            assert new.recv(16) == b"taken\n"
            new.close()
            assert done.result()["address"] == f"unix:{spop}"
        before.stdout.close()
        with waiting:
            assert answered(waiting, question(token))["reason"] == b"no_grant"
        assert "did not get ready" not in agent.log()
        assert agent.all_say(token) == {"no_grant"}
        assert agent.status()["save_error"] == ""
        assert json.loads((tmp_path / "state" / "in-force.json").read_text())["running"] is True


def _refuses(address):
    with suppress(ConnectionRefusedError), connect(address):
        return False
    return True


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_agent_that_drains_refuses_new_connections_at_once(tmp_path, server, workers, kind):
    """HAProxy once waited in a queue that nobody read; and at its path another agent may listen by now."""
    arrived, gate, good = threading.Event(), threading.Event(), server.replies["/jwks"]
    server.replies["/jwks"] = lambda handler: [arrived.set(), gate.wait(3 * PATIENCE), good(handler)][-1]
    listen = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path / 'spop.sock'}"
    settings = SETTINGS | {"workers": workers, "listen": listen}
    settings |= dict.fromkeys(("drain_timeout", "decision_timeout"), "60s")
    with ExitStack() as held:
        agent = held.enter_context(
            running(tmp_path, server, workers, agent=settings, keys={"timeout": "60s"})
        )
        held.callback(gate.set)
        assert arrived.wait(PATIENCE)
        sock = held.enter_context(connect(agent.address))
        sock.sendall(hello() + notify(question(token_of(server.url))))
        receive(sock)
        agent.process.send_signal(signal.SIGTERM)
        until(lambda: _refuses(agent.address))
        assert "stopping" in agent.command("run", "--take-over").stderr
        next_one = held.enter_context(listening.bind(agent.address))
        gate.set()
        assert receive(sock)["allow"] is True
        assert agent.process.wait(PATIENCE) == 0
        next_one.listen()
        assert not _refuses(agent.address)


def test_a_sighup_that_comes_together_with_sigterm_is_answered(tmp_path, server):
    with running(tmp_path, server, 1) as agent:
        for number in (signal.SIGSTOP, signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
            agent.process.send_signal(number)
        assert agent.line()["error"] == "the agent is stopping"
        assert agent.process.wait(PATIENCE) == 0


def test_while_another_agent_gets_ready_nothing_is_saved_and_that_is_said(tmp_path, server):
    """Nor is a revocation called in force: perhaps the other began before it."""
    with running(tmp_path, server, 2, live={"revocations": "revocations.toml"}) as agent:

        def refusing():
            asked = {"command": "revocations"}
            return local_socket.ask(tmp_path / "state" / "agent.sock", asked)["enforced"]["requests"]

        until(lambda: not refusing())
        with socket.socket(socket.AF_UNIX) as other:  # it takes what it is given, and never gets ready
            other.settimeout(PATIENCE)
            other.connect(str(tmp_path / "state" / "agent.sock"))
            other.sendall(b'{"command": "hand-over"}\n')
            _, descriptors, _, _ = socket.recv_fds(other, 1 << 16, 16)
            line = agent.reload(grants=[])
            assert (line["confirmed"], line["saved"]) == (2, False)
            assert line["save_error"] == "another agent is about to take over"
            assert "NOT SAVED" in as_text(agent.status())
            assert refusing() == line["save_error"]
            with pytest.raises(StartError, match="another agent is about to take over"):
                handover.take(tmp_path / "state" / "agent.sock", [agent.address])
            for descriptor in descriptors:
                os.close(descriptor)
        until(lambda: not refusing())
        until(lambda: "kept in" in as_text(agent.status()))
        assert agent.reload(grants=[])["saved"] is True


def test_what_is_not_on_the_disk_is_not_said_to_be_kept(tmp_path, server):
    state = tmp_path / "state"
    with running(tmp_path, server, 1) as agent:
        assert "kept in" in as_text(agent.status())

        def lost():  # again, because a save under way brings a file back
            for path in set(state.iterdir()) - {state / "agent.sock"}:
                path.unlink(missing_ok=True)
            return "NOT SAVED" in as_text(agent.status())

        until(lost)
        until(lambda: "kept in" in as_text(agent.status()))
        assert any(state.glob("part-*"))


def test_an_agent_that_hangs_up_cannot_be_taken_over_from(tmp_path):
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "agent.sock"))
        old.listen()
        with ThreadPoolExecutor() as pool:
            taken = pool.submit(handover.take, tmp_path / "agent.sock", ["127.0.0.1:9"])
            connection, _ = old.accept()
            connection.recv(1)
            connection.shutdown(socket.SHUT_WR)
            with pytest.raises(StartError, match="it ended the conversation; it may be stopping, try again"):
                taken.result(PATIENCE)
            connection.close()


def test_the_pid_of_a_running_agent_in_another_container_is_not_believed(tmp_path, server, monkeypatch):
    with running(tmp_path, server, 1) as agent:
        for namespace, believed in ((handover._namespace(), True), ("pid:[1]", False)):
            monkeypatch.setattr(handover, "_namespace", lambda name=namespace: name)
            taken = handover.take(tmp_path / "state" / "agent.sock", [agent.address])
            assert (taken._running is not None) is believed
            taken.forget()
            os.close(taken.lock)
            for sock in (taken.local, *taken.listeners):
                sock.close()


@as_root
def test_nothing_is_taken_over_from_a_stranger(tmp_path):
    """Its sockets would become the sockets of the agent."""
    let_in(tmp_path)
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        with played_by(STRANGER):
            sock.bind(str(path))
            sock.listen()
        with pytest.raises(StartError, match="user 65534 answers there"):
            handover.take(path, ["127.0.0.1:1"])
        path.chmod(0)
        with played_by(1), pytest.raises(StartError, match="cannot be taken over from: Permission denied"):
            handover.take(path, ["127.0.0.1:1"])


def _listens(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_worker_is_replaced_though_another_process_took_its_metrics_port(tmp_path, server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    metrics = {"listen": f"127.0.0.1:{port}"}
    with running(tmp_path, server, 1, metrics=metrics) as agent:
        [worker] = agent.children("iamroles-w")
        agent.process.send_signal(signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        until(lambda: not _listens(port))
        with socket.create_server(("127.0.0.1", port)):
            agent.process.send_signal(signal.SIGCONT)
            until(lambda: agent.children("iamroles-w") - {worker})

            assert agent.all_say(token_of(server.url)) == {"allow"}
            assert "serves without metrics" in agent.log()
        until(lambda: _listens(port))


def test_a_new_agent_says_that_another_process_has_its_metrics_port(tmp_path, server):
    with running(tmp_path, server, 1) as agent, socket.create_server(("127.0.0.1", 0)) as busy:
        agent.write(metrics={"listen": f"127.0.0.1:{busy.getsockname()[1]}"})
        old = agent.process
        agent.start("--take-over")
        assert old.wait(PATIENCE) == 0
        until(lambda: "serves without metrics" in agent.log())
        old.stdout.close()


def test_a_shared_directory_of_the_local_socket_is_told_of(tmp_path, server):
    (tmp_path / "shared").mkdir(0o777)
    (tmp_path / "shared").chmod(0o1777)
    settings = SETTINGS | {"workers": 1, "control_socket": "shared/agent.sock"}
    with running(tmp_path, server, 1, agent=settings) as agent:
        assert "can be changed by other users" in agent.log()


def test_take_over_where_nobody_runs_is_a_start(tmp_path, server):
    agent = Running(tmp_path, server, 1)
    policy = agent.start("--take-over")["policy"]
    until(lambda: agent.ask(token_of(server.url)) == "allow")
    agent.path.write_text("garbage")
    assert agent.command("run", "--state-dir", tmp_path / "state", "--take-over").returncode == 2
    agent.ended(signal.SIGKILL)
    assert agent.start("--take-over")["policy"] == policy
    assert agent.ended(signal.SIGTERM) == 0


def test_a_state_directory_that_was_tampered_with_stops_the_start(tmp_path, server):
    with running(tmp_path, server, 1) as agent:
        agent.ended(signal.SIGTERM)
        (part, *_) = (tmp_path / "state").glob("part-*")
        part.write_bytes(part.read_bytes() + b"x")
        part.chmod(0o600)
        done = agent.command("run")

    assert done.returncode == 3
    assert "does not hold what its name says" in done.stderr
    assert "move this one away" in done.stderr


def test_random_kids_cause_one_fetch_a_cooldown_whatever_the_number_of_workers(agent, server):
    assert agent.ask(token_of(server.url)) == "allow"
    before = server.counts["/jwks"]
    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(lambda n: agent.ask(forged(server, f"random-{n}")), range(64)))

    assert answers == {"key_unknown"}
    assert server.counts["/jwks"] - before == 1


def test_a_key_reaches_all_workers_by_one_fetch_and_outlives_its_issuer(agent, server, workers):
    assert agent.ask(token_of(server.url)) == "allow"
    server.json("/jwks", {"keys": [public_jwk(EC_KEY, "k1"), public_jwk(OTHER_EC_KEY, "k2")]})
    before, new = server.counts["/jwks"], forged(server, "k2")

    assert agent.all_say(new) == {"allow"}
    assert server.counts["/jwks"] - before == 1
    assert agent.status()["confirmed"] == workers

    server.replies["/jwks"] = lambda _: (500, {}, b"")
    assert agent.reload(keys={"refresh": "1h", "cooldown": "3s", "timeout": "2s"})["reloaded"] is True
    assert agent.all_say(token_of(server.url)) == {"allow"}


def test_a_question_under_way_is_answered_by_what_the_reload_put_in_force(tmp_path, server, workers):
    """It waits for a key set, through a reload that closes what it asks for."""
    arrived, gate = threading.Event(), threading.Event()
    good = server.replies["/jwks"]

    def held(handler):
        arrived.set()
        gate.wait(PATIENCE)
        return good(handler)

    server.replies["/jwks"] = held
    with running(tmp_path, server, workers, keys={"timeout": "15s"}) as agent:
        assert arrived.wait(PATIENCE)
        with connect(agent.address) as sock:
            sock.sendall(hello() + notify(question(token_of(server.url))))
            receive(sock)
            assert agent.reload(grants=[])["confirmed"] == workers
            gate.set()
            assert receive(sock)["reason"] == b"no_grant"


def test_health_checks_fail_while_nothing_can_be_decided(tmp_path, server):
    with running(tmp_path, server, 1, audit={"path": "/dev/full", "sync": "100ms"}) as agent:
        until(lambda: agent.health()[0] == 503)
        assert agent.health()[1]["problem"]
        until(lambda: bool(agent.status()["members"][1]["stats"].get("problem")))
        with connect(agent.address) as sock:
            sock.sendall(hello(healthcheck=(DataType.BOOL, True)))
            sock.settimeout(PATIENCE)
            answer = sock.recv(4096)
        assert answer[4] == 102  # AGENT-DISCONNECT
        told = agent.command("status")
        assert told.returncode == 1
        assert "CANNOT DECIDE" in told.stdout


def test_status_and_health_name_the_version_and_who_confirmed_it(agent, server, tmp_path, workers):
    agent.ask(token_of(server.url))
    line = agent.reload(grants=[])
    found = agent.status()
    assert (found["version"], found["policy"]) == (line["version"], line["policy"])
    assert (found["workers"], found["confirmed"]) == (workers, workers)
    assert [member["state"] for member in found["members"]] == ["serving"] * (workers + 1)
    until(lambda: agent.status()["members"][0]["stats"].get("keys", {}).get("corp", {}).get("kids") == 1)
    until(lambda: agent.health()[1]["confirmed"] == workers)
    code, health = agent.health()
    assert (code, health["version"], health["policy"]) == (200, line["version"], line["policy"])
    modes = [(tmp_path / "state" / name).stat().st_mode & 0o777 for name in ("agent.sock", "")]
    assert modes == [0o600, 0o700]
    told = agent.command("status")
    assert told.returncode == 0
    assert f"confirmed by {workers} of {workers} workers" in told.stdout
    assert "keys of corp: 1 keys" in told.stdout


def test_nobody_reads_standard_error(tmp_path, server, workers):
    """A pipe that is full and stays full."""
    reader, writer = os.pipe()
    os.write(writer, b"x" * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    with closing(Running(tmp_path, server, workers)) as agent:
        agent.start(stderr=writer)
        token = token_of(server.url)
        for _ in range(3):
            assert agent.all_say(token) == {"allow"}
            for _ in range(50):
                with connect(agent.address) as sock:
                    sock.sendall(b"\0\0\0\1\xff")  # each is a line of the log
            assert agent.reload()["confirmed"] == workers
        assert os.get_blocking(writer)
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_the_local_socket_says_what_it_does_not_know(tmp_path, server):
    with running(tmp_path, server, 1):
        path = tmp_path / "state" / "agent.sock"
        assert "known: " in local_socket.ask(path, {"command": "dance"})["error"]
        for garbage in (b"\n", b"[]\n", b"{\n", b"\xff\n", b'{"command": []}\n'):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(str(path))
                sock.sendall(garbage)
                assert b"error" in sock.recv(4096)
