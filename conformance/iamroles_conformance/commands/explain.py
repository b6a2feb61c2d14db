"""`iamroles conformance explain`: what a name stands for."""

from __future__ import annotations

import click

from iamroles_conformance.commands.options import Command
from iamroles_conformance.reports.explain import about
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.planning import current


@click.command(cls=Command)
@click.argument("name")
def explain(*, name: str) -> None:
    """Explain a requirement (TOKEN-TIME-001), scenario (gate.expired) or check."""
    lines = list(about(current(name), plan()))
    if not lines:
        raise click.UsageError(f"nothing is called {name!r}: see `iamroles conformance list`.")
    click.echo("\n".join(lines))
