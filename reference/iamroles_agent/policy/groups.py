"""Groups of roles, which loading replaces by their roles.

A group is shorthand. `ungrouped` writes each group out in every rule that names it, so the decision and the
analysis see only roles, and a policy with groups has the version of the same policy without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from iamroles_agent.base import config

_R = TypeVar("_R", config.Grant, config.Deny)


def members_of(groups: list[config.Group]) -> dict[str, list[str]]:
    """Return role names by the name of their group."""
    return {group.name: group.roles for group in groups}


def spelled_out(rule: _R, members: Mapping[str, list[str]]) -> _R:
    """Return the rule with roles in place of groups, each role once."""
    if members.keys().isdisjoint(rule.roles):
        return rule
    roles = [role for name in rule.roles for role in members.get(name, [name])]
    return rule.model_copy(update={"roles": list(dict.fromkeys(roles))})


def ungrouped(whole: config.Config) -> config.Config:
    """Return a checked configuration with roles in place of groups everywhere."""
    if not whole.groups:
        return whole
    members = members_of(whole.groups)
    return whole.model_copy(
        update={
            "groups": [],
            "grants": [spelled_out(grant, members) for grant in whole.grants],
            "denies": [spelled_out(deny, members) for deny in whole.denies],
        }
    )
