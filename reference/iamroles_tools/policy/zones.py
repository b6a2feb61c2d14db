"""Exact reasoning about rules: visit the zones that rules can tell apart.

Why this is exact and still small
---------------------------------
Rules test seven things of a request: role, path, host, actor, call of MCP, method, source. For each, the
rules of a policy name finitely many values. Requests that no rule tells apart behave alike, so one
representative stands for all:

- paths: each path that is named, and for each one something just below it that no rule names;
- hosts: each name; for each `*.suffix` a name below it that no rule names; some other host; and no host (an
  absent or invalid Host header: every deny with hosts matches it, no grant with hosts does);
- actors: nobody; each that is named, with each issuer; some other actor, of each issuer and of some other;
- calls: each that is named, some others, and the unknown call; what a resource knows, and only as POST;
- methods: each method that is named, and one method that is not;
- sources: the intervals between the bounds of all networks, IPv4 and IPv6.

`walk` visits each path once, with the rules that apply there: those on the way down the tree of paths. Paths
at which the same rules apply are one `Zone`, and so are hosts, actors and calls. Only method and source are
left in it. Their product is small, so a set of (method, source) cells is an integer used as a bit set: union,
intersection and difference are one operation each, whatever the rules look like. Roles that no rule of the
zone tells apart are one class (`Zone.classes`). The cost grows with the number of named paths times the rules
that apply at each, not with the square of the policy.

A witness is the representative of a cell that was left over. A policy has no regular expressions, which keeps
this decidable: nothing is sampled.
"""

from __future__ import annotations

from base64 import b64encode
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby, product
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import quoted
from iamroles_agent.base.identity import Actor, McpHeaders, Request
from iamroles_agent.policy.compiled import Rule, compile_rule
from iamroles_agent.policy.paths import segments
from iamroles_agent.policy.regions import NAMED_CALLS, Address, Network, Region, call_names
from iamroles_agent.policy.resources import WITH_HEADERS, Resources, Target
from iamroles_agent.policy.witness import USUAL_METHODS, USUAL_SOURCE

_K = TypeVar("_K")
OTHER, NONE = "", "\0"
"""Hosts beside names and `*.suffix`: a host that no rule names; no host, or an invalid one."""
_ENDS = {4: 1 << 32, 6: 1 << 128}
_ORDER = {method: index for index, method in enumerate(USUAL_METHODS)}


class Path(NamedTuple):
    """A path that rules name, or (`below`) something just below it that no rule names."""

    name: str
    below: bool


@dataclass(frozen=True, slots=True, eq=False)
class LabelledRule:
    """A rule, its key in the file, and the roles that it names."""

    rule: Rule
    key: str
    roles: int
    """Bit set of labels; see `Labels`."""
    deny: bool
    order: int
    """Its index among the rules of its kind: of two grants the winner comes first."""

    @property
    def id(self) -> str:
        return self.rule.id


Cells = list[tuple[LabelledRule, int]]
"""Rules with cells of a zone."""


class Labels:
    """Bits of roles, by name or ARN. The bit after the last label stands for every other role."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.everyone = (1 << (len(self.names) + 1)) - 1
        self._bit = {name: 1 << index for index, name in enumerate(self.names)}

    def mask(self, names: Iterable[str]) -> int:
        """Return the bits of some labels; `*` is every role, those without a label too."""
        found = 0
        for name in names:
            found |= self.everyone if name == "*" else self._bit[name]
        return found

    def listed(self, mask: int) -> list[str]:
        """Return the labels of the bits, `*` for the bit of all other roles."""
        return [self.names[bit] if bit < len(self.names) else "*" for bit in bits(mask)]


def split(classes: list[int], by: Iterable[int]) -> list[int]:
    """Cut bit sets into the parts that each of some other sets holds whole or not at all."""
    for mask in by:
        classes = [part for one in classes for part in (one & mask, one & ~mask) if part]
    return classes


def bits(mask: int) -> Iterator[int]:
    """Yield the positions of the bits that are set, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Grid:
    """The (method, source) cells that some rules tell apart, as bits: `source * methods + method`."""

    def __init__(self, regions: Sequence[Region], named: Iterable[str] = ()) -> None:
        named = {*named, *(method for region in regions for method in region.methods or ())}
        other = next((method for method in (*USUAL_METHODS, "PURGE", "OTHER") if method not in named), "")
        self.other = other or "X" * (1 + max(map(len, named)))
        self.methods = sorted({*named, self.other}, key=lambda m: (_ORDER.get(m, len(_ORDER)), m))
        self._bit = {method: 1 << index for index, method in enumerate(self.methods)}
        self._width = len(self.methods)
        self._full = (1 << self._width) - 1
        bounds = {(4, 0), (6, 0)}
        for network in {network for region in regions for network in region.sources or ()}:
            start, end = int(network.network_address), int(network.broadcast_address) + 1
            bounds.add((network.version, start))
            if end != _ENDS[network.version]:
                bounds.add((network.version, end))
        self.bounds = sorted(bounds)

    def cells(self, region: Region) -> int:
        """Return the cells of a region."""
        row = self._full if region.methods is None else sum(self._bit[m] for m in region.methods)
        if region.sources is None:
            return self._rows(row, 0, len(self.bounds))
        found = 0
        for network in region.sources:
            found |= self._rows(row, *self._interval(network))
        return found

    def with_methods(self, methods: Iterable[str]) -> int:
        """Return the cells of these methods from any source."""
        row = sum(self._bit[method] for method in set(methods) & self._bit.keys())
        return self._rows(row, 0, len(self.bounds))

    def any_method(self, cells: int) -> int:
        """Return all cells of the sources that have a cell."""
        found = 0
        for index, row in enumerate(self.rows(cells)):
            if row:
                found |= self._full << index * self._width
        return found

    def rows(self, cells: int) -> list[int]:
        """Return the bit set of methods for each source interval."""
        return [cells >> index * self._width & self._full for index in range(len(self.bounds))]

    def interval(self, index: int) -> tuple[int, int, int]:
        """Return IP version, first address and end of a source interval."""
        version, start = self.bounds[index]
        after = self.bounds[index + 1] if index + 1 < len(self.bounds) else (0, 0)
        return version, start, after[1] if after[0] == version else _ENDS[version]

    def _interval(self, network: Network) -> tuple[int, int]:
        start = (network.version, int(network.network_address))
        end = (network.version, int(network.broadcast_address) + 1)
        return bisect_left(self.bounds, start), bisect_left(self.bounds, end)

    def _rows(self, row: int, start: int, end: int) -> int:
        ones = (1 << self._width * (end - start)) - 1
        return row * (ones // self._full) << self._width * start

    def pick(self, cells: int) -> tuple[str, Address]:
        """Return method and source of a cell, as usual as possible."""
        rows = self.rows(cells)
        usual = bisect_left(self.bounds, (4, int(USUAL_SOURCE) + 1)) - 1
        index = usual if rows[usual] else next(i for i, row in enumerate(rows) if row)
        method = self.methods[next(bits(rows[index]))]
        if index == usual:
            return method, USUAL_SOURCE
        version, start, end = self.interval(index)
        number = start + 1 if end > start + 1 else start
        return method, IPv4Address(number) if version == 4 else IPv6Address(number)


@dataclass(frozen=True, slots=True, eq=False)
class PathGroup:
    """Paths at which the same rules apply, and the hosts that these rules tell apart."""

    paths: list[Path]
    hosts: list[str]
    """`*.suffix` stands for a name below it that no rule names."""
    named: Container[str]
    """All paths that rules name."""


Kinds = dict[Any, str]
"""An actor or call of each kind that rules tell apart, in words; None for nobody or an unknown call."""


class Calls(NamedTuple):
    """Revisions of MCP at a host and path, each with a port ("": the usual one); None: nothing is there."""

    known: tuple[str, str] | None = None
    """The call is known in it."""
    unknown: tuple[str, str] | None = None


class World(NamedTuple):
    """The issuers and resources of a policy, or of two policies to compare."""

    urls: list[str]
    """`iss` of tokens; none: any."""
    targets: list[Target]

    @classmethod
    def of(cls, configs: Iterable[Config]) -> World:
        configs = list(configs)
        urls = list(dict.fromkeys(issuer.issuer for config in configs for issuer in config.issuers))
        return cls(urls, [one for config in configs for one in Resources(config).targets])

    def calls(self, path: str) -> dict[str, Calls]:
        """Return the calls that can be made at a path, by host: those of the nearest resource of any port."""
        found: dict[str, Calls] = {}
        near = attrgetter("place.path", "place.host")
        held = sorted((one for one in self.targets if one.place.holds(path)), key=near)
        for (_, host), same in groupby(held, near):
            asks = sorted((version, one.place.ports[0]) for one in same for version in one.versions)
            known, unknown = (
                next((ask for ask in asks if (ask[0] >= WITH_HEADERS) is new), None) for new in (True, False)
            )
            found[host] = Calls(known, unknown)
        return found


class Zone:
    """Requests that rules tell apart by method and source alone: the same rules apply to all of them."""

    def __init__(
        self,
        group: PathGroup,
        hosts: list[str],
        rules: list[LabelledRule],
        *,
        kinds: tuple[Kinds, Kinds],
        askers: list[tuple[Actor | None, Any]],
        possible: Calls,
    ) -> None:
        self.group, self.hosts, self.rules = group, hosts, rules
        self.kinds, self.askers = kinds, askers
        """Kinds of actors and calls; those pairs that it holds."""
        self.actor, call = askers[0]
        version, self._port = (possible.unknown if call is None else possible.known) or ("", "")
        self._mcp = McpHeaders(version or None, call and call[0], call and as_sent(call[1]))
        self.grants = [one for one in rules if not one.deny]
        self.denies = [one for one in rules if one.deny]
        self.grid = Grid([one.rule.region for one in rules], {"POST"} if call else set())
        able = self.grid.with_methods(("POST",) if call else self.grid.methods)
        self.cells = {one: self.grid.cells(one.rule.region) & able for one in rules}

    def classes(self, everyone: int) -> list[int]:
        """Split all roles into classes that no rule of this zone tells apart."""
        return split([everyone], {one.roles for one in self.rules})

    def naming(self, roles: int, rules: Iterable[LabelledRule]) -> Cells:
        """Return those of the rules that name some of the roles, with their cells, in their order."""
        return [(one, cells) for one in rules if one.roles & roles and (cells := self.cells[one])]

    def union(self, rules: Iterable[LabelledRule]) -> int:
        """Return the cells of any of the rules."""
        found = 0
        for one in rules:
            found |= self.cells[one]
        return found

    def named(self, roles: int, rules: Iterable[LabelledRule]) -> int:
        """Return the cells of those of the rules that name some of the roles."""
        return self.union(one for one in rules if one.roles & roles)

    def witness(self, cells: int) -> Request:
        """Return a request in one of the cells, as usual as possible."""
        method, source = self.grid.pick(cells)
        path, below = self.group.paths[0]
        if below:
            path = _fresh(f"{path.removesuffix('/')}/x", self.group.named)
        host = self._host() + (self._port and f":{self._port}")
        return Request(method, host, path, source, mcp=self._mcp)

    def _host(self) -> str:
        if NONE in self.hosts:
            return ""
        host = min(self.hosts, key=lambda host: (host == OTHER, host.startswith("*."), host))
        known = set(self.group.hosts)
        if host == OTHER:
            return _fresh("other", known)  # one label: below no wildcard
        return _fresh("any", known, host[1:]) if host.startswith("*.") else host


def _fresh(text: str, known: Container[str], rest: str = "") -> str:
    while text + rest in known:
        text += "y"
    return text + rest


class Tree:
    """The paths that rules name, in the order of the tree, and which path is below which."""

    def __init__(self, rules: Iterable[LabelledRule], world: World) -> None:
        paths = {"/", *(one.rule.region.path for one in rules), *(one.place.path for one in world.targets)}
        self.names = sorted(paths, key=segments)
        self.order = {name: index for index, name in enumerate(self.names)}
        """A path's index in the order of the tree."""
        self.parent: dict[str, str | None] = {"/": None}
        self.children: dict[str, list[str]] = {name: [] for name in self.names}
        way: list[str] = []
        for name in self.names:
            while way and way[-1] != "/" and not name.startswith(way[-1] + "/"):
                way.pop()
            if way:
                self.parent[name] = way[-1]
                self.children[way[-1]].append(name)
            way.append(name)


def walk(
    rules: Iterable[LabelledRule], configs: Iterable[Config], tree: Tree | None = None
) -> Iterator[Zone]:
    """Visit every zone in which some rule applies.

    Args:
        rules: of the policies.
        configs: the policies: their issuers, without which any issuer is possible, and their resources.
        tree: the rules' tree, if the caller has it.
    """
    rules = list(rules)
    world = World.of(configs)
    tree = tree or Tree(rules, world)
    prefix: dict[str, list[LabelledRule]] = {}
    exact: dict[str, list[LabelledRule]] = {}
    for one in rules:
        region = one.rule.region
        (exact if region.exact else prefix).setdefault(region.path, []).append(one)
    groups: dict[tuple[object, ...], tuple[list[LabelledRule], list[Path]]] = {}
    inherited: dict[str | None, list[LabelledRule]] = {None: []}
    for name in tree.names:
        above = inherited[tree.parent[name]]
        own = prefix.get(name)
        below = inherited[name] = [*above, *own] if own else above
        there = world.calls(name).items()
        for here, path in (
            (below + exact[name] if name in exact else below, Path(name, below=False)),
            (below, Path(name, below=True)),
        ):
            if here:
                groups.setdefault((*map(id, here), *there), (here, []))[1].append(path)
    for here, paths in groups.values():
        yield from _split(sorted(here, key=lambda one: one.order), paths, world, tree)


def _split(rules: list[LabelledRule], paths: list[Path], world: World, tree: Tree) -> Iterator[Zone]:
    """Split the requests at some paths by host, actor and call."""
    there = world.calls(paths[0].name)
    patterns = {*there, *(pattern for one in rules for pattern in one.rule.region.hosts or ())}
    hosts = [NONE, OTHER, *sorted(patterns)]
    group = PathGroup(paths, hosts, tree.order)
    for at_host, found in _apart(
        hosts, rules, lambda one, host: has_host(one.rule.region, host, deny=one.deny)
    ):
        actors = _kinds({entry for one in at_host for entry in one.rule.region.actors or ()}, world.urls)
        entries = {entry for one in at_host for entry in one.rule.region.mcp or ()}
        by_calls: dict[Calls, list[str]] = {}
        for host in found:
            by_calls.setdefault(there.get(host, Calls()), []).append(host)
        for possible, some in by_calls.items():
            kinds = actors, _call_kinds(entries, possible)
            for here, askers in _apart(product(actors or [None], kinds[1]), at_host, _asked_by):
                for unknown in (False, True):  # what is known is a POST
                    if part := [pair for pair in askers if (pair[1] is None) is unknown]:
                        yield Zone(group, some, here, kinds=kinds, askers=part, possible=possible)


def _apart(
    kinds: Iterable[_K], rules: list[LabelledRule], fits: Callable[[LabelledRule, _K], bool]
) -> Iterable[tuple[list[LabelledRule], list[_K]]]:
    """Sort kinds by the rules that fit them; those that fit none are left out."""
    by_rules: dict[tuple[int, ...], tuple[list[LabelledRule], list[_K]]] = {}
    for kind in kinds:
        if here := [one for one in rules if fits(one, kind)]:
            by_rules.setdefault(tuple(map(id, here)), (here, []))[1].append(kind)
    return by_rules.values()


def _asked_by(one: LabelledRule, pair: tuple[Actor | None, tuple[str, str] | None]) -> bool:
    actor, call = pair
    names = None if call is None else call_names(*call)
    return one.rule.region.has_entries(actor.names if actor else frozenset(), names, unknown=one.deny)


def _call_kinds(entries: set[tuple[str, str]], calls: Calls) -> Kinds:
    found: Kinds = {} if calls.known and not calls.unknown else {None: "an unknown call"}
    if not calls.known:
        return found
    names = sorted({name for _, name in entries if name})
    methods = sorted({method for method, _ in entries if method} | (set(NAMED_CALLS) if names else set()))
    for method in methods:
        if method in NAMED_CALLS and names:
            found |= {(method, name): f"{method} {quoted(name)}" for name in names}
            found[method, _fresh("other", set(names))] = f"{method} of another name"
        else:
            found[method, "any" if method in NAMED_CALLS else ""] = method
    return found | {(_fresh("other", set(methods)), ""): "another method"}


def as_sent(name: str) -> str | None:
    """Write a name as `Mcp-Name` has it; None for none."""
    if name.isascii() and name.isprintable() and name == name.strip() and not name.startswith("=?"):
        return name or None
    return f"=?base64?{b64encode(name.encode()).decode()}?="


def _kinds(entries: set[tuple[str, str]], urls: list[str]) -> Kinds:
    if not entries:
        return {}
    named = sorted({url for _, url in entries if url})
    subs = {sub: quoted(sub) for sub, _ in sorted(entries) if sub}
    subs[_fresh("agent", set(subs))] = f"other than {', '.join(subs.values())}" if subs else "any"
    own = [url for url in urls if url in named] if urls else named
    unnamed = [url for url in urls or ["https://own.invalid"] if url not in named][:1]
    foreign = [url for url in named if urls != [url]]
    issuers = [*((url, False, f" of {quoted(url)}") for url in own), *((url, False, "") for url in unnamed)]
    issuers += [(url, True, f" of {quoted(url)}") for url in foreign]
    others = ", ".join([*map(quoted, named), "its own"])
    issuers.append(("https://other.invalid", True, f" of issuers other than {others}"))
    kinds: Kinds = {None: "nobody"}
    return kinds | {
        Actor(sub, url, abroad): f"{words}{of}" for sub, words in subs.items() for url, abroad, of in issuers
    }


def has_host(region: Region, host: str, *, deny: bool) -> bool:
    """Return whether a host lies in a region; no host lies in every deny with hosts, and in no such grant."""
    if region.hosts is None:
        return True
    if host == NONE:
        return deny
    # `*.test` holds the hosts `*.a.test` and `a.test`; `*.a.test` does not hold the name `a.test`.
    return host in region.hosts or any(is_below(host, pattern) for pattern in region.hosts)


def is_below(host: str, pattern: str) -> bool:
    """Return whether a wildcard holds a name, or another wildcard."""
    name = host[1:] if host.startswith("*.") else f".{host}"
    return pattern.startswith("*.") and name.endswith(pattern[1:]) and name != pattern[1:]


def rules_of(config: Config, table: str, *, shadow: bool = False) -> list[tuple[str, Rule]]:
    """Return the rules of a table with their keys in the file; of two grants the winner comes first."""
    rows = [(f"{table}[{i}]", row) for i, row in enumerate(getattr(config, table)) if row.shadow is shadow]
    first = attrgetter("rank" if table == "grants" else "id")
    return sorted(((key, compile_rule(row)) for key, row in rows), key=lambda item: first(item[1]))


def labelled(
    rules: Iterable[tuple[str, Rule]],
    labels: Labels,
    names: dict[str, list[str]] | None = None,
    *,
    deny: bool = False,
) -> list[LabelledRule]:
    """Add the roles of rules as bits; `names` has a role's labels, if these are not the names themselves."""

    def mask(rule: Rule) -> int:
        if names is None or "*" in rule.roles:
            return labels.mask(rule.roles)
        return labels.mask(label for role in rule.roles for label in names[role])

    return [LabelledRule(rule, key, mask(rule), deny, order) for order, (key, rule) in enumerate(rules)]
