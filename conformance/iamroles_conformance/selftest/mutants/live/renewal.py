"""Mutants of renewal: what is prolonged that should end, and what ends that should live on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from iamroles_agent.live import judge, renewal
from iamroles_agent.live.cutter import Cutter
from iamroles_agent.live.judge import EXPIRED, REVOKED
from iamroles_agent.live.revocations import NONE
from iamroles_agent.live.ticket import Ticket
from iamroles_agent.processes import attach
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import Override, both, mutant
from iamroles_tools.haproxy import render

mutant(
    "live.renews-nothing",
    "LIVE-RENEW-001 LIVE-RENEW-006",
    "ends every stream with the credential that opened it, whatever the policy says",
)(setting(attach, "renewing", lambda policy: frozenset()))


@mutant(
    "live.renews-beyond",
    "LIVE-RENEW-001",
    "prolongs a stream by a minute more than the fresh credential lives",
)
@around(attach, "judge")
def beyond(sound: Any, *args: Any, **kwargs: Any) -> Any:
    found = sound(*args, **kwargs)
    return replace(found, at=found.at + 60) if kwargs["fresh"] and found.cause == EXPIRED else found


@around(render, "_streams")
def _renew_rules(sound: Any, backend: Any) -> Any:
    return sound(backend.model_copy(update={"renew": backend.streams}))


def _all_backends(policy: Any) -> frozenset[str]:
    return frozenset(backend.name for backend in policy.config.backends)


mutant(
    "live.renews-everywhere", "LIVE-RENEW-002", "prolongs streams in every backend that has them", proxy=True
)(_renew_rules, setting(attach, "renewing", _all_backends), setting(judge, "renewing", _all_backends))


def _whoever(*places: int) -> Override:
    """Compare less of a fresh credential and a stream."""

    def whose(sound: Any, ticket: Any) -> Any:
        return tuple(word for place, word in enumerate(sound(ticket)) if place not in places)

    return both(*(around(module, "whose")(whose) for module in (judge, renewal)))


mutant(
    "live.renews-for-others", "LIVE-RENEW-003", "lets another principal of the same role prolong a stream"
)(_whoever(1))
mutant(
    "live.renews-across-sessions",
    "LIVE-RENEW-003",
    "lets another session of the same principal prolong a stream",
)(_whoever(2))


@mutant(
    "live.renews-across-roles",
    "LIVE-RENEW-003",
    "lets the same session in another role prolong a stream",
    _whoever(3),
)
@around(attach, "judge")
def _role_unseen(sound: Any, ticket: str, *args: Any, **kwargs: Any) -> Any:
    if kwargs["fresh"]:
        opener, fresh = Ticket.decode(ticket), Ticket.decode(kwargs["fresh"])
        who = fresh.identity._replace(roles=opener.identity.roles)
        kwargs["fresh"] = replace(fresh, identity=who, role=opener.role).encode()
    return sound(ticket, *args, **kwargs)


@mutant(
    "live.renewal-forgives",
    "LIVE-RENEW-004 LIVE-RENEW-005",
    "does not look whether a stream or what prolongs it was revoked",
)
@around(attach, "judge")
def forgives(sound: Any, *args: Any, **kwargs: Any) -> Any:
    return sound(*args, **{**kwargs, "revocations": NONE if kwargs["fresh"] else kwargs["revocations"]})


@mutant(
    "live.renewal-revives",
    "LIVE-RENEW-004",
    "lets a stream live whose own credential was revoked after another one had prolonged it",
)
@around(attach, "judge")
def revives(sound: Any, *args: Any, **kwargs: Any) -> Any:
    found = sound(*args, **kwargs)
    if kwargs["fresh"] and found.cause == REVOKED and "prolonged" not in found.detail:
        return sound(*args, **{**kwargs, "revocations": NONE})
    return found


mutant(
    "live.renewal-forgotten",
    "LIVE-RENEW-006",
    "does not know what prolonged a stream once it was started anew",
)(setting(Cutter, "_unjudged", lambda self, pid, row: False))
