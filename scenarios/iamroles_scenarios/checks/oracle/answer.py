"""Whether an agent's answer is the one that the oracle gives: over SPOP, and as HAProxy shows it."""

from __future__ import annotations

from collections.abc import Mapping

from iamroles_scenarios.checks.oracle.judge import Outcome
from iamroles_scenarios.engine.answers import REASONS
from iamroles_scenarios.engine.observation import Observation, differences

TEXTS = ("reason", "error", "rule", "backend", "role")


def unlike(expected: Outcome, answer: Mapping[str, object]) -> list[str]:
    """What differs between an outcome and the variables that an agent set; empty if nothing does.

    Args:
        expected: by `judge`.
        answer: variables of SPEC.md section 3 by name; unset ones are absent.
    """
    return differences(wanted(expected), {**dict.fromkeys(TEXTS, ""), **answer})


def wanted(expected: Outcome) -> dict[str, object]:
    """The variables of an outcome, as `differences` takes them; an unset one is ""."""
    status, error = REASONS.get(expected.reason, (200, ""))
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
    return found


def unlike_seen(expected: Outcome, seen: Observation) -> list[str]:
    """As `unlike`, for what a client of HAProxy, the backend and the log show.

    HAProxy itself refuses an ambiguous path, sometimes before any rule of it can name a reason.
    """
    status, error = REASONS.get(expected.reason, (200, ""))
    shown: dict[str, object] = {"allow": expected.allow, "status": status, "backend": expected.backend}
    if expected.reason != "path_ambiguous":
        shown["error"] = error
    if expected.allow:
        shown |= {"rule": expected.rules, "role": expected.roles, "expires": str(expected.expires)}
    return differences(shown, seen.shown)


def said(expected: Outcome) -> str:
    """An outcome as a failed check prints it."""
    if not expected.allow:
        rules = f", rule {_either(expected.rules)}" if expected.rules else ""
        return f"refused: {expected.reason}{rules}"
    return (
        f"allowed by {_either(expected.rules)} to {expected.backend}, "
        f"role {_either(expected.roles)}, expires {expected.expires}"
    )


def _either(values: frozenset[str]) -> str:
    return " or ".join(sorted(map(repr, values)))
