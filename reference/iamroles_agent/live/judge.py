"""Judging a stream again: whether what was allowed is still allowed, by what is in force now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from iamroles_agent.base.config import Issuer, Sts
from iamroles_agent.base.identity import Identity, Request
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.live.revocations import Revocations
from iamroles_agent.live.ticket import Ticket, TicketError
from iamroles_agent.policy.compiled import Policy
from iamroles_agent.tokens.grounds import accepted_now, lost
from iamroles_agent.tokens.keys import Key

EXPIRED, REVOKED, POLICY_CHANGED, KEY_REMOVED, UNKNOWN = "expired", "revoked", "policy", "key", "unknown"
_LOST = {
    "iss": "issuer's URL",
    "alg": "algorithm",
    "typ": "type",
    "begin": "time of issue",
    "binding": "binding, or want of it",
    "rules": "claims as they were read: what they say now is not known without the token",
}
CAUSES = (EXPIRED, REVOKED, POLICY_CHANGED, KEY_REMOVED, UNKNOWN)
"""Why a stream was cut; `unknown`: its ticket cannot be judged again."""


class Keys(Protocol):
    """The keys of an issuer, as far as they are known."""

    @property
    def keys(self) -> Iterable[Key] | None:
        """Those in force; None: not known yet."""


@dataclass(frozen=True, slots=True)
class Ends:
    """When a stream ends."""

    at: float
    """Epoch seconds; 0: at once."""
    cause: str
    detail: str = ""


def whose(ticket: Ticket) -> tuple[str, ...]:
    """Give what a fresh credential must share with a stream to prolong it, beside the client's address."""
    who = ticket.identity
    actor = ("", "") if who.actor is None else (who.actor.sub, who.actor.issuer)
    bound = who.binding or ("", "")
    return who.issuer, who.principal, who.session, ticket.role, ticket.backend, *bound, *actor


def renewing(policy: Policy) -> frozenset[str]:
    """The backends whose streams may be prolonged."""
    return frozenset(backend.name for backend in policy.config.backends if backend.renew)


def judge(
    ticket: str,
    expires: int,
    now: float,
    *,
    policy: Policy,
    sources: Mapping[str, Keys],
    revocations: Revocations,
    fresh: str = "",
    before: Ends | None = None,
) -> Ends:
    """Judge a stream again; what is still permitted ends when it would have.

    If a fresh credential prolongs the stream, the stream's own request is judged with that credential. A
    revocation of the credential that opened the stream still counts: a successor does not lift it. The key
    and the expiry of the first credential no longer count: keys leave their set when their tokens have run
    out.

    Args:
        ticket: of the stream.
        expires: the end that HAProxy was given, epoch seconds.
        now: epoch seconds.
        policy: in force.
        sources: keys by the issuer's name.
        revocations: in force.
        fresh: first part of the ticket of the credential that prolongs it, "" for none.
        before: the former answer to the same question, if only revocations have changed since.
    """
    try:
        found = Ticket.decode(ticket)
    except TicketError as error:
        return Ends(0, UNKNOWN, str(error))
    identity = found.identity
    if (revocation := revocations.match(identity, policy.name_of)) is not None:
        return Ends(0, REVOKED, f"revocation {revocation.id[:100]}")
    if fresh:
        try:
            successor = Ticket.decode(fresh)
        except TicketError as error:
            return Ends(0, UNKNOWN, str(error))
        if found.backend not in renewing(policy) or whose(successor) != whose(found):
            return Ends(0, POLICY_CHANGED, "its credential has run out, and nothing renews it")
        identity = successor.identity
        if (revocation := revocations.match(identity, policy.name_of)) is not None:
            return Ends(0, REVOKED, f"revocation {revocation.id[:100]} of the credential that prolonged it")
    if before is not None and before.cause == EXPIRED:
        return before
    if (
        gone := _gone(identity, policy, sources, now) or _barred(identity, policy, found.request)
    ) is not None:
        return gone
    if isinstance(entry := _entry(identity, policy), Issuer):
        identity = accepted_now(identity, entry)
    if found.request is None or (found.partial and len(found.request.path) < policy.longest_path + 2):
        return Ends(0, UNKNOWN, "the request was too long to be kept")
    decision = policy.decide(identity, found.request, now)
    if not decision.allow:
        if now >= expires or str(decision.reason) == "token_expired":
            return Ends(min(expires, decision.expires or expires), EXPIRED)
        return Ends(0, POLICY_CHANGED, f"now refused: {decision.reason}")
    if (decision.role, decision.backend) != (found.role, found.backend):
        return Ends(0, POLICY_CHANGED, "now allowed in another role or to another backend only")
    return Ends(min(expires, decision.expires or expires), EXPIRED)


def _entry(identity: Identity, policy: Policy) -> Issuer | Sts | None:
    entries: list[Issuer | Sts] = [*policy.config.issuers, *policy.config.sts]
    return next((one for one in entries if one.name == identity.issuer), None)


def _barred(identity: Identity, policy: Policy, request: Request | None) -> Ends | None:
    """Find why a stream's resource would not be opened to its origin and credential again."""
    try:
        if request is not None:
            found = policy.resources.find(request)
            found.answered(request)
            found.admit(identity)
    except Refusal as refusal:
        return Ends(0, POLICY_CHANGED, f"now refused: {refusal.reason}")
    return None


def _gone(identity: Identity, policy: Policy, sources: Mapping[str, Keys], now: float) -> Ends | None:
    """Find why a stream's credential would not be accepted again, whatever it asks for."""
    name, entry = identity.issuer, _entry(identity, policy)
    if entry is None:
        return Ends(0, POLICY_CHANGED, f"issuer {name} is no longer trusted")
    source = sources.get(name)
    kind = lost(identity, entry, policy.config.limits, None if source is None else source.keys, now)
    if not kind and identity.binding is not None and identity.binding[0] and policy.config.dpop is None:
        kind = "binding"
    if kind == "key":
        return Ends(0, KEY_REMOVED, f"{name} no longer has this key {identity.key_id!r}")
    return Ends(0, POLICY_CHANGED, f"{name} no longer accepts its {_LOST.get(kind, kind)}") if kind else None
