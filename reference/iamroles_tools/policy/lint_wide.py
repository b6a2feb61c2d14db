"""Find wildcards that are too wide, items that no rule names, denies and records that may not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

from iamroles_agent.base.config import Config, Deny, Grant, Issuer, Sts
from iamroles_agent.base.identity import Actor, Request, RoleArn
from iamroles_agent.policy.compiled import Policy, Rule, arns_of, compile_rule
from iamroles_agent.policy.paths import canonical
from iamroles_agent.policy.regions import Region, host_pattern, merge_networks
from iamroles_agent.policy.resources import Place
from iamroles_agent.policy.witness import SAFE_METHODS, USUAL_SOURCE, witness_in_both
from iamroles_tools.policy.explain import identity_of
from iamroles_tools.policy.findings import Finding, Kind
from iamroles_tools.policy.zones import Labels, labelled, walk

_WIDE_FOUR, _WIDE_SIX = 8, 32
"""Networks at least this wide (in bits of prefix) have no single owner."""
_REGISTRY_LABELS = frozenset(
    {"ac", "co", "com", "edu", "gob", "gov", "govt", "gouv", "id", "idf", "ind", "info", "ltd", "mil", "ne"}
    | {"net", "nhs", "nom", "or", "org", "plc", "police", "sch"}
)
"""Second-level labels under which the registries of countries sell names, as in `co.uk` and `com.au`."""


def too_wide(config: Config) -> Iterator[Finding]:
    """Yield wildcards that open a whole backend, the internet, a domain registry, or several accounts."""
    servers = [Place.of(one.resource).region for one in config.resources]
    for index, grant in enumerate(config.grants):
        yield from _wide_grant(f"grants[{index}]", grant, servers)
    for index, scope in enumerate(config.scopes):
        everywhere = scope.path == "/" and scope.match == "prefix" and not scope.hosts
        if everywhere and "*" in scope.methods and not scope.mcp:
            message = "opens every request, so the scope limits nothing"
            remedy = "Give it the methods and the path it is for"
            witness = Request("DELETE", "", "/", USUAL_SOURCE)
            yield Finding(Kind.TOO_WIDE, f"scopes[{index}]", scope.name, message, remedy, witness=witness)
    for index, issuer in enumerate(config.issuers):
        if issuer.profile == "aws" and issuer.scope_claim is not None and not issuer.scope_required:
            message = (
                "limits callers by the Scope that they ask for: a caller that leaves it out is not limited"
            )
            remedy = "Remove `scope_required = false`"
            yield Finding(Kind.TOO_WIDE, f"issuers[{index}]", issuer.name, message, remedy)
    for index, role in enumerate(config.roles):
        accounts = sorted({RoleArn.parse(arn).account for arn in arns_of(role)})
        if len(accounts) > 1:
            message = f"is one name for roles of {len(accounts)} accounts: {', '.join(accounts)}"
            remedy = "Fine if one team owns them all; else name a role for each account"
            yield Finding(Kind.TOO_WIDE, f"roles[{index}]", role.name, message, remedy, note=True)


def _wide_grant(key: str, grant: Grant, servers: list[Region]) -> Iterator[Finding]:
    def finding(message: str, remedy: str) -> Finding:
        host = min(grant.hosts, default="").replace("*", "any")  # `*` sorts before every name
        method = "DELETE" if "*" in grant.methods else grant.methods[0]
        source = ip_network(grant.sources[0])[0] if grant.sources else USUAL_SOURCE
        witness = Request(method, host, grant.path, source)
        return Finding(Kind.TOO_WIDE, key, grant.id, message, remedy, grant.roles[0], witness)

    every_path = grant.path == "/" and grant.match == "prefix" and not grant.mcp
    if every_path and "*" in grant.methods:
        yield finding("opens every method on every path of its backend", "Name the methods and a path")
    elif every_path and not SAFE_METHODS.issuperset(grant.methods):
        yield finding("opens methods that change things on every path", "Give it the path it is for")
    for source in grant.sources:
        [network] = merge_networks([ip_network(source)])
        width = _WIDE_FOUR if network.version == 4 else _WIDE_SIX
        if network.prefixlen == 0:
            family = f"every IPv{network.version} client"
            yield finding(f"source {source} is {family}", "Name the networks that the clients are in")
        elif network.prefixlen < width:
            yield finding(f"source {source} is wider than any one owner's network", "Name narrower networks")
    for host in (host for host in grant.hosts if host.startswith("*.")):
        if _is_registry(host_pattern(host)[2:]):
            yield finding(f"host {host} is every name that a registry sells", "Name your own domain")
        region = Region.from_rule(grant.model_copy(update={"hosts": [host]}))
        if not grant.mcp and any(map(region.meets, servers)):
            message = f"host {host} is more than an MCP server's: neither audience nor Origin is judged there"
            yield finding(message, "Name the hosts of [[resources]]")


def _is_registry(domain: str) -> bool:
    """Return whether anybody may buy names below a domain: a top-level domain, or a country's `co.uk`."""
    first, *rest = domain.split(".")
    return not rest or (len(rest) == 1 and len(rest[0]) == 2 and first in _REGISTRY_LABELS)


def unused(config: Config) -> Iterator[Finding]:
    """Yield roles without grants or issuers, issuers without roles, unused backends, scopes and keys."""
    granted = {role for grant in config.grants for role in grant.roles}
    denied = {role for deny in config.denies for role in deny.roles}
    trusted: list[tuple[str, Issuer | Sts]] = [(f"issuers[{i}]", one) for i, one in enumerate(config.issuers)]
    trusted += [(f"sts[{i}]", one) for i, one in enumerate(config.sts)]
    for index, role in enumerate(config.roles):
        key = f"roles[{index}]"
        if role.name not in granted | denied:
            message = "has no grant and no deny: holding it opens and closes nothing"
            yield Finding(Kind.UNUSED, key, role.name, message, "Grant it something, or delete it")
        strangers = [
            arn
            for arn in arns_of(role)
            if not any(_may_assert(source, {RoleArn.parse(arn).account}) for _, source in trusted)
        ]
        if strangers and trusted:
            message = f"no issuer or STS endpoint may assert {strangers[0]}: its account is in no `accounts`"
            yield Finding(Kind.UNREACHABLE, key, role.name, message, "Add the account, or correct the ARN")
    accounts = {RoleArn.parse(arn).account for role in config.roles for arn in arns_of(role)}
    for key, source in trusted:
        if not _may_assert(source, accounts):
            message = "may assert no role of the policy: no role is in one of its `accounts`"
            remedy = "Correct `accounts`, add the roles, or delete it"
            yield Finding(Kind.UNREACHABLE, key, source.name, message, remedy)
    enforced = {grant.backend for grant in config.grants if not grant.shadow}
    shadowed = {grant.backend for grant in config.grants}
    for index, backend in enumerate(config.backends):
        if backend.name not in enforced:
            message = "only shadow grants lead here" if backend.name in shadowed else "no grant leads here"
            yield Finding(Kind.UNUSED, f"backends[{index}]", backend.name, message, "Grant it, or delete it")
    if (header := config.identity_header) is not None and not config.metrics.listen:
        message = "signs with keys that no server can fetch: `metrics.listen` is not set"
        remedy = 'Write [metrics] listen = "127.0.0.1:9102", or delete the table (docs/backends.md)'
        yield Finding(Kind.UNUSED, "identity_header", header.issuer, message, remedy)
    if header is not None and header.secrets is None:
        message = "each agent has keys of its own: servers refuse what an agent signed whose keys they lack"
        remedy = "Fine for one agent; else name a file of secrets that all agents have (docs/backends.md)"
        yield Finding(Kind.UNSHARED, "identity_header.secrets", header.issuer, message, remedy, note=True)
    yield from _unused_scopes(config)
    yield from _scope_reach(config)


def unused_groups(config: Config) -> Iterator[Finding]:
    """Yield groups that no rule names; `config` still has its groups."""
    named = {role for grant in config.grants for role in grant.roles}
    named |= {role for deny in config.denies for role in deny.roles}
    for index, group in enumerate(config.groups):
        if group.name not in named:
            message = "no grant and no deny names it"
            yield Finding(Kind.UNUSED, f"groups[{index}]", group.name, message, "Use it, or delete it")


def _scope_reach(config: Config) -> Iterator[Finding]:
    """Yield scopes that open nothing that is granted, and scopes that together limit nothing."""
    if not config.scopes or not any(issuer.scope_claim is not None for issuer in config.issuers):
        return
    first: dict[str, int] = {}
    for index, scope in enumerate(config.scopes):
        first.setdefault(scope.name, index)
    useful, limiting = _useful_scopes(config)
    for name, index in first.items():
        if name not in useful:
            message = "opens nothing that any grant opens"
            yield Finding(Kind.UNUSED, f"scopes[{index}]", name, message, "Correct its path, or delete it")
    if len(first) > 1 and config.grants and not limiting:
        message = "and the other scopes open all that is granted: a token with all of them is not limited"
        remedy = "Fine if no client gets all of them"
        yield Finding(Kind.TOO_WIDE, "scopes[0]", config.scopes[0].name, message, remedy, note=True)


def _useful_scopes(config: Config) -> tuple[set[str], bool]:
    """Return the scopes that open something granted, and whether all together close something."""
    scopes = [("scope", Rule(s.name, frozenset(), Region.from_rule(s))) for s in config.scopes]
    grants = [("grant", compile_rule(grant)) for grant in config.grants if not grant.shadow]
    rules = labelled([*scopes, *grants], Labels([]), {role.name: [] for role in config.roles})
    useful: set[str] = set()
    limiting = False
    for zone in walk(rules, [config]):
        granted = zone.union(rule for rule in zone.rules if rule.key == "grant")
        opening = [rule for rule in zone.rules if rule.key == "scope"]
        useful |= {rule.id for rule in opening if zone.cells[rule] & granted}
        limiting |= bool(granted & ~zone.union(opening))
    return useful, limiting


def _unused_scopes(config: Config) -> Iterator[Finding]:
    scoped = [(index, one) for index, one in enumerate(config.issuers) if one.scope_claim is not None]
    for index, scope in enumerate([] if scoped else config.scopes):
        message = "no issuer has a `scope_claim`, so no token carries it"
        remedy = "Name the claim in [[issuers]], or delete the scope"
        yield Finding(Kind.UNUSED, f"scopes[{index}]", scope.name, message, remedy)
    for index, issuer in [] if config.scopes else scoped:
        which = "every token" if issuer.scope_required else "every token that carries one"
        message = f"has a `scope_claim`, but there are no [[scopes]]: {which} is refused"
        yield Finding(Kind.UNREACHABLE, f"issuers[{index}]", issuer.name, message, "Add [[scopes]]")


def misnamed(config: Config) -> Iterator[Finding]:
    """Yield entries of `actors` and `mcp` that are taken to the letter and were hardly meant so."""
    names = {issuer.name: issuer.issuer for issuer in config.issuers}
    rows: list[tuple[str, Grant | Deny]] = [(f"grants[{i}]", one) for i, one in enumerate(config.grants)]
    rows += [(f"denies[{i}]", one) for i, one in enumerate(config.denies)]
    for key, rule in rows:
        for index in [index for index, entry in enumerate(rule.mcp) if entry.name == "*"]:
            say = "takes `*` for a name, which hardly any tool has", "Leave `name` out"
            yield Finding(Kind.UNREACHABLE, f"{key}.mcp[{index}]", rule.id, *say)
        for index, actor in enumerate(rule.actors):
            if "*" in (actor.sub, actor.issuer):
                say = (
                    "takes `*` for a name, which hardly any actor has",
                    "Leave the key out; `{}` is every actor",
                )
            elif actor.issuer in names and actor.issuer not in names.values():
                url = names[actor.issuer]
                say = (
                    f"takes {actor.issuer!r} for the `iss` of actors, and not for the issuer",
                    f"Write {url!r}",
                )
            else:
                continue
            yield Finding(Kind.UNREACHABLE, f"{key}.actors[{index}]", rule.id, *say)


def unrecorded(config: Config) -> Iterator[Finding]:
    """Yield settings under which decisions leave no record."""
    if config.audit.path == "none":
        message, remedy = "records no decision at all", "Name a file, or `stderr`"
        yield Finding(Kind.UNRECORDED, "audit.path", "audit.path", message, remedy)
    elif config.audit.on_error == "allow":
        message = "lets requests through without a record while the disk is full"
        remedy = 'Write "deny", unless availability counts for more than the record'
        yield Finding(Kind.UNRECORDED, "audit.on_error", "audit.on_error", message, remedy)


def letter_case(config: Config) -> Iterator[Finding]:
    """Yield denies that narrow a grant by path: a path in other letter case is granted, and not denied."""
    policy = Policy(config)
    remedy = "Grant what may be reached alone; or see that servers tell letter case apart"
    openings = [canonical(grant.path).rstrip("/") + "/" for grant in config.grants]
    for number, deny in enumerate(config.denies):
        closed = canonical(deny.path)
        for index, grant in enumerate(config.grants):
            below = grant.match == "prefix" and closed.startswith(openings[index])
            found = below and not (deny.shadow or grant.shadow) and _in_other_case(policy, deny, grant)
            if found:
                message = f"does not hold where servers ignore letter case: {grant.id} opens {found[1].path}"
                key, others = f"denies[{number}]", {grant.id: f"grants[{index}]"}
                yield Finding(Kind.LETTER_CASE, key, deny.id, message, remedy, *found, others, note=True)
                break


def _in_other_case(policy: Policy, deny: Deny, grant: Grant) -> tuple[str, Request] | None:
    """Return a role and a request of the grant that differs from a denied request by letter case alone."""
    shared = [role for role in grant.roles if role in deny.roles or "*" in deny.roles]
    held = shared[:1] or [grant.roles[0], deny.roles[0]]
    try:
        request = witness_in_both(Region.from_rule(deny), Region.from_rule(grant))
    except ValueError:  # they do not meet
        return None
    above = len(canonical(grant.path).rstrip("/"))
    other = re.sub("(?<!%)(?<!%.)[A-Za-z]", lambda letter: letter[0].swapcase(), request.path[above:])
    swapped = replace(request, path=request.path[:above] + other)
    differs = swapped.path != request.path
    who = identity_of(policy, held, held[0], None)
    for entry in grant.actors[:1]:
        who = who._replace(actor=Actor(entry.sub or "agent", entry.issuer or "own", entry.issuer is not None))
    opens = differs and policy.decide(who, swapped).allow
    return (held[0], swapped) if opens else None


def _may_assert(source: Issuer | Sts, accounts: set[str]) -> bool:
    """Return whether it vouches for a role of some of the accounts; AWS only for those that it names."""
    anybody = not source.accounts and getattr(source, "profile", "") != "aws"
    return anybody or not accounts.isdisjoint(source.accounts)


def unproven(config: Config) -> Iterator[Finding]:
    """Find plain TCP between HAProxy and the agent, unless it is the default that former releases had."""
    if config.agent.listen is not None and config.agent.tls is None:
        for address in config.agent.addresses:
            if not address.startswith("unix:"):
                message = (
                    "is plain TCP: any local user who binds it while the agent is away is believed, and sees "
                    "bearer tokens; who can connect gets a signed identity for any `src`"
                )
                remedy = "Listen on a Unix socket, or set [agent.tls] (docs/haproxy.md)"
                yield Finding(Kind.UNPROVEN, "agent.listen", address, message, remedy)
    master = config.live.master_socket
    if master is not None and ":" in master and "/" not in master:
        message = "is HAProxy's master CLI on TCP: any local user has HAProxy's admin level there"
        yield Finding(
            Kind.UNPROVEN, "live.master_socket", master, message, "Let `haproxy -S` name a Unix socket"
        )
