"""Regions in words, in one normal form: equal sets of requests have equal words, whatever rules made them.

A set of requests is collected as cells at places (`Part`). The words say it path by path: paths with the
same hosts, methods and sources are one line. A value that is inherited (by a path from the path above it, by
a host from the wildcard above it) is not repeated, so a rule that changes nothing does not change the words.
That makes the words fit for a digest: they differ exactly when the region does.
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
from typing import NamedTuple

from iamroles_agent.policy.regions import Network, Region
from iamroles_tools.policy.places import NONE, OTHER, Grid, Path, Paths, Place, Tree

Part = tuple[Place, int]
"""Some cells of a place."""
_Slice = tuple[tuple[str, str, str], ...]


class Line(NamedTuple):
    """A product of conditions in words. `""` stands for any."""

    methods: str
    hosts: str
    paths: str
    sources: str

    def __str__(self) -> str:
        host = f"{self.hosts} " if self.hosts else ""
        source = f" from {self.sources}" if self.sources else ""
        return f"{self.methods or 'any method'} {host}{self.paths}{source}"


def describe_parts(parts: Iterable[Part], tree: Tree) -> tuple[Line, ...]:
    """A set of requests in words.

    Args:
        parts: cells, each place as often as you like.
        tree: the paths of the walk that the places come from.

    Returns:
        Lines in a fixed order; their union is the set, and no line is part of another.
    """
    cells: dict[Paths, dict[Place, int]] = {}
    for place, found in parts:
        here = cells.setdefault(place.where, {})
        here[place] = here.get(place, 0) | found
    slices: dict[_Slice, set[Path]] = {}
    for where, places in cells.items():
        slices.setdefault(_slice(where, places), set()).update(where.at)
    lines = [
        Line(methods, hosts, _paths(at, tree), sources)
        for conditions, at in slices.items()
        for hosts, methods, sources in conditions
    ]
    return tuple(sorted(lines, key=lambda line: (line.paths, line.hosts, line.methods, line.sources)))


def describe_region(region: Region) -> str:
    """A rule's conditions in one line: methods, hosts, path, sources."""
    methods = ",".join(sorted(region.methods)) if region.methods else "any method"
    hosts = "|".join(sorted(region.hosts)) if region.hosts else ""
    below = "" if region.exact else " and below"
    sources = f" from {', '.join(map(str, region.sources))}" if region.sources else ""
    return f"{methods} {hosts}{region.path}{below}{sources}"


def _slice(where: Paths, places: dict[Place, int]) -> _Slice:
    by_cells: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for place, cells in places.items():
        by_cells.setdefault(_conditions(place.grid, cells), set()).update(place.hosts)
    found = []
    for conditions, hosts in by_cells.items():
        found += [(_hosts(hosts, where.hosts), methods, sources) for methods, sources in conditions]
    return tuple(sorted(found))


def _conditions(grid: Grid, cells: int) -> tuple[tuple[str, str], ...]:
    """Methods and sources of some cells; sources with the same methods are one."""
    rows = grid.rows(cells)
    by_methods: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
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
    for index in intervals:
        version, start = grid.bounds[index]
        after = grid.bounds[index + 1] if index + 1 < len(grid.bounds) else (0, 0)
        if version == 4:
            last = (after[1] if after[0] == 4 else 1 << 32) - 1
            four += summarize_address_range(IPv4Address(start), IPv4Address(last))
        else:
            last = (after[1] if after[0] == 6 else 1 << 128) - 1
            six += summarize_address_range(IPv6Address(start), IPv6Address(last))
    yield from collapse_addresses(four)
    yield from collapse_addresses(six)


def _hosts(inside: set[str], atoms: list[str]) -> str:
    """Hosts in words: what is inside, less what is not; `*.suffix` is every name below the suffix."""
    wildcards = sorted((atom for atom in atoms if atom.startswith("*.")), key=len, reverse=True)

    def inherits(atom: str) -> bool:
        name = atom[1:] if atom.startswith("*.") else f".{atom}"
        above = next((w for w in wildcards if name.endswith(w[1:]) and name != w[1:]), OTHER)
        return above in inside

    told = [a for a in atoms if a not in (OTHER, NONE) and (a in inside) is not inherits(a)]
    named = sorted(atom for atom in told if atom in inside)
    less = sorted(atom for atom in told if atom not in inside)
    if OTHER in inside:
        if NONE not in inside:
            less.append("no host")
        named = [*(["any host"] if less else []), *(f"also {name}" for name in named)]
    elif NONE in inside:
        named.append("no host")
    return ", ".join([*named, *(f"but not {name}" for name in less)])


def _paths(at: set[Path], tree: Tree) -> str:
    """Paths in words: `/a and below`, `/a`, `below /a`; what is inside, less what is not."""
    said = set()
    for name in {path.name for path in at}:
        said.add(name)
        if Path(name, below=True) in at:
            said.update(tree.children[name])
    told = []
    for name in sorted(said, key=lambda one: tree.place[one]):
        above = tree.parent[name]
        inherited = above is not None and Path(above, below=True) in at
        exact, below = Path(name, below=False) in at, Path(name, below=True) in at
        if exact is not inherited and below is not inherited:
            words = f"{name} and below"
        elif exact is not inherited:
            words = name
        elif below is not inherited:
            words = f"below {name}"
        else:
            continue
        told.append(f"but not {words}" if inherited else words)
    return ", ".join(told)
