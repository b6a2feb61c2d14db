"""Every reason (SPEC.md section 4): what causes it, and what else is wrong while the agent gives it.

A cause is a change of a good question: of its token, of its arguments, of its credential. So two causes can
be put into one question, and the order of judgement (4.2) says which of the two the agent names. The order
is a list of *stages*; every pair of stages is played. The checks accept the word of a neighbouring stage as
well, because no reader could always tell them apart. The rows are in data/derived/reasons.toml.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from iamroles_scenarios.checks.derived.world import derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN, filled
from iamroles_scenarios.engine.answers import REASONS, ROWS, UNVERIFIED, refusal
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.wire.client import OMIT


@dataclass(frozen=True, slots=True)
class Cause:
    """Changes of a good question that give it a reason."""

    reason: str
    stage: int
    """Its place in the order of judgement."""
    token: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the token's recipe."""
    claims: Mapping[str, Any] = field(default_factory=dict)
    """Claims of the token."""
    ask: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the question."""


_SUB, _SID = "ann", "session-1"
"""The caller."""
_LIVES = 300
"""Seconds that a token lives."""
CAUSES = tuple(
    Cause(reason, **filled(cause, {"omit": OMIT}))
    for reason, row in ROWS.items()
    for cause in row.get("causes", ())
)
"""Each alone gives its reason in the world of these checks."""
_STS: dict[str, tuple[str, dict[str, Any]]] = {
    "sts_rejected": ("derived", {"secret": "wrong"}),
    "sts_unavailable": ("gone", {}),
}


def _asked(here: Bench, until: int, *causes: Cause) -> dict[str, Any]:
    """Put causes into a good question; the last change of a thing wins."""
    recipe: dict[str, Any] = {"roles": ["kiosk"], "key": "ES256"}
    claims: dict[str, Any] = {"sub": _SUB, "sid": _SID, "exp": until}
    ask: dict[str, Any] = {}
    for cause in causes:
        recipe |= cause.token
        claims |= cause.claims
        ask |= cause.ask
    if recipe.get("alg") == "none":
        recipe.pop("key")
    return iam_check(here.token("corp", **recipe, claims=claims)) | ask


def _named(until: int, *causes: Cause) -> dict[str, Any]:
    """Say whom a refusal may name (SPEC.md section 3): nobody, or the verified caller, and until when."""
    claims: dict[str, Any] = {}
    for cause in causes:
        claims |= cause.claims
    reasons = {cause.reason for cause in causes}
    who: dict[str, Any] = {"principal": claims.get("sub", _SUB), "session": _SID}
    if reasons & {"role_not_in_token", "ambiguous_role", "role_malformed", "role_missing"}:
        who["role"] = ""
    elif "roles" not in claims:
        who["role"] = f"{ARN}kiosk"
    if not claims.keys() & {"exp", "roles"}:
        who["expires"] = until
    if reasons & {*UNVERIFIED, "token_malformed"} - {"token_too_large"}:
        return {name: None if name == "expires" else "" for name in who}
    return {name: {None if name == "expires" else "", value} for name, value in who.items()}


def pairs() -> Iterator[tuple[Cause, Cause]]:
    """Yield causes of different stages that change different things, the earlier first."""
    ordered = [cause for cause in CAUSES if cause.stage]
    for first in ordered:
        for second in ordered:
            apart = not any(set(a) & set(b) for a, b in zip(_parts(first), _parts(second), strict=True))
            if first.stage < second.stage and apart and not _undone(first, second):
                yield first, second


def _parts(cause: Cause) -> tuple[Mapping[str, Any], ...]:
    return cause.token, cause.claims, cause.ask


def _undone(first: Cause, second: Cause) -> bool:
    """Tell whether one cause makes the other impossible: no token is left, or no choice of a role."""
    unsigned = {"segments", "key", "alg", "signature"}
    chosen = any(
        "role" in one.ask and "roles" in two.claims for one, two in ((first, second), (second, first))
    )
    return bool(set(first.token) & unsigned and set(second.token) & unsigned) or chosen


def named(first: Cause, second: Cause) -> set[str]:
    """List the reasons that an agent may give for both: the first one's, and those of the stage beside it."""
    return {first.reason} | {cause.reason for cause in (first, second) if abs(cause.stage - first.stage) <= 1}


def alone(here: Bench, until: int) -> Iterator[SpopQuestion]:
    """Ask a good question, and with each cause alone."""
    yield SpopQuestion("nothing is wrong", _asked(here, until), {"allow": True, "rule": "kiosk"})
    for cause in CAUSES:
        rule = {"rule": "no-guard"} if cause.reason == "denied_by_rule" else {}
        status, error = REASONS[cause.reason]
        said = refusal(cause.reason, status=status, error=error, backend="", **rule, **_named(until, cause))
        yield SpopQuestion(f"{cause.reason} by {_shown(cause)}", _asked(here, until, cause), said)


@check("identity.derived.reasons", "DERIVED-REASON-001", features={"oidc"})
def reasons(target: Target) -> str:
    """Every reason is given for its cause, with its status and code, and for nothing else.

    Each cause alone; for the denies also which of them is named.
    """
    with derived(target) as here:
        questions = list(alone(here, here.now() + _LIVES))
        here.wait_for_keys(questions[:1])
        if not here.target.lacks(["sts"]):
            questions += _of_sts(here)
        here.ask_all(questions)
    return f"{here.asked} questions about {len({cause.reason for cause in CAUSES})} reasons"


def _of_sts(here: Bench) -> Iterator[SpopQuestion]:
    keys = here.session("kiosk")
    for reason, (host, recipe) in _STS.items():
        text = here.credential(keys, host=f"{host}{here.loan.suffix}.sts.example", **recipe)
        yield SpopQuestion(
            f"{reason} by {recipe or host}", iam_check(text), refusal(reason, status=REASONS[reason][0])
        )


def _shown(cause: Cause) -> str:
    return ", ".join(f"{name} {str(value)[:40]!r}" for part in _parts(cause) for name, value in part.items())


@check("identity.derived.order", "DERIVED-REASON-002", features={"oidc"})
def order(target: Target) -> str:
    """The agent names the earlier of two reasons in the order of judgement.

    Every pair of causes that fits into one question.
    """
    with derived(target) as here:
        until = here.now() + _LIVES
        questions = [
            SpopQuestion(
                f"{_shown(one)} and {_shown(two)}",
                _asked(here, until, two, one),
                refusal(*named(one, two), **_named(until, one, two)),
            )
            for one, two in pairs()
        ]
        here.wait_for_keys([SpopQuestion("keys", _asked(here, until), {})])
        here.ask_all(questions, again=False)
    return f"{here.asked} questions"
