"""Witnesses: requests that show the meaning of a finding."""

from __future__ import annotations

from ipaddress import IPv4Address

from iamroles_agent.base.identity import Request
from iamroles_agent.policy.regions import Address, Network, Region

USUAL_SOURCE = IPv4Address("192.0.2.1")
"""A client outside all networks of a policy (RFC 5737)."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""RFC 9110 section 9.2.1."""
USUAL_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


def witness_in_both(one: Region, two: Region) -> Request:
    """Return a request in two regions that meet.

    Raises:
        ValueError: they do not meet.
    """
    if not one.meets(two):
        raise ValueError("the regions have no request in common")
    deeper = one if len(one.path) >= len(two.path) else two
    return Request(
        method=_method(one.methods, two.methods),
        host=_host(one.hosts, two.hosts),
        path=deeper.path,
        src=_source(one.sources, two.sources),
    )


def describe(request: Request) -> str:
    """Describe a request in one line: method, host, path, its call of MCP, and an unusual source."""
    line = f"{request.method} {request.host}{request.path}"
    if request.mcp.method:
        line += f" calling {request.mcp.method}{f' {name}' if (name := request.mcp.name) else ''}"
    return line if request.src == USUAL_SOURCE else f"{line} from {request.src}"


def _method(one: frozenset[str] | None, two: frozenset[str] | None) -> str:
    if one is None and two is None:
        return "GET"
    shared = one & two if one is not None and two is not None else (one or two or frozenset())
    return next((method for method in USUAL_METHODS if method in shared), None) or min(shared)


def _host(one: frozenset[str] | None, two: frozenset[str] | None) -> str:
    if one is None or two is None:
        patterns = one or two
        return min(patterns).replace("*", "any") if patterns else ""
    shared = (
        max(a, b, key=len)
        for a in one
        for b in two
        if a == b or (a.startswith("*.") and b.endswith(a[1:])) or (b.startswith("*.") and a.endswith(b[1:]))
    )
    return min(shared).replace("*", "any")


def _source(one: tuple[Network, ...] | None, two: tuple[Network, ...] | None) -> Address:
    if one is None or two is None:
        networks = one or two
        return _address_in(networks[0]) if networks else USUAL_SOURCE
    pairs = ((a, b) for a in one for b in two if a.version == b.version and a.overlaps(b))
    return _address_in(max(next(pairs), key=lambda network: network.prefixlen))


def _address_in(network: Network) -> Address:
    """Return the first host of a network, not the network's own address."""
    return network[1] if network.num_addresses > 1 else network[0]
