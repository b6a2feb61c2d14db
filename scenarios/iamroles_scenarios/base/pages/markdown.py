"""Markdown that commands write: tables, and the section of a page between two marks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from iamroles_scenarios.base.errors import PageError


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay out a table; `cell` escapes what may hold anything."""
    lines = ["|" + "|".join(f" {text} " if text else " " for text in row) + "|" for row in (heading, *rows)]
    return [lines[0], "|---" * len(heading) + "|", *lines[1:]]


def cell(text: str) -> str:
    """Escape a text for a table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


class Section:
    """The text between two marks of a page.

    Args:
        path: of the page.
        begin: the first mark.
        end: the second.
        new: text of a page that does not exist yet; empty: it must exist.

    Raises:
        PageError: the page cannot be read or written, or has not exactly one such place.
    """

    def __init__(self, path: Path, begin: str, end: str, new: str = "") -> None:
        self._path = path
        try:
            text = new if new and not path.exists() else path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PageError(f"{path}: cannot be read: {error}") from error
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise PageError(f"{path}: has no place for the table. Put these two lines there:\n{begin}\n{end}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PageError(f"{path}: cannot be written. Name another file.")
        self._before, rest = text.split(begin)
        self._before += begin + "\n"
        self._after = end + rest.partition(end)[2]

    def write(self, lines: Iterable[str]) -> None:
        """Replace the section; the rest of the page stays.

        Raises:
            OSError: it cannot be written.
        """
        text = "\n".join(lines).rstrip("\n") + "\n"
        self._path.write_text(self._before + text + self._after, encoding="utf-8")
