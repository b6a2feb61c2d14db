"""Describe regions in words, in one normal form: equal sets of requests have equal words.

A set of requests is collected as cells of zones (`Part`). The words describe it path by path: paths with the
same hosts, methods and sources are one line. A value that is inherited (by a path from the path above it, by
a host from the wildcard above it) is not repeated, so a rule that changes nothing does not change the words.
So a digest can cover the words: they differ exactly when the region does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    summarize_address_range,
)
from operator import attrgetter
from typing import Any, NamedTuple

from iamroles_agent.base.errors import quoted
from iamroles_agent.policy.regions import Network, Region
from iamroles_tools.policy.zones import NONE, OTHER, Grid, Kinds, Path, PathGroup, Tree, Zone, is_below

Part = tuple[Zone, int]
"""Some cells of a zone."""
_Slice = tuple[tuple[str, str, str, str, str], ...]


class Line(NamedTuple):
    """A product of conditions in words; "" stands for any."""

    methods: str
    hosts: str
    paths: str
    sources: str
    actors: str = ""
    calls: str = ""

    def __str__(self) -> str:
        host = f"{self.hosts} " if self.hosts else ""
        source = f" from {self.sources}" if self.sources else ""
        actors = f" with actor {self.actors}" if self.actors else ""
        calls = f" calling {self.calls}" if self.calls else ""
        return f"{self.methods or 'any method'} {host}{self.paths}{source}{actors}{calls}"


def describe_parts(parts: Iterable[Part], tree: Tree) -> tuple[Line, ...]:
    """Describe a set of requests: the cells of zones from a walk over the tree.

    Returns:
        Lines in a fixed order; their union is the set, and no line is part of another.
    """
    cells: dict[PathGroup, dict[Zone, int]] = {}
    for zone, found in parts:
        here = cells.setdefault(zone.group, {})
        here[zone] = here.get(zone, 0) | found
    slices: dict[_Slice, set[Path]] = {}
    for group, zones in cells.items():
        slices.setdefault(_slice(group, zones), set()).update(group.paths)
    lines = [
        Line(methods, hosts, _paths(paths, tree), sources, actors, calls)
        for conditions, paths in slices.items()
        for hosts, methods, sources, actors, calls in conditions
    ]
    return tuple(sorted(lines, key=attrgetter("paths", "hosts", "methods", "sources", "actors", "calls")))


def describe_region(region: Region) -> str:
    """Describe a rule's conditions in one line: methods, hosts, path, sources."""
    methods = ",".join(sorted(region.methods)) if region.methods else "any method"
    hosts = "|".join(sorted(region.hosts)) if region.hosts else ""
    below = "" if region.exact else " and below"
    sources = f" from {', '.join(map(str, region.sources))}" if region.sources else ""
    return f"{methods} {hosts}{region.path}{below}{sources}{actor_words(region)}{call_words(region)}"


def actor_words(region: Region) -> str:
    """Describe the actors that a rule asks for; "" if it asks for none."""
    named = [f"{quoted(sub)}{url and f' of {quoted(url)}'}" for sub, url in sorted(region.actors or ())]
    return f" with actor {' or '.join(named)}" if named else ""


def call_words(region: Region) -> str:
    """Describe the calls that a rule asks for; "" if it asks for none."""
    named = [f"{quoted(method)}{name and f' {quoted(name)}'}" for method, name in sorted(region.mcp or ())]
    return f" calling {' or '.join(named)}" if named else ""


def _slice(group: PathGroup, zones: dict[Zone, int]) -> _Slice:
    at_host: dict[tuple[tuple[tuple[str, str], ...], str], list[Zone]] = {}
    for zone, cells in zones.items():
        conditions = _conditions(zone.grid, cells)
        for host in zone.hosts:
            at_host.setdefault((conditions, host), []).append(zone)
    by_cells: dict[tuple[tuple[tuple[str, str], ...], str, str], set[str]] = {}
    for (conditions, host), same in at_host.items():
        for actors, calls in _askers(same):
            by_cells.setdefault((conditions, actors, calls), set()).add(host)
    return tuple(
        sorted(
            (_hosts(hosts, group.hosts), methods, sources, actors, calls)
            for (conditions, actors, calls), hosts in by_cells.items()
            for methods, sources in conditions
        )
    )


def _askers(zones: list[Zone]) -> Iterator[tuple[str, str]]:
    """Describe actors and calls of zones that differ in nothing else: calls with the same actors together."""
    actors, calls = zones[0].kinds
    at_call: dict[Any, set[Any]] = {}
    for zone in zones:
        for actor, call in zone.askers:
            at_call.setdefault(call, set()).add(actor)
    by_actors: dict[str, set[Any]] = {}
    for call, some in at_call.items():
        by_actors.setdefault(_words(actors, some, "nobody", "anybody"), set()).add(call)
    for words, same in by_actors.items():
        yield words, _words(calls, same, "an unknown call", "any known")


def _words(kinds: Kinds, inside: set[Any], none: str, all_others: str) -> str:
    outside = [words for one, words in kinds.items() if one not in inside]
    if not outside:
        return ""
    if outside == [none]:
        return all_others
    named = [words for one, words in kinds.items() if one in inside]
    if len(outside) < len(named):
        return f"any but {'; '.join(dict.fromkeys(outside))}"
    return "; ".join(dict.fromkeys(named))


def _conditions(grid: Grid, cells: int) -> tuple[tuple[str, str], ...]:
    """Describe methods and sources of some cells; sources with the same methods are one entry."""
    by_methods: dict[str, list[int]] = {}
    for index, row in enumerate(grid.rows(cells)):
        if row:
            by_methods.setdefault(_methods(grid, row), []).append(index)
    return tuple(sorted((methods, _sources(grid, at)) for methods, at in by_methods.items()))


def _methods(grid: Grid, row: int) -> str:
    others = bool(row >> grid.methods.index(grid.other) & 1)
    named = [name for bit, name in enumerate(grid.methods) if bool(row >> bit & 1) is not others]
    if others:
        return f"any method but {', '.join(named)}" if named else ""
    return ", ".join(named)


def _sources(grid: Grid, intervals: list[int]) -> str:
    inside = list(_networks(grid, intervals))
    outside = list(_networks(grid, [i for i in range(len(grid.bounds)) if i not in set(intervals)]))
    if not outside:
        return ""
    if len(outside) < len(inside):
        return f"anywhere but {', '.join(map(str, outside))}"
    return ", ".join(map(str, inside))


def _networks(grid: Grid, intervals: list[int]) -> Iterator[Network]:
    four: list[IPv4Network] = []
    six: list[IPv6Network] = []
    for version, start, end in map(grid.interval, intervals):
        if version == 4:
            four += summarize_address_range(IPv4Address(start), IPv4Address(end - 1))
        else:
            six += summarize_address_range(IPv6Address(start), IPv6Address(end - 1))
    yield from collapse_addresses(four)
    yield from collapse_addresses(six)


def _hosts(inside: set[str], hosts: list[str]) -> str:
    """Describe hosts: those inside, less those that are not; `*.suffix` is every name below the suffix."""
    wildcards = sorted((host for host in hosts if host.startswith("*.")), key=len, reverse=True)

    def inherits(host: str) -> bool:
        return next((pattern for pattern in wildcards if is_below(host, pattern)), OTHER) in inside

    own = sorted(h for h in hosts if h not in (OTHER, NONE) and (h in inside) is not inherits(h))
    named = [host for host in own if host in inside]
    less = [host for host in own if host not in inside]
    if OTHER in inside:
        if NONE not in inside:
            less.append("no host")
        named = [*(["any host"] if less else []), *(f"also {name}" for name in named)]
    elif NONE in inside:
        named.append("no host")
    return ", ".join([*named, *(f"but not {name}" for name in less)])


def _paths(inside: set[Path], tree: Tree) -> str:
    """Describe paths (`/a and below`, `/a`, `below /a`): those inside, less those that are not."""
    named = set()
    for name in {path.name for path in inside}:
        named.add(name)
        if Path(name, below=True) in inside:
            named.update(tree.children[name])
    parts = []
    for name in sorted(named, key=lambda one: tree.order[one]):
        above = tree.parent[name]
        inherited = above is not None and Path(above, below=True) in inside
        exact = (Path(name, below=False) in inside) is not inherited
        below = (Path(name, below=True) in inside) is not inherited
        if exact or below:
            words = f"{name} and below" if exact and below else name if exact else f"below {name}"
            parts.append(f"but not {words}" if inherited else words)
    return ", ".join(parts)
