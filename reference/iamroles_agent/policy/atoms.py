"""Exact reasoning about regions: enumerate what rules can tell apart (requirement O10).

Why this is exact and still small
---------------------------------
Rules test five things of a request: role, method, path, host, source. For each, the rules of a policy name
finitely many values and intervals, and requests that no rule tells apart behave alike. So each dimension
falls into finitely many *atoms*, each with one representative:

- methods: each that is named, and one that is not;
- paths: each that is named, and for each one something just below it that no rule names;
- hosts: each that is named, for each `*.suffix` a name of no rule's below it, one of no rule's at all, none,
  and a Host header that is no host;
- sources: the intervals between the bounds of all networks, IPv4 and IPv6.

A set of atoms is an integer used as a bit set, and a region is a product of five such sets: a `Box`. Meeting
is `&`, and a box less a box is at most five boxes. There are no regular expressions in a policy, which is
what keeps this decidable: nothing is sampled, and a witness is the representative of a box that was left.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from iamroles_agent.identity import Request
from iamroles_agent.policy.regions import MALFORMED_HOST, Address, Network, Region, host_patterns_of
from iamroles_agent.policy.witness import USUAL_METHODS, USUAL_SOURCE

_MALFORMED_HEADER = "not a host"
_FOUR_END, _SIX_END = 1 << 32, 1 << 128


class Box(NamedTuple):
    """A product of five sets of atoms; empty as soon as one of them is."""

    paths: int
    roles: int
    methods: int
    hosts: int
    sources: int

    def meet(self, other: Box) -> Box | None:
        """What lies in both, None for nothing."""
        if not (paths := self.paths & other.paths) or not (roles := self.roles & other.roles):
            return None
        if not (methods := self.methods & other.methods) or not (hosts := self.hosts & other.hosts):
            return None
        sources = self.sources & other.sources
        return Box(paths, roles, methods, hosts, sources) if sources else None

    def meets(self, other: Box) -> bool:
        """Whether anything lies in both."""
        return bool(
            self.paths & other.paths
            and self.roles & other.roles
            and self.methods & other.methods
            and self.hosts & other.hosts
            and self.sources & other.sources
        )

    def less(self, other: Box) -> list[Box]:
        """What lies in this one alone, as disjoint boxes."""
        if not self.meets(other):
            return [self]
        pieces = []
        rest = self
        for dimension, taken in enumerate(other):
            outside = rest[dimension] & ~taken
            if outside:
                pieces.append(_with(rest, dimension, outside))
            rest = _with(rest, dimension, rest[dimension] & taken)
        return pieces


def _with(box: Box, dimension: int, atoms: int) -> Box:
    return Box._make((*box[:dimension], atoms, *box[dimension + 1 :]))


def less_all(boxes: Iterable[Box], others: Iterable[Box]) -> list[Box]:
    """What lies in some of the boxes and in none of the others."""
    left = list(boxes)
    for other in others:
        if not left:
            break
        if any(box.meets(other) for box in left):
            left = [piece for box in left for piece in box.less(other)]
    return left


def bits(mask: int) -> Iterator[int]:
    """Positions of the bits that are set, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Universe:
    """The atoms of a set of regions, and the boxes of these regions in them.

    Args:
        regions: every region that will be asked for.
        roles: labels of the role dimension; the bit after the last stands for every other role.
    """

    def __init__(self, regions: Iterable[Region], roles: Sequence[str]) -> None:
        regions = list(regions)
        self.roles = list(roles)
        self._role_bit = {role: index for index, role in enumerate(roles)}
        self.all_roles = (1 << (len(self.roles) + 1)) - 1
        self._place_methods(regions)
        self._place_paths(regions)
        self._place_hosts(regions)
        self._place_sources(regions)

    def _place_methods(self, regions: list[Region]) -> None:
        named = {method for region in regions for method in region.methods or ()}
        other = next((method for method in (*USUAL_METHODS, "PURGE", "OTHER") if method not in named), "")
        other = other or "X" * (1 + max(map(len, named)))
        usual = {method: index for index, method in enumerate(USUAL_METHODS)}
        self.methods = sorted({*named, other}, key=lambda method: (usual.get(method, len(usual)), method))
        self._method_bit = {method: 1 << index for index, method in enumerate(self.methods)}
        self._all_methods = (1 << len(self.methods)) - 1

    def _place_paths(self, regions: list[Region]) -> None:
        """Each named path is followed by what is just below it, then by the named paths below it.

        Sorted by segments, all paths below one are a run, so a prefix is a range of bits.
        """
        named = sorted({"/", *(region.path for region in regions)}, key=_segments)
        keys = [_segments(path) for path in named]
        children: dict[tuple[str, ...], set[str]] = {}
        for key in keys:
            for depth in range(len(key)):
                children.setdefault(key[:depth], set()).add(key[depth])
        self._paths: list[str] = []
        self._path_masks: dict[str, int] = {}
        for index, (path, key) in enumerate(zip(named, keys, strict=True)):
            fresh = "x"
            while fresh in children.get(key, ()):
                fresh += "x"
            self._paths += [path, f"{path.removesuffix('/')}/{fresh}"]
            end = bisect_left(keys, (*key, "\U0010ffff"), index)
            self._path_masks[path] = ((1 << 2 * (end - index)) - 1) << 2 * index

    def _place_hosts(self, regions: list[Region]) -> None:
        patterns = {pattern for region in regions for pattern in region.hosts or ()}
        names = {pattern for pattern in patterns if not pattern.startswith("*.")}
        for pattern in sorted(patterns - names):
            label = "any"
            while f"{label}{pattern[1:]}" in patterns or f"*.{label}{pattern[1:]}" in patterns:
                label += "y"
            names.add(f"{label}{pattern[1:]}")
        other = "elsewhere"
        while other in names:
            other += "x"
        # Where some rule has hosts, an absent host is not like one that no rule names: denies hold for it.
        self._hosts = ["", *sorted(names), *([other] if patterns else []), MALFORMED_HOST]
        self._host_masks: dict[str, int] = dict.fromkeys(patterns, 0)
        for index, host in enumerate(self._hosts):
            for pattern in host_patterns_of(host):
                if pattern in patterns:
                    self._host_masks[pattern] |= 1 << index
        self._malformed = 1 << (len(self._hosts) - 1)
        self._all_hosts = (1 << len(self._hosts)) - 1

    def _place_sources(self, regions: list[Region]) -> None:
        networks = {network for region in regions for network in region.sources or ()}
        bounds = {(4, 0), (6, 0)}
        for network in networks:
            start, end = int(network.network_address), int(network.broadcast_address) + 1
            bounds |= {(network.version, start), (network.version, end)}
        self._bounds = sorted(bounds - {(4, _FOUR_END), (6, _SIX_END)})
        self._all_sources = (1 << len(self._bounds)) - 1
        self._network_masks = {network: self._network_mask(network) for network in networks}

    def _network_mask(self, network: Network) -> int:
        start = bisect_left(self._bounds, (network.version, int(network.network_address)))
        end = bisect_left(self._bounds, (network.version, int(network.broadcast_address) + 1))
        return (1 << end) - (1 << start)

    def role_mask(self, roles: Iterable[str]) -> int:
        """Bits of the labels; `*` is every role, those without a label too."""
        mask = 0
        for role in roles:
            mask |= self.all_roles if role == "*" else 1 << self._role_bit[role]
        return mask

    def role_labels(self, mask: int) -> list[str]:
        """Labels of the bits, `*` for the bit of all other roles."""
        return [self.roles[bit] if bit < len(self.roles) else "*" for bit in bits(mask)]

    def box(self, region: Region, roles: int, *, deny: bool = False) -> Box:
        """The atoms of a region; of a deny, a Host header that is no host too (O6)."""
        methods = self._all_methods
        if region.methods is not None:
            methods = sum(self._method_bit[method] for method in region.methods)
        hosts = self._all_hosts
        if region.hosts is not None:
            hosts = self._malformed | 1 if deny else 0  # the first is the absent host
            for pattern in region.hosts:
                hosts |= self._host_masks[pattern]
        sources = self._all_sources
        if region.sources is not None:
            sources = sum(self._network_masks[network] for network in region.sources)
        paths = self._path_masks[region.path]
        return Box(paths & -paths if region.exact else paths, roles, methods, hosts, sources)

    def anyone(self, box: Box) -> Box:
        """The box with its roles forgotten."""
        return box._replace(roles=self.all_roles)

    def witness(self, box: Box) -> Request:
        """A request in the box, as usual-looking as there is one."""
        host = self._hosts[next(bits(box.hosts))]
        return Request(
            method=self.methods[next(bits(box.methods))],
            host=_MALFORMED_HEADER if host == MALFORMED_HOST else host,
            path=self._paths[next(bits(box.paths))],
            src=self._address(box.sources),
        )

    def requests(self) -> Iterator[Request]:
        """One request of each kind that the rules can tell apart, roles aside."""
        for path in self._paths:
            for method in self.methods:
                for host in self._hosts:
                    for bit in range(len(self._bounds)):
                        header = _MALFORMED_HEADER if host == MALFORMED_HOST else host
                        yield Request(method, header, path, self._address(1 << bit))

    def _address(self, sources: int) -> Address:
        usual = 1 << (bisect_left(self._bounds, (4, int(USUAL_SOURCE) + 1)) - 1)
        if sources & usual:
            return USUAL_SOURCE
        bit = next(bits(sources))
        version, start = self._bounds[bit]
        end = self._bounds[bit + 1] if bit + 1 < len(self._bounds) else (version, start + 2)
        number = start + 1 if end[0] != version or end[1] > start + 1 else start
        return (
            IPv4Address(min(number, _FOUR_END - 1))
            if version == 4
            else IPv6Address(min(number, _SIX_END - 1))
        )


def _segments(path: str) -> tuple[str, ...]:
    return () if path == "/" else tuple(path[1:].split("/"))
