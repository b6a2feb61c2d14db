"""One row for each table of the policy (SPEC.md section 6): what happens to it in a reload, and to nothing
else.

The checks of the keys change everything at once. An agent that takes a reload up by comparing tables, and
overlooks one, is found only where that one changes alone. So each row is added to the world, changed, and
taken away again, by reloads of its own, and the same question is asked after each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from iamroles_scenarios.checks.derived.issuer_rows import Row
from iamroles_scenarios.checks.derived.issuers import entry
from iamroles_scenarios.checks.derived.sitting import (
    ALLOWED,
    Ask,
    Sitting,
    Wanted,
    question,
    refusal,
    sitting,
)
from iamroles_scenarios.checks.identity.caller import session_of
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_ARN = "arn:aws:iam::111111111111:role/"
Policy = Mapping[str, Any]
State = tuple[Policy, Wanted]
"""Tables of the policy, and what comes of the question under them."""


def _grown(base: Policy, **rows: Any) -> dict[str, Any]:  # noqa: ANN401 - rows of tables
    """The policy with one more row in each of these tables."""
    return {**base, **{table: [*base.get(table, []), row] for table, row in rows.items()}}


def _grants(base: Policy) -> list[State]:
    grant = {"id": "new", "roles": ["clerk"], "methods": ["GET"], "path": "/kiosk", "backend": "orders-ro"}
    moved = {"allow": True, "backend": "orders-rw", "rule": "new"}
    return [
        (_grown(base, grants=grant), ALLOWED),
        (_grown(base, grants=grant | {"backend": "orders-rw"}), moved),
        (_grown(base, grants=grant | {"methods": ["POST"], "path": "/other"}), refusal("no_grant")),
    ]


def _denies(base: Policy) -> list[State]:
    deny = {"id": "new", "roles": ["kiosk"], "path": "/kiosk"}
    return [
        (_grown(base, denies=deny), refusal("denied_by_rule", rule="new")),
        (_grown(base, denies=deny | {"id": "newer"}), refusal("denied_by_rule", rule="newer")),
        (_grown(base, denies=deny | {"path": "/other"}), ALLOWED),
    ]


def _roles(base: Policy) -> list[State]:
    kept = [role for role in base["roles"] if role["name"] != "kiosk"]
    moved = {"name": "kiosk", "arn": f"{_ARN}moved"}
    brief = {"name": "kiosk", "arn": f"{_ARN}kiosk", "max_lifetime": "5s"}
    return [
        ({**base, "roles": [*kept, moved]}, refusal("no_grant")),
        ({**base, "roles": [*kept, brief]}, refusal("token_expired")),
        ({**base, "roles": [*kept, {"name": "kiosk", "arns": [f"{_ARN}moved", f"{_ARN}kiosk"]}]}, ALLOWED),
    ]


def _groups(base: Policy) -> list[State]:
    grant = {"id": "new", "roles": ["team"], "methods": ["GET"], "path": "/kiosk", "backend": "orders-ro"}
    with_ = _grown(base, groups={"name": "team", "roles": ["clerk"]}, grants=grant)
    without = _grown(base, groups={"name": "team", "roles": ["brief"]}, grants=grant)
    return [(with_, ALLOWED), (without, refusal("no_grant")), (with_, ALLOWED)]


def _scopes(base: Policy) -> list[State]:
    scope = {"name": "new", "path": "/kiosk"}
    shut = refusal("scope_insufficient")
    return [
        (_grown(base, scopes=scope), ALLOWED),
        (_grown(base, scopes=scope | {"path": "/other"}), shut),
        (_grown(base, scopes=scope | {"name": "newer"}), shut),
    ]


def _backends(base: Policy) -> list[State]:
    grants = [grant | {"backend": "spare"} if grant["id"] == "kiosk" else grant for grant in base["grants"]]
    moved = _grown({**base, "grants": grants}, backends={"name": "spare", "servers": ["127.0.0.1:9"]})
    return [(moved, {"allow": True, "backend": "spare"}), (base, {"allow": True, "backend": "orders-ro"})]


def _issuers(base: Policy) -> list[State]:
    keys = next(row["jwks_uri"] for row in base["issuers"] if row["name"] == "nested")
    table = entry(0, "", Row(None, None, ()), without=False) | {"jwks_uri": keys}
    stranger = refusal("issuer_untrusted")
    return [
        (_grown(base, issuers=table), ALLOWED),
        (_grown(base, issuers=table | {"audiences": ["hall"]}), refusal("audience_mismatch")),
        (_grown(base, issuers=table | {"issuer": "https://elsewhere.example"}), stranger),
        (_grown(base, issuers=table | {"algorithms": ["RS256"]}), refusal("algorithm_not_allowed")),
        (_grown(base, issuers=table), ALLOWED),
    ]


def _sts(base: Policy) -> list[State]:
    first, *rest = base["sts"]
    unknown = refusal("issuer_untrusted", "token_malformed", "sts_rejected")
    return [
        ({**base, "sts": rest}, unknown),
        (base, ALLOWED),
        ({**base, "sts": [first | {"accounts": ["222222222222"]}, *rest]}, {"allow": False}),
        ({**base, "sts": [first | {"hosts": ["elsewhere.sts.example"]}, *rest]}, unknown),
    ]


def _limits(base: Policy) -> list[State]:
    return [
        ({**base, "limits": {"max_lifetime": "60s"}}, refusal("token_lifetime")),
        ({**base, "limits": {"max_lifetime": "1h"}}, ALLOWED),
        ({**base, "limits": {"max_token_bytes": 256}}, refusal("token_too_large")),
    ]


def _multi_role(base: Policy) -> list[State]:
    return [
        ({**base, "multi_role": "union"}, ALLOWED),
        ({**base, "multi_role": "deny"}, refusal("ambiguous_role")),
    ]


EVENTS: Mapping[str, tuple[Mapping[str, Any] | None, Wanted, Callable[[Policy], list[State]]]] = {
    "grants": ({"roles": ["clerk"]}, refusal("no_grant"), _grants),
    "denies": ({"roles": ["kiosk"]}, ALLOWED, _denies),
    "roles": ({"roles": ["kiosk"], "iat": "-60s"}, ALLOWED, _roles),
    "groups": ({"roles": ["clerk"]}, refusal("no_grant"), _groups),
    "scopes": ({"roles": ["kiosk"], "scope": "new"}, refusal("scope_insufficient"), _scopes),
    "backends": ({"roles": ["kiosk"]}, ALLOWED, _backends),
    "issuers": (
        {"roles": ["kiosk"], "iss": "https://issuer0.example"},
        refusal("issuer_untrusted"),
        _issuers,
    ),
    "sts": (None, ALLOWED, _sts),
    "limits": ({"roles": ["kiosk"]}, ALLOWED, _limits),
    "multi_role": ({"roles": ["kiosk", "clerk"]}, refusal("ambiguous_role"), _multi_role),
}
"""By table: the recipe of the token (None: an STS credential), the verdict before, and the reloads."""


@check("policy.derived.events", "DERIVED-RELOAD-001", features={"oidc", "reload"}, long=True)
def events(target: Target) -> str:
    """Each table of the policy takes effect by itself: what a reload adds, changes and takes away.

    One table at a time; the same bytes are asked before and after, and a fresh token too.
    """
    with sitting(target, "policy.derived.events") as here:
        base, reloads = here.place.policy, 0
        for table, (recipe, before, states) in EVENTS.items():
            if recipe is None and here.target.lacks(["sts"]):
                continue
            shown = _credential(here, recipe)
            for number, (policy, wanted) in enumerate([(base, before), *states(base), (base, before)]):
                here.force(policy, f"{table}, change {number}")
                reloads += 1
                what = f"{table}, after change {number}"
                asked = [Ask(what, question(shown), wanted)]
                if recipe is not None:
                    asked.append(Ask(f"{what}, a fresh token", question(_credential(here, recipe)), wanted))
                here.settle(asked)
                here.put(asked, window=1)
    return f"{here.asked} questions, {reloads} reloads"


def _credential(here: Sitting, recipe: Mapping[str, Any] | None) -> str:
    if recipe is not None:
        return here.token(key="ES256", **recipe)
    cloud = here.target.stage.cloud
    host = here.place.policy["sts"][0]["hosts"][0]
    return cloud.presign_caller_identity(session_of(cloud, "kiosk"), "edge-a", host=host)
