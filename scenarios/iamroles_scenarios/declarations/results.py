"""Checks and what came of them. Knows nothing of pytest: the plugin, the CLI, the mutant runner share it.

A *check* is the smallest thing with a verdict; it names the requirements it proves. Checks are declared
statically, so they can be listed without starting a stage. Simple ones are Python functions under
`@check(...)`; scenario files yield theirs through `iamroles_scenarios.declarations.scenario`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


class Verdict(StrEnum):
    """What a check says of the agent."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    KNOWN_FAILURE = "known-failure"
    """Fails, and the vendor's list says so with a reason; a listed check that passes is a FAIL (stale)."""
    NOT_APPLICABLE = "not-applicable"
    """The agent *declares* that it lacks the feature; never inferred."""
    UNTESTABLE = "untestable"
    """Could not be judged on this stage; counts as a failure."""
    HARNESS_ERROR = "harness-error"
    """The suite's own fault; never the vendor's."""

    @property
    def good(self) -> bool:
        """Whether a run with this verdict may pass."""
        return self in (Verdict.PASS, Verdict.KNOWN_FAILURE, Verdict.NOT_APPLICABLE)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a reader needs to believe, and mend, a failure."""

    sent: str = ""
    expected: str = ""
    received: str = ""
    trace: str = ""
    """Decoded transcript: `>> NOTIFY …`, `<< ACK …`."""
    logs: dict[str, str] = field(default_factory=dict)
    """Log tails by part: agent, haproxy, idp, cloud, echo."""


class CheckFailed(Exception):  # noqa: N818 - a verdict on the agent, not a fault of the suite
    """Raised inside a check: the agent broke the requirement."""

    def __init__(self, message: str, evidence: Evidence | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.evidence = evidence or Evidence()


class Untestable(Exception):  # noqa: N818
    """Raised inside a check: this stage cannot judge it, and why."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One verdict."""

    check: str
    """The check's id, e.g. `wire.hello.first-frame`."""
    requirements: tuple[str, ...]
    verdict: Verdict
    message: str = ""
    evidence: Evidence = Evidence()
    seconds: float = 0.0
    lane: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A declared check. `run` takes the lane's target, may be async, returns None or raises CheckFailed."""

    id: str
    requirements: tuple[str, ...]
    lane: str
    title: str
    run: Callable[..., Any]
    features: frozenset[str] = frozenset()
    """Features of `agent.toml` without which the check is not-applicable."""


_REGISTRY: dict[str, Check] = {}


def check(
    id: str,  # noqa: A002 - the catalogue's word
    *,
    requirements: list[str],
    lane: str,
    title: str,
    features: set[str] | None = None,
) -> Callable[[_F], _F]:
    """Declare a function as a check."""

    def declare(function: _F) -> _F:
        if id in _REGISTRY:
            raise ValueError(f"check id {id!r} is declared twice")
        _REGISTRY[id] = Check(id, tuple(requirements), lane, title, function, frozenset(features or ()))
        return function

    return declare


def declared() -> dict[str, Check]:
    """All checks declared by modules imported so far, by id."""
    return dict(_REGISTRY)
