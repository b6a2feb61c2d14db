"""From what came of a check to its verdict: the one place where an exception is somebody's fault.

Every lane uses it, so no lane is kinder than another. The agent's own faults are FAIL. An agent that ends, or
never gets ready, under a policy that SPEC.md allows is at fault too: the stage then gives the agent's log and
no other. Everything else that goes wrong is the suite's fault and becomes HARNESS_ERROR.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Protocol

from iamroles_scenarios.base.errors import (
    AgentFault,
    CheckFailed,
    Evidence,
    Inapplicable,
    ProxyFileError,
    StageError,
    Untestable,
    WireFormatError,
)
from iamroles_scenarios.declarations.results import CheckResult, Verdict

_AGENT, _PROXY = "agent", "haproxy"
"""Their parts in the stage's logs."""


class Named(Protocol):
    """As much of a check as its result repeats."""

    @property
    def id(self) -> str: ...
    @property
    def lane(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def requirements(self) -> tuple[str, ...]: ...


def passed(check: Named, remark: object = None) -> CheckResult:
    """A pass; what the check returned is its message, if it is a text."""
    return _result(check, Verdict.PASS, remark if isinstance(remark, str) else "")


def lacking(check: Named, missing: list[str]) -> CheckResult:
    """The agent declares not to have what the check needs."""
    return _result(check, Verdict.NOT_APPLICABLE, f"the agent declares no {', '.join(missing)}")


def blamed(check: Named, error: Exception) -> CheckResult:
    """The verdict for an exception that ended a check."""
    match error:
        case CheckFailed():
            return _result(check, Verdict.FAIL, error.message, error.evidence)
        case WireFormatError():
            return _result(check, Verdict.FAIL, f"the agent's answer is malformed: {error.message}")
        case AgentFault():
            return _result(check, Verdict.FAIL, error.message, Evidence(trace=error.trace))
        case Inapplicable():
            return lacking(check, [str(error)])
        case Untestable():
            return _result(check, Verdict.UNTESTABLE, str(error))
        case StageError():
            evidence = Evidence(sent=f"world file: {error.world}" * bool(error.world), logs=error.logs)
            if set(error.logs) != {_AGENT} and not isinstance(error, ProxyFileError):
                proxy = error.message if set(error.logs) == {_PROXY} else ""
                return replace(_result(check, Verdict.HARNESS_ERROR, error.message, evidence), cause=proxy)
            return replace(_result(check, Verdict.FAIL, error.message, evidence), cause=error.cause)
        case _:
            trace = "".join(traceback.format_exception(error)[-6:])
            message = f"{type(error).__name__}: {error}"
            return _result(check, Verdict.HARNESS_ERROR, message, Evidence(trace=trace))


def _result(check: Named, verdict: Verdict, message: str, evidence: Evidence | None = None) -> CheckResult:
    return CheckResult(
        check.id,
        check.requirements,
        verdict,
        message,
        evidence or Evidence(),
        lane=check.lane,
        title=check.title,
    )
