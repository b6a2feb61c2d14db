"""Runs checks of the wire lane side by side against one agent.

Every check ends by its deadline with a verdict. What the agent did wrong is FAIL, a connection it refused or
never answered included; what the suite did wrong (any other exception) is a HARNESS_ERROR and never the
agent's.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace

from iamroles_scenarios.results import (
    Check,
    CheckFailed,
    CheckResult,
    Evidence,
    Untestable,
    Verdict,
    declared,
)
from iamroles_scenarios.wire.client import Connection, WireError
from iamroles_scenarios.wire.judge import opened
from iamroles_scenarios.wire.target import WireTarget

CHECK_DEADLINE = 25.0
"""Seconds, before scaling, after which a check that still runs is a failure of the agent."""


def checks() -> list[Check]:
    """The checks of this lane, by id."""
    from iamroles_scenarios.flows import (  # noqa: F401, PLC0415 - importing them declares them
        wire_frames,
        wire_fuzz,
        wire_hello,
        wire_notify,
        wire_teardown,
    )

    return sorted((found for found in declared().values() if found.lane == "wire"), key=lambda one: one.id)


def run(
    target: WireTarget,
    chosen: Sequence[Check] | None = None,
    concurrency: int = 16,
    *,
    on_result: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Run checks and give a verdict for each, in the order given.

    Args:
        target: the running agent.
        chosen: checks of this lane; by default all.
        concurrency: how many run side by side.
        on_result: called with each result as it comes.
    """
    return asyncio.run(run_async(target, chosen, concurrency, on_result=on_result))


async def run_async(
    target: WireTarget,
    chosen: Sequence[Check] | None = None,
    concurrency: int = 16,
    *,
    on_result: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """As `run`, inside a running event loop."""
    bound = asyncio.Semaphore(concurrency)

    async def one(check: Check) -> CheckResult:
        async with bound:
            result = await judge(target, check)
        if on_result is not None:
            on_result(result)
        return result

    return list(await asyncio.gather(*map(one, checks() if chosen is None else chosen)))


async def judge(target: WireTarget, check: Check) -> CheckResult:
    """One check, its verdict, and the transcripts of all connections it opened."""
    connections: list[Connection] = []
    opened.set(connections)
    started = time.monotonic()
    verdict, message, evidence = await _verdict(target, check)
    if verdict is Verdict.FAIL:
        evidence = _with_trace(evidence, connections, target)
    return CheckResult(
        check=check.id,
        requirements=check.requirements,
        verdict=verdict,
        message=message,
        evidence=evidence,
        seconds=time.monotonic() - started,
        lane=check.lane,
        title=check.title,
    )


async def _verdict(target: WireTarget, check: Check) -> tuple[Verdict, str, Evidence]:
    if missing := check.features - target.features:
        return Verdict.NOT_APPLICABLE, f"the agent declares no {', '.join(sorted(missing))}", Evidence()
    limit = target.seconds(CHECK_DEADLINE)
    try:
        async with asyncio.timeout(limit):
            remark = await check.run(target)
    except CheckFailed as failure:
        return Verdict.FAIL, failure.message, failure.evidence
    except WireError as error:
        return Verdict.FAIL, error.message, Evidence(trace=str(error.transcript))
    except Untestable as reason:
        return Verdict.UNTESTABLE, str(reason), Evidence()
    except TimeoutError:
        return Verdict.FAIL, f"the agent kept the check busy for {limit:g} s", Evidence()
    except Exception:  # noqa: BLE001 - whatever else goes wrong is the suite's own fault, and said to be
        return Verdict.HARNESS_ERROR, traceback.format_exc(limit=-4), Evidence()
    return Verdict.PASS, remark if isinstance(remark, str) else "", Evidence()


def _with_trace(evidence: Evidence, connections: list[Connection], target: WireTarget) -> Evidence:
    """The failing conversation, else the last one; and the end of the agent's log."""
    trace = evidence.trace or (str(connections[-1].transcript) if connections else "")
    logs = dict(evidence.logs)
    if target.logs is not None:
        logs["agent"] = "\n".join(target.logs().splitlines()[-30:])
    return replace(evidence, trace=trace, logs=logs)
