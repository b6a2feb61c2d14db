"""The mutants: what each breaks, and which requirements must notice.

A mutant that breaks only SHOULDs, or clauses of the grade `strict`, does what the standards permit. It is one
switch of the *tolerant twin*, an agent that must pass every MUST of `core`. The family `tolerant` has more
switches: permitted behaviours that no check forbids. They kill nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

from iamroles_scenarios.declarations.catalogue import catalogue

FAMILIES = ("wire", "gate", "identity", "policy", "bound", "actor", "mcp", "proxy", "live", "fire", "fault")
"""A module or a folder of `selftest.mutants` each."""
TOLERANT = "tolerant"
"""The family of permitted behaviours that no check notices."""
_BROKEN = ("fire", "fault")


@dataclass(frozen=True, slots=True)
class Override:
    """Changes the agent in this process when it is called."""

    change: Callable[[], object]
    proxy: bool = False
    """True if it changes what is rendered for HAProxy, alone or beside the agent."""

    def __call__(self) -> None:
        self.change()


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small override of the reference agent."""

    id: str
    """`<family>.<name>`; never reused."""
    title: str
    """The agent's fault, as a clause: "accepts expired tokens"."""
    kills: tuple[str, ...]
    """Ids of the catalogue. Each needs a check that turns red."""
    apply: Override

    @property
    def permitted(self) -> bool:
        """Tell if the standards, and the grade `core`, permit what it does.

        They do not permit to fail with a part (`fire`, `fault`), although these requirements are `strict`: an
        agent with one process, or without a second agent, declares no such feature.
        """
        return self.family not in _BROKEN and all(
            catalogue()[name].level == "SHOULD" or catalogue()[name].grade == "strict" for name in self.kills
        )

    @property
    def family(self) -> str:
        """Return the part before the first dot."""
        return self.id.partition(".")[0]


_MUTANTS: dict[str, Mutant] = {}


def mutant(
    id: str,  # noqa: A002 - the catalogue's word
    kills: str,
    title: str,
    *beside: Override,
) -> Callable[..., Override]:
    """Declare a mutant. Call the result with its overrides, or use it as the decorator of one.

    Args:
        id: `<family>.<name>`.
        kills: the ids that it must turn red, separated by blanks.
        title: see `Mutant`.
        beside: overrides that are applied after the decorated one.
    """

    def declare(*overrides: Override) -> Override:
        if id in _MUTANTS:
            raise ValueError(f"mutant {id!r} is declared twice")
        found = Mutant(id, title, tuple(kills.split()), both(*overrides, *beside))
        if found.family not in (*FAMILIES, TOLERANT) or (found.family == TOLERANT) == bool(found.kills):
            raise ValueError(f"mutant {id!r}: begin with one of {FAMILIES} and name what it kills")
        _MUTANTS[id] = found
        return overrides[0]

    return declare


def both(*overrides: Override) -> Override:
    """Apply all of them, in this order."""

    def apply() -> None:
        for override in overrides:
            override()

    return Override(apply, proxy=any(override.proxy for override in overrides))


def modules(families: Iterable[str]) -> Iterator[str]:
    """Yield the names of the modules that declare the mutants of some families."""
    for family in families:
        found = import_module(f"{__package__}.mutants.{family}")
        yield found.__name__
        for module in iter_modules(getattr(found, "__path__", ()), f"{found.__name__}."):
            yield module.name


def mutants(families: Iterable[str] = FAMILIES) -> dict[str, Mutant]:
    """Return the mutants of some families by id. Import their modules and the agent, and change neither."""
    wanted = tuple(families)
    for name in modules(wanted):
        import_module(name)
    return {name: found for name, found in sorted(_MUTANTS.items()) if found.family in wanted}


def permitted() -> dict[str, Mutant]:
    """Return the switches of the tolerant twin by id."""
    found = mutants((*FAMILIES, TOLERANT))
    return {
        name: one
        for name, one in found.items()
        if one.family == TOLERANT or (one.permitted and not one.apply.proxy)
    }
