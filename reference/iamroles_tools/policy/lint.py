"""Find what is unwise or useless in a policy that may be enforced.

Every finding about regions is exact, and has a witness that `Policy.decide` confirms. All grants and denies
that are called unreachable, shadowed or redundant can be removed together without a change of any verdict or
backend. Then each remaining grant matters for some request (tests/tools/policy/test_policy_lint.py).

The kinds:

- *unreachable*: a rule without any effect: a grant under denies of its own roles, a deny where nothing is
  open, a role that no issuer may assert.
- *shadowed*: a grant that never decides, because other grants of the same roles always win.
- *redundant*: a rule without which every verdict stays: another grant opens the same to the same backend, or
  other denies refuse the same.
- *conflicting*: a shadow rule that could not be enforced, or grants that forbid another `multi_role`.
- *too-wide*: a wildcard that opens, or trusts, more than anyone can have meant.
- *escalation*: two roles that are harmless apart; together one changes what the other reads.
- *unused*: a role, group, backend or scope that no rule names.
- *letter-case*: a deny that servers undo if they ignore the letter case of paths.
- *unrecorded*: decisions that may leave no record.
- *unproven*: plain TCP where HAProxy and the agent meet, on which any local user may answer or ask.
- *bound*: settings of bound tokens that do less than they seem to.

Each question visits the zones of the policy once (`policy.zones`). Within a zone, a class of roles has an
ordered list of grants, each a set of cells. One pass down that list finds the winner of each cell. One pass
up finds the grant that would win without the winner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from iamroles_agent.base.config import Config
from iamroles_agent.policy.witness import witness_in_both
from iamroles_tools.policy import lint_bound, lint_pairs, lint_wide
from iamroles_tools.policy.findings import Finding, Kind
from iamroles_tools.policy.zones import Cells, LabelledRule, Labels, Zone, bits, labelled, rules_of, walk


def lint(config: Config, written: Config | None = None) -> list[Finding]:
    """Return every finding about a checked configuration, in the order of its tables.

    `config` has its groups written out; `written` is the same with its groups, if the file has any.
    """
    linter = Linter(config)
    findings = [
        *linter.grants(),
        *linter.denies(),
        *linter.conflicts(),
        *lint_pairs.escalations(config, linter.zones, linter.labels),
        *lint_wide.too_wide(config),
        *lint_wide.unused(config),
        *lint_wide.unused_groups(written or config),
        *lint_wide.letter_case(config),
        *lint_wide.misnamed(config),
        *lint_wide.unrecorded(config),
        *lint_wide.unproven(config),
        *lint_bound.bound(config),
    ]
    return sorted(findings, key=_position)


def _position(finding: Finding) -> tuple[str, int, str]:
    table, _, index = finding.key.partition("[")
    return table, int(index.partition("]")[0] or 0), finding.kind


class _Shown(NamedTuple):
    """Roles and cells that show a finding."""

    roles: int
    zone: Zone
    cells: int


class Linter:
    """Findings from zones alone."""

    def __init__(self, config: Config) -> None:
        self.labels = Labels(role.name for role in config.roles)
        self._grants = labelled(rules_of(config, "grants"), self.labels)
        self._denies = labelled(rules_of(config, "denies"), self.labels, deny=True)
        self._shadow_grants = labelled(rules_of(config, "grants", shadow=True), self.labels)
        self.zones = list(walk([*self._grants, *self._denies], [config]))
        self._union = config.multi_role == "union"

    def grants(self) -> Iterator[Finding]:
        opened: dict[LabelledRule, _Shown] = {}
        decides: set[LabelledRule] = set()
        refusers: dict[LabelledRule, set[frozenset[LabelledRule]]] = defaultdict(set)
        winners: dict[LabelledRule, set[LabelledRule]] = defaultdict(set)
        closed: dict[LabelledRule, _Shown] = {}
        for zone in self.zones:
            for roles in zone.classes(self.labels.everyone):
                grants, denies = zone.naming(roles, zone.grants), zone.naming(roles, zone.denies)
                refused = zone.named(roles, zone.denies)
                taken = 0
                for index, (grant, cells) in enumerate(grants):
                    reach = cells & ~refused
                    if not reach:
                        closed.setdefault(grant, _Shown(roles, zone, cells))
                        if grant not in opened:
                            refusers[grant].update(holders for holders, _ in _split(cells, denies))
                    else:
                        opened.setdefault(grant, _Shown(roles, zone, reach))
                        if reach & ~taken:
                            decides.add(grant)
                        elif grant not in decides:
                            winners[grant].update(other for other, theirs in grants[:index] if theirs & reach)
                    taken |= cells
        for grant in self._grants:
            if grant not in opened and grant not in closed:
                message = "fits no request: a call of MCP is a POST of a revision that its resource speaks"
                remedy = "Correct `methods`, `versions` of the resource, or `mcp`"
                yield Finding(Kind.UNREACHABLE, grant.key, grant.id, message, remedy)
            elif grant not in opened:
                by = needed(refusers[grant], _in_order(set().union(*refusers[grant])))
                message = f"grants nothing: {_ids(by)} refuse{_s(by)} all of it to the same roles"
                say = message, "Delete it, or narrow the deny"
                yield self._finding(Kind.UNREACHABLE, grant, say, closed[grant], by)
            elif grant not in decides:
                by = _in_order(winners[grant])
                message = f"never decides: {_ids(by)} win{_s(by)} wherever it matches"
                say = message, "Delete it, or make its path more specific"
                yield self._finding(Kind.SHADOWED, grant, say, opened[grant], by)
        yield from self._redundant([grant for grant in self._grants if grant in decides])

    def _finding(
        self, kind: Kind, rule: LabelledRule, say: tuple[str, str], shown: _Shown, by: list[LabelledRule]
    ) -> Finding:
        role = self.labels.listed(1 << next(bits(shown.roles)))[0]
        witness = shown.zone.witness(shown.cells)
        others = {other.id: other.key for other in by}
        return Finding(kind, rule.key, rule.id, *say, role, witness, others, actor=shown.zone.actor)

    def _redundant(self, live: list[LabelledRule]) -> Iterator[Finding]:
        """Find grants that other grants would replace, with the same backend, everywhere."""
        matters: set[LabelledRule] = set()
        shown: dict[LabelledRule, _Shown] = {}
        by: dict[LabelledRule, set[LabelledRule]] = defaultdict(set)
        kept = set(live)
        for zone in self.zones:
            grants = [one for one in zone.grants if one in kept]
            if not grants:
                continue
            classes = zone.classes(self.labels.everyone)
            for roles in classes:
                refused = zone.named(roles, zone.denies)
                for grant, won, losers in _decided(zone.naming(roles, grants), refused, matters):
                    shown.setdefault(grant, _Shown(roles, zone, won))
                    by[grant].update(losers)
            if self._union:
                # In a token with two roles, a loser of the other role may replace the grant.
                for one, two in combinations(classes, 2):
                    refused = zone.named(one | two, zone.denies)
                    for _ in _decided(zone.naming(one | two, grants), refused, matters):
                        pass
        for grant in live:
            if grant not in matters:
                losers = _in_order(by[grant])
                same = f"without it {_ids(losers)} open{_s(losers)} the same to the same backend"
                say = f"changes nothing: {same}", "Delete it"
                yield self._finding(Kind.REDUNDANT, grant, say, shown[grant], losers)

    def denies(self) -> Iterator[Finding]:
        """Find denies that other denies make useless, and denies where nothing is open.

        The denies of all roles of a token refuse a request. So a set of denies is *needed together* where a
        request is granted to some role and exactly these denies refuse it, to a token with that role and at
        most one more. A deny may go if each such set keeps another deny.
        """
        sets: dict[frozenset[LabelledRule], _Shown] = {}
        for zone in self.zones:
            if not zone.grants or not zone.denies:
                continue
            classes = zone.classes(self.labels.everyone)
            granted = {roles: zone.named(roles, zone.grants) for roles in classes}
            refused = {roles: zone.named(roles, zone.denies) for roles in classes}
            anyone = 0
            for roles in classes:
                anyone |= granted[roles] & ~refused[roles]
            for roles in classes:
                kept_shut = refused[roles] & (granted[roles] | anyone)
                if kept_shut:
                    for found, cells in _split(kept_shut, zone.naming(roles, zone.denies)):
                        sets.setdefault(found, _Shown(roles, zone, cells))
        busy = set().union(*sets) if sets else set()
        kept = needed(sets, list(busy), largest_first=True)
        for deny in self._denies:
            if deny not in busy:
                grants = (*self._grants, *self._shadow_grants)
                if not any(deny.rule.region.meets(grant.rule.region) for grant in grants):
                    yield self._idle(deny)
            elif deny not in kept:
                own = {found - {deny}: shown for found, shown in sets.items() if deny in found}
                by = needed(own, [one for one in kept if any(one in found for found in own)])
                same = f"{_ids(by)} den{'ies' if len(by) == 1 else 'y'} all of it that is open"
                say = f"changes nothing: {same}", "Delete it"
                yield self._finding(Kind.REDUNDANT, deny, say, next(iter(own.values())), by)

    def _idle(self, deny: LabelledRule) -> Finding:
        return Finding(
            Kind.UNREACHABLE,
            deny.key,
            deny.id,
            "has nothing to deny: no grant opens any of it to anyone",
            "Keep it as a guard rail, or delete it",
            self.labels.listed(deny.roles)[0],
            witness_in_both(deny.rule.region, deny.rule.region),
            note=True,
        )

    def conflicts(self) -> Iterator[Finding]:
        """Find shadow grants that could not be enforced, and grants that `multi_role = "union"` forbids."""
        enforced: dict[tuple[str, bool], list[LabelledRule]] = defaultdict(list)
        for grant in self._grants:
            enforced[_path(grant)].append(grant)
        for shadow in self._shadow_grants:
            for other in enforced.get(_path(shadow), ()):
                if (self._union or shadow.roles & other.roles) and _at_odds(shadow, other):
                    yield _conflict(shadow, other, "once enforced, conflicts with", note=False)
        if self._union:
            return
        pairs = set()
        for same in enforced.values():
            for one, two in combinations(same, 2):
                roles = one.roles & -one.roles, two.roles & -two.roles
                if roles not in pairs and _at_odds(one, two):
                    pairs.add(roles)
                    yield _conflict(two, one, 'under multi_role = "union" would conflict with', note=True)


def _conflict(one: LabelledRule, two: LabelledRule, how: str, *, note: bool) -> Finding:
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


def _decided(
    grants: Cells, refused: int, matters: set[LabelledRule]
) -> Iterator[tuple[LabelledRule, int, list[LabelledRule]]]:
    """Walk up an ordered list of grants, and add to `matters` those whose absence would change a backend.

    Yields:
        Each grant that decides somewhere and does not matter so far: its cells, and the grants that would
        win.
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
    sets: Iterable[frozenset[LabelledRule]], rules: list[LabelledRule], *, largest_first: bool = False
) -> list[LabelledRule]:
    """Return enough of the rules for each set to keep one; a single rule if one rule is enough.

    With `largest_first`, drop the largest id first, in place of looking for a rule that is enough alone.
    """
    sets = list(sets)
    if not largest_first:
        for rule in rules:
            if all(rule in found for found in sets):
                return [rule]
    kept = dict.fromkeys(_in_order(rules))
    holding: dict[LabelledRule, list[int]] = {rule: [] for rule in kept}
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


def _split(cells: int, rules: Cells) -> list[tuple[frozenset[LabelledRule], int]]:
    """Split cells by the set of rules that hold them."""
    parts: list[tuple[tuple[LabelledRule, ...], int]] = [((), cells)]
    for rule, theirs in rules:
        if theirs & cells:
            parts = [
                part
                for holders, some in parts
                for part in (((*holders, rule), some & theirs), (holders, some & ~theirs))
                if part[1]
            ]
    return [(frozenset(holders), some) for holders, some in parts]


def _path(grant: LabelledRule) -> tuple[str, bool]:
    return grant.rule.region.path, grant.rule.region.exact


def _at_odds(one: LabelledRule, two: LabelledRule) -> bool:
    return one.rule.backend != two.rule.backend and one.rule.region.meets(two.rule.region)


def _in_order(rules: Iterable[LabelledRule]) -> list[LabelledRule]:
    return sorted(rules, key=lambda one: one.order)


def _ids(rules: list[LabelledRule]) -> str:
    shown = [rule.id for rule in rules[:4]]
    more = len(rules) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _s(rules: list[LabelledRule]) -> str:
    return "s" if len(rules) == 1 else ""
