"""The wire client and the lane against agents that are processes, each with one way of its own."""

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from itertools import islice
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from listening import listening
from mock_process import running

from iamroles_scenarios.base import lateness
from iamroles_scenarios.base.errors import (
    CheckFailed,
    SilenceError,
    StageError,
    TooSlow,
    UnreachableError,
    Untestable,
    WireError,
)
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.checks.wire import fuzz as fuzz_check
from iamroles_scenarios.checks.wire import notify, teardown
from iamroles_scenarios.checks.wire.teardown import launched
from iamroles_scenarios.declarations.results import Check, Verdict
from iamroles_scenarios.declarations.scenario import PlannedCheck
from iamroles_scenarios.engine import setups
from iamroles_scenarios.engine import wire_lane as lane
from iamroles_scenarios.wire import client, fuzz, fuzz_inputs
from iamroles_scenarios.wire.asker import Asker, _Round, decide
from iamroles_scenarios.wire.blunt import BEHAVIOURS
from iamroles_scenarios.wire.codec import DataType, Typed
from iamroles_scenarios.wire.frames import Frame, FrameType, encode_kv, variables
from iamroles_scenarios.wire.fuzz_inputs import Input, inputs
from iamroles_scenarios.wire.judge import JudgedConnection, connected
from iamroles_scenarios.wire.target import WireTarget


@contextmanager
def blunt(behaviour, *options):
    with running("wire.blunt", "--behaviour", behaviour, *options) as blunt:
        try:
            yield blunt.ready["address"]
        finally:
            blunt.process.kill()


def test_decide_gives_the_variables():
    with blunt("allow-after-timeout", "--delay", "0", "--backend", "orders") as address:
        found = decide(address, {"path": "/x"})

    assert found["allow"] is True
    assert found["backend"] == "orders"


def test_an_asker_pipelines_and_keeps_the_order_of_its_questions():
    with blunt("allow-after-timeout", "--delay", "0.2") as address, Asker(address) as asker:
        started = time.monotonic()
        found = asker.decide_many([{"path": f"/{number}"} for number in range(10)])
        # The blunt agent answers one after the other: ten times 0.2 s on one connection.
        assert len(found) == 10
        assert all(one["allow"] is True for one in found)
        assert time.monotonic() - started >= 2.0
        assert asker.decide({})["allow"] is True


def test_an_asker_reconnects_after_the_agent_came_back():
    with blunt("allow-after-timeout", "--delay", "0") as address, Asker(address) as asker:
        assert asker.decide({})["allow"] is True
    with pytest.raises(WireError):
        asker.decide({})
    with blunt("allow-after-timeout", "--delay", "0") as address:
        asker.address = address
        assert asker.decide({})["allow"] is True
    asker.close()


def test_a_question_that_waits_for_its_turn_fails_with_its_connection():
    asker, connection = Asker("", timeout=0.1), MagicMock()
    asker._connection, asker._pipelines = connection, False
    first, second = (_Round([b""]) for _ in range(2))
    for one in (first, second):
        asker._send(one, 1)
    connection.write.assert_called_once()
    asker._drop(WireError("it ended"))
    for one in (first, second):
        with pytest.raises(WireError, match="it ended"):
            one.result(variables, 0.1)


@pytest.mark.parametrize("behaviour", ["silent", "mute", "closes", "http", "garbage", "wrong-id", "half-ack"])
def test_decide_says_what_went_wrong_with_a_transcript(behaviour):
    with blunt(behaviour) as address, pytest.raises(WireError) as caught:
        decide(address, {"authorization": "Bearer secret-of-mine"}, timeout=0.5)

    assert ">> HAPROXY-HELLO" in str(caught.value)
    assert "secret-of-mine" not in str(caught.value)


def test_a_hello_that_the_judge_sends_long_after_it_connected_is_late(monkeypatch):
    now, transport = [1.0], MagicMock(is_closing=lambda: False)
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now[0]))
    connection = client.Connection(transport, client._Pipe(), client.Transcript(), 1.0)
    now[0] = 6.0

    with pytest.raises(TooSlow, match="the judge took"):
        asyncio.run(connection.send(client.hello()))
    asyncio.run(connection.send(client.hello()))  # another one may come at any time


def test_nobody_there():
    with pytest.raises(UnreachableError, match="cannot connect"):
        decide("127.0.0.1:1", {})
    with pytest.raises(UnreachableError, match="cannot connect"):
        decide("unix:/nonexistent/socket", {})


def test_an_action_that_is_none_is_an_error_of_the_agent():
    with blunt("bad-action-first") as address, pytest.raises(WireError, match="unknown action type 9"):
        decide(address, {})


QUICK = {
    *("wire.hello.first-frame", "wire.hello.version", "wire.ack.exactly-one", "wire.frame.byte-by-byte"),
    *("wire.message.lies", "wire.life.burst", "wire.bye.answered", "wire.fuzz.survives"),
}


@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS))
def test_each_check_ends_with_a_verdict_on_the_agent(behaviour):
    chosen = [check for check in plan(["wire"]) if check.id in QUICK]
    with blunt(behaviour, "--delay", "2") as address:
        results = lane.run(WireTarget(address, time_scale=0.1), chosen, replays=False)

    assert [result.check for result in results] == [check.id for check in chosen]
    judged = [result for result in results if not result.late]
    assert {result.verdict for result in judged} <= {Verdict.PASS, Verdict.FAIL}
    assert sum(result.verdict is not Verdict.PASS for result in results) >= len(chosen) // 2


def planned(run, name="wire.some"):
    return PlannedCheck(name, "wire", "title", (), function=Check(name, (), "wire", "title", run))


def test_a_run_that_is_over_begins_no_check():
    async def fine(_target):
        pass

    played = []
    chosen = [planned(fine, f"wire.{number}") for number in range(40)]
    found = lane.run(
        WireTarget("127.0.0.1:1"), chosen, on_result=played.append, over=lambda: len(played) >= 3
    )

    assert [result.check for result in found] == [check.id for check in chosen[: lane._CONCURRENCY]]


def test_a_fault_of_the_suite_is_never_the_agents():
    async def broken(_target):
        raise KeyError("a bug of ours")

    [result] = lane.run(WireTarget("127.0.0.1:1"), [planned(broken)])

    assert result.verdict is Verdict.HARNESS_ERROR
    assert "a bug of ours" in result.message


@pytest.mark.parametrize(("gap", "scales"), [(0.7, [1.0, 2.0]), (0.0, [1.0])])
def test_silence_is_judged_again_if_the_judge_was_late_and_only_then(gap, scales, monkeypatch):
    calls = []

    async def silent_once(target):
        calls.append(target.seconds(1.0))
        if len(calls) == 1:
            raise SilenceError("nothing came")

    seen = []
    monkeypatch.setattr(lateness, "delay", lambda *_: lateness.Delay(gap, 0.0))
    [result] = lane.run(WireTarget("127.0.0.1:1"), [planned(silent_once)], on_result=seen.append)

    assert calls == scales
    assert result.verdict is (Verdict.PASS if gap else Verdict.FAIL)
    assert (len(result.again), seen) == (len(scales) - 1, [result])


def test_a_slow_question_that_was_answered_at_once_is_followed_by_another():
    asked = []
    with blunt("allow-after-timeout", "--delay", "0") as address:
        slow = lambda _scale: asked.append({}) or {}  # noqa: E731
        target = WireTarget(address, 1.0, allowed={}, slow=slow, features=frozenset({"oidc"}))
        with pytest.raises(Untestable, match="answered at once"):
            asyncio.run(notify.pipeline(target))

    assert len(asked) == 3


def test_the_start_of_an_agent_has_a_time_of_its_own_and_its_processes_are_looked_at(monkeypatch):
    firsts = []

    @contextmanager
    def launch(settings, within):
        setups.uses(SimpleNamespace(host_pids=[7]))
        yield within

    async def fails(target):
        async with launched(target, {}) as within:
            raise CheckFailed(f"ready within {within:g} s")

    quiet = lateness.Delay(0.0, 0.0)
    monkeypatch.setattr(lane, "CHECK_DEADLINE", 0.0)
    monkeypatch.setattr(lateness, "delay", lambda _, pids, *__: firsts.extend(pids) or quiet)
    target = WireTarget("127.0.0.1:1", 2.0, pid=6, launch=launch, ready_within=60)
    [result] = lane.run(target, [planned(fails)])

    assert "(ready within 120 s)" in result.message
    assert firsts == [6, 7]


def test_the_process_of_an_agent_that_was_not_ready_in_time_is_looked_at(monkeypatch):
    async def fails(_target):
        error = StageError("not ready in time", {"agent": ""})
        error.began, error.pid = 1.0, 7
        raise error

    late = lambda _, pids, *__: lateness.Delay(0.0, 0.9 * (7 in pids))  # noqa: E731
    monkeypatch.setattr(lateness, "delay", late)
    [result] = lane.run(WireTarget("127.0.0.1:1", pid=6), [planned(fails)])

    assert result.verdict is Verdict.UNTESTABLE


def test_a_second_answer_that_is_no_frame_is_not_quiet():
    async def waits(address):
        async with connected(WireTarget(address)) as connection:
            await connection.must_be_quiet("all was answered")

    with (
        listening(lambda sock: sock.sendall(bytes(4)) or sock.recv(1)) as address,
        pytest.raises(WireError, match="a frame length of 0"),
    ):
        asyncio.run(waits(address))


@pytest.mark.parametrize(
    ("message", "right"), [("é" * 127, True), (b"\xc3" * 255, True), (b"\xc3" * 256, False), (7, False)]
)
def test_the_message_of_a_goodbye_is_a_string_of_up_to_255_bytes(message, right):
    said = {"status-code": 2, "message": Typed(DataType.INT32 if message == 7 else DataType.STRING, message)}
    frame = Frame(FrameType.AGENT_DISCONNECT, 0, 0, encode_kv(said))
    with nullcontext() if right else pytest.raises(CheckFailed):
        JudgedConnection.check_disconnect(MagicMock(fail=lambda why, **_: CheckFailed(why)), frame)


@pytest.mark.parametrize(
    "line",
    [
        *("x level=error msg=y", '{"level":50}', '{"level": "Error"}', "lvl: err", "2026\terror\tx.go:1"),
        *("2:00AM ERR y", "E1202 02:00:00 x.go:1] y", "[error] y", "<3>y", "ERROR y"),
    ],
)
def test_an_error_in_a_log_is_found_in_each_form(line):
    assert teardown._ERROR_LINE.search(line)
    for other in ("info", "INFO"):
        fine = re.sub(r"(?i)\berr(or)?\b", other, line).replace("<3>", "<6>").replace("50", "30")
        assert not teardown._ERROR_LINE.search(fine.replace("E1202", "I1202"))


# --- the fuzzer -------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_inputs_drawn_as_they_are_needed(monkeypatch):
    monkeypatch.setattr(fuzz_inputs, "_BATCH", 10)
    one, same, other = (list(islice(inputs(seed, 10**9), 60)) for seed in (7, 7, 8))

    assert one == same != other
    assert len({each.raw for each in one}) > 45


@pytest.mark.parametrize(
    ("raw", "whole"),
    [
        *((b"\x00\x00\x00\x07" + bytes(7), True), (b"\x00\x00\x00\x07" + bytes(6), False)),
        *((b"\x00\x00\x00\x06" + bytes(6), False), (b"\x00\x00\x00\x07" + bytes(7) + b"\x00", False)),
        (b"\xff\xff\xff\xff" + bytes(7), False),
    ],
)
def test_finishes(raw, whole):
    assert fuzz.finishes(raw) is whole


def test_a_failure_is_kept_and_replays(tmp_path):
    target_of = lambda address: WireTarget(address, time_scale=0.1)  # noqa: E731
    with blunt("allow-then-bad-action") as address:
        report = fuzz.FuzzReport(1, failure="it", suspects=[Input(b"\x01\x02"), Input(b"", greeted=False)])
        report.save(tmp_path / "kept.json")
        kept = fuzz.load(tmp_path / "kept.json")
        assert kept == report.suspects
        with pytest.raises(Exception, match=r"malformed|no longer serves"):
            asyncio.run(fuzz.replay(target_of(address), kept))


def test_inputs_that_cannot_be_kept_leave_the_verdict_as_it_is(tmp_path, monkeypatch):
    report = fuzz.FuzzReport(1, failure="it", suspects=[Input(b"\x01\x02")])
    for folder, word in ((tmp_path / "missing", "not kept: "), (tmp_path, "kept: "), (tmp_path, "kept: ")):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with pytest.raises(CheckFailed, match="it") as caught:
            fuzz_check._judged(report)
        assert caught.value.evidence.received.startswith(word)
    files = list(tmp_path.iterdir())
    assert [fuzz.load(file) for file in files] == [report.suspects] * 2


def test_what_is_no_file_of_the_fuzzer(tmp_path):
    (tmp_path / "x").write_text("{}")
    with pytest.raises(ValueError, match="not a file of the fuzzer"):
        fuzz.load(tmp_path / "x")


def test_the_fuzzer_leaves_nothing_where_it_runs(tmp_path):
    text = "from iamroles_scenarios.wire.fuzz_inputs import inputs; print(len(list(inputs(1, 100))))"

    told = subprocess.check_output([sys.executable, "-c", text], cwd=tmp_path, text=True)

    assert told == "100\n"
    assert list(tmp_path.iterdir()) == []
