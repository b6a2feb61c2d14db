"""`iamroles conformance report`: a saved run in other forms."""

from __future__ import annotations

from pathlib import Path

import click

from iamroles_conformance.commands.options import Command
from iamroles_conformance.reports import report as reports
from iamroles_scenarios.commands.values import OutputPath


@click.command(cls=Command)
@click.argument("saved", type=click.Path(path_type=Path))
@click.option("--html", type=OutputPath(), help="Write the page there.")
@click.option("--junit", type=OutputPath(), help="Write JUnit XML there.")
@click.option("--json", "json_", type=OutputPath(), help="Write the document there.")
def report(*, saved: Path, html: Path | None, junit: Path | None, json_: Path | None) -> None:
    """Write other formats of a saved report.json; without options, print a summary."""
    found = reports.load(saved)
    forms = ((html, reports.as_html), (junit, reports.as_junit), (json_, reports.as_json))
    for path, form in forms:
        if path is not None:
            path.write_text(form(found), encoding="utf-8")
            click.echo(f"wrote {path}")
    if not any((html, junit, json_)):
        product = found["product"]
        click.echo(
            f"{product['name']} {product['version']}, {found['stage']['why']} HAProxy {found['haproxy']}"
        )
        for check in found["checks"]:
            if check["verdict"] != "pass":
                click.echo(f"{check['verdict']:14} {check['name']}: {check['message']}")
        click.echo(", ".join(f"{count} {verdict}" for verdict, count in found["totals"].items()))
