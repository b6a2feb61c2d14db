"""Checks and their results. Knows nothing of pytest: the plugin, the CLI, the mutant runner share it.

A *check* is the smallest thing with a verdict; it names the requirements it proves. Checks are declared
statically, so they can be listed without starting a stage. Simple ones are Python functions under
`@check(...)`; scenario files yield theirs through `iamroles_scenarios.declarations.scenario`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from inspect import getdoc
from typing import Any, TypeVar

from iamroles_scenarios.base.errors import Evidence
from iamroles_scenarios.base.recording import Wait

_F = TypeVar("_F", bound=Callable[..., Any])


class Verdict(StrEnum):
    """The verdict of a check on the agent."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    KNOWN_FAILURE = "known-failure"
    """Fails, and the vendor's list says so with a reason; a listed check that passes is a FAIL (stale)."""
    NOT_APPLICABLE = "not-applicable"
    """The agent *declares* that it lacks the feature; never inferred."""
    WARNING = "warning"
    """A SHOULD that failed: RFC 2119 permits that for good reasons."""
    DEPARTURE = "departure"
    """A clause of the grade `strict` that does not hold; the standards permit it, and `core` is kept."""
    UNTESTABLE = "untestable"
    """Could not be judged on this stage; counts as a failure."""
    HARNESS_ERROR = "harness-error"
    """The suite's own fault; never the vendor's."""

    @property
    def good(self) -> bool:
        """True if a run with this verdict may pass, judged by `core`."""
        return self not in (Verdict.FAIL, Verdict.UNTESTABLE, Verdict.HARNESS_ERROR)


def tails(logs: Mapping[str, str], lines: int = 25) -> dict[str, str]:
    """Return the last lines of each log."""
    return {part: "\n".join(text.splitlines()[-lines:]) for part, text in logs.items()}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One verdict."""

    check: str
    """The check's id, e.g. `wire.hello.first-frame`."""
    requirements: tuple[str, ...]
    verdict: Verdict
    message: str = ""
    evidence: Evidence = field(default_factory=Evidence)
    seconds: float = 0.0
    lane: str = ""
    title: str = ""
    cause: str = ""
    """The fault of the set-up that explains this failure, in the same words for all that it explains."""
    transcript: str = ""
    """The traffic, if the run keeps it; of a scenario, for all its checks. Without secrets."""
    narrowest: Wait | None = None
    """The wait that came nearest to its bound."""
    late: str = ""
    """Why this result proves nothing: the host was late; "" if it was not."""
    again: tuple[str, ...] = ()
    """Why it was played again with longer times, for each time."""


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
    long: bool = False
    """True if a run begins with it, because its steps take long and wait for each other."""
    last: bool = False
    """True if a run ends with it, because it judges what all others left."""
    explanation: str = ""
    """The words that follow the title, for `iamroles conformance explain`."""


_REGISTRY: dict[str, Check] = {}


_LANES = {
    "wire": "wire",
    "gate": "gate",
    "live": "gate",
    "identity": "gate-spop",
    "policy": "gate-spop",
    "bound": "gate-spop",
    "actor": "gate-spop",
    "mcp": "gate-spop",
    "proxy": "proxy",
    "fault": "proxy",
}
"""The lane in which the checks of a family run, unless they name another. An id begins with its family."""


def check(
    id: str,  # noqa: A002 - the catalogue's word
    *requirements: str,
    lane: str | None = None,
    title: str = "",
    features: set[str] | None = None,
    long: bool = False,
    last: bool = False,
) -> Callable[[_F], _F]:
    """Declare a function as a check that proves these requirements.

    The first paragraph of the function's docstring is the title, and the rest explains it. A function that
    several checks share is declared once for each, with its own `title`.
    """

    def declare(function: _F) -> _F:
        if id in _REGISTRY:
            raise ValueError(f"check id {id!r} is declared twice")
        first, _, rest = (getdoc(function) or "").partition("\n\n")
        _REGISTRY[id] = Check(
            id,
            requirements,
            lane or _LANES[id.partition(".")[0]],
            title or " ".join(first.split()).removesuffix("."),
            function,
            frozenset(features or ()),
            long,
            last,
            rest or (first if title else ""),
        )
        return function

    return declare


def declared() -> dict[str, Check]:
    """Return all checks declared by modules imported so far, by id."""
    return dict(_REGISTRY)
