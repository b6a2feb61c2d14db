"""A run: many checks against one agent on one stage. pytest, the CLI, mutants and the matrix share it.

A scenario is played once for each lane and its result shared by its checks. Everything is submitted at once
to a few threads, first what is long and what waits for the clock, so that this overlaps with the work of the
others; whoever wants a result waits for that one (`Run.result`). The wire lane runs its checks side by side
by itself and is one job here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import TracebackType
from typing import Any, Self

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import SelectionError
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.planning import planned
from iamroles_scenarios.declarations.results import Check, CheckResult, Verdict
from iamroles_scenarios.declarations.scenario import (
    LANES,
    PROXY_LANES,
    SITES,
    Lane,
    PlannedCheck,
    Scenario,
    WorldSpec,
)
from iamroles_scenarios.engine import wire_lane
from iamroles_scenarios.engine.burden import Burden
from iamroles_scenarios.engine.importance import waits
from iamroles_scenarios.engine.play import owner_of, play
from iamroles_scenarios.engine.setups import (
    ENDING,
    answers,
    explained,
    judged_alive,
    of_the_dead,
    refuses,
    watched,
)
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.verdicts import blamed, lacking, passed
from iamroles_scenarios.engine.wire_target import wire_target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import AgentSpec, Stage, open_stage
from iamroles_scenarios.wire.target import WireTarget

THREADS = 12
"""Checks that are played at a time: most wait. What is work is bounded elsewhere (`worlds`)."""
_LATE = 4
"""Under load an agent may take so many times as long to get ready as it says."""


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
    """Questions a second that flow beside the checks (`engine.burden`); 0: none."""
    threads: int = THREADS
    allowed: Mapping[str, Any] | None = None
    """For an agent that already runs: arguments of an `iam-check` that it allows."""
    transcripts: bool = False
    """Whether results keep all that passed, those of a pass too."""
    budget: float | None = None
    """Seconds for the run, stage included: what is not played by then is not played; None: no end."""


class Run:
    """A run in progress; a context manager. Nothing it started outlives it.

    Args:
        agent: what is judged.
        planned: which checks; none at all is an error.
        options: how.
        stage: where, if it is open already: then the run neither opens nor closes one.
        namespace: what the names of all issuers end in, so that several runs share a stage.

    Raises:
        SelectionError: nothing to run, or known failures that name no check or give no reason.
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
        if not planned:
            raise SelectionError("No check was selected: zero checks prove nothing. Mend the selection.")
        if agent.address and (lanes := {check.lane for check in planned} - {"wire"}):
            raise SelectionError(
                f"The agent already runs at {agent.address}: the stage cannot give it the policies of the "
                f"lanes {', '.join(sorted(lanes))}. Select the lane wire, or give a command."
            )
        _check_known(agent)
        self.options = options = options or Options()
        late = options.scale * (_LATE if options.load else 1)
        self.agent = replace(agent, ready_within=agent.ready_within * late)
        self.planned = planned
        self.stage = stage
        self._shares = stage is not None
        self._namespace = namespace
        self.haproxy_version = ""
        self._started = time.monotonic()
        self._ended: float | None = None
        self._worlds: Worlds | None = None
        self.burden: Burden | None = None
        """The traffic beside the checks, where it was asked for."""
        self._pool: ThreadPoolExecutor | None = None
        self._futures: dict[tuple[str, str], Future[CheckResult]] = {
            (check.id, check.lane): Future() for check in planned
        }
        self._held: dict[tuple[str, str], CheckResult] = {}
        """Failures of the wire lane whose cause is not yet known."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._submitted: set[str] = set()

    # --- life ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the stage, and bring up one world on it, so that a stage that cannot work fails here.

        Raises:
            StageError: with one sentence and the logs' tails; nothing is left running.
        """
        self._pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="scenario")
        if self.agent.address:
            try:
                answers(self.agent.address, {})
            except BaseException:
                self.close()
                raise
            return
        try:
            if self.stage is None:
                self.stage = open_stage(self.options.stage, self.options.require, self.options.haproxy)
            through_haproxy = any(check.lane in PROXY_LANES for check in self.planned)
            haproxy = through_haproxy or bool(self.options.load)
            self._worlds = Worlds(self.stage, self.agent, haproxy=haproxy, namespace=self._namespace)
            if self.options.load:
                self.burden = Burden(self._worlds, self.options.load, self.options.scale)
                self.burden.begin()
            self._announce()
            shared = [check.scenario.world for check in self.planned if check.scenario]
            first = replace_own(shared[0]) if shared else WorldSpec(policy="orders")
            self._worlds.plan(first, "first")
            with self._worlds.borrow(first, "first") as place:
                self.haproxy_version = place.world.haproxy.version if through_haproxy else ""
        except BaseException:
            self.close()
            raise

    def _announce(self) -> None:
        assert self._worlds is not None  # noqa: S101 - opened just before
        for scenario, lane in self._scenario_jobs():
            if scenario.traffic is None:
                self._worlds.plan(scenario.world, owner_of(scenario.id, lane))

    def _scenario_jobs(self) -> list[tuple[Scenario, Lane]]:
        jobs = {
            (check.scenario.id, check.lane): (check.scenario, lane)
            for check in self.planned
            for lane in LANES
            if check.scenario is not None and check.lane == lane
        }
        return sorted(jobs.values(), key=lambda job: (not waits(job[0]), not job[0].world.own))

    def close(self) -> None:
        """Stop everything, idempotent; results not yet there are cancelled."""
        self._over.set()
        for future in self._futures.values():
            future.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._ended is None:
            self._ended = time.monotonic()
            if self.burden is not None:
                self.burden.end()
            if self._worlds is not None:
                self._worlds.close()  # ends what is still being played: after Ctrl-C nobody waits for it
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- playing -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Submit every planned check, under a budget in the order of the plan; idempotent."""
        if self.options.budget is not None:
            for check in self.planned:
                self._submit(check)
            return
        self._submit_wire()
        functions = [check for check in self.planned if check.function and check.lane != "wire"]
        for check in sorted(functions, key=lambda check: not (check.function and check.function.long)):
            self._submit_function(check)
        for scenario, lane in self._scenario_jobs():
            self._submit_scenario(scenario, lane)

    def result(self, check: PlannedCheck) -> CheckResult:
        """The result of one check; submits what it needs if `start` was not called, and waits."""
        self._submit(check)
        return self._futures[check.id, check.lane].result()

    def settled(self, check: PlannedCheck) -> CheckResult | None:
        """What is known of a check by now, for who does not wait any longer; None if it is still played."""
        future = self._futures[check.id, check.lane]
        if future.done() and not future.cancelled():
            return future.result()
        held = self._held.get((check.id, check.lane))
        return None if held is None else with_known(weighed(held), self.agent.known_failures)

    def results(self) -> Iterator[CheckResult]:
        """All results in the order of the plan, each as soon as it and those before it are there."""
        self.start()
        for check in self.planned:
            yield self.result(check)

    def in_budget(self, seconds: float) -> Iterator[tuple[PlannedCheck, CheckResult]]:
        """Checks and their results as they come, until the run has lasted so long."""
        self.start()
        checks = {self._futures[check.id, check.lane]: check for check in self.planned}
        if (left := seconds - self.elapsed) <= 0:
            return
        with suppress(TimeoutError):
            for future in as_completed(checks, left):
                yield checks[future], future.result()

    def _submit(self, check: PlannedCheck) -> None:
        if check.scenario is not None:
            self._submit_scenario(check.scenario, "gate" if check.lane == "gate" else "gate-spop")
        elif check.lane == "wire":
            self._submit_wire()
        else:
            self._submit_function(check)

    def _once(self, job: str, work: Callable[[], Iterable[CheckResult]], covers: list[PlannedCheck]) -> None:
        if not self.agent.spop and covers[0].lane not in PROXY_LANES:
            for check in covers:
                self._settle(lacking(check, ["spop"]))
            return
        with self._lock:
            if job in self._submitted:
                return
            self._submitted.add(job)
        assert self._pool is not None  # noqa: S101 - open() made it
        self._pool.submit(self._work, work, covers)

    def _work(self, work: Callable[[], Iterable[CheckResult]], covers: list[PlannedCheck]) -> None:
        try:
            own_traces = covers[0].lane == "wire"
            with recording.recorded(keeps=self.options.transcripts or not own_traces) as found:
                results = list(work())
            failed = any(result.verdict is Verdict.FAIL for result in results)
            text = found.text() if failed or self.options.transcripts else ""
            for result in results:
                told = traced(result, text) if result.verdict is Verdict.FAIL else result
                kept = text if self.options.transcripts else ""
                self._settle(replace(told, transcript=kept, narrowest=found.narrowest, tries=found.tries))
        except Exception as error:  # noqa: BLE001 - the suite's own fault, and said to be
            for check in covers:
                self._settle(blamed(check, error))
        for check in covers:
            self._settle(blamed(check, RuntimeError("the check was played, but gave no result")))

    def _settle(self, result: CheckResult) -> None:
        future = self._futures.get((result.check, result.lane))
        if future is not None and not future.done():
            with suppress(Exception):  # cancelled by close() meanwhile
                future.set_result(with_known(weighed(result), self.agent.known_failures))

    def _target(self, lane: Lane) -> Target:
        assert self.stage is not None  # noqa: S101
        assert self._worlds is not None  # noqa: S101
        return Target(lane, self.stage, self.agent, self._worlds, self.options.scale)

    def _submit_scenario(self, scenario: Scenario, lane: Lane) -> None:
        covers = [check for check in self.planned if check.scenario is scenario and check.lane == lane]
        self._once(f"{scenario.id} {lane}", lambda: play(scenario, self._target(lane)), covers)

    def _submit_function(self, check: PlannedCheck) -> None:
        lane: Lane = "gate" if check.lane in PROXY_LANES else "gate-spop"
        self._once(f"{check.id} {lane}", lambda: [called(check, self._target(lane))], [check])

    def _submit_wire(self) -> None:
        covers = [check for check in self.planned if check.lane == "wire"]
        if covers:
            self._once(
                "wire", lambda: self._wire([check.function for check in covers if check.function]), covers
            )

    def _wire(self, checks: list[Check]) -> list[CheckResult]:
        with self._wire_target() as target:

            def settle(result: CheckResult) -> None:
                """Hold failures back until it is known whether the agent has ended."""
                if result.verdict is Verdict.FAIL:
                    self._held[result.check, result.lane] = result
                else:
                    self._settle(result if self._worlds else of_a_runner(result))

            results = wire_lane.run(target, checks, on_result=settle, over=self._over.is_set)
            if self._held:
                for result in self._explained(list(self._held.values()), target):
                    self._settle(result)
            return results

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

    def _explained(self, failed: list[CheckResult], target: WireTarget) -> list[CheckResult]:
        """Failures of the wire lane, with their cause where the agent itself is gone."""
        code = target.ended()  # asked first: its last words are in the log then
        log = target.logs() if target.logs else ""
        if code is not None:
            return [of_the_dead(result, code, log) for result in failed]
        if (why := refuses(target.address)) is not None:
            cause = f"nobody answers at {target.address} any more: {why}"
            return [explained(result, cause, log) for result in failed]
        return failed


def of_a_runner(result: CheckResult) -> CheckResult:
    """What cannot be played on an agent that already runs does not apply to it, so that its run can end well.

    The statement counts such a check as not played: no class that has one is conformed to.
    """
    if result.verdict is not Verdict.UNTESTABLE:
        return result
    return replace(
        result,
        verdict=Verdict.NOT_APPLICABLE,
        message=f"cannot be played on a running agent: {result.message}",
    )


def replace_own(world: WorldSpec) -> WorldSpec:
    """The same world, shared."""
    return world.model_copy(update={"own": False})


def called(check: PlannedCheck, target: Target) -> CheckResult:
    """Run a function check of a gate lane; never raises for what the agent does."""
    assert check.function is not None  # noqa: S101 - planned as one
    if missing := target.lacks(check.features):
        return lacking(check, missing)
    started = time.monotonic()
    with watched() as worlds:
        try:
            result = passed(check, check.function.run(target))
        except Exception as error:  # noqa: BLE001 - `blamed` says whose fault it is
            result = blamed(check, error)
    [result] = judged_alive([result], worlds, ENDING)
    return replace(result, seconds=time.monotonic() - started)


_TRACE = 60
"""Lines of what a check sent and saw that its failure shows, where it has no trace of its own."""


def traced(result: CheckResult, text: str) -> CheckResult:
    """A failure with the end of what was sent and seen as its trace, if it has none."""
    if result.evidence.trace or not text:
        return result
    trace = "\n".join(text.splitlines()[-_TRACE:])
    return replace(result, evidence=replace(result.evidence, trace=trace))


def weighed(result: CheckResult) -> CheckResult:
    """A failure by what it proves: of a SHOULD it is a warning, of `strict` alone a departure.

    A check of a catalogue's own making, which tests have, stays a failure.
    """
    known = [catalogue()[name] for name in result.requirements if name in catalogue()]
    if result.verdict is not Verdict.FAIL or not known:
        return result
    if all(item.level == "SHOULD" for item in known):
        return replace(result, verdict=Verdict.WARNING)
    if all(item.grade == "strict" for item in known):
        return replace(result, verdict=Verdict.DEPARTURE)
    return result


_RED = (Verdict.FAIL, Verdict.WARNING, Verdict.DEPARTURE)


def with_known(result: CheckResult, known: Mapping[str, str]) -> CheckResult:
    """Apply the vendor's list: a listed failure is known, a listed pass is stale and fails."""
    reason = known.get(result.check) or known.get(f"{result.check}[{SITES.get(result.lane, '')}]")
    if reason is None:
        return result
    if result.verdict in _RED:
        return replace(result, verdict=Verdict.KNOWN_FAILURE, message=f"known: {reason} ({result.message})")
    if result.verdict is Verdict.PASS:
        message = f"listed as a known failure ({reason}), but it passes: take it off agent.toml's list"
        return replace(result, verdict=Verdict.FAIL, message=message)
    return result


def _check_known(agent: AgentSpec) -> None:
    """Hold the vendor's list to its rules: a reason for each entry, and a check of that name."""
    if not agent.known_failures:
        return
    ids = {name for check in planned() for name in (check.id, check.name)}
    for name, reason in agent.known_failures.items():
        where = f"agent.toml: known_failures.{name}"
        if not reason.strip():
            raise SelectionError(f"{where}: a known failure needs a reason. Say why it fails.")
        if name not in ids:
            near = get_close_matches(name, ids, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Mend or remove it."
            raise SelectionError(f"{where}: no such check. {hint}")
