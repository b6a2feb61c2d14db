"""Every rule of time (SPEC.md sections 5 and 6), and all of them at one second.

Every rule holds until a second, and no longer from it on. All tokens are minted so that this is the same
second for all rules. The check asks just before it, twice, so that the agent remembers the answer, and just
after, with tokens that it showed before and with new ones. If the rule ends access, `expires` must be that
second.

Agent and suite have one clock, but answers take their time. A question that was sent before the second and
answered after it proves nothing, and on a busy host there are many. The check then tries again with a later
second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.checks.derived.claims import ABSENT, minted
from iamroles_scenarios.checks.derived.world import derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN, AWS
from iamroles_scenarios.engine.answers import ALLOW, Expected, refusal
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target

_LEEWAY = 30
"""Seconds of the issuers `nested` and `outbound`."""
_BRIEF = 600
"""Seconds of the role `brief`."""
_BEFORE = 0.5
"""Seconds, times the scale, from minting a token to asking with it."""
_AFTER = 0.03
"""Seconds beyond the edge, for the time between two looks at a clock."""
_UNUSUAL: Expected = {"allow": {True, False}, "reason": {"", "token_not_yet_valid"}}
"""An `iat` ahead is refused in the grade `strict` alone (5.9)."""
_EXPIRED, _EARLY, _LONG = refusal("token_expired"), refusal("token_not_yet_valid"), refusal("token_lifetime")


@dataclass(frozen=True, slots=True)
class Rule:
    """Claims of a token whose verdict changes at one second, as offsets from it."""

    issuer: str
    claims: Mapping[str, Any]
    before: Expected
    after: Expected
    ends: bool = True
    """Access ends there, so `expires` is this second."""


_BRIEFLY = {"roles": [f"{ARN}brief"]}
RULES: Mapping[str, Rule] = {
    "exp": Rule("corp", {"exp": 0}, ALLOW, _EXPIRED),
    "exp, after a later nbf and iat": Rule("corp", {"exp": 0, "iat": -3000, "nbf": -3000}, ALLOW, _EXPIRED),
    "exp with leeway": Rule("nested", {"exp": -_LEEWAY}, ALLOW, _EXPIRED),
    "nbf": Rule("corp", {"nbf": 0}, _EARLY, ALLOW, ends=False),
    "nbf with leeway": Rule("nested", {"nbf": _LEEWAY}, _EARLY, ALLOW, ends=False),
    "iat": Rule("corp", {"iat": 0}, _UNUSUAL, ALLOW, ends=False),
    "iat with leeway": Rule("nested", {"iat": _LEEWAY}, _UNUSUAL, ALLOW, ends=False),
    "a role's lifetime": Rule("corp", {"iat": -_BRIEF, **_BRIEFLY}, ALLOW, _EXPIRED),
    "exp before the role's lifetime": Rule("corp", {"exp": 0, "iat": -60, **_BRIEFLY}, ALLOW, _EXPIRED),
    "a role's lifetime, with leeway": Rule(
        "nested", {"exp": 200, "iat": -_BRIEF, "realm": {**_BRIEFLY, "who": "ann"}}, ALLOW, _EXPIRED
    ),
    "the outer session": Rule("outbound", {AWS: {"original_session_exp": 0}}, ALLOW, _EXPIRED),
    "exp before the outer session": Rule(
        "outbound", {"exp": -_LEEWAY, AWS: {"original_session_exp": 500}}, ALLOW, _EXPIRED
    ),
    "a lifetime without iat, with leeway": Rule(
        "nested", {"iat": ABSENT, "exp": 900}, _LONG, ALLOW, ends=False
    ),
    "a lifetime without iat": Rule("corp", {"iat": ABSENT, "exp": 3600}, _LONG, ALLOW, ends=False),
}
"""Each is the only rule that its token meets at that second."""


def _asked(here: Bench, rule: Rule, second: int) -> dict[str, Any]:
    """Mint a new token whose verdict changes at a second."""
    said: dict[str, Any] = {"exp": 500, "iat": -60, "nbf": ABSENT, **rule.claims}
    claims = {name: second + value if isinstance(value, int) else value for name, value in said.items()}
    if AWS in claims:
        outer = second + rule.claims[AWS]["original_session_exp"]
        claims[AWS] = {"aws_account": "111111111111", "original_session_exp": outer}
    return iam_check(minted(here, rule.issuer, claims))


def _around(here: Bench, second: int) -> None:
    """Ask about all rules before and after one second."""
    shown, later, unseen = [], [], []
    for name, rule in RULES.items():
        check = _asked(here, rule, second)
        ends = {"expires": second} if rule.ends else {}
        shown.append(SpopQuestion(f"{name}, a moment before", check, {**rule.before, **ends}))
        later.append(SpopQuestion(f"{name}, at its second", check, rule.after))
        what = f"{name}, at its second, a token not seen before"
        unseen.append(SpopQuestion(what, _asked(here, rule, second), rule.after))
    answered = [here.actions(shown), here.actions(shown)]
    here.in_time(second, "questions before a second that was a few seconds off")
    for answers in answered:
        here.judge(shown, answers)
    rest(second + _AFTER - time.time())
    here.judge(later, here.actions(later))
    here.judge(unseen, here.actions(unseen))


@check("identity.derived.seconds", "DERIVED-TIME-001", features={"oidc"})
def seconds(target: Target) -> str:
    """Every rule of time holds to its last second and not beyond, with leeway and without."""
    with derived(target) as here:
        tokens = [minted(here, name, {}) for name in ("corp", "nested", "outbound")]
        here.wait_for_keys([SpopQuestion("keys", iam_check(token), ALLOW) for token in tokens])
        _around(here, math.ceil(time.time() + target.seconds(_BEFORE)))
        return f"{here.asked} questions about {len(RULES)} rules"
