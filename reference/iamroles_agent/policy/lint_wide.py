"""Findings that need no analysis of regions: wildcards, and what nothing speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from iamroles_agent.config import Config, Grant, Issuer
from iamroles_agent.identity import Request, RoleArn
from iamroles_agent.policy.compiled import arns_of
from iamroles_agent.policy.lint import Finding, Kind
from iamroles_agent.policy.witness import SAFE_METHODS, USUAL_SOURCE

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
    elif every_path and not SAFE_METHODS.issuperset(grant.methods):
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
