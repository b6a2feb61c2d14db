"""Mutants of who acts, for how long and within which scope: ACTIVE, GRANT-UNION, LIMIT, SCOPE, AIAGENT."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from iamroles_agent.policy.compiled import Policy, Query
from iamroles_agent.serving.gate import Gate
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.mutants.policy import edits as edit
from iamroles_conformance.selftest.registry import Override, mutant

# --- which role counts
mutant("policy.union-tags-first", "GRANT-UNION-001", "tags the first role, not the one that granted")(
    edit.decided(
        lambda _policy, identity, _request, found: (
            replace(found, role=str(min(identity.roles))) if found.allow else found
        )
    )
)
mutant(
    "policy.union-is-first-role",
    "GRANT-UNION-001 ORACLE-ORDER-001",
    "takes the first role of the token for all",
)(
    edit.roles(
        lambda _policy, identity, _requested, found: (
            replace(found, active=identity.roles[:1]) if len(found.active) > 1 else found
        )
    )
)
mutant("policy.preferred-ignored", "ACTIVE-PREFERRED-001", "does not look at the preferred role")(
    edit.asked(lambda _policy, identity, request: (identity._replace(preferred=None), request))
)
mutant("policy.preferred-not-alone", "ACTIVE-PREFERRED-001", "keeps all roles beside the preferred")(
    edit.roles(
        lambda _policy, identity, requested, found: (
            replace(found, active=tuple(sorted(identity.roles)))
            if requested is None and identity.preferred in identity.roles
            else found
        )
    )
)


@mutant(
    "policy.preferred-taken", "ACTIVE-PREFERRED-002", "takes a preferred role that is not among the token's"
)
@around(Policy, "_roles_of")
def preferred_taken(sound: Any, self: Any, identity: Any, requested: str | None) -> Any:
    if requested is None and identity.preferred is not None:
        identity = identity._replace(roles=(*identity.roles, identity.preferred))
    return sound(self, identity, requested)


@mutant(
    "policy.preferred-over-request",
    "ACTIVE-REQUEST-001",
    "lets the preferred role go before the requested one",
)
@edit.asked
def preferred_over_request(_policy: Any, identity: Any, request: Any) -> Any:
    wins = identity.preferred in identity.roles
    return identity, replace(request, requested_role=None) if wins else request


mutant("policy.union-over-request", "ACTIVE-REQUEST-001", "ignores the requested role under union")(
    edit.asked(
        lambda policy, identity, request: (
            identity,
            replace(request, requested_role=None) if policy._union else request,
        )
    )
)


@mutant("policy.unmapped-dropped", "ACTIVE-UNMAPPED-001", "does not count roles without a mapping")
@edit.asked
def unmapped_dropped(policy: Any, identity: Any, request: Any) -> Any:
    mapped = tuple(arn for arn in identity.roles if arn in policy._name_of)
    return identity._replace(roles=mapped or identity.roles), request


# --- for how long
mutant(
    "policy.lifetime-ignored",
    "LIMIT-ROLE-001 LIMIT-ROLE-002 LIMIT-LEAST-001",
    "ignores the lifetime of a role",
)(edit.built(lambda policy: policy._lifetime.clear()))


@mutant("policy.lifetime-from-now", "LIMIT-ROLE-001", "counts a role's lifetime from the request")
@edit.asked
def lifetime_from_now(_policy: Any, identity: Any, request: Any) -> Any:
    return identity._replace(issued_at=int(time.time())), request


@mutant("policy.lifetime-of-all", "LIMIT-LEAST-001", "lets the longest of several lifetimes hold")
@around(Policy, "_allowed")
def lifetime_of_all(sound: Any, self: Any, base: Any, identity: Any, able: Any, grant: Any) -> Any:
    each = [sound(self, base, identity, [arn], grant) for arn in able if self._name_of[arn] in grant.roles]
    return max(each, key=lambda found: found.expires)


def _remembers_until(end: float) -> Override:
    @around(Gate, "_remember")
    def remember(sound: Any, self: Any, state: Any, key: bytes, verdict: Any) -> None:
        sound(self, state, key, replace(verdict, expires=int(end)))

    return remember


mutant("policy.remembers-for-good", "LIMIT-ROLE-002", "remembers a verdict beyond the role's end")(
    _remembers_until(time.time() + 86400)
)
mutant("policy.session-goes-on", "AIAGENT-EXPIRY-001", "remembers a verdict beyond the session's end")(
    _remembers_until(time.time() + 86400)
)

# --- within which scope
mutant("policy.scope-ignored", "SCOPE-BOTH-001 AIAGENT-SCOPE-001", "does not look at scopes")(
    edit.asked(lambda _policy, identity, request: (identity._replace(scopes=None), request))
)


@mutant("policy.scope-is-a-grant", "SCOPE-BOTH-001", "lets a scope open what no grant does")
@edit.decided
def scope_is_a_grant(policy: Any, identity: Any, request: Any, found: Any) -> Any:
    if (
        found.reason == "no_grant"
        and identity.scopes
        and any(policy._scopes.matches(identity.scopes, Query.from_request(request)))
    ):
        backend = policy.config.backends[0].name
        return replace(found, allow=True, reason=None, backend=backend, rule="none")
    return found


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
