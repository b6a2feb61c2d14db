"""Compare policies: find everything that a change opens, closes, moves and renames.

Roles are compared by ARN, because the token carries the ARN. Tokens with one role and tokens with two roles
show every change:

- A request is newly allowed to a token if its active role has a new grant, or a deny of that role is gone:
  the token with that role alone shows it. Or a deny of another role is gone: the token with these two roles
  shows it. The same holds for newly refused requests.
- A request moves if another grant wins, to another backend. With one active role the other roles of the token
  do not matter. Under `multi_role = "union"` the old winner names one role and the new winner one role: the
  token with these two roles shows it.
- Under `union` the winner also decides which roles grant, so which role is tagged and which `max_lifetime`
  ends the session. The same two roles show it.

Each change is reported with its whole region, in a normal form (`policy.describe`), so that the digest covers
it. A witness is one request of the region. Changes with one cause are one entry, whatever the number of roles
and grants.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, product
from operator import attrgetter
from typing import Any, NamedTuple

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Actor, Request, RoleArn
from iamroles_agent.policy.compiled import Rule, arns_of
from iamroles_agent.policy.regions import Region
from iamroles_agent.policy.witness import describe
from iamroles_tools.policy.describe import Line, Part, describe_parts
from iamroles_tools.policy.weakening import ABSENT, weakens
from iamroles_tools.policy.zones import (
    LabelledRule,
    Labels,
    Tree,
    World,
    Zone,
    bits,
    labelled,
    rules_of,
    split,
    walk,
)


@dataclass(frozen=True, slots=True)
class Change:
    """A region whose reach changed in one way, by one cause, for some roles."""

    cause: str
    """`grant g` or `deny d`: the rule that came, went or changed."""
    roles: tuple[str, ...]
    """ARNs, `*` for any that the policies do not name; or names of scopes."""
    rules: tuple[str, ...]
    """Ids of the grants that lead there: for what is closed those of the old policy, else of the new."""
    backend: str
    region: tuple[Line, ...]
    """All of it."""
    witness: Request
    """One request of the region."""
    companions: tuple[str, ...] = ()
    """ARNs one of which the token also carries; () for tokens with one role."""
    was: str = ""
    """If it moved: the backend before. If other roles grant it: the roles before."""
    now: str = ""
    """If other roles grant it: the roles now."""
    actor: Actor | None = None
    """The actor of the witness; None if its caller has none."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A changed value outside the rules: who is trusted, for how long, how the agent runs."""

    key: str
    old: str
    new: str
    weaker: bool = False
    """True if the change weakens the gate, as `policy.weakening` says."""


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes between two policies."""

    opened: tuple[Change, ...]
    closed: tuple[Change, ...]
    moved: tuple[Change, ...]
    regranted: tuple[Change, ...]
    """Same backend, but other roles of the token grant it: another tag, perhaps another lifetime."""
    scopes_opened: tuple[Change, ...]
    scopes_closed: tuple[Change, ...]
    settings: tuple[Setting, ...]
    renamed: tuple[Change, ...]
    """Same reach under another grant's id: backends see another `X-IAM-Rule`. No difference in access."""
    running: tuple[Setting, ...] = ()
    """Settings that weaken nothing, such as the number of workers. No difference, and not in the digest."""

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__ if name not in ("renamed", "running"))

    @property
    def digest(self) -> str:
        """Names exactly these changes, whole regions included; to acknowledge it acknowledges no others."""
        changes = self.to_json()
        del changes["running"]
        for items in changes.values():
            for item in items:
                for name in ("witness", "text", "weaker", "actor"):
                    item.pop(name, None)
        return hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Make the form for machines: witness and region as their parts."""

        def change(item: Change) -> dict[str, Any]:
            request = {name: str(getattr(item.witness, name)) for name in ("method", "host", "path", "src")}
            # A digest of before must stay as it was.
            region = [{k: v for k, v in one._asdict().items() if v or k not in _LATER} for one in item.region]
            return {**asdict(replace(item, region=())), "region": region, "witness": request,
                    "text": describe(item.witness)}  # fmt: skip

        return {
            name: [
                asdict(item) if isinstance(item, Setting) else change(item) for item in getattr(self, name)
            ]
            for name in self.__slots__
        }


def diff(old: Config, new: Config) -> Difference:
    """Compare two checked configurations. Shadow rules open and close nothing."""
    names = [_arns_by_name(config) for config in (old, new)]
    labels = Labels(sorted({arn for named in names for listed in named.values() for arn in listed}))
    before, after = (_routes(*pair, labels) for pair in zip((old, new), names, strict=True))
    union = old.multi_role == new.multi_role == "union"
    routes = _Comparison(before, after, labels, (old, new), union=union).changes()
    scope_names = Labels(sorted({scope.name for config in (old, new) for scope in config.scopes}))
    sides = _scopes(old, scope_names), _scopes(new, scope_names)
    scopes = _Comparison(*sides, scope_names, (old, new)).changes()
    settings = list(_settings(old, new))
    return Difference(
        opened=routes["opened"],
        closed=routes["closed"],
        moved=routes["moved"],
        regranted=routes["regranted"],
        scopes_opened=scopes["opened"],
        scopes_closed=scopes["closed"],
        settings=tuple(setting for setting, counts in settings if counts),
        renamed=routes["renamed"],
        running=tuple(setting for setting, counts in settings if not counts),
    )


class _Side(NamedTuple):
    """One of the two policies."""

    grants: list[LabelledRule]
    denies: list[LabelledRule]
    lifetimes: list[float | None]
    """`max_lifetime` by label."""


class _Key(NamedTuple):
    """All that identifies an entry, except its roles."""

    kind: str
    cause: str
    backend: str
    companions: int = 0
    was: str = ""
    now: str = ""


@dataclass(slots=True)
class _Found:
    """Cells of an entry that change for some roles, and the rules that lead there."""

    cells: int = 0
    rules: set[str] = field(default_factory=set)


class _Reach(NamedTuple):
    """The cells of a zone that one policy opens to some roles."""

    won: list[tuple[LabelledRule, int]]
    """The cells that each grant decides, without denied cells."""
    granted: int
    refused: int
    denies: list[tuple[LabelledRule, int]]

    @property
    def open(self) -> int:
        return self.granted & ~self.refused

    def refusing(self, cells: int) -> Iterator[tuple[LabelledRule, int]]:
        """Split refused cells by the deny that is named for them."""
        for deny, theirs in self.denies:
            if mine := cells & theirs:
                yield deny, mine
                cells &= ~theirs


class _Comparison:
    """Walks both policies together; `union`: in both, all roles of a token count."""

    def __init__(
        self, old: _Side, new: _Side, labels: Labels, configs: Iterable[Config], *, union: bool = False
    ) -> None:
        self._sides = (old, new)
        self._labels = labels
        self._union = union
        self._found: dict[_Key, dict[tuple[int, Zone], _Found]] = defaultdict(lambda: defaultdict(_Found))
        self._rules = [rule for side in self._sides for rule in (*side.grants, *side.denies)]
        self._configs = list(configs)
        self._tree = Tree(self._rules, World.of(self._configs))
        self._side = {rule: side for side in self._sides for rule in (*side.grants, *side.denies)}

    def changes(self) -> dict[str, tuple[Change, ...]]:
        """Return the changes by kind, sorted by cause; roles with the same region are one entry."""
        same_lifetime = _same_lifetime(*self._sides) if self._union else []
        for zone in walk(self._rules, self._configs, self._tree):
            if self._rules_of(zone, self._sides[0]) == self._rules_of(zone, self._sides[1]):
                continue
            classes = split(zone.classes(self._labels.everyone), same_lifetime)
            reaches = {roles: self._reaches(zone, roles) for roles in classes}
            for roles, (before, after) in reaches.items():
                self._single(zone, roles, before, after)
            changed = [roles for roles, (before, after) in reaches.items() if before.refused != after.refused]
            for roles, other in product(classes, changed):
                if roles != other:
                    self._with_companion(zone, roles, other, reaches)
            if self._union:
                for one, two in combinations(classes, 2):
                    self._in_union(zone, one, two)
        found: dict[str, list[Change]] = defaultdict(list)
        for key, entry in self._found.items():
            found[key.kind] += self._entries(key, entry)
        order = attrgetter("cause", "backend", "was", "roles", "companions")
        return defaultdict(tuple, {kind: tuple(sorted(items, key=order)) for kind, items in found.items()})

    def _rules_of(self, zone: Zone, side: _Side) -> list[tuple[str, int, str, int]]:
        """Return a policy's rules in a zone, to compare them with those of the other."""
        return [
            (one.id, one.roles, one.rule.backend, zone.cells[one])
            for one in (*zone.grants, *zone.denies)
            if self._side[one] is side
        ]

    def _reaches(self, zone: Zone, roles: int) -> tuple[_Reach, _Reach]:
        """Return what each of the policies opens to some roles."""
        before, after = (self._reach(zone, side, roles) for side in self._sides)
        return before, after

    def _reach(self, zone: Zone, side: _Side, roles: int) -> _Reach:
        grants, denies = (
            zone.naming(roles, (one for one in rules if self._side[one] is side))
            for rules in (zone.grants, zone.denies)
        )
        refused = taken = zone.union(deny for deny, _ in denies)
        won, granted = [], 0
        for grant, cells in grants:
            if mine := cells & ~taken:
                won.append((grant, mine))
            taken |= cells
            granted |= cells
        return _Reach(won, granted, refused, denies)

    def _single(self, zone: Zone, roles: int, before: _Reach, after: _Reach) -> None:
        for kind, one, two in (("opened", before, after), ("closed", after, before)):
            for grant, won in two.won:
                fresh = won & ~one.open
                parts = [(f"deny {deny.id}", cells) for deny, cells in one.refusing(fresh & one.granted)]
                parts.append((f"grant {grant.id}", fresh & ~one.granted))
                for cause, cells in parts:
                    self._add(_Key(kind, cause, grant.rule.backend), roles, zone, cells, grant.id)
        for was, now, cells in _winners(before, after):
            backend, cause = now.rule.backend, f"grant {now.id}"
            if was.rule.backend != backend:
                self._add(_Key("moved", cause, backend, was=was.rule.backend), roles, zone, cells, now.id)
            elif was.id != now.id:
                self._add(_Key("renamed", cause, backend, was=was.id), roles, zone, cells, now.id)

    def _with_companion(
        self, zone: Zone, roles: int, other: int, reaches: Mapping[int, tuple[_Reach, _Reach]]
    ) -> None:
        """Find what both policies open to a role alone, and only one opens to a token with `other` too."""
        (before, after), (barred, free) = reaches[roles], reaches[other]
        for kind, one, two, barring, freeing in (
            ("opened", before, after, barred, free),
            ("closed", after, before, free, barred),
        ):
            changed = barring.refused & ~freeing.refused & one.open
            for grant, won in two.won if changed else ():
                for deny, cells in barring.refusing(won & changed):
                    key = _Key(kind, f"deny {deny.id}", grant.rule.backend, other)
                    self._add(key, roles, zone, cells, grant.id)

    def _in_union(self, zone: Zone, one: int, two: int) -> None:
        """Find where another grant wins for a token with two roles, and neither role alone shows it."""
        for was, now, cells in _winners(*self._reaches(zone, one | two)):
            held, holds = ([bool(grant.roles & role) for role in (one, two)] for grant in (was, now))
            if was.rule.backend == now.rule.backend:
                if held != holds:
                    old, new = self._sides
                    words = _granting(held, old, one, two), _granting(holds, new, one, two)
                    key = _Key("regranted", f"grant {now.id}", now.rule.backend, two, *words)
                    self._add(key, one, zone, cells, now.id)
            elif not any(map(all, zip(held, holds, strict=True))):
                key = _Key("moved", f"grant {now.id}", now.rule.backend, two, was.rule.backend)
                self._add(key, one, zone, cells, now.id)

    def _add(self, key: _Key, roles: int, zone: Zone, cells: int, rule: str) -> None:
        if cells:
            found = self._found[key][roles, zone]
            found.cells |= cells
            found.rules.add(rule)

    def _entries(self, key: _Key, found: Mapping[tuple[int, Zone], _Found]) -> Iterator[Change]:
        classes = split([self._labels.everyone], {roles for roles, _ in found})
        merged: dict[tuple[tuple[Line, ...], tuple[str, ...]], tuple[int, list[Part]]] = {}
        for one in classes:
            parts = [(zone, some.cells) for (roles, zone), some in found.items() if roles & one]
            if not parts:
                continue
            ids = {rule for (roles, _), some in found.items() if roles & one for rule in some.rules}
            same = describe_parts(parts, self._tree), tuple(sorted(ids))
            before = merged.get(same)
            merged[same] = (one | before[0] if before else one), parts
        for (region, rules), (roles, parts) in merged.items():
            zone, cells = min(parts, key=lambda part: self._tree.order[part[0].group.paths[0].name])
            yield Change(
                key.cause,
                tuple(self._labels.listed(roles)),
                rules,
                key.backend,
                region,
                zone.witness(cells),
                tuple(self._labels.listed(key.companions)),
                key.was,
                key.now,
                zone.actor,
            )


def _granting(named: list[bool], side: _Side, one: int, two: int) -> str:
    """Describe which of two classes a grant names, with the lifetime of each."""
    words = []
    for name, roles, is_named in zip(("the role", "the companion"), (one, two), named, strict=True):
        if is_named:
            limit = side.lifetimes[next(bits(roles))]
            words.append(name + (f" (at most {_duration(limit)})" if limit is not None else ""))
    return " and ".join(words)


def _duration(seconds: float) -> str:
    """Write all digits: every change must show."""
    return f"{seconds!r}s".replace(".0s", "s")


def _same_lifetime(old: _Side, new: _Side) -> list[int]:
    """Return roles with one lifetime in the old policy and one in the new, as bit sets."""
    found: dict[tuple[float | None, float | None], int] = {}
    for bit, limits in enumerate(zip(old.lifetimes, new.lifetimes, strict=True)):
        found[limits] = found.get(limits, 0) | 1 << bit
    return list(found.values())


def _winners(before: _Reach, after: _Reach) -> Iterator[tuple[LabelledRule, LabelledRule, int]]:
    """Yield old and new winner of each cell that has both."""
    for was, old in before.won:
        for now, new in after.won:
            if cells := old & new:
                yield was, now, cells


def _routes(config: Config, named: dict[str, list[str]], labels: Labels) -> _Side:
    grants = labelled(rules_of(config, "grants"), labels, named)
    denies = labelled(rules_of(config, "denies"), labels, named, deny=True)
    limits = {arn: role.max_lifetime for role in config.roles for arn in named[role.name]}
    return _Side(grants, denies, [limits.get(arn) for arn in labels.names])


def _scopes(config: Config, names: Labels) -> _Side:
    """Return scopes as roles with a grant of the region that they open."""
    rules = [
        (f"scopes[{index}]", Rule(scope.name, frozenset({scope.name}), Region.from_rule(scope)))
        for index, scope in enumerate(config.scopes)
    ]
    return _Side(labelled(rules, names), [], [])


def _arns_by_name(config: Config) -> dict[str, list[str]]:
    return {role.name: [str(RoleArn.parse(arn)) for arn in arns_of(role)] for role in config.roles}


_LATER = {"actors", "calls"}
_ROUTED = {"grants", "denies", "scopes", "roles", "groups", "version"}
"""Tables that are compared by the regions that they open or by ARN."""


def _settings(old: Config, new: Config) -> Iterator[tuple[Setting, bool]]:
    """Yield each changed setting, and whether it counts as a difference."""
    before, after = (
        _flat(config.model_dump(mode="json", by_alias=True, exclude=_ROUTED)) | _role_settings(config)
        for config in (old, new)
    )
    for key in sorted(before.keys() | after.keys()):
        one, two = before.get(key, ABSENT), after.get(key, ABSENT)
        if one != two and {one, two} != {"null", ABSENT}:
            weaker = weakens(key, one, two)
            yield Setting(key, one, two, weaker=bool(weaker)), weaker is not None


def _role_settings(config: Config) -> dict[str, str]:
    """Return the settings of roles by ARN: the name for `X-IAM-Role`, and the lifetime."""
    found = {}
    for role in config.roles:
        for arn in arns_of(role):
            key = f"roles[{RoleArn.parse(arn)}]"
            found[f"{key}.name"] = json.dumps(role.name)
            if role.max_lifetime is not None:
                found[f"{key}.max_lifetime"] = _duration(role.max_lifetime)
    return found


def _flat(value: Any, key: str = "") -> dict[str, str]:  # noqa: ANN401 - JSON
    """Return leaves by dotted key; list items by their `name`, lists of plain values as one sorted leaf."""
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for name, item in value.items():
            found |= _flat(item, f"{key}.{name}" if key else name)
        return found
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        found = {}
        for item in value:
            found |= _flat(item, f"{key}[{item['name']}]")
        return found
    if isinstance(value, list) and not key.endswith("_claim"):
        value = sorted(value)
    if isinstance(value, float):  # every float of the models is a duration
        return {key: _duration(value)}
    return {key: json.dumps(value)}
