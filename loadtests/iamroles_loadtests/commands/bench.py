"""`iamroles bench`: what the agent and the gate cost, as ratios of one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from iamroles_loadtests.asking.gate_config import GateConfigError
from iamroles_loadtests.bench import agent as agents
from iamroles_loadtests.bench import docs
from iamroles_loadtests.bench import gate as gates
from iamroles_loadtests.bench.agent import Bench, opened_bench
from iamroles_loadtests.measuring.generator import GeneratorError
from iamroles_scenarios.base.errors import AgentFileError, ControlError, PageError, StageError
from iamroles_scenarios.commands.values import Number
from iamroles_scenarios.pages.markdown import table
from iamroles_scenarios.stage import KINDS, AgentSpec
from iamroles_scenarios.stage.haproxies import find

Command = Callable[..., Any]
_OPTIONS = (
    click.option("--stage", "kind", type=click.Choice(KINDS), default="processes", show_default=True),
    click.option("--haproxy", metavar="VERSION", help="2.6, 2.8, 3.0, 3.2, or for processes a path."),
    click.option("--rounds", type=click.IntRange(1, 200), default=9, show_default=True),
    click.option("--seconds", type=Number(0.05, 60), default=0.7, show_default=True, help="Of each turn."),
    click.option("--json", "as_json", is_flag=True, help="Print every figure of every round as JSON."),
    click.option(
        "--docs",
        "page",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Rewrite this bench's place on a page of Markdown.",
    ),
)


def _common(command: Command) -> Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group()
def bench() -> None:
    """What the check costs: contenders take turns in one run, and ratios are told with their intervals."""


@bench.command("agent")
@_common
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another agent's agent.toml; asked straight, it must allow the question.",
)
@click.option(
    "--identities",
    type=click.IntRange(1, 100_000),
    default=100_000,
    show_default=True,
    help="What the agent holds at 1,000 a second.",
)
def agent_command(
    kind: str,
    haproxy: str | None,
    rounds: int,
    seconds: float,
    *,
    peers: tuple[Path, ...],
    identities: int,
    page: Path | None,
    as_json: bool,
) -> None:
    """The reference agent beside a no-op agent, HAProxy's own jwt_verify, and peers.

    Exit status: 0, 1 wrong answers, 2 bad arguments, 3 the stage or the generator failed.
    """
    try:
        others = [AgentSpec.load(peer) for peer in peers]
        section = None if page is None else docs.section(page, "bench agent")
    except (AgentFileError, PageError) as error:
        raise click.UsageError(str(error)) from error
    found = _run(
        kind,
        haproxy,
        lambda on, say: agents.measure(on, others, rounds, seconds, say, identities=identities),
    )
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for shape, played in found.items():
            _table(shape, agents.rows(played))
        for what, target, seen in agents.targets(found):
            click.echo(f"{what}: {docs.told(seen)}{f', target {target}' if target else ''}")
    if faults := agents.wrong(found):
        click.echo("\n".join(faults), err=True)
        raise SystemExit(1)
    if section is not None:
        lines = [docs.circumstances("iamroles bench agent", docs.version_of(find(haproxy))), ""]
        crowd = (
            f"the agent holds {identities:,} identities, {agents.CALM.once_share:.0%} of the tokens are new"
        )
        lines += [f"At 1,000 a second {crowd}, and key sets are fetched each second.", ""]
        for shape, played in found.items():
            lines += [f"**{shape}**", "", *docs.rates(agents.rows(played)), ""]
        seen_of = agents.targets(found)
        rows = ((what, target, docs.told(seen), docs.verdict(target, seen)) for what, target, seen in seen_of)
        section.write([*lines, *table(("ratio", "target", "seen", ""), rows)])


@bench.command("gate")
@_common
@click.option(
    "--step", "chosen", multiple=True, help="Only this step; more than once for more.  [default: all]"
)
def gate_command(
    kind: str,
    haproxy: str | None,
    rounds: int,
    seconds: float,
    *,
    chosen: tuple[str, ...],
    page: Path | None,
    as_json: bool,
) -> None:
    """What each step of the gate costs HAProxy: CPU microseconds a request at 64 connections.

    Exit status: as `bench agent`.
    """
    try:
        section = None if page is None else docs.section(page, "bench gate")
    except PageError as error:
        raise click.UsageError(str(error)) from error
    names = gates.step_names()
    if strange := sorted(set(chosen) - names.keys()):
        raise click.UsageError(f"there is no step {strange[0]!r}; the steps are {', '.join(names)}")
    names = {name: says for name, says in names.items() if name in (chosen or names)}
    played = _run(kind, haproxy, lambda on, say: gates.measure(on, names, rounds, seconds, say))
    if as_json:
        click.echo(json.dumps({"steps": names, "rounds": played}, indent=1))
    else:
        for row in gates.rows(names, played):
            click.echo(f"{row['step']:<28} {docs.told(row)} µs  {row['says']}")
    if faults := agents.wrong({"gate": played}):
        click.echo("\n".join(faults), err=True)
        raise SystemExit(1)
    if section is not None:
        rows = ((row["step"], row["says"], docs.told(row)) for row in gates.rows(names, played))
        lines = [docs.circumstances("iamroles bench gate", docs.version_of(find(haproxy))), ""]
        heading = ("step", "what it does", "HAProxy's CPU, µs a request")
        section.write([*lines, *table(heading, rows)])


def _run(kind: str, haproxy: str | None, measure: Callable[[Bench, Callable[[str], None]], Any]) -> Any:  # noqa: ANN401 - what `measure` returns
    console = Console(stderr=True)
    try:
        with console.status("Setting the stage...") as status, opened_bench(kind, haproxy) as on:
            return measure(on, status.update)
    except (StageError, ControlError, GeneratorError, GateConfigError, OSError) as error:
        click.echo(f"iamroles bench: {error}", err=True)
        raise SystemExit(3) from error


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("")
    for heading in ("a second", "p50 µs", "p99 µs", "HAProxy's CPU µs", "agent's CPU µs"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (f"{row['rate']:,.0f}", f"{row['p50']:,.0f}", f"{row['p99']:,.0f}")
        cpu = (f"{row[part]:.2f}" if row[part] else "" for part in ("haproxy", "agent"))
        table.add_row(row["contender"], *figures, *cpu)
    Console(width=110).print(table)
