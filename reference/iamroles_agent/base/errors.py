"""Faults of the operator's input, with remedies. Verdicts are in `reasons`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration or policy file."""

    file: str
    key: str
    """Dotted path with list indices, e.g. `grants[2].backend`; "" for the whole file."""
    message: str
    remedy: str
    line: int | None = None
    """1-based; None if it is not known."""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        key = f" {quoted(self.key)}:" if self.key else ""
        return f"{where}:{key} {self.message}. {self.remedy}"


def quoted(text: str) -> str:
    """Quote a text that is not one plain word, or means something else in a description; "any" for ""."""
    plain = re.fullmatch(r"(?!(?:any|anybody|nobody)\Z)[!#-:<-~]+", text)
    return text if plain else json.dumps(text) if text else "any"


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known name that is most similar to a name, for a remedy; "" if none is similar enough."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), "")


def line_of_digits(text: str) -> int | None:
    """Return the line of a number that has more digits than Python reads; None without one."""
    found = re.search("[0-9_]{4000}", text)
    return found and text.count("\n", 0, found.start()) + 1


class ConfigError(Exception):
    """All problems of a file at once."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class StartError(Exception):
    """The agent cannot start for a reason outside its files (a busy port, no permission): exit 3."""


class InUseError(StartError):
    """Another process has what the agent needs; it may be a member of a killed agent, and end in a moment."""


ENDING = 1.0
"""Seconds for the members of a killed agent to end."""
