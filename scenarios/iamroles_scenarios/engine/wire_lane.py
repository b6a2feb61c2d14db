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
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from iamroles_scenarios.checks import all_checks
from iamroles_scenarios.declarations.results import (
    Check,
    CheckFailed,
    CheckResult,
    Evidence,
    Untestable,
    Verdict,
)
from iamroles_scenarios.wire.client import Connection, SilenceError, WireError
from iamroles_scenarios.wire.codec import WireFormatError
from iamroles_scenarios.wire.judge import opened
from iamroles_scenarios.wire.target import WireTarget

CHECK_DEADLINE = 25.0
"""Seconds, before scaling, after which a check that still runs is a failure of the agent."""
FEW = 24
"""Failures by silence that are judged again; more are no accident."""
PATIENCE = 2.0
"""Deadlines are multiplied by this the second time."""


def checks() -> list[Check]:
    """The checks of this lane, by id."""
    return [found for found in all_checks() if found.lane == "wire"]


def run(
    target: WireTarget,
    chosen: Sequence[Check] | None = None,
    concurrency: int = 16,
    *,
    on_result: Callable[[CheckResult], None] | None = None,
    twice: bool = True,
) -> list[CheckResult]:
    """Run checks and give a verdict for each, in the order given.

    Args:
        target: the running agent.
        chosen: checks of this lane; by default all.
        concurrency: how many run side by side.
        on_result: called with each result once it is final.
        twice: judge a few failures by silence again (see the module).
    """
    return asyncio.run(run_async(target, chosen, concurrency, on_result=on_result, twice=twice))


async def run_async(
    target: WireTarget,
    chosen: Sequence[Check] | None = None,
    concurrency: int = 16,
    *,
    on_result: Callable[[CheckResult], None] | None = None,
    twice: bool = True,
) -> list[CheckResult]:
    """As `run`, inside a running event loop."""
    final: dict[str, CheckResult] = {}
    silent: list[Check] = []

    def settle(result: CheckResult) -> None:
        final[result.check] = result
        if on_result is not None:
            on_result(result)

    async def first(check: Check) -> None:
        outcome = await _judged(target, check)
        if outcome.silent and twice:
            silent.append(check)
            final[check.id] = outcome.result
        else:
            settle(outcome.result)

    planned = list(checks() if chosen is None else chosen)
    await _side_by_side(concurrency, [partial(first, check) for check in planned])

    patient = replace(target, time_scale=target.time_scale * PATIENCE)

    async def again(check: Check) -> None:
        second = (await _judged(patient, check)).result
        if second.verdict is Verdict.FAIL:
            second = final[check.id]
        settle(second)

    if 0 < len(silent) <= FEW:
        await _side_by_side(4, [partial(again, check) for check in silent])
    else:
        for check in silent:
            settle(final[check.id])
    return [final[check.id] for check in planned]


async def _side_by_side(bound: int, jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    slots = asyncio.Semaphore(bound)

    async def one(job: Callable[[], Awaitable[None]]) -> None:
        async with slots:
            await job()

    await asyncio.gather(*map(one, jobs))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A verdict, and whether the agent's silence alone is the reason for it."""

    result: CheckResult
    silent: bool


async def _judged(target: WireTarget, check: Check) -> _Outcome:
    """One check, its verdict, and the transcripts of all connections it opened."""
    connections: list[Connection] = []
    opened.set(connections)
    started = time.monotonic()
    verdict, message, evidence, silent = await _verdict(target, check)
    if verdict is Verdict.FAIL:
        evidence = _with_trace(evidence, connections, target)
    result = CheckResult(
        check=check.id,
        requirements=check.requirements,
        verdict=verdict,
        message=message,
        evidence=evidence,
        seconds=time.monotonic() - started,
        lane=check.lane,
        title=check.title,
    )
    return _Outcome(result, silent)


async def _verdict(target: WireTarget, check: Check) -> tuple[Verdict, str, Evidence, bool]:
    if missing := check.features - target.features:
        message = f"the agent declares no {', '.join(sorted(missing))}"
        return Verdict.NOT_APPLICABLE, message, Evidence(), False
    limit = target.seconds(CHECK_DEADLINE)
    try:
        async with asyncio.timeout(limit):
            remark = await check.run(target)
    except CheckFailed as failure:
        return Verdict.FAIL, failure.message, failure.evidence, _by_silence(failure)
    except WireError as error:
        return Verdict.FAIL, error.message, Evidence(trace=str(error.transcript)), _by_silence(error)
    except WireFormatError as error:
        return Verdict.FAIL, f"the agent's answer is malformed: {error}", Evidence(), False
    except Untestable as reason:
        return Verdict.UNTESTABLE, str(reason), Evidence(), False
    except TimeoutError:
        return Verdict.FAIL, f"the agent kept the check busy for {limit:g} s", Evidence(), True
    except Exception:  # noqa: BLE001 - whatever else goes wrong is the suite's own fault, and said to be
        return Verdict.HARNESS_ERROR, traceback.format_exc(limit=-4), Evidence(), False
    return Verdict.PASS, remark if isinstance(remark, str) else "", Evidence(), False


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
        logs["agent"] = "\n".join(target.logs().splitlines()[-30:])
    return replace(evidence, trace=trace, logs=logs)
