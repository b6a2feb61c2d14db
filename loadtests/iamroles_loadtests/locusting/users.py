"""Locust users that are an epoll loop over many connections.

A locust user of the usual kind has one connection and one greenlet, and is late whenever another one runs.
A `TrafficUser` drives many connections by `iamroles_scenarios.traffic` for some milliseconds at a time and
then lets gevent have its turn, so that locust's messages, UI and workers go on. What that costs in time shows
as lag, and not in the latencies from sent, which end at the kernel's stamps. One user for each process is
right: a second one in the same process makes both late.

Once a second the samples are folded into locust's own statistics, in **microseconds**: each case has a line
of type `sent us` and one of type `due us`. The total counts those from sent. UI, CSV, JSON, `--processes`,
`--master` and `--worker` work as with any user; the event `request` is not fired for each sample. Wrong
answers and faults are locust's failures, and its exit code is 1.

Workers send their histograms along with their statistics. The master adds them exactly, and writes the sum at
the end (`RESULT`).
"""

from __future__ import annotations

import os
import resource
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gevent
import numpy as np
from gevent.event import Event
from locust import User, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import RequestStats, StatsEntry

from iamroles_loadtests.asking.plan import Plan
from iamroles_loadtests.measuring.drive import Driver
from iamroles_loadtests.measuring.histogram import Integers, columns
from iamroles_loadtests.measuring.measurement import Measurement
from iamroles_scenarios.traffic import FIELDS, Loop
from iamroles_scenarios.traffic.polling import NANO, now

RESULT = "IAMROLES_LOAD_RESULT"
"""Environment variable: the file in which the process that has the whole (the master, or the only one) writes
its `Measurement` at the end, JSON."""
_SLICE = 10_000_000
"""Nanoseconds of the loop until gevent has its turn."""
_SHARED = 1_000_000
"""The same if several users share a process: each waits for the others, and is late by that."""
_PATIENCE = 30.0
"""Seconds that a worker waits for its plan, and the master for what its workers measured."""
_REST = "traffic-rest"
"""Type of the messages by which the master asks for the rest, and a worker hands it in."""
_LOST = 3
"""Exit code if a user failed, or a worker did not report: a part is not a result."""
_FOLD = 1.0
"""Seconds between two looks at the samples."""


class Collector:
    """Keeps what this process measured, or on a master what all workers did."""

    def __init__(self) -> None:
        self.measured = Measurement()
        self.missing: set[str] = set()
        """Workers that have not handed in the rest."""
        self.began: set[str] = set()
        """Workers that were there when the test began: locust forgets those that die."""
        self._cpu = 0.0

    def start(self, environment: Environment, **_more: object) -> None:
        runner: Any = environment.runner
        if isinstance(runner, MasterRunner):
            clients: Any = runner.clients
            self.began = {client.id for client in clients.ready}
        self.measured = Measurement(begin=now())
        self._cpu = _used()

    def report(self, data: dict[str, Any], **_more: object) -> None:
        """Locust's worker sends what it has."""
        data["traffic"] = self.handed_over()

    def handed_over(self) -> str:
        """Give what was measured since the last time, as JSON."""
        self._count_cpu()
        measured, self.measured = self.measured, Measurement(begin=self.measured.begin)
        return measured.model_dump_json()

    def take(self, data: dict[str, Any], **_more: object) -> None:
        """Locust's master gets what a worker has."""
        if "traffic" in data:
            self.measured.add(Measurement.model_validate_json(data["traffic"]))

    def write(self, environment: Environment, **_more: object) -> None:
        """Write the whole at the end."""
        path, runner = os.environ.get(RESULT), environment.runner
        if isinstance(runner, WorkerRunner):
            return
        failed = [one["msg"] for one in runner.exceptions.values()] if runner else []
        if self.missing:
            failed.append(f"{len(self.missing)} workers did not hand in what they measured")
        if failed:
            sys.stderr.write(f"no result: {'; '.join(failed)}\n")
            environment.process_exit_code = _LOST
        elif path:
            if not isinstance(runner, MasterRunner):
                self._count_cpu()
            self.measured.seconds = max(self.measured.until, self.measured.width)
            Path(path).write_text(self.measured.model_dump_json(), encoding="utf-8")

    def _count_cpu(self) -> None:
        used = _used()
        self.measured.cpu += used - self._cpu
        self._cpu = used


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


COLLECTOR = Collector()


def _register(environment: Environment, **_more: object) -> None:
    listeners: Any = environment.events
    runner: Any = environment.runner
    listeners.test_start.add_listener(COLLECTOR.start)
    if isinstance(runner, MasterRunner):
        listeners.worker_report.add_listener(COLLECTOR.take)
        listeners.test_stopping.add_listener(lambda **_more: _collect(runner))
        runner.register_message(_REST, _received)
    elif isinstance(runner, WorkerRunner):
        listeners.report_to_master.add_listener(COLLECTOR.report)
        runner.register_message(_REST, lambda **_more: _hand_in(runner))
    listeners.quitting.add_listener(COLLECTOR.write)


def _collect(runner: Any) -> None:  # noqa: ANN401 - a MasterRunner
    """Before the workers are sent home: let each stop its users and hand in the rest.

    Locust waits half a second for the last reports. On a busy machine some come later, and would be lost.
    """
    alive = {client.id for client in runner.clients.ready + runner.clients.running + runner.clients.spawning}
    COLLECTOR.missing = COLLECTOR.began | alive
    for client in alive:
        runner.send_message(_REST, None, client)
    deadline = time.monotonic() + _PATIENCE
    while COLLECTOR.missing & alive and time.monotonic() < deadline:
        gevent.sleep(0.02)  # type: ignore[no-untyped-call]


def _received(msg: Any, **_more: object) -> None:  # noqa: ANN401 - locust's message
    COLLECTOR.take(msg.data)
    COLLECTOR.missing.discard(msg.node_id)


def _hand_in(runner: Any) -> None:  # noqa: ANN401 - a WorkerRunner
    for user in list(TrafficUser.running):
        user.on_stop()
    runner._send_stats()  # noqa: SLF001 - the rest of locust's own statistics, before ours
    runner.send_message(_REST, {"traffic": COLLECTOR.handed_over()})


events.init.add_listener(_register)  # type: ignore[no-untyped-call]


class TrafficUser(User):
    """Drives a phase for as long as locust wants.

    Subclasses set `plan`, and then `planned`. The phase's rate and connections are those of each user; its
    length and warm-up do not matter.
    """

    abstract = True
    plan: ClassVar[Plan]
    planned: ClassVar[Event] = Event()  # type: ignore[no-untyped-call]
    """Set once `plan` is there."""
    running: ClassVar[list[TrafficUser]] = []
    """Those of this process."""
    _loop: Loop | None = None

    def on_start(self) -> None:
        if not self.planned.wait(_PATIENCE):  # type: ignore[no-untyped-call]
            raise RuntimeError("no plan: the master did not say what to ask")
        self.running.append(self)
        self._driver = Driver(self.plan.pools)
        # By chance, and here: `--processes` forks after it has loaded this module.
        phase = self.plan.phase.model_copy(update={"seed": secrets.randbits(40), "warmup": 0.0})
        loop = self._driver.loop(phase)
        loop.open(self._driver.clients(phase, loop))
        loop.start()
        self._loop = loop
        self._folded = time.monotonic()
        self._failed: dict[str, int] = {}

    @task
    def drive(self) -> None:
        """Some milliseconds of traffic."""
        loop = self._loop
        if loop is None:  # it has handed in all, and waits for its end
            gevent.sleep(0.05)  # type: ignore[no-untyped-call]
            return
        loop.run(now() + (_SLICE if len(self.running) == 1 else _SHARED))
        if time.monotonic() - self._folded > _FOLD:
            self._fold()
        gevent.sleep(0)  # type: ignore[no-untyped-call]

    def on_stop(self) -> None:
        """Wait for what is under way, and count the rest in."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        self.running.remove(self)
        loop.finish(_yield)
        self._fold(loop)
        cases = self._driver.cases.values()
        COLLECTOR.measured.finish(loop.tally, cases, stamped=loop.stamped)

    def _fold(self, loop: Loop | None = None) -> None:
        """Count samples in, also in locust's statistics."""
        loop = loop or self._loop
        assert loop is not None  # noqa: S101 - there are samples
        self._folded = time.monotonic()
        records = loop.records.take()
        loop.records.clear()
        cases = self._driver.cases
        COLLECTOR.measured.record(records, cases.values())
        table = columns(records, FIELDS)
        stats: RequestStats = self.environment.stats
        for case in cases.values():
            mine = table["case"] == case.number
            if mine.any():
                at = table["received"][mine] // NANO
                sent = (table["received"] - table["sent"])[mine] // 1000
                due = (table["received"] - table["due"])[mine] // 1000
                for entry in (stats.get(case.name, "sent us"), stats.total):
                    log(entry, sent, at)
                log(stats.get(case.name, "due us"), due, at)
            failed = case.wrong + case.faults
            for _ in range(failed - self._failed.get(case.name, 0)):
                stats.log_error("sent us", case.name, case.examples[-1])
            self._failed[case.name] = failed


def log(entry: StatsEntry, values: Integers, seconds: Integers) -> None:
    """Log many responses at once, as `StatsEntry.log` logs one.

    Args:
        entry: of locust's statistics.
        values: response times, in microseconds.
        seconds: when each came, epoch seconds.
    """
    last = int(seconds.max())
    before = entry.last_request_timestamp
    if entry.use_response_times_cache and before and last > int(before):
        entry._cache_response_times(last - 1)  # noqa: SLF001 - as `StatsEntry.log` does
    entry.num_requests += int(values.size)
    for second, count in _counted(seconds):
        entry.num_reqs_per_sec[second] += count
    entry.last_request_timestamp = time.time()
    entry.total_response_time += int(values.sum())
    low, high = int(values.min()), int(values.max())
    entry.min_response_time = low if entry.min_response_time is None else min(low, entry.min_response_time)
    entry.max_response_time = max(high, entry.max_response_time)
    for value, count in _counted(_rounded(values)):
        entry.response_times[value] += count


def _counted(values: Integers) -> Iterator[tuple[int, int]]:
    found, counts = np.unique(values, return_counts=True)
    return zip(found.tolist(), counts.tolist(), strict=True)


def _rounded(values: Integers) -> Integers:
    """To three digits: locust sends the counts of all values from worker to master."""
    digits = np.maximum(np.floor(np.log10(np.maximum(values, 1))).astype(np.int64) - 2, 0)
    unit = 10**digits
    found: Integers = (values + unit // 2) // unit * unit
    return found


def _yield() -> bool:
    gevent.sleep(0)  # type: ignore[no-untyped-call]
    return False
