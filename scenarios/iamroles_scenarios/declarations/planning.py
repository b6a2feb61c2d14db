"""All checks: those declared in Python and those of scenario files; and how to select some."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from iamroles_scenarios.declarations.results import declared
from iamroles_scenarios.declarations.scenario import ALL_LANES, PlannedCheck, scenarios

RENAMED = {
    "fault.host.processor": "fault.host.cpu",
    "live.audience.ends": "live.derived.policy",
    "live.expiry.alone": "live.expiry.no-agent",
    "live.renew.others": "live.derived.likeness",
    "live.renew.over": "live.renew.restarts",
    "live.revoke.issuer": "live.derived.revocations",
    "policy.record.secret": "policy.record.credentials",
}
"""Ids of checks that have another one now. The old one still selects the check, and is a known failure's."""


def current(name: str) -> str:
    """Return the name that a check has now; log it if it was renamed."""
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}["):
            logging.getLogger("iamroles.checks").warning("%s is now called %s.", old, new)
            return name.replace(old, new, 1)
    return name


def planned(
    lanes: Iterable[str] = ALL_LANES, select: Callable[[PlannedCheck], bool] | None = None
) -> list[PlannedCheck]:
    """Return every check of some lanes that is declared so far: `checks.plan.plan` imports all of them first.

    Args:
        lanes: names among `ALL_LANES`.
        select: keeps those for which it is true.
    """
    found: list[PlannedCheck] = []
    for lane in lanes:
        found += [
            PlannedCheck(check.id, lane, check.title, check.requirements, function=check)
            for check in sorted(declared().values(), key=lambda check: check.id)
            if check.lane == lane
        ]
        found += [check for scenario in scenarios().values() for check in scenario.planned(lane)]
    found.sort(key=lambda check: check.function is not None and check.function.last)
    return [check for check in found if select is None or select(check)]


def selected_by(patterns: Iterable[str]) -> Callable[[PlannedCheck], bool]:
    """Select by check id, scenario id, requirement id, or the beginning of an id, up to a dot or dash."""
    wanted = [current(pattern) for pattern in patterns]

    def select(check: PlannedCheck) -> bool:
        names = (check.id, check.name, *check.requirements)
        return not wanted or any(
            name == pattern or name.startswith((f"{pattern}.", f"{pattern}-"))
            for name in names
            for pattern in wanted
        )

    return select
