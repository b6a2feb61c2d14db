"""Every table of the policy (SPEC.md section 6): what happens to it in a reload, and to nothing else.

The checks of the keys change everything at once. An agent that takes a reload up by comparing tables, and
overlooks one, is found only if that table changes alone. So each row of data/derived/events.toml is added to
the policy, changed, and taken away again, by reloads of its own, and the same question is asked after each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from iamroles_scenarios.checks.derived.world import Policy, derived, edited, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import table
from iamroles_scenarios.engine.answers import Expected, expected
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target


def _policies(base: Policy, name: str, row: Mapping[str, Any]) -> Iterator[tuple[Policy, Expected]]:
    """Yield the policies of a row, one after the other, and the answer under each."""
    yield base, expected(row["before"])
    for changes, answer in row["states"]:
        edits = changes
        if "row" in row:
            keys = {"jwks_uri": _keys_of(base)} if name == "issuers" else {}
            added = {name: [row["row"] | keys | changes]}
            edits = {"add": added | ({"grants": [row["beside"]]} if "beside" in row else {})}
        yield edited(base, edits), expected(answer)
    yield base, expected(row["before"])


def _keys_of(base: Policy) -> str:
    """Return the address of this world's keys."""
    return str(next(issuer["jwks_uri"] for issuer in base["issuers"] if issuer["name"] == "nested"))


@check("policy.derived.events", "DERIVED-RELOAD-001", features={"oidc", "reload"}, long=True)
def events(target: Target) -> str:
    """Each table of the policy takes effect by itself: what a reload adds, changes and takes away.

    One table at a time; the same bytes are asked before and after, and a fresh token too.
    """
    with derived(target, "policy.derived.events") as here:
        reloads = 0
        for name, row in table("events").items():
            recipe = row.get("token")
            if recipe is None and here.target.lacks(["sts"]):
                continue
            shown = _credential(here, recipe)
            for number, (policy, answer) in enumerate(_policies(here.loan.policy, name, row)):
                here.must_reload(policy, f"{name}, change {number}")
                reloads += 1
                what = f"{name}, after change {number}"
                asked = [SpopQuestion(what, iam_check(shown), answer)]
                if recipe is not None:
                    fresh = _credential(here, recipe)
                    asked.append(SpopQuestion(f"{what}, a fresh token", iam_check(fresh), answer))
                here.wait_for_keys(asked)
                here.ask_all(asked, window=1)
    return f"{here.asked} questions, {reloads} reloads"


def _credential(here: Bench, recipe: Mapping[str, Any] | None) -> str:
    return here.credential(here.session("kiosk")) if recipe is None else here.token(key="ES256", **recipe)
