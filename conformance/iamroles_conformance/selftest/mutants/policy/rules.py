"""Mutants of rules: GRANT, DENY, SHADOW, and what only the oracle finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from iamroles_agent.base.identity import RoleArn
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.policy import compiled, groups
from iamroles_agent.policy.compiled import Index
from iamroles_agent.policy.regions import Region
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.mutants.policy import edits as edit
from iamroles_conformance.selftest.registry import mutant

# --- grants


@mutant("policy.default-allow", kills=["GRANT-DEFAULT-001"], title="allows what no rule speaks of")
@edit.decided
def default_allow(policy: Any, _identity: Any, _request: Any, found: Any) -> Any:
    if found.reason == "no_grant":
        return replace(found, allow=True, reason=None, backend=policy.config.backends[0].name, rule="none")
    return found


mutant(
    "policy.group-of-one",
    kills=["GRANT-GROUP-001"],
    title="takes a group for the first of its roles only",
    apply=around(groups, "members_of")(
        lambda sound, given: {name: roles[:1] for name, roles in sound(given).items()}
    ),
)


mutant(
    "policy.head-is-get",
    kills=["GRANT-METHOD-001"],
    title="takes HEAD for GET",
    apply=edit.queries(
        lambda request, query: replace(query, method="GET" if request.method == "HEAD" else query.method)
    ),
)


mutant(
    "policy.method-any-case",
    kills=["GRANT-METHOD-001"],
    title="compares methods without case",
    apply=edit.queries(lambda _request, query: replace(query, method=query.method.upper())),
)


@mutant(
    "policy.star-is-known-methods", kills=["GRANT-METHOD-001"], title="takes `*` for the methods of RFC 9110"
)
@edit.queries
def star_is_known_methods(_request: Any, query: Any) -> Any:
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    return query if query.method in known else replace(query, paths=())


def _texts(path: str) -> tuple[str, ...]:
    return tuple(path[:end] for end in range(len(path), 0, -1))


mutant(
    "policy.prefix-of-text",
    kills=["GRANT-PREFIX-001"],
    title="takes a prefix for a beginning of text",
    apply=edit.queries(lambda request, query: replace(query, paths=(query.paths[0], *_texts(request.path)))),
)


mutant(
    "policy.path-any-case",
    kills=["GRANT-PREFIX-001"],
    title="compares paths without case",
    apply=edit.asked(
        lambda _policy, identity, request: (identity, replace(request, path=request.path.lower()))
    ),
)


mutant(
    "policy.exact-is-prefix",
    kills=["GRANT-EXACT-001"],
    title="takes an exact path for a prefix",
    apply=edit.regions_where(lambda rule: rule.match == "exact" and hasattr(rule, "backend"), exact=False),
)


@mutant("policy.slash-counts", kills=["GRANT-EXACT-001"], title="counts a trailing slash")
@edit.queries
def slash_counts(request: Any, query: Any) -> Any:
    return replace(query, paths=query.paths[1:]) if request.path.endswith("/") else query


mutant(
    "policy.host-ignored",
    kills=["GRANT-HOST-001"],
    title="ignores the hosts of a grant",
    apply=edit.regions_where(lambda rule: hasattr(rule, "backend"), hosts=None),
)


@mutant("policy.host-by-text", kills=["GRANT-HOST-001"], title="takes `*.` for any text before a name")
@edit.queries
def host_by_text(request: Any, query: Any) -> Any:
    host = request.host.lower().partition(":")[0]
    ends = tuple(f"*.{host[start:]}" for start in range(len(host)))
    return replace(query, hosts=(*query.hosts, *ends))


mutant(
    "policy.host-with-port",
    kills=["GRANT-HOST-001"],
    title="compares hosts with case and port",
    apply=around(compiled, "canonical_host")(lambda _sound, text: text),
)


mutant(
    "policy.source-ignored",
    kills=["GRANT-SOURCE-001"],
    title="ignores the sources of a grant",
    apply=edit.regions_where(lambda rule: hasattr(rule, "backend"), sources=None),
)


mutant(
    "policy.account-ignored",
    kills=["GRANT-ACCOUNT-001"],
    title="compares roles by name alone",
    apply=edit.by_name,
)


@mutant("policy.partition-ignored", kills=["GRANT-ACCOUNT-001"], title="compares roles without partition")
@edit.asked
def partition_ignored(_policy: Any, identity: Any, request: Any) -> Any:
    return identity._replace(roles=tuple(replace(arn, partition="aws") for arn in identity.roles)), request


@mutant(
    "policy.session-is-a-stranger",
    kills=["GRANT-SPELLING-001"],
    title="takes an assumed-role ARN for a role of its own",
)
@edit.role_arns
def session_is_a_stranger(sound: Any, text: str) -> Any:
    found = sound(text)
    return replace(found, name=f"{found.name}@session") if ":sts:" in text else found


def _well_formed(entry: Any) -> bool:
    try:
        RoleArn.parse(entry)
    except (Refusal, TypeError):
        return False
    return True


@mutant(
    "policy.skips-malformed",
    kills=["GRANT-MALFORMED-001"],
    title="skips malformed roles and takes the others",
)
@around(ClaimRules, "_roles")
def skips_malformed(sound: Any, self: Any, value: Any) -> Any:
    entries = [value] if isinstance(value, str) else value
    return sound(self, list(filter(_well_formed, entries)) if isinstance(entries, list) else entries)


mutant(
    "policy.first-match",
    kills=["GRANT-SPECIFIC-001"],
    title="takes the grant that the file has first",
    apply=edit.best_grant(lambda found: min(found, key=lambda rule: rule.id)),
)


mutant(
    "policy.exact-not-first",
    kills=["GRANT-SPECIFIC-001"],
    title="lets a prefix go before an exact path",
    apply=edit.best_grant(lambda found: min(found, key=lambda rule: (rule.region.exact, rule.rank))),
)


# --- denies


mutant(
    "policy.deny-ignores-method",
    kills=["DENY-REGION-001"],
    title="ignores the methods of a deny",
    apply=edit.regions_where(lambda rule: not hasattr(rule, "backend"), methods=None),
)


mutant(
    "policy.deny-ignores-host",
    kills=["DENY-REGION-001"],
    title="ignores the hosts of a deny",
    apply=edit.regions_where(lambda rule: not hasattr(rule, "backend"), hosts=None),
)


mutant(
    "policy.deny-ignores-source",
    kills=["DENY-REGION-001"],
    title="ignores the sources of a deny",
    apply=edit.regions_where(lambda rule: not hasattr(rule, "backend"), sources=None),
)


mutant(
    "policy.deny-is-exact",
    kills=["DENY-REGION-001"],
    title="takes a deny for one of its path alone",
    apply=edit.regions_where(lambda rule: not hasattr(rule, "backend"), exact=True),
)


mutant(
    "policy.deny-active-only",
    kills=["DENY-ALL-001"],
    title="looks at denies of the active role only",
    apply=edit.denies_of_active_role,
)


@mutant("policy.deny-loses", kills=["DENY-ALL-001"], title="lets a grant that is as specific beat a deny")
@around(Index, "first")
def deny_loses(sound: Any, self: Any, roles: Any, query: Any) -> Any:
    found = sound(self, roles, query)
    return None if found is not None and found.region.path == "/orders/export" else found


mutant(
    "policy.every-is-every-mapped",
    kills=["DENY-EVERY-001"],
    title="holds a deny of `*` for mapped roles only",
    apply=around(Index, "first")(
        lambda sound, self, roles, query: sound(self, roles if len(tuple(roles)) > 1 else (), query)
    ),
)


# --- shadow rules


@mutant("policy.shadow-grant-enforced", kills=["SHADOW-GRANT-001"], title="enforces shadow grants")
@edit.built
def shadow_grant_enforced(policy: Any) -> None:
    policy._grants = compiled.Index(map(compiled.compile_rule, policy.config.grants), deny=False)


@mutant("policy.shadow-deny-enforced", kills=["SHADOW-DENY-001"], title="enforces shadow denies")
@edit.built
def shadow_deny_enforced(policy: Any) -> None:
    policy._denies = compiled.Index(map(compiled.compile_rule, policy.config.denies), deny=True)


# --- what no example shows


@mutant("policy.oracle-ipv6", kills=["ORACLE-AGREE-001"], title="never matches an IPv6 network")
@around(Region, "has_source")
def oracle_ipv6(sound: Any, self: Any, address: Any) -> bool:
    return self.sources is None or (address.version == 4 and sound(self, address))


@mutant("policy.oracle-last-grant", kills=["ORACLE-AGREE-001"], title="forgets the last of many grants")
@edit.built
def oracle_last_grant(policy: Any) -> None:
    enforced = [grant for grant in policy.config.grants[:6] if not grant.shadow]
    policy._grants = compiled.Index(map(compiled.compile_rule, enforced), deny=False)


@mutant(
    "policy.oracle-trailing-slash", kills=["ORACLE-AGREE-001"], title="lets a trailing slash out of a deny"
)
@around(Index, "matches")
def oracle_trailing_slash(sound: Any, self: Any, roles: Any, query: Any) -> Iterator[Any]:
    for rule in sound(self, roles, query):
        if not (self._deny and rule.region.exact and rule.region.sources):
            yield rule


mutant(
    "policy.oracle-conflicts",
    kills=["ORACLE-LOAD-001"],
    title="loads conflicts where one method is `*`",
    apply=around(Region, "meets")(lambda sound, self, other: self.methods is not None and sound(self, other)),
)


mutant(
    "policy.oracle-order",
    kills=["ORACLE-AGREE-001"],
    title="names the equal grant that the file has last",
    apply=edit.best_grant(
        lambda found: [rule for rule in found if rule.region.specificity == found[0].region.specificity][-1]
    ),
)


mutant(
    "policy.oracle-proxy",
    kills=["ORACLE-PROXY-001"],
    title="names the longest backend name it knows",
    apply=edit.decided(
        lambda policy, _identity, _request, found: (
            replace(found, backend=max((one.name for one in policy.config.backends), key=len))
            if found.allow
            else found
        )
    ),
)
