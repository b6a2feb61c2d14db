"""Runs checks of the wire lane side by side against one agent.

Every check ends by its deadline with a verdict. What the agent did wrong is FAIL, a connection it refused or
never answered included; what the suite did wrong (any other exception) is a HARNESS_ERROR and never the
agent's.

Deadlines are short because an agent's answers are; but sixteen checks at once, on a host with other work, can
make a sound agent late. So where a few checks failed by silence alone they are judged once more, nearly
alone and with more patience, and the second verdict holds. Where many did, the agent is silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import (
    Evidence,
    SilenceError,
)
from iamroles_scenarios.declarations.results import Check, CheckResult, Verdict, tails
from iamroles_scenarios.engine.verdicts import blamed, lacking, passed
from iamroles_scenarios.wire.client import Connection
from iamroles_scenarios.wire.judge import opened
from iamroles_scenarios.wire.target import WireTarget

_CONCURRENCY = 16
"""Checks side by side."""
CHECK_DEADLINE = 25.0
"""Seconds, before scaling, after which a check that still runs is a failure of the agent."""
FEW = 24
"""Failures by silence that are judged again; more are no accident."""
PATIENCE = 2.0
"""Deadlines are multiplied by this the second time."""


def run(
    target: WireTarget,
    chosen: Sequence[Check],
    *,
    on_result: Callable[[CheckResult], None] | None = None,
    twice: bool = True,
    over: Callable[[], bool] = lambda: False,
) -> list[CheckResult]:
    """Run checks and give a verdict for each, in the order given.

    Args:
        target: the running agent.
        chosen: checks of this lane.
        on_result: called with each result once it is final.
        twice: judge a few failures by silence again (see the module).
        over: asked before each check; once it says yes, no more are begun, and those have no result.
    """
    return asyncio.run(_run(target, chosen, on_result, twice=twice, over=over))


async def _run(
    target: WireTarget,
    chosen: Sequence[Check],
    on_result: Callable[[CheckResult], None] | None,
    *,
    twice: bool,
    over: Callable[[], bool],
) -> list[CheckResult]:
    final: dict[str, CheckResult] = {}
    silent: list[Check] = []

    def settle(result: CheckResult) -> None:
        final[result.check] = result
        if on_result is not None:
            on_result(result)

    async def first(check: Check) -> None:
        result, by_silence = await _judged(target, check)
        if by_silence and twice:
            silent.append(check)
            final[check.id] = result
        else:
            settle(result)

    await _side_by_side(_CONCURRENCY, [partial(first, check) for check in chosen], over)

    patient = replace(target, time_scale=target.time_scale * PATIENCE)

    async def again(check: Check) -> None:
        second, _ = await _judged(patient, check)
        if second.verdict is Verdict.FAIL:
            second = final[check.id]
        settle(replace(second, tries=2))

    if 0 < len(silent) <= FEW:
        await _side_by_side(4, [partial(again, check) for check in silent], over)
    else:
        for check in silent:
            settle(final[check.id])
    return [final[check.id] for check in chosen if check.id in final]


async def _side_by_side(
    bound: int, jobs: Sequence[Callable[[], Awaitable[None]]], over: Callable[[], bool]
) -> None:
    slots = asyncio.Semaphore(bound)

    async def one(job: Callable[[], Awaitable[None]]) -> None:
        async with slots:
            if not over():
                await job()

    await asyncio.gather(*map(one, jobs))


async def _judged(target: WireTarget, check: Check) -> tuple[CheckResult, bool]:
    """One check's result, and whether the agent's silence alone is the reason for it."""
    if missing := sorted(check.features - target.features):
        return lacking(check, missing), False
    connections: list[Connection] = []
    opened.set(connections)
    started = time.monotonic()
    silent = False
    with recording.recorded() as found:
        try:
            result = passed(check, await _within(target.seconds(CHECK_DEADLINE), check.run(target)))
        except Exception as error:  # noqa: BLE001 - `blamed` says whose fault it is
            result, silent = blamed(check, error), _by_silence(error)
    result = replace(result, transcript=found.text(), narrowest=found.narrowest)
    if result.verdict is Verdict.FAIL:
        result = replace(result, evidence=_with_trace(result.evidence, connections, target))
    return replace(result, seconds=time.monotonic() - started), silent and result.verdict is Verdict.FAIL


async def _within(limit: float, work: Awaitable[object]) -> object:
    try:
        async with asyncio.timeout(limit):
            return await work
    except TimeoutError as error:
        raise SilenceError(f"the agent kept the check busy for {limit:g} s") from error


def _by_silence(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, SilenceError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _with_trace(evidence: Evidence, connections: list[Connection], target: WireTarget) -> Evidence:
    """The failing conversation, else the last one; and the end of the agent's log."""
    trace = evidence.trace or (str(connections[-1].transcript) if connections else "")
    logs = dict(evidence.logs)
    if target.logs is not None:
        logs |= tails({"agent": target.logs()})
    return replace(evidence, trace=trace, logs=logs)
