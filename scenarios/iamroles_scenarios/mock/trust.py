"""Trust policies, evaluated simply and closed: what is not understood does not match an Allow, and denies.

moto's own evaluation is unsound, so the front judges. Understood are: Effect, Action (with `*` at the end),
Principal `AWS` (account id, account root, role, user and session ARNs, `*`) and `Federated` (provider ARNs),
and the Condition operators StringEquals, StringNotEquals, StringLike, StringNotLike, ForAnyValue of the two
positive ones. Session policies and the caller's own identity policies are not looked at.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any


def allows(
    policy: Mapping[str, Any], action: str, principals: Sequence[str], context: Mapping[str, Sequence[str]]
) -> bool:
    """Return whether a trust policy lets one of `principals` do `action`.

    Args:
        policy: the document.
        action: for example `sts:AssumeRole`.
        principals: every ARN the caller is known by; a provider's ARN for web identities.
        context: condition keys, case-insensitive, to their values.
    """
    statements = policy.get("Statement", [])
    statements = [statements] if isinstance(statements, Mapping) else statements
    folded = {key.lower(): values for key, values in context.items()}
    allowed = False
    for statement in statements:
        effect = statement.get("Effect")
        matched = _matches(statement, action, principals, folded, doubt=effect != "Allow")
        if matched and effect != "Allow":
            return False
        allowed = allowed or matched
    return allowed


def _list(value: Any) -> list[Any]:  # noqa: ANN401 - any JSON
    return value if isinstance(value, list) else [value]


def _matches(
    statement: Mapping[str, Any],
    action: str,
    principals: Sequence[str],
    context: Mapping[str, Sequence[str]],
    *,
    doubt: bool,
) -> bool:
    """Return whether a statement applies; `doubt` is the answer where it says something we do not know."""
    if set(statement) - {"Sid", "Effect", "Action", "Principal", "Condition"}:
        return doubt
    if not any(
        fnmatch.fnmatchcase(action.lower(), str(each).lower()) for each in _list(statement.get("Action", []))
    ):
        return False
    if not _principal(statement.get("Principal"), principals):
        return False
    return all(
        _condition(operator, key, _list(values), context, doubt=doubt)
        for operator, table in statement.get("Condition", {}).items()
        for key, values in table.items()
    )


def _principal(principal: Any, principals: Sequence[str]) -> bool:  # noqa: ANN401 - any JSON
    if principal == "*":
        return True
    if not isinstance(principal, Mapping):
        return False
    named = {str(each) for kind in ("AWS", "Federated") for each in _list(principal.get(kind, []))}
    accounts = {each for each in named if each.isdecimal()}
    named |= {f"arn:aws:iam::{account}:root" for account in accounts}
    return "*" in named or any(each in named for each in principals)


def _condition(
    operator: str, key: str, wanted: list[Any], context: Mapping[str, Sequence[str]], *, doubt: bool
) -> bool:
    values = context.get(key.lower(), [])
    texts = [str(each) for each in wanted]
    if operator in ("StringEquals", "ForAnyValue:StringEquals"):
        return any(value in texts for value in values)
    if operator in ("StringLike", "ForAnyValue:StringLike"):
        return any(fnmatch.fnmatchcase(value, pattern) for value in values for pattern in texts)
    if operator == "StringNotEquals":
        return not any(value in texts for value in values)
    if operator == "StringNotLike":
        return not any(fnmatch.fnmatchcase(value, pattern) for value in values for pattern in texts)
    return doubt
