"""Handles on the agent's policy that its mutants pull."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iamroles_agent.base.identity import RoleArn
from iamroles_agent.policy import compiled
from iamroles_agent.policy.compiled import Index, Policy, Query
from iamroles_agent.serving import gate
from iamroles_agent.serving.gate import Gate
from iamroles_agent.tokens import claims
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import Override, both


def decided(edit: Callable[[Any, Any, Any, Any], Any]) -> Override:
    """Change each decision; `edit` gets the policy, the identity, the request and the sound decision."""

    @around(Policy, "decide")
    def decide(sound: Any, self: Any, identity: Any, request: Any, now: float | None = None) -> Any:
        return edit(self, identity, request, sound(self, identity, request, now))

    return decide


def asked(edit: Callable[[Any, Any, Any], tuple[Any, Any]]) -> Override:
    """Change what is judged; `edit` gets the policy, the identity and the request, and gives the last two."""

    @around(Policy, "decide")
    def decide(sound: Any, self: Any, identity: Any, request: Any, now: float | None = None) -> Any:
        return sound(self, *edit(self, identity, request), now)

    return decide


@asked
def by_name(policy: Any, identity: Any, request: Any) -> Any:
    """Compare roles by name alone."""
    by_name = {arn.name: arn for arn in policy._name_of}
    return identity._replace(roles=tuple(by_name.get(arn.name, arn) for arn in identity.roles)), request


def roles(edit: Callable[[Any, Any, str | None, Any], Any]) -> Override:
    """Change the choice of roles; `edit` gets policy, identity, requested role and the sound choice."""

    @around(Policy, "_roles_of")
    def roles_of(sound: Any, self: Any, identity: Any, requested: str | None) -> Any:
        return edit(self, identity, requested, sound(self, identity, requested))

    return roles_of


@roles
def denies_of_active_role(policy: Any, _identity: Any, _requested: Any, found: Any) -> Any:
    """Hold the denies of the active role alone."""
    names = frozenset(name for arn in found.active if (name := policy._name_of.get(arn)))
    return replace(found, all_names=names)


def built(edit: Callable[[Any], None]) -> Override:
    """Change each `Policy` once it is compiled."""

    @around(Policy, "__init__")
    def init(sound: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        sound(self, *args, **kwargs)
        edit(self)

    return init


def regions(**changes: Any) -> Override:
    """Compile every rule's region with these values in place of its own."""
    return regions_where(lambda _rule: True, **changes)


def regions_where(chosen: Callable[[Any], bool], **changes: Any) -> Override:
    """As `regions`, for the rules that `chosen` picks."""

    @around(compiled, "compile_rule")
    def compile_rule(sound: Any, rule: Any) -> Any:
        found = sound(rule)
        return replace(found, region=replace(found.region, **changes)) if chosen(rule) else found

    return compile_rule


def queries(edit: Callable[[Any, Any], Any]) -> Override:
    """Change how a request is looked up; `edit` gets the request and the sound query."""
    return around(Query, "from_request")(lambda sound, request, *reach: edit(request, sound(request, *reach)))


def best_grant(choose: Callable[[list[Any]], Any]) -> Override:
    """Choose otherwise among the grants that match, most specific first; `choose` gets at least one."""

    @around(Index, "best")
    def best(_sound: Any, self: Any, roles: Any, query: Any) -> Any:
        found = list(self.matches(roles, query))
        return choose(found) if found else None

    return best


def canonical(read: Callable[[Any, str], Any]) -> Override:
    """Read paths otherwise: `read` gets the sound function and the path."""
    return both(around(gate, "canonical")(read), around(compiled, "canonical")(read))


@around(Gate, "replace")
def memory_kept(sound: Any, self: Any, policy: Any, authenticator: Any) -> None:
    """Keep what is remembered over a reload."""
    young = self._state.young
    sound(self, policy, authenticator)
    self._state.young.update(young)


def role_arns(read: Callable[[Any, str], Any]) -> Override:
    """Read role ARNs otherwise, those of policies and those of tokens; `read` gets the sound function."""
    return both(around(RoleArn, "parse")(read), around(claims, "role_arn")(read))
