"""Exact reasoning about rules: walk what they can tell apart.

Why this is exact and still small
---------------------------------
Rules test five things of a request: role, path, host, method, source. For each, the rules of a policy name
finitely many values. Requests that no rule tells apart behave alike, so one representative stands for all:

- paths: each path that is named, and for each one something just below it that no rule names;
- hosts: each name; for each `*.suffix` a name of no rule's below it; some other host; and no host (an absent
  Host header, or one that is none: every deny with hosts matches it, no grant with hosts does);
- methods: each method that is named, and one that is not;
- sources: the intervals between the bounds of all networks, IPv4 and IPv6.

`walk` visits each path once, with the rules that apply there: those on the way down the tree of paths. Paths
at which the same rules apply are one `Place`, and so are hosts. Within a place only method and source are
left. Their product is small, so a set of (method, source) cells is an integer used as a bit set: union,
intersection and difference are one operation each, whatever the rules look like. Roles that no rule of the
place tells apart are one class (`Place.classes`). The cost grows with the number of named paths times the
rules that apply at each, not with the square of the policy.

A witness is the representative of a cell that was left over. There are no regular expressions in a policy,
which keeps this decidable: nothing is sampled.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Request
from iamroles_agent.policy.compiled import Rule, compile_rule
from iamroles_agent.policy.regions import Address, Network, Region
from iamroles_agent.policy.witness import USUAL_METHODS, USUAL_SOURCE

OTHER, NONE = "", "\0"
"""Host atoms beside names and `*.suffix`: a host that no rule names; no host, or a text that is none."""
_ENDS = {4: 1 << 32, 6: 1 << 128}
_ORDER = {method: index for index, method in enumerate(USUAL_METHODS)}


class Path(NamedTuple):
    """A path that rules name, or (`below`) something just below it that no rule names."""

    name: str
    below: bool


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A rule, where it stands in its file, and the roles that it names."""

    rule: Rule
    key: str
    roles: int
    """Bit set of labels; see `Labels`."""
    deny: bool
    order: int
    """Its place among the rules of its kind: of two grants the winner comes first."""

    @property
    def id(self) -> str:
        return self.rule.id


class Labels:
    """Bits of roles. The bit after the last label stands for every other role.

    Args:
        names: the labels, e.g. roles' names or ARNs.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.everyone = (1 << (len(self.names) + 1)) - 1
        self._bit = {name: 1 << index for index, name in enumerate(self.names)}

    def mask(self, names: Iterable[str]) -> int:
        """Bits of some labels; `*` is every role, those without a label too."""
        found = 0
        for name in names:
            found |= self.everyone if name == "*" else self._bit[name]
        return found

    def of(self, mask: int) -> list[str]:
        """Labels of the bits, `*` for the bit of all other roles."""
        return [self.names[bit] if bit < len(self.names) else "*" for bit in bits(mask)]


def split(classes: list[int], by: Iterable[int]) -> list[int]:
    """Bit sets, cut into the parts that each of some other sets holds whole or not at all."""
    for mask in by:
        classes = [part for one in classes for part in (one & mask, one & ~mask) if part]
    return classes


def bits(mask: int) -> Iterator[int]:
    """Positions of the bits that are set, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Grid:
    """The (method, source) cells that some rules tell apart, as bits: `source * methods + method`."""

    def __init__(self, regions: Sequence[Region]) -> None:
        named = {method for region in regions for method in region.methods or ()}
        other = next((method for method in (*USUAL_METHODS, "PURGE", "OTHER") if method not in named), "")
        self.other = other or "X" * (1 + max(map(len, named)))
        self.methods = sorted({*named, self.other}, key=lambda m: (_ORDER.get(m, len(_ORDER)), m))
        self._bit = {method: 1 << index for index, method in enumerate(self.methods)}
        bounds = {(4, 0), (6, 0)}
        for network in {network for region in regions for network in region.sources or ()}:
            start, end = int(network.network_address), int(network.broadcast_address) + 1
            bounds.add((network.version, start))
            if end != _ENDS[network.version]:
                bounds.add((network.version, end))
        self.bounds = sorted(bounds)
        self.all = (1 << len(self.methods) * len(self.bounds)) - 1

    def cells(self, region: Region) -> int:
        """The cells of one of the regions."""
        width = len(self.methods)
        row = (1 << width) - 1 if region.methods is None else sum(self._bit[m] for m in region.methods)
        if region.sources is None:
            return self._rows(row, 0, len(self.bounds))
        found = 0
        for network in region.sources:
            found |= self._rows(row, *self._interval(network))
        return found

    def with_methods(self, methods: Iterable[str], *, but: bool = False) -> int:
        """Cells of these methods, or (`but`) of all others, from any source."""
        wanted = set(methods)
        row = sum(bit for method, bit in self._bit.items() if (method in wanted) is not but)
        return self._rows(row, 0, len(self.bounds))

    def any_method(self, cells: int) -> int:
        """All cells of the sources that have a cell."""
        width, found = len(self.methods), 0
        row = (1 << width) - 1
        for index in range(len(self.bounds)):
            if cells >> index * width & row:
                found |= row << index * width
        return found

    def rows(self, cells: int) -> list[int]:
        """For each source interval the bit set of its methods."""
        width = len(self.methods)
        row = (1 << width) - 1
        return [cells >> index * width & row for index in range(len(self.bounds))]

    def _interval(self, network: Network) -> tuple[int, int]:
        start = (network.version, int(network.network_address))
        end = (network.version, int(network.broadcast_address) + 1)
        return bisect_left(self.bounds, start), bisect_left(self.bounds, end)

    def _rows(self, row: int, start: int, end: int) -> int:
        width = len(self.methods)
        ones = (1 << width * (end - start)) - 1
        return row * (ones // ((1 << width) - 1)) << width * start

    def pick(self, cells: int) -> tuple[str, Address]:
        """Method and source of a cell, as usual-looking as there is one."""
        width = len(self.methods)
        rows = self.rows(cells)
        usual = bisect_left(self.bounds, (4, int(USUAL_SOURCE) + 1)) - 1
        index = usual if rows[usual] else next(i for i, row in enumerate(rows) if row)
        method = self.methods[next(bits(rows[index] & (1 << width) - 1))]
        return method, USUAL_SOURCE if index == usual else self._address(index)

    def _address(self, index: int) -> Address:
        version, start = self.bounds[index]
        after = self.bounds[index + 1] if index + 1 < len(self.bounds) else (0, 0)
        end = after[1] if after[0] == version else _ENDS[version]
        number = start + 1 if end > start + 1 else start
        return IPv4Address(number) if version == 4 else IPv6Address(number)


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """Paths at which the same rules apply, and the host atoms that these rules tell apart."""

    at: list[Path]
    hosts: list[str]
    """`*.suffix` stands for a name below it that no rule names."""


class Place:
    """Paths and hosts at which the same rules apply.

    Args:
        where: the paths.
        hosts: those of `where.hosts` that this place is about.
        rules: that apply, in their order.
    """

    def __init__(self, where: Paths, hosts: list[str], rules: list[Placed]) -> None:
        self.where = where
        self.hosts = hosts
        self.rules = rules
        self.grid = Grid([one.rule.region for one in rules])
        self.cells = {one: self.grid.cells(one.rule.region) for one in rules}

    def classes(self, everyone: int) -> list[int]:
        """All roles, split into classes that no rule of this place tells apart."""
        return split([everyone], {one.roles for one in self.rules})

    def naming(self, roles: int, rules: Iterable[Placed]) -> list[tuple[Placed, int]]:
        """Those of the rules that name some of the roles, with their cells, in their order."""
        return [(one, self.cells[one]) for one in rules if one.roles & roles]

    def union(self, rules: Iterable[Placed]) -> int:
        """Cells of any of the rules."""
        found = 0
        for one in rules:
            found |= self.cells[one]
        return found

    def named(self, roles: int, rules: Iterable[Placed]) -> int:
        """Cells of those of the rules that name some of the roles."""
        return self.union(one for one in rules if one.roles & roles)

    def witness(self, cells: int) -> Request:
        """A request in one of the cells, as usual-looking as there is one."""
        method, source = self.grid.pick(cells)
        path, below = self.where.at[0]
        if below:
            path = f"{path.removesuffix('/')}/x"
        return Request(method, self._host(), path, source)

    def _host(self) -> str:
        if NONE in self.hosts:
            return ""
        atom = min(self.hosts, key=lambda host: (host == OTHER, host.startswith("*."), host))
        known = set(self.where.hosts)
        if atom == OTHER:
            return _fresh("other.example", known)
        return _fresh(f"any{atom[1:]}", known) if atom.startswith("*.") else atom


def _fresh(host: str, known: set[str]) -> str:
    label, dot, rest = host.partition(".")
    while f"{label}{dot}{rest}" in known or f"*.{label}{dot}{rest}" in known:
        label += "y"
    return f"{label}{dot}{rest}"


class Tree:
    """The paths that rules name, in the order of the tree, and what lies below what.

    Args:
        regions: every region that will be asked about.
    """

    def __init__(self, regions: Iterable[Region]) -> None:
        named = sorted({"/", *(region.path for region in regions)}, key=segments_of)
        self.names = named
        self.place = {name: index for index, name in enumerate(named)}
        """A path's place in the order of the tree."""
        self.parent: dict[str, str | None] = {"/": None}
        self.children: dict[str, list[str]] = {name: [] for name in named}
        way: list[str] = []
        for name in named:
            while way and not _is_below(name, way[-1]):
                way.pop()
            if way:
                self.parent[name] = way[-1]
                self.children[way[-1]].append(name)
            way.append(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)


def segments_of(path: str) -> tuple[str, ...]:
    """The segments of a canonical path."""
    return () if path == "/" else tuple(path[1:].split("/"))


def _is_below(path: str, above: str) -> bool:
    return above == "/" or path.startswith(above + "/")


def walk(tree: Tree, rules: Iterable[Placed]) -> Iterator[Place]:
    """Every place at which some rule applies, each path in exactly one group of places."""
    prefix: dict[str, list[Placed]] = {}
    exact: dict[str, list[Placed]] = {}
    for placed in rules:
        region = placed.rule.region
        (exact if region.exact else prefix).setdefault(region.path, []).append(placed)
    groups: dict[tuple[int, ...], tuple[list[Placed], list[Path]]] = {}
    inherited: dict[str | None, list[Placed]] = {None: []}
    for name in tree:
        above = inherited[tree.parent[name]]
        own = prefix.get(name)
        below = inherited[name] = [*above, *own] if own else above
        for rules_here, path in (
            (below + exact[name] if name in exact else below, Path(name, below=False)),
            (below, Path(name, below=True)),
        ):
            if rules_here:
                key = tuple(map(id, rules_here))
                groups.setdefault(key, (rules_here, []))[1].append(path)
    for rules_here, paths in groups.values():
        yield from _split_by_host(sorted(rules_here, key=lambda placed: placed.order), paths)


def _split_by_host(rules: list[Placed], paths: list[Path]) -> Iterator[Place]:
    patterns = {pattern for placed in rules for pattern in placed.rule.region.hosts or ()}
    hosts = [NONE, OTHER, *sorted(patterns)]
    where = Paths(paths, hosts)
    if not patterns:
        yield Place(where, hosts, rules)
        return
    by_rules: dict[tuple[int, ...], tuple[list[Placed], list[str]]] = {}
    for host in hosts:
        here = [placed for placed in rules if has_host(placed.rule.region, host, deny=placed.deny)]
        if here:
            by_rules.setdefault(tuple(map(id, here)), (here, []))[1].append(host)
    for here, found in by_rules.values():
        yield Place(where, found, here)


def has_host(region: Region, atom: str, *, deny: bool) -> bool:
    """Whether a host atom lies in a region; no host lies in every deny with hosts, and in no such grant."""
    if region.hosts is None:
        return True
    if atom == NONE:
        return deny
    if atom in region.hosts:
        return True
    name = atom[1:] if atom.startswith("*.") else f".{atom}"
    # `*.test` holds the atom `*.a.test` and the name `a.test`; `*.a.test` does not hold the name `a.test`.
    return any(
        pattern.startswith("*.") and name.endswith(pattern[1:]) and name != pattern[1:]
        for pattern in region.hosts
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a policy, with their keys in its file; grants the winner of any two first."""

    grants: list[tuple[str, Rule]]
    denies: list[tuple[str, Rule]]
    shadow_grants: list[tuple[str, Rule]]
    shadow_denies: list[tuple[str, Rule]]

    @classmethod
    def of(cls, config: Config) -> Rules:
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


def placed(
    rules: Iterable[tuple[str, Rule]],
    labels: Labels,
    names: dict[str, list[str]] | None = None,
    *,
    deny: bool = False,
) -> list[Placed]:
    """Rules with their roles as bits.

    Args:
        rules: with their keys.
        labels: of the roles.
        names: a role's name to its labels, where these are not the names themselves.
        deny: whether they are denies.
    """

    def mask(rule: Rule) -> int:
        if names is None or "*" in rule.roles:
            return labels.mask(rule.roles)
        return labels.mask(label for role in rule.roles for label in names[role])

    return [Placed(rule, key, mask(rule), deny, order) for order, (key, rule) in enumerate(rules)]
