"""The audit log of the real agent: written under questions, through a kill -9, proven and asked."""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import waiting
from invoking import ran, said
from policies import arn, deny, grant, role
from programs import PATIENCE, running, world
from running_agent import question
from spop_client import Client, until
from spop_transcript import context_message, notify
from tokens_support import token_of

READER, WRITER = arn("reader"), arn("writer")


def policy(idp, log, sync, workers=1):
    return world(
        idp.url,
        agent={"listen": "127.0.0.1:0", "workers": workers},
        audit={"path": str(log), "sync": sync, "required": True},
        roles=[role("reader"), role("writer")],
        grants=[
            grant("R1", "reader", "GET", "/orders", "orders"),
            grant("S1", "writer", "GET", "/orders", "orders", shadow=True),
        ],
        denies=[deny("D1", "reader", "/orders/secret")],
    )


async def answer_of(client, number, request, token, path):
    client.send(notify(context_message(request.encode()) + question(token, path), ids=(number, 1)))
    return await client.receive()


def ask(agent, questions):
    """Put questions (request id, token, path) one after the other and wait for each answer."""

    async def conversation():
        async with asyncio.timeout(PATIENCE):
            client = await Client.connect(agent.ready["address"])
            answers = [await answer_of(client, number, *one) for number, one in enumerate(questions, 1)]
            await client.close()
            return answers

    return asyncio.run(conversation())


def asked(log, *options):
    found = said("audit query --format json", log, *options)
    return [json.loads(line) for line in found.splitlines()]


@pytest.fixture(scope="module")
def story(tmp_path_factory, idp):
    """An agent that is asked, killed, started again, asked and ended; its log and the tokens."""
    directory = tmp_path_factory.mktemp("audit")
    log = directory / "audit.jsonl"
    alice = token_of(idp.url, sub="alice", jti="s-alice", roles=[READER])
    bob = token_of(idp.url, sub="bob", jti="s-bob", roles=[WRITER])
    stale = token_of(idp.url, iat=int(time.time()) - 900, exp=int(time.time()) - 60)
    first = [
        ("a-allow", alice, "/orders/1"),
        ("a-again", alice, "/orders/1"),
        ("a-denied", alice, "/orders/secret"),
        ("b-shadow", bob, "/orders/1"),
        ("x-stale", stale, "/orders/1"),
        ("x-path", alice, "/orders/../1"),
        *((f"burst-{number}", alice, f"/orders/{number}") for number in range(40)),
    ]
    with running(directory, policy(idp, log, "0s")) as agent:
        answers = ask(agent, first)
        agent.ended(signal.SIGKILL)
    with running(directory, policy(idp, log, "0s")) as agent:
        answers += ask(agent, [("after-crash", bob, "/orders/2")])
        assert agent.ended(signal.SIGTERM) == 0
    requests = [request for request, _, _ in first] + ["after-crash"]
    return SimpleNamespace(log=log, answers=answers, requests=requests, tokens=[alice, bob, stale])


UNIT = Path(__file__).parents[3] / "packaging" / "systemd" / "haproxy-iam-roles.service"


def test_under_the_unit_the_group_may_read_the_log_and_nothing_else(tmp_path, idp):
    own = tmp_path / "own"
    own.mkdir()
    found = re.search(r"^UMask=(\d+)$", UNIT.read_text(), re.MULTILINE)
    about = policy(idp, own / "audit.jsonl", "1s")
    about["agent"] |= {"listen": f"unix:{own}/agent.sock", "state_dir": str(own / "state")}

    with running(tmp_path, about, popen=subprocess.Popen, umask=int(found[1], 8)):
        modes = {path.name: path.stat().st_mode & 0o777 for path in own.iterdir()}

    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {
        "audit.jsonl": 0o640,
        "audit.jsonl.head": 0o640,
    }
    assert {"agent.sock", "state", ".audit.jsonl.lock"} < set(modes)


def test_no_acknowledged_decision_is_lost_by_a_kill(story):
    """With `sync = "0s"` a decision waits for the disk: what was answered is on record."""
    assert all(line.startswith("ACK") for line in story.answers)
    assert [record["request"] for record in asked(story.log)] == story.requests
    assert "WHOLE" in said("audit verify --complete", story.log)
    text = story.log.read_text()
    assert [token for token in story.tokens if token[-24:] in text or token.split(".")[1] in text] == []


def test_who_did_what_when_with_which_role(story):
    (allowed,) = asked(story.log, "--request", "a-allow")
    (denied,) = asked(story.log, "--request", "a-denied")

    assert (allowed["principal"], allowed["session"], allowed["role"]) == ("alice", "s-alice", READER)
    assert (allowed["rule"], allowed["backend"], allowed["verdict"]) == ("R1", "orders", "allow")
    assert (allowed["path"], allowed["method"], allowed["src"]) == ("/orders/1", "GET", "192.0.2.1")
    assert (denied["reason"], denied["rule"], denied["verdict"]) == ("denied_by_rule", "D1", "deny")
    assert {record["request"] for record in asked(story.log, "--who", "bob")} == {"b-shadow", "after-crash"}
    assert len(asked(story.log, "--verdict", "allow", "--role", "reader")) == 42
    assert [record["request"] for record in asked(story.log, "--reason", "token_expired")] == ["x-stale"]
    assert asked(story.log, "--who", "mallory") == []

    (shadowed,) = asked(story.log, "--request", "b-shadow")
    assert (shadowed["verdict"], shadowed["reason"], shadowed["shadow"]) == ("deny", "no_grant", ["S1"])


def test_a_remembered_verdict_is_recorded_as_a_decision_of_its_own(story):
    (first,) = asked(story.log, "--request", "a-allow")
    (again,) = asked(story.log, "--request", "a-again")

    own = dict.fromkeys(("time", "seq", "request", "prev", "hash"))
    assert first | own == again | own


@pytest.fixture
def token(idp):
    return token_of(idp.url, roles=[READER])


def test_the_declared_window_bounds_what_a_kill_may_lose(tmp_path, idp, token):
    """With a window, what was answered before it is on record whatever happens within it."""
    log = tmp_path / "audit.jsonl"
    with running(tmp_path, policy(idp, log, "500ms")) as agent:
        ask(agent, [(f"early-{number}", token, "/orders/1") for number in range(20)])
        waiting.until(lambda: log.read_text().count('"early-') >= 20, why="the window has passed")
        ask(agent, [(f"late-{number}", token, "/orders/1") for number in range(20)])
        agent.ended(signal.SIGKILL)
    recorded = [record["request"] for record in asked(log)]

    assert recorded[:20] == [f"early-{number}" for number in range(20)]
    assert recorded[20:] == [f"late-{number}" for number in range(len(recorded) - 20)]
    ran("audit verify", log)


async def _ask_until_cut(address, token, name, answered):
    """Ask one question after the other, half of them asked before, until the connection breaks."""
    client = await Client.connect(address)
    with contextlib.suppress(ConnectionError, EOFError, asyncio.IncompleteReadError):
        for number in range(100_000):
            path = f"/orders/{number if number % 2 else 0}"
            answer = await answer_of(client, number + 1, f"{name}-{number}", token, path)
            if not answer.startswith("ACK"):
                break
            answered.append(f"{name}-{number}")
    await client.close()


def test_workers_killed_at_random_lose_nothing_acknowledged(tmp_path, idp, token):
    """Several workers, new and remembered decisions, `sync = "0s"`: each answer is on record."""
    answered = []

    async def bout(agent, number):
        askers = [
            asyncio.create_task(_ask_until_cut(agent.ready["address"], token, f"{number}-{index}", answered))
            for index in range(8)
        ]
        enough = len(answered) + 150
        await until(lambda: len(answered) >= enough or all(task.done() for task in askers))
        for pid in agent.children("iamroles-w"):
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*askers)

    with running(tmp_path, policy(idp, tmp_path / "audit.jsonl", "0s", workers=2)) as agent:
        for number in range(3):
            waiting.until(lambda: len(agent.children("iamroles-w")) >= 2, why="the dead are not replaced")
            asyncio.run(bout(agent, number))
        assert agent.ended(signal.SIGTERM) == 0

    ran("audit verify --complete", *tmp_path.glob("audit*"))
    logs = [found for found in tmp_path.glob("audit*") if found.suffix != ".head"]
    recorded = [record["request"] for record in asked(*logs)]
    assert len(answered) > 300
    assert set(answered) <= set(recorded)
    assert len(recorded) == len(set(recorded))


def test_a_stalled_reader_of_standard_error_costs_decisions_and_never_an_answer(tmp_path, idp, token):
    """With the audit on standard error: refused while it stalls, allowed when it reads again."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    with running(tmp_path, policy(idp, "stderr", "100ms"), stderr=writer) as agent:
        os.close(writer)

        def allows(request):
            return "allow=True" in ask(agent, [(request, token, "/orders/1")])[0]

        allowed, captured, deadline = [], [], time.monotonic() + PATIENCE
        while allows(f"r{len(allowed)}"):
            allowed.append(f"r{len(allowed)}")
            assert time.monotonic() < deadline
        drain = threading.Thread(target=lambda: captured.extend(_all_of(reader)))
        drain.start()
        waiting.until(lambda: allows("again"))
        assert agent.ended(signal.SIGTERM) == 0
        drain.join(PATIENCE)
    log = tmp_path / "captured.log"
    log.write_bytes(b"".join(captured))

    ran("audit verify --mixed --complete", log)
    recorded = [record["request"] for record in asked(log)]
    assert recorded == [*allowed, "again"]
    [gap] = asked(log, "--kind", "gap")
    assert gap["lost"] >= 1


def _all_of(reader):
    while text := os.read(reader, 1 << 16):
        yield text
    os.close(reader)
