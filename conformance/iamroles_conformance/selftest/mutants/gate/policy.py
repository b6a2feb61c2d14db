"""Mutants of the policy as the gate lane sees it: GATE-ALLOW, ROLE, PATH, POLICY."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy import checks
from iamroles_agent.policy.compiled import Index, Policy
from iamroles_agent.serving import gate
from iamroles_agent.serving.gate import Gate
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.mutants.policy import edits as edit
from iamroles_conformance.selftest.registry import mutant

mutant("gate.denies-all", "GATE-ALLOW-001", "allows nothing")(
    edit.decided(
        lambda policy, identity, request, found: (
            replace(found, allow=False, reason=Reason.NO_GRANT, backend="") if found.allow else found
        )
    )
)


@mutant("gate.wrong-backend", "GATE-ALLOW-001", "names the first backend for every grant")
@edit.decided
def wrong_backend(policy: Any, _identity: Any, _request: Any, found: Any) -> Any:
    names = sorted(backend.name for backend in policy.config.backends)
    return replace(found, backend=names[0]) if found.allow else found


mutant("gate.tags-all-roles", "GATE-TAG-001", "leaves the principal and the session out of the tags")(
    edit.decided(lambda _policy, _identity, _request, found: replace(found, session="", principal=""))
)


@edit.asked
def unknown_role_is_known(policy: Any, identity: Any, request: Any) -> Any:
    """A role that the policy does not map counts as its first one."""
    first = min(policy._name_of)
    roles = tuple(arn if arn in policy._name_of else first for arn in identity.roles)
    return identity._replace(roles=roles), request


@mutant("gate.allows-unknown-role", "ROLE-UNKNOWN-001", "allows an unknown role")
@edit.decided
def allows_unknown_role(policy: Any, identity: Any, _request: Any, found: Any) -> Any:
    if identity.roles and not any(arn in policy._name_of for arn in identity.roles):
        backend = policy.config.backends[0].name
        return replace(found, allow=True, reason=None, backend=backend, rule="none", role="none")
    return found


mutant("gate.ignores-account", "ROLE-ACCOUNT-001", "compares roles by name alone")(edit.by_name)


@around(ClaimRules, "_roles")
def _no_roles(sound: Any, self: Any, value: Any) -> Any:
    try:
        return sound(self, value)
    except Refusal:
        return ()


@mutant("gate.no-role-is-any", "ROLE-MISSING-001", "allows a token without roles", _no_roles)
@edit.decided
def _no_role_is_any(policy: Any, identity: Any, _request: Any, found: Any) -> Any:
    if identity.roles:
        return found
    return replace(found, allow=True, reason=None, backend=policy.config.backends[0].name, rule="any")


@mutant("gate.every-role-every-route", "ROLE-ROUTE-001", "opens every route to every mapped role")
@around(Index, "best")
def every_role_every_route(sound: Any, self: Any, roles: Any, query: Any) -> Any:
    found = sound(self, list(self._roles), query) if set(roles) - {"*"} else None
    return found and replace(found, roles=frozenset(roles))


@mutant("gate.ignores-method", "ROLE-ROUTE-001", "ignores the methods of a grant")
@around(Index, "_at")
def ignores_method(_sound: Any, _self: Any, by_method: Any, query: Any) -> Iterator[Any]:
    for by_host in by_method.values():
        for host in query.hosts:
            yield from by_host.get(host, ())


mutant("gate.union-always", "ROLE-OVERLAP-001", "unites all roles where the policy says deny")(
    edit.built(lambda policy: setattr(policy, "_union", True))
)
mutant("gate.union-never", "ROLE-OVERLAP-004", "refuses several roles where the policy says union")(
    edit.built(lambda policy: setattr(policy, "_union", False))
)


@mutant("gate.request-adds-nothing", "ROLE-OVERLAP-002", "keeps all roles active beside the requested")
@around(Policy, "_roles_of")
def request_adds_nothing(sound: Any, self: Any, identity: Any, requested: str | None) -> Any:
    found = sound(self, identity, requested)
    return replace(found, active=tuple(sorted(identity.roles))) if requested else found


@mutant("gate.request-ignored", "ROLE-OVERLAP-003", "ignores a requested role that is not carried")
@around(Policy, "_roles_of")
def request_ignored(sound: Any, self: Any, identity: Any, requested: str | None) -> Any:
    try:
        return sound(self, identity, requested)
    except Refusal:
        if not requested or not identity.roles:
            raise
        first = sound(self, identity._replace(roles=identity.roles[:1]), None)
        return replace(first, active=tuple(sorted(identity.roles)))


mutant("gate.denies-active-only", "ROLE-DENY-001", "looks at denies of the active role only")(
    edit.denies_of_active_role
)
mutant("gate.shortest-path-wins", "ROLE-SPECIFIC-001", "lets the least specific grant win")(
    edit.best_grant(lambda found: found[-1])
)
mutant("gate.loads-conflicts", "POLICY-CONFLICT-001", "loads a policy whose grants conflict")(
    setting(checks, "_conflicts", lambda sound: iter(()))
)


@mutant(
    "gate.memory-survives-reload",
    "POLICY-RELOAD-001",
    "keeps remembered verdicts over a reload",
    edit.memory_kept,
)
@around(Gate, "recall")
def _recall_anything(_sound: Any, self: Any, key: bytes, _context: Any) -> Any:
    verdict = self._state.young.get(key)
    return verdict.actions if verdict else None


# --- paths
mutant("gate.any-path", "PATH-AMBIGUOUS-001", "judges ambiguous paths as they stand")(
    edit.canonical(lambda _sound, path: path)
)


@mutant("gate.prefix-of-text", "PATH-SEGMENT-001", "takes `/ordersx` for below `/orders`")
@edit.queries
def prefix_of_text(request: Any, query: Any) -> Any:
    path = request.path
    texts = tuple(path[:end] for end in range(len(path), 1, -1))
    return replace(query, paths=(*query.paths[:1], *texts, *query.paths[1:]))


@mutant("gate.encoded-differs", "PATH-NORMAL-001", "does not decode unreserved characters")
@around(gate, "canonical")
def encoded_differs(sound: Any, path: str) -> str:
    if re.search("%[2-7][0-9A-Fa-f]", path):
        raise Refusal(Reason.PATH_AMBIGUOUS, "encoded")
    return str(sound(path))
