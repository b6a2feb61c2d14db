"""A run: many checks against one agent on one stage. pytest, the CLI, mutants and the matrix share it.

`jobs` is the plan; here a few threads play it. Everything is submitted at once, and a caller waits for the
result that it wants (`Run.result`). `verdicts` says what each result becomes before a caller gets it.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from iamroles_scenarios.base.polling import run_over
from iamroles_scenarios.declarations.planning import current
from iamroles_scenarios.declarations.results import CheckResult
from iamroles_scenarios.declarations.scenario import Lane, PlannedCheck, WorldSpec
from iamroles_scenarios.engine import wire_lane
from iamroles_scenarios.engine.attempts import stretched
from iamroles_scenarios.engine.background_load import BackgroundLoad
from iamroles_scenarios.engine.jobs import Job, jobs_of, validate
from iamroles_scenarios.engine.play import owner_of
from iamroles_scenarios.engine.setups import answers
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.verdicts import blamed, lacking, reported
from iamroles_scenarios.engine.wire_target import wire_target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import AgentSpec, Stage, open_stage
from iamroles_scenarios.wire.target import WireTarget

THREADS = 16
"""Checks that are played at a time: most wait. Starts of worlds have a bound of their own (`worlds`)."""
_SWITCH = 0.0005
"""Seconds that a thread computes while another waits to go on. By the interpreter's own 5 ms each step of
each question waits longer than it takes."""
_LATE = 4
"""Factor on the agent's declared start time when the run has background load."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run."""

    stage: str = "auto"
    require: str | None = None
    haproxy: str | None = None
    """HAProxy version; None: the stage's default."""
    scale: float = 1.0
    """Multiplies deadlines and short lives."""
    load: float = 0.0
    """Questions a second that flow beside the checks (`engine.background_load`); 0: none."""
    threads: int = THREADS
    allowed: Mapping[str, Any] | None = None
    """For an agent that already runs: arguments of an `iam-check` that it allows."""
    transcripts: bool = False
    """True if results keep the traffic, also of checks that pass."""
    budget: float | None = None
    """Seconds for the run, stage included; checks that have not been played by then are left out. None: no
    end."""


class Run:
    """A run in progress; a context manager. Nothing it started outlives it.

    Args:
        agent: what is judged.
        planned: which checks; none at all is an error.
        options: how.
        stage: where, if it is open already: then the run neither opens nor closes one.
        namespace: what the names of all issuers end in, so that several runs share a stage.

    Raises:
        SelectionError: as `jobs.validate`.
    """

    def __init__(
        self,
        agent: AgentSpec,
        planned: list[PlannedCheck],
        options: Options | None = None,
        *,
        stage: Stage | None = None,
        namespace: str = "",
    ) -> None:
        known = {current(name): reason for name, reason in agent.known_failures.items()}
        self.options = options = options or Options()
        late = options.scale * (_LATE if options.load else 1)
        self.agent = replace(agent, ready_within=agent.ready_within * late, known_failures=known)
        validate(self.agent, planned)
        self.planned = planned
        self.stage = stage
        self._shares = stage is not None
        self._namespace = namespace
        self.haproxy_version = ""
        self._started = time.monotonic()
        self._ended: float | None = None
        self._worlds: Worlds | None = None
        self.background_load: BackgroundLoad | None = None
        """The traffic beside the checks, if it was asked for."""
        self.host = ""
        """What the run does because its host is busy; "" for nothing."""
        self._pool: ThreadPoolExecutor | None = None
        self._jobs = jobs_of(planned)
        self._job_of = {(check.id, check.lane): job for job in self._jobs for check in job.checks}
        self._futures: dict[tuple[str, str], Future[CheckResult]] = {key: Future() for key in self._job_of}
        self._held: dict[tuple[str, str], CheckResult] = {}
        """Failures of the wire lane whose cause is not yet known."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._submitted: dict[Job, None] = {}

    # --- life ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the stage, and bring up one world on it, so that a stage that cannot work fails here.

        Raises:
            StageError: with one sentence and the logs' tails; nothing is left running.
        """
        self._pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="scenario")
        try:
            if self.agent.address:
                answers(self.agent.address, {})
            else:
                self._open_worlds()
        except BaseException:
            self.close()
            raise

    def _open_worlds(self) -> None:
        if self.stage is None:
            self._stretch()
            self.stage = open_stage(self.options.stage, self.options.require, self.options.haproxy)
        through_proxy = any(job.through_proxy for job in self._jobs)
        haproxy = through_proxy or bool(self.options.load)
        how: dict[str, Any] = {"namespace": self._namespace, "scale": self.options.scale}
        worlds = self._worlds = Worlds(self.stage, self.agent, haproxy=haproxy, **how)
        if self.options.load:
            self.background_load = BackgroundLoad(worlds, self.options.load, self.options.scale)
            self.background_load.begin()
        for job in self._jobs:
            if job.scenario and job.scenario.traffic is None:
                worlds.plan(job.scenario.world, owner_of(job.scenario, job.lane))
        shared = [job.scenario.world.model_copy(update={"own": False}) for job in self._jobs if job.scenario]
        first = shared[0] if shared else WorldSpec(policy="orders")
        worlds.plan(first, "first")
        with worlds.borrow(first, "first") as loan:
            self.haproxy_version = loan.world.haproxy.version if through_proxy else ""

    def close(self) -> None:
        """Stop everything, idempotent; results not yet there are cancelled."""
        for future in self._futures.values():
            future.cancel()
        self._over.set()  # what rests goes on, and reports to nobody
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._ended is None:
            self._ended = time.monotonic()
            if self.background_load is not None:
                self.background_load.end()
            if self._worlds is not None:
                self._worlds.close()  # ends what is still being played, as after Ctrl-C
            if self.stage is not None and not self._shares:
                self.stage.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    @property
    def elapsed(self) -> float:
        """Seconds since the run was made, until it was closed."""
        return (self._ended or time.monotonic()) - self._started

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stretch(self) -> None:
        factor, self.host = stretched()
        self.options = replace(self.options, scale=self.options.scale * factor)
        self.agent = replace(self.agent, ready_within=self.agent.ready_within * factor)

    # --- results -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Submit every planned check, under a budget in the order of the plan; idempotent."""
        sys.setswitchinterval(_SWITCH)
        by_rank = sorted(self._jobs, key=lambda job: job.rank)
        for job in by_rank if self.options.budget is None else sorted(self._jobs, key=lambda job: job.last):
            self._submit(job)

    def result(self, check: PlannedCheck) -> CheckResult:
        """Return the result of a check; submits what it needs if `start` was not called, and waits."""
        self._submit(self._job_of[check.id, check.lane])
        return self._futures[check.id, check.lane].result()

    def result_so_far(self, check: PlannedCheck) -> CheckResult | None:
        """Return the check's result, or None while it is running."""
        future = self._futures[check.id, check.lane]
        if future.done() and not future.cancelled():
            return future.result()
        held = self._held.get((check.id, check.lane))
        return None if held is None else reported(held, self.agent)

    def results(self) -> Iterator[CheckResult]:
        """Yield all results in the order of the plan, each as soon as it and those before it are there."""
        self.start()
        for check in self.planned:
            yield self.result(check)

    def in_budget(self, seconds: float) -> Iterator[tuple[PlannedCheck, CheckResult]]:
        """Yield checks and their results as they come, until the run has lasted this many seconds."""
        self.start()
        checks = {self._futures[check.id, check.lane]: check for check in self.planned}
        if (left := seconds - self.elapsed) <= 0:
            return
        with suppress(TimeoutError):
            for future in as_completed(checks, left):
                yield checks[future], future.result()

    # --- playing -------------------------------------------------------------------------------------------

    def _submit(self, job: Job) -> None:
        with self._lock:
            if job in self._submitted:
                return
            self._submitted[job] = None
        assert self._pool is not None  # noqa: S101 - open() made it
        self._pool.submit(self._play, job)

    def _play(self, job: Job) -> None:
        run_over.set(self._over)
        try:
            if job.last:
                self._await_others(job)
            if not self.agent.spop and not job.through_proxy:
                results = [lacking(check, ["spop"]) for check in job.checks]
            elif job.lane == "wire":
                results = self._play_wire(job)
            else:
                results = job.play(self._target("gate" if job.through_proxy else "gate-spop"))
        except Exception as error:  # noqa: BLE001 - the suite's own fault, and reported as that
            results = [blamed(check, error) for check in job.checks]
        missing = RuntimeError("the check was played, but gave no result")
        for result in [*results, *(blamed(check, missing) for check in job.checks)]:
            self._report(result)

    def _await_others(self, last: Job) -> None:
        """Wait for the results of all jobs that were submitted before."""
        with self._lock:
            others = list(itertools.takewhile(lambda job: job is not last, self._submitted))
        for job in others:
            for check in job.checks:
                with suppress(CancelledError):
                    self._futures[check.id, check.lane].exception()

    def _report(self, result: CheckResult) -> None:
        """Hand out a result; the first of a check stands."""
        future = self._futures.get((result.check, result.lane))
        if future is not None and not future.done():
            with suppress(Exception):  # cancelled by close() meanwhile
                future.set_result(reported(result, self.agent))

    def _hold(self, result: CheckResult) -> None:
        self._held[result.check, result.lane] = result

    def _target(self, lane: Lane) -> Target:
        assert self.stage is not None and self._worlds is not None  # noqa: S101, PT018
        options = self.options
        return Target(
            lane, self.stage, self.agent, self._worlds, options.scale, transcripts=options.transcripts
        )

    def _play_wire(self, job: Job) -> list[CheckResult]:
        with self._wire_target() as target:
            return wire_lane.run(
                target,
                job.checks,
                on_result=self._report,
                on_failure=self._hold,
                over=self._over.is_set,
                transcripts=self.options.transcripts,
            )

    def _wire_target(self) -> AbstractContextManager[WireTarget]:
        if self._worlds is not None:
            return wire_target(self._target("gate-spop"))
        return nullcontext(
            WireTarget(
                self.agent.address,
                time_scale=self.options.scale,
                allowed=self.options.allowed,
                features=frozenset(name for name, value in self.agent.features.items() if value),
            )
        )
