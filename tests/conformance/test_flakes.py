"""The measuring of flakes: real runs, and what the page makes of them."""

import json

import pytest
from invoking import said

from iamroles_conformance.reports import flakes


def _runs(*checks):
    about = {"agent": "a 1", "stage": "processes", "haproxy": "3.0", "host": "2 processors", "load": 1.5}
    return [about | {"day": "2026-01-01", "checks": one} for one in checks]


def test_runs_are_measured_saved_and_taken_up_again(tmp_path):
    saved, page = tmp_path / "runs.jsonl", tmp_path / "flakes.md"
    same = "conformance flakes --stage=processes --lane=gate-spop --check=gate.audience"

    said(same, "--save", saved, "--runs=1")
    again = said(same, "--save", saved, "--runs=2", "--page", page)

    assert "run 1 of" not in again
    assert "run 2 of 2" in again
    runs = [json.loads(one) for one in saved.read_text().splitlines()]
    assert [set(run["checks"]) for run in runs] == [set(runs[0]["checks"])] * 2
    verdict, tries, wait = runs[0]["checks"]["gate.audience.refused[spop]"]
    assert (verdict, tries) == ("pass", 1)
    assert 0 < wait[1] < wait[2]
    assert "0 checks flaked" in page.read_text()


def test_a_check_whose_verdict_changes_flakes_at_its_rate():
    sound, ill = ["pass", 1, ["a frame", 0.1, 2.0]], ["fail", 1, None]
    found = flakes.measured(_runs({"a.b": sound}, {"a.b": ill}, {"a.b": sound}, {"a.b": sound}))[0]

    assert found.rate == 0.25
    assert found.narrowest is not None
    assert found.margin == pytest.approx(0.95)


def test_the_least_margin_of_all_runs_counts():
    waits = [["pass", 1, ["a frame", took, 2.0]] for took in (0.1, 1.8, 0.2)]

    assert flakes.measured(_runs(*({"a.b": one} for one in waits)))[0].margin == pytest.approx(0.1)


def test_the_page_names_what_flakes_what_was_played_again_and_what_is_narrow():
    good = ["pass", 1, ["a frame", 0.1, 2.0]]
    all_good = dict.fromkeys(("a.flaky", "a.again", "a.narrow", "a.good"), good)
    first = all_good | {"a.again": ["pass", 2, None], "a.narrow": ["pass", 1, ["x", 1.9, 2.0]]}
    page = flakes.as_markdown(_runs(first, all_good | {"a.flaky": ["fail", 1, None]}), "cmd")

    assert "| `a.flaky` | 1 pass, 1 fail | 50 % | 0 |" in page
    assert "| `a.again` | 2 pass | 0 % | 1 |" in page
    assert "| `a.narrow` | 2 pass | 0 % | 0 | 5 % | x: 1.90 of 2 s |" in page
    assert "`a.good`" not in page
    assert "| a | 4 | 1 | 5 % |" in page


@pytest.mark.parametrize("text", ["no json", '{"checks": {"a": [1]}}', "[]"])
def test_a_file_of_something_else_is_a_mistake(tmp_path, text):
    (tmp_path / "x").write_text(text)

    told = said("conformance flakes --check=gate.audience --save", tmp_path / "x", code=2)
    assert "is not a file of" in told
