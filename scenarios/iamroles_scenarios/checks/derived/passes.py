"""Every refusal whose cause a reload can end: the same bytes, refused, accepted, refused again.

data/derived/reasons.toml says of every reason what ends its cause. If another policy does, the row has
`passes`, which changes that and nothing else. One reload makes all changes and the next takes them back, so
an agent that remembers a refusal, or an allow, beyond the policy that gave it is wrong in one of them.
"""

from __future__ import annotations

from typing import Any

from iamroles_scenarios.checks.derived.world import Policy, derived, edited, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN
from iamroles_scenarios.engine.answers import ALLOW, ROWS, refusal
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target

PASSES: dict[str, Policy] = {reason: row["passes"] for reason, row in ROWS.items() if "passes" in row}
"""By reason: an issuer of its own, whose token is refused for this reason until these keys, or the policy,
change. With `untrusted`, the issuer is missing before."""


def _issuer(number: int, row: Policy, *, ended: bool) -> dict[str, Any] | None:
    if "untrusted" in row and not ended:
        return None
    return {
        "name": f"passing{number}", "issuer": f"https://passing{number}.example",
        "jwks_uri": "{idp}/corp/jwks", "insecure_http": True, "audiences": ["edge"],
        "algorithms": ["ES256"], "scope_claim": "scope", "scope_required": False,
        **(row.get("issuer", {}) if ended else {}),
    }  # fmt: skip


def policy(base: Policy, *, ended: bool) -> dict[str, Any]:
    """Make the policy in which every cause holds, or has ended.

    The role `lodger` opens the route from the start; only its name is unknown, or another role's.
    """
    tables = [_issuer(number, row, ended=ended) for number, row in enumerate(PASSES.values())]
    lodger = {"id": "lodger", "roles": ["lodger"], "methods": ["GET"], "path": "/kiosk"}
    former = [] if ended else [{"name": "lodger", "arn": f"{ARN}former"}]
    found = edited(
        base,
        {
            "add": {
                "issuers": [each for each in tables if each is not None],
                "grants": [lodger | {"backend": "orders-ro"}],
                "roles": former,
            }
        },
    )
    for row in PASSES.values():
        found = edited(found, row.get("edit", {}) if ended else {})
    return found


def _asked(here: Bench, number: int, row: Policy) -> dict[str, Any]:
    recipe = {"roles": ["kiosk"], "key": "ES256", **row.get("token", {})}
    claims = {"iss": f"https://passing{number}.example", **row.get("claims", {})}
    drop = [] if "nbf" in claims else ["nbf"]
    token = here.token("corp", drop=drop, claims=claims, **recipe)
    return {**iam_check(token), **row.get("ask", {})}


@check("identity.derived.passes", "DERIVED-RELOAD-003", features={"oidc", "reload"})
def passes(target: Target) -> str:
    """No refusal outlives its cause, and no allow the policy that gave it.

    The same bytes are asked while every cause is there, when all have ended, and when they are back.
    """
    with derived(target, "identity.derived.passes") as here:
        checks = [_asked(here, number, row) for number, row in enumerate(PASSES.values())]
        for number, when in enumerate(("", "its cause has ended: ", "its cause is back: ")):
            ended = number == 1
            here.must_reload(here.loan.own(policy(here.loan.policy, ended=ended)), f"change {number}")
            questions = [
                SpopQuestion(reason, asked, ALLOW if ended else refusal(reason))
                for reason, asked in zip(PASSES, checks, strict=True)
            ]
            here.wait_for_keys(questions)
            here.ask_all(questions, when)
    return f"{here.asked} questions about {len(PASSES)} reasons"
