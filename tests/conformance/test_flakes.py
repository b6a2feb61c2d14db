"""The measuring of flakes: real runs, and what the page makes of them."""

import json
import subprocess
import sys
from contextlib import ExitStack

import pytest
from invoking import said
from waiting import until

from iamroles_conformance.reports import flakes
from iamroles_scenarios.base import busy
from iamroles_scenarios.base.errors import SuiteError
from iamroles_scenarios.base.family import family, resident


def _runs(*checks):
    about = {"agent": "a 1", "stage": "processes", "haproxy": "3.0", "host": "2 processors", "load": 1.5}
    about |= {"beside": "loops", "seconds": 60.0, "day": "2026-01-01"}
    return [about | {"checks": one} for one in checks]


def test_runs_are_measured_saved_and_taken_up_again(tmp_path):
    saved, page = tmp_path / "runs.jsonl", tmp_path / "flakes.md"
    page.write_text("# Former\n\n## Why\n\nBy hand.\n")
    same = "conformance flakes --stage=processes --lane=gate-spop --check=gate.audience"

    said(same, "--save", saved, "--runs=1")
    again = said(same, "--save", saved, "--runs=1")
    busy = said(same, "--save", saved, "--runs=1", "--beside=loops", "--page", page)

    assert "run 1 of" not in again
    assert "run 1 of 1" in busy
    runs = [json.loads(one) for one in saved.read_text().splitlines()]
    assert [set(run["checks"]) for run in runs] == [set(runs[0]["checks"])] * 2
    assert [run["beside"] for run in runs] == ["nothing", "loops"]
    verdict, tries, wait, why = runs[0]["checks"]["gate.audience.refused[spop]"]
    assert (verdict, tries, why) == ("pass", 1, "")
    assert 0 < wait[1] < wait[2]
    assert "that flaked: 0" in page.read_text()
    assert "| processes | loops | 1 |" in page.read_text()
    assert page.read_text().endswith("|\n\n## Why\n\nBy hand.\n")
    assert "Former" not in page.read_text()
    for other, differs in (("--lane=wire --check=wire.hello", "checks"), ("--haproxy=2.8", "--haproxy")):
        told = said(f"{same} {other}", "--save", saved, "--runs=1", code=2)
        assert f"runs.jsonl:1: that run differs in {differs}. Name another file." in told


def test_a_check_whose_verdict_changes_flakes_at_its_rate():
    sound, ill = ["pass", 1, ["a frame", 0.1, 2.0], ""], ["fail", 1, None, ""]
    found = flakes.measured(_runs({"a.b": sound}, {"a.b": ill}, {"a.b": sound}, {"a.b": sound}))[0]

    assert found.rate == 0.25
    assert found.narrowest is not None
    assert found.margin == pytest.approx(0.95)


def test_the_least_margin_of_all_runs_counts():
    waits = [["pass", 1, ["a frame", took, 2.0], ""] for took in (0.1, 1.8, 0.2)]

    assert flakes.measured(_runs(*({"a.b": one} for one in waits)))[0].margin == pytest.approx(0.1)


def test_the_page_names_what_flakes_what_was_played_again_and_what_is_narrow():
    good = ["pass", 1, ["a frame", 0.1, 2.0], ""]
    all_good = dict.fromkeys(("a.flaky", "a.again", "a.narrow", "a.good"), good)
    again, narrow = ["pass", 2, None, "it slept"], ["pass", 1, ["x", 1.9, 2.0], ""]
    first = all_good | {"a.again": again, "a.narrow": narrow}
    ill = ["departure", 2, None, "late", "it was refused\nin two lines"]
    page = flakes.as_markdown(_runs(first | {"a.flaky": ill}, all_good), "cmd")

    assert "| `a.flaky` | 1 departure, 1 pass | 50 % | 1 |" in page
    assert "| it was refused |" in page
    assert "| `a.again` | 2 pass | 0 % | 1 | 95 % | a frame: 0.10 of 2 s | it slept |" in page
    assert "| `a.narrow` | 2 pass | 0 % | 0 | 5 % | x: 1.90 of 2 s | |" in page
    assert "`a.good`" not in page
    assert "| a | 4 | 1 | 5 % |" in page
    assert "| processes | loops | 2 | 8 | 7 | 0 | 1 | 2 | 60, 60 | 1.5 to 1.5 |" in page


@pytest.mark.parametrize("text", ["no json", '{"checks": {"a": [1]}}', "[]"])
def test_a_file_of_something_else_is_a_mistake(tmp_path, text):
    (tmp_path / "x").write_text(text)

    told = said("conformance flakes --check=gate.audience --save", tmp_path / "x", code=2)
    assert "is not a file of" in told


def test_programs_beside_a_run_are_seen_if_they_end(monkeypatch):
    monkeypatch.setattr(busy, "LOOP", "raise SystemExit(1)")
    with ExitStack() as beside:
        for program in beside.enter_context(busy.beside("loops")):
            program.wait(60)
        with pytest.raises(SuiteError, match="keep this host busy ended"):
            beside.close()


def test_programs_end_with_whoever_started_them():
    command = [sys.executable, "-m", busy.__name__, "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as holder:
        until(lambda: len(family(holder.pid)) == 6, 60)
        loops = family(holder.pid)[1:]
        holder.kill()
    until(lambda: not any(map(resident, loops)), 60)
