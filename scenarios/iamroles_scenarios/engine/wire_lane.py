"""The wire lane: its checks run side by side against one agent.

Every check ends by its deadline with a verdict. What the agent did wrong is FAIL, a connection it refused or
never answered included; what the suite did wrong (any other exception) is a HARNESS_ERROR and never the
agent's. Failures come last: only then is it known whether the agent itself has ended, which explains them.

Deadlines are short because an agent's answers are. What the host was late for is judged again when all others
are through: side by side, with longer times (`attempts`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from iamroles_scenarios.base import lateness, recording
from iamroles_scenarios.base.errors import Evidence, SilenceError, StageError
from iamroles_scenarios.declarations.results import CheckResult, Verdict, tails
from iamroles_scenarios.declarations.scenario import PlannedCheck
from iamroles_scenarios.engine.attempts import STRETCHES, settled
from iamroles_scenarios.engine.setups import Ending, in_words, refuses, watched
from iamroles_scenarios.engine.verdicts import blamed, explained, lacking, passed, recorded, unless_late
from iamroles_scenarios.wire.client import Connection
from iamroles_scenarios.wire.judge import opened
from iamroles_scenarios.wire.target import WireTarget

_CONCURRENCY, _NEARLY_ALONE = 16, 4
"""Checks side by side; and of those that are judged again."""
CHECK_DEADLINE = 25.0
"""Seconds, before scaling and beside the start of an agent, after which a check that still runs is a failure
of the agent."""
_CANCEL_AGAIN = 1.0
"""Seconds until a check that has not ended is cancelled again: a library may lose a cancellation."""


def _ignored(_result: CheckResult) -> None: ...


def run(
    target: WireTarget,
    chosen: Sequence[PlannedCheck],
    *,
    on_result: Callable[[CheckResult], None] = _ignored,
    on_failure: Callable[[CheckResult], None] = _ignored,
    replays: bool = True,
    over: Callable[[], bool] = lambda: False,
    transcripts: bool = False,
) -> list[CheckResult]:
    """Run checks and return a verdict for each, in the order given.

    Args:
        target: the running agent.
        chosen: checks of this lane.
        on_result: called with each result once it is final.
        on_failure: called with each failure at once, before it is known whether the agent has ended.
        replays: judge again what the host was late for.
        over: asked before each check; once it says yes, no more are begun, and those have no result.
        transcripts: the results keep the traffic, also of checks that pass.
    """
    lateness.start()
    lane = _WireLane(target, on_result, on_failure, over, transcripts)
    return asyncio.run(lane.run(chosen, STRETCHES if replays else STRETCHES[:1]))


@dataclass(slots=True)
class _WireLane:
    target: WireTarget
    on_result: Callable[[CheckResult], None]
    on_failure: Callable[[CheckResult], None]
    over: Callable[[], bool]
    transcripts: bool
    found: dict[str, CheckResult] = field(default_factory=dict)

    async def run(self, chosen: Sequence[PlannedCheck], stretches: Sequence[float]) -> list[CheckResult]:
        former: dict[str, list[CheckResult]] = {check.id: [] for check in chosen}
        late = list(chosen)
        # A thread for each check: none waits for the start of another's agent.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_CONCURRENCY))
        beats = asyncio.create_task(lateness.watched_loop())

        async def one(check: PlannedCheck) -> None:
            result = await self._judged(target, check)
            if result.late and stretch < STRETCHES[-1] and len(stretches) > 1:
                former[check.id].append(result)
                late.append(check)
            else:
                self._keep(settled(result, former[check.id]) if len(stretches) > 1 else result)

        for stretch in stretches:
            target = replace(self.target, time_scale=self.target.time_scale * stretch)
            jobs = [partial(one, check) for check in late]
            late = []
            await self._side_by_side(_CONCURRENCY if stretch == 1 else _NEARLY_ALONE, jobs)
        beats.cancel()
        self._explain()
        return [self.found[check.id] for check in chosen if check.id in self.found]

    def _keep(self, result: CheckResult) -> None:
        self.found[result.check] = result
        failed = result.verdict is Verdict.FAIL
        (self.on_failure if failed else self.on_result)(result)

    def _explain(self) -> None:
        """Report the failures, with their cause if the agent itself is gone."""
        failed = [result for result in self.found.values() if result.verdict is Verdict.FAIL]
        if failed and (ending := _ended(self.target)) is not None:
            failed = [explained(result, ending) for result in failed]
        for result in failed:
            self.found[result.check] = result
            self.on_result(result)

    async def _side_by_side(self, bound: int, jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
        slots = asyncio.Semaphore(bound)

        async def one(job: Callable[[], Awaitable[None]]) -> None:
            async with slots:
                if not self.over():
                    await job()

        await asyncio.gather(*map(one, jobs))

    async def _judged(self, target: WireTarget, check: PlannedCheck) -> CheckResult:
        assert check.function is not None  # noqa: S101 - the lane has no scenarios
        if missing := sorted(check.features - target.features):
            return lacking(check, missing)
        connections: list[Connection] = []
        opened.set(connections)
        began = time.monotonic()
        with recording.recorded(keeps=self.transcripts) as found, watched() as worlds:
            pids = [target.pid]
            try:
                # Not by `seconds`: this bound alone does not let time decide in a check.
                limit = (CHECK_DEADLINE + target.ready_within) * target.time_scale
                result = passed(check, await _within(limit, check.function.run(target)))
            except Exception as error:  # noqa: BLE001 - `blamed` says whose fault it is
                result = blamed(check, error, _evidence(connections, target))
                pids += [error.pid] if isinstance(error, StageError) else []
        pids += [pid for world in worlds for pid in world.host_pids]
        [result] = unless_late([result], found, began, pids, target.time_scale)
        return recorded(result, found, time.monotonic() - began, transcripts=self.transcripts)


async def _within(limit: float, work: Coroutine[object, object, object]) -> object:
    """Return what a check returns in time; cancel it again and again if it overhears that."""
    task = asyncio.create_task(work)
    done, _ = await asyncio.wait({task}, timeout=limit)
    with suppress(TimeoutError):  # of a bound of the check's own
        if done:
            return task.result()
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN)
    spent = "for all of its own time" if done else f"for {limit:g} s"
    raise SilenceError(f"the agent kept the check busy {spent}")


def _evidence(connections: list[Connection], target: WireTarget) -> Evidence:
    """Return the last conversation, and the end of the agent's log."""
    trace = str(connections[-1].transcript) if connections else ""
    return Evidence(trace=trace, logs=tails({"agent": target.logs()}) if target.logs else {})


def _ended(target: WireTarget) -> Ending | None:
    """Return how the agent ended by itself, if it did; if the stage did not start it, ask its address."""
    code = target.ended()  # asked first: its last words are in the log then
    log = target.logs() if target.logs else ""
    if code is not None:
        return Ending(f"the agent ended {in_words(code)} while it was judged", log)
    if (why := refuses(target.address)) is not None:
        return Ending(f"no agent answers at {target.address} now: {why}", log)
    return None
