"""Whether a stream that was allowed is allowed still, by what is in force now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from iamroles_agent.live.revocations import Revocations
from iamroles_agent.live.ticket import Ticket, TicketError
from iamroles_agent.policy.compiled import Policy

EXPIRED, REVOKED, POLICY_CHANGED, KEY_REMOVED, UNKNOWN = "expired", "revoked", "policy", "key", "unknown"
CAUSES = (EXPIRED, REVOKED, POLICY_CHANGED, KEY_REMOVED, UNKNOWN)
"""Why a stream was cut: `unknown` is one whose ticket cannot be judged anew."""


class Keys(Protocol):
    """The keys of one issuer, as far as they are known."""

    @property
    def age(self) -> float | None:
        """None: not known yet."""

    @property
    def kids(self) -> tuple[str, ...]:
        """Key ids in force."""


@dataclass(frozen=True, slots=True)
class Ends:
    """When a stream ends."""

    at: float
    """Epoch seconds; 0: at once."""
    cause: str
    detail: str = ""


def judge(
    ticket: str,
    expires: int,
    now: float,
    *,
    policy: Policy,
    sources: Mapping[str, Keys],
    revocations: Revocations,
) -> Ends:
    """Judge a stream anew; what is still permitted ends when it would have.

    Args:
        ticket: of the stream.
        expires: what HAProxy was told, epoch seconds.
        now: epoch seconds.
        policy: in force.
        sources: keys by the issuer's name.
        revocations: in force.
    """
    try:
        found = Ticket.decode(ticket)
    except TicketError as error:
        return Ends(0, UNKNOWN, str(error))
    identity = found.identity
    if (revocation := revocations.match(identity, policy.name_of)) is not None:
        return Ends(0, REVOKED, f"revocation {revocation.id}")
    names = {issuer.name for issuer in policy.config.issuers} | {sts.name for sts in policy.config.sts}
    if identity.issuer not in names:
        return Ends(0, POLICY_CHANGED, f"issuer {identity.issuer} is trusted no more")
    keys = sources.get(identity.issuer)
    # A token may name no key where its issuer has but one; then any key will do.
    if keys is not None and keys.age is not None and identity.key_id and identity.key_id not in keys.kids:
        return Ends(0, KEY_REMOVED, f"key {identity.key_id!r} is no key of {identity.issuer} any more")
    if found.request is None:
        return Ends(0, UNKNOWN, "the request was too long to be kept")
    decision = policy.decide(identity, found.request, now=now)
    if not decision.allow:
        if now >= expires or str(decision.reason) == "token_expired":
            return Ends(expires, EXPIRED)
        return Ends(0, POLICY_CHANGED, f"now refused: {decision.reason}")
    if (decision.role, decision.backend) != (found.role, found.backend):
        return Ends(0, POLICY_CHANGED, "now allowed in another role or to another backend only")
    return Ends(min(expires, decision.expires or expires), EXPIRED)
