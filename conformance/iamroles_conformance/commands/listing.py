"""`iamroles conformance list`: checks, or requirements."""

from __future__ import annotations

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.subject import Subject
from iamroles_scenarios.checks.fault import not_produced
from iamroles_scenarios.declarations.catalogue import catalogue


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
