"""`iamroles conformance explain`, `list` and `spec`: what a name, a check and a clause stand for."""

from __future__ import annotations

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.reports import contract
from iamroles_conformance.reports.explain import about
from iamroles_conformance.subject import Subject
from iamroles_scenarios.checks.fault import not_produced
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.catalogue import catalogue


@click.command(cls=Command)
@click.argument("name")
def explain(*, name: str) -> None:
    """Explain a requirement (TOKEN-TIME-001), scenario (gate.expired) or check."""
    lines = list(about(name, plan()))
    if not lines:
        raise click.UsageError(f"nothing is called {name!r}: see `iamroles conformance list`.")
    click.echo("\n".join(lines))


@click.command("list", cls=Command)
@judges("lanes")
@click.option("--requirements", is_flag=True, help="List requirements and how many checks prove each.")
def list_(*, subject: Subject, requirements: bool) -> None:
    """List checks, or requirements; starts nothing."""
    planned = subject.planned()
    if not requirements:
        for check in planned:
            click.echo(f"{check.name:52} {check.title}")
        for line in not_produced([check.name for check in planned]):
            click.echo(line)
        return
    for name, item in catalogue().items():
        proofs = sum(name in check.requirements for check in planned)
        click.echo(f"{name:22} {item.level:6} {proofs:3} checks  {item.text}")


@click.command(cls=Command)
@click.argument("what", required=False)
def spec(*, what: str | None) -> None:
    """Print SPEC.md; with WHAT one clause (6.12), a section (8), or a document (docs/stage.md).

    Everything that a failure cites ships with the suite, so this needs no checkout.
    """
    if what is None:
        click.echo(contract.spec())
    elif what[:1].isdigit():
        click.echo(contract.clause(what))
    else:
        click.echo(contract.document(what))
