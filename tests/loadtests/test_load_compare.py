"""Two results side by side: no difference between equals, a difference where they differ, cautions."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from invoking import said

from iamroles_loadtests.asking.plan import Phase
from iamroles_loadtests.measuring.measurement import Measurement, Played
from iamroles_loadtests.results import result
from iamroles_loadtests.results.compare import cautions, compared, obstacles
from iamroles_scenarios.traffic import FIELDS, Case, Segment

EXAMPLE = Path(__file__).with_name("example-result.json")


def made(seed, factor=1.0, name="half"):
    """The example with one phase of 20,000 samples in 16 windows, some windows slower than others."""
    chance = np.random.default_rng(seed)
    begin = 10**18
    count = 20_000
    due = np.sort(chance.integers(0, 4 * 10**9, count))
    weather = chance.lognormal(0, 0.05, 16)[due // (10**9 // 4)]
    took = (chance.lognormal(12, 0.5, count) * weather * factor).astype(np.int64)
    zero = np.zeros(count, dtype=np.int64)
    columns = {"case": zero, "due": begin + due, "sent": begin + due, "received": begin + due + took}
    columns |= {"noticed": begin + due + took, "lag": zero, "reported": zero - 1}
    measured = Measurement(begin=begin, width=0.25, last=15, seconds=4.0)
    records = np.stack([columns[name] for name in FIELDS], axis=1).astype(np.int64).tobytes()
    measured.record(records, [Case("x")])
    phase = Phase(name=name, address="", weights={}, timetable=[Segment(4.0, 5000.0)])
    phase = result.phase_entry(Played(phase, "level", measured, {"agent": 0.4}))
    return {**result.load(EXAMPLE), "valid": True, "doubts": [], "phases": [phase], "pairs": None}


def verdicts(lines):
    return {line.name: line.verdict for line in lines if line.low is not None}


def test_two_runs_of_the_same_do_not_differ():
    for seed in range(5):
        found = compared(made(seed), made(seed + 100))
        assert list(verdicts(found)) == ["p50 from sent", "p90 from sent", "p99 from sent", "p99.9 from sent"]
        for line in found:
            if line.low is not None:
                assert line.low <= line.ratio <= line.high
                assert 0.75 < line.low < line.high < 1.33


@pytest.mark.parametrize("count", ["wrong", "faults", "stray"])
def test_a_run_that_went_wrong_does_not_compare(count):
    assert len(obstacles(made(1), {**made(1), count: 1})) == 1


@pytest.mark.parametrize(("factor", "verdict"), [(1.3, "slower"), (0.7, "faster")])
def test_a_difference_is_shown(factor, verdict):
    found = compared(made(1), made(2, factor))

    assert verdicts(found)["p50 from sent"] == verdicts(found)["p99 from sent"] == verdict
    [p50] = [line for line in found if line.name == "p50 from sent"]
    assert p50.low < factor < p50.high


def test_what_does_not_compare_is_said():
    one, other = made(1), copy.deepcopy(made(1))
    assert obstacles(one, other) == cautions(one, other) == []
    other["valid"], other["doubts"] = False, ["it rained"]
    other["environment"]["cpu"] = "another"
    other["asked"] |= {"connections": 7, "tls": True}
    other["phases"][0]["rate"] = 9000.0

    other["wrong"] = 3
    other["target"]["stage"] = "containers"

    told = obstacles(one, other)
    for what in (
        *("it rained", "cpu differs", "--connections differs", "offered 5,000/s, then 9,000/s"),
        *("--tls differs", "second run had 3 wrong verdicts", "(stage) differs"),
    ):
        assert sum(what in why for why in told) == 1, what
    assert len(told) == 7
    other["environment"]["python"] = "3.99"
    other["target"]["haproxy"] = "9.9"
    other["phases"][0]["name"] = "low"
    one["phases"][0]["windows"] = one["phases"][0]["windows"][:5]
    told = cautions(one, other)
    lonely = "only one of the runs has half, low"
    for what in ("python differs", "haproxy differs", lonely, "windows in half"):
        assert sum(what in why for why in told) == 1, what


def test_what_is_not_answered_is_no_faster():
    """Latencies from sent of what a gate does answer say nothing of what it does not."""
    one, other = made(1), made(1)
    other["phases"][0]["owed"] = other["phases"][0]["samples"]
    [answered] = [line for line in compared(one, other) if line.name == "answered of what was due"]

    assert (answered.before, answered.after, answered.ratio) == (1.0, 0.5, 0.5)
    assert answered.in_words(0.5) == "50.0%"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop("phases"), "'phases' is a required property"),
        (lambda found: found["phases"][0]["sent"].pop("histogram"), "'histogram' is a required property"),
        (lambda found: found["phases"][0].update(rate="fast"), "$.phases[0].rate: 'fast' is not of type"),
        (lambda found: found["phases"][0]["sent"].update(histogram="HISTnonsense"), "$.phases[0].sent.hist"),
        (lambda found: found.update(format=1), "in format 2"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_what_is_no_result_is_refused_where_it_fails(tmp_path, command, change, words):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    found = result.load(EXAMPLE)
    good.write_text(json.dumps(found))
    change(found)
    bad.write_text(json.dumps(found))
    told = said(f"load {command}", *([good] if command == "compare" else []), bad, code=2)

    assert words in " ".join(told.replace("│", " ").split())


def test_the_command(tmp_path):
    def written(name, found):
        path = tmp_path / name
        path.mkdir()
        (path / "result.json").write_text(json.dumps(found))
        return path

    def compare(after, *options, code):
        return said("load compare --worse 1.1", before, after, *options, code=code)

    before, after = written("a", made(1)), written("b", made(2, 1.5))
    assert "no difference shown" in compare(before, code=0)
    slower = json.loads(compare(after, "--json", code=1))
    assert {line["verdict"] for line in slower["lines"]} == {"slower", ""}
    page = tmp_path / "page.html"
    rainy = written("r", {**made(2, 1.5), "valid": False, "doubts": ["it rained"]})
    assert "not comparable" in compare(rainy, "--html", page, code=4)
    assert "it rained" in page.read_text()
    assert compare(rainy, "--anyway", code=1)
    assert "be written" in compare(before, "--html", tmp_path / "no" / "page", code=2)
    assert "no phase in common" in compare(written("c", made(1, name="other")), code=2)
