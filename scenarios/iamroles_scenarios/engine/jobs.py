"""The plan of a run: which checks are played in one go, and in which order.

A scenario is played once in each lane, for all its checks; a check in Python alone; the wire lane plays its
checks side by side by itself and is one job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

from iamroles_scenarios.base.errors import SelectionError
from iamroles_scenarios.declarations.planning import planned
from iamroles_scenarios.declarations.results import CheckResult
from iamroles_scenarios.declarations.scenario import PROXY_LANES, PlannedCheck, Scenario
from iamroles_scenarios.engine.attempts import attempted
from iamroles_scenarios.engine.play import play
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.verdicts import judged, lacking, passed
from iamroles_scenarios.stage import AgentSpec
from iamroles_scenarios.stage.spec import located


@dataclass(eq=False, slots=True)
class Job:
    """Checks of one lane that are played in one go."""

    lane: str
    scenario: Scenario | None
    checks: list[PlannedCheck] = field(default_factory=list)

    @property
    def through_proxy(self) -> bool:
        """True if it is played through HAProxy."""
        return self.lane in PROXY_LANES

    @property
    def last(self) -> bool:
        """True if it judges what all others left."""
        return self.scenario is None and any(one.function and one.function.last for one in self.checks)

    @property
    def rank(self) -> tuple[bool, ...]:
        """The key by which a run that plays everything is sorted. Long jobs and those that wait for the clock
        come first, so that they overlap with the work of the others.
        """
        if self.scenario is None:
            long = self.checks[0].function is not None and self.checks[0].function.long
            return (self.last, self.lane != "wire", not long)
        return (False, True, not waits(self.scenario), True, not self.scenario.world.own)

    def play(self, target: Target) -> list[CheckResult]:
        """Play a scenario, or the one function; never raises for what the agent does."""
        return play(self.scenario, target) if self.scenario else [called(self.checks[0], target)]


def jobs_of(checks: Iterable[PlannedCheck]) -> list[Job]:
    """Return the jobs in the order in which these checks first need them."""
    found: dict[tuple[str, str], Job] = {}
    for check in checks:
        about = "" if check.lane == "wire" else check.scenario.id if check.scenario else check.id
        found.setdefault((about, check.lane), Job(check.lane, check.scenario)).checks.append(check)
    return list(found.values())


def called(check: PlannedCheck, target: Target) -> CheckResult:
    """Run a function check of a gate lane; never raises for what the agent does."""
    function = check.function
    assert function is not None  # noqa: S101 - planned as one
    if missing := target.lacks(check.features):
        return lacking(check, missing)

    def play(slower: Target) -> list[CheckResult]:
        return judged(
            [check],
            lambda: [passed(check, function.run(slower))],
            scale=slower.scale,
            transcripts=target.transcripts,
        )

    return attempted(target, play)[0]


def validate(agent: AgentSpec, checks: list[PlannedCheck]) -> None:
    """Hold a run's checks, and the vendor's list of known failures, to their rules.

    Raises:
        SelectionError: nothing to run, checks that a running agent cannot be asked, or known failures that
            name no check or give no reason.
    """
    if not checks:
        raise SelectionError("No check was selected: zero checks prove nothing. Change the selection.")
    if agent.address and (lanes := {check.lane for check in checks} - {"wire"}):
        raise SelectionError(
            f"The agent already runs at {agent.address}: the stage cannot give it the policies of the "
            f"lanes {', '.join(sorted(lanes))}. Select the lane wire, or give a command."
        )
    if not agent.known_failures:
        return
    ids = {name for check in planned() for name in (check.id, check.name)}
    for name, reason in agent.known_failures.items():
        where = located(agent.path, f"known_failures.{name}")
        if not reason.strip():
            raise SelectionError(f"{where}: a known failure needs a reason. Say why it fails.")
        if name not in ids:
            near = get_close_matches(name, ids, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Fix or remove it."
            raise SelectionError(f"{where}: no such check. {hint}")


# --- which checks come first if there is not time for all of them ------------------------------------------


def by_importance(checks: Iterable[PlannedCheck]) -> list[PlannedCheck]:
    """Return the checks, the most telling first.

    MUST of `core`, then MUST of `strict`, then SHOULD. In each, first the checks of a requirement that no
    check before them proves: a short run is broad, not deep. Of equals, first those that ask in a shared
    world, then those that need one of their own, then those that mostly wait.
    """
    ordered = sorted(checks, key=lambda check: (_level(check), _effort(check)))
    seen: set[str] = set()
    fresh = {}
    for check in ordered:
        fresh[check.name] = not seen.issuperset(check.requirements)
        seen.update(check.requirements)
    return sorted(ordered, key=lambda check: (_level(check), not fresh[check.name], _effort(check)))


def _level(check: PlannedCheck) -> int:
    return 2 if not check.must else 0 if check.grade == "core" else 1


def _effort(check: PlannedCheck) -> int:
    if check.lane == "wire":
        return 0
    if check.scenario is None:
        return 1
    return 2 if waits(check.scenario) else int(check.scenario.world.own)


def waits(scenario: Scenario) -> bool:
    """Return whether a scenario mostly waits."""
    return scenario.traffic is not None or any(
        step.wait or step.agent or any(item.within for item in step.expect.values())
        for step in scenario.steps
    )
