"""Handles on the agent's policy that its mutants pull."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iamroles_agent.policy import compiled
from iamroles_agent.policy.compiled import Policy, Query
from iamroles_conformance.selftest.mutants.override import override


def method(name: str, make: Callable[[Any], Any]) -> None:
    """Replace a method of the compiled `Policy` by what `make` makes of it."""
    override(Policy, name, make)


def decided(edit: Callable[[Any, Any, Any, Any], Any]) -> None:
    """Change each decision; `edit` gets the policy, the identity, the request and the sound decision."""

    def make(sound: Any) -> Any:
        def decide(self: Any, identity: Any, request: Any, now: float | None = None) -> Any:
            return edit(self, identity, request, sound(self, identity, request, now))

        return decide

    method("decide", make)


def asked(edit: Callable[[Any, Any, Any], tuple[Any, Any]]) -> None:
    """Change what is judged; `edit` gets the policy, the identity and the request, and gives the last two."""

    def make(sound: Any) -> Any:
        def decide(self: Any, identity: Any, request: Any, now: float | None = None) -> Any:
            return sound(self, *edit(self, identity, request), now)

        return decide

    method("decide", make)


def roles(edit: Callable[[Any, Any, str | None, Any], Any]) -> None:
    """Change the choice of roles; `edit` gets policy, identity, requested role and the sound choice."""

    def make(sound: Any) -> Any:
        def roles_of(self: Any, identity: Any, requested: str | None) -> Any:
            return edit(self, identity, requested, sound(self, identity, requested))

        return roles_of

    method("_roles_of", make)


def built(edit: Callable[[Any], None]) -> None:
    """Change each `Policy` once it is compiled."""

    def make(sound: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            sound(self, *args, **kwargs)
            edit(self)

        return init

    method("__init__", make)


def regions(**changes: Any) -> None:
    """Compile every rule's region with these values in place of its own."""
    regions_where(lambda _rule: True, **changes)


def regions_where(chosen: Callable[[Any], bool], **changes: Any) -> None:
    """As `regions`, for the rules that `chosen` picks."""

    def make(sound: Any) -> Any:
        def compile_rule(rule: Any) -> Any:
            found = sound(rule)
            return replace(found, region=replace(found.region, **changes)) if chosen(rule) else found

        return compile_rule

    override(compiled, "compile_rule", make)


def queries(edit: Callable[[Any, Any], Any]) -> None:
    """Change how a request is looked up; `edit` gets the request and the sound query."""

    def make(sound: Any) -> Any:
        return staticmethod(lambda request: edit(request, sound(request)))

    override(Query, "of", make)
