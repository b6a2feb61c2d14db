"""From the outcome of a check to the verdict in the report, in this order:

1. `passed`, `lacking`, `blamed`: whose fault is the exception that ended the check? The agent's own faults
   are FAIL. So is an agent that ends, or never gets ready, under a policy that SPEC.md allows: the stage then
   gives the agent's log and no other. Everything else that goes wrong is a HARNESS_ERROR of the suite.
2. `explained`: the agent or HAProxy ended by itself meanwhile, which is the cause of all that was judged.
3. `unless_late`: did the host keep the judge, the agent or HAProxy from running, more than the stretched
   times allow for? Then a failure in which time counted, an error of the suite, or what could not be tested,
   proves nothing yet (`attempts` plays it again).
4. `recorded`: how long it took, how near a wait came to its bound, what was sent and seen.
5. `reported`: what the result is for this vendor. Of an agent that already runs, UNTESTABLE does not apply,
   unless the host was late; a failure of a SHOULD is a warning, of `strict` alone a departure, unless the
   agent let somebody in (`lets_in`); then comes the list of known failures.

Every lane applies the first four, so no lane is kinder than another. Only `Run` applies the last one: the
self-test counts failures as they are. No other module changes a result.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace

from iamroles_scenarios.base import errors, lateness, recording, sent
from iamroles_scenarios.base.errors import Evidence, StageError, TooSlow, Untestable, WireFormatError
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.results import CheckResult, Verdict, tails
from iamroles_scenarios.declarations.scenario import SITES, PlannedCheck
from iamroles_scenarios.engine.setups import ENDING, Ending, ended, watched
from iamroles_scenarios.stage import AgentSpec

_AGENT, _PROXY = "agent", "haproxy"
"""Their parts in the stage's logs."""
_GAP, _SHARE = 0.1, 0.05
"""Seconds, and part of the time, for which even times that are not stretched leave room."""
DOUBTFUL = (Verdict.FAIL, Verdict.HARNESS_ERROR, Verdict.UNTESTABLE)
"""Verdicts that prove nothing if the host was late: what the suite starts or asks may be late as well."""
_SHORTEST = 0.5
"""Seconds of the shortest bound of a check."""
_TRACE = 60
"""Lines of what was sent and seen that a failure without a trace of its own shows."""


def judged(
    checks: Sequence[PlannedCheck],
    play: Callable[[], list[CheckResult]],
    *,
    scale: float = 1.0,
    transcripts: bool = False,
) -> list[CheckResult]:
    """Play checks and return their results after the first four steps.

    Args:
        checks: what is played.
        play: plays them; what it raises ended all of them.
        scale: by which times are stretched.
        transcripts: the results keep the traffic, also of checks that pass.
    """
    lateness.start()
    began = time.monotonic()
    with recording.recorded(keeps=True) as found, watched() as worlds:
        pids: list[int | None] = []
        try:
            results = play()
        except Exception as error:  # noqa: BLE001 - `blamed` says whose fault it is
            results = [blamed(check, error) for check in checks]
            if isinstance(error, StageError) and error.began:  # perhaps an earlier check waited for it
                pids, began = [error.pid], min(began, error.began)
        failed = any(result.verdict in DOUBTFUL for result in results)
        if (ending := ended(worlds, ENDING if failed else 0.0)) is not None:
            results = [explained(result, ending) for result in results]
        elif failed:
            if worlds and (log := worlds[-1].agent.logs()):  # may say why a connection was closed
                for result in (one for one in results if one.verdict is Verdict.FAIL):
                    result.evidence.logs.update(tails({_AGENT: log}) | result.evidence.logs)
            pids += [pid for world in worlds for pid in world.host_pids]
            results = unless_late(results, found, began, pids, scale)
    seconds = time.monotonic() - began
    return [recorded(result, found, seconds, transcripts=transcripts) for result in results]


# --- whose fault -------------------------------------------------------------------------------------------


def passed(check: PlannedCheck, remark: object = None) -> CheckResult:
    """Return a pass; what the check returned is its message, if it is a text."""
    return _result(check, Verdict.PASS, remark if isinstance(remark, str) else "")


def lacking(check: PlannedCheck, missing: list[str]) -> CheckResult:
    """Return the result of a check that needs what the agent declares not to have."""
    return _result(check, Verdict.NOT_APPLICABLE, f"the agent declares no {', '.join(missing)}")


def blamed(check: PlannedCheck, error: Exception, beside: Evidence | None = None) -> CheckResult:
    """Return the result of a check that ended with this exception.

    Args:
        check: which.
        error: what it raised.
        beside: trace and logs for a failure that brings none.
    """
    beside = beside or Evidence()
    match error:
        case errors.CheckFailed():
            own = error.evidence
            evidence = replace(own, trace=own.trace or beside.trace, logs=own.logs | beside.logs)
            return _result(check, Verdict.FAIL, error.message, evidence)
        case WireFormatError():
            return _result(check, Verdict.FAIL, f"the agent's answer is malformed: {error.message}", beside)
        case errors.AgentFault():
            recording.timed()  # silence above all
            evidence = replace(beside, trace=error.trace or beside.trace)
            return _result(check, Verdict.FAIL, error.message, evidence)
        case errors.Inapplicable():
            return lacking(check, [str(error)])
        case Untestable():
            return _result(check, Verdict.UNTESTABLE, str(error))
        case TooSlow():
            return replace(_result(check, Verdict.UNTESTABLE, str(error)), late=str(error))
        case StageError():
            evidence = Evidence(sent=f"world file: {error.world}" * bool(error.world), logs=error.logs)
            of_agent = set(error.logs) == {_AGENT} or isinstance(error, errors.ProxyFileError)
            if error.began or not of_agent:
                recording.timed()  # it was not ready in time
            if not of_agent:
                proxy = error.message if set(error.logs) == {_PROXY} else ""
                return _result(check, Verdict.HARNESS_ERROR, error.message, evidence, proxy)
            return _result(check, Verdict.FAIL, error.message, evidence, error.cause)
        case _:
            trace = "".join(traceback.format_exception(error)[-6:])
            message = f"{type(error).__name__}: {error}"
            return _result(check, Verdict.HARNESS_ERROR, message, Evidence(trace=trace, logs=beside.logs))


def _result(
    check: PlannedCheck, verdict: Verdict, message: str, evidence: Evidence | None = None, cause: str = ""
) -> CheckResult:
    return CheckResult(
        check.id,
        check.requirements,
        verdict,
        message,
        evidence or Evidence(),
        lane=check.lane,
        title=check.title,
        cause=cause,
    )


# --- what ended, what was seen -----------------------------------------------------------------------------


def explained(result: CheckResult, ending: Ending) -> CheckResult:
    """Return the result with what ended as its cause; what does not apply stays as it is.

    A pass becomes a failure too: it proves nothing that a dying agent satisfies a check.
    """
    if result.verdict is Verdict.NOT_APPLICABLE:
        return result
    logs = tails({ending.part: ending.log}) if ending.log else {}
    return replace(
        result,
        verdict=Verdict.FAIL if ending.part == _AGENT else Verdict.HARNESS_ERROR,
        message=f"{ending.cause} ({result.message})" if result.message else ending.cause,
        cause=ending.cause,
        evidence=replace(result.evidence, logs={**result.evidence.logs, **logs}),
    )


def unless_late(
    results: list[CheckResult],
    found: recording.Recording,
    began: float,
    firsts: Sequence[int | None],
    scale: float,
) -> list[CheckResult]:
    """Return the results; failures in which time counted say why the host was too late for them, if it was.

    Args:
        results: of checks that were played together.
        found: its recording.
        began: when, by the monotonic clock.
        firsts: the processes of the stage that this host sees.
        scale: by which times were stretched.
    """
    if not found.timed or all(result.verdict not in DOUBTFUL for result in results):
        return results
    about = lateness.delay(max(began, found.since), () if found.starves else firsts, found.bound)
    return [held_late(result, about, min(scale, found.most)) for result in results]


def held_late(result: CheckResult, about: lateness.Delay, scale: float) -> CheckResult:
    """Return a failure with why the host was too late for it, if it was."""
    doubtful = result.verdict in DOUBTFUL and not result.late
    return replace(result, late=too_late(about, scale)) if doubtful else result


def too_late(about: lateness.Delay, scale: float) -> str:
    """Return why the host was later than times that are stretched by `scale` make up for; "" if it was not.

    Times that are stretched by four leave three quarters of them to wait in. What was late by less than that
    had its whole time beside it, so the failure stands: a late host acquits nobody for ever.
    """
    if about.gap > _GAP + _SHORTEST * (scale - 1):
        return f"the judge did not run for {about.gap:.1f} s"
    if about.share > max(_SHARE, 1 - 1 / scale):
        return f"the judge, the agent or HAProxy waited for a CPU or disk for {about.share:.0%} of the time"
    return ""


def recorded(
    result: CheckResult, found: recording.Recording, seconds: float, *, transcripts: bool
) -> CheckResult:
    """Return the result with what its recording holds; a failure without a trace shows its end."""
    bare = result.verdict is Verdict.FAIL and not result.evidence.trace
    text = found.text() if bare or transcripts else ""
    trace = "\n".join(text.splitlines()[-_TRACE:]) if bare else result.evidence.trace
    return replace(
        result,
        evidence=replace(result.evidence, trace=trace),
        seconds=seconds,
        transcript=text if transcripts else "",
        narrowest=found.narrowest,
    )


# --- what is reported --------------------------------------------------------------------------------------


def reported(result: CheckResult, agent: AgentSpec) -> CheckResult:
    """Return the result as this vendor's report shows it."""
    for rule in (_of_running, _weighed, _known):
        verdict, message = rule(result, agent)
        result = replace(result, verdict=verdict, message=message)
    return _without_credentials(result)


def _without_credentials(result: CheckResult) -> CheckResult:
    """Cut what a result holds of the run's credentials: every report is made of it."""
    seen, cut = result.evidence, sent.cut
    evidence = replace(
        seen,
        sent=cut(seen.sent),
        expected=cut(seen.expected),
        received=cut(seen.received),
        trace=cut(seen.trace),
        logs={part: cut(log) for part, log in seen.logs.items()},
    )
    return replace(result, message=cut(result.message), evidence=evidence, transcript=cut(result.transcript))


def _of_running(result: CheckResult, agent: AgentSpec) -> tuple[Verdict, str]:
    """Let what cannot be played on an agent that already runs not apply, so that its run can end well.

    The statement counts such a check as not played: no class that has one is conformed to.
    """
    if agent.address and result.verdict is Verdict.UNTESTABLE and not result.late:
        return Verdict.NOT_APPLICABLE, f"cannot be played on a running agent: {result.message}"
    return result.verdict, result.message


def _weighed(result: CheckResult, _agent: AgentSpec) -> tuple[Verdict, str]:
    """Weigh a failure by what it proves; it stays if the catalogue lacks its requirements, as in tests.

    A false allow stays a failure (`lets_in`).
    """
    verdict = result.verdict
    known = [catalogue()[name] for name in result.requirements if name in catalogue()]
    if verdict is Verdict.FAIL and known and not lets_in(result):
        if all(item.level == "SHOULD" for item in known):
            verdict = Verdict.WARNING
        elif all(item.grade == "strict" for item in known):
            verdict = Verdict.DEPARTURE
    return verdict, result.message


def lets_in(result: CheckResult) -> bool:
    """Tell whether a request was allowed that no grade permits an agent to allow."""
    known = [catalogue()[name] for name in result.requirements if name in catalogue()]
    return result.evidence.false_allow and not any(item.may_allow for item in known)


def _known(result: CheckResult, agent: AgentSpec) -> tuple[Verdict, str]:
    """Apply the vendor's list: a listed failure is known, a listed pass is stale and fails."""
    listed = agent.known_failures
    site = SITES.get(result.lane, "")
    reason = listed.get(result.check) or listed.get(f"{result.check}[{site}]")
    if reason and result.verdict in (Verdict.FAIL, Verdict.WARNING, Verdict.DEPARTURE):
        return Verdict.KNOWN_FAILURE, f"known: {reason} ({result.message})"
    if reason and result.verdict is Verdict.PASS:
        stale = f"listed as a known failure ({reason}), but it passes: take it off agent.toml's list"
        if site and result.check in listed:
            stale += f", or list {result.check}[{'spop' if site == 'haproxy' else 'haproxy'}] if that fails"
        return Verdict.FAIL, stale
    return result.verdict, result.message
