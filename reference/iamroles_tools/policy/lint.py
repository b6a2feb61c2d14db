"""What is unwise or useless in a policy that may be enforced.

Every finding about regions is exact, and has a witness that `Policy.decide` confirms. Taking away all grants
and denies that are called unreachable, shadowed or redundant, even all at once, changes no verdict and no
backend; and then each grant that is left matters somewhere (tests/tools/policy/test_policy_lint.py).

The kinds:

- *unreachable*: a rule that can never have an effect: a grant under denies of its own roles, a deny where
  nothing is open, a role that no issuer may assert.
- *shadowed*: a grant that never decides, because others of the same roles always win over it.
- *redundant*: a rule without which every verdict stays: another grant opens the same to the same backend, or
  other denies refuse the same.
- *conflicting*: a rule that could not be enforced, or a policy that could not be switched, as it stands.
- *too-wide*: a wildcard that opens, or trusts, more than anyone can have meant.
- *escalation*: two roles that are harmless apart and write what they read together.
- *unused*: a role, group, backend or scope that nothing speaks of.

The search walks the policy's places (`policy.places`) once for each question. Within a place, a class of
roles sees an ordered list of grants, each a set of cells. One pass down that list settles who wins a cell.
One pass up settles who would win it without the winner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Request
from iamroles_agent.policy.witness import witness_in_both
from iamroles_tools.policy import lint_pairs, lint_wide
from iamroles_tools.policy.findings import Finding, Kind
from iamroles_tools.policy.places import Labels, Place, Placed, Rules, Tree, bits, placed, walk


def lint(config: Config, written: Config | None = None) -> list[Finding]:
    """Every finding about a checked configuration, in the order of its tables.

    Args:
        config: checked, groups written out.
        written: the same with its groups, where the file has any.
    """
    linter = Linter(config)
    findings = [
        *linter.grants(),
        *linter.denies(),
        *linter.conflicts(),
        *lint_pairs.escalations(config, linter.places, linter.labels),
        *lint_wide.too_wide(config),
        *lint_wide.unused(config),
        *lint_wide.unused_groups(written or config),
    ]
    return sorted(findings, key=_place)


def _place(finding: Finding) -> tuple[str, int, str]:
    table, _, index = finding.key.partition("[")
    return table, int(index.partition("]")[0] or 0), finding.kind


class _Shown(NamedTuple):
    """Where something was found."""

    roles: int
    place: Place
    cells: int


class Linter:
    """Findings from places alone.

    Args:
        config: checked.
    """

    def __init__(self, config: Config) -> None:
        rules = Rules.of(config)
        self.labels = Labels([role.name for role in config.roles])
        self._grants = placed(rules.grants, self.labels)
        self._denies = placed(rules.denies, self.labels, deny=True)
        self._shadow_grants = placed(rules.shadow_grants, self.labels)
        enforced = [*self._grants, *self._denies]
        self.places = list(walk(Tree(p.rule.region for p in enforced), enforced))
        self._union = config.multi_role == "union"

    def _seen(self) -> Iterator[tuple[Place, int, list[tuple[Placed, int]], list[tuple[Placed, int]]]]:
        """Each place and class of roles, with its grants and denies."""
        for place in self.places:
            grants = [p for p in place.rules if not p.deny]
            denies = [p for p in place.rules if p.deny]
            for roles in place.classes(self.labels.everyone):
                yield place, roles, place.naming(roles, grants), place.naming(roles, denies)

    def grants(self) -> Iterator[Finding]:
        opened: dict[Placed, _Shown] = {}
        decides: set[Placed] = set()
        refusers: dict[Placed, set[frozenset[Placed]]] = {}
        winners: dict[Placed, set[Placed]] = {}
        closed: dict[Placed, _Shown] = {}
        for place, roles, grants, denies in self._seen():
            refused = place.union(deny for deny, _ in denies)
            taken = 0
            for index, (grant, cells) in enumerate(grants):
                reach = cells & ~refused
                if not reach:
                    closed.setdefault(grant, _Shown(roles, place, cells))
                    if grant not in opened:
                        refusers.setdefault(grant, set()).update(_covering(cells, denies))
                else:
                    opened.setdefault(grant, _Shown(roles, place, reach))
                    if reach & ~taken:
                        decides.add(grant)
                    elif grant not in decides:
                        better = {other for other, theirs in grants[:index] if theirs & reach}
                        winners.setdefault(grant, set()).update(better)
                taken |= cells
        for grant in self._grants:
            if grant not in opened:
                by = needed(refusers[grant], sorted(set().union(*refusers[grant]), key=lambda p: p.order))
                yield self._denied(grant, by, closed[grant])
            elif grant not in decides:
                by = sorted(winners[grant], key=lambda p: p.order)
                yield self._shadowed(grant, by, opened[grant])
        yield from self._redundant([grant for grant in self._grants if grant in decides])

    def _denied(self, grant: Placed, by: list[Placed], shown: _Shown) -> Finding:
        return Finding(
            Kind.UNREACHABLE,
            grant.key,
            grant.id,
            f"grants nothing: {_ids(by)} refuse{_s(by)} all of it to the same roles",
            "Delete it, or narrow the deny",
            *self._witness(shown),
            others={deny.id: deny.key for deny in by},
        )

    def _shadowed(self, grant: Placed, by: list[Placed], shown: _Shown) -> Finding:
        return Finding(
            Kind.SHADOWED,
            grant.key,
            grant.id,
            f"never decides: {_ids(by)} win{_s(by)} wherever it matches",
            "Delete it, or make its path more specific",
            *self._witness(shown),
            others={other.id: other.key for other in by},
        )

    def _redundant(self, live: list[Placed]) -> Iterator[Finding]:
        """Grants whose place others would take with the same backend everywhere."""
        matters: set[Placed] = set()
        shown: dict[Placed, _Shown] = {}
        by: dict[Placed, set[Placed]] = {}
        kept = set(live)
        for place in self.places:
            grants = [p for p in place.rules if not p.deny and p in kept]
            denies = [p for p in place.rules if p.deny]
            if not grants:
                continue
            classes = place.classes(self.labels.everyone)
            for roles in classes:
                refused = place.named(roles, denies)
                for grant, won, losers in _decided(place.naming(roles, grants), refused, matters):
                    shown.setdefault(grant, _Shown(roles, place, won))
                    by.setdefault(grant, set()).update(losers)
            if self._union:
                # In a token with two roles, a loser of the other role may take the place.
                for one, two in combinations(classes, 2):
                    refused = place.named(one | two, denies)
                    for _ in _decided(place.naming(one | two, grants), refused, matters):
                        pass
        for grant in live:
            if grant not in matters:
                losers = sorted(by[grant], key=lambda p: p.order)
                yield Finding(
                    Kind.REDUNDANT,
                    grant.key,
                    grant.id,
                    f"changes nothing: without it {_ids(losers)} open{_s(losers)} the same "
                    "to the same backend",
                    "Delete it",
                    *self._witness(shown[grant]),
                    others={other.id: other.key for other in losers},
                )

    def denies(self) -> Iterator[Finding]:
        """Denies that other denies make useless, and denies where nothing is open.

        A token is refused a request by the denies of all its roles. So a set of denies is *needed together*
        where a request is granted to some role and exactly these denies refuse it, to a token with that role
        and at most one more. A deny may go if each such set keeps another one.
        """
        sets: dict[frozenset[Placed], _Shown] = {}
        for place in self.places:
            grants = [p for p in place.rules if not p.deny]
            denies = [p for p in place.rules if p.deny]
            if not grants or not denies:
                continue
            classes = place.classes(self.labels.everyone)
            granted = {roles: place.named(roles, grants) for roles in classes}
            refused = {roles: place.named(roles, denies) for roles in classes}
            anyone = 0
            for roles in classes:
                anyone |= granted[roles] & ~refused[roles]
            for roles in classes:
                kept_shut = refused[roles] & (granted[roles] | anyone)
                if kept_shut:
                    for found, cells in _split(kept_shut, place.naming(roles, denies)):
                        sets.setdefault(found, _Shown(roles, place, cells))
        busy = set().union(*sets) if sets else set()
        kept = needed(sets, list(busy), largest_first=True)
        for deny in self._denies:
            if deny not in busy:
                if not any(
                    deny.rule.region.meets(g.rule.region) for g in (*self._grants, *self._shadow_grants)
                ):
                    yield self._idle(deny)
            elif deny not in kept:
                own = {found - {deny}: shown for found, shown in sets.items() if deny in found}
                by = needed(own, [p for p in kept if any(p in found for found in own)])
                yield Finding(
                    Kind.REDUNDANT,
                    deny.key,
                    deny.id,
                    f"changes nothing: {_ids(by)} den{'ies' if len(by) == 1 else 'y'} all of it that is open",
                    "Delete it",
                    *self._witness(next(iter(own.values()))),
                    others={other.id: other.key for other in by},
                )

    def _idle(self, deny: Placed) -> Finding:
        return Finding(
            Kind.UNREACHABLE,
            deny.key,
            deny.id,
            "has nothing to deny: no grant opens any of it to anyone",
            "Keep it as a guard rail, or delete it",
            self.labels.of(deny.roles)[0],
            witness_in_both(deny.rule.region, deny.rule.region),
            note=True,
        )

    def conflicts(self) -> Iterator[Finding]:
        """Shadow grants that could not be enforced; grants that `multi_role = "union"` would set at odds."""
        enforced = _by_path(self._grants)
        for shadow in self._shadow_grants:
            for other in enforced.get(_path(shadow), ()):
                if (self._union or shadow.roles & other.roles) and _at_odds(shadow, other):
                    yield self._conflict(shadow, other, "once enforced, conflicts with", note=False)
        if self._union:
            return
        pairs = set()
        for same in enforced.values():
            for one, two in combinations(same, 2):
                roles = one.roles & -one.roles, two.roles & -two.roles
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

    def _witness(self, shown: _Shown) -> tuple[str, Request]:
        role = self.labels.of(1 << next(bits(shown.roles)))[0]
        return role, shown.place.witness(shown.cells)


def _decided(
    grants: list[tuple[Placed, int]], refused: int, matters: set[Placed]
) -> Iterator[tuple[Placed, int, list[Placed]]]:
    """Walk up an ordered list of grants, and add to `matters` those whose absence would change a backend.

    Yields:
        Each grant that decides somewhere and does not matter so far: its cells, and who would take its place.
    """
    taken, won = refused, []
    for _, cells in grants:
        won.append(cells & ~taken)
        taken |= cells
    after: dict[str, int] = {}
    for index in range(len(grants) - 1, -1, -1):
        grant, cells = grants[index]
        backend = grant.rule.backend
        mine = won[index]
        if mine and grant not in matters:
            if mine & ~after.get(backend, 0):
                matters.add(grant)
            else:
                losers, left = [], mine
                for other, theirs in grants[index + 1 :]:
                    if theirs & left:
                        losers.append(other)
                        left &= ~theirs
                yield grant, mine, losers
        for name in after:
            after[name] &= ~cells
        after[backend] = after.get(backend, 0) | cells


def needed(
    sets: Iterable[frozenset[Placed]], rules: list[Placed], *, largest_first: bool = False
) -> list[Placed]:
    """Rules that are enough for each set to keep one; one rule alone where one is enough.

    Args:
        sets: each not empty.
        rules: the candidates.
        largest_first: give up the largest id first, in place of looking for one that is enough alone.
    """
    sets = list(sets)
    if not largest_first:
        for rule in rules:
            if all(rule in found for found in sets):
                return [rule]
    kept = dict.fromkeys(sorted(rules, key=lambda p: p.order))
    holding: dict[Placed, list[int]] = {rule: [] for rule in kept}
    counts = []
    for index, found in enumerate(sets):
        members = [rule for rule in found if rule in kept]
        counts.append(len(members))
        for rule in members:
            holding[rule].append(index)
    for rule in reversed(list(kept)):
        if all(counts[index] > 1 for index in holding[rule]):
            del kept[rule]
            for index in holding[rule]:
                counts[index] -= 1
    return list(kept)


def _covering(cells: int, rules: list[tuple[Placed, int]]) -> Iterator[frozenset[Placed]]:
    return (found for found, _ in _split(cells, rules))


def _split(cells: int, rules: list[tuple[Placed, int]]) -> list[tuple[frozenset[Placed], int]]:
    """Cells, split by which of the rules hold them."""
    parts: list[tuple[tuple[Placed, ...], int]] = [((), cells)]
    for rule, theirs in rules:
        if theirs & cells:
            parts = [
                part
                for holders, some in parts
                for part in (((*holders, rule), some & theirs), (holders, some & ~theirs))
                if part[1]
            ]
    return [(frozenset(holders), some) for holders, some in parts]


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
