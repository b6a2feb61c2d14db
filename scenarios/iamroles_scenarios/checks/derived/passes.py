"""One row for each refusal whose cause a reload can end: the same bytes, refused, accepted, refused again.

`reasons.PASSES` says of every reason what ends its cause. Where that is another policy, a row is here: it
changes that and nothing else. All changes are made in one reload and taken back in the next, so an agent
that remembers a refusal, or an allow, beyond the policy that it followed from is wrong in one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from iamroles_scenarios.checks.derived.sitting import ALLOWED, Ask, Sitting, question, refusal, sitting
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_ARN = "arn:aws:iam::111111111111:role/"
_KIOSK = [f"{_ARN}kiosk"]
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Passing:
    """An issuer of its own, whose token is refused for this reason until these keys change."""

    issuer: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the issuer that end the cause; empty: `ends` does."""
    token: Mapping[str, Any] = field(default_factory=dict)
    """Of the token's recipe."""
    claims: Mapping[str, Any] = field(default_factory=dict)
    ask: Mapping[str, Any] = field(default_factory=dict)
    ends: Callable[[Table], Table] | None = None
    """What else of the policy changes."""
    untrusted: bool = False
    """Whether the issuer is not there before."""


def _grown(table: str, *rows: Table) -> Callable[[Table], Table]:
    return lambda policy: {**policy, table: [*policy.get(table, []), *rows]}


def _without(table: str, name: str) -> Callable[[Table], Table]:
    return lambda policy: {**policy, table: [row for row in policy[table] if row["id"] != name]}


PASSINGS: Mapping[str, Passing] = {
    "token_too_large": Passing(
        token={"size": 9000}, ends=lambda policy: {**policy, "limits": {"max_token_bytes": 16384}}
    ),
    "issuer_untrusted": Passing(untrusted=True),
    "algorithm_not_allowed": Passing({"algorithms": ["ES256", "RS256"]}, token={"key": "RS256"}),
    "type_not_allowed": Passing({"types": ["kiosk+jwt"]}, token={"typ": "kiosk+jwt"}),
    "token_expired": Passing({"leeway": "60s"}, claims={"exp": "{now-9}", "iat": "{now-99}"}),
    "token_not_yet_valid": Passing({"leeway": "60s"}, claims={"nbf": "{now+50}"}),
    "token_lifetime": Passing({"max_lifetime": "48h"}, claims={"exp": "{now+90000}"}),
    "audience_mismatch": Passing({"audiences": ["canteen"]}, claims={"aud": "canteen"}),
    "claim_invalid": Passing({"principal_claim": "who"}, claims={"sub": "", "who": "ann"}),
    "role_malformed": Passing({"roles_claim": "arns"}, claims={"roles": ["kiosk"], "arns": _KIOSK}),
    "role_missing": Passing({"roles_claim": "arns"}, claims={"roles": [], "arns": _KIOSK}),
    "role_not_in_token": Passing(
        claims={"roles": [f"{_ARN}lodger"]},
        ask={"role": "lodger"},
        ends=_grown("roles", {"name": "lodger", "arn": f"{_ARN}lodger"}),
    ),
    "ambiguous_role": Passing(
        {"preferred_role_claim": "preferred"},
        claims={"roles": [*_KIOSK, f"{_ARN}clerk"], "preferred": f"{_ARN}kiosk"},
    ),
    "denied_by_rule": Passing(
        claims={"roles": [f"{_ARN}guard"]},
        ends=lambda policy: _without("denies", "no-guard")(_without("denies", "no-guards")(policy)),
    ),
    "no_grant": Passing(
        claims={"roles": [f"{_ARN}clerk"]},
        ends=_grown(
            "grants",
            {"id": "late", "roles": ["clerk"], "methods": ["GET"], "path": "/kiosk", "backend": "orders-ro"},
        ),
    ),
    "scope_insufficient": Passing(
        claims={"scope": "late"}, ends=_grown("scopes", {"name": "late", "path": "/kiosk"})
    ),
}
"""By reason."""


def _issuer(number: int, row: Passing, *, ended: bool) -> Table | None:
    if row.untrusted and not ended:
        return None
    return {
        "name": f"passing{number}", "issuer": f"https://passing{number}.example",
        "jwks_uri": "{idp}/corp/jwks", "insecure_http": True, "audiences": ["edge"],
        "algorithms": ["ES256"], "scope_claim": "scope", "scope_required": False,
        **(row.issuer if ended else {}),
    }  # fmt: skip


def policy(base: Table, *, ended: bool) -> Table:
    """The policy in which every cause holds, or has ended.

    The role `lodger` opens the route from the start; only its name is unknown, or another role's.
    """
    found = {**base, "grants": [*base["grants"]]}
    tables = [_issuer(number, row, ended=ended) for number, row in enumerate(PASSINGS.values())]
    found["issuers"] = [*base["issuers"], *(table for table in tables if table is not None)]
    lodger: Table = {"id": "lodger", "roles": ["lodger"], "methods": ["GET"], "path": "/kiosk"}
    found["grants"].append(lodger | {"backend": "orders-ro"})
    if not ended:
        return _grown("roles", {"name": "lodger", "arn": f"{_ARN}former"})(found)
    for row in PASSINGS.values():
        found = found if row.ends is None else row.ends(found)
    return found


def _question(here: Sitting, number: int, row: Passing) -> Table:
    recipe = {"roles": ["kiosk"], "key": "ES256", **row.token}
    claims = {"iss": f"https://passing{number}.example", **row.claims}
    drop = [] if "nbf" in row.claims else ["nbf"]
    return question(here.token("corp", drop=drop, claims=claims, **recipe)) | dict(row.ask)


@check("identity.derived.passes", "DERIVED-RELOAD-003", features={"oidc", "reload"})
def passes(target: Target) -> str:
    """No refusal outlives its cause, and no allow the policy that gave it: the same bytes, judged anew.

    Every cause at once: there, ended, there again.
    """
    with sitting(target, "identity.derived.passes") as here:
        questions = [_question(here, number, row) for number, row in enumerate(PASSINGS.values())]
        base = here.place.policy
        for turn, ended in enumerate((False, True, False)):
            here.force(here.place.own(policy(base, ended=ended)), f"change {turn}")
            when = ("", "its cause has ended: ", "its cause is back: ")[turn]
            asks = [
                Ask(reason, asked, ALLOWED if ended else refusal(reason))
                for reason, asked in zip(PASSINGS, questions, strict=True)
            ]
            here.settle(asks)
            here.put(asks, when)
    return f"{here.asked} questions about {len(PASSINGS)} reasons"
