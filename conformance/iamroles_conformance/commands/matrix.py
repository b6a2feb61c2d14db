"""`iamroles conformance matrix`: the checks through each version of HAProxy, one after the other.

The same run as `iamroles conformance run`, once for each version, one result document each. Which versions
there are is the stage's matter: containers have four, processes what this host has. A version that was asked
for and cannot run ends the command before anything is played; one that nobody asked for is named as left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from iamroles_conformance.reports import report
from iamroles_conformance.subject import Request
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.engine.run import ALL_LANES, PlannedCheck, SelectionError, selected_by
from iamroles_scenarios.stage import KINDS, StageError
from iamroles_scenarios.stage.haproxies import RELEASES
from iamroles_scenarios.stage.stage import Offer, offered

LANES = ("gate", "proxy")
"""What is played where nothing is said: everything that goes through HAProxy."""
_FAILED = 1
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

    @property
    def checks(self) -> list[report.Document]:
        """Its checks as the result document has them."""
        return list(self.found["checks"]) if self.found else []

    @property
    def bad(self) -> list[report.Document]:
        """The checks that did not pass."""
        return [check for check in self.checks if not Verdict(check["verdict"]).good]

    def verdict(self, requirement: str) -> str:
        """The worst verdict of a requirement's checks; "" if none was played."""
        found = self.found["requirements"] if self.found else []
        return next((str(item["verdict"]) for item in found if item["id"] == requirement), "")


def chosen(asked: Iterable[str], offer: Offer) -> list[str]:
    """The versions to play: those asked for, else all that the stage offers.

    Args:
        asked: versions, each value one or several with commas between.
        offer: what the stage has.

    Raises:
        StageError: one that was asked for cannot run here, or there is none at all.
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


def play(request: Request, version: str, planned: list[PlannedCheck]) -> Column:
    """Play checks through one version.

    Raises:
        SelectionError: nothing to play.
    """
    asked = replace(request, haproxy=version)
    try:
        with asked.run(planned) as run:
            pairs = list(zip(planned, run.results(), strict=True))
            return Column(version, report.document(asked, run, pairs))
    except StageError as error:
        return Column(version, fault=error.message)


def play_all(request: Request, versions: Iterable[str], checks: Iterable[str]) -> Iterator[Column]:
    """Play the request's lanes through each version, one after the other.

    Raises:
        SelectionError: no check was selected, or an unknown lane.
    """
    select = selected_by(checks)
    planned = [check for check in request.planned() if select(check)]
    for version in versions:
        yield play(request, version, planned)


def exit_code(columns: Iterable[Column]) -> int:
    """0 if all passed on all; 1 if a check did not; 3 if only a version could not be put up."""
    columns = list(columns)
    if any(column.found is not None and not column.found["passed"] for column in columns):
        return _FAILED
    return _STAGE_FAULT if any(column.found is None for column in columns) else 0


@click.command()
@click.option("--haproxy", "versions", multiple=True, metavar="LIST", help="E.g. 2.6,3.2; default: all here.")
@click.option("--agent", type=click.Path(), help="An agent.toml; default: the reference's.")
@click.option("--stage", type=click.Choice(KINDS), default="auto", show_default=True)
@click.option("--require", type=click.Choice(["containers"]), help="A missing engine is an error.")
@click.option(
    "--lane", "lanes", multiple=True, type=click.Choice(ALL_LANES), default=LANES, show_default=True
)
@click.option("--check", "checks", multiple=True, metavar="NAME", help="A check, scenario or requirement.")
@click.option("--time-scale", type=click.FloatRange(min=0.1), default=1.0, help="For deadlines.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="One report per version.")
@click.option(
    "--docs", type=click.Path(path_type=Path, dir_okay=False), help="Put the support table into this page."
)
def matrix(
    *,
    versions: tuple[str, ...],
    agent: str | None,
    stage: str,
    require: str | None,
    lanes: tuple[str, ...],
    checks: tuple[str, ...],
    time_scale: float,
    output: Path | None,
    docs: Path | None,
) -> None:
    """Play the checks through several versions of HAProxy.

    Exit code 0 if all passed on all, 1 if a check did not, 2 for a mistake in the command, 3 if a version
    could not be put up.
    """
    from iamroles_conformance.reports import matrix as tables  # noqa: PLC0415 - rich is for people

    if docs is not None and checks:
        raise click.UsageError("--docs describes whole lanes: leave out --check.")
    try:
        page = tables.Page(docs) if docs is not None else None
    except tables.PageError as error:
        raise click.UsageError(str(error)) from error
    console = tables.Screen()
    columns: list[Column] = []
    try:
        offer = offered(stage, require)
        played = chosen(versions, offer)
        console.begins(offer, played)
        request = Request(agent=agent, stage=offer.kind, lanes=lanes, scale=time_scale)
        for column in play_all(request, played, checks):
            columns.append(column)
            console.played(column)
            if output is not None and column.found is not None:
                report.write(column.found, output / f"haproxy-{column.asked}")
    except SelectionError as error:
        raise click.UsageError(str(error)) from error
    except StageError as error:
        click.echo(f"the stage cannot be used: {error}", err=True)
        sys.exit(_STAGE_FAULT)
    console.ends(columns)
    if page is not None:
        page.write(columns)
        click.echo(f"wrote {docs}")
    sys.exit(exit_code(columns))
