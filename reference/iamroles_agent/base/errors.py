"""Faults of the operator's input, said so that the operator can mend them. Verdicts are in `reasons`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration or policy file."""

    file: str
    key: str
    """Dotted path with list indices, e.g. `grants[2].backend`; "" for the whole file."""
    message: str
    """What is wrong."""
    remedy: str
    """What to do."""
    line: int | None = None
    """1-based; None where the format or a missing key gives none."""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        key = f" {self.key}:" if self.key else ""
        return f"{place}:{key} {self.message}. {self.remedy}"


class ConfigError(Exception):
    """All problems of one file at once."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class StartError(Exception):
    """The agent cannot start for a reason outside its files (a busy port, no permission): exit 3."""
