"""Mutants of the policy as the gate lane sees it: GATE-ALLOW, ROLE, PATH, POLICY."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from iamroles_agent import gate
from iamroles_agent.gate import Gate
from iamroles_agent.policy import checks, compiled
from iamroles_agent.policy.compiled import Index, Policy
from iamroles_agent.reasons import Reason, Refusal
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant


def _policy(name: str, make: Any) -> None:
    override(Policy, name, make)


def _decided(edit: Any) -> None:
    """Change each decision; `edit` gets the policy, the identity, the request and the decision."""

    def make(sound: Any) -> Any:
        def decide(self: Any, identity: Any, request: Any, now: float | None = None) -> Any:
            return edit(self, identity, request, sound(self, identity, request, now))

        return decide

    _policy("decide", make)


@mutant("gate.denies-all", kills=["GATE-ALLOW-001"], title="allows nothing")
def denies_all() -> None:
    _decided(
        lambda policy, identity, request, found: (
            replace(found, allow=False, reason=Reason.NO_GRANT, backend="") if found.allow else found
        )
    )


@mutant("gate.wrong-backend", kills=["GATE-ALLOW-001"], title="names the first backend for every grant")
def wrong_backend() -> None:
    def edit(policy: Any, _identity: Any, _request: Any, found: Any) -> Any:
        names = sorted(backend.name for backend in policy.config.backends)
        return replace(found, backend=names[0]) if found.allow else found

    _decided(edit)


@mutant("gate.tags-all-roles", kills=["GATE-TAG-001"], title="tags the rule and not the session")
def tags_all_roles() -> None:
    _decided(lambda policy, identity, request, found: replace(found, session="", principal=""))


def unknown_role_is_known() -> None:
    """A role that the policy does not map counts as its first one."""

    def make(sound: Any) -> Any:
        def decide(self: Any, identity: Any, request: Any, now: float | None = None) -> Any:
            first = min(self._name_of)
            roles = tuple(arn if arn in self._name_of else first for arn in identity.roles)
            return sound(self, identity._replace(roles=roles), request, now)

        return decide

    _policy("decide", make)


@mutant("gate.allows-unknown-role", kills=["ROLE-UNKNOWN-001"], title="allows an unknown role")
def allows_unknown_role() -> None:
    def edit(policy: Any, identity: Any, _request: Any, found: Any) -> Any:
        if identity.roles and not any(arn in policy._name_of for arn in identity.roles):
            backend = policy.config.backends[0].name
            return replace(found, allow=True, reason=None, backend=backend, rule="none", role="none")
        return found

    _decided(edit)


@mutant("gate.ignores-account", kills=["ROLE-ACCOUNT-001"], title="compares roles by name alone")
def ignores_account() -> None:

    def make(sound: Any) -> Any:
        def decide(self: Any, identity: Any, request: Any, now: float | None = None) -> Any:
            by_name = {arn.name: arn for arn in self._name_of}
            roles = tuple(by_name.get(arn.name, arn) for arn in identity.roles)
            return sound(self, identity._replace(roles=roles), request, now)

        return decide

    _policy("decide", make)


@mutant("gate.no-role-is-any", kills=["ROLE-MISSING-001"], title="allows a token without roles")
def no_role_is_any() -> None:
    def make_roles(sound: Any) -> Any:
        def roles(self: Any, value: Any) -> Any:
            try:
                return sound(self, value)
            except Refusal:
                return ()

        return roles

    def edit(policy: Any, identity: Any, _request: Any, found: Any) -> Any:
        if identity.roles:
            return found
        return replace(found, allow=True, reason=None, backend=policy.config.backends[0].name, rule="any")

    override(ClaimRules, "_roles", make_roles)
    _decided(edit)


@mutant(
    "gate.every-role-every-route", kills=["ROLE-ROUTE-001"], title="opens every route to every mapped role"
)
def every_role_every_route() -> None:
    def make(sound: Any) -> Any:
        return lambda self, roles, query: sound(self, list(self._roles), query)

    override(Index, "best", make)


@mutant("gate.ignores-method", kills=["ROLE-ROUTE-001"], title="ignores the methods of a grant")
def ignores_method() -> None:
    def at(_self: Any, by_method: Any, query: Any) -> Iterator[Any]:
        for by_host in by_method.values():
            for host in query.hosts:
                yield from by_host.get(host, ())

    Index._at = at


def _roles_of(make: Any) -> None:
    _policy("_roles_of", make)


@mutant("gate.union-always", kills=["ROLE-OVERLAP-001"], title="unites all roles where the policy says deny")
def union_always() -> None:
    def make(sound: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            sound(self, *args, **kwargs)
            self._union = True

        return init

    _policy("__init__", make)


@mutant(
    "gate.union-never", kills=["ROLE-OVERLAP-004"], title="refuses several roles where the policy says union"
)
def union_never() -> None:
    def make(sound: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            sound(self, *args, **kwargs)
            self._union = False

        return init

    _policy("__init__", make)


@mutant(
    "gate.request-adds-nothing",
    kills=["ROLE-OVERLAP-002"],
    title="keeps all roles active beside the requested",
)
def request_adds_nothing() -> None:
    def make(sound: Any) -> Any:
        def roles_of(self: Any, identity: Any, requested: str | None) -> Any:
            found = sound(self, identity, requested)
            return replace(found, active=tuple(sorted(identity.roles))) if requested else found

        return roles_of

    _roles_of(make)


@mutant(
    "gate.request-ignored", kills=["ROLE-OVERLAP-003"], title="ignores a requested role that is not carried"
)
def request_ignored() -> None:
    def make(sound: Any) -> Any:
        def roles_of(self: Any, identity: Any, requested: str | None) -> Any:
            try:
                return sound(self, identity, requested)
            except Refusal:
                if not requested or not identity.roles:
                    raise
                first = sound(self, identity._replace(roles=identity.roles[:1]), None)
                return replace(first, active=tuple(sorted(identity.roles)))

        return roles_of

    _roles_of(make)


@mutant("gate.denies-active-only", kills=["ROLE-DENY-001"], title="looks at denies of the active role only")
def denies_active_only() -> None:
    def make(sound: Any) -> Any:
        def roles_of(self: Any, identity: Any, requested: str | None) -> Any:
            found = sound(self, identity, requested)
            names = frozenset(name for arn in found.active if (name := self._name_of.get(arn)))
            return replace(found, all_names=names)

        return roles_of

    _roles_of(make)


@mutant("gate.shortest-path-wins", kills=["ROLE-SPECIFIC-001"], title="lets the least specific grant win")
def shortest_path_wins() -> None:
    def best(self: Any, roles: Any, query: Any) -> Any:
        found: list[Any] = list(self.matches(roles, query))
        return found[-1] if found else None

    Index.best = best


@mutant("gate.loads-conflicts", kills=["POLICY-CONFLICT-001"], title="loads a policy whose grants conflict")
def loads_conflicts() -> None:
    checks._conflicts = lambda sound: iter(())


@mutant(
    "gate.memory-survives-reload",
    kills=["POLICY-RELOAD-001"],
    title="keeps remembered verdicts over a reload",
)
def memory_survives_reload() -> None:
    def make(sound: Any) -> Any:
        def replace(self: Any, policy: Any, authenticator: Any) -> None:
            young = self._state.young
            sound(self, policy, authenticator)
            self._state.young.update(young)

        return replace

    def make_recall(_sound: Any) -> Any:
        def recall(self: Any, key: bytes, _context: Any) -> Any:
            verdict = self._state.young.get(key)
            return verdict.actions if verdict else None

        return recall

    override(Gate, "replace", make)
    override(Gate, "recall", make_recall)


# --- paths ------------------------------------------------------------------------------------------------


@mutant("gate.any-path", kills=["PATH-AMBIGUOUS-001"], title="judges ambiguous paths as they stand")
def any_path() -> None:
    for module in (gate, compiled):
        override(module, "canonical", lambda sound: lambda path: path)


@mutant("gate.prefix-of-text", kills=["PATH-SEGMENT-001"], title="takes `/ordersx` for below `/orders`")
def prefix_of_text() -> None:
    def make(sound: Any) -> Any:
        def of(request: Any) -> Any:
            query = sound(request)
            path = request.path
            texts = tuple(path[:end] for end in range(len(path), 1, -1))
            return replace(query, paths=(*query.paths[:1], *texts, *query.paths[1:]))

        return staticmethod(of)

    override(compiled.Query, "of", make)


@mutant("gate.encoded-differs", kills=["PATH-NORMAL-001"], title="does not decode unreserved characters")
def encoded_differs() -> None:
    def make(sound: Any) -> Any:
        def canonical(path: str) -> str:
            if re.search("%[2-7][0-9A-Fa-f]", path):
                raise Refusal(Reason.PATH_AMBIGUOUS, "encoded")
            return str(sound(path))

        return canonical

    override(gate, "canonical", make)
