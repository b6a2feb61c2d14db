"""The mutants: what each breaks, and which requirements must notice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

MUTANT_LANES = ("wire", "gate", "identity", "policy", "proxy")
"""One folder of `selftest.mutants` each."""
Apply = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small override of the reference agent."""

    id: str
    """`<lane>.<what>`; never reused."""
    title: str
    """What the agent then does wrong, as a clause: "accepts expired tokens"."""
    kills: tuple[str, ...]
    """Ids of the catalogue; each needs a check of its own that turns red."""
    apply: Apply
    """Overrides the agent in this process; imports it."""
    proxy: bool = False
    """Whether it breaks what is rendered for HAProxy, in place of the agent."""

    @property
    def lane(self) -> str:
        """The part before the first dot."""
        return self.id.partition(".")[0]


_MUTANTS: dict[str, Mutant] = {}


def mutant(
    id: str,  # noqa: A002 - the catalogue's word
    *,
    kills: Iterable[str],
    title: str,
    proxy: bool = False,
) -> Callable[[Apply], Apply]:
    """Declare a function as a mutant."""

    def declare(function: Apply) -> Apply:
        if id in _MUTANTS:
            raise ValueError(f"mutant {id!r} is declared twice")
        wanted = tuple(kills)
        if id.partition(".")[0] not in MUTANT_LANES or not wanted:
            raise ValueError(f"mutant {id!r}: begin with one of {MUTANT_LANES} and name what it kills")
        _MUTANTS[id] = Mutant(id, title, wanted, function, proxy)
        return function

    return declare


def mutants(lanes: Iterable[str] = MUTANT_LANES) -> dict[str, Mutant]:
    """All mutants of some lanes by id; imports their modules, never the agent."""
    wanted = tuple(lanes)
    for lane in wanted:
        package = import_module(f"{__package__}.mutants.{lane}")
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    return {name: found for name, found in sorted(_MUTANTS.items()) if found.lane in wanted}
