"""Check the conditions that a configuration must meet before it may be enforced.

Each check takes the sound items of a file and yields every fault with its key and a remedy. What is merely
unwise is not refused: `policy.lint` of the tools reports it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from itertools import combinations
from typing import Any
from urllib.parse import urlsplit

from iamroles_agent.base import config
from iamroles_agent.base.config import Config
from iamroles_agent.base.encoding import VISIBLE
from iamroles_agent.base.errors import closest
from iamroles_agent.base.identity import RoleArn, is_tag
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.identity_header import LONGEST_LIFE
from iamroles_agent.policy.compiled import Rule, compile_rule
from iamroles_agent.policy.groups import members_of, spelled_out
from iamroles_agent.policy.paths import canonical
from iamroles_agent.policy.regions import NAMED_CALLS, Region, actors_meet, host_pattern
from iamroles_agent.policy.resources import (
    CONTROL,
    LONGEST_DOCUMENT,
    LONGEST_NAME,
    METHOD,
    Place,
    Resources,
    issuers_of,
)
from iamroles_agent.policy.sound import Sound
from iamroles_agent.policy.witness import describe, witness_in_both

ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
"""Signatures that an issuer may be pinned to (JWT-ALG-002); none of them has a shared secret as key."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}", re.ASCII)
_COMMON_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_SERVER = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}", re.ASCII)
_FILE = re.compile(r"/[A-Za-z0-9._/@+-]{1,200}", re.ASCII)
_TLS_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
_ACCOUNT = re.compile(r"[0-9]{12}", re.ASCII)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}", re.ASCII)
_TAKEN = re.compile(
    "(?i)host|accept(-encoding)?|user-agent|content-length|(proxy-)?connection|keep-alive|te|trailer"
    "|transfer-encoding|upgrade"
)
"""Fields that the call of STS has already, or that hold for one connection (RFC 9110 section 7.6.1)."""
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+", re.ASCII)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\x21-\x7e]+", re.ASCII)
_ORIGIN = re.compile(r"https://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[1-9][0-9]{0,4})?", re.ASCII)
_WEB_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[1-9][0-9]{0,4})?", re.ASCII
)
_REVISION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_LISTEN = re.compile(
    r"unix:/.+|(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9_-]{1,63}(?:\.|(?=:)))+):[0-9]{1,5}", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong, at one key."""

    key: str
    message: str
    remedy: str


def check(sound: Sound) -> Iterator[Fault]:
    """Yield every fault of a file, in no particular order."""
    for fault in _check(sound):
        if not any(fault.key == key or fault.key.startswith(f"{key}[") for key in sound.stand_ins):
            yield replace(fault, message=re.sub("//.*@", "//…@", fault.message))  # it may be a password


def _check(sound: Sound) -> Iterator[Fault]:
    yield from _names(sound)
    for key, issuer in sound.issuers:
        yield from _issuer(key, issuer)
    for key, sts in sound.sts:
        yield from _sts(key, sts)
    yield from _shared_hosts(sound)
    for key, backend in sound.backends:
        yield from _backend(key, backend)
    yield from _roles(sound)
    faulty: set[str] = set()
    for key, rule in (*sound.rules, *sound.scopes):
        for fault in _region(key, rule):
            faulty.add(key)
            yield fault
    yield from _groups(sound)
    yield from _references(sound)
    yield from _resources(sound)
    yield from _conflicts(sound, faulty)
    if sound.whole is not None and not sound.issuers and not sound.sts:
        yield Fault("", "trusts nobody: neither [[issuers]] nor [[sts]]", "Add at least one")
    yield from _tables(sound.tables)


def _rows(key: str, *rows: tuple[object, str, str, str]) -> Iterator[Fault]:
    """Yield a fault for each row whose first value is true: then key below `key`, message, remedy."""
    for wrong, name, message, remedy in rows:
        if wrong:
            yield Fault(f"{key}.{name}", message, remedy)


def _names(sound: Sound) -> Iterator[Fault]:
    kinds: list[tuple[str, str, list[tuple[str, Any]]]] = [
        ("issuer or STS endpoint", "name", [*sound.issuers, *sound.sts]),
        ("role or group", "name", [*sound.roles, *sound.groups]),
        ("backend", "name", [*sound.backends]),
        ("grant or deny", "id", [*sound.rules]),
        ("resource", "name", [*sound.resources]),
    ]
    for kind, field, items in kinds:
        names = [(f"{key}.{field}", getattr(item, field)) for key, item in items]
        yield from _unique(kind, names)
        for key, name in names:
            if not _NAME.fullmatch(name):
                yield Fault(key, f"{name!r} is not a name", "Use 1 to 64 letters, digits, `_`, `.`, `-`")
    yield from _unique("issuer", [(f"{key}.issuer", issuer.issuer) for key, issuer in sound.issuers])
    for key, scope in sound.scopes:  # several regions may share a scope: their union opens
        if not _SCOPE.fullmatch(scope.name):
            remedy = "RFC 6749 section 3.3 allows no such character"
            yield Fault(f"{key}.name", f"{scope.name!r} is not a scope", remedy)
        elif scope.name == "offline_access" and sound.resources:
            message = "asks for a refresh token and permits nothing: clients must not be asked for it"
            yield Fault(f"{key}.name", message, "Name a scope of the servers behind the gate")


def _unique(kind: str, names: Iterable[tuple[str, str]]) -> Iterator[Fault]:
    first: dict[str, str] = {}
    for key, name in names:
        if name in first:
            yield Fault(key, f"a second {kind} is called {name!r}; the first is {first[name]}", "Rename one")
        first.setdefault(name, key.rpartition(".")[0])


def _issuer(key: str, issuer: config.Issuer) -> Iterator[Fault]:
    if issuer.jwks_uri is None:  # then the discovery document is below it
        yield from _url(f"{key}.issuer", issuer.issuer, issuer.insecure_http, query=False)
    else:
        yield from _string_or_uri(f"{key}.issuer", issuer.issuer)
        yield from _url(f"{key}.jwks_uri", issuer.jwks_uri, issuer.insecure_http)
    for_all = "neither `audiences` nor `client_ids` says whom tokens are for, so tokens for others would pass"
    audience = 'Write the `aud` that this issuer puts into tokens for you, e.g. audiences = ["api"]'
    no_types = "is empty, so every token would be refused"
    yield from _rows(
        key,
        (not issuer.audiences and not issuer.client_ids, "audiences", for_all, audience),
        (not issuer.algorithms, "algorithms", "is empty", 'Pin what the issuer signs with, e.g. ["RS256"]'),
        (not issuer.types, "types", no_types, 'Leave it out, or ["at+jwt"]'),
        (issuer.max_lifetime <= 0, "max_lifetime", "is not above zero", 'Write a duration such as "1h"'),
    )
    for index, algorithm in enumerate(issuer.algorithms):
        if algorithm not in ALGORITHMS:
            yield Fault(f"{key}.algorithms[{index}]", *_bad_algorithm(algorithm))
    for name in ("roles_claim", "preferred_role_claim", "scope_claim", "session_claim", "principal_claim"):
        claim = getattr(issuer, name)
        path = [claim] if isinstance(claim, str) else claim
        if path is not None and not (path and all(path)):
            remedy = "Write a claim's name, or the names on the way to it"
            yield Fault(f"{key}.{name}", "names no claim", remedy)
        if "request_tags" in (path or []) and name not in ("session_claim", "principal_claim"):
            message = "request_tags are the caller's own choice and prove nothing"
            yield Fault(f"{key}.{name}", message, "Use principal_tags")
    yield from _accounts(key, issuer.accounts)


def _bad_algorithm(algorithm: str) -> tuple[str, str]:
    if algorithm.lower() == "none":
        return "`none` would accept unsigned tokens", "Pin what the issuer signs with, e.g. RS256"
    if algorithm.upper().startswith("HS"):
        return (
            f"{algorithm} is keyed by a shared secret; with a public key set anyone could sign",
            "Have the issuer sign with an asymmetric algorithm, e.g. RS256 or ES256",
        )
    near = closest(algorithm, ALGORITHMS, 0.4)
    hint = f"Did you mean {near}? " if near else ""
    return f"{algorithm!r} is not a known algorithm", f"{hint}Known: {', '.join(sorted(ALGORITHMS))}"


def _sts(key: str, sts: config.Sts) -> Iterator[Fault]:
    yield from _url(f"{key}.endpoint", sts.endpoint, sts.insecure_http, query=False)
    header, edge = sts.binding_header, 'Write e.g. "x-iam-edge"'
    no_hosts = "is empty, so no credential would be accepted"
    unfit = "is empty, or has outer blanks or letters that no header can carry"
    yield from _rows(
        key,
        (not sts.hosts, "hosts", no_hosts, "Write STS's host names"),
        (not _HEADER.fullmatch(header), "binding_header", "is not a header name", edge),
        (_TAKEN.fullmatch(header), "binding_header", "is a field that the call itself has", edge),
        (not VISIBLE.fullmatch(sts.binding_value), "binding_value", unfit, "Write this proxy's own name"),
    )
    for index, host in enumerate(sts.hosts):
        if "*" in host or not _host_and_port(host):
            remedy = "Write each host in full, without scheme or wildcard, e.g. sts.eu-west-1.amazonaws.com"
            yield Fault(f"{key}.hosts[{index}]", f"{host!r} is not a host name", remedy)
    yield from _accounts(key, sts.accounts)


def _shared_hosts(sound: Sound) -> Iterator[Fault]:
    first: dict[str, str] = {}
    for key, sts in sound.sts:
        for index, host in enumerate(sts.hosts):
            other = first.setdefault(host, where := f"{key}.hosts[{index}]")
            if not other.startswith(f"{key}."):
                message = f"{host!r} is already {other}: its credentials would belong to two endpoints"
                yield Fault(where, message, "Keep it at one of them")


def _host_and_port(host: str) -> bool:
    name, _, port = host.partition(":")
    try:
        return bool(host_pattern(name)) and (not port or (port.isascii() and port.isdigit()))
    except ValueError:
        return False


def _accounts(key: str, accounts: list[str]) -> Iterator[Fault]:
    for index, account in enumerate(accounts):
        if not _ACCOUNT.fullmatch(account):
            message = f"{account!r} is not an AWS account"
            yield Fault(f"{key}.accounts[{index}]", message, "Write its 12 digits")


def _string_or_uri(key: str, text: str) -> Iterator[Fault]:
    """Check the form of RFC 7519 section 2: any string, but a string with a colon is a URI."""
    if not text or not text.isprintable() or text != text.strip():
        yield Fault(key, "is empty, unprintable or has blanks around it", "Write the `iss` of its tokens")
    elif ":" in text and not _URI.fullmatch(text):
        remedy = "Write the `iss` of its tokens, to the letter"
        yield Fault(key, f"{text!r} has a colon and is not a URI", remedy)


def _url(key: str, text: str, insecure: bool, *, query: bool = True) -> Iterator[Fault]:
    in_full = "Write it in full, e.g. https://idp.example.com/"
    try:
        url = urlsplit(text)
        port_ok = url.port is None or url.port > 0
    except ValueError:
        yield Fault(key, "is not a URL", in_full)  # which may hold a password: it is not printed
        return
    if url.scheme not in ("http", "https") or not url.hostname or not port_ok or re.search(r"\s", text):
        yield Fault(key, "is not an http or https URL", in_full)
    elif url.username is not None or "#" in text or ("?" in text and not query):
        yield Fault(key, "holds a user, a query or a fragment", "Leave them out")
    elif url.scheme == "http" and not insecure:
        remedy = "Write https, or insecure_http = true in a test"
        yield Fault(key, "is not https: keys and answers could be forged on the way", remedy)


def _backend(key: str, backend: config.Backend) -> Iterator[Fault]:
    if backend.renew and not backend.streams:
        remedy = "Add `streams = true`, or remove `renew`"
        yield Fault(f"{key}.renew", "this backend has no streams to renew", remedy)
    for index, server in enumerate(backend.servers):
        if not _SERVER.fullmatch(server) or not 0 < int(server.rpartition(":")[2]) < 65536:
            message = f"{server!r} is not host:port"
            yield Fault(f"{key}.servers[{index}]", message, 'Write e.g. "10.0.0.7:8080"')
    yield from tls_faults(key, backend)


def tls_faults(key: str, backend: config.Backend) -> Iterator[Fault]:
    """Yield the faults of a backend's TLS settings."""
    tls = backend.tls
    if tls is None:
        return
    for name, text in (("ca", tls.ca), ("certificate", tls.certificate)):
        if text is not None and not _FILE.fullmatch(text):
            # Relative paths are looked up in different directories by different releases.
            remedy = "Write a full path of letters, digits and `._/@+-`, as HAProxy sees it"
            yield Fault(f"{key}.tls.{name}", f"{text!r} is not a full path of plain letters", remedy)
    if tls.name is not None and not _TLS_NAME.fullmatch(tls.name):
        remedy = "Write the DNS name that the servers' certificate carries"
        yield Fault(f"{key}.tls.name", f"{tls.name!r} is not a DNS name", remedy)
    if tls.name is None and any(_is_address(server) for server in backend.servers):
        remedy = 'Write `name = "…"`: the DNS name that the servers\' certificate carries'
        yield Fault(f"{key}.tls.name", "is missing, and a server is named by its address", remedy)


def _is_address(server: str) -> bool:
    try:
        ip_network(server.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def _roles(sound: Sound) -> Iterator[Fault]:
    owner: dict[RoleArn, str] = {}
    for key, role in sound.roles:
        written = [] if role.arn is None else [(f"{key}.arn", role.arn)]
        written += [(f"{key}.arns[{index}]", arn) for index, arn in enumerate(role.arns)]
        too_short = role.max_lifetime is not None and role.max_lifetime < 1
        special = role.name.startswith("arn:") or role.name == "*"
        yield from _rows(
            key,
            (not written, "arn", "is missing", "Write the role's ARN as `arn`, or several as `arns`"),
            (special, "name", "would be read as something else", "Use a plain name"),
            (too_short, "max_lifetime", "is below one second", 'Write a duration such as "15m"'),
        )
        for where, text in written:
            try:
                arn = RoleArn.parse(text)
            except Refusal:
                remedy = "Write arn:aws:iam::<12-digit account>:role/<name>"
                yield Fault(where, f"{text!r} is not an IAM role ARN", remedy)
                continue
            if text != str(arn):
                message = "is not canonical: STS's ARNs lose a role's path, so this would never be compared"
                yield Fault(where, message, f"Write {arn}")
                continue
            if arn in owner:
                message = f"{arn} is already the role {owner[arn]!r}: it would have two meanings"
                yield Fault(where, message, "Keep it under one name")
            owner.setdefault(arn, role.name)


def _region(key: str, rule: config.Grant | config.Deny | config.Scope) -> Iterator[Fault]:
    try:
        canonical(rule.path)
    except Refusal as refusal:
        message = f"no request can match it: {refusal.detail}"
        yield Fault(f"{key}.path", message, "Write the path as it is forwarded")
    else:
        if any(part in ("*", "**") for part in rule.path.split("/")):
            remedy = 'Leave the `*` away: match = "prefix" opens whole segments below'
            yield Fault(f"{key}.path", "has a wildcard, which would be taken literally", remedy)
    if not rule.methods:
        remedy = 'Write methods, or ["*"] for all'
        yield Fault(f"{key}.methods", "is empty, so the rule never matches", remedy)
    for index, method in enumerate(rule.methods):
        if not _METHOD.fullmatch(method) or (method != "*" and "*" in method):
            yield Fault(f"{key}.methods[{index}]", f"{method!r} is not a method", 'Write e.g. "GET"')
        elif method not in _COMMON_METHODS and method.upper() in _COMMON_METHODS:
            message = f"{method!r} never matches: methods are case-sensitive"
            yield Fault(f"{key}.methods[{index}]", message, f'Write "{method.upper()}"')
    for index, host in enumerate(rule.hosts):
        try:
            host_pattern(host)
        except ValueError as error:
            remedy = 'Write e.g. "api.example.com" or "*.example.com"'
            if host == "*":
                remedy = "Leave `hosts` out: without it a rule is for any host"
            yield Fault(f"{key}.hosts[{index}]", str(error), remedy)
    for index, source in enumerate(getattr(rule, "sources", [])):
        yield from _network(f"{key}.sources[{index}]", source)


def _network(key: str, text: str) -> Iterator[Fault]:
    try:
        if "%" in text:
            raise ValueError("it names a zone")
        meant = ip_network(text, strict=False)
    except ValueError as error:
        yield Fault(key, f"{text!r} is not a network: {error}", 'Write e.g. "10.0.0.0/8" or "2001:db8::/32"')
        return
    address, slash, bits = text.partition("/")
    remedy = f'Write "{meant}", or the address with no prefix'
    if slash and bits != str(meant.prefixlen):
        yield Fault(key, f"{text!r} does not say its prefix as a number of bits", remedy)
    elif ip_address(address) != meant.network_address:
        yield Fault(key, f"{text!r} has bits set beyond its prefix", remedy)


def _groups(sound: Sound) -> Iterator[Fault]:
    names = frozenset(group.name for _, group in sound.groups)
    for key, group in sound.groups:
        if not group.roles:
            yield Fault(f"{key}.roles", "is empty, so the group stands for nobody", "Name its roles")
        for index, name in enumerate(group.roles):
            if name in names:
                remedy = "Name the roles themselves"
                yield Fault(f"{key}.roles[{index}]", f"{name!r} is a group: groups hold no groups", remedy)
            else:
                yield from _known(f"{key}.roles[{index}]", "role", name, sound.role_names, "[[roles]]")


def _references(sound: Sound) -> Iterator[Fault]:
    known = sound.role_names | {group.name for _, group in sound.groups}
    for key, rule in sound.rules:
        grant = isinstance(rule, config.Grant)
        if not rule.roles:
            remedy = "Name the roles it opens to" if grant else 'Name roles, or ["*"] for every token'
            yield Fault(f"{key}.roles", "is empty, so the rule never applies", remedy)
        for index, name in enumerate(rule.roles):
            where = f"{key}.roles[{index}]"
            if name != "*":
                yield from _known(where, "role or group", name, known, "[[roles]] or [[groups]]")
            elif grant:
                remedy = "Name each role; only a deny may say `*`"
                yield Fault(where, "a grant may not be for every role (least privilege)", remedy)
            elif len(rule.roles) > 1:
                yield Fault(where, "`*` already stands for every token", 'Write roles = ["*"]')
        for index, actor in enumerate(rule.actors):
            for name, text in (("sub", actor.sub), ("issuer", actor.issuer)):
                if text is not None and not is_tag(text):
                    message = f"{text!r} fits no actor: it is empty, too long, unprintable or ends in a blank"
                    remedy = f"Write `{name}` as the token's `act` has it, or leave it out"
                    yield Fault(f"{key}.actors[{index}].{name}", message, remedy)
    for key, item in sound.grants:
        yield from _known(f"{key}.backend", "backend", item.backend, sound.backend_names, "[[backends]]")


def _resources(sound: Sound) -> Iterator[Fault]:
    """Check the resources, and the rules that speak of MCP, which hold there alone."""
    if not sound.resources and not any(rule.mcp for _, rule in (*sound.rules, *sound.scopes)):
        return
    places: list[tuple[Place, config.Resource]] = []
    yield from _unique("resource", [(f"{key}.resource", one.resource) for key, one in sound.resources])
    for key, resource in sound.resources:
        yield from _resource(key, resource, sound)
        try:
            places.append((Place.of(resource.resource), resource))
        except ValueError as error:
            message = f"{resource.resource!r} {error}"
            yield Fault(f"{key}.resource", message, 'Write it as clients do: "https://mcp.example.com/mcp"')
    alone = [place for place, _ in places]
    for key, rule in (*sound.rules, *sound.scopes):
        for index, entry in enumerate(rule.mcp):
            yield from _mcp_entry(f"{key}.mcp[{index}]", entry)
        try:
            region = Region.from_rule(rule)
        except (Refusal, ValueError):  # said already
            continue
        met = [place.host for place in alone if place.region.meets(region)]
        if isinstance(rule, config.Grant) and not rule.hosts and met:
            message = f"is left out: {met[0]} would open with any `Host`, whatever the audience and Origin"
            yield Fault(f"{key}.hosts", message, f'Write hosts = ["{met[0]}"]')
        if not rule.mcp:
            continue
        there = [resource for place, resource in places if place.concerns(region, alone)]
        inside = any(place.holds(region.path) and place.region.meets(region) for place in alone)
        blind = next((one for one in there if not one.validates_headers), None)
        if not inside:
            message = "speaks of MCP, and its path is not at or below that of a resource"
            yield Fault(f"{key}.mcp", message, "Write the path of a resource, or below it")
        elif blind is not None:
            message = f"{blind.name!r} is not known to compare the body, which could name another tool"
            remedy = "If it does, write `validates_headers = true` there; else remove `mcp` here"
            yield Fault(f"{key}.mcp", message, remedy)
    with suppress(ValueError, Refusal):  # what is wrong with a resource has been said
        for index, target in enumerate(Resources(sound.whole).targets if sound.whole else ()):
            if (size := len(target.document)) > LONGEST_DOCUMENT:
                message = f"its metadata would have {size} bytes, and may have {LONGEST_DOCUMENT}"
                yield Fault(f"resources[{index}].resource", message, "Name fewer or shorter scopes below it")


def _resource(key: str, resource: config.Resource, sound: Sound) -> Iterator[Fault]:
    url = resource.resource
    plain = url.startswith("http:") and not resource.insecure_http
    opening = issuers_of(resource, [issuer for _, issuer in sound.issuers])
    nobody = "is an `aud` of no issuer's `audiences`, so no token could be for it"
    yield from _rows(
        key,
        (plain, "resource", "is not https", "Write https, or insecure_http = true in a test"),
        (not resource.issuers and not opening, "resource", nobody, "Add it to `audiences` of an issuer"),
        (not resource.versions, "versions", "is empty, so nothing would pass", 'Write e.g. ["2026-07-28"]'),
    )
    audiences = {issuer.name: issuer.audiences for _, issuer in sound.issuers}
    for index, name in enumerate(resource.issuers):
        where = f"{key}.issuers[{index}]"
        yield from _known(where, "issuer", name, frozenset(audiences), "[[issuers]]")
        if url not in audiences.get(name, [url]) and f"{key}.resource" not in sound.stand_ins:
            message = f"the `audiences` of {name!r} do not hold {url!r} to the letter"
            yield Fault(where, message, "Add it there, or remove the issuer here")
    bare = "Write scheme, host and perhaps a port, lower-case and without a slash at the end"
    for name, form, what, remedy in (
        ("versions", _REVISION, "a revision of MCP", 'Write e.g. "2026-07-28"'),
        ("origins", _WEB_ORIGIN, "an origin", bare),
    ):
        for index, text in enumerate(getattr(resource, name)):
            if not form.fullmatch(text):
                yield Fault(f"{key}.{name}[{index}]", f"{text!r} is not {what}", remedy)


def _mcp_entry(key: str, entry: config.McpEntry) -> Iterator[Fault]:
    method, name = entry.method, entry.name
    odd = method is not None and not METHOD.fullmatch(method)
    without = name is not None and method is not None and not odd and method not in NAMED_CALLS
    never = name is not None and (not 0 < len(name) <= LONGEST_NAME or CONTROL.search(name))
    unfit = f"{name!r} is empty, too long or has a control character"
    yield from _rows(
        key,
        (odd, "method", f"{method!r} is not a method of MCP", 'Write e.g. "tools/call", or leave it out'),
        (without, "name", f"calls of {method!r} have no name", f"Only {', '.join(sorted(NAMED_CALLS))} do"),
        (never, "name", unfit, "Write the tool's name, or leave it out"),
    )


def _known(key: str, kind: str, name: str, known: frozenset[str], table: str) -> Iterator[Fault]:
    if name not in known:
        near = closest(name, known)
        remedy = f"Did you mean {near!r}?" if near else f"Add it as {table}, or correct the name"
        yield Fault(key, f"no {kind} is called {name!r}", remedy)


def _conflicts(sound: Sound, faulty: Collection[str]) -> Iterator[Fault]:
    """Find equal grants that could match one request and name different backends (POLICY-CONFLICT-001).

    The keys of `faulty` are of grants whose region cannot be read.

    Both match one request, so equal specificity means the same path and match: only such pairs are compared.
    """
    same_path: dict[tuple[str, bool], list[tuple[str, Rule]]] = {}
    members = members_of([group for _, group in sound.groups])
    issuers = {issuer.issuer for _, issuer in sound.issuers}
    for key, grant in sound.grants:
        mended = any(name.startswith(f"{key}.") for name in sound.stand_ins)
        if not grant.shadow and not mended and key not in faulty:
            rule = compile_rule(spelled_out(grant, members))
            if grant.mcp:  # the only calls that a grant can know
                if not {"*", "POST"} & {*grant.methods}:
                    continue
                rule = replace(rule, region=replace(rule.region, methods=frozenset({"POST"})))
            same_path.setdefault((rule.region.path, rule.region.exact), []).append((key, rule))
    for rules in same_path.values():
        for (_, one), (key, two) in combinations(rules, 2):
            if one.backend == two.backend or not one.region.meets(two.region):
                continue
            if not actors_meet(one.region.actors, two.region.actors, issuers):
                continue
            if shared := sorted(one.roles & two.roles):
                who = f"the role {shared[0]!r}"
            elif sound.union and one.roles and two.roles:
                pair = f"{min(one.roles)!r} and {min(two.roles)!r}"
                who = f'a token with the roles {pair} (multi_role = "union")'
            else:
                continue
            request = describe(witness_in_both(one.region, two.region))
            yield Fault(
                f"{key}.backend",
                f"grants {one.id!r} and {two.id!r} are equally specific, and {who} would reach both "
                f"{one.backend!r} and {two.backend!r} with {request}",
                "Name one backend, or set them apart by path, method, host, source or role",
            )


def _is_listen(text: str) -> bool:
    if not _LISTEN.fullmatch(text):
        return False
    return text.startswith("unix:") or int(text.rpartition(":")[2]) < 65536


def _identity_header(header: config.IdentityHeader) -> Iterator[Fault]:
    bad_name = not header.issuer or not header.issuer.isprintable() or len(header.issuer) > 256
    bad_life = not 2 <= header.lifetime <= LONGEST_LIFE or header.lifetime % 1
    name = 'Write this gate\'s own name, which servers compare, e.g. "https://gate.example.com"'
    often = 'A server\'s copy of the keys must keep up: write "24h", or twice the lifetime at the least'
    too_often, short = header.rotate < 2 * header.lifetime, "is shorter than twice the lifetime"
    yield from _rows(
        "identity_header",
        (bad_name, "issuer", "is empty, unprintable or longer than 256", name),
        (bad_life, "lifetime", "is out of bounds", f'Write whole seconds from "2s" to "{LONGEST_LIFE}s"'),
        (too_often, "rotate", short, often),
    )


def _dpop(dpop: config.Dpop) -> Iterator[Fault]:
    empty, where = "is empty, so every proof would be refused", '["https://api.example.com"]'
    yield from _rows(
        "dpop",
        (not dpop.origins, "origins", empty, f"Write where clients find this gate, e.g. {where}"),
        (not dpop.algorithms, "algorithms", empty, 'Write e.g. ["ES256"]'),
    )
    for index, origin in enumerate(dpop.origins):
        port = re.search(r":([0-9]+)\Z", origin)
        if not _ORIGIN.fullmatch(origin) or (port is not None and int(port[1]) > 65535):
            remedy = "Write scheme, host and perhaps a port, lower-case and without a slash at the end"
            yield Fault(f"dpop.origins[{index}]", f"{origin!r} is not an https origin", remedy)
    for index, algorithm in enumerate(dpop.algorithms):
        if algorithm not in ALGORITHMS:
            yield Fault(f"dpop.algorithms[{index}]", *_bad_algorithm(algorithm))


def _client_certificate(front: config.ClientCertificate) -> Iterator[Fault]:
    if not front.from_:
        remedy = "Name the networks of the load balancers, or leave the table out"
        yield Fault("client_certificate.from", "is empty, so nobody would have a certificate", remedy)
    if len(front.from_) > 60:  # a line of HAProxy's configuration has at most 64 words
        wrong = f"has {len(front.from_)} networks, and HAProxy takes 60"
        yield Fault("client_certificate.from", wrong, "Write larger networks in place of their parts")
    for index, network in enumerate(front.from_):
        yield from _network(f"client_certificate.from[{index}]", network)


def _tables(whole: Config) -> Iterator[Fault]:
    addresses = whole.agent.addresses or [""]
    for index, text in enumerate(addresses):
        if not _is_listen(text):
            remedy = 'Write "unix:/path", or "host:port", port 0 for any'
            yield Fault("agent.listen", f"{text!r} is not an address", remedy)
        elif text in addresses[:index] and not text.endswith(":0"):
            yield Fault("agent.listen", f"{text!r} stands twice", "Remove one of the two")
    if (text := whole.metrics.listen) and (text.startswith("unix:") or not _is_listen(text)):
        remedy = 'Write "host:port", port 0 for any'
        yield Fault("metrics.listen", f"{text!r} is not an address: metrics are served on TCP", remedy)
    elif text and int(text.rpartition(":")[2]) + whole.agent.workers > 65536:
        wrong = f"{text!r} leaves no port for the last of {whole.agent.workers} workers"
        yield Fault("metrics.listen", wrong, "Choose a lower port: worker k uses the port plus k")
    if whole.audit.required and whole.audit.path == "none":
        yield Fault("audit.path", 'is "none", and audit.required is true', 'Name a file, or "stderr"')
    if whole.dpop is not None:
        yield from _dpop(whole.dpop)
    if whole.client_certificate is not None:
        yield from _client_certificate(whole.client_certificate)
    if whole.identity_header is not None:
        yield from _identity_header(whole.identity_header)
    for name in ("refresh", "max_stale", "timeout"):
        if getattr(whole.keys, name) <= 0:
            yield Fault(f"keys.{name}", "is not above zero", 'Write a duration such as "5m"')
    if whole.keys.max_stale < whole.keys.refresh:
        message = "is shorter than keys.refresh: keys would go stale between two fetches"
        yield Fault("keys.max_stale", message, "Make max_stale the longer of the two")
    if whole.limits.max_lifetime is not None and whole.limits.max_lifetime < 1:
        yield Fault("limits.max_lifetime", "is below one second", 'Write a duration such as "1h"')
