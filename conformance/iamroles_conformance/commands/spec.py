"""`iamroles conformance spec`: the contract, one clause of it, or a document that failures cite."""

from __future__ import annotations

import click

from iamroles_conformance.commands.options import Command
from iamroles_conformance.reports import contract


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
