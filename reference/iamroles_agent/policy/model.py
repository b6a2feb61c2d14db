"""The rules of one policy as boxes, for everything that reasons about them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iamroles_agent.config import Config
from iamroles_agent.policy.atoms import Box, Universe, less_all
from iamroles_agent.policy.compiled import Rule, compile_rule
from iamroles_agent.policy.regions import Region


@dataclass(frozen=True, slots=True)
class Placed:
    """A rule, where it stands in its file, and its box."""

    rule: Rule
    key: str
    box: Box

    @property
    def id(self) -> str:
        """The rule's id."""
        return self.rule.id


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a policy, compiled and not yet placed."""

    grants: list[tuple[str, Rule]]
    """With their keys, the winner of any two first (O8)."""
    denies: list[tuple[str, Rule]]
    shadow_grants: list[tuple[str, Rule]]
    shadow_denies: list[tuple[str, Rule]]

    @classmethod
    def of(cls, config: Config) -> Rules:
        """Compile a checked configuration's rules."""
        grants = [(f"grants[{i}]", compile_rule(g), g.shadow) for i, g in enumerate(config.grants)]
        denies = [(f"denies[{i}]", compile_rule(d), d.shadow) for i, d in enumerate(config.denies)]
        grants.sort(key=lambda item: item[1].rank)
        denies.sort(key=lambda item: item[1].id)
        return cls(
            [(key, rule) for key, rule, shadow in grants if not shadow],
            [(key, rule) for key, rule, shadow in denies if not shadow],
            [(key, rule) for key, rule, shadow in grants if shadow],
            [(key, rule) for key, rule, shadow in denies if shadow],
        )

    @property
    def regions(self) -> list[Region]:
        """Of all rules."""
        every = (*self.grants, *self.denies, *self.shadow_grants, *self.shadow_denies)
        return [rule.region for _, rule in every]


class Model:
    """Rules placed in a universe, and what they open.

    Args:
        rules: of one policy.
        universe: of this policy, or of several that are compared.
        labels: from a role's name to its labels in the universe (names, or ARNs); None: the name itself.
    """

    def __init__(self, rules: Rules, universe: Universe, labels: dict[str, list[str]] | None = None) -> None:
        self.universe = universe
        self._labels = labels
        self.grants = self._place(rules.grants)
        self.denies = self._place(rules.denies, deny=True)
        self.shadow_grants = self._place(rules.shadow_grants)
        self.shadow_denies = self._place(rules.shadow_denies, deny=True)

    def _place(self, rules: list[tuple[str, Rule]], *, deny: bool = False) -> list[Placed]:
        placed = []
        for key, rule in rules:
            mask = self.universe.role_mask(self._labelled(rule.roles))
            placed.append(Placed(rule, key, self.universe.box(rule.region, mask, deny=deny)))
        return placed

    def _labelled(self, roles: Iterable[str]) -> list[str]:
        if self._labels is None:
            return list(roles)
        return [label for role in roles for label in ([role] if role == "*" else self._labels[role])]

    def opened(self, grant: Placed) -> list[Box]:
        """What a grant opens to tokens with one role: its box less the denies of the same role."""
        return less_all([grant.box], (deny.box for deny in self.denies))

    def won(self, grant: Placed, opened: list[Box] | None = None) -> list[Box]:
        """Where a grant also decides the backend: what it opens less the grants that win over it."""
        better = []
        for other in self.grants:
            if other is grant:
                break
            if other.box.meets(grant.box):
                better.append(other.box)
        return less_all(self.opened(grant) if opened is None else opened, better)


def model_of(config: Config) -> Model:
    """The model of one policy, its roles by name."""
    rules = Rules.of(config)
    return Model(rules, Universe(rules.regions, [role.name for role in config.roles]))
