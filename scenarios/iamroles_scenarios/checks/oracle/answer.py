"""Compares an agent's answer with the oracle's: over SPOP, and as HAProxy shows it."""

from __future__ import annotations

from collections.abc import Mapping

from iamroles_scenarios.checks.oracle.judge import Outcome
from iamroles_scenarios.engine.answers import REASONS
from iamroles_scenarios.engine.observation import Observation, differences

TEXTS = ("reason", "error", "rule", "backend", "role")


def unlike(expected: Outcome, answer: Mapping[str, object]) -> list[str]:
    """List the differences between an outcome and the variables that an agent set, by name."""
    return differences(wanted(expected), {**dict.fromkeys(TEXTS, ""), **answer})


def wanted(expected: Outcome) -> dict[str, object]:
    """Write an outcome as variables for `differences`; an unset one is ""."""
    status, error = REASONS.get(expected.reason, (200, frozenset({""})))
    found: dict[str, object] = {
        "allow": expected.allow,
        "status": status,
        "reason": expected.reason,
        "error": error,
        "rule": expected.rules or "",
        "backend": expected.backend,
    }
    if expected.allow:
        found |= {"role": expected.roles, "expires": expected.expires}
    elif expected.expires:
        found["expires"] = {None, "", expected.expires}
    return found


def unlike_seen(expected: Outcome, seen: Observation) -> list[str]:
    """Compare as `unlike` does, with the observation of a client of HAProxy.

    HAProxy itself refuses an ambiguous path, sometimes before a rule of the agent can name a reason.
    """
    if seen.unknown:
        return []
    status, error = REASONS.get(expected.reason, (200, frozenset({""})))
    shown: dict[str, object] = {"allow": expected.allow, "status": status, "backend": expected.backend}
    if expected.reason != "path_ambiguous":
        shown["error"] = error
    if expected.allow:
        shown |= {"rule": expected.rules, "role": expected.roles, "expires": str(expected.expires)}
    return differences(shown, seen.shown)


def said(expected: Outcome) -> str:
    """Write an outcome as a failed check prints it."""
    if not expected.allow:
        rules = f", rule {_either(expected.rules)}" if expected.rules else ""
        return f"refused: {expected.reason}{rules}"
    return (
        f"allowed by {_either(expected.rules)} to {expected.backend}, "
        f"role {_either(expected.roles)}, expires {expected.expires}"
    )


def _either(values: frozenset[str]) -> str:
    return " or ".join(sorted(map(repr, values)))
