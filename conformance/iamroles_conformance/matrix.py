"""`iamroles conformance matrix`: the gate scenarios through several HAProxy, and a support table."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import click

from iamroles_conformance import report
from iamroles_conformance.subject import Request
from iamroles_scenarios.engine_run import SelectionError, selected_by
from iamroles_scenarios.results import Verdict
from iamroles_scenarios.stage import KINDS, StageError

VERSIONS = ("2.6", "2.8", "3.0", "3.2")
_STAGE_FAULT = 3


@dataclass(frozen=True, slots=True)
class Column:
    """One version of HAProxy and what came of it."""

    asked: str
    found: report.Document | None = None
    fault: str = ""
    """Why the stage could not be set up with it."""

    @property
    def version(self) -> str:
        """The exact version, or the one asked for."""
        return str(self.found["haproxy"]) if self.found else self.asked

    def verdict(self, requirement: str) -> str:
        """The worst verdict of a requirement's checks; "" if none was played."""
        if self.found is None:
            return ""
        return next((item["verdict"] for item in self.found["requirements"] if item["id"] == requirement), "")


def play(request: Request, version: str, patterns: Iterable[str]) -> Column:
    """Play the gate lane through one version.

    Raises:
        SelectionError: no check was selected.
    """
    asked = replace(request, haproxy=version, lanes=("gate",))
    select = selected_by(patterns)
    planned = [check for check in asked.planned() if select(check)]
    try:
        with asked.run(planned) as run:
            pairs = list(zip(planned, run.results(), strict=True))
            return Column(version, report.document(asked, run, pairs))
    except StageError as error:
        return Column(version, fault=error.message)


def as_markdown(columns: list[Column]) -> str:
    """The support table: requirements down, versions across."""
    played = [column for column in columns if column.found]
    ids = {item["id"]: item["text"] for column in played for item in column.found["requirements"]}  # type: ignore[index]
    lines = ["| requirement | " + " | ".join(f"HAProxy {column.version}" for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, text in ids.items():
        cells = [column.verdict(name) or ("not played" if column.fault else "") for column in columns]
        lines.append(f"| `{name}` {text} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _summary(column: Column) -> str:
    if column.found is None:
        return f"HAProxy {column.asked}: not played: {column.fault}"
    counts = Counter(check["verdict"] for check in column.found["checks"])
    total = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    return f"HAProxy {column.version}: {total} in {column.found['seconds']} s"


def _failures(column: Column) -> list[str]:
    checks = column.found["checks"] if column.found else []
    return [
        f"  {c['verdict']}: {c['name']}: {c['message']}" for c in checks if not Verdict(c["verdict"]).good
    ]


@click.command()
@click.option("--haproxy", "versions", multiple=True, default=VERSIONS, show_default=True, metavar="VERSION")
@click.option("--agent", type=click.Path(), help="An agent.toml; default: the reference's.")
@click.option("--stage", type=click.Choice(KINDS), default="auto", show_default=True)
@click.option("--time-scale", type=click.FloatRange(min=0.1), default=1.0, help="For deadlines.")
@click.option("--check", "checks", multiple=True, metavar="NAME", help="A check, scenario or requirement.")
@click.option("--report", "directory", type=click.Path(path_type=Path), help="One report for each version.")
@click.option("--table", type=click.Path(path_type=Path), help="Write the support table (Markdown) there.")
def matrix(
    *,
    versions: tuple[str, ...],
    agent: str | None,
    stage: str,
    time_scale: float,
    checks: tuple[str, ...],
    directory: Path | None,
    table: Path | None,
) -> None:
    """Play the gate lane through several versions of HAProxy.

    Exit code 0 if all passed on all, 1 if a check did not, 3 if a version could not be put up: never skipped
    in silence.
    """
    request = Request(agent=agent, stage=stage, scale=time_scale)
    columns = []
    for version in versions:
        try:
            column = play(request, version, checks)
        except SelectionError as error:
            raise click.UsageError(str(error)) from error
        columns.append(column)
        click.echo("\n".join([_summary(column), *_failures(column)]))
        if directory is not None and column.found is not None:
            report.write(column.found, directory / f"haproxy-{column.asked}")
    if table is not None:
        table.write_text(as_markdown(columns), encoding="utf-8")
        click.echo(f"wrote {table}")
    if any(column.found is not None and not column.found["passed"] for column in columns):
        sys.exit(1)
    if any(column.fault for column in columns):
        sys.exit(_STAGE_FAULT)
