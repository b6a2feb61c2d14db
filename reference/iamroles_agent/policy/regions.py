"""Regions: the sets of requests that rules are about, and the values that requests are compared by.

A region is a product of six independent conditions: method, path, host, source network, actor, call of MCP.
The decision (`policy.compiled`) and the analysis (`policy.zones` of the tools) both read rules through this
module, so that what is proven is what is enforced.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_network

from iamroles_agent.base import config
from iamroles_agent.base.encoding import lower_ascii
from iamroles_agent.policy.paths import canonical, segments

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
Entries = frozenset[tuple[str, str]]
"""Tables of `actors` or `mcp`: both members, "" for what is left out. An actor or call is a set of them too:
those that fit it (`Actor.names`, `call_names`)."""
NAMED_CALLS = frozenset({"tools/call", "resources/read", "prompts/get"})
"""Methods of MCP with `Mcp-Name`."""

_HOST = re.compile(
    r"(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::[0-9]{0,5})?", re.ASCII
)
_HOST_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]{2,45}\]", re.ASCII)

MALFORMED_HOST = "\0"
"""The result of `canonical_host` for an invalid Host header; it equals no pattern."""


def canonical_host(text: str) -> str:
    """Lower-case a Host header and drop its port and the root's trailing dot (RFC 9110 section 7.2).

    Returns:
        The host; "" for an absent header; `MALFORMED_HOST` if the text is not one host.
    """
    if not text:
        return ""
    match = _HOST.fullmatch(lower_ascii(text))
    return match["host"] if match else MALFORMED_HOST


def host_pattern(text: str) -> str:
    """Check a host of the policy: a name, `*.` and a name, or an IPv6 literal in brackets; no port.

    Raises:
        ValueError: the text is something else.
    """
    lowered = lower_ascii(text).removesuffix(".")
    if not _HOST_PATTERN.fullmatch(lowered):
        raise ValueError(f"{text!r} is not a host name or `*.` and a host name, without scheme and port")
    return lowered


def host_patterns_of(host: str) -> Iterator[str]:
    """Yield all patterns that match a canonical host, the most specific first: itself, then suffixes."""
    if host:
        yield host
        rest = host
        while (dot := rest.find(".")) >= 0:
            rest = rest[dot + 1 :]
            yield f"*.{rest}"


def plain_address(address: Address) -> Address:
    """Return the IPv4 address of an IPv4-mapped IPv6 address, which a dual-stack socket reports."""
    if isinstance(address, IPv6Address) and (mapped := address.ipv4_mapped) is not None:
        return mapped
    return address


@dataclass(frozen=True, slots=True)
class Region:
    """A rule's conditions, canonical. None stands for any."""

    methods: frozenset[str] | None
    path: str
    """Canonical, without a trailing `/` except the root's."""
    exact: bool
    hosts: frozenset[str] | None
    sources: tuple[Network, ...] | None
    actors: Entries | None = None
    mcp: Entries | None = None
    bare: bool = field(init=False, compare=False)
    """True if it names no source, actor or call."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bare", self.sources is None and self.actors is None and self.mcp is None)

    @classmethod
    def from_rule(cls, rule: config.Grant | config.Deny | config.Scope) -> Region:
        """Compile a rule of a checked configuration.

        Raises:
            Refusal, ValueError: the rule was not checked by `policy.load`.
        """
        sources = getattr(rule, "sources", [])
        return cls(
            methods=None if "*" in rule.methods else frozenset(rule.methods),
            path="/" + "/".join(segments(canonical(rule.path))),
            exact=rule.match == "exact",
            hosts=frozenset(map(host_pattern, rule.hosts)) or None,
            sources=merge_networks(map(ip_network, sources)) if sources else None,
            actors=_entries(getattr(rule, "actors", []), "sub", "issuer"),
            mcp=_entries(rule.mcp, "method", "name"),
        )

    @property
    def specificity(self) -> tuple[bool, int]:
        """Greater wins (GRANT-SPECIFIC-001): exact before prefix, then more segments."""
        return self.exact, 0 if self.path == "/" else self.path.count("/")

    def width(self, call: Entries | None) -> tuple[int, bool, int, bool]:
        """Return how much it opens around a call that it fits: less for a narrower region."""
        fitting = () if self.mcp is None or call is None else self.mcp & call
        named = max((bool(method) + bool(name) for method, name in fitting), default=-1)
        return -named, not self.exact, -self.specificity[1], self.methods is None

    def has_path(self, path: str) -> bool:
        """Return whether a canonical path without trailing `/` lies in it, by whole segments."""
        if path == self.path:
            return True
        return not self.exact and (self.path == "/" or path.startswith(self.path + "/"))

    def has_source(self, address: Address) -> bool:
        """Return whether a `plain_address` lies in it."""
        return self.sources is None or any(address in network for network in self.sources)

    def has_entries(self, actor: Entries, call: Entries | None, *, unknown: bool) -> bool:
        """Return whether its `actors` and `mcp` fit; `unknown`: the answer of `mcp` for an unknown call."""
        if self.actors is not None and self.actors.isdisjoint(actor):
            return False
        return self.mcp is None or (unknown if call is None else not self.mcp.isdisjoint(call))

    def meets(self, other: Region) -> bool:
        """Return whether one request can lie in both."""
        return (
            (self.methods is None or other.methods is None or not self.methods.isdisjoint(other.methods))
            and (self.has_path(other.path) or other.has_path(self.path))
            and _hosts_meet(self.hosts, other.hosts)
            and _sources_meet(self.sources, other.sources)
            and actors_meet(self.actors, other.actors)
            and _calls_meet(self.mcp, other.mcp)
        )


def _hosts_meet(one: frozenset[str] | None, two: frozenset[str] | None) -> bool:
    if one is None or two is None:
        return True
    # A wildcard meets what it covers, and a wildcard below or above it.
    return any(a == b or _covers(a, b) or _covers(b, a) for a in one for b in two)


def _covers(pattern: str, host: str) -> bool:
    return pattern.startswith("*.") and host.removeprefix("*").endswith(pattern[1:])


def _sources_meet(one: tuple[Network, ...] | None, two: tuple[Network, ...] | None) -> bool:
    if one is None or two is None:
        return True
    return any(a.version == b.version and a.overlaps(b) for a in one for b in two)


def _entries(tables: Iterable[object], one: str, two: str) -> Entries | None:
    return frozenset((getattr(table, one) or "", getattr(table, two) or "") for table in tables) or None


def call_names(method: str, name: str) -> Entries:
    """Return the entries of `mcp` that fit a call; only `NAMED_CALLS` have a name."""
    found = frozenset((("", ""), (method, "")))
    return found | {("", name), (method, name)} if method in NAMED_CALLS else found


def _calls_meet(one: Entries | None, two: Entries | None) -> bool:
    def same(a: tuple[str, str], b: tuple[str, str]) -> bool:
        method, name = (x if x == y or not y else y if not x else None for x, y in zip(a, b, strict=True))
        return method is not None and name is not None and (not (method and name) or method in NAMED_CALLS)

    return one is None or two is None or any(same(a, b) for a in one for b in two)


def actors_meet(one: Entries | None, two: Entries | None, issuers: Container[str] | None = None) -> bool:
    """Return whether an actor can fit both; `issuers` are the `iss` of tokens, None: they may be any."""

    def same_issuer(a: tuple[str, str], b: tuple[str, str]) -> bool:
        if a[1] == b[1] or ("", "") in (a, b):
            return True
        # A `sub` alone is of the token's own issuer, which may be the issuer that the other names.
        return not (a[1] and b[1]) and (issuers is None or (a[1] or b[1]) in issuers)

    if one is None or two is None:
        return True
    return any((a[0] == b[0] or not (a[0] and b[0])) and same_issuer(a, b) for a in one for b in two)


def merge_networks(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Return the fewest networks that hold the same addresses, IPv4 before IPv6.

    A network of IPv4-mapped IPv6 addresses becomes the IPv4 network: see `plain_address`.
    """
    four: list[IPv4Network] = []
    six: list[IPv6Network] = []
    for network in networks:
        if isinstance(network, IPv4Network):
            four.append(network)
        elif network.prefixlen >= 96 and (mapped := network.network_address.ipv4_mapped) is not None:
            four.append(IPv4Network((int(mapped), network.prefixlen - 96)))
        else:
            six.append(network)
    return (*collapse_addresses(four), *collapse_addresses(six))
