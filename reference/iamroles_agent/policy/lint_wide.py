"""Findings beyond single rules: wildcards, pairs of roles, and what nothing speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from iamroles_agent.config import Config, Grant, Issuer
from iamroles_agent.identity import Request, RoleArn
from iamroles_agent.policy.atoms import Box, less_all
from iamroles_agent.policy.compiled import arns_of
from iamroles_agent.policy.lint import Finding, Kind
from iamroles_agent.policy.model import Model, Placed
from iamroles_agent.policy.witness import USUAL_SOURCE

_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""RFC 9110 section 9.2.1."""
_WIDE_FOUR, _WIDE_SIX = 8, 32
"""Networks at least this wide (in bits of prefix) belong to nobody in particular."""


def too_wide(config: Config) -> Iterator[Finding]:
    """Wildcards that unlock a whole backend, the internet, a domain registry, or several accounts at once."""
    for index, grant in enumerate(config.grants):
        yield from _wide_grant(f"grants[{index}]", grant)
    for index, scope in enumerate(config.scopes):
        if "*" in scope.methods and scope.path == "/" and scope.match == "prefix" and not scope.hosts:
            yield Finding(
                Kind.TOO_WIDE,
                f"scopes[{index}]",
                scope.name,
                "opens every request, so the scope limits nothing",
                "Give it the methods and the path that it is for",
                witness=Request("DELETE", "", "/", USUAL_SOURCE),
            )
    for index, role in enumerate(config.roles):
        accounts = sorted({RoleArn.parse(arn).account for arn in arns_of(role)})
        if len(accounts) > 1:
            yield Finding(
                Kind.TOO_WIDE,
                f"roles[{index}]",
                role.name,
                f"is one name for roles of {len(accounts)} accounts: {', '.join(accounts)}",
                "Fine if one team owns them all; else name a role for each account",
                note=True,
            )


def _wide_grant(key: str, grant: Grant) -> Iterator[Finding]:
    def finding(message: str, remedy: str) -> Finding:
        host = grant.hosts[0].replace("*", "any") if grant.hosts else ""
        method = "DELETE" if "*" in grant.methods else grant.methods[0]
        source = ip_network(grant.sources[0])[0] if grant.sources else USUAL_SOURCE
        witness = Request(method, host, grant.path, source)
        return Finding(Kind.TOO_WIDE, key, grant.id, message, remedy, grant.roles[0], witness)

    every_path = grant.path == "/" and grant.match == "prefix"
    if every_path and "*" in grant.methods:
        yield finding("opens every method on every path of its backend", "Name the methods and a path")
    elif every_path and not _SAFE.issuperset(grant.methods):
        yield finding("opens methods that change things on every path", "Give it the path it is for")
    for source in grant.sources:
        network = ip_network(source)
        width = _WIDE_FOUR if network.version == 4 else _WIDE_SIX
        if network.prefixlen == 0:
            yield finding(f"source {source} is everywhere", "Leave `sources` out, or name the networks")
        elif network.prefixlen < width:
            yield finding(f"source {source} is wider than any one owner's network", "Name narrower networks")
    for host in grant.hosts:
        if host.startswith("*.") and "." not in host[2:]:
            yield finding(f"host {host} is a whole top-level domain", "Name your own domain")


def escalations(config: Config, model: Model) -> Iterator[Finding]:
    """Pairs of roles of which one may only read a resource and the other only change it.

    A token with both does both, which neither role's owner decided. Under `multi_role = "union"` in one
    request after another without asking; under `"deny"` by choosing, so there it is a note.
    """
    universe = model.universe
    pairs: set[tuple[str, str]] = set()
    denies = [deny.box for deny in model.denies]
    for one, two in _read_write(model.grants):
        names = [(a, b) for a in sorted(one.rule.roles) for b in sorted(two.rule.roles) if a != b]
        for pair in names:
            key = (min(pair), max(pair))
            if key in pairs:
                continue
            witness = _together(model, one, two, pair, denies)
            if witness is None:
                continue
            pairs.add(key)
            reader, writer = pair
            request = universe.witness(witness)
            yield Finding(
                Kind.ESCALATION,
                two.key,
                two.id,
                f"the role {writer!r} may change what the role {reader!r} may only read ({one.id}): "
                "a token with both does both",
                "Check that no one should hold both, or give one role both rights",
                writer,
                request,
                {one.id: one.key},
                note=config.multi_role == "deny",
            )


def _read_write(grants: list[Placed]) -> Iterator[tuple[Placed, Placed]]:
    """Pairs of a grant with safe methods and one with unsafe ones, of roles apart, that share a resource."""
    for one in grants:
        if not one.rule.region.methods or _SAFE.isdisjoint(one.rule.region.methods):
            continue
        for two in grants:
            methods = two.rule.region.methods
            if methods is None or _SAFE.issuperset(methods) or one.rule.roles == two.rule.roles:
                continue
            if (
                one.box.paths & two.box.paths
                and one.box.hosts & two.box.hosts
                and one.box.sources & two.box.sources
            ):
                yield one, two


def _together(model: Model, one: Placed, two: Placed, pair: tuple[str, str], denies: list[Box]) -> Box | None:
    """Where the first role reads and cannot write, and the second writes and cannot read, if anywhere."""
    universe = model.universe
    reader, writer = (universe.role_mask([role]) for role in pair)
    held = reader | writer
    refused = [box._replace(roles=universe.all_roles) for box in denies if box.roles & held]
    safe = sum(1 << bit for bit, method in enumerate(universe.methods) if method in _SAFE)
    readable = one.box._replace(roles=universe.all_roles, methods=one.box.methods & safe)
    writable = two.box._replace(roles=universe.all_roles, methods=two.box.methods & ~safe)
    reads = _only(model, readable, writable, refused, other=writer)
    writes = _only(model, writable, readable, refused, other=reader)
    for read in reads:
        for write in writes:
            shared = read._replace(methods=write.methods).meet(write)
            if shared is not None:
                return shared
    return None


def _only(model: Model, box: Box, resource: Box, refused: list[Box], *, other: int) -> list[Box]:
    """The part of a box on the resource that is not refused, and not open to the other role."""
    shared = box._replace(methods=resource.methods).meet(resource)
    if shared is None:
        return []
    theirs = (
        grant.box._replace(roles=model.universe.all_roles)
        for grant in model.grants
        if grant.box.roles & other
    )
    return less_all([shared._replace(methods=box.methods)], [*refused, *theirs])


def unused(config: Config) -> Iterator[Finding]:
    """Roles without grants, roles nobody may assert, backends and scopes without use."""
    granted = {role for grant in config.grants for role in grant.roles}
    denied = {role for deny in config.denies for role in deny.roles}
    for index, role in enumerate(config.roles):
        key = f"roles[{index}]"
        if role.name not in granted | denied:
            message = "has no grant and no deny: holding it opens and closes nothing"
            yield Finding(Kind.UNUSED, key, role.name, message, "Grant it something, or delete it")
        strangers = [arn for arn in arns_of(role) if not _assertable(config, RoleArn.parse(arn))]
        if strangers and (config.issuers or config.sts):
            message = f"no issuer or STS endpoint may assert {strangers[0]}: its account is in no `accounts`"
            yield Finding(Kind.UNREACHABLE, key, role.name, message, "Add the account, or correct the ARN")
    named = {grant.backend for grant in config.grants}
    for index, backend in enumerate(config.backends):
        if backend.name not in named:
            message = "no grant leads here"
            yield Finding(Kind.UNUSED, f"backends[{index}]", backend.name, message, "Grant it, or delete it")
    yield from _unused_scopes(config)


def _unused_scopes(config: Config) -> Iterator[Finding]:
    scoped = [issuer for issuer in config.issuers if issuer.scope_claim is not None]
    if config.scopes and not scoped:
        for index, scope in enumerate(config.scopes):
            message = "no issuer has a `scope_claim`, so no token carries it"
            remedy = "Name the claim in [[issuers]], or delete the scope"
            yield Finding(Kind.UNUSED, f"scopes[{index}]", scope.name, message, remedy)
    if config.scopes:
        return
    for index, issuer in enumerate(config.issuers):
        if issuer.scope_claim is not None:
            message = "has a `scope_claim`, but there are no [[scopes]]: " + _scopeless(issuer)
            yield Finding(Kind.UNREACHABLE, f"issuers[{index}]", issuer.name, message, "Add [[scopes]]")


def _scopeless(issuer: Issuer) -> str:
    return "every token is refused" if issuer.scope_required else "every token that carries one is refused"


def _assertable(config: Config, arn: RoleArn) -> bool:
    trusted = [issuer.accounts for issuer in config.issuers] + [sts.accounts for sts in config.sts]
    return any(not accounts or arn.account in accounts for accounts in trusted)
