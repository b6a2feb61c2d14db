"""What `iamroles revoke`, status, health and metrics say is in force, with an agent that runs, as root and as
another user.
"""

import asyncio
import errno
import json
import os
import re
import signal
import socket
import threading
import urllib.request
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from types import SimpleNamespace
from unittest import mock

import pytest
from invoking import ran
from programs import IAMROLES, PATIENCE, Program, world
from strangers import STRANGER, as_root, let_in, played_by
from waiting import until

from iamroles_agent.base.files import stamp
from iamroles_agent.control.document import Document
from iamroles_agent.live import revocations
from iamroles_agent.processes import local_socket, watch

MISSING = "/nonexistent/master.sock"


class Agent(Program):
    """An agent with a file of revocations, in a directory that other users reach."""

    def __init__(self, directory, **live):
        self.path = directory / "world.json"
        super().__init__(directory, *IAMROLES, "agent", "run", "--config", str(self.path))
        settings = {"listen": "127.0.0.1:0", "workers": 2, "state_dir": "state", "drain_timeout": "1s"}
        live = {"revocations": "r.toml", **live}
        self.path.write_text(json.dumps(world(agent=settings, live=live, metrics={"listen": "127.0.0.1:0"})))
        self.start()
        self.ready = self.line()

    def revoke(self, words, code):
        return ran(f"revoke {words} --config", self.path, code=code).output

    def health(self):
        urls = re.findall(r"metrics on (\S+)/metrics", self.log())
        return [json.load(urllib.request.urlopen(f"{url}/healthz")) for url in urls]

    def metrics(self, name):
        """The numbers of this name in all workers."""
        urls = re.findall(r"metrics on (\S+)", self.log())
        texts = [urllib.request.urlopen(url).read().decode() for url in urls]
        return [
            float(line.split()[-1]) for text in texts for line in text.splitlines() if line.startswith(name)
        ]


@pytest.fixture
def start(tmp_path):
    """Start an agent; it is ended at the end."""
    made = []

    def begin(**live):
        made.append(Agent(tmp_path, **live))
        return made[-1]

    yield begin
    for agent in made:
        agent.close()


def test_without_a_master_socket_open_streams_are_not_reached_and_that_is_said(start):
    agent = start()

    said = agent.revoke("add --principal eve --id a", 0).splitlines()

    assert said[-2] == "in force for new requests in all 2 workers"
    assert said[-1].startswith("not in force for open streams: live.master_socket is not set")
    status = ran("agent status --config", agent.path).output
    assert "open streams: not in force: live.master_socket is not set" in status
    assert f"on {agent.ready['address']}," in status


def test_a_master_that_does_not_answer_is_a_revocation_that_is_not_in_force(start):
    agent = start(master_socket=MISSING)

    for words in ("add --principal eve --id a", "undo a"):
        said = agent.revoke(words, 1)
        assert "in force for new requests in all 2 workers" in said
        assert f"NOT in force for open streams: {MISSING}: No such file or directory" in said
    assert f"open streams: NOT in force: {MISSING}" in ran("agent status --config", agent.path, code=1).output
    until(lambda: all(MISSING in about["streams"] for about in agent.health()))
    assert {(about["healthy"], about["requests"]) for about in agent.health()} == {(True, "in force")}
    assert agent.metrics('iamroles_in_force{for="requests"}') == [1, 1]
    assert agent.metrics('iamroles_in_force{for="streams"}') == [0, 0]
    assert sum(agent.metrics("iamroles_live_unreachable")) == 1


def test_a_wrong_file_is_not_in_force_in_status_and_health(start):
    agent = start()
    agent.revoke("add --principal eve --id a", 0)
    (agent.directory / "r.toml").write_text("")

    until(lambda: "r.toml: is empty" in ran("agent status --config", agent.path, code=(0, 1)).output)

    assert "requests: NOT in force" in ran("agent status --config", agent.path, code=1).output
    until(lambda: all("r.toml: is empty" in about["requests"] for about in agent.health()))


def test_a_fifo_in_place_of_a_file_holds_nothing_up(start):
    agent = start()
    os.mkfifo(agent.directory / "r.toml")
    until(lambda: "it is a FIFO" in agent.log())
    (agent.directory / "r.toml").unlink()
    assert "in force for new requests" in agent.revoke("add --principal eve", 0)

    sound = agent.path.rename(agent.directory / "sound")
    os.mkfifo(agent.path)
    assert "it is a FIFO" in agent.reload()["error"]
    sound.replace(agent.path)
    assert agent.reload()["reloaded"] is True


@pytest.mark.parametrize("what", ["empty", "FIFO", "directory"])
def test_an_agent_does_not_start_with_a_file_that_it_cannot_read(start, tmp_path, what):
    file = tmp_path / "r.toml"
    {"empty": file.touch, "FIFO": partial(os.mkfifo, file), "directory": file.mkdir}[what]()

    with pytest.raises(AssertionError, match=rf"the program ended.*r\.toml.*{what}"):
        start()


@as_root
def test_who_may_not_ask_the_agent_is_not_said_that_none_runs(start, tmp_path):
    let_in(tmp_path)
    agent = start()
    agent.revoke("list", 0)  # a stranger may not be able to import the command
    with played_by(STRANGER):
        said = agent.revoke("add --principal eve", 1)
    assert re.search("(?s)NOT known to be in force.*Permission denied", said)


def test_an_agent_whose_parent_stands_still_is_not_said_to_be_absent(start, monkeypatch):
    monkeypatch.setattr(local_socket, "ask", partial(local_socket.ask, timeout=1.0))
    agent = start()
    os.kill(agent.process.pid, signal.SIGSTOP)
    assert "NOT" in agent.revoke("add --principal eve", 1)
    for pid in agent.children("iamroles-fet"):
        os.kill(pid, signal.SIGKILL)

    assert "NOT known to be in force" in agent.revoke("add --principal eve", 1)
    os.kill(agent.process.pid, signal.SIGCONT)


def test_an_agent_whose_socket_was_removed_is_not_said_to_be_absent(start):
    agent = start()
    (agent.directory / "state" / "agent.sock").unlink()

    assert f"process {agent.process.pid} uses" in agent.revoke("add --principal eve", 1)


def configured(directory):
    path = directory / "w.toml"
    path.write_text('[agent]\nstate_dir = "s"\n[live]\nrevocations = "r.toml"\n')
    return path


def answering(path, answer):
    """Listen at a path, and answer one question."""
    path.parent.mkdir(mode=0o755, exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def meet():
        peer, _ = server.accept()
        with peer, server, suppress(OSError):
            peer.recv(4096)
            peer.sendall(answer)

    threading.Thread(target=meet, daemon=True).start()


@pytest.mark.parametrize("answer", [b"", b"garbage\n", b"[]\n", b'{"settled": true}\n', b'{"error": "no"}\n'])
def test_an_answer_that_makes_no_sense_is_not_taken_for_an_absent_agent(tmp_path, answer):
    answering(tmp_path / "s" / "agent.sock", answer)

    assert "NOT" in ran("revoke add --principal eve --config", configured(tmp_path), code=1).output


@pytest.mark.parametrize("variable", [False, True])
def test_the_agent_is_asked_at_the_state_directory_of_its_command_line(tmp_path, monkeypatch, variable):
    path, state = configured(tmp_path), tmp_path / "elsewhere"
    answering(state / "agent.sock", b'{"error": "asked"}\n')
    if variable:
        monkeypatch.setenv("IAMROLES_STATE_DIR", str(state))
    words = () if variable else ("--state-dir", state)

    assert "NOT in force: asked" in ran("revoke add --principal eve --config", path, *words, code=1).output


@as_root
def test_another_user_who_answers_is_not_believed(tmp_path):
    path = configured(tmp_path)
    (tmp_path / "s").mkdir()
    let_in(tmp_path)
    (tmp_path / "s").chmod(0o777)
    with played_by(STRANGER):
        answering(tmp_path / "s" / "agent.sock", b"{}\n")

    said = ran("revoke add --principal eve --config", path, code=1).output

    assert f"user {STRANGER} answers there" in said


@pytest.mark.parametrize("kind", ["absent", "refused"])
def test_only_a_socket_that_is_absent_or_refuses_is_no_agent(tmp_path, kind):
    path = configured(tmp_path)
    if kind == "refused":
        (tmp_path / "s").mkdir()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "s" / "agent.sock"))

    assert "No agent answers" in ran("revoke add --principal eve --config", path).output
    assert "eve" in (tmp_path / "r.toml").read_text()


@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"), MemoryError(), KeyError()])
async def test_what_failed_for_another_reason_than_the_file_is_tried_again(tmp_path, monkeypatch, fault):
    """A lack of descriptors at the moment of the look once kept a revocation out until the next edit."""
    path, link = tmp_path / "r.toml", FakeLink()
    monkeypatch.setattr(watch, "_AGAIN", 0.01)
    revocations.write(path, revocations.Revocations((revocations.Revocation(id="a", roles=["a"]),)))
    read = mock.Mock(side_effect=chain([fault], repeat(path.read_bytes())))
    monkeypatch.setattr(revocations, "files", SimpleNamespace(read=read))
    encode = mock.Mock(side_effect=chain([MemoryError], repeat(mock.DEFAULT)), wraps=watch.to_part)
    monkeypatch.setattr(watch, "to_part", encode)
    task = asyncio.get_running_loop().create_task(watch.Watch(path, link).run())
    await asyncio.wait_for(link.done.wait(), PATIENCE)
    task.cancel()

    assert (link.outcomes, read.call_count > 2) == ([], True)


async def test_a_file_in_the_place_of_one_that_could_not_be_read_is_read_at_once(tmp_path, monkeypatch):
    path, link = tmp_path / "r.toml", FakeLink()
    monkeypatch.setattr(watch, "_AGAIN", 1e9)
    os.mkfifo(path)
    task = asyncio.get_running_loop().create_task((watching := watch.Watch(path, link)).run())
    while not watching.problem:  # noqa: ASYNC110 - it does not say when it has looked
        await asyncio.sleep(0.01)
    path.unlink()
    revocations.write(path, revocations.Revocations())
    while len(link.outcomes) == 2:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.01)
    task.cancel()


async def test_a_share_that_does_not_answer_is_a_problem_until_it_does_and_holds_up_nothing_else(
    tmp_path, monkeypatch
):
    path, answers = tmp_path / "r.toml", threading.Event()
    revocations.write(path, revocations.Revocations())
    monkeypatch.setattr(watch, "_AGAIN", 0.0)
    monkeypatch.setattr(watch, "stamp", lambda where: answers.wait(PATIENCE) and stamp(where))
    task = asyncio.get_running_loop().create_task((watching := watch.Watch(path, link := FakeLink())).run())
    while "does not answer" not in watching.problem:  # noqa: ASYNC110 - it does not say when it is late
        await asyncio.sleep(0.01)
    assert not (await watching.answer({}))["settled"]
    monkeypatch.setattr(watch, "_AGAIN", 0.1)
    answers.set()
    await asyncio.wait_for(link.done.wait(), PATIENCE)
    task.cancel()


class FakeLink:
    """The parent refuses the first proposal: no worker prepared it in time."""

    def __init__(self):
        self.document, self.done = Document(), asyncio.Event()
        self.outcomes = [{"done": False, "error": "no worker prepared it"}, {"done": True, "confirmed": 1}]

    async def propose(self, _edits):
        if len(self.outcomes) == 1:
            self.done.set()
        return self.outcomes.pop(0)
