"""Which checks come first where there is no time for all of them."""

from __future__ import annotations

from collections.abc import Iterable

from iamroles_scenarios.declarations.scenario import PlannedCheck, Scenario


def by_importance(planned: Iterable[PlannedCheck]) -> list[PlannedCheck]:
    """The checks, the most telling first.

    MUST of `core`, then MUST of `strict`, then SHOULD. In each, first whatever bears on a requirement
    that none before bears on: a short run is broad, not deep. Of equals, first those that ask in a
    world that others use too, then those that need one of their own, then those that mostly wait.
    """
    checks = sorted(planned, key=lambda check: (_level(check), _effort(check)))
    seen: set[str] = set()
    fresh = {}
    for check in checks:
        fresh[check.name] = not seen.issuperset(check.requirements)
        seen.update(check.requirements)
    return sorted(checks, key=lambda check: (_level(check), not fresh[check.name], _effort(check)))


def _level(check: PlannedCheck) -> int:
    return 2 if not check.must else 0 if check.grade == "core" else 1


def _effort(check: PlannedCheck) -> int:
    if check.lane == "wire":
        return 0
    if check.scenario is None:
        return 1
    return 2 if waits(check.scenario) else int(check.scenario.world.own)


def waits(scenario: Scenario) -> bool:
    """Whether its time goes by mostly in waiting."""
    return scenario.traffic is not None or any(
        step.wait or step.agent or any(item.within for item in step.expect.values())
        for step in scenario.steps
    )
