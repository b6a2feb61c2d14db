"""What happens to the gate when something around it breaks, and how soon the good are served again."""

from __future__ import annotations

NOT_PRODUCED = {
    "a clock that steps": "takes `faketime` in the agent",
    "a slow disk": "takes a device of the kernel's, as root",
    "a disk that is mounted read-only": "takes a mount namespace",
}
"""Faults that no stage produces, and why; whoever plays faults, or lists checks, is told so."""


def not_produced(checks: list[str]) -> list[str]:
    """In words, where faults are among these checks."""
    if not any(name.startswith("fault.") for name in checks):
        return []
    return [f"not produced by any stage: {what}, which {why}" for what, why in NOT_PRODUCED.items()]
