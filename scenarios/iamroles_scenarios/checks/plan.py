"""The plan of a run: every check of the suite, or the checks that patterns name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from pkgutil import walk_packages

from iamroles_scenarios import checks
from iamroles_scenarios.base.errors import SelectionError
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.planning import current, planned, selected_by
from iamroles_scenarios.declarations.scenario import ALL_LANES, PlannedCheck


def plan(
    lanes: Iterable[str] = ALL_LANES, select: Callable[[PlannedCheck], bool] | None = None
) -> list[PlannedCheck]:
    """Import every module of checks, which declares them, and return the checks of some lanes; start nothing.

    Args:
        lanes: names among `ALL_LANES`.
        select: keeps those for which it is true.
    """
    for module in walk_packages(checks.__path__, f"{checks.__name__}."):
        import_module(module.name)
    return planned(lanes, select)


def named_by(patterns: Iterable[str]) -> Callable[[PlannedCheck], bool]:
    """Select as `selected_by` does, by patterns that each name a check.

    Raises:
        SelectionError: a pattern names no check in any lane, and would narrow a run unseen.
    """
    wanted = [current(pattern) for pattern in patterns]
    everything = plan() if wanted else []
    for pattern in wanted:
        if not any(map(selected_by([pattern]), everything)):
            names = {
                name for one in everything for name in (one.id, one.id.rpartition(".")[0], *one.requirements)
            }
            why = "no check, scenario or requirement of this name."
            if pattern in catalogue():
                why = "no check plays this requirement, because it is seen only from within an agent."
            elif near := get_close_matches(pattern, names, n=1):
                why += f" Did you mean {near[0]}?"
            raise SelectionError(f"--check {pattern}: {why}")
    return selected_by(wanted)
