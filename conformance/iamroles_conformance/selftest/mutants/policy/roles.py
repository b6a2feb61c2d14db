"""Mutants of who acts, for how long and within which scope: ACTIVE, GRANT-UNION, LIMIT, SCOPE, AIAGENT."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iamroles_agent.policy.compiled import Policy, Query
from iamroles_agent.serving.gate import Gate
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import Override, mutant

# --- which role counts


def _unrequested(when: Callable[[Any, Any], Any]) -> Override:
    """Drop the requested role if `when(policy, identity)`."""
    return edit.requests(
        lambda policy, identity, request: (
            replace(request, requested_role=None) if when(policy, identity) else request
        )
    )


@edit.identities
def _mapped_alone(policy: Any, identity: Any) -> Any:
    mapped = tuple(arn for arn in identity.roles if arn in policy._name_of)
    return identity._replace(roles=mapped or identity.roles)


@mutant("policy.preferred-taken", "ACTIVE-PREFERRED-002", "takes a preferred role that the token lacks")
@around(Policy, "_roles_of")
def preferred_taken(sound: Any, self: Any, identity: Any, requested: str | None) -> Any:
    if requested is None and identity.preferred is not None:
        identity = identity._replace(roles=(*identity.roles, identity.preferred))
    return sound(self, identity, requested)


mutant("policy.union-tags-first", "GRANT-UNION-001", "tags the first role, not the role that granted")(
    edit.granted(lambda _found, _policy, identity, _request: {"role": str(min(identity.roles))})
)
mutant(
    "policy.union-is-first-role", "GRANT-UNION-001 ORACLE-ORDER-001", "takes a token's first role for all"
)(
    edit.roles(
        lambda found, _policy, identity, _asked: (
            replace(found, active=identity.roles[:1]) if len(found.active) > 1 else found
        )
    )
)
mutant("policy.union-by-partition", "DERIVED-KEY-001", "orders ARNs by their partition, not by text")(
    edit.roles(lambda found, *_asked: replace(found, active=tuple(sorted(found.active))))
)
mutant("policy.preferred-ignored", "ACTIVE-PREFERRED-001", "does not look at the preferred role")(
    edit.identities(lambda _policy, identity: identity._replace(preferred=None))
)
mutant("policy.preferred-not-alone", "ACTIVE-PREFERRED-001", "keeps all roles beside the preferred")(
    edit.roles(
        lambda found, _policy, identity, asked: (
            replace(found, active=tuple(sorted(identity.roles)))
            if asked is None and identity.preferred in identity.roles
            else found
        )
    )
)
mutant("policy.preferred-over-request", "ACTIVE-REQUEST-001", "prefers the preferred role to the requested")(
    _unrequested(lambda _policy, identity: identity.preferred in identity.roles)
)
mutant("policy.union-over-request", "ACTIVE-REQUEST-001", "ignores the requested role under union")(
    _unrequested(lambda policy, _identity: policy._union)
)
mutant("policy.unmapped-dropped", "ACTIVE-UNMAPPED-001", "does not count roles without a mapping")(
    _mapped_alone
)

# --- for how long


@mutant("policy.lifetime-of-all", "LIMIT-LEAST-001", "lets the longest of several lifetimes hold")
@around(Policy, "_allowed")
def lifetime_of_all(sound: Any, self: Any, base: Any, identity: Any, able: Any, grant: Any) -> Any:
    each = [sound(self, base, identity, [arn], grant) for arn in able if self._name_of[arn] in grant.roles]
    return max(each, key=lambda found: found.expires)


_remembers_a_day = around(Gate, "_remember")(
    lambda sound, self, state, key, verdict: sound(
        self, state, key, replace(verdict, expires=int(time.time()) + 86400)
    )
)
mutant(
    "policy.lifetime-ignored", "LIMIT-ROLE-001 LIMIT-ROLE-002 LIMIT-LEAST-001", "ignores roles' lifetimes"
)(edit.built(lambda policy: policy._lifetime.clear()))
mutant("policy.lifetime-from-now", "LIMIT-ROLE-001", "counts a role's lifetime from the request")(
    edit.identities(lambda _policy, identity: identity._replace(issued_at=int(time.time())))
)
mutant("policy.remembers-for-good", "LIMIT-ROLE-002", "remembers a verdict beyond the role's end")(
    _remembers_a_day
)
mutant("policy.session-goes-on", "AIAGENT-EXPIRY-001", "remembers a verdict beyond the session's end")(
    _remembers_a_day
)

# --- within which scope


def _scope_covers(found: Any, policy: Any, identity: Any, request: Any) -> bool:
    scopes = identity.scopes if found.reason == "no_grant" else None
    return bool(scopes) and any(policy._scopes.matches(scopes, Query.from_request(request)))


def _scopes(split: Any) -> Override:
    return around(ClaimRules, "_scopes")(lambda sound, self, value: split(sound(self, value)))


mutant("policy.scope-any-case", "SCOPE-FORM-001", "compares scopes without case")(
    _scopes(lambda found: None if found is None else frozenset(one.lower() for one in found))
)
mutant("policy.scope-comma", "SCOPE-FORM-001", "splits scopes at commas too")(
    _scopes(
        lambda found: None if found is None else frozenset(part for one in found for part in one.split(","))
    )
)
mutant("policy.scope-first-only", "SCOPE-FORM-001", "looks at one scope of several")(
    _scopes(lambda found: found and frozenset({max(found)}))
)
mutant("policy.scope-optional", "SCOPE-NONE-001", "takes a token without scopes for unrestricted")(
    _scopes(lambda found: found or None)
)
mutant("policy.scope-ignored", "SCOPE-BOTH-001 AIAGENT-SCOPE-001", "does not look at scopes")(
    edit.identities(lambda _policy, identity: identity._replace(scopes=None))
)
mutant("policy.scope-is-a-grant", "SCOPE-BOTH-001", "lets a scope open what no grant does")(
    edit.opened(_scope_covers)
)
