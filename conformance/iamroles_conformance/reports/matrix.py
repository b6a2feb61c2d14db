"""The matrix for readers: on the screen while it is played, and as the support page of the documentation."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iamroles_conformance.reports.report import Document
from iamroles_scenarios.base.pages.markdown import Section, cell, table
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.stage.haproxies import RELEASES
from iamroles_scenarios.stage.stage import Offer

BEGIN = "<!-- matrix: begin (written by `iamroles conformance matrix --docs`) -->"
END = "<!-- matrix: end -->"
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
    """The progress on a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._say = self._console.print

    def begins(self, offer: Offer, versions: Sequence[str]) -> None:
        """Print which versions are played, on which stage; which are not, and why."""
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
            run = [one for one in shlex.split(column.found["reproduce"]) if not one.startswith("--check=")]
            again = shlex.join([*run, f"--check={check['name']}"])
            self._say(f"  again: {escape(again)}", soft_wrap=True)
        good = "[green]passed[/green]" if column.found["passed"] else "[red]did not pass[/red]"
        self._say(f"HAProxy {column.version}: {good}, {_counts(column)} in {column.found['seconds']} s")

    def ends(self, columns: Sequence[Column]) -> None:
        """Print lanes down, versions across; then each requirement that is not a pass everywhere."""
        if not any(column.found for column in columns):
            return
        lanes = dict.fromkeys(check["lane"] for column in columns for check in column.checks)
        uneven = [name for name in _requirements(columns) if not _all_pass(columns, name)]
        for what, names, shown in (("lane", list(lanes), _of_lane), ("requirement", uneven, _coloured)):
            if names:
                found = Table(what, *(f"HAProxy {column.version}" for column in columns))
                for name in names:
                    found.add_row(name, *(shown(column, name) for column in columns))
                self._say(found)


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


def page(path: Path) -> Section:
    """The place for the table on a page, which may be new.

    Raises:
        PageError: it cannot be read or written, or has no such place.
    """
    return Section(path, BEGIN, END, f"# Support\n\n{BEGIN}\n{END}\n")


def as_markdown(columns: Sequence[Column]) -> list[str]:
    """Lay out what was played on what; then requirements down, versions across."""
    heading = ("HAProxy", "stage", "agent", "checks", "verdicts", "played")
    lines = [*table(heading, map(_about, columns)), ""]
    rows = [
        [
            f"`{name}`",
            cell(catalogue()[name].text),
            *(column.verdict(name) or ("" if column.found else _NOT_PLAYED) for column in columns),
        ]
        for name in _requirements(columns)
    ]
    return [*lines, *table(["requirement", "", *(column.version for column in columns)], rows)]


def _about(column: Column) -> list[str]:
    if column.found is None:
        return [column.asked, "", "", "0", f"{_NOT_PLAYED}: {cell(column.fault)}", ""]
    product = column.found["product"]
    agent = cell(f"{product['name']} {product['version']}".strip())
    kind, day = column.found["stage"]["kind"], column.found["finished"][:10]
    return [column.version, kind, agent, str(len(column.checks)), _counts(column), day]
