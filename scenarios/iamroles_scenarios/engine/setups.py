"""Faults of the set-up: an agent that ends by itself, refuses a world, or does not serve what it announces.
And a proxy that ends: no failure of the agent, whatever a check saw of it.

One such fault explains many failures. Each check that it touches fails (no lane is kinder than another, and a
check that a dead agent happens to satisfy proves nothing), names the fault as its `cause`, and the run tells
each cause once, with the agent's log (`findings`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iamroles_scenarios.base.errors import AgentFault, StageError
from iamroles_scenarios.declarations.results import CheckResult, Verdict, tails
from iamroles_scenarios.wire.asker import reach

if TYPE_CHECKING:
    from iamroles_scenarios.stage import World

_used: ContextVar[list[World] | None] = ContextVar("worlds that a check has used", default=None)
ENDING = 0.2
"""Seconds in which an agent whose check failed has ended, if it does."""
_LINES = 6
"""Of the agent's log, in a finding."""


def uses(world: World) -> None:
    """Note that what is being judged in this context has been given a world."""
    if (worlds := _used.get()) is not None:
        worlds.append(world)


@contextmanager
def watched() -> Iterator[list[World]]:
    """The worlds that are used within, for `judged_alive`."""
    worlds: list[World] = []
    token = _used.set(worlds)
    try:
        yield worlds
    finally:
        _used.reset(token)


def judged_alive(results: list[CheckResult], worlds: Iterable[World], patience: float) -> list[CheckResult]:
    """Results as they are, or failures where an agent among these worlds has ended by itself.

    Args:
        results: of what was played in the worlds.
        worlds: these, also closed ones.
        patience: seconds for an agent to end, where something failed: it closes its connections before.
    """
    failed = any(result.verdict is Verdict.FAIL for result in results)
    for world in worlds:
        if (code := world.agent.ended(patience if failed else 0.0)) is not None:
            return [of_the_dead(result, code, world.agent.logs()) for result in results]
        if (code := world.haproxy_ended()) is not None:
            cause = f"HAProxy ended {how(code)} while it was used, so that says nothing about the agent"
            return [
                explained(result, cause, world.haproxy.logs(), Verdict.HARNESS_ERROR, "haproxy")
                for result in results
            ]
    return results


def of_the_dead(result: CheckResult, code: int, log: str) -> CheckResult:
    """A result where the agent has ended meanwhile: a failure by that, with its log."""
    return explained(result, f"the agent ended {how(code)} while it was judged", log)


def explained(
    result: CheckResult, cause: str, log: str, verdict: Verdict = Verdict.FAIL, part: str = "agent"
) -> CheckResult:
    """A result as a failure with this cause, and the part's log; what does not apply stays as it is."""
    if result.verdict is Verdict.NOT_APPLICABLE:
        return result
    logs = tails({part: log}) if log else {}
    return replace(
        result,
        verdict=verdict,
        message=f"{cause} ({result.message})" if result.message else cause,
        cause=cause,
        evidence=replace(result.evidence, logs={**result.evidence.logs, **logs}),
    )


def how(code: int) -> str:
    """An exit code as words; negative: the signal that ended it."""
    return f"with exit code {code}" if code >= 0 else f"by signal {-code}"


@dataclass(frozen=True, slots=True)
class _Told:
    results: list[CheckResult]
    log: str


def findings(results: Iterable[CheckResult]) -> list[str]:
    """Each cause once, in a sentence: how many checks it touched, the first of them, the end of the log."""
    told: dict[str, _Told] = {}
    for result in results:
        if result.cause:
            part = "haproxy" if result.verdict is Verdict.HARNESS_ERROR else "agent"
            log = result.evidence.logs.get(part, "")
            told.setdefault(result.cause, _Told([], log)).results.append(result)
    return [_sentence(cause, one) for cause, one in told.items()]


def _sentence(cause: str, told: _Told) -> str:
    count = f"{len(told.results)} check{'s' * (len(told.results) != 1)}"
    first = told.results[0]
    came = "could not be judged" if first.verdict is Verdict.HARNESS_ERROR else "failed by that or before it"
    text = f"{cause.removesuffix('.')}: {count} {came}, {first.check} first."
    lines = told.log.splitlines()[-_LINES:]
    return "\n".join([f"{text} Its log ends:", *(f"  {line}" for line in lines)]) if lines else text


def only_the_stage(results: Iterable[CheckResult]) -> bool:
    """Whether a proxy that failed is all that stands against a run, which then ends with 3."""
    bad = [result for result in results if not result.verdict.good]
    return bool(bad) and all(one.cause and one.verdict is Verdict.HARNESS_ERROR for one in bad)


def answers(address: str, logs: dict[str, str]) -> None:
    """Connect to an agent, so that an address where nobody listens is told before any check blames SPOP.

    Raises:
        StageError: nobody accepts there, or it is no address; with the end of the agent's log.
    """
    if (why := refuses(address)) is not None:
        raise StageError(
            f"The agent's address {address!r} cannot be connected to: {why}. It must listen there, at "
            "host:port or unix:/path, before it says so.",
            tails(logs),
            "the address that the agent announces cannot be connected to",
        )


def refuses(address: str) -> str | None:
    """Why nobody can be reached at an address, None where somebody accepts."""
    try:
        reach(address)
    except AgentFault as error:
        return error.message
    except (ValueError, OverflowError):
        return "it is no address"
    return None
