"""Mutants of rules: GRANT, DENY, SHADOW, and what only the oracle finds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from iamroles_agent.base.identity import RoleArn
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.policy import compiled, groups
from iamroles_agent.policy.compiled import Index
from iamroles_agent.policy.regions import Region
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.edits import is_deny, is_grant
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import mutant

_KNOWN_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

# --- grants


def _texts(path: str) -> tuple[str, ...]:
    return tuple(path[:end] for end in range(len(path), 0, -1))


@mutant("policy.host-by-text", "GRANT-HOST-001", "takes `*.` for any text before a name")
@edit.queries
def host_by_text(request: Any, query: Any) -> Any:
    host = request.host.lower().partition(":")[0]
    ends = tuple(f"*.{host[start:]}" for start in range(len(host)))
    return replace(query, hosts=(*query.hosts, *ends))


@mutant("policy.session-is-a-stranger", "GRANT-SPELLING-001", "takes an assumed-role ARN for another role")
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


@mutant("policy.skips-malformed", "GRANT-MALFORMED-001", "skips malformed roles and takes the others")
@around(ClaimRules, "_roles")
def skips_malformed(sound: Any, self: Any, value: Any) -> Any:
    entries = [value] if isinstance(value, str) else value
    return sound(self, list(filter(_well_formed, entries)) if isinstance(entries, list) else entries)


mutant("policy.default-allow", "GRANT-DEFAULT-001", "allows what no rule speaks of")(
    edit.opened(lambda found, *_: found.reason == "no_grant")
)
mutant("policy.group-of-one", "GRANT-GROUP-001", "takes a group for the first of its roles only")(
    around(groups, "members_of")(
        lambda sound, given: {name: roles[:1] for name, roles in sound(given).items()}
    )
)
mutant("policy.head-is-get", "GRANT-METHOD-001", "takes HEAD for GET")(
    edit.queries(
        lambda request, query: replace(query, method="GET" if request.method == "HEAD" else query.method)
    )
)
mutant("policy.method-any-case", "GRANT-METHOD-001", "compares methods without case")(
    edit.queries(lambda _request, query: replace(query, method=query.method.upper()))
)
mutant("policy.star-is-known-methods", "GRANT-METHOD-001", "takes `*` for the methods of RFC 9110")(
    edit.queries(
        lambda _request, query: query if query.method in _KNOWN_METHODS else replace(query, paths=())
    )
)
mutant("policy.prefix-of-text", "GRANT-PREFIX-001", "takes a prefix for a beginning of text")(
    edit.queries(lambda request, query: replace(query, paths=(query.paths[0], *_texts(request.path))))
)
mutant("policy.path-any-case", "GRANT-PREFIX-001", "compares paths without case")(
    edit.requests(lambda _policy, _identity, request: replace(request, path=request.path.lower()))
)
mutant("policy.exact-is-prefix", "GRANT-EXACT-001", "takes an exact path for a prefix")(
    edit.regions(lambda rule: rule.match == "exact" and is_grant(rule), exact=False)
)
mutant("policy.slash-counts", "GRANT-EXACT-001", "counts a trailing slash")(
    edit.queries(
        lambda request, query: replace(query, paths=query.paths[1:]) if request.path.endswith("/") else query
    )
)
mutant("policy.host-ignored", "GRANT-HOST-001", "ignores the hosts of a grant")(
    edit.regions(is_grant, hosts=None)
)
mutant("policy.host-with-port", "GRANT-HOST-001", "compares hosts with case and port")(
    around(compiled, "canonical_host")(lambda _sound, text: text)
)
mutant("policy.source-ignored", "GRANT-SOURCE-001", "ignores the sources of a grant")(
    edit.regions(is_grant, sources=None)
)
mutant("policy.account-ignored", "GRANT-ACCOUNT-001", "compares roles by name alone")(edit.by_name)
mutant("policy.partition-ignored", "GRANT-ACCOUNT-001", "compares roles without partition")(
    edit.identities(
        lambda _policy, identity: identity._replace(
            roles=tuple(replace(arn, partition="aws") for arn in identity.roles)
        )
    )
)
mutant("policy.first-match", "GRANT-SPECIFIC-001", "takes the grant that the file has first")(
    edit.best_grant(lambda found: min(found, key=lambda rule: rule.id))
)
mutant("policy.exact-not-first", "GRANT-SPECIFIC-001", "lets a prefix go before an exact path")(
    edit.best_grant(lambda found: min(found, key=lambda rule: (rule.region.exact, rule.rank)))
)

# --- denies


def _overlooked(found: Any) -> Any:
    return None if found is not None and found.region.path == "/orders/export" else found


mutant("policy.deny-ignores-method", "DENY-REGION-001", "ignores the methods of a deny")(
    edit.regions(is_deny, methods=None)
)
mutant("policy.deny-ignores-host", "DENY-REGION-001", "ignores the hosts of a deny")(
    edit.regions(is_deny, hosts=None)
)
mutant("policy.deny-ignores-source", "DENY-REGION-001", "ignores the sources of a deny")(
    edit.regions(is_deny, sources=None)
)
mutant("policy.deny-is-exact", "DENY-REGION-001", "takes a deny for one of its path alone")(
    edit.regions(is_deny, exact=True)
)
mutant("policy.deny-active-only", "DENY-ALL-001", "looks at denies of the active role only")(
    edit.denies_of_active_role
)
mutant("policy.deny-loses", "DENY-ALL-001", "lets a grant that is as specific beat a deny")(
    around(Index, "first")(lambda sound, self, roles, query: _overlooked(sound(self, roles, query)))
)
mutant("policy.every-is-every-mapped", "DENY-EVERY-001", "holds a deny of `*` for mapped roles only")(
    around(Index, "first")(
        lambda sound, self, roles, query: sound(self, roles if len(tuple(roles)) > 1 else (), query)
    )
)

# --- shadow rules, and what no example shows


def _index(rules: Iterable[Any], *, deny: bool = False) -> Index:
    return Index(map(compiled.compile_rule, rules), deny=deny)


@mutant("policy.oracle-last-grant", "ORACLE-AGREE-001", "forgets the last of many grants")
@edit.built
def oracle_last_grant(policy: Any) -> None:
    policy._grants = _index(grant for grant in policy.config.grants[:6] if not grant.shadow)


@mutant("policy.oracle-trailing-slash", "ORACLE-AGREE-001", "lets a trailing slash out of a deny")
@around(Index, "matches")
def oracle_trailing_slash(sound: Any, self: Any, roles: Any, query: Any) -> Iterator[Any]:
    for rule in sound(self, roles, query):
        if not (self._deny and rule.region.exact and rule.region.sources):
            yield rule


mutant("policy.shadow-grant-enforced", "SHADOW-GRANT-001", "enforces shadow grants")(
    edit.built(lambda policy: setattr(policy, "_grants", _index(policy.config.grants)))
)
mutant("policy.shadow-deny-enforced", "SHADOW-DENY-001", "enforces shadow denies")(
    edit.built(lambda policy: setattr(policy, "_denies", _index(policy.config.denies, deny=True)))
)
mutant("policy.oracle-ipv6", "ORACLE-AGREE-001", "never matches an IPv6 network")(
    around(Region, "has_source")(
        lambda sound, self, address: self.sources is None or (address.version == 4 and sound(self, address))
    )
)
mutant("policy.oracle-conflicts", "ORACLE-LOAD-001", "loads conflicts where one method is `*`")(
    around(Region, "meets")(lambda sound, self, *other: self.methods is not None and sound(self, *other))
)
mutant("policy.oracle-order", "ORACLE-AGREE-001", "names the equal grant that the file has last")(
    edit.best_grant(
        lambda found: [rule for rule in found if rule.region.specificity == found[0].region.specificity][-1]
    )
)
mutant("policy.oracle-proxy", "ORACLE-PROXY-001", "names the longest backend name it knows")(
    edit.granted(
        lambda _found, policy, *_: {"backend": max((one.name for one in policy.config.backends), key=len)}
    )
)
