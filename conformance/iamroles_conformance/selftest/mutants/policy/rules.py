"""Mutants of rules: GRANT, DENY, SHADOW, and what only the oracle finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from iamroles_agent.identity import RoleArn
from iamroles_agent.policy import compiled, groups
from iamroles_agent.policy.compiled import Index
from iamroles_agent.policy.regions import Region
from iamroles_agent.reasons import Refusal
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.mutants.policy import edits as edit
from iamroles_conformance.selftest.registry import mutant

# --- grants


@mutant("policy.default-allow", kills=["GRANT-DEFAULT-001"], title="allows what no rule speaks of")
def default_allow() -> None:
    def change(policy: Any, _identity: Any, _request: Any, found: Any) -> Any:
        if found.reason == "no_grant":
            return replace(
                found, allow=True, reason=None, backend=policy.config.backends[0].name, rule="none"
            )
        return found

    edit.decided(change)


@mutant(
    "policy.group-of-one", kills=["GRANT-GROUP-001"], title="takes a group for the first of its roles only"
)
def group_of_one() -> None:
    override(
        groups,
        "members_of",
        lambda sound: lambda given: {name: roles[:1] for name, roles in sound(given).items()},
    )


@mutant("policy.head-is-get", kills=["GRANT-METHOD-001"], title="takes HEAD for GET")
def head_is_get() -> None:
    edit.queries(
        lambda request, query: replace(query, method="GET" if request.method == "HEAD" else query.method)
    )


@mutant("policy.method-any-case", kills=["GRANT-METHOD-001"], title="compares methods without case")
def method_any_case() -> None:
    edit.queries(lambda _request, query: replace(query, method=query.method.upper()))


@mutant(
    "policy.star-is-known-methods", kills=["GRANT-METHOD-001"], title="takes `*` for the methods of RFC 9110"
)
def star_is_known_methods() -> None:
    def change(_request: Any, query: Any) -> Any:
        known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
        return query if query.method in known else replace(query, paths=())

    edit.queries(change)


def _texts(path: str) -> tuple[str, ...]:
    return tuple(path[:end] for end in range(len(path), 0, -1))


@mutant("policy.prefix-of-text", kills=["GRANT-PREFIX-001"], title="takes a prefix for a beginning of text")
def prefix_of_text() -> None:
    edit.queries(lambda request, query: replace(query, paths=(query.paths[0], *_texts(request.path))))


@mutant("policy.path-any-case", kills=["GRANT-PREFIX-001"], title="compares paths without case")
def path_any_case() -> None:
    edit.asked(lambda _policy, identity, request: (identity, replace(request, path=request.path.lower())))


@mutant("policy.exact-is-prefix", kills=["GRANT-EXACT-001"], title="takes an exact path for a prefix")
def exact_is_prefix() -> None:
    edit.regions_where(lambda rule: rule.match == "exact" and hasattr(rule, "backend"), exact=False)


@mutant("policy.slash-counts", kills=["GRANT-EXACT-001"], title="counts a trailing slash")
def slash_counts() -> None:
    def change(request: Any, query: Any) -> Any:
        return replace(query, paths=query.paths[1:]) if request.path.endswith("/") else query

    edit.queries(change)


@mutant("policy.host-ignored", kills=["GRANT-HOST-001"], title="ignores the hosts of a grant")
def host_ignored() -> None:
    edit.regions_where(lambda rule: hasattr(rule, "backend"), hosts=None)


@mutant("policy.host-by-text", kills=["GRANT-HOST-001"], title="takes `*.` for any text before a name")
def host_by_text() -> None:
    def change(request: Any, query: Any) -> Any:
        host = request.host.lower().partition(":")[0]
        ends = tuple(f"*.{host[start:]}" for start in range(len(host)))
        return replace(query, hosts=(*query.hosts, *ends))

    edit.queries(change)


@mutant("policy.host-with-port", kills=["GRANT-HOST-001"], title="compares hosts with case and port")
def host_with_port() -> None:
    override(compiled, "canonical_host", lambda _sound: lambda text: text)


@mutant("policy.source-ignored", kills=["GRANT-SOURCE-001"], title="ignores the sources of a grant")
def source_ignored() -> None:
    edit.regions_where(lambda rule: hasattr(rule, "backend"), sources=None)


@mutant("policy.account-ignored", kills=["GRANT-ACCOUNT-001"], title="compares roles by name alone")
def account_ignored() -> None:
    def change(policy: Any, identity: Any, request: Any) -> Any:
        by_name = {arn.name: arn for arn in policy._name_of}
        return replace(identity, roles=tuple(by_name.get(arn.name, arn) for arn in identity.roles)), request

    edit.asked(change)


@mutant("policy.partition-ignored", kills=["GRANT-ACCOUNT-001"], title="compares roles without partition")
def partition_ignored() -> None:
    def change(_policy: Any, identity: Any, request: Any) -> Any:
        return replace(
            identity, roles=tuple(replace(arn, partition="aws") for arn in identity.roles)
        ), request

    edit.asked(change)


@mutant(
    "policy.session-is-a-stranger",
    kills=["GRANT-SPELLING-001"],
    title="takes an assumed-role ARN for a role of its own",
)
def session_is_a_stranger() -> None:
    def make(sound: Any) -> Any:
        def parse(text: str) -> Any:
            found = sound(text)
            return replace(found, name=f"{found.name}@session") if ":sts:" in text else found

        return staticmethod(parse)

    override(RoleArn, "parse", make)


@mutant(
    "policy.skips-malformed",
    kills=["GRANT-MALFORMED-001"],
    title="skips malformed roles and takes the others",
)
def skips_malformed() -> None:
    def sound_one(entry: Any) -> bool:
        try:
            RoleArn.parse(entry)
        except (Refusal, TypeError):
            return False
        return True

    def make(sound: Any) -> Any:
        def roles(self: Any, value: Any) -> Any:
            entries = [value] if isinstance(value, str) else value
            kept = [entry for entry in entries if sound_one(entry)] if isinstance(entries, list) else entries
            return sound(self, kept)

        return roles

    override(ClaimRules, "_roles", make)


@mutant("policy.first-match", kills=["GRANT-SPECIFIC-001"], title="takes the grant that the file has first")
def first_match() -> None:
    def best(self: Any, roles: Any, query: Any) -> Any:
        return min(self.matches(roles, query), key=lambda rule: rule.id, default=None)

    Index.best = best


@mutant("policy.exact-not-first", kills=["GRANT-SPECIFIC-001"], title="lets a prefix go before an exact path")
def exact_not_first() -> None:
    def best(self: Any, roles: Any, query: Any) -> Any:
        found = list(self.matches(roles, query))
        return min(found, key=lambda rule: (rule.region.exact, rule.rank), default=None)

    Index.best = best


# --- denies


@mutant("policy.deny-ignores-method", kills=["DENY-REGION-001"], title="ignores the methods of a deny")
def deny_ignores_method() -> None:
    edit.regions_where(lambda rule: not hasattr(rule, "backend"), methods=None)


@mutant("policy.deny-ignores-host", kills=["DENY-REGION-001"], title="ignores the hosts of a deny")
def deny_ignores_host() -> None:
    edit.regions_where(lambda rule: not hasattr(rule, "backend"), hosts=None)


@mutant("policy.deny-ignores-source", kills=["DENY-REGION-001"], title="ignores the sources of a deny")
def deny_ignores_source() -> None:
    edit.regions_where(lambda rule: not hasattr(rule, "backend"), sources=None)


@mutant("policy.deny-is-exact", kills=["DENY-REGION-001"], title="takes a deny for one of its path alone")
def deny_is_exact() -> None:
    edit.regions_where(lambda rule: not hasattr(rule, "backend"), exact=True)


@mutant("policy.deny-active-only", kills=["DENY-ALL-001"], title="looks at denies of the active role only")
def deny_active_only() -> None:
    def change(policy: Any, _identity: Any, _requested: Any, found: Any) -> Any:
        names = frozenset(name for arn in found.active if (name := policy._name_of.get(arn)))
        return replace(found, all_names=names)

    edit.roles(change)


@mutant("policy.deny-loses", kills=["DENY-ALL-001"], title="lets a grant that is as specific beat a deny")
def deny_loses() -> None:
    def make(sound: Any) -> Any:
        def first(self: Any, roles: Any, query: Any) -> Any:
            found = sound(self, roles, query)
            return None if found is not None and found.region.path == "/orders/export" else found

        return first

    override(Index, "first", make)


@mutant(
    "policy.every-is-every-mapped",
    kills=["DENY-EVERY-001"],
    title="holds a deny of `*` for mapped roles only",
)
def every_is_every_mapped() -> None:
    def make(sound: Any) -> Any:
        return lambda self, roles, query: sound(self, roles if len(tuple(roles)) > 1 else (), query)

    override(Index, "first", make)


# --- shadow rules


@mutant("policy.shadow-grant-enforced", kills=["SHADOW-GRANT-001"], title="enforces shadow grants")
def shadow_grant_enforced() -> None:
    def change(policy: Any) -> None:
        policy._grants = compiled.Index(map(compiled.compile_rule, policy.config.grants), deny=False)

    edit.built(change)


@mutant("policy.shadow-deny-enforced", kills=["SHADOW-DENY-001"], title="enforces shadow denies")
def shadow_deny_enforced() -> None:
    def change(policy: Any) -> None:
        policy._denies = compiled.Index(map(compiled.compile_rule, policy.config.denies), deny=True)

    edit.built(change)


# --- what no example shows


@mutant("policy.oracle-ipv6", kills=["ORACLE-AGREE-001"], title="never matches an IPv6 network")
def oracle_ipv6() -> None:
    def make(sound: Any) -> Any:
        def has_source(self: Any, address: Any) -> bool:
            return self.sources is None or (address.version == 4 and sound(self, address))

        return has_source

    override(Region, "has_source", make)


@mutant("policy.oracle-last-grant", kills=["ORACLE-AGREE-001"], title="forgets the last of many grants")
def oracle_last_grant() -> None:
    def change(policy: Any) -> None:
        enforced = [grant for grant in policy.config.grants[:6] if not grant.shadow]
        policy._grants = compiled.Index(map(compiled.compile_rule, enforced), deny=False)

    edit.built(change)


@mutant(
    "policy.oracle-trailing-slash", kills=["ORACLE-AGREE-001"], title="lets a trailing slash out of a deny"
)
def oracle_trailing_slash() -> None:
    def make(sound: Any) -> Any:
        def matches(self: Any, roles: Any, query: Any) -> Iterator[Any]:
            for rule in sound(self, roles, query):
                if not (self._deny and rule.region.exact and rule.region.sources):
                    yield rule

        return matches

    override(Index, "matches", make)


@mutant("policy.oracle-conflicts", kills=["ORACLE-LOAD-001"], title="loads conflicts where one method is `*`")
def oracle_conflicts() -> None:
    def make(sound: Any) -> Any:
        return lambda self, other: self.methods is not None and sound(self, other)

    override(Region, "meets", make)


@mutant(
    "policy.oracle-order", kills=["ORACLE-AGREE-001"], title="names the equal grant that the file has last"
)
def oracle_order() -> None:
    def best(self: Any, roles: Any, query: Any) -> Any:
        found = list(self.matches(roles, query))
        top = [rule for rule in found if rule.region.specificity == found[0].region.specificity]
        return top[-1] if top else None

    Index.best = best


@mutant("policy.oracle-proxy", kills=["ORACLE-PROXY-001"], title="names the longest backend name it knows")
def oracle_proxy() -> None:
    edit.decided(
        lambda policy, _identity, _request, found: (
            replace(found, backend=max((one.name for one in policy.config.backends), key=len))
            if found.allow
            else found
        )
    )
