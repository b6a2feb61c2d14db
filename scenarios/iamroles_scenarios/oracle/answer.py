"""Whether an agent's answer is the one that the oracle gives: over SPOP, and as HAProxy shows it."""

from __future__ import annotations

from collections.abc import Mapping

from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.oracle.judge import Outcome

_PATH = (400, "invalid_request")
_TOKEN = (401, "invalid_token")
_FORBIDDEN = (403, "insufficient_scope")
_STATUS = {
    "path_ambiguous": _PATH,
    "role_malformed": _TOKEN,
    "token_expired": _TOKEN,
    "role_missing": _FORBIDDEN,
    "role_not_in_token": _FORBIDDEN,
    "ambiguous_role": _FORBIDDEN,
    "no_grant": _FORBIDDEN,
    "denied_by_rule": _FORBIDDEN,
    "scope_insufficient": _FORBIDDEN,
}
"""Status and RFC 6750 code of the reasons that the oracle knows (SPEC.md section 4)."""


def differences(expected: Outcome, answer: Mapping[str, object]) -> list[str]:
    """What differs between an outcome and the variables that an agent set; empty if nothing does.

    Args:
        expected: by `judge`.
        answer: variables of SPEC.md section 3 by name; unset ones are absent.
    """
    status, error = _STATUS.get(expected.reason, (200, ""))
    found = [
        *_differs("allow", {expected.allow}, answer.get("allow")),
        *_differs("status", {status}, answer.get("status")),
        *_differs("reason", {expected.reason}, answer.get("reason", "")),
        *_differs("error", {error}, answer.get("error", "")),
        *_differs("rule", expected.rules or {""}, answer.get("rule", "")),
        *_differs("backend", {expected.backend}, answer.get("backend", "")),
    ]
    if expected.allow:
        found += _differs("role", expected.roles, answer.get("role", ""))
        found += _differs("expires", {expected.expires}, answer.get("expires"))
    return found


def differences_seen(expected: Outcome, seen: Observation) -> list[str]:
    """As `differences`, for what a client of HAProxy, the backend and the log show.

    An ambiguous path is refused by HAProxy already, sometimes before any rule of it can name a reason.
    """
    status, error = _STATUS.get(expected.reason, (200, ""))
    found = [
        *_differs("a backend was reached", {expected.allow}, seen.allow),
        *_differs("status", {status}, seen.status),
        *_differs("backend", {expected.backend}, seen.backend),
    ]
    if expected.reason != "path_ambiguous":
        found += _differs("error", {error}, seen.error)
    if expected.allow:
        found += _differs("X-IAM-Rule", expected.rules, seen.tags.get("rule", ""))
        found += _differs("X-IAM-Role", expected.roles, seen.tags.get("role", ""))
        found += _differs("X-IAM-Expires", {str(expected.expires)}, seen.tags.get("expires", ""))
    return found


def said(expected: Outcome) -> str:
    """An outcome as a failed check prints it."""
    if not expected.allow:
        rules = f", rule {_either(expected.rules)}" if expected.rules else ""
        return f"refused: {expected.reason}{rules}"
    return (
        f"allowed by {_either(expected.rules)} to {expected.backend}, "
        f"role {_either(expected.roles)}, expires {expected.expires}"
    )


def _differs(name: str, wanted: set[object] | frozenset[str], got: object) -> list[str]:
    # `True == 1`: a verdict of the wrong type is no verdict.
    if any(type(got) is type(value) and got == value for value in wanted):
        return []
    return [f"{name}: expected {_either(wanted)}, got {got!r}"]


def _either(values: set[object] | frozenset[str]) -> str:
    return " or ".join(sorted(map(repr, values)))
