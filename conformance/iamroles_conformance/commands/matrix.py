"""`iamroles conformance matrix`: the checks through each version of HAProxy, one after the other.

The same run as `iamroles conformance run`, once for each version, one result document each. Which versions
there are is the stage's matter: containers have four, processes what this host has. A version that was asked
for and is missing ends the command before any check runs; other missing versions are named as left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.errors import ExitCode
from iamroles_conformance.reports import matrix as tables
from iamroles_conformance.reports import report
from iamroles_conformance.reports.matrix import Column
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import AgentFileError, StageError
from iamroles_scenarios.checks.plan import named_by
from iamroles_scenarios.commands.values import OutputPath
from iamroles_scenarios.declarations.scenario import PlannedCheck
from iamroles_scenarios.stage.haproxies import RELEASES
from iamroles_scenarios.stage.stage import Offer, offered

LANES = ("gate", "proxy")
"""The default: everything that goes through HAProxy."""


def chosen(asked: Iterable[str], offer: Offer) -> list[str]:
    """The versions to play: those asked for, else all that the stage offers.

    Args:
        asked: versions, each value one or several with commas between.
        offer: what the stage has.

    Raises:
        StageError: a version that was asked for cannot run here, or nothing can.
    """
    wanted = [version.strip() for value in asked for version in value.split(",") if version.strip()]
    missing = [version for version in wanted if version not in offer.versions]
    if missing or not (wanted or offer.versions):
        here = ", ".join(offer.versions) or "none"
        remedy = "choose among these"
        if offer.kind != "containers":
            remedy = f"--stage=containers, with a Docker engine, has {', '.join(RELEASES)}"
        what = ", ".join(missing) or "nothing"
        raise StageError(
            f"HAProxy {what} cannot run on the stage of {offer.kind}, which has {here}: {remedy}. {offer.why}"
        )
    return list(dict.fromkeys(wanted)) or list(offer.versions)


def play(subject: Subject, version: str, planned: list[PlannedCheck]) -> Column:
    """Play checks through one version.

    Raises:
        SelectionError: nothing to play.
        AgentFileError: the `agent.toml` is missing or wrong.
    """
    asked = replace(subject, haproxy=version)
    try:
        with asked.run(planned) as run:
            pairs = list(zip(planned, run.results(), strict=True))
            return Column(version, report.document(asked, run, pairs))
    except AgentFileError:
        raise
    except StageError as error:
        return Column(version, fault=error.message)


def play_all(subject: Subject, versions: Iterable[str], checks: Iterable[str]) -> Iterator[Column]:
    """Play the subject's lanes through each version, one after the other.

    Raises:
        SelectionError: no check was selected, or an unknown lane.
    """
    select = named_by(checks)
    planned = [check for check in subject.planned() if select(check)]
    for version in versions:
        yield play(subject, version, planned)


def exit_code(columns: Iterable[Column]) -> ExitCode:
    """0 if all passed on all; 1 if a check did not; 3 if only a version could not be started."""
    columns = list(columns)
    if any(column.found is not None and not column.found["passed"] for column in columns):
        return ExitCode.FAILED
    return ExitCode.STAGE_FAULT if any(column.found is None for column in columns) else ExitCode.PASSED


@click.command(cls=Command)
@click.option("--haproxy", "versions", multiple=True, metavar="LIST", help="E.g. 2.6,3.2; default: all.")
@judges("agent", "lanes", "stage", "require", "scale")
@click.option("--check", "checks", multiple=True, metavar="NAME", help="A check, scenario or requirement.")
@click.option("--output", type=OutputPath(folder=True), help="One report per version.")
@click.option("--docs", type=OutputPath(), help="Put the support table into this page.")
def matrix(
    *,
    subject: Subject,
    versions: tuple[str, ...],
    checks: tuple[str, ...],
    output: Path | None,
    docs: Path | None,
) -> None:
    """Play the checks through several versions of HAProxy; without --lane, those of gate and proxy.

    Exit code 0 if all passed on all, 1 if a check did not, 2 for a mistake in the command, 3 if a version
    did not start.
    """
    if docs is not None and checks:
        raise click.UsageError("--docs describes whole lanes: leave out --check.")
    page = None if docs is None else tables.page(docs)
    console = tables.Screen()
    columns: list[Column] = []
    offer = offered(subject.stage, subject.require)
    played = chosen(versions, offer)
    console.begins(offer, played)
    through = replace(subject, stage=offer.kind, require=None, lanes=subject.lanes or LANES)
    folders = {version: output / f"haproxy-{version}" for version in played} if output else {}
    for folder in folders.values():
        report.remove(folder)
    for column in play_all(through, played, checks):
        columns.append(column)
        console.played(column)
        if column.found is not None and column.asked in folders:
            report.write(column.found, folders[column.asked])
    console.ends(columns)
    if page is not None:
        page.write(tables.as_markdown(columns))
        click.echo(f"wrote {docs}")
    sys.exit(exit_code(columns))
