"""The mutants: what each breaks, and which requirements must notice.

A mutant that breaks nothing but clauses of `strict`, or SHOULDs, does what the standards permit. It is one
switch of the *tolerant twin*: such an agent must pass every MUST of `core`. Behaviours that are permitted and
that no check forbids are switches too, in the family `tolerant`; they kill nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

from iamroles_scenarios.declarations.catalogue import catalogue

FAMILIES = ("wire", "gate", "identity", "policy", "proxy", "live", "fire", "fault")
"""One folder of `selftest.mutants` each."""
TOLERANT = "tolerant"
"""The family of what is permitted and that no check notices."""
_BROKEN = ("fire", "fault")
Override = Callable[[], None]
"""Changes the agent in this process."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small override of the reference agent."""

    id: str
    """`<family>.<what>`; never reused."""
    title: str
    """What the agent then does wrong, as a clause: "accepts expired tokens"."""
    kills: tuple[str, ...]
    """Ids of the catalogue; each needs a check of its own that turns red."""
    apply: Override
    proxy: bool = False
    """Whether it breaks what is rendered for HAProxy, alone or beside the agent."""

    @property
    def permitted(self) -> bool:
        """Whether the standards, and the grade `core`, permit what it does.

        Not so an agent that fails where a part does: who has one process, or no twin, declares no such
        feature.
        """
        return self.family not in _BROKEN and all(
            catalogue()[name].level == "SHOULD" or catalogue()[name].grade == "strict" for name in self.kills
        )

    @property
    def family(self) -> str:
        """The part before the first dot."""
        return self.id.partition(".")[0]


_MUTANTS: dict[str, Mutant] = {}


def mutant(
    id: str,  # noqa: A002 - the catalogue's word
    kills: str,
    title: str,
    *beside: Override,
    proxy: bool = False,
) -> Callable[..., Override]:
    """Declare a mutant. Call the result with its overrides, or use it as the decorator of one.

    Args:
        id: `<family>.<name>`.
        kills: the ids that it must turn red, separated by blanks.
        title: see `Mutant`.
        beside: overrides that are applied after the decorated one.
        proxy: see `Mutant`.
    """

    def declare(*overrides: Override) -> Override:
        if id in _MUTANTS:
            raise ValueError(f"mutant {id!r} is declared twice")
        found = Mutant(id, title, tuple(kills.split()), both(*overrides, *beside), proxy)
        if found.family not in (*FAMILIES, TOLERANT) or (found.family == TOLERANT) == bool(found.kills):
            raise ValueError(f"mutant {id!r}: begin with one of {FAMILIES} and name what it kills")
        _MUTANTS[id] = found
        return overrides[0]

    return declare


def both(*overrides: Override) -> Override:
    """Override all of them, in this order."""

    def apply() -> None:
        for override in overrides:
            override()

    return apply


def mutants(families: Iterable[str] = FAMILIES) -> dict[str, Mutant]:
    """All mutants of some families by id; imports their modules and the agent, and changes neither."""
    wanted = tuple(families)
    for family in wanted:
        package = import_module(f"{__package__}.mutants.{family}")
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    return {name: found for name, found in sorted(_MUTANTS.items()) if found.family in wanted}


def permitted() -> dict[str, Mutant]:
    """The switches of the tolerant twin by id."""
    found = mutants((*FAMILIES, TOLERANT))
    return {name: one for name, one in found.items() if one.permitted and not one.proxy}
