"""What the host was late for is neither held against an agent nor for it."""

import ast
import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from math import inf
from pathlib import Path

import pytest
import stopped_judge
from waiting import until

from iamroles_scenarios.base import lateness, recording
from iamroles_scenarios.base.errors import SilenceError, TooSlow
from iamroles_scenarios.base.lateness import Delay
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.engine import wire_lane
from iamroles_scenarios.engine.attempts import STRETCHES, attempted
from iamroles_scenarios.engine.bench import Bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.verdicts import held_late, unless_late

FAILED = CheckResult("a.check", ("A-001",), Verdict.FAIL, "it came too late")
QUIET = Delay(gap=0.02, share=0.01)


@pytest.mark.parametrize(
    ("about", "scale", "late"),
    [
        (QUIET, 1, False),
        (Delay(0.7, 0.0), 1, True),
        (Delay(0.7, 0.0), 2, True),
        (Delay(0.7, 0.0), 4, False),
        (Delay(0.0, 0.4), 1, True),
        (Delay(0.0, 0.4), 2, False),
        (Delay(0.0, 0.8), 4, True),
        (Delay(0.0, 0.8), 8, False),
        (Delay(5.0, 0.0), 8, True),
    ],
)
def test_a_failure_stands_unless_the_host_was_later_than_the_stretch_makes_up_for(about, scale, late):
    assert bool(held_late(FAILED, about, scale).late) is late


def test_only_failures_are_late():
    passed = CheckResult("a.check", ("A-001",), Verdict.PASS)
    assert held_late(passed, Delay(5.0, 1.0), 1).late == ""


class Playing:
    """A check that is late, or fails, at some of its playings."""

    def __init__(self, *results):
        self.results, self.scales = list(results), []

    def __call__(self, target):
        self.scales.append(target.scale)
        return [self.results.pop(0)]


LATE = CheckResult("a.check", ("A-001",), Verdict.FAIL, "no", late="the judge did not run for 0.7 s")
PASSED = CheckResult("a.check", ("A-001",), Verdict.PASS)


class NotStarted:
    """Worlds that did not start, and how often they may start again."""

    started = 0

    def start_again(self):
        self.started += 1


def _target(**how):
    return Target("gate", None, None, NotStarted(), **how)


def test_what_was_late_is_played_again_with_longer_times_and_says_so():
    playing, target = Playing(LATE, LATE, PASSED), _target()
    [result] = attempted(target, playing)
    assert target.worlds.started == 2
    assert (result.verdict, playing.scales) == (Verdict.PASS, [1, 2, 4])
    assert result.again == (LATE.late, LATE.late)


def test_what_failed_in_time_is_never_played_again():
    playing = Playing(FAILED)
    [result] = attempted(_target(), playing)
    assert (result.verdict, result.again, playing.scales) == (Verdict.FAIL, (), [1])


def test_what_stays_late_is_untestable_and_no_failure():
    playing = Playing(*[LATE] * len(STRETCHES))
    [result] = attempted(_target(), playing)
    assert result.verdict is Verdict.UNTESTABLE
    assert "did not run for 0.7 s" in result.message
    assert len(result.again) == len(STRETCHES) - 1


def test_a_mutants_failure_counts_at_once():
    playing = Playing(LATE)
    [result] = attempted(_target(replays=False), playing)
    assert (result.verdict, playing.scales) == (Verdict.FAIL, [1])


def test_a_stopped_judge_knows_how_long_it_was_stopped():
    lateness.start()
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", stopped_judge.SCRIPT, str(os.getpid())], check=True)
    until(lambda: lateness.delay(began).gap >= 0.6, 30)


def test_a_starved_process_is_seen_and_a_sleeping_one_is_not():
    lateness.start()
    began = time.monotonic()
    whole = os.sched_getaffinity(0)
    one = {min(whole)}
    words = [sys.executable, "-S", "-c"]
    hogs = [subprocess.Popen([*words, "while True: pass"]) for _ in range(3)]
    sleeper = subprocess.Popen([*words, "import time; time.sleep(600)"])
    try:
        for hog in hogs:
            os.sched_setaffinity(hog.pid, one)
        os.setpriority(os.PRIO_PROCESS, hogs[0].pid, 10)

        def told_apart():
            seen = lateness._seen()
            starved = lateness.delay(began, [hogs[0].pid], 1.0, judge=False).share >= 0.4
            return starved and seen[sleeper.pid].waited < seen[hogs[0].pid].waited / 4

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


def test_a_check_that_starves_the_agent_itself_does_not_blame_the_host(monkeypatch):
    monkeypatch.setattr(lateness, "delay", lambda _since, firsts, _span: Delay(0.0, 0.9 if firsts else 0.0))
    with recording.recorded() as found:
        recording.timed(3.0)
        assert unless_late([FAILED], found, 0.0, [1], 1)[0].late
        recording.starves()
        assert not unless_late([FAILED], found, 0.0, [1], 1)[0].late


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


# --- times that no scale stretches

SHORT = 10
"""Seconds of a life, a bound or a wait below which a busy host may be late."""
STRETCHED_INSIDE = {"expect", "must_end", "must_refuse", "must_answer_all", "collect", "eventually"}
"""Functions of benches and of the wire lane that multiply their seconds by the scale."""
FAULTS = {"fault", "sts_fault"}
"""Functions that make a mock slow."""
BEATS = {"BEAT", "LOOK", "POLL", "EACH", "CANCEL_AGAIN", "CONNECT"}
"""Constants of loops that look again, and of connecting, which the kernel does."""


def unstretched(source):
    """Lines of a module with a short life, bound or wait that is a number as it stands."""
    tree = ast.parse(source)
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = getattr(node.value, "value", None)

    def short(node):
        name = getattr(node, "id", "")
        value = node.value if isinstance(node, ast.Constant) else values.get(name)
        number = value.strip("+s") if isinstance(value, str) and value.startswith("+") else value
        with suppress(TypeError, ValueError):
            return 0 < float(number) < SHORT and name.strip("_") not in BEATS
        return False

    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and ast.unparse(node.left) in ("time.monotonic()", "time.time()"):
            times = [node.right]
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            named = [
                word.value for word in node.keywords if word.arg in ("timeout", "within", "seconds", "exp")
            ]
            times = named * (name not in STRETCHED_INSIDE | FAULTS)
            times += node.args * (name in ("wait", "settimeout", "join", "wait_for"))
        else:
            continue
        if any(map(short, times)):
            yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("room", ["checks", "engine"])
def test_no_short_life_bound_or_wait_is_left_unstretched(room):
    root = Path(lateness.__file__).parents[1] / room
    found = [f"{path.name}:{line}" for path in root.rglob("*.py") for line in unstretched(path.read_text())]
    assert not [line for line in found if "traffic.wait(1)" not in line]  # which counts answers


@pytest.mark.parametrize(
    "source",
    [
        "here.token(exp='+5s')",
        "_END = 3.0\nend = time.monotonic() + _END",
        "x.wait(2)",
        "open(a, within=1.0)",
    ],
)
def test_an_unstretched_time_is_found(source):
    assert list(unstretched(source))


# --- a judge that is stopped at each moment that counts


def _stopped(*words):
    done = subprocess.run(
        [sys.executable, stopped_judge.__file__, *words], capture_output=True, text=True, check=False
    )
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
