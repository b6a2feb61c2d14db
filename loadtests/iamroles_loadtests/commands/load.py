"""`iamroles load`: measure token-check latency through HAProxy, with every verdict judged."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from iamroles_loadtests import report as reports
from iamroles_loadtests import slo as slos
from iamroles_loadtests.runner import GeneratorError, Run, run
from iamroles_scenarios.errors import ControlError, DocumentError, StageError
from iamroles_scenarios.reference import reference_agent
from iamroles_scenarios.stage import KINDS, AgentSpec


@click.group()
def load() -> None:
    """Measure token-check latency through HAProxy."""


@load.command("run")
@click.option("--stage", type=click.Choice(KINDS), default="auto", show_default=True)
@click.option("--haproxy", metavar="VERSION", help="2.6, 2.8, 3.0, 3.2, or for processes a path.")
@click.option(
    "--agent",
    "agent_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another agent's agent.toml.  [default: the reference agent]",
)
@click.option(
    "--rate", type=click.FloatRange(1, 20_000), default=300.0, show_default=True, help="Per second."
)
@click.option(
    "--duration", type=click.FloatRange(1, 86_400), default=30.0, show_default=True, help="Seconds."
)
@click.option("--warmup", type=click.FloatRange(0), default=2.0, show_default=True, help="Seconds of it.")
@click.option("--users", type=click.IntRange(1, 1000), default=8, show_default=True, help="Connections.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the timetable.")
@click.option(
    "--slo",
    "slo_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=slos.DEFAULT,
    help="Objectives, TOML.  [default: the slo.toml that ships with this package]",
)
@click.option("--report", "directory", type=click.Path(file_okay=False, path_type=Path), help="For results.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run_command(
    *,
    stage: str,
    haproxy: str | None,
    agent_file: Path | None,
    rate: float,
    duration: float,
    warmup: float,
    users: int,
    seed: int,
    slo_file: Path,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Offer a mix of good, refused, expired and first-seen tokens, and judge every answer.

    Exit status: 0 objectives met, 1 not met, 2 bad arguments, 3 the stage or the generator failed.
    """
    if warmup >= duration:
        raise click.UsageError(f"--warmup {warmup:g} leaves nothing of --duration {duration:g}")
    console = Console(highlight=False, width=None if Console().is_terminal else 110)
    try:
        slo = slos.load(slo_file)
    except DocumentError as error:
        raise click.UsageError(str(error)) from error
    try:
        agent = AgentSpec.load(agent_file) if agent_file else reference_agent()
        asked = Run(agent, stage, haproxy, rate, duration, warmup, users, seed)
        with console.status(f"Offering {rate:g} requests a second for {duration:g} s..."):
            result = run(asked, slo)
    except (StageError, ControlError, GeneratorError) as error:
        click.echo(f"iamroles load: {error}", err=True)
        raise SystemExit(3) from error
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        reports.summary(result, console)
    if directory is not None:
        click.echo(f"written to {reports.write(result, directory)}", err=True)
    if not result["met"]:
        raise SystemExit(1)


@load.command("report")
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def report_command(*, results: tuple[Path, ...]) -> None:
    """Print a result again, or several side by side, the first as the measure of the others."""
    console = Console(highlight=False)
    try:
        found = [
            (path.parent.name if path.name == "result.json" else path.name, reports.load(path))
            for path in results
        ]
    except reports.ResultError as error:
        raise click.UsageError(str(error)) from error
    if len(found) == 1:
        reports.summary(found[0][1], console)
    else:
        reports.comparison(found, console)
