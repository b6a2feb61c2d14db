"""Reloads: what each changes, which refusals each ends, and which policies each must refuse.

*Events*: the checks of the keys change everything at once. An agent that takes a reload up by comparing
tables, and overlooks one, is found only if that table changes alone. So each row of data/derived/events.toml
is added to the policy, changed, and taken away again, by reloads of its own, and the same question is asked
after each.

*Passes*: data/derived/reasons.toml says of every reason what ends its cause. If another policy does, the row
has `passes`, which changes that and nothing else. One reload makes all changes and the next takes them back,
so an agent that remembers a refusal, or an allow, beyond the policy that gave it is wrong in one of them.

*Refused*: policies with a single fault, out of the table of keys (`schema`).
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from iamroles_scenarios.checks.derived.schema import (
    CONFLICTS,
    DECLARED,
    GRANTS,
    KEYS,
    ONE_OF,
    PROCESS,
    SHARED,
    SOUND,
    UNKNOWN,
)
from iamroles_scenarios.checks.derived.world import Policy, derived, edited, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN, filled, table
from iamroles_scenarios.engine.answers import ALLOW, ROWS, Expected, expected, refusal
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
                here.ask_all(asked, window=1, keys=True)
    return f"{here.asked} questions, {reloads} reloads"


def _credential(here: Bench, recipe: Mapping[str, Any] | None) -> str:
    return here.credential(here.session("kiosk")) if recipe is None else here.token(key="ES256", **recipe)


# --- passes -----------------------------------------------------------------------------------------------

PASSES: dict[str, Policy] = {reason: row["passes"] for reason, row in ROWS.items() if "passes" in row}
"""By reason: an issuer of its own, whose token is refused for this reason until these keys, or the policy,
change. With `untrusted`, the issuer is missing before."""
_BEGINS = 50
"""Seconds to the `nbf` of the row `token_not_yet_valid`; the row `token_expired` has a second more."""


def _passing_issuer(number: int, row: Policy, *, ended: bool) -> dict[str, Any] | None:
    if "untrusted" in row and not ended:
        return None
    return {
        "name": f"passing{number}", "issuer": f"https://passing{number}.example",
        "jwks_uri": "{idp}/corp/jwks", "insecure_http": True, "audiences": ["edge"],
        "algorithms": ["ES256"], "scope_claim": "scope", "scope_required": False,
        **(row.get("issuer", {}) if ended else {}),
    }  # fmt: skip


def passing_policy(base: Policy, *, ended: bool) -> dict[str, Any]:
    """Make the policy in which every cause holds, or has ended.

    The role `lodger` opens the route from the start; only its name is unknown, or another role's.
    """
    tables = [_passing_issuer(number, row, ended=ended) for number, row in enumerate(PASSES.values())]
    lodger = {"id": "lodger", "roles": ["lodger"], "methods": ["GET"], "path": "/kiosk"}
    former = [] if ended else [{"name": "lodger", "arn": f"{ARN}former"}]
    issuers, grants = [each for each in tables if each is not None], [lodger | {"backend": "orders-ro"}]
    found = edited(base, {"add": {"issuers": issuers, "grants": grants, "roles": former}})
    for row in PASSES.values():
        found = edited(found, row.get("edit", {}) if ended else {})
    return found


def _passing(here: Bench, number: int, row: Policy) -> dict[str, Any]:
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
        begin = here.now() + _BEGINS
        checks = [_passing(here, number, row) for number, row in enumerate(PASSES.values())]
        for number, when in enumerate(("", "its cause has ended: ", "its cause is back: ")):
            ended = number == 1
            here.must_reload(here.loan.own(passing_policy(here.loan.policy, ended=ended)), f"change {number}")
            questions = [
                SpopQuestion(reason, asked, ALLOW if ended else refusal(reason))
                for reason, asked in zip(PASSES, checks, strict=True)
            ]
            here.ask_all(questions, when, keys=True)
            here.in_time(begin, "questions before the `nbf` of a token")
    return f"{here.asked} questions about {len(PASSES)} reasons"


# --- refused ----------------------------------------------------------------------------------------------

_LARGE = [{"id": f"large{n}", "roles": ["kiosk"], "path": f"/large/{n}"} for n in range(2000)]
"""Denies that make more than 100 kB of a policy."""
_LOOK = 16
"""Policies that the agent turns down between two looks at what is in force."""
_WRONG = max(len(how.wrong) for keys in KEYS.values() for how in keys.values())
_DIGITS = 5000
_VAST = {"number": 10**_DIGITS - 1, "duration": f"{10**400 - 1}s"}


def whole(base: Policy) -> dict[str, Any]:
    """Give every table of a policy a row, so that each can be spoilt."""
    return copy.deepcopy(
        {
            **base,
            "groups": [{"name": "team", "roles": ["kiosk"]}],
            "keys": {"cooldown": "10s"},
            "limits": {"max_lifetime": "1h"},
        }
    )


def faults(base: Policy, features: Iterable[str] = DECLARED) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each fault in words, the key that the error must name, and the policy with the fault."""
    for name, keys in KEYS.items():
        if name == "backends.tls":
            continue  # the proxy's
        for key in UNKNOWN[name == "top" :]:  # there the first is another vendor's (6.1)
            yield f"an unknown key in {name}: {key}", key, _with(base, name, key, 1)
        for key, how in keys.items():
            if how.required:
                yield f"{name} without {key}", key, _with(base, name, key)
            if name == "top" and (how.table or key in PROCESS):
                continue
            for value in (how.wrong[0], *how.beyond):
                yield f"{name}.{key} = {value!r}", key, _with(base, name, key, value)
    yield from _mistyped(base)
    yield from _of_features(base, features)
    yield from _in_shadow(base)
    for name, names in ONE_OF.items():
        policy = whole(base)
        for key in names:
            policy[name][-1].pop(key, None)
        yield f"{name} without {' and '.join(names)}", "", policy
    for name, other, key, apart in SHARED:
        policy = whole(base)
        policy[other].append({**policy[other][0], **apart, key: policy[name][-1].get(key)})
        yield f"a name of {name} again in {other}", "", policy
    arn = base["roles"][0].get("arn")
    for twin in ({"arn": arn}, {"arns": [arn]}):
        policy = whole(base)
        policy["roles"].append({"name": "twin", **twin})
        yield f"one ARN under two names, by {min(twin)}", "", policy
    for meeting in CONFLICTS:
        policy = whole(base)
        policy["grants"] += [usual | own for usual, own in zip(GRANTS, meeting, strict=True)]
        yield f"grants that meet: {meeting}", "", policy
    deaf = [deny | {"roles": ["nobody"]} for deny in _LARGE]  # the answer is long, and still one line
    yield f"{len(deaf)} denies of an unknown role", "roles", {**whole(base), "denies": deaf}
    astray = _with(base, "grants", "backend", "nowhere")
    for name, key, value in (("keys", "refresh", 7), ("grants", "methods", 3)):
        what = f"{name}.{key} = {value}, and a grant to no backend"
        yield what, f"{key} backend", _with(astray, name, key, value)


def _mistyped(base: Policy) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield policies in which all keys of a table have values of other types: each is named (6.2)."""
    for name, number in itertools.product(KEYS, range(1, _WRONG)):
        spoilt = {key: how.wrong[number] for key, how in KEYS[name].items() if how.wrong[number:]}
        if spoilt and name != "backends.tls":
            policy = whole(base)
            _row(policy, name).update(spoilt)
            yield f"{name} with {spoilt}", " ".join(spoilt), policy


def _of_features(base: Policy, features: Iterable[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield faults of what agents with a feature must read; the error names the last key."""
    for name, rows in (pair for one in features for pair in DECLARED[one].items()):
        for row in rows:
            policy = {name: {}, **whole(base)}
            _row(policy, name).update(row)
            yield f"{name} with {row}", [*row][-1], policy


def _in_shadow(base: Policy) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield a fault of each key of a grant or deny that is not enforced: it is refused all the same."""
    for name in ("grants", "denies"):
        shadow = _with(base, name, "shadow", True)
        for key, value in ((key, how.beyond[-1]) for key, how in KEYS[name].items() if how.beyond):
            yield f"{name}.{key} = {value!r} in shadow", key, _with(shadow, name, key, value)


def _with(base: Policy, name: str, key: str, *values: object) -> dict[str, Any]:
    """Put a value at a key of the last row of a table, or take the key away."""
    policy = whole(base)
    row = _row(policy, name)
    row.pop(key, None)
    row.update(zip([key], values, strict=False))
    return policy


def _row(policy: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the last row of a table."""
    found: Any = policy if name == "top" else policy[name]
    row: dict[str, Any] = found[-1] if isinstance(found, list) else found
    return row


def _reload_vast(here: Bench, base: Policy, edits: Policy) -> None:
    """Give the agent a policy with numbers longer than Python writes by default."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(_DIGITS)
    try:
        here.reload(edited(base, filled(edits, _VAST)))
    finally:
        sys.set_int_max_str_digits(limit)


@check(
    "policy.derived.refused", "DERIVED-KEY-004", "DERIVED-RELOAD-002", features={"oidc", "reload"}, long=True
)
def refused(target: Target) -> str:
    """A policy with an unknown, missing or mistyped key, or a name twice, is refused and harmless.

    One fault at a time, while nobody answers for the keys: the agent still allows tokens that it never
    saw before. Before them vast numbers, which may be refused, a policy with all forms of the keys, and a
    large policy, which is read whole.
    """
    with derived(target, "policy.derived.refused") as here:
        base = whole(here.loan.policy)
        here.must_reload({"$schema": "https://iam.example/policy.json", **base}, "$schema is ignored: 6.1")
        here.must_reload({**base, "x-other": {"grants": [1]}}, "another vendor's table is ignored: 6.1")
        kept = here.token(roles=["kiosk"], exp="+55m")  # a reload may take seconds
        good = [SpopQuestion("before", iam_check(kept), ALLOW)]
        here.issuer().clear()  # of the fault below, if this is played again
        here.ask_all(good, keys=True)
        for key, edits in table("keys")["vast"].items():
            _reload_vast(here, base, edits)
            fresh = [SpopQuestion(f"after a vast {key}", iam_check(here.token(roles=["kiosk"])), ALLOW)]
            here.ask_all(fresh, keys=True)
        here.must_reload(edited(base, SOUND), "the least, the most and all forms that a policy may have")
        large = {"denies": [*base["denies"], *_LARGE], "x-other": {"notes": 1200 * ["x" * 1000]}}
        here.must_reload({**base, **large}, "many denies, and a megabyte of another vendor's (6.1)")
        last = iam_check(here.token(roles=["kiosk"]), path=_LARGE[-1]["path"])
        here.ask_all([SpopQuestion("the last of many denies", last, expected("denied_by_rule"))])
        here.issuer().fault("*", "status", status=500)
        count = 0
        declared = [feature for feature in DECLARED if not target.lacks([feature])]
        for what, key, policy in faults(base, declared):
            count += 1
            answer = here.reload(policy)
            if answer.get("reloaded"):
                here.note_wrong(f"taken up: {what}")
                here.must_reload(base, "the policy without a fault")
            elif not all(name in str(answer.get("error")) for name in key.split()):
                here.note_wrong(f"the error names no {key} ({what}): {str(answer.get('error'))[:120]}")
            if count % _LOOK == 1:
                token = here.token(roles=["kiosk"])
                here.ask_all(
                    [SpopQuestion(f"after a policy was turned down ({what})", iam_check(token), ALLOW)]
                )
        here.must_reload(base, "the former policy again")
        token = here.token(roles=["kiosk"])
        here.ask_all([*good, SpopQuestion("after the same policy again", iam_check(token), ALLOW)])
    return f"{count} policies"
