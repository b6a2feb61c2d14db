"""The meter's smaller parts: objectives, units, validity, the changed configuration, questions, CPU."""

import copy
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from iamroles_loadtests.asking import gate_config, questions, targets
from iamroles_loadtests.asking.cpu import CpuMeter
from iamroles_loadtests.asking.plan import Phase
from iamroles_loadtests.asking.questions import Asking
from iamroles_loadtests.asking.shapes import SHAPES
from iamroles_loadtests.measuring.conductor import PAIRED, _differences, interval
from iamroles_loadtests.measuring.histogram import Histogram
from iamroles_loadtests.measuring.measurement import CaseMeasurement, Measurement, Played
from iamroles_loadtests.measuring.validity import Tolerance, doubts
from iamroles_loadtests.results import slo
from iamroles_scenarios.base.durations import duration
from iamroles_scenarios.base.family import family
from iamroles_scenarios.traffic import Case, Segment

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("value", "text"), [(740, "740 µs"), (12_345, "12.3 ms"), (1_200_000, "1.2 s"), (-50, "-50 µs")]
)
def test_durations_are_readable(value, text):
    assert duration(value) == text


@pytest.mark.parametrize(("text", "value"), [("800us", 800), ("800µs", 800), ("1.5ms", 1500), ("2s", 2e6)])
def test_durations_are_read(text, value):
    assert TypeAdapter(slo.Latency).validate_python(text) == value


@pytest.mark.parametrize("wrong", ["5", "5x", "-1ms", 5, None])
def test_what_is_no_duration(wrong):
    with pytest.raises(ValueError, match="a duration"):
        TypeAdapter(slo.Latency).validate_python(wrong)


# --- objectives ---


def judged(example, **table):
    return {one.name: one.met for one in slo.judged(slo.Slo.model_validate(table), example)}


def test_ratios(example):
    at = {name: phase["sent"]["p50"] for name, phase in ((one["name"], one) for one in example["phases"])}
    above = at["high"] / at["low"]
    ratio = {"of": "high.sent.p50", "over": "low.sent.p50"}

    assert judged(example, ratios=[{**ratio, "at_most": above * 1.01}])["high.sent.p50 over low.sent.p50"]
    assert not judged(example, ratios=[{**ratio, "at_most": above * 0.99}])["high.sent.p50 over low.sent.p50"]
    lanes = {"of": "new.sent.p50", "over": "remembered.sent.p50", "at_most": 1e9}
    assert judged(example, ratios=[lanes])["new.sent.p50 over remembered.sent.p50"]
    # Of a phase that was played a missing percentile does not count as a pass; a phase that was not is left
    # out.
    missing = {"of": "high.sent.p99.99", "over": "low.sent.p50", "at_most": 1e9}
    assert not judged(example, ratios=[missing])["high.sent.p99.99 over low.sent.p50"]
    assert len(judged(example, ratios=[{**ratio, "of": "spike.sent.p50", "at_most": 1.0}])) == 3


def test_levels_and_the_check(example):
    tight, loose = {"p50": 1.0}, {"p50": 1e12}
    for bounds, met in ((tight, False), (loose, True)):
        text = {"p50": f"{bounds['p50']:.0f}us"}
        found = judged(example, levels={"low": {"due": text}}, check=text, new={**text, "cpu": text["p50"]})
        assert found["low: from due p50"] is met
        assert found["a remembered check adds at p50"] is met
        assert found["a new token's check adds CPU"] is met


def test_rounds_without_samples_meet_no_objective(example):
    example["pairs"]["differences"] = dict.fromkeys(PAIRED, _differences([played()] * 7, [played()] * 7))
    bounds = dict.fromkeys(("p50", "p90", "p99", "cpu"), "1s")
    found = judged(example, check=bounds, new=bounds)

    assert [met for name, met in found.items() if " adds " in name] == [False] * 8


def test_wrong_and_lost_are_objectives(example):
    bad = {**example, "wrong": 1, "faults": 2, "stray": 1}
    stray = {"bytes that nobody asked for": False}

    assert judged(bad) == {"wrong verdicts": False, "requests without an answer": False} | stray
    allowed = judged(bad, verdicts={"wrong": 1, "faults": 2})
    assert allowed == {"wrong verdicts": True, "requests without an answer": True} | stray


def test_the_default_objectives_are_about_phases_that_are_played():
    assert set(slo.load(slo.DEFAULT).levels) <= {"low", "half", "high", *SHAPES}


# --- validity ---


def played(due=(1_000_000,) * 1000, punctual=(1_000_000,) * 1000, *, closed=False, **more):
    cases = {"a": CaseMeasurement(due=Histogram(due))}
    phase = Phase(name="x", address="", weights={}, timetable=[] if closed else [Segment(1.0, 1.0)])
    return Played(phase, "level", Measurement(punctual=Histogram(punctual), cases=cases, **more), {})


def test_a_punctual_run_is_valid_and_lag_is_no_matter_in_a_closed_loop():
    assert doubts(played(), Tolerance()) == []
    assert doubts(played(due=(1_200_000,) * 1000), Tolerance()) == []
    assert doubts(played(due=(2_000_000,) * 1000, closed=True), Tolerance()) == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (played(due=(2_000_000,) * 1000), "of the 2 ms at p50 are the generator's own lag"),
        (played(due=(1_000_000,) * 980 + (50_000_000,) * 20), "at p99 are the generator's own lag"),
        (played(stalls=[(1.5, 80.0)]), "stood still 1 times"),
        (played(steps=[-250.0]), "the clock stepped by -250 ms"),
    ],
)
def test_a_run_that_the_generator_bent_is_not(run, said):
    assert said in " ".join(doubts(run, Tolerance()))


def test_an_answer_after_the_end_is_a_sample_and_no_throughput():
    begin, zero = 10**18, np.zeros(10, dtype=np.int64)
    at = begin + np.arange(10) * 10**9 // 2
    measured = Measurement(begin=begin, seconds=2.0)
    measured.record(np.stack([zero, at, at, at + 1, at + 1, zero, zero], axis=1).tobytes(), [Case("a")])
    phase = Phase(name="x", address="", weights={}, seconds=2.0)

    assert Played(phase, "level", measured, {}).answered == 2.0
    assert measured.samples == measured.whole("sent").count == 10


def test_intervals_hold_what_they_are_about():
    found = interval([10.0, 11.0, 9.0, 10.5, 9.5, 10.2, 30.0])

    assert 9.0 <= found["low"] <= found["value"] == 10.2 <= found["high"] <= 30.0


# --- the configuration ---


def test_the_shipped_configuration_is_one_the_meter_can_change():
    shipped = (ROOT / "reference/iamroles_tools/haproxy/haproxy.cfg").read_text()
    changed = gate_config.gate(shipped)

    assert changed.count("send-spoe-group") == shipped.count("send-spoe-group")
    assert "!meter_unasked" in changed
    places = [changed.index(word) for word in ("meter_begin", "http-request send-spoe-group", "meter_took")]
    assert places == sorted(places)
    assert "ssl crt" in gate_config.behind_tls(changed)


@pytest.mark.parametrize("text", ["", "    http-request send-spoe-group a b\n" * 2])
def test_another_configuration_is_refused(text):
    with pytest.raises(gate_config.GateConfigError, match="one is expected"):
        gate_config.gate(text)


def test_a_condition_of_the_question_stays():
    changed = gate_config.gate("  http-request send-spoe-group iam g if { x }\n")

    assert "send-spoe-group iam g if { x } !meter_unasked" in changed


# --- questions ---


@pytest.fixture
def made():
    """The recipes of tokens that `asking` has minted."""
    return []


@pytest.fixture
def asking(made):
    return Asking(lambda recipe: made.append(dict(recipe)) or f"token-{len(made)}")


def test_no_two_callers_share_a_token(asking):
    holders = {}
    for ask in asking.mix(10, now=1000.0):
        if ask.case in {"allowed-read", "allowed-write"}:
            token = ask.payload.split("Bearer ")[1].split("\r\n")[0]
            holders.setdefault(token, set()).add(ask.right.holds[0].split()[1])

    assert len(holders) == questions.CALLERS + 10
    assert {len(names) for names in holders.values()} == {1}


def test_tokens_die_during_the_run(asking, made):
    asks = [ask for ask in asking.mix(10, now=1000.0) if ask.case == "expiring"]

    ends = {ask.changes // 10**9 for ask in asks}
    assert ends == {1003, 1006, 1009, 1012}
    assert all(ask.afterwards.status == 401 for ask in asks)
    assert ends <= {recipe.get("exp") for recipe in made}
    late = {ask.changes // 10**9 for ask in asking.mix(3000, now=1000.0) if ask.case == "expiring"}
    assert len(late) == 60
    assert max(late) > 3900  # also at the end of a long one


def test_populations_follow_zipf(asking, made):
    asks = asking.population(1000)

    assert len(asks) == questions.DEALT
    counts = sorted(Counter(map(id, asks)).values(), reverse=True)
    assert len(made) == len(counts) > 500
    assert counts[0] > 5 * counts[9] > 0  # the first is asked ten times as often as the tenth
    assert len(asking.population(1)) == 1


def test_nothing_hostile_may_pass(asking):
    asks = asking.hostile(40)

    assert {ask.case for ask in asks} == {"unknown-kid", "forged", "nonsense", "long-path"}
    assert all(b"backend=" in ask.right.lacks for ask in asks)
    assert max(len(ask.payload) for ask in asks) > 8000


def test_each_header_is_sent_and_one_host():
    fields = [("x-a", "1"), ("x-a", "2")]
    [plain], [named] = (
        targets.url("http://u@h:80/", fields=more).pools["mix"] for more in (fields, [*fields, ("HOST", "b")])
    )

    assert plain.payload == "GET / HTTP/1.1\r\nHost: h:80\r\nx-a: 1\r\nx-a: 2\r\n\r\n"
    assert named.payload == "GET / HTTP/1.1\r\nx-a: 1\r\nx-a: 2\r\nHOST: b\r\n\r\n"


# --- CPU ---


def test_the_time_of_a_part_is_that_of_all_its_processes():
    burning = "import time\nbegan = time.process_time()\nwhile time.process_time() < began + 0.3: pass\n"
    burning += "print(time.process_time() - began, flush=True)"
    program = f"""if True:
        import os, sys
        if os.fork():
            os.wait()
        else:
            sys.stdin.readline()
            exec({burning!r})
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        meter = CpuMeter({"part": lambda: process.pid, "gone": lambda: None})
        before = copy.deepcopy(meter.read())
        print(file=process.stdin, flush=True)
        burned = float(process.stdout.readline())
        used = meter.since(before)
        assert len(family(process.pid)) == 2
        process.stdin.close()
    assert set(used) == {"part"}
    assert burned <= used["part"] < 2 * burned
    assert os.getpid() in family(os.getpid())
    assert time.process_time() > 0
