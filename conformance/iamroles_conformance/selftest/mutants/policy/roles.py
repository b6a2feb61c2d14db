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
from iamroles_conformance.selftest.registry import Apply, mutant

# --- which role counts


mutant(
    "policy.union-tags-first",
    kills=["GRANT-UNION-001"],
    title="tags the first role, not the one that granted",
    apply=edit.decided(
        lambda _policy, identity, _request, found: (
            replace(found, role=str(min(identity.roles))) if found.allow else found
        )
    ),
)


mutant(
    "policy.union-is-first-role",
    kills=["GRANT-UNION-001", "ORACLE-ORDER-001"],
    title="takes the first role of the token for all",
    apply=edit.roles(
        lambda _policy, identity, _requested, found: (
            replace(found, active=identity.roles[:1]) if len(found.active) > 1 else found
        )
    ),
)


mutant(
    "policy.preferred-ignored",
    kills=["ACTIVE-PREFERRED-001"],
    title="does not look at the preferred role",
    apply=edit.asked(lambda _policy, identity, request: (identity._replace(preferred=None), request)),
)


mutant(
    "policy.preferred-not-alone",
    kills=["ACTIVE-PREFERRED-001"],
    title="keeps all roles beside the preferred",
    apply=edit.roles(
        lambda _policy, identity, requested, found: (
            replace(found, active=tuple(sorted(identity.roles)))
            if requested is None and identity.preferred in identity.roles
            else found
        )
    ),
)


@mutant(
    "policy.preferred-taken",
    kills=["ACTIVE-PREFERRED-002"],
    title="takes a preferred role that is not among the token's",
)
@around(Policy, "_roles_of")
def preferred_taken(sound: Any, self: Any, identity: Any, requested: str | None) -> Any:
    if requested is None and identity.preferred is not None:
        identity = identity._replace(roles=(*identity.roles, identity.preferred))
    return sound(self, identity, requested)


@mutant(
    "policy.preferred-over-request",
    kills=["ACTIVE-REQUEST-001"],
    title="lets the preferred role go before the requested one",
)
@edit.asked
def preferred_over_request(_policy: Any, identity: Any, request: Any) -> Any:
    wins = identity.preferred in identity.roles
    return identity, replace(request, requested_role=None) if wins else request


mutant(
    "policy.union-over-request",
    kills=["ACTIVE-REQUEST-001"],
    title="ignores the requested role under union",
    apply=edit.asked(
        lambda policy, identity, request: (
            identity,
            replace(request, requested_role=None) if policy._union else request,
        )
    ),
)


@mutant(
    "policy.unmapped-dropped", kills=["ACTIVE-UNMAPPED-001"], title="does not count roles without a mapping"
)
@edit.asked
def unmapped_dropped(policy: Any, identity: Any, request: Any) -> Any:
    mapped = tuple(arn for arn in identity.roles if arn in policy._name_of)
    return identity._replace(roles=mapped or identity.roles), request


# --- for how long


mutant(
    "policy.lifetime-ignored",
    kills=["LIMIT-ROLE-001", "LIMIT-ROLE-002", "LIMIT-LEAST-001"],
    title="ignores the lifetime of a role",
    apply=edit.built(lambda policy: policy._lifetime.clear()),
)


@mutant(
    "policy.lifetime-from-now", kills=["LIMIT-ROLE-001"], title="counts a role's lifetime from the request"
)
@edit.asked
def lifetime_from_now(_policy: Any, identity: Any, request: Any) -> Any:
    return identity._replace(issued_at=int(time.time())), request


@mutant(
    "policy.lifetime-of-all", kills=["LIMIT-LEAST-001"], title="lets the longest of several lifetimes hold"
)
@around(Policy, "_allowed")
def lifetime_of_all(sound: Any, self: Any, base: Any, identity: Any, able: Any, grant: Any) -> Any:
    each = [sound(self, base, identity, [arn], grant) for arn in able if self._name_of[arn] in grant.roles]
    return max(each, key=lambda found: found.expires)


def _remembers_until(end: float) -> Apply:
    @around(Gate, "_remember")
    def remember(sound: Any, self: Any, state: Any, key: bytes, verdict: Any) -> None:
        sound(self, state, key, replace(verdict, expires=int(end)))

    return remember


mutant(
    "policy.remembers-for-good",
    kills=["LIMIT-ROLE-002"],
    title="remembers a verdict beyond the role's end",
    apply=_remembers_until(time.time() + 86400),
)


mutant(
    "policy.session-goes-on",
    kills=["AIAGENT-EXPIRY-001"],
    title="remembers a verdict beyond the session's end",
    apply=_remembers_until(time.time() + 86400),
)


# --- within which scope


mutant(
    "policy.scope-ignored",
    kills=["SCOPE-BOTH-001", "AIAGENT-SCOPE-001"],
    title="does not look at scopes",
    apply=edit.asked(lambda _policy, identity, request: (identity._replace(scopes=None), request)),
)


@mutant("policy.scope-is-a-grant", kills=["SCOPE-BOTH-001"], title="lets a scope open what no grant does")
@edit.decided
def scope_is_a_grant(policy: Any, identity: Any, request: Any, found: Any) -> Any:
    if (
        found.reason == "no_grant"
        and identity.scopes
        and any(policy._scopes.matches(identity.scopes, Query.of(request)))
    ):
        backend = policy.config.backends[0].name
        return replace(found, allow=True, reason=None, backend=backend, rule="none")
    return found


def _scopes(split: Any) -> Apply:
    return around(ClaimRules, "_scopes")(lambda sound, self, value: split(sound(self, value)))


mutant(
    "policy.scope-any-case",
    kills=["SCOPE-FORM-001"],
    title="compares scopes without case",
    apply=_scopes(lambda found: None if found is None else frozenset(one.lower() for one in found)),
)


mutant(
    "policy.scope-comma",
    kills=["SCOPE-FORM-001"],
    title="splits scopes at commas too",
    apply=_scopes(
        lambda found: None if found is None else frozenset(part for one in found for part in one.split(","))
    ),
)


mutant(
    "policy.scope-first-only",
    kills=["SCOPE-FORM-001"],
    title="looks at one scope of several",
    apply=_scopes(lambda found: found and frozenset({max(found)})),
)


mutant(
    "policy.scope-optional",
    kills=["SCOPE-NONE-001"],
    title="takes a token without scopes for unrestricted",
    apply=_scopes(lambda found: found or None),
)
