"""What the host was late for is neither held against an agent nor for it."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import stopped_judge

from iamroles_scenarios.base import lateness
from iamroles_scenarios.base.errors import TooSlow
from iamroles_scenarios.base.lateness import Delay
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.engine.attempts import STRETCHES, attempted
from iamroles_scenarios.engine.bench import Bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.verdicts import held_late

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


def _target(**how):
    return Target("gate", None, None, None, **how)


def test_what_was_late_is_played_again_with_longer_times_and_says_so():
    playing = Playing(LATE, LATE, PASSED)
    [result] = attempted(_target(), playing)
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
    seen = threading.Event()
    deadline = time.monotonic() + 30
    while lateness.delay(began).gap < 0.6 and time.monotonic() < deadline:
        seen.wait(0.02)
    assert lateness.delay(began).gap >= 0.6


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
        deadline = time.monotonic() + 60
        while lateness.delay(began, [hogs[0].pid]).share < 0.4 and time.monotonic() < deadline:
            threading.Event().wait(0.2)
        assert lateness.delay(began, [hogs[0].pid]).share >= 0.4
        seen = lateness._seen()
        assert seen[sleeper.pid].waited < seen[hogs[0].pid].waited / 4
    finally:
        for process in (*hogs, sleeper):
            process.kill()
            process.wait()


def test_a_moment_that_the_judge_missed_is_late():
    with pytest.raises(TooSlow, match=r"the judge was \d\.\d s late for the echo"):
        Bench.in_time(time.time() - 0.7, "the echo")


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
