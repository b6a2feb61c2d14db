"""A run with a budget: the order, what is said of the rest, and no claim of a class that was not played."""

import re
import signal
from itertools import islice

import pytest
from invoking import said

from iamroles_conformance.reports import report
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.engine.jobs import by_importance
from iamroles_scenarios.engine.run import Run

RUN = "conformance run --stage=processes --lane=gate-spop --check=gate.audience --check=gate.no-token"


def test_must_of_core_comes_before_strict_before_should():
    levels = [2 if not one.must else int(one.grade == "strict") for one in by_importance(plan())]

    assert levels == sorted(levels)
    assert set(levels) == {0, 1, 2}


def test_every_requirement_of_core_is_touched_before_any_is_touched_twice():
    core = [one for one in by_importance(plan()) if one.must and one.grade == "core"]
    wanted = {name for one in core for name in one.requirements}
    seen: set[str] = set()
    broad = 0
    for one in core:
        broad += not seen.issuperset(one.requirements)
        seen.update(one.requirements)

    assert {name for one in core[:broad] for name in one.requirements} == wanted
    assert broad < len(core)


def test_no_check_is_lost_by_the_order():
    assert sorted(one.name for one in by_importance(plan())) == sorted(one.name for one in plan())


def test_a_budget_that_suffices_and_an_interrupt_after_the_last_check_change_nothing(tmp_path, monkeypatch):
    whole = Run.close
    monkeypatch.setattr(Run, "close", lambda run: whole(signal.raise_signal(signal.SIGINT) or run))
    assert "not played" not in said(RUN, "--budget=1h", f"--report={tmp_path}")
    found = report.load(tmp_path / "report.json")
    assert found["not_played"] == []
    assert found["reproduce"].endswith(" --budget=3600s --check=gate.audience --check=gate.no-token")


def test_what_was_not_played_is_counted_and_named(tmp_path, monkeypatch):
    whole = Run.in_budget

    def only_three(run, _seconds):
        return islice(whole(run, 3600.0), 3)

    monkeypatch.setattr(Run, "in_budget", only_three)
    monkeypatch.setattr(Run, "result_so_far", lambda _run, _check: None)
    told = said(RUN, "--budget=1ms", f"--report={tmp_path}")

    found = report.load(tmp_path / "report.json")
    missing = len(found["not_played"])
    assert missing > 0
    over = f"the budget of 0.001 s is over: {missing} of {missing + 3} checks were not played"
    assert f"{over} ({missing} gate)" in told
    assert found["statement"]["conforms"] == {"strict": [], "core": []}
    assert "That is no statement of conformance." in told


@pytest.mark.parametrize("budget", ["0s", "-5s", "60", "soon"])
def test_a_budget_that_is_none_is_a_mistake(budget):
    assert said(RUN, f"--budget={budget}", code=2)


def test_a_run_that_is_ended_before_its_first_result_is_reported_and_no_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "in_budget", lambda *_: (signal.raise_signal(signal.SIGTERM) for _ in "1"))
    told = said(RUN, "--budget=1h", f"--report={tmp_path}", code=130)

    assert re.search(r"interrupted: (\d+) of \1 checks were not played", told)
    assert (tmp_path / "report.json").exists()


def test_a_budget_in_which_nothing_fits_is_a_mistake():
    assert "No check was played within 0.001 s" in said(RUN, "--budget=1ms", code=2)
