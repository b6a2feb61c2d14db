"""What a change of policy opens, closes, moves and renames: all of it, exactly.

Roles are compared by ARN, because the token carries the ARN. Tokens with one role and tokens with two show
every change:

- A request is newly allowed to a token if its active role is newly granted it, or a deny of that role is
  gone: the token with that role alone shows it. Or a deny of another role is gone: the token with these two
  roles shows it. The same holds for what is newly refused.
- A request moves if another grant wins, to another backend. With one active role the other roles of the
  token play no part. Under `multi_role = "union"` the old winner names one role and the new winner one role:
  the token with these two shows it.
- Under `union` the winner also says which roles grant, so which role is tagged and whose `max_lifetime` ends
  the session. The same two roles show it.

What is told is the whole region of each change, in a normal form (`policy.describe`), so that the digest
covers it. A witness is one request of the region. Changes with one cause are one entry, whatever number of
roles and grants it touches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, product
from typing import Any, NamedTuple

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Request, RoleArn
from iamroles_agent.policy.compiled import Rule, arns_of
from iamroles_agent.policy.regions import Region
from iamroles_agent.policy.witness import describe
from iamroles_tools.policy.describe import Line, Part, describe_parts
from iamroles_tools.policy.places import Labels, Place, Placed, Rules, Tree, bits, placed, split, walk


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
    """For what moved: the backend before. For what is granted by other roles: the roles before."""
    now: str = ""
    """For what is granted by other roles: the roles now."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A changed value that bears on who is trusted, for how long, or on where a backend is."""

    key: str
    old: str
    new: str


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
    """Same reach under another grant's id: back ends see another `X-IAM-Rule`. No difference in access."""

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__ if name != "renamed")

    @property
    def digest(self) -> str:
        """Names exactly these changes, whole regions included; acknowledging them acknowledges no others."""
        said = self.to_json()
        for changes in said.values():
            for change in changes:
                change.pop("witness", None)
                change.pop("text", None)
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """For machines; witness and region as their parts."""

        def change(item: Change) -> dict[str, Any]:
            request = {
                "method": item.witness.method,
                "host": item.witness.host,
                "path": item.witness.path,
                "src": str(item.witness.src),
            }
            region = [line._asdict() for line in item.region]
            return {**asdict(replace(item, region=())), "region": region, "witness": request,
                    "text": describe(item.witness)}  # fmt: skip

        lists = {name: getattr(self, name) for name in self.__slots__ if name != "settings"}
        return {name: [change(item) for item in items] for name, items in lists.items()} | {
            "settings": [asdict(item) for item in self.settings]
        }


def diff(old: Config, new: Config) -> Difference:
    """Compare two checked configurations. Shadow rules open and close nothing."""
    names = [_arns_by_name(config) for config in (old, new)]
    labels = Labels(sorted({arn for named in names for listed in named.values() for arn in listed}))
    rules = [Rules.of(config) for config in (old, new)]
    sides = [
        _Side(
            placed(each.grants, labels, named),
            placed(each.denies, labels, named, deny=True),
            [_lifetimes(config).get(arn) for arn in labels.names],
        )
        for config, each, named in zip((old, new), rules, names, strict=True)
    ]
    union = old.multi_role == new.multi_role == "union"
    routes = _Comparison(sides[0], sides[1], labels, union=union).run()
    scope_names = Labels(sorted({scope.name for config in (old, new) for scope in config.scopes}))
    scopes = _Comparison(_scopes(old, scope_names), _scopes(new, scope_names), scope_names).run()
    return Difference(
        opened=routes.told("opened"),
        closed=routes.told("closed"),
        moved=routes.told("moved"),
        regranted=routes.told("regranted"),
        scopes_opened=scopes.told("opened"),
        scopes_closed=scopes.told("closed"),
        settings=tuple(_settings(old, new)),
        renamed=routes.told("renamed"),
    )


class _Side(NamedTuple):
    """One of the two policies."""

    grants: list[Placed]
    denies: list[Placed]
    lifetimes: list[float | None]
    """`max_lifetime` by label."""


class _Key(NamedTuple):
    """What is one entry, roles aside."""

    kind: str
    cause: str
    backend: str
    companions: int = 0
    was: str = ""
    now: str = ""


@dataclass(slots=True)
class _Found:
    """Cells of one entry, by the roles that they change for."""

    parts: dict[tuple[int, Place], int] = field(default_factory=dict)
    rules: dict[tuple[int, Place], set[str]] = field(default_factory=dict)


class _Comparison:
    """Walks both policies at once.

    Args:
        old, new: the policies.
        labels: of the roles of both.
        union: whether a token's roles all count, in both.
    """

    def __init__(self, old: _Side, new: _Side, labels: Labels, *, union: bool = False) -> None:
        self._old, self._new = old, new
        self._labels = labels
        self._union = union
        self._same_lifetime = _alike(old, new) if union else []
        self._found: dict[_Key, _Found] = {}
        every = [*old.grants, *old.denies, *new.grants, *new.denies]
        self._tree = Tree(one.rule.region for one in every)
        self._every = every
        self._side = {one: side for side in (old, new) for one in (*side.grants, *side.denies)}

    def run(self) -> _Comparison:
        for place in walk(self._tree, self._every):
            views = [self._view(place, side) for side in (self._old, self._new)]
            if _same(place, *views):
                continue
            classes = split(place.classes(self._labels.everyone), self._same_lifetime)
            of = {one: (_Reach.of(place, views[0], one), _Reach.of(place, views[1], one)) for one in classes}
            for roles, (before, after) in of.items():
                self._single(place, roles, before, after)
            changed = [one for one in classes if of[one][0].refused != of[one][1].refused]
            for roles, other in product(classes, changed):
                if roles != other:
                    self._with_companion(place, roles, other, of)
            if self._union:
                for one, two in combinations(classes, 2):
                    self._in_union(place, one, two, views)
        return self

    def _view(self, place: Place, side: _Side) -> _View:
        mine = [one for one in place.rules if self._side[one] is side]
        return _View([one for one in mine if not one.deny], [one for one in mine if one.deny])

    def _single(self, place: Place, roles: int, before: _Reach, after: _Reach) -> None:
        for kind, one, two in (("opened", before, after), ("closed", after, before)):
            for grant, won in two.won:
                fresh = won & ~one.open
                parts = [(f"deny {deny.id}", cells) for deny, cells in one.refusing(fresh & one.granted)]
                parts.append((f"grant {grant.id}", fresh & ~one.granted))
                for cause, cells in parts:
                    self._add(_Key(kind, cause, grant.rule.backend), roles, place, cells, grant.id)
        for was, now, cells in _met(before.won, after.won):
            backend, cause = now.rule.backend, f"grant {now.id}"
            if was.rule.backend != backend:
                self._add(_Key("moved", cause, backend, was=was.rule.backend), roles, place, cells, now.id)
            elif was.id != now.id:
                self._add(_Key("renamed", cause, backend, was=was.id), roles, place, cells, now.id)

    def _with_companion(
        self, place: Place, roles: int, other: int, of: Mapping[int, tuple[_Reach, _Reach]]
    ) -> None:
        """What both policies open to a role alone, and only one of them to a token that has the other too."""
        before, after = of[roles]
        denied = of[other]
        for kind, one, two, barred, free in (
            ("opened", before, after, denied[0], denied[1]),
            ("closed", after, before, denied[1], denied[0]),
        ):
            changed = barred.refused & ~free.refused & one.open
            for grant, won in two.won if changed else ():
                for deny, cells in barred.refusing(won & changed):
                    key = _Key(kind, f"deny {deny.id}", grant.rule.backend, other)
                    self._add(key, roles, place, cells, grant.id)

    def _in_union(self, place: Place, one: int, two: int, views: list[_View]) -> None:
        """Where another grant wins for a token with two roles, and neither role alone shows it."""
        before, after = (_Reach.of(place, view, one | two) for view in views)
        for was, now, cells in _met(before.won, after.won):
            held, holds = ([bool(grant.roles & role) for role in (one, two)] for grant in (was, now))
            if was.rule.backend == now.rule.backend:
                said = [self._granting(names, one, two, side) for names, side in
                        ((held, self._old), (holds, self._new))]  # fmt: skip
                if held != holds:
                    key = _Key("regranted", f"grant {now.id}", now.rule.backend, two, *said)
                    self._add(key, one, place, cells, now.id)
            elif not any(map(all, zip(held, holds, strict=True))):
                key = _Key("moved", f"grant {now.id}", now.rule.backend, two, was.rule.backend)
                self._add(key, one, place, cells, now.id)

    def _granting(self, named: list[bool], one: int, two: int, side: _Side) -> str:
        """Which of two classes a grant names, in words, with the lifetime of each."""
        said = []
        for name, roles, is_named in zip(("the role", "the companion"), (one, two), named, strict=True):
            if is_named:
                limit = side.lifetimes[next(bits(roles))]
                said.append(name + (f" (at most {limit:g}s)" if limit is not None else ""))
        return " and ".join(said)

    def _add(self, key: _Key, roles: int, place: Place, cells: int, rule: str) -> None:
        if not cells:
            return
        found = self._found.setdefault(key, _Found())
        at = roles, place
        found.parts[at] = found.parts.get(at, 0) | cells
        found.rules.setdefault(at, set()).add(rule)

    def told(self, kind: str) -> tuple[Change, ...]:
        """The changes of a kind, by cause; roles with the same region are one entry."""
        changes = []
        for key, found in self._found.items():
            if key.kind == kind:
                changes += list(self._entries(key, found))
        return tuple(sorted(changes, key=lambda c: (c.cause, c.backend, c.was, c.roles, c.companions)))

    def _entries(self, key: _Key, found: _Found) -> Iterator[Change]:
        classes = split([self._labels.everyone], {roles for roles, _ in found.parts})
        merged: dict[tuple[tuple[Line, ...], tuple[str, ...]], tuple[int, list[Part]]] = {}
        for one in classes:
            parts = [(place, cells) for (roles, place), cells in found.parts.items() if roles & one]
            if not parts:
                continue
            ids = {rule for (roles, _), some in found.rules.items() if roles & one for rule in some}
            same = describe_parts(parts, self._tree), tuple(sorted(ids))
            before = merged.get(same)
            merged[same] = (one | before[0] if before else one), parts
        for (region, rules), (roles, parts) in merged.items():
            place, cells = min(parts, key=lambda part: self._tree.place[part[0].where.at[0].name])
            yield Change(
                key.cause,
                tuple(self._labels.of(roles)),
                rules,
                key.backend,
                region,
                place.witness(cells),
                tuple(self._labels.of(key.companions)),
                key.was,
                key.now,
            )


class _View(NamedTuple):
    """The rules of one policy at a place."""

    grants: list[Placed]
    denies: list[Placed]


class _Reach(NamedTuple):
    """What one policy opens at a place to some roles."""

    won: list[tuple[Placed, int]]
    """Where each grant decides, denies taken away."""
    granted: int
    refused: int
    denies: list[tuple[Placed, int]]

    @classmethod
    def of(cls, place: Place, view: _View, roles: int) -> _Reach:
        denies = place.naming(roles, view.denies)
        refused = place.union(deny for deny, _ in denies)
        taken, won = refused, []
        granted = 0
        for grant, cells in place.naming(roles, view.grants):
            if mine := cells & ~taken:
                won.append((grant, mine))
            taken |= cells
            granted |= cells
        return cls(won, granted, refused, denies)

    @property
    def open(self) -> int:
        return self.granted & ~self.refused

    def refusing(self, cells: int) -> Iterator[tuple[Placed, int]]:
        """Refused cells, split by the deny that is named for them."""
        for deny, theirs in self.denies:
            if mine := cells & theirs:
                yield deny, mine
                cells &= ~theirs


def _alike(old: _Side, new: _Side) -> list[int]:
    """Roles with one lifetime in the old policy and one in the new, as bit sets."""
    found: dict[tuple[float | None, float | None], int] = {}
    for bit, limits in enumerate(zip(old.lifetimes, new.lifetimes, strict=True)):
        found[limits] = found.get(limits, 0) | 1 << bit
    return list(found.values())


def _same(place: Place, before: _View, after: _View) -> bool:
    """Whether the two policies have the same rules here."""

    def said(view: _View) -> list[tuple[str, int, str, int]]:
        return [
            (one.id, one.roles, one.rule.backend, place.cells[one]) for one in (*view.grants, *view.denies)
        ]

    return said(before) == said(after)


def _met(
    before: Iterable[tuple[Placed, int]], after: list[tuple[Placed, int]]
) -> Iterator[tuple[Placed, Placed, int]]:
    """Old and new winner of each cell that has both."""
    for was, old in before:
        for now, new in after:
            if cells := old & new:
                yield was, now, cells


def _scopes(config: Config, names: Labels) -> _Side:
    """Scopes as roles that are granted what they open."""
    rules = [
        (f"scopes[{index}]", Rule(scope.name, frozenset({scope.name}), Region.of(scope)))
        for index, scope in enumerate(config.scopes)
    ]
    return _Side(placed(rules, names), [], [])


def _arns_by_name(config: Config) -> dict[str, list[str]]:
    return {role.name: [str(RoleArn.parse(arn)) for arn in arns_of(role)] for role in config.roles}


def _lifetimes(config: Config) -> dict[str, float]:
    named = _arns_by_name(config)
    return {
        arn: role.max_lifetime
        for role in config.roles
        if role.max_lifetime is not None
        for arn in named[role.name]
    }


_ROUTED = {"agent", "audit", "metrics", "grants", "denies", "scopes", "roles", "groups", "version"}
"""Tables that are compared by what they open, by ARN, or that bear on no verdict."""


def _settings(old: Config, new: Config) -> Iterator[Setting]:
    before, after = (
        _flat(config.model_dump(mode="json", exclude=_ROUTED)) | _role_settings(config)
        for config in (old, new)
    )
    for key in sorted(before.keys() | after.keys()):
        one, two = before.get(key, "(absent)"), after.get(key, "(absent)")
        if one != two:
            yield Setting(key, one, two)


def _role_settings(config: Config) -> dict[str, str]:
    """By ARN: what `X-IAM-Role` may call it, and its lifetime."""
    found = {}
    for role in config.roles:
        for arn in arns_of(role):
            key = f"roles[{RoleArn.parse(arn)}]"
            found[f"{key}.name"] = json.dumps(role.name)
            if role.max_lifetime is not None:
                found[f"{key}.max_lifetime"] = f"{role.max_lifetime:g}s"
    return found


def _flat(value: Any, key: str = "") -> dict[str, str]:  # noqa: ANN401 - JSON
    """Leaves by dotted key; list items by their `name`, lists of plain values as one sorted leaf."""
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
        return {key: f"{value:g}s"}
    return {key: json.dumps(value)}
