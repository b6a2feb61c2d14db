"""Playing again what the host was late for, and nothing else.

A failure, an error of the suite, or an UNTESTABLE is played again only if `verdicts.held_late` says that the
host kept the judge, the agent or HAProxy from running meanwhile, or if the judge missed a moment of its own
(`TooSlow`). Each time all lives, bounds and waits are twice as long. What is still late at the last time is
UNTESTABLE, and never a failure. A failure that the host was in time for stands at once: nothing is played
again because it failed. If the host was late and somebody was let in whom no time excuses, and nobody when it
was played again, then nobody can tell which of the two the agent does: that is UNTESTABLE too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from iamroles_scenarios.base import lateness
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.verdicts import DOUBTFUL, lets_in

STRETCHES = (1, 2, 4, 8)
"""Factors on all times: of the first playing, and of each other."""

_BUSY = ((1.5, 1.0), (3.0, 2.0), (float("inf"), 4.0))
"""Up to how many times its own time a computation takes, and the factor on all times of the run there."""


def stretched() -> tuple[float, str]:
    """Return the factor on all times of a run on this host, and a sentence about it; "" for 1."""
    slower = lateness.slowdown()
    factor = next(factor for bound, factor in _BUSY if slower < bound)
    why = f"this host was busy, a computation took {slower:.1f} times as long as alone"
    return factor, f"played at {factor:g} times: {why}" if factor > 1 else ""


def attempted(target: Target, play: Callable[[Target], list[CheckResult]]) -> list[CheckResult]:
    """Play, and play again with longer times while the host was late.

    Args:
        target: whose times are stretched.
        play: plays all of it, and judges it (`verdicts.judged`).
    """
    former: dict[tuple[str, str], list[CheckResult]] = defaultdict(list)
    stand: dict[tuple[str, str], CheckResult] = {}
    for stretch in STRETCHES:
        playing = target.stretched(stretch)
        results = play(playing)
        if playing.worlds is not target.worlds:
            playing.worlds.close()
        # What is played again beside a late check may pass then: a failure in time stands.
        results = [stand.get((result.check, result.lane), result) for result in results]
        failed = [result for result in results if result.verdict in DOUBTFUL and not result.late]
        stand |= {(result.check, result.lane): result for result in failed}
        late = next((result.late for result in results if result.late), "")
        if not target.replays and any(result.verdict is Verdict.FAIL for result in results):
            return results
        if not late or stretch == STRETCHES[-1]:
            break
        for result in results:
            former[result.check, result.lane].append(replace(result, late=result.late or late))
        target.worlds.start_again()
    return [settled(result, former[result.check, result.lane]) for result in results]


def settled(result: CheckResult, former: Sequence[CheckResult]) -> CheckResult:
    """Return a result with why it was played again; if it is late for the last time, it is UNTESTABLE.

    Args:
        result: of the last playing.
        former: of those before it, which the host was late for.
    """
    again = tuple(one.late for one in former)
    if result.late:
        message = f"{result.late}, also with {STRETCHES[-1]} times the time ({result.message})"
    elif result.verdict is Verdict.PASS and (doubt := next(filter(_unexcused, former), None)):
        message = f"somebody was let in while {doubt.late}, and nobody with longer times ({doubt.message})"
        result = replace(result, evidence=doubt.evidence)
    else:
        return replace(result, again=again)
    return replace(result, verdict=Verdict.UNTESTABLE, message=message, again=again)


def _unexcused(result: CheckResult) -> bool:
    return lets_in(result) and not result.evidence.bounded
