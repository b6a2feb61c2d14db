"""What the host was late for is neither held against an agent nor for it."""

import ast
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import stopped_judge
from invoking import finished
from waiting import until

from iamroles_conformance.subject import default_agent_toml
from iamroles_scenarios.base import lateness, recording
from iamroles_scenarios.base.errors import Evidence, SilenceError, StageError, TooSlow
from iamroles_scenarios.base.lateness import Delay
from iamroles_scenarios.checks.identity import hold
from iamroles_scenarios.checks.live.fixture import LiveBench
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.declarations.scenario import Step
from iamroles_scenarios.engine import wire_lane
from iamroles_scenarios.engine.attempts import STRETCHES, attempted
from iamroles_scenarios.engine.bench import Bench
from iamroles_scenarios.engine.events import Events
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.verdicts import held_late, unless_late
from iamroles_scenarios.engine.worlds import Loan, Worlds
from iamroles_scenarios.stage import AgentSpec
from iamroles_scenarios.stage.world import HaproxyHandle

FAILED = CheckResult("a.check", ("A-001",), Verdict.FAIL, "it came too late")
QUIET = Delay(gap=0.02, share=0.01)
LATE = replace(FAILED, late="the judge did not run for 0.7 s")
PASSED = CheckResult("a.check", ("A-001",), Verdict.PASS)


@pytest.mark.parametrize(
    ("about", "scale", "late"),
    [
        *((QUIET, 1, False), (Delay(0.7, 0.0), 1, True), (Delay(0.7, 0.0), 2, True)),
        *((Delay(0.7, 0.0), 4, False), (Delay(0.0, 0.4), 1, True), (Delay(0.0, 0.4), 2, False)),
        *((Delay(0.0, 0.8), 4, True), (Delay(0.0, 0.8), 8, False), (Delay(5.0, 0.0), 8, True)),
    ],
)
def test_a_failure_alone_is_late_if_the_host_was_later_than_the_stretch_makes_up_for(about, scale, late):
    assert bool(held_late(FAILED, about, scale).late) is late
    assert held_late(PASSED, about, scale).late == ""
    for verdict in (Verdict.HARNESS_ERROR, Verdict.UNTESTABLE):
        assert bool(held_late(replace(FAILED, verdict=verdict), about, scale).late) is late
    missed = replace(FAILED, verdict=Verdict.UNTESTABLE, late="a moment was missed")
    assert held_late(missed, about, scale) == missed


def _attempted(*results, **how):
    """Return the result of a check with these results in turn, and scale and namespace of each playing."""
    worlds, played = Worlds(None, AgentSpec.load(default_agent_toml())), []
    worlds._slots["its"] = SimpleNamespace(fault=StageError("not started in time"))
    worlds._lent["its"] = 0

    def play(target):
        played.append((target.scale, target.worlds.namespace))
        return [results[len(played) - 1]]

    [result] = attempted(Target("gate", None, None, worlds, **how), play)
    assert bool(worlds._slots) == (len(played) == 1), "a world that did not start is started again"
    return result, *zip(*played, strict=True)


def test_what_was_late_is_played_again_with_longer_times_in_other_worlds_and_says_so():
    result, scales, namespaces = _attempted(LATE, LATE, PASSED)
    assert (result.verdict, scales, len(set(namespaces))) == (Verdict.PASS, (1, 2, 4), 3)
    assert result.again == (LATE.late, LATE.late)


@pytest.mark.parametrize(("failure", "how"), [(FAILED, {}), (LATE, {"replays": False})])
def test_what_failed_in_time_and_a_mutants_failure_count_at_once(failure, how):
    result, scales, _ = _attempted(failure, **how)
    assert (result.verdict, result.again, scales) == (Verdict.FAIL, (), (1,))


def test_a_failure_in_time_stands_though_a_late_check_beside_it_is_played_again():
    worlds, other = Worlds(None, AgentSpec.load(default_agent_toml())), replace(LATE, check="another")
    playings = iter([[other, FAILED], [replace(PASSED, check="another"), PASSED]])

    results = attempted(Target("gate", None, None, worlds), lambda _: next(playings))

    assert [result.verdict for result in results] == [Verdict.PASS, Verdict.FAIL]


def test_a_wait_of_no_time_leaves_the_bound_before_it():
    with recording.recorded() as found:
        recording.timed(2.0)
        Target("gate", None, None, None).seconds(0.0)
    assert (found.timed, found.bound) == (True, 2.0)


def test_what_stays_late_is_untestable_and_no_failure():
    result, scales, _ = _attempted(*[LATE] * len(STRETCHES))
    assert (result.verdict, scales) == (Verdict.UNTESTABLE, STRETCHES)
    assert "did not run for 0.7 s" in result.message


def test_who_was_let_in_while_the_host_was_late_is_not_forgotten():
    allowed = replace(LATE, evidence=Evidence(false_allow=True))
    for playings in ([allowed, PASSED], [allowed, LATE, PASSED]):
        result, _, _ = _attempted(*playings)
        assert (result.verdict, result.evidence) == (Verdict.UNTESTABLE, allowed.evidence)
        assert f"let in while {LATE.late}" in result.message
    assert _attempted(allowed, FAILED)[0].verdict is Verdict.FAIL
    bounded = replace(allowed, evidence=Evidence(false_allow=True, bounded=True))
    assert _attempted(bounded, PASSED)[0].verdict is Verdict.PASS


def test_agent_and_haproxy_wait_longer_in_stretched_worlds():
    given = {"keys": {"timeout": "500ms"}, "sts": [{"name": "a"}, {"timeout": "1m"}]}
    settings = {"IAM_TIMEOUT_PROCESSING": "2s", "IAM_THREADS": "2"}
    agent = AgentSpec.load(default_agent_toml())
    Worlds(None, agent, scale=4)._stretch(given, settings)
    assert (given["keys"], given["agent"]) == ({"timeout": "2000ms"}, {"decision_timeout": "40000ms"})
    assert given["sts"] == [{"name": "a", "timeout": "40000ms"}, {"timeout": "240000ms"}]
    assert settings == {"IAM_TIMEOUT_PROCESSING": "8000ms", "IAM_THREADS": "2"}
    for declared, stretched in {"10s": "40000ms", "1500": "6000ms"}.items():
        agent = replace(agent, haproxy={"settings": {"IAM_TIMEOUT_PROCESSING": declared}})
        Worlds(None, agent, scale=4)._stretch({}, settings := {})
        assert settings == {"IAM_TIMEOUT_PROCESSING": stretched}


def test_a_stopped_judge_knows_how_long_it_was_stopped():
    lateness.start()
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", stopped_judge.SCRIPT, str(os.getpid())], check=True)
    until(lambda: lateness.delay(began).gap >= 0.6, 30)


def test_a_judge_whose_event_loop_stood_still_knows_it_though_its_threads_ran():
    async def stand_still():
        beats = asyncio.create_task(lateness.watched_loop())
        for turn in range(4):  # it waits; its time is over; it notices
            await asyncio.sleep(0)
            threading.Event().wait(0.7 * (turn == 0))
        beats.cancel()

    began = time.monotonic()
    asyncio.run(stand_still())
    assert lateness.delay(began).gap >= 0.6


def test_a_starved_process_is_seen_and_a_sleeping_one_is_not():
    lateness.start()
    began = time.monotonic()
    one = min(os.sched_getaffinity(0))
    words = [sys.executable, "-S", "-c"]
    # Its second thread waits: the agents of other languages answer by threads.
    starved = f"import os, _thread as t, time; os.sched_setaffinity(0, [{one}]); os.nice(10)"
    starved += "; t.start_new_thread(exec, ('while True: pass', {})); time.sleep(600)"
    hog = f"import os; os.sched_setaffinity(0, [{one}])\nwhile True: pass"
    hogs = [subprocess.Popen([*words, code]) for code in (starved, hog, hog)]
    sleeper = subprocess.Popen([*words, "import time; time.sleep(600)"])
    try:

        def told_apart():
            seen = lateness._seen()
            late = lateness.delay(began, [hogs[0].pid], 1.0, judge=False).share >= 0.4
            return late and seen[sleeper.pid].waited < seen[hogs[0].pid].waited / 4

        until(told_apart, 60)
    finally:
        for process in (*hogs, sleeper):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("points", "since", "span", "part"),
    [
        pytest.param([(0, 0.0), (60, 3.0)], 0, inf, 0.05, id="over all of it"),
        pytest.param([(0, 0.0), (30, 0.0), (33, 3.0), (60, 3.0)], 0, 3.0, 1.0, id="in the span of a wait"),
        pytest.param([(0, 0.0), (50, 0.0), (60, 9.0)], 55, 1.0, 0.9, id="since a look long before"),
        pytest.param([(59, 0.0), (60, 1.0)], 50, inf, 0.1, id="by a process that was born late"),
        pytest.param([(0, 5.0), (9, 5.0), (10, 5.0)], 9, inf, 0.0, id="nothing of before"),
    ],
)
def test_the_greatest_share_is_that_of_a_span_as_long_as_the_wait(points, since, span, part):
    assert lateness._part(points, since, span) == pytest.approx(part)


def test_a_process_that_was_born_meanwhile_counts_from_its_birth():
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    try:
        now = time.monotonic()
        assert now - 60 < lateness._seen()[child.pid].born <= now + 0.02
    finally:
        child.kill()
        child.wait()


def test_what_the_machine_below_takes_and_what_each_process_waits_is_added_up(monkeypatch, tmp_path):
    lines = ("cpu 9 9 9 9 9 9 9 70 0 0", "cpu0 1 1 1 1 1 1 1 0 0 0", "cpu1 1 1 1 1 1 1 1 70 0 0", "ctxt 1")
    (tmp_path / "stat").write_text("\n".join(lines))
    monkeypatch.setattr(lateness, "_PROC", tmp_path)
    stolen = lateness._stolen()
    assert stolen == {"cpu0": 0.0, "cpu1": 70 / os.sysconf("SC_CLK_TCK")}
    pulse = lateness._Pulse()
    monkeypatch.setattr(pulse, "look", lambda: None)
    seen = [{1: lateness._Seen(0, 0.0, 0.1 * at), 2: lateness._Seen(1, 0.0, 0.15 * at)} for at in (0, 1)]
    pulse._looks += [lateness._Look(at, 0, 0, {"cpu0": 0.0, "cpu1": 0.7 * at}, seen[at]) for at in (0, 1)]
    assert pulse.share(0, [], 1.0, judge=False) == pytest.approx(0.7)
    assert pulse.share(0, [1], 1.0, judge=False) == pytest.approx(0.95)  # what each waited is added


def test_a_check_that_starves_the_agent_itself_does_not_blame_the_host(monkeypatch):
    monkeypatch.setattr(lateness, "delay", lambda _since, firsts, _span: Delay(0.0, 0.9 if firsts else 0.0))
    with recording.recorded() as found:
        recording.timed(3.0)
        assert unless_late([FAILED], found, 0.0, [1], 1)[0].late
        recording.starves()
        assert not unless_late([FAILED], found, 0.0, [1], 1)[0].late


def test_a_limit_that_no_scale_stretches_leaves_no_more_time_at_a_greater_scale(monkeypatch):
    asked, here = [], MagicMock(seconds=lambda seconds: 8 * seconds)
    monkeypatch.setattr(lateness, "delay", lambda *words: asked.append(words) or Delay(0.0, 0.6))
    monkeypatch.setattr(hold, "bench", lambda *_, **__: nullcontext(here))
    monkeypatch.setattr(hold, "beside", lambda *_: nullcontext())
    with recording.recorded() as found:
        recording.timed(160.0)
        assert not unless_late([FAILED], found, 0.0, [1], 8)[0].late
        hold.forged(None)
        assert unless_late([FAILED], found, 0.0, [1], 8)[0].late
    assert [span for _, _, span in asked] == [160.0, hold._BOUNDED]
    assert asked[0][0] < asked[1][0], "only what came then counts"


def test_a_check_that_overhears_a_cancellation_ends_all_the_same(monkeypatch):
    monkeypatch.setattr(wire_lane, "_CANCEL_AGAIN", 0.01)
    overheard = []

    async def deaf():
        while len(overheard) < 3:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                overheard.append(1)

    with pytest.raises(SilenceError):
        asyncio.run(wire_lane._within(0.01, deaf()))
    assert len(overheard) == 3


def test_a_moment_that_the_judge_missed_is_late():
    with pytest.raises(TooSlow, match=r"the judge was \d\.\d s late for the echo"):
        Bench.in_time(time.time() - 0.7, "the echo")


def test_too_few_questions_to_tell_are_asked_again_with_longer_times(monkeypatch):
    here = MagicMock(seconds=lambda _: 0.0)
    monkeypatch.setattr(hold, "bench", lambda *_, **__: nullcontext(here))
    with pytest.raises(TooSlow, match="only 0 questions were answered"):
        hold.many(None)


@pytest.mark.parametrize("states", [["UP", "DOWN", "MAINT"], ["DOWN", "UP", "no check"], []])
def test_an_agent_that_haproxy_does_not_yet_ask_is_late_and_a_spare_one_is_not_waited_for(states):
    proxy, world = HaproxyHandle.__new__(HaproxyHandle), MagicMock()
    proxy.runtime = lambda _: "\n".join(["# svname,status,", *(f"a,{state}," for state in states)])
    world.haproxy = proxy
    target, loan = SimpleNamespace(seconds=lambda _: 0.0), Loan(world, {}, second=world)
    for start in (
        partial(Events(target, loan, MagicMock(), None).act, Step(agent="start")),
        LiveBench(target, loan).restart_agent,
    ):
        with pytest.raises(TooSlow, match="for up within") if states[:1] == ["UP"] else nullcontext():
            start()


@pytest.mark.parametrize("room", ["checks", "engine"])
def test_what_a_wait_for_haproxy_found_is_never_dropped_and_no_sleep_outlasts_its_run(room):
    for path in (ROOT / room).rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        calls = [ast.unparse(node.value) for node in nodes if isinstance(node, ast.Expr)]
        dropped = [call for call in calls if ".wait_agent(" in call]
        assert not dropped + [call for call in calls if call.startswith("time.sleep(")], path  # but `rest`


# --- times that no scale stretches

SHORT = 10
"""Seconds of a life, a bound or a wait below which a busy host may be late."""
STRETCHED_INSIDE = {"expect", "must_end", "must_refuse", "must_answer_all", "collect", "eventually"}
"""Functions of benches and of the wire lane that multiply their seconds by the scale."""
BEATS = {"BEAT", "LOOK", "POLL", "EACH", "CANCEL_AGAIN", "CONNECT", "PAUSE", "RECHECK", "MAX_STALE"}
"""Constants of loops that look again, of connecting, which the kernel does, and of agents' own bounds."""
WAITS = ("wait", "settimeout", "join", "wait_for", "sleep", "rest", "polls")


def constants(source):
    """The names that a module gives to numbers and texts, alone or in a row."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            names, values = (getattr(side, "elts", [side]) for side in (node.targets[0], node.value))
            named = zip(names, values, strict=True) if len(names) == len(values) else ()
            yield from ((ast.unparse(name), getattr(value, "value", None)) for name, value in named)


def unstretched(source):
    """Lines of a module with a short life, bound, wait or delay of a mock that is a number as it stands."""
    values = IMPORTED | dict(constants(source))

    def short(node):
        if isinstance(node, ast.BinOp):
            plain = "scale" not in ast.unparse(node)
            return plain and any(short(one) for one in ast.walk(node) if isinstance(one, ast.Name))
        name = getattr(node, "id", "")
        value = node.value if isinstance(node, ast.Constant) else values.get(name)
        number = value.strip("+s") if isinstance(value, str) and value.startswith("+") else value
        with suppress(TypeError, ValueError):
            return 0.05 < float(number) < SHORT and name.strip("_") not in BEATS
        return False

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and ast.unparse(node.left) in ("time.monotonic()", "time.time()"):
            times = [node.right]
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            kinds = [word.value for word in node.args if isinstance(word, ast.Constant)]
            stretched = name in STRETCHED_INSIDE or (name.endswith("fault") and "slow" not in kinds)
            known = ("timeout", "within", "seconds", "exp")
            times = [word.value for word in node.keywords if word.arg in known and not stretched]
            times += node.args * (name in WAITS)
        else:
            continue
        if any(map(short, times)):
            yield f"{node.lineno}: {ast.unparse(node)}"


ROOT = Path(lateness.__file__).parents[1]
IMPORTED = dict(pair for path in ROOT.rglob("*.py") for pair in constants(path.read_text()))


@pytest.mark.parametrize("room", ["checks", "engine"])
def test_no_short_life_bound_or_wait_is_left_unstretched(room):
    modules = (ROOT / room).rglob("*.py")
    found = [f"{path.name}:{line}" for path in modules for line in unstretched(path.read_text())]
    assert not [line for line in found if "traffic.wait(1)" not in line]  # which counts answers


@pytest.mark.parametrize(
    "source",
    [
        *("here.token(exp='+5s')", "_END = 3.0\nend = time.monotonic() + _END", "x.wait(2)"),
        *("open(a, within=1.0)", "_A, _SOON = 1, 0.3\ntime.sleep(2 * _SOON)", "a.fault('slow', seconds=3.0)"),
    ],
)
def test_an_unstretched_time_is_found(source):
    assert list(unstretched(source))


# --- a judge that is stopped at each moment that counts


def _stopped(*words):
    done = finished(sys.executable, stopped_judge.__file__, *words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_judge_that_is_stopped_accuses_nobody():
    found = _stopped("sound", "live.renew.prolongs", "live.revoke.role", "gate.expires-midway.refused")

    assert {verdict for _, verdict, *_ in found} <= {"pass", "untestable"}, found
    assert "pass" in {verdict for _, verdict, *_ in found}, found


def test_a_judge_that_is_stopped_still_catches_who_is_late_by_its_own_fault():
    [[_, verdict, message, again]] = _stopped("live.ends-a-minute-late", "live.expiry.ends")

    assert (verdict, "still open" in message) == ("fail", True), message
    assert again, "its first playing was late"
