"""Checks of faults: something around the gate breaks, and callers must be served again soon after."""

from __future__ import annotations

NOT_PRODUCED = {
    "a clock that steps": "takes `faketime` in the agent",
    "a slow disk": "takes a device of the kernel's, as root",
    "a disk that is mounted read-only": "takes a mount namespace",
}
"""Faults that no stage produces, and why. Commands that play faults or list checks say so."""


def not_produced(checks: list[str]) -> list[str]:
    """Return these faults in words if there are faults among the checks."""
    if not any(name.startswith("fault.") for name in checks):
        return []
    return [f"not produced by any stage: {what}, which {why}" for what, why in NOT_PRODUCED.items()]
