"""A finding about a policy, and its kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from iamroles_agent.base.identity import Actor, Request


class Kind(StrEnum):
    """The kind of a finding; `policy.lint` describes each."""

    UNREACHABLE = "unreachable"
    SHADOWED = "shadowed"
    REDUNDANT = "redundant"
    CONFLICTING = "conflicting"
    TOO_WIDE = "too-wide"
    ESCALATION = "escalation"
    UNUSED = "unused"
    LETTER_CASE = "letter-case"
    UNRECORDED = "unrecorded"
    UNPROVEN = "unproven"
    BOUND = "bound"
    UNSHARED = "unshared"


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding."""

    kind: Kind
    key: str
    """Key of the rule or item, e.g. `grants[2]`."""
    subject: str
    """Its id or name."""
    message: str
    remedy: str
    role: str = ""
    """The role that the witness is sent with."""
    witness: Request | None = None
    others: dict[str, str] = field(default_factory=dict)
    """Ids of the other rules, and their keys."""
    note: bool = False
    """Worth knowing, not worth failing a build."""
    pairs: tuple[tuple[str, str], ...] = ()
    """For an escalation: reader and writer of each pair of roles."""
    actor: Actor | None = None
    """The actor of the witness; None if its caller has none."""
