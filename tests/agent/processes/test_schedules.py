"""Random orders of everything: no verdict but the right one; and ordering bugs that are planted are found."""

from __future__ import annotations

import pytest
from benchmarks.schedules import runner as schedules
from benchmarks.schedules.mutants import MUTANTS, planted
from benchmarks.schedules.runner import LENGTH, draw, explain, play, run, shrink


@pytest.fixture(scope="module", autouse=True)
def virtual():
    with schedules.virtual():
        yield


def test_nothing_goes_wrong_in_any_order():
    result = run(range(500))

    assert result.failed == []
    assert result.events >= 50 * result.count
    assert min(result.allowed, result.reloads, result.deaths) > 50


def test_a_seed_plays_the_same_schedule_again():
    """Also after others, whose dead processes are collected some time."""
    lines: tuple[list[str], list[str]] = [], []
    for told in lines:
        for seed in range(40):
            play(seed, *draw(seed), told.append)

    assert lines[0] == lines[1]
    assert len(lines[0]) > 40 * LENGTH


@pytest.mark.parametrize("seed", [15_815, 103_123, 682_818, 766_429, 958_010])
def test_what_a_schedule_found_once_stays_mended(seed):
    assert play(seed, *draw(seed))[0].faults == []


@pytest.mark.parametrize("name", MUTANTS)
def test_an_ordering_bug_is_found(name):
    with planted(name):
        assert run(range(10_000), until_failure=True).failed != []


def test_a_failure_is_shrunk_to_what_matters():
    with planted("calls-revocations-settled-before-they-are"):
        ((seed, _),) = run(range(10_000), until_failure=True).failed
        workers, choices = draw(seed)
        few = shrink(seed, workers, choices)

        assert len(few) <= 12
        assert play(seed, workers, few)[0].faults
        assert "WRONG" in "\n".join(explain(seed))
