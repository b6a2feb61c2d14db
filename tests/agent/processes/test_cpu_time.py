"""How long a process waited for a CPU, from what the kernel tells of its threads."""

import os
from math import inf
from unittest import mock

import pytest

from iamroles_agent.processes import cpu_time
from iamroles_agent.processes.cpu_time import CpuTime

MAIN, HELPER = "1", "2"


def test_a_wait_that_lasts_counts_though_another_thread_runs():
    times = CpuTime(0)
    times.counted(0.0, [(MAIN, 5.0, 1.0, 0.0), (HELPER, 1.0, 1.0, 0.0)])
    for second in range(1, 4):
        seen = times.counted(second, [(MAIN, 5.0, 1.0, inf), (HELPER, 1.0 + second / 100, 1.0, 0.0)])
        assert (seen.waited, seen.waiting) == (2.0, second)


def test_a_wait_that_lasts_counts_from_the_look_before_it_also_after_a_moment_on_a_cpu():
    times = CpuTime(0)
    times.counted(0.0, [(MAIN, 5.0, 1.0, inf)])
    assert times.counted(2.0, [(MAIN, 5.5, 1.0, inf)]).waiting == 1.5
    assert times.counted(3.0, [(MAIN, 5.5, 1.0, inf)]).waiting == 2.5
    seen = times.counted(4.0, [(MAIN, 5.75, 4.0, inf)])
    assert (seen.since(1.0), seen.waiting) == (3.25, 0.25)


def test_a_wait_for_a_file_system_that_never_answers_counts_for_some_seconds():
    times = CpuTime(0)
    times.counted(0.0, [(MAIN, 5.0, 1.0, 0.0)])
    waits = [times.counted(at, [(MAIN, 5.0, 1.0, cpu_time._COUNT[b"D"])]).waiting for at in (4.0, 9.0, 60.0)]
    assert waits == [4.0, 9.0, 10.0]


def test_a_thread_that_sleeps_or_runs_waits_for_nothing():
    times = CpuTime(0)
    for second in range(5):
        seen = times.counted(second, [(MAIN, float(second), 1.0, inf), (HELPER, 1.0, 0.0, 0.0)])
        assert seen.since(1.0) == 0.0


def test_an_ended_thread_stays_counted():
    times = CpuTime(0)
    times.counted(0.0, [(MAIN, 1.0, 1.0, 0.0), (HELPER, 2.0, 3.0, 0.0)])
    seen = times.counted(1.0, [(MAIN, 1.5, 1.0, 0.0)])
    assert (seen.ran, seen.waited) == (3.5, 4.0)


@pytest.mark.parametrize("read", [mock.Mock(side_effect=OSError("no descriptor")), lambda *_: b"0 0 0) R"])
def test_where_the_times_cannot_be_read_a_process_runs_and_does_not_wait(monkeypatch, read):
    times = CpuTime(os.getpid())
    before = times.look()
    monkeypatch.setattr(cpu_time, "_read", read)
    seen = [times.look() for _ in range(3)]
    assert [one.since(before.waited) for one in seen] == [0.0, 0.0, 0.0]
    assert before.ran < seen[0].ran < seen[1].ran < seen[2].ran
    monkeypatch.undo()
    assert times.look().ran >= seen[2].ran


def test_a_real_process():
    times = CpuTime(os.getpid())
    before = times.look()
    while times.look().ran <= before.ran:
        pass
    assert times.look().waited >= before.waited
