"""What can go wrong with the stage itself; never a verdict on the agent."""

from __future__ import annotations


class StageError(Exception):
    """The stage cannot be set up or used. Commands exit 3.

    Args:
        message: one clear sentence: what is wrong and what to do.
        logs: tails of the logs concerned, by part.
    """

    def __init__(self, message: str, logs: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.logs = logs or {}

    def __str__(self) -> str:
        tails = (f"--- {part}\n{text}" for part, text in self.logs.items() if text)
        return "\n".join([self.message, *tails])
