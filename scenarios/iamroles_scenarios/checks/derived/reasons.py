"""One row for each reason (SPEC.md section 4): what causes it, and what else is wrong while it is said.

A cause is a change of a good question: of its token, of its arguments, of its credential. So two causes can
be put into one question, and the order of judgement (4.2) says which of the two is named. The order is a list
of *stages*; every pair of stages is played. A neighbour's word is accepted as well: no reader could always
tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from iamroles_scenarios.checks.derived.answers import REASONS, UNVERIFIED
from iamroles_scenarios.checks.derived.sitting import (
    Ask,
    Sitting,
    question,
    refusal,
    sitting,
)
from iamroles_scenarios.checks.identity.caller import session_of
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.wire.client import OMIT

_ARN = "arn:aws:iam::111111111111:role/"


@dataclass(frozen=True, slots=True)
class Cause:
    """Changes of a good question that give it a reason."""

    reason: str
    stage: int
    """Its place in the order of judgement."""
    token: Mapping[str, Any] = field(default_factory=dict)
    """Of the token's recipe."""
    claims: Mapping[str, Any] = field(default_factory=dict)
    """Of its claims."""
    ask: Mapping[str, Any] = field(default_factory=dict)
    """Of the question."""


_LARGE = 9000
"""Bytes, above `max_token_bytes`."""
_SUB, _SID = "ann", "session-1"
"""Who asks."""
_LIVES = 300
"""Seconds that a token lives."""
CAUSES: tuple[Cause, ...] = (
    Cause("text_too_long", 1, ask={"method": "G" * 33}),
    Cause("text_too_long", 1, ask={"host": "h" * 261}),
    Cause("text_too_long", 1, ask={"path": "/" + "p" * 4096}),
    Cause("text_too_long", 1, ask={"role": "r" * 641}),
    Cause("path_ambiguous", 2, ask={"path": "/kiosk/../x"}),
    Cause("multiple_credentials", 3, ask={"authorization-count": 2}),
    Cause("no_credentials", 3, ask={"authorization": None, "authorization-count": 0}),
    Cause("no_credentials", 3, ask={"authorization": "Basic YTpi"}),
    Cause("token_too_large", 4, token={"size": _LARGE}),
    Cause("token_malformed", 4, token={"segments": 2}),
    Cause("issuer_untrusted", 5, claims={"iss": "https://evil.example"}),
    Cause("algorithm_not_allowed", 6, token={"alg": "none"}),
    Cause("type_not_allowed", 7, token={"typ": "secevent+jwt"}),
    Cause("key_unknown", 8, token={"key": "unknown-kid"}),
    Cause("signature_invalid", 9, token={"signature": "flipped"}),
    Cause("token_expired", 11, claims={"exp": "{now-9}", "iat": "{now-99}", "nbf": "{now-99}"}),
    Cause("token_not_yet_valid", 11, claims={"nbf": "{now+200}"}),
    Cause("token_lifetime", 11, claims={"exp": "{now+90000}"}),
    Cause("audience_mismatch", 12, claims={"aud": "canteen"}),
    Cause("claim_invalid", 13, claims={"sub": ""}),
    Cause("role_malformed", 14, claims={"roles": ["kiosk"]}),
    Cause("role_missing", 14, claims={"roles": []}),
    Cause("role_not_in_token", 15, ask={"role": "brief"}),
    Cause("ambiguous_role", 15, claims={"roles": [f"{_ARN}kiosk", f"{_ARN}clerk"]}),
    Cause("denied_by_rule", 16, claims={"roles": [f"{_ARN}guard"]}),
    Cause("no_grant", 17, ask={"path": "/elsewhere"}),
    Cause("scope_insufficient", 18, claims={"scope": "nothing"}),
    Cause("token_expired", 19, claims={"roles": [f"{_ARN}brief"], "iat": "{now-700}", "nbf": "{now-700}"}),
    # Beside the order: what keeps any judgement from being made.
    Cause("keys_unavailable", 0, claims={"iss": "https://dark.kiosk.example"}),
    Cause("internal_error", 0, ask={"method": OMIT}),
    Cause("internal_error", 0, ask={"path": OMIT}),
    Cause("internal_error", 0, ask={"src": OMIT}),
    Cause("internal_error", 0, ask={"method": None}),
    Cause("internal_error", 0, ask={"authorization-count": 0}),
)
"""Each by itself gives its reason in the world of these checks."""
ELSEWHERE = {
    "host_ambiguous": "the proxy's alone to give; played by proxy.host.*",
    "credential_revoked": "of agents that declare `live`; played by live.revoke.*",
    "sts_rejected": "an STS credential (below)",
    "sts_unavailable": "an STS credential (below)",
}
"""Reasons that no question with a token gets, and where they are played."""
_NEVER = "never: another credential or another question is needed"
RELOADED = "another policy: identity.derived.passes"
PASSES = {
    **dict.fromkeys(("text_too_long", "host_ambiguous", "path_ambiguous", "multiple_credentials"), _NEVER),
    **dict.fromkeys(("no_credentials", "token_malformed"), _NEVER),
    **dict.fromkeys(
        ("token_too_large", "algorithm_not_allowed", "token_lifetime", "issuer_untrusted"), RELOADED
    ),
    **dict.fromkeys(
        ("audience_mismatch", "type_not_allowed", "role_not_in_token", "ambiguous_role"), RELOADED
    ),
    **dict.fromkeys(("no_grant", "denied_by_rule", "scope_insufficient", "claim_invalid"), RELOADED),
    **dict.fromkeys(("role_malformed", "role_missing", "token_expired"), RELOADED),
    "token_not_yet_valid": f"{RELOADED}; its second: identity.derived.seconds",
    "key_unknown": "the key is published: identity.kids.*",
    "signature_invalid": "another key under its kid: live.key.replaced",
    "keys_unavailable": "the issuer answers: identity.derived.waits, identity.cold.*",
    "sts_unavailable": "STS answers, or another: identity.derived.sts-waits, identity.derived.endpoints",
    "sts_rejected": "another policy: identity.derived.endpoints",
    "internal_error": "the question is whole: identity.derived.reasons",
    "credential_revoked": "the revocation is taken back: live.revoke.*",
}
"""What ends the cause of each refusal, so that a memory of it would be wrong, and where that is played."""
_STS = {"sts_rejected": ("derived", {"secret": "wrong"}), "sts_unavailable": ("gone", {})}


def _asked(here: Sitting, until: int, *causes: Cause) -> dict[str, Any]:
    """A good question with these causes in it, the last of the same thing winning."""
    recipe: dict[str, Any] = {"roles": ["kiosk"], "key": "ES256"}
    claims: dict[str, Any] = {"sub": _SUB, "sid": _SID, "exp": until}
    ask: dict[str, Any] = {}
    for cause in causes:
        recipe |= cause.token
        claims |= cause.claims
        ask |= cause.ask
    if recipe.get("alg") == "none":
        recipe.pop("key")
    return question(here.token("corp", **recipe, claims=claims)) | ask


def _named(until: int, *causes: Cause) -> dict[str, Any]:
    """Whom a refusal may name (SPEC.md section 3): nobody, or who was verified, and until when."""
    claims: dict[str, Any] = {}
    for cause in causes:
        claims |= cause.claims
    reasons = {cause.reason for cause in causes}
    who: dict[str, Any] = {"principal": claims.get("sub", _SUB), "session": _SID}
    if reasons & {"role_not_in_token", "ambiguous_role", "role_malformed", "role_missing"}:
        who["role"] = ""
    elif "roles" not in claims:
        who["role"] = f"{_ARN}kiosk"
    if not claims.keys() & {"exp", "roles"}:
        who["expires"] = until
    if reasons & {*UNVERIFIED, "token_malformed"} - {"token_too_large"}:
        return {name: None if name == "expires" else "" for name in who}
    return {name: {None if name == "expires" else "", value} for name, value in who.items()}


def pairs() -> Iterator[tuple[Cause, Cause]]:
    """Causes of different stages that change different things, the earlier first."""
    ordered = [cause for cause in CAUSES if cause.stage]
    for first in ordered:
        for second in ordered:
            apart = not any(set(a) & set(b) for a, b in zip(_parts(first), _parts(second), strict=True))
            if first.stage < second.stage and apart and not _undone(first, second):
                yield first, second


def _parts(cause: Cause) -> tuple[Mapping[str, Any], ...]:
    return cause.token, cause.claims, cause.ask


def _undone(first: Cause, second: Cause) -> bool:
    """Whether one of them takes the ground from the other: no token, or the role that was asked for."""
    unsigned = {"segments", "key", "alg", "signature"}
    chosen = any(
        "role" in one.ask and "roles" in two.claims for one, two in ((first, second), (second, first))
    )
    return bool(set(first.token) & unsigned and set(second.token) & unsigned) or chosen


def named(first: Cause, second: Cause) -> set[str]:
    """Reasons that may be given for both together: the first one's, and those of the stage beside it."""
    return {first.reason} | {cause.reason for cause in (first, second) if abs(cause.stage - first.stage) <= 1}


@check("identity.derived.reasons", "DERIVED-REASON-001", features={"oidc"})
def reasons(target: Target) -> str:
    """Every reason is given where its cause is, with its status and code, and with nothing else.

    Each cause alone; for the denies also which of them is named.
    """
    with sitting(target) as here:
        until = here.now() + _LIVES
        good = Ask("nothing is wrong", _asked(here, until), {"allow": True, "rule": "kiosk"})
        here.settle([good])
        asks = [good]
        for cause in CAUSES:
            rule = {"rule": "no-guard"} if cause.reason == "denied_by_rule" else {}
            status, error = REASONS[cause.reason]
            told = refusal(
                cause.reason, status=status, error=error, backend="", **rule, **_named(until, cause)
            )
            asks.append(Ask(f"{cause.reason} by {_shown(cause)}", _asked(here, until, cause), told))
        if not here.target.lacks(["sts"]):
            asks += _of_sts(here)
        here.put(asks)
    return f"{here.asked} questions about {len({cause.reason for cause in CAUSES})} reasons"


def _of_sts(here: Sitting) -> Iterator[Ask]:
    keys = session_of(here.target.stage.cloud, "kiosk")
    for reason, (host, recipe) in _STS.items():
        text = here.target.stage.cloud.presign_caller_identity(
            keys, "edge-a", recipe, host=f"{host}{here.place.suffix}.sts.example"
        )
        yield Ask(f"{reason} by {recipe or host}", question(text), refusal(reason, status=REASONS[reason][0]))


def _shown(cause: Cause) -> str:
    return ", ".join(f"{name} {str(value)[:40]!r}" for part in _parts(cause) for name, value in part.items())


@check("identity.derived.order", "DERIVED-REASON-002", features={"oidc"})
def order(target: Target) -> str:
    """Of two reasons the one that comes first in the order of judgement is named.

    Every pair of causes that can be in one question.
    """
    with sitting(target) as here:
        until = here.now() + _LIVES
        asks = [
            Ask(
                f"{_shown(one)} and {_shown(two)}",
                _asked(here, until, two, one),
                refusal(*named(one, two), **_named(until, one, two)),
            )
            for one, two in pairs()
        ]
        here.settle(asks)
        here.put(asks, turns=1)
    return f"{here.asked} questions"
