"""What is unwise or useless in a policy that may be enforced (requirement O10).

Every finding about regions is exact, and has a witness that `Policy.decide` confirms. Taking away all grants
and denies that are called unreachable, shadowed or redundant, even all at once, changes no verdict and no
backend; and then each grant that is left matters somewhere (tests/agent/test_policy_lint.py).

The kinds:

- *unreachable*: a rule that can never have an effect: a grant under denies of its own roles, a deny where
  nothing is open, a role that no issuer may assert.
- *shadowed*: a grant that never decides, because others of the same roles always win over it.
- *redundant*: a rule without which every verdict stays: another grant opens the same to the same backend.
- *conflicting*: a rule that could not be enforced, or a policy that could not be switched, as it stands.
- *too-wide*: a wildcard that opens, or trusts, more than anyone can have meant.
- *escalation*: two roles that are harmless apart and write what they read together.
- *unused*: a role, backend or scope that nothing speaks of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from iamroles_agent.config import Config
from iamroles_agent.identity import Request
from iamroles_agent.policy.atoms import Box, less_all
from iamroles_agent.policy.model import Model, Placed, model_of
from iamroles_agent.policy.witness import witness_in_both


class Kind(StrEnum):
    """What sort of finding."""

    UNREACHABLE = "unreachable"
    SHADOWED = "shadowed"
    REDUNDANT = "redundant"
    CONFLICTING = "conflicting"
    TOO_WIDE = "too-wide"
    ESCALATION = "escalation"
    UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to think about."""

    kind: Kind
    key: str
    """Of the rule or item it is about, e.g. `grants[2]`."""
    subject: str
    """Its id or name."""
    message: str
    remedy: str
    role: str = ""
    """The role that the witness is sent with."""
    witness: Request | None = None
    others: dict[str, str] = field(default_factory=dict)
    """Ids of the other rules involved, and their keys."""
    note: bool = False
    """Worth knowing, not worth failing a build."""


def lint(config: Config) -> list[Finding]:
    """Every finding about a checked configuration, in the order of its tables."""
    from iamroles_agent.policy import lint_pairs, lint_wide  # noqa: PLC0415 - they share this module's types

    linter = Linter(config)
    findings = [
        *linter.grants(),
        *linter.denies(),
        *linter.conflicts(),
        *lint_pairs.escalations(config, linter.model),
        *lint_wide.too_wide(config),
        *lint_wide.unused(config),
    ]
    return sorted(findings, key=_place)


def _place(finding: Finding) -> tuple[str, int, str]:
    table, _, index = finding.key.partition("[")
    return table, int(index.partition("]")[0] or 0), finding.kind


class Linter:
    """Findings from boxes alone.

    Args:
        config: checked.
    """

    def __init__(self, config: Config) -> None:
        self.model: Model = model_of(config)
        self._universe = self.model.universe
        self._union = config.multi_role == "union"
        self._role_names = [role.name for role in config.roles]
        self._rank = {grant.key: index for index, grant in enumerate(self.model.grants)}

    def grants(self) -> Iterator[Finding]:
        """Unreachable, shadowed and redundant grants."""
        won: dict[str, list[Box]] = {}
        useless: set[str] = set()
        for grant in self.model.grants:
            opened = self.model.opened(grant)
            if not opened:
                useless.add(grant.key)
                yield self._denied(grant)
                continue
            won[grant.key] = self.model.won(grant, opened)
            if not won[grant.key]:
                useless.add(grant.key)
                yield self._shadowed(grant, opened)
        live = [grant for grant in self.model.grants if grant.key not in useless]
        for grant in live:
            if (covering := self._covering(grant, won[grant.key], live)) is not None:
                yield self._redundant(grant, won[grant.key][0], covering)

    def _denied(self, grant: Placed) -> Finding:
        by = _enough(grant.box, self._meeting(grant, self.model.denies))
        return Finding(
            Kind.UNREACHABLE,
            grant.key,
            grant.id,
            f"grants nothing: {_ids(by)} refuse{_s(by)} all of it to the same roles",
            "Delete it, or narrow the deny",
            *self._shown(grant.box),
            others={deny.id: deny.key for deny in by},
        )

    def _shadowed(self, grant: Placed, opened: list[Box]) -> Finding:
        better = self.model.grants[: self._rank[grant.key]]
        by = [other for other in better if any(other.box.meets(box) for box in opened)]
        return Finding(
            Kind.SHADOWED,
            grant.key,
            grant.id,
            f"never decides: {_ids(by)} win{_s(by)} wherever it matches",
            "Delete it, or make its path more specific",
            *self._shown(opened[0]),
            others={other.id: other.key for other in by},
        )

    def _redundant(self, grant: Placed, box: Box, by: list[Placed]) -> Finding:
        return Finding(
            Kind.REDUNDANT,
            grant.key,
            grant.id,
            f"changes nothing: without it {_ids(by)} open{_s(by)} the same to the same backend",
            "Delete it",
            *self._shown(box),
            others={other.id: other.key for other in by},
        )

    def _covering(self, grant: Placed, won: list[Box], live: list[Placed]) -> list[Placed] | None:
        """The grants that would take a grant's place with the same backend everywhere, None if not.

        The losers are asked best first. A loser of the same role takes over what it covers. In a union, a
        loser of another role would, in tokens that carry both, take over what no better one of the same role
        has: if its backend differs, the grant matters.
        """
        left = won
        by = []
        for loser in live:
            if self._rank[loser.key] <= self._rank[grant.key]:
                continue
            moved = loser.rule.backend != grant.rule.backend
            if moved and self._union and self._takes_over(loser, left):
                return None
            if not any(loser.box.meets(box) for box in left):
                continue
            if moved:
                return None
            left = less_all(left, [loser.box])
            by.append(loser)
            if not left:
                return by
        return None

    def _takes_over(self, loser: Placed, left: list[Box]) -> bool:
        """Whether a loser decides somewhere in `left` for tokens that also carry one of its roles."""
        for box in left:
            shared = self._universe.anyone(box).meet(loser.box)
            if shared is not None and less_all([shared], (deny.box for deny in self.model.denies)):
                return True
        return False

    def denies(self) -> Iterator[Finding]:
        """Denies that other denies cover, and denies where nothing is open."""
        anyone = self._universe.anyone
        every_grant = [*self.model.grants, *self.model.shadow_grants]
        kept = list(self.model.denies)
        for deny in reversed(self.model.denies):
            by = [other for other in kept if other is not deny and other.box.meets(deny.box)]
            if not less_all([deny.box], (other.box for other in by)):
                kept.remove(deny)
                by = _enough(deny.box, by)
                yield Finding(
                    Kind.REDUNDANT,
                    deny.key,
                    deny.id,
                    f"changes nothing: {_ids(by)} den{'ies' if len(by) == 1 else 'y'} all of it",
                    "Delete it",
                    *self._shown(deny.box),
                    others={other.id: other.key for other in by},
                )
            elif not any(anyone(grant.box).meets(anyone(deny.box)) for grant in every_grant):
                yield Finding(
                    Kind.UNREACHABLE,
                    deny.key,
                    deny.id,
                    "has nothing to deny: no grant opens any of it to anyone",
                    "Keep it as a guard rail, or delete it",
                    *self._shown(deny.box),
                    note=True,
                )

    def conflicts(self) -> Iterator[Finding]:
        """Shadow grants that could not be enforced; grants that `multi_role = "union"` would set at odds."""
        enforced = _by_path(self.model.grants)
        for shadow in self.model.shadow_grants:
            for other in enforced.get(_path(shadow), ()):
                if (self._union or shadow.rule.roles & other.rule.roles) and _at_odds(shadow, other):
                    yield self._conflict(shadow, other, "once enforced, conflicts with", note=False)
        if self._union:
            return
        pairs = set()
        for same in enforced.values():
            for index, one in enumerate(same):
                for two in same[index + 1 :]:
                    roles = min(one.rule.roles), min(two.rule.roles)
                    if roles not in pairs and _at_odds(one, two):
                        pairs.add(roles)
                        yield self._conflict(
                            two, one, 'under multi_role = "union" would conflict with', note=True
                        )

    def _conflict(self, one: Placed, two: Placed, how: str, *, note: bool) -> Finding:
        return Finding(
            Kind.CONFLICTING,
            one.key,
            one.id,
            f"{how} {two.id}: equally specific, to {one.rule.backend!r} and to {two.rule.backend!r}",
            "Name one backend, or set them apart by path, method, host, source or role",
            min(one.rule.roles),
            witness_in_both(one.rule.region, two.rule.region),
            {two.id: two.key},
            note=note,
        )

    def _meeting(self, grant: Placed, others: Iterable[Placed]) -> list[Placed]:
        return [other for other in others if other.box.meets(grant.box)]

    def _shown(self, box: Box) -> tuple[str, Request]:
        return self._universe.role_labels(box.roles)[0], self._universe.witness(box)


def _enough(box: Box, covering: list[Placed]) -> list[Placed]:
    """Of rules that cover a box together, one that does so alone, else those that are needed."""
    for rule in covering:
        if not box.less(rule.box):
            return [rule]
    needed = list(covering)
    for rule in covering:
        rest = [other for other in needed if other is not rule]
        if not less_all([box], (other.box for other in rest)):
            needed = rest
    return needed


def _by_path(grants: list[Placed]) -> dict[tuple[str, bool], list[Placed]]:
    found: dict[tuple[str, bool], list[Placed]] = {}
    for grant in grants:
        found.setdefault(_path(grant), []).append(grant)
    return found


def _path(grant: Placed) -> tuple[str, bool]:
    return grant.rule.region.path, grant.rule.region.exact


def _at_odds(one: Placed, two: Placed) -> bool:
    return one.rule.backend != two.rule.backend and one.rule.region.meets(two.rule.region)


def _ids(rules: list[Placed]) -> str:
    shown = [rule.id for rule in rules[:4]]
    more = len(rules) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _s(rules: list[Placed]) -> str:
    return "s" if len(rules) == 1 else ""
