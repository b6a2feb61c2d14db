"""Policies that must not load, out of the table of keys (`schema`): one fault each."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from iamroles_scenarios.checks.derived.schema import KEYS, ONE_OF, PROCESS
from iamroles_scenarios.checks.derived.world import derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.answers import ALLOW
from iamroles_scenarios.engine.bench import SpopQuestion
from iamroles_scenarios.engine.target import Target

_TWICE = ("issuers", "sts", "roles", "groups", "backends", "grants", "denies")
"""Tables whose rows have names, each once; scopes may share one."""
_LOOK = 16
"""Policies that the agent turns down between two looks at what is in force."""


def whole(base: Mapping[str, Any]) -> dict[str, Any]:
    """Give every table of a policy a row, so that each can be spoilt."""
    return copy.deepcopy(
        {
            **base,
            "groups": [{"name": "team", "roles": ["kiosk"]}],
            "keys": {"cooldown": "10s"},
            "limits": {"max_lifetime": "1h"},
        }
    )


def faults(base: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each fault in words, the key that the error must name, and the policy with the fault."""
    for table, keys in KEYS.items():
        if table == "backends.tls":
            continue  # the proxy's
        yield f"an unknown key in {table}", "no_such_key", _with(base, table, "no_such_key", 1)
        for name, key in keys.items():
            if key.required:
                yield f"{table} without {name}", name, _with(base, table, name, None)
            if table == "top" and (key.table or name in PROCESS):
                continue
            yield f"{table}.{name} = {key.wrong!r}", name, _with(base, table, name, key.wrong)
            for value in key.beyond:
                yield f"{table}.{name} = {value!r}", name, _with(base, table, name, value)
    for table in _TWICE:
        policy = whole(base)
        policy[table].append(policy[table][0])
        yield f"a name of {table} twice", "", policy
    for table, names in ONE_OF.items():
        policy = whole(base)
        for name in names:
            policy[table][-1].pop(name, None)
        yield f"{table} without {' and '.join(names)}", "", policy
    policy = whole(base)
    policy["roles"].append({**policy["roles"][0], "name": "twin"})
    yield "one ARN under two names", "", policy


def _with(base: Mapping[str, Any], table: str, name: str, value: object) -> dict[str, Any]:
    """Put a value at a key of the last row of a table; None takes the key away."""
    policy = whole(base)
    row = policy if table == "top" else policy[table]
    row = row[-1] if isinstance(row, list) else row
    if value is None:
        row.pop(name, None)
    else:
        row[name] = value
    return policy


@check(
    "policy.derived.refused", "DERIVED-KEY-004", "DERIVED-RELOAD-002", features={"oidc", "reload"}, long=True
)
def refused(target: Target) -> str:
    """A policy with an unknown, missing or mistyped key, or a name twice, is refused and harmless.

    One fault at a time, while nobody answers for the keys: the agent still allows tokens that it never
    saw before.
    """
    with derived(target, "policy.derived.refused") as here:
        base = whole(here.loan.policy)
        here.must_reload({"$schema": "https://iam.example/policy.json", **base}, "$schema is ignored: 6.1")
        here.must_reload({**base, "x-other": {"grants": [1]}}, "another vendor's table is ignored: 6.1")
        good = [SpopQuestion("before", iam_check(here.token(roles=["kiosk"])), ALLOW)]
        here.wait_for_keys(good)
        here.ask_all(good)
        here.issuer().fault("*", "status", status=500)
        count = 0
        for what, key, policy in faults(base):
            count += 1
            answer = here.reload(policy)
            if answer.get("reloaded"):
                here.note_wrong(f"taken up: {what}")
                here.must_reload(base, "the policy without a fault")
            elif key and key not in str(answer.get("error")):
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
