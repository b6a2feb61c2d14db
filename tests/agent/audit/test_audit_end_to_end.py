"""The audit log of the real agent: written under questions, through a kill -9, proven and asked."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokens_support as support
import waiting
from click.testing import CliRunner
from spop_client import Client, until
from spop_transcript import check_message, context_message, notify

from iamroles_agent.spop.values import DataType
from iamroles_tools.commands.audit import audit

ACCOUNT = "111122223333"
READER, WRITER = (f"arn:aws:iam::{ACCOUNT}:role/{name}" for name in ("reader", "writer"))
PATIENCE = 20.0


def world(idp, log, sync):
    return {
        "version": 1,
        "agent": {"listen": "127.0.0.1:0"},
        "audit": {"path": str(log), "sync": sync, "required": True},
        "issuers": [
            {
                "name": "corp",
                "issuer": f"{idp}/corp",
                "jwks_uri": f"{idp}/keys",
                "insecure_http": True,
                "audiences": ["orders"],
                "algorithms": ["ES256"],
                "session_claim": "jti",
            }
        ],
        "roles": [{"name": "reader", "arn": READER}, {"name": "writer", "arn": WRITER}],
        "backends": [{"name": "orders", "servers": ["127.0.0.1:9"]}],
        "grants": [
            {"id": "R1", "roles": ["reader"], "methods": ["GET"], "path": "/orders", "backend": "orders"},
            {
                "id": "S1",
                "roles": ["writer"],
                "methods": ["GET"],
                "path": "/orders",
                "backend": "orders",
                "shadow": True,
            },
        ],
        "denies": [{"id": "D1", "roles": ["reader"], "path": "/orders/secret"}],
    }


@contextmanager
def running(path, *, stderr=subprocess.DEVNULL):
    process = subprocess.Popen(
        [sys.executable, "-m", "iamroles_agent", "agent", "run"],
        env=os.environ | {"IAMROLES_POLICY": str(path)},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        yield process, json.loads(process.stdout.readline() or "{}")["address"]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ask(address, questions):
    """Put questions (request id, token, path) one after the other and wait for each answer."""

    async def conversation():
        async with asyncio.timeout(PATIENCE):
            client = await Client.connect(address)
            answers = []
            for number, (request, token, path) in enumerate(questions, 1):
                check = check_message(
                    authorization=(DataType.STRING, f"Bearer {token}".encode()),
                    path=(DataType.STRING, path.encode()),
                )
                client.send(notify(context_message(request.encode()) + check, ids=(number, 1)))
                answers.append(await client.receive())
            await client.close()
            return answers

    return asyncio.run(conversation())


def run(*arguments):
    result = CliRunner().invoke(audit, [str(one) for one in arguments])
    return SimpleNamespace(code=result.exit_code, text=result.output)


def asked(log, *options):
    found = run("query", log, "--format", "json", *options)
    assert found.code == 0, found.text
    return [json.loads(line) for line in found.text.splitlines()]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """An agent that is asked, killed, started again, asked and ended; its log and the tokens."""
    directory = tmp_path_factory.mktemp("audit")
    log, path = directory / "audit.jsonl", directory / "world.json"
    with support.serving() as idp:
        idp.json("/keys", {"keys": [support.public_jwk(support.EC_KEY, "k1", "ES256")]})
        path.write_text(json.dumps(world(idp.url, log, "0s")))
        now = int(time.time())

        def token(**changes):
            claims = support.claims(iss=f"{idp.url}/corp", iat=now - 10, exp=now + 900, **changes)
            return support.mint(claims)

        alice = token(sub="alice", jti="s-alice", roles=[READER])
        bob = token(sub="bob", jti="s-bob", roles=[WRITER])
        stale = support.mint(support.claims(iss=f"{idp.url}/corp", iat=now - 900, exp=now - 60))
        first = [
            ("a-allow", alice, "/orders/1"),
            ("a-again", alice, "/orders/1"),
            ("a-denied", alice, "/orders/secret"),
            ("b-shadow", bob, "/orders/1"),
            ("x-stale", stale, "/orders/1"),
            ("x-path", alice, "/orders/../1"),
            *((f"burst-{number}", alice, f"/orders/{number}") for number in range(40)),
        ]
        with running(path) as (process, address):
            answers = ask(address, first)
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
        with running(path) as (process, address):
            answers += ask(address, [("after-crash", bob, "/orders/2")])
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
    requests = [request for request, _, _ in first] + ["after-crash"]
    return SimpleNamespace(log=log, answers=answers, requests=requests, tokens=[alice, bob, stale])


@pytest.fixture
def copy(story, tmp_path):
    """The log's lines, and a way to put down a changed log, its head beside it as an attacker leaves it."""
    lines = story.log.read_text().splitlines(keepends=True)
    path = tmp_path / "audit.jsonl"

    def write(changed):
        path.write_text("".join(changed))
        head = Path(f"{story.log}.head")
        if head.exists():
            Path(f"{path}.head").write_bytes(head.read_bytes())
        return path

    return SimpleNamespace(lines=lines, write=write)


def test_no_acknowledged_decision_is_lost_by_a_kill(story):
    """With `sync = "0s"` a decision waits for the disk: what was answered is on record."""
    assert all(line.startswith("ACK") for line in story.answers)

    recorded = [record["request"] for record in asked(story.log)]

    assert recorded == story.requests


def test_the_log_is_proven_whole_over_the_crash(story):
    proof = run("verify", story.log, "--complete")

    assert proof.code == 0, proof.text
    assert "WHOLE" in proof.text


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


def test_a_remembered_verdict_is_recorded_as_a_decision_of_its_own(story):
    (first,) = asked(story.log, "--request", "a-allow")
    (again,) = asked(story.log, "--request", "a-again")

    own = {"time", "seq", "request", "prev", "hash"}
    assert {key: value for key, value in first.items() if key not in own} == {
        key: value for key, value in again.items() if key not in own
    }


def test_a_shadow_rule_is_on_record_and_not_enforced(story):
    (record,) = asked(story.log, "--request", "b-shadow")

    assert (record["verdict"], record["reason"], record["shadow"]) == ("deny", "no_grant", ["S1"])


def test_no_token_is_on_record(story):
    text = story.log.read_text()

    assert [token for token in story.tokens if token[-24:] in text or token.split(".")[1] in text] == []


def _positions(lines):
    """Every line but the last: that one has no follower to betray its loss, the head file has."""
    return range(len(lines) - 1)


def test_each_removed_line_is_detected(copy):
    for at in _positions(copy.lines):
        proof = run("verify", copy.write(copy.lines[:at] + copy.lines[at + 1 :]), "--complete")
        assert proof.code == 1, f"line {at + 1} removed: {proof.text}"


def test_each_changed_line_is_detected(copy):
    for at, line in enumerate(copy.lines):
        changed = line.replace('"time":"2', '"time":"1', 1)
        assert changed != line
        proof = run("verify", copy.write([*copy.lines[:at], changed, *copy.lines[at + 1 :]]))
        assert proof.code == 1, f"line {at + 1} changed: {proof.text}"


def test_a_verdict_that_was_turned_is_detected_with_its_line(copy):
    at = next(number for number, line in enumerate(copy.lines) if '"a-denied"' in line)
    changed = copy.lines[at].replace('"verdict":"deny"', '"verdict":"allow"')
    proof = run("verify", copy.write([*copy.lines[:at], changed, *copy.lines[at + 1 :]]))

    assert proof.code == 1
    assert f"audit.jsonl:{at + 1}:" in proof.text


def test_each_pair_of_lines_that_changed_places_is_detected(copy):
    for at in _positions(copy.lines):
        swapped = [*copy.lines[:at], copy.lines[at + 1], copy.lines[at], *copy.lines[at + 2 :]]
        proof = run("verify", copy.write(swapped))
        assert proof.code == 1, f"lines {at + 1} and {at + 2} swapped: {proof.text}"


def test_a_repeated_line_is_detected(copy):
    for at in (0, len(copy.lines) // 2, len(copy.lines) - 1):
        proof = run("verify", copy.write([*copy.lines[: at + 1], *copy.lines[at:]]))
        assert proof.code == 1, f"line {at + 1} twice: {proof.text}"


def test_an_end_that_was_cut_off_is_detected_by_a_head_kept_elsewhere(story, copy):
    head = json.loads(copy.lines[-1])["hash"]
    cut = copy.write(copy.lines[:-1])

    assert run("verify", story.log, "--head", head).code == 0
    assert run("verify", cut, "--head", head).code == 1


def test_the_declared_window_bounds_what_a_kill_may_lose(tmp_path):
    """With a window, what was answered before it is on record whatever happens within it."""
    log, path = tmp_path / "audit.jsonl", tmp_path / "world.json"
    with support.serving() as idp:
        idp.json("/keys", {"keys": [support.public_jwk(support.EC_KEY, "k1", "ES256")]})
        path.write_text(json.dumps(world(idp.url, log, "500ms")))
        now = int(time.time())
        token = support.mint(support.claims(iss=f"{idp.url}/corp", iat=now, exp=now + 900, roles=[READER]))
        with running(path) as (process, address):
            ask(address, [(f"early-{number}", token, "/orders/1") for number in range(20)])
            deadline = time.monotonic() + PATIENCE
            while log.read_text().count('"early-') < 20 and time.monotonic() < deadline:
                time.sleep(0.02)
            waited = time.monotonic()
            ask(address, [(f"late-{number}", token, "/orders/1") for number in range(20)])
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
            assert waited < deadline, "the window has passed and the decisions are not on record"
        recorded = [record["request"] for record in asked(log)]

    assert recorded[:20] == [f"early-{number}" for number in range(20)]
    assert recorded[20:] == [f"late-{number}" for number in range(len(recorded) - 20)]
    assert run("verify", log).code == 0


async def _ask_until_cut(address, token, name, answered):
    """Ask one question after the other, half of them asked before, until the connection breaks."""
    client = await Client.connect(address)
    try:
        for number in range(100_000):
            check = check_message(
                authorization=(DataType.STRING, f"Bearer {token}".encode()),
                path=(DataType.STRING, f"/orders/{number if number % 2 else 0}".encode()),
            )
            client.send(notify(context_message(f"{name}-{number}".encode()) + check, ids=(number + 1, 1)))
            if (await client.receive()).startswith("ACK"):
                answered.append(f"{name}-{number}")
            else:
                return
    except (ConnectionError, EOFError, asyncio.IncompleteReadError):
        return
    finally:
        await client.close()


def _workers(parent):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" (iamroles-w")
            if rest and int(rest.rpartition(")")[2].split()[1]) == parent:
                found.append(int(pid))
    return found


def test_workers_killed_at_random_lose_nothing_acknowledged(tmp_path):
    """Several workers, new and remembered decisions, `sync = "0s"`: each answer is on record."""
    log, path = tmp_path / "audit.jsonl", tmp_path / "world.json"
    answered: list[str] = []

    async def bout(address, token, parent, number):
        askers = [
            asyncio.create_task(_ask_until_cut(address, token, f"{number}-{index}", answered))
            for index in range(8)
        ]
        enough = len(answered) + 150
        await until(lambda: len(answered) >= enough or all(task.done() for task in askers))
        for pid in _workers(parent):
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*askers)

    with support.serving() as idp:
        idp.json("/keys", {"keys": [support.public_jwk(support.EC_KEY, "k1", "ES256")]})
        configuration = world(idp.url, log, "0s")
        configuration["agent"]["workers"] = 2
        path.write_text(json.dumps(configuration))
        now = int(time.time())
        token = support.mint(support.claims(iss=f"{idp.url}/corp", iat=now, exp=now + 900, roles=[READER]))
        with running(path) as (process, address):
            for number in range(3):
                waiting.until(lambda: len(_workers(process.pid)) >= 2, PATIENCE, "the dead are not replaced")
                asyncio.run(bout(address, token, process.pid, number))
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0

    logs = [found for found in tmp_path.glob("audit*") if found.suffix != ".head"]
    proof = run("verify", *tmp_path.glob("audit*"), "--complete")
    assert proof.code == 0, proof.text
    recorded = [
        json.loads(line)["request"] for line in run("query", *logs, "--format", "json").text.splitlines()
    ]
    assert len(answered) > 300
    assert set(answered) <= set(recorded)
    assert len(recorded) == len(set(recorded))


def test_a_stalled_reader_of_standard_error_costs_decisions_and_never_an_answer(tmp_path):
    """With the audit on standard error: refused while it stalls, allowed when it reads again."""
    path = tmp_path / "world.json"
    with support.serving() as idp:
        idp.json("/keys", {"keys": [support.public_jwk(support.EC_KEY, "k1", "ES256")]})
        path.write_text(json.dumps(world(idp.url, Path("stderr"), "100ms")))
        now = int(time.time())
        token = support.mint(support.claims(iss=f"{idp.url}/corp", iat=now, exp=now + 900, roles=[READER]))
        reader, writer = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        with running(path, stderr=writer) as (process, address):
            os.close(writer)
            allowed, deadline = [], time.monotonic() + PATIENCE
            while (
                answers := ask(address, [(f"r{len(allowed)}", token, "/orders/1")])
            ) and "allow=True" in answers[0]:
                allowed.append(f"r{len(allowed)}")
                assert time.monotonic() < deadline
            captured: list[bytes] = []
            drain = threading.Thread(target=lambda: captured.extend(_all_of(reader)))
            drain.start()
            while "allow=True" not in ask(address, [("again", token, "/orders/1")])[0]:
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            drain.join(PATIENCE)
        log = tmp_path / "captured.log"
        log.write_bytes(b"".join(captured))

    assert run("verify", "--mixed", log, "--complete").code == 0
    recorded = [record["request"] for record in asked(log)]
    assert recorded == [*allowed, "again"]
    [gap] = asked(log, "--kind", "gap")
    assert gap["lost"] >= 1


def _all_of(reader):
    while text := os.read(reader, 1 << 16):
        yield text
    os.close(reader)
