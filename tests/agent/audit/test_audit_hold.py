"""The log under hostile hands and bad luck: bounded records, one writer, shared streams, disks that stall."""

import asyncio
import errno
import fcntl
import itertools
import json
import os
import stat
import string
from contextlib import suppress
from pathlib import Path

import pytest
from audit_support import ASKED, child, decided, lines, opened, records, requests, written
from counting import seconds
from hypothesis import given
from hypothesis import strategies as st
from invoking import ran, said
from strangers import STRANGER, as_root, let_in, played_by
from waiting import until

from iamroles_agent.audit import record
from iamroles_agent.audit.chain import SEALED, Head, Tree
from iamroles_agent.audit.file import LogFile, head_path, tree_of
from iamroles_agent.audit.record import prepare
from iamroles_agent.base.errors import StartError
from iamroles_agent.base.identity import Actor, Decision
from iamroles_agent.base.reasons import Reason
from iamroles_tools.audit.reading import in_order, readings
from iamroles_tools.audit.verify import verify

MOST = 4000
"""Bytes that a line takes at most, whatever a client sent."""
DECIDED = ("verdict", "status", "reason", "rule", "backend", "role", "principal", "policy")
SENT = ("method", "host", "path", "requested_role", "detail")


# Bounded records

LONG = 16000
hostile = st.one_of(
    st.text(alphabet=st.characters(max_codepoint=255), max_size=300),
    st.sampled_from(
        ["\x00", "é", '"', "\\", "a", "/", "eyJ", "%2e", "\U0001f600", "Bearer x", "iam-sts-v1."]
    ).flatmap(lambda unit: st.integers(0, LONG // len(unit)).map(lambda times: unit * times)),
)


def refused(log, request_id, roles, text, *, credential, actor=None, call=None, **about):
    """Record a refusal; `text` gives each field that a client fills, by its name."""
    fields = "detail", "role", "principal", "session", "issuer", "rule", "backend"
    who = {name: text(name) for name in fields} | {"credential": credential, "expires": 1 << 62}
    who |= {"actor": actor, "call": call} | dict.fromkeys(("roles", "unmapped", "shadow"), roles)
    asked = {name: text(name) for name in ("method", "host", "path", "requested_role")}
    asked |= {"src_port": 65535, "stream": 0xFFFFFFFF, "generation": 1 << 62, "enforced": False}
    refusal = Decision(allow=False, reason=Reason.TOKEN_NOT_YET_VALID, **who)
    decided(log, request_id, refusal, **asked, **about)


class TestBounds:
    def test_what_a_stranger_fills_is_what_docs_say(self, path):
        """36 bytes on the wire: the page once said that they take as many on disk."""
        log, nobody = opened(path), Decision(allow=False, reason=Reason.NO_CREDENTIALS)
        asked = {"host": "ab.example", "path": "/", "policy_version": "sha256:" + "0" * 16}
        shared = prepare(nobody, **(ASKED | asked))
        for _ in range(2):
            log.record(shared, "56e307bc-0d5b-4e0c-9d0b-0123456789ab", 40000, 12345)
        log.close()

        full, again = lines(path)[1:3]
        page = (Path(__file__).parents[3] / "docs" / "audit.md").read_text()
        assert f"{len(full)} bytes of audit ({len(again)} if it repeats)" in " ".join(page.split())

    @given(texts=st.lists(hostile, min_size=8, max_size=8), roles=st.lists(hostile, max_size=60))
    def test_a_line_is_short_whatever_was_sent_and_says_first_what_was_decided(
        self, tmp_path_factory, texts, roles
    ):
        path = tmp_path_factory.mktemp("bounds") / "audit.jsonl"
        log, text = opened(path), itertools.cycle(texts)
        about = {"src": "2001:db8:1234:5678:9abc:def0:1234:5678", "policy_version": "sha256:" + "0" * 64}
        about["credential"] = "sha256:0123456789abcdef"
        refused(log, next(text), tuple(roles), lambda name: next(text), **about)
        log.event(texts[0], {text[:40]: text for text in texts} | {"roles": roles})
        log.policy(texts[1], accepted=False, detail=texts[0])
        log.close()

        assert max(map(len, path.read_bytes().splitlines())) < MOST
        found = next(line for line in records(path) if "verdict" in line)
        order = list(found)
        first = [order.index(name) for name in DECIDED if name in found]
        after = [order.index(name) for name in SENT if name in found]
        assert max(first) < min(after)
        assert verify([path]).whole

    def test_the_longest_possible_line_keeps_to_the_bound(self, path, log):
        """Each field as long as it gets: what the bounds add up to, not what a search happens to find."""
        long = "!" * 900
        about = dict.fromkeys(("credential", "src", "policy_version"), long)
        about |= {"call": (long, long), "actor": Actor(long, long, True, ((long, long),) * 7)}
        refused(log, long, ("!" * 90,) * 90, lambda name: long * 10 if name == "path" else long, **about)
        log.close()

        assert 3000 < max(map(len, path.read_bytes().splitlines())) < MOST

    @pytest.mark.parametrize("unit", ["a", "é", "\x00", "eyJ", "a.", "%2e%2e"])
    def test_the_cost_of_a_text_grows_with_its_length_at_most(self, unit):
        def cost(length):
            text = unit * (length // len(unit))
            return seconds(lambda: [record.members({"path": text, "detail": text}) for _ in range(20)])

        assert cost(1 << 16) < 40 * cost(1 << 12)  # sixteen times the length; quadratic would be 256

    def test_the_same_refusal_again_takes_a_short_line(self, path, log):
        refusal = Decision(allow=False, reason=Reason.NO_CREDENTIALS)
        for number in range(50):
            decided(log, f"r{number}", refusal, path="/" + string.ascii_letters * 20)
        log.close()

        assert path.stat().st_size < 50 * 200
        [reading] = readings(in_order([path]))
        assert [found["reason"] for found in reading if "reason" in found][1:-1] == ["no_credentials"] * 50


def test_an_event_says_what_happened_about_what(path, log):
    log.event("replaced", {"worker": 1, "why": "no heartbeat", "absent": None}, request_id="r", src_port=7)
    log.event("full", {f"k{number}": "v" * 250 for number in range(20)})
    log.close()

    one, full = records(path, kind="event")
    assert (one["event"], one["request"], one["port"]) == ("replaced", "r", 7)
    assert one["about"] == {"worker": 1, "why": "no heartbeat"}
    assert len(full["about"]) + len(full["cut"]) >= 20
    shown = said("audit query", path, "--kind", "event")
    assert "EVENT  - as - from -  replaced worker=1 why=no heartbeat" in shown


# One writer


class TestOneWriter:
    def test_a_second_one_is_refused_by_any_name_also_while_the_log_is_being_rotated(
        self, tmp_path, path, log
    ):
        old, other = tmp_path / "audit.jsonl.1", tmp_path / "other.jsonl"
        other.symlink_to(path)
        assert log.flush()
        for name in (path, other, path):
            with pytest.raises(StartError, match=f"being written by process {os.getpid()}[.]"):
                opened(name)
            if name is other:
                path.rename(old)

        decided(log, "a")
        log.close()
        assert verify([path, old], complete=True).whole

    def test_who_may_only_read_the_log_cannot_keep_it_locked(self, path, log):
        log.close()
        held = [os.open(found, os.O_RDONLY) for found in (path, head_path(path))]
        for descriptor in held:
            fcntl.flock(descriptor, fcntl.LOCK_EX)

        opened(path).close()

        [lock] = path.parent.glob(".audit*")
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        for descriptor in held:
            os.close(descriptor)

    @as_root
    @pytest.mark.parametrize("made", ["a link", "a file"])
    def test_a_log_that_a_stranger_made_is_refused(self, tmp_path, path, made):
        let_in(tmp_path)
        with played_by(STRANGER):
            if made == "a link":
                path.symlink_to(tmp_path / "elsewhere")
            else:
                path.touch()
                path.chmod(0o666)

        with pytest.raises(StartError, match="user 65534"):
            opened(path)
        assert not (tmp_path / "elsewhere").exists()

    def test_one_that_takes_over_gets_a_file_of_its_own(self, tmp_path, path):
        old = [opened(path, worker=worker) for worker in (0, 1)]
        new = [opened(path, worker=worker, takeover=True) for worker in (0, 1)]
        for number, log in enumerate(old + new):
            decided(log, str(number))
            log.close()

        files = sorted(found.name for found in tmp_path.glob("*.jsonl"))
        assert files == ["audit.jsonl", "audit.t1.jsonl", "audit.w1.jsonl", "audit.w1.t1.jsonl"]
        proof = verify(tmp_path.iterdir(), complete=True)
        assert proof.whole, proof.findings
        assert {span.name for span in proof.spans.values()} == {
            "worker 0", "worker 0, turn 1", "worker 1", "worker 1, turn 1",
        }  # fmt: skip

    def test_a_batch_sealed_by_one_who_never_started_there_is_foreign(self, path, log):
        decided(log, "a")
        assert log.flush()
        log._journal._writer = b',"worker":0,"writer":"0badf00d"'
        decided(log, "b")
        log.close()

        assert "sealed by a writer who never started here" in str(verify([path]).findings[0])

    def test_what_a_crash_left_without_a_seal_is_kept_and_sealed(self, path, log):
        assert log.flush()
        head = head_path(path).read_bytes()
        for number in range(4):
            decided(log, str(number))
        log.close()
        whole = lines(path)
        path.write_bytes(b"".join(whole[:4]) + whole[4][:30])  # the crash came in the middle of the write
        head_path(path).write_bytes(head)
        assert not verify([path]).whole

        written(path, "after")

        proof = verify([path], complete=True)
        assert proof.whole, proof.findings
        assert requests(path) == ["0", "1", "2", "after"]
        assert "and 30 bytes of an unfinished record" in proof.notes[0]


# Crashes


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """A log in its batches, each with the head that its sync leaves."""
    path = tmp_path_factory.mktemp("crash") / "audit.jsonl"
    log = opened(path)
    for batch in range(5):
        for number in range(4):
            decided(log, f"{batch}-{number}")
        assert log.flush()
    log.close()
    found, batch, tree = [], b"", Tree()
    for line in lines(path):
        batch += line
        if SEALED.search(line):
            record = json.loads(line)
            tree = tree.grown(bytes.fromhex(record["hash"]))
            found.append((batch, Head(record["seq"], record["hash"], tree)))
            batch = b""
    return found


@given(data=st.data())
def test_after_a_crash_at_any_byte_nothing_whole_is_lost_and_the_chain_is_whole(
    tmp_path_factory, batches, data
):
    """The head may be of any earlier sync, half-written or absent; the file may end anywhere after it."""
    path = tmp_path_factory.mktemp("crashed") / "audit.jsonl"
    synced = data.draw(st.integers(0, len(batches)), label="batches synced")
    durable = sum(len(batch) for batch, _ in batches[:synced])
    whole = b"".join(batch for batch, _ in batches)
    end = data.draw(st.integers(durable, len(whole)), label="bytes written")
    path.write_bytes(whole[:end])
    if synced and data.draw(st.booleans(), label="head"):
        head = str(batches[synced - 1][1])
        head_path(path).write_text(head[: data.draw(st.sampled_from([len(head), len(head) // 2]))])

    written(path, "after")

    proof = verify(path.parent.iterdir(), complete=True)
    assert proof.whole, proof.findings
    kept = whole[: whole.rfind(b"\n", 0, end) + 1].splitlines()
    assert path.read_bytes().splitlines()[: len(kept)] == kept
    assert records(path)[-2]["request"] == "after"
    head = Head.parse(head_path(path).read_text())
    assert head is not None
    assert head.tree == tree_of(path)


# Streams


@pytest.fixture
def reader(path):
    """The log's path is a pipe of four pages; this is its reading end."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 16384)
    yield reader
    os.close(reader)


STREAM = """
    import os, sys
    from audit_support import child, decided, opened
    from iamroles_agent.base.identity import Decision

    children = []
    for worker in range(4):
        if not (child := os.fork()):
            log = opened(sys.argv[1], sync="20ms", worker=worker)
            for number in range(150):
                decided(
                    log, f"{worker}-{number}",
                    Decision(allow=False, principal="p" * 300, detail="d" * 300, roles=("r" * 60,) * 20),
                    host="h" * 400, path="/" + "x" * (37 * number),
                )
                if number % 10 == 0:
                    os.write(2, b"a line of the agent's own log\\n")
            log.close()
            os._exit(0)
        children.append(child)
    sys.exit(sum(os.waitpid(child, 0)[1] for child in children) != 0)
"""


@pytest.fixture
def captured(tmp_path):
    """Write a file as four workers write to one pipe."""
    process = child("stderr", STREAM)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0, text
    (tmp_path / "captured.log").write_text(text)
    return tmp_path / "captured.log"


def test_several_workers_on_one_pipe_tear_no_line(captured):
    texts = captured.read_bytes().splitlines()
    assert max(map(len, texts)) < MOST
    records = [json.loads(text) for text in texts if text.startswith(b"{")]
    asked = [found["request"] for found in records if "request" in found]
    assert sorted(asked) == sorted(f"{worker}-{number}" for worker in range(4) for number in range(150))
    assert {text for text in texts if not text.startswith(b"{")} == {b"a line of the agent's own log"}
    proof = verify([captured], mixed=True, complete=True)
    assert proof.whole, proof.findings[:3]
    assert sorted(span.worker for span in proof.spans.values()) == [0, 1, 2, 3]
    assert proof.skipped == 60
    assert "60 other lines skipped" in said("audit verify --mixed -", input=captured.read_bytes())
    ran("audit verify", captured, code=1)
    found = said("audit query --request 3-7 --format json", captured)
    assert json.loads(found)["path"].startswith("/xxx")


def test_a_stream_cut_or_added_to_is_found(captured):
    texts = lines(captured)
    records = [at for at, text in enumerate(texts) if text.startswith(b"{")]
    last = {json.loads(texts[at])["writer"]: at for at in records}  # only a head shows that an end is gone
    for at in sorted(set(records[5:-5:41]) - set(last.values())):
        captured.write_bytes(b"".join(texts[:at] + texts[at + 1 :]))
        assert not verify([captured], mixed=True, complete=True).whole, at
        captured.write_bytes(b"".join([*texts[:at], texts[records[3]], *texts[at:]]))
        assert not verify([captured], mixed=True).whole, at


def test_workers_share_a_pipe_that_audit_path_names(path, reader):
    logs = [opened(path, worker=worker) for worker in (0, 1)]
    for number, log in enumerate(logs):
        decided(log, str(number))
        log.close()

    found = [json.loads(line).get("request", "") for line in os.read(reader, 1 << 16).splitlines()]
    assert sorted(found) == [*[""] * 4, "0", "1"]


# Disks


def drained(reader):
    text = b""
    with suppress(BlockingIOError):
        while more := os.read(reader, 1 << 16):  # empty without a writer
            text += more
    return text


def asked(log, count):
    """Record this many decisions; the tasks that wait until they are on disk."""
    return [decided(log, str(n)) and asyncio.ensure_future(log.confirmed()) for n in range(count)]


async def drained_until(condition, reader):
    text = b""
    while not condition():
        text += drained(reader)
        await asyncio.sleep(0.001)
    return text


class TestDurable:
    async def test_only_the_decision_waits_for_the_disk(self, path, reader):
        """The disk stands still: the decisions wait, the loop does not; the disk goes on: so do they."""
        log = opened(path, sync="0s")
        assert log.durable
        tasks = asked(log, 300)
        while not any(task.done() for task in tasks):  # noqa: ASYNC110 - the loop must turn
            await asyncio.sleep(0)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not all(task.done() for task in tasks)  # the pipe holds a quarter of them

        text = await drained_until(lambda: all(task.done() for task in tasks), reader)
        assert all(task.result() for task in tasks)
        log.close()
        text += drained(reader)
        found = [found["request"] for found in map(json.loads, text.splitlines()) if "request" in found]
        assert found == [str(number) for number in range(300)]

    async def test_those_who_ask_while_the_disk_is_busy_share_the_next_write(self, path):
        log = opened(path, sync="0s")
        assert all(await asyncio.gather(*asked(log, 500)))
        on_disk = requests(path)
        log.close()

        assert on_disk == [str(number) for number in range(500)]
        assert sum(bool(SEALED.search(line)) for line in lines(path)) < 250

    async def test_a_disk_that_does_not_answer_refuses_and_leaves_the_loop_free(
        self, path, reader, monkeypatch
    ):
        monkeypatch.setattr("iamroles_agent.audit.outage.PATIENCE", 0.3)
        log = opened(path, sync="0s")
        tasks, turns = asked(log, 300), 0
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            turns += 1
        assert turns > 100
        assert not tasks[-1].result()
        assert log.refusing
        assert not decided(log, "refused")

        text = await drained_until(lambda: not log.refusing, reader)
        [after] = asked(log, 1)
        text += await drained_until(after.done, reader)
        assert after.result()
        log.close()
        text += drained(reader)
        found = list(map(json.loads, text.splitlines()))
        [gap] = [line for line in found if line.get("kind") == "gap"]
        assert gap["lost"] == 1
        overruled = next(line for line in found if line["seq"] == gap["overruled"])
        assert int(overruled["request"]) == [task.result() for task in tasks].index(False)


@pytest.mark.parametrize(("on_error", "answered"), [("deny", False), ("allow", True)])
def test_a_disk_that_does_not_answer_within_the_window_is_an_error(
    path, reader, monkeypatch, on_error, answered
):
    """With a window, too: what it promises is not kept in silence."""
    monkeypatch.setattr("iamroles_agent.audit.outage.PATIENCE", 0.2)
    log = opened(path, on_error=on_error)
    for number in range(300):
        assert decided(log, str(number))
    until(lambda: log.state().failing)

    assert decided(log, "while it stands") is answered
    assert log.refusing is not answered
    text = b""
    while log.state().failing:
        text += drained(reader)
    assert decided(log, "after")
    while not log.flush(0):
        text += drained(reader)
    log.close()
    text += drained(reader)
    assert b"has not answered for" in text if on_error == "deny" else b"gap" not in text


@pytest.mark.parametrize("error", [errno.EROFS, errno.EIO, errno.ENOSPC, errno.EPIPE])
def test_a_disk_that_refuses(monkeypatch, error, path, log):
    decided(log, "before")
    assert log.flush()
    write = LogFile.write

    def refused(self, data):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(LogFile, "write", refused)
    decided(log, "acknowledged")
    until(lambda: log.refusing)
    assert not decided(log, "refused")
    monkeypatch.setattr(LogFile, "write", write)
    until(lambda: not log.refusing)
    assert decided(log, "after")
    log.close()

    assert requests(path) == ["before", "acknowledged", "after"]
    [gap] = records(path, kind="gap")
    assert (gap["lost"], gap["detail"]) == (1, os.strerror(error))
    assert verify([path], complete=True).whole
