"""The matrix for readers: on the screen while it is played, and as the support page of the documentation."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iamroles_conformance.errors import PageError
from iamroles_conformance.reports.report import Document
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.stage.haproxies import RELEASES
from iamroles_scenarios.stage.stage import Offer

BEGIN = "<!-- matrix: begin (written by `iamroles conformance matrix --docs`) -->"
END = "<!-- matrix: end -->"
_NEW_PAGE = f"# Support\n\n{BEGIN}\n{END}\n"
_NOT_PLAYED = "not played"
_GOOD = {verdict.value for verdict in Verdict if verdict.good}


@dataclass(frozen=True, slots=True)
class Column:
    """One version of HAProxy and what came of it."""

    asked: str
    found: Document | None = None
    fault: str = ""
    """Why the stage could not be set up with it."""

    @property
    def version(self) -> str:
        """The exact version, or the one asked for."""
        return str(self.found["haproxy"]) if self.found else self.asked

    @property
    def checks(self) -> list[Document]:
        """Its checks as the result document has them."""
        return list(self.found["checks"]) if self.found else []

    @property
    def bad(self) -> list[Document]:
        """The checks that did not pass."""
        return [check for check in self.checks if not Verdict(check["verdict"]).good]

    def verdict(self, requirement: str) -> str:
        """The worst verdict of a requirement's checks; "" if none was played."""
        found = self.found["requirements"] if self.found else []
        return next((str(item["verdict"]) for item in found if item["id"] == requirement), "")


class Screen:
    """What a person at a terminal sees."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._say = self._console.print

    def begins(self, offer: Offer, versions: Sequence[str]) -> None:
        """Which versions are played, on which stage; which are not, and why."""
        self._say(escape(offer.why))
        self._say(f"HAProxy {', '.join(versions)}")
        if left_out := [release for release in RELEASES if release not in offer.versions]:
            self._say(f"[yellow]left out: {', '.join(left_out)}: they need the stage of containers[/yellow]")

    def played(self, column: Column) -> None:
        if column.found is None:
            self._say(f"[red]HAProxy {column.asked}: {_NOT_PLAYED}: {escape(column.fault)}[/red]")
            return
        for check in column.bad:
            self._say(f"[red]{check['verdict']}[/red] {escape(check['name'])}: {escape(check['message'])}")
            again = f"{column.found['reproduce']} --check {check['name']}"
            self._say(f"  again: {escape(again)}", soft_wrap=True)
        good = "[green]passed[/green]" if column.found["passed"] else "[red]did not pass[/red]"
        self._say(f"HAProxy {column.version}: {good}, {_counts(column)} in {column.found['seconds']} s")

    def ends(self, columns: Sequence[Column]) -> None:
        """The table: lanes down, versions across; then each requirement that is not a pass everywhere."""
        if not any(column.found for column in columns):
            return
        table = Table("lane", *(f"HAProxy {column.version}" for column in columns))
        lanes = dict.fromkeys(check["lane"] for column in columns for check in column.checks)
        for lane in lanes:
            table.add_row(lane, *(_of_lane(column, lane) for column in columns))
        self._say(table)
        uneven = [name for name in _requirements(columns) if not _all_pass(columns, name)]
        if uneven:
            table = Table("requirement", *(f"HAProxy {column.version}" for column in columns))
            for name in uneven:
                table.add_row(name, *(_coloured(column, name) for column in columns))
            self._say(table)


def _counts(column: Column) -> str:
    counts = Counter(check["verdict"] for check in column.checks)
    return ", ".join(
        f"{counts[verdict.value]} {verdict.value}" for verdict in Verdict if counts[verdict.value]
    )


def _of_lane(column: Column, lane: str) -> str:
    checks = [check for check in column.checks if check["lane"] == lane]
    if not checks:
        return f"[red]{_NOT_PLAYED}[/red]"
    good = sum(check["verdict"] in _GOOD for check in checks)
    colour = "green" if good == len(checks) else "red"
    return f"[{colour}]{good} of {len(checks)}[/{colour}]"


def _coloured(column: Column, requirement: str) -> str:
    verdict = column.verdict(requirement)
    if not verdict:
        return _NOT_PLAYED if column.found is None else ""
    return f"[{'green' if verdict in _GOOD else 'red'}]{verdict}[/]"


def _requirements(columns: Sequence[Column]) -> list[str]:
    """Ids on which any version has a verdict, in the catalogue's order."""
    return [name for name in catalogue() if any(column.verdict(name) for column in columns)]


def _all_pass(columns: Sequence[Column], name: str) -> bool:
    return all(column.verdict(name) == Verdict.PASS.value for column in columns)


# --- the page ----------------------------------------------------------------------------------------------


class Page:
    """A Markdown page with a place for the table, or a new one.

    Raises:
        PageError: it cannot be read, or has no place for the table.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else _NEW_PAGE
        except OSError as error:
            raise PageError(f"{path}: cannot be read: {error.strerror}.") from error
        if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
            raise PageError(f"{path}: has no place for the table. Put these two lines there:\n{BEGIN}\n{END}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PageError(f"{path}: cannot be written. Name another file.")
        self._before, _, rest = text.partition(BEGIN)
        self._after = rest.partition(END)[2]

    def write(self, columns: Sequence[Column]) -> None:
        """Put the table into its place; the rest of the page stays.

        Raises:
            OSError: it cannot be written.
        """
        text = f"{self._before}{BEGIN}\n{as_markdown(columns)}{END}{self._after}"
        self._path.write_text(text, encoding="utf-8")


def as_markdown(columns: Sequence[Column]) -> str:
    """What was played on what; then requirements down, versions across."""
    lines = ["| HAProxy | stage | agent | checks | verdicts | played |", "|---|---|---|---|---|---|"]
    for column in columns:
        if column.found is None:
            lines.append(f"| {column.asked} | | | 0 | {_NOT_PLAYED}: {_cell(column.fault)} | |")
            continue
        product = column.found["product"]
        agent = _cell(f"{product['name']} {product['version']}".strip())
        kind, day = column.found["stage"]["kind"], column.found["finished"][:10]
        checks = len(column.checks)
        lines.append(f"| {column.version} | {kind} | {agent} | {checks} | {_counts(column)} | {day} |")
    lines += ["", "| requirement | | " + " | ".join(column.version for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for name in _requirements(columns):
        cells = [column.verdict(name) or (_NOT_PLAYED if column.found is None else "") for column in columns]
        lines.append(f"| `{name}` | {_cell(catalogue()[name].text)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
