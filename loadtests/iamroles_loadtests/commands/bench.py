"""`iamroles bench`: the cost of agent and gate, as ratios within a run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from iamroles_loadtests.asking.targets import LIFE
from iamroles_loadtests.bench import agent as agents
from iamroles_loadtests.bench import docs
from iamroles_loadtests.bench import gate as gates
from iamroles_loadtests.bench.agent import opened_bench
from iamroles_loadtests.commands.options import faults, usage
from iamroles_scenarios.base.pages.markdown import table
from iamroles_scenarios.commands.staged import with_options
from iamroles_scenarios.commands.values import Number
from iamroles_scenarios.stage import KINDS, AgentSpec

_common = with_options(
    click.option("--stage", "kind", type=click.Choice(KINDS), default="processes", show_default=True),
    click.option("--haproxy", metavar="VERSION", help="2.6, 2.8, 3.0, 3.2, or for processes a path."),
    click.option("--rounds", type=click.IntRange(1, 200), default=9, show_default=True),
    click.option("--seconds", type=Number(0.05, 60), default=0.7, show_default=True, help="Each turn."),
    click.option("--json", "as_json", is_flag=True, help="Print every figure of every round as JSON."),
    click.option(
        "--docs",
        "page",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Rewrite this bench's part of a page of Markdown.",
    ),
)
_BETWEEN = 0.2
"""Seconds from one turn to the next."""


class _Bench:
    """A bench of the command line.

    Args:
        name: of the command.
        options: those of `_common`.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name, self.options = name, options
        with usage():
            self._section = docs.section(options["page"], name) if options["page"] else None

    def run(self, measure: Callable[..., Any], *about: Any, turns: int, life: float, **more: Any) -> Any:  # noqa: ANN401 - what `measure` returns
        """Measure, unless the questions of this number of turns a round end before the last."""
        options = self.options
        takes = turns * options["rounds"] * (options["seconds"] * 1.25 + _BETWEEN)
        if takes > life:
            limit = f"{takes:,.0f} s of turns, with questions that pass for {life:,.0f} s"
            raise click.UsageError(f"{limit}: give fewer --rounds or --seconds.")
        with (
            faults("bench"),
            Console(stderr=True).status("Setting the stage...") as status,
            opened_bench(options["kind"], options["haproxy"]) as on,
        ):
            found = measure(on, *about, options["rounds"], options["seconds"], status.update, **more)
            self._haproxy = on.proxy.version
        return found

    def end(self, found: Any, lines: Iterable[str], wrong: list[str], page: Iterable[str]) -> None:  # noqa: ANN401
        """Print what was found, and put lines on the page if every answer was right."""
        click.echo(json.dumps(found, indent=1) if self.options["as_json"] else "\n".join(lines))
        if wrong:
            click.echo("\n".join(wrong), err=True)
            raise SystemExit(1)
        if self._section is not None:
            about = docs.circumstances(f"iamroles {self.name}", self._haproxy)
            self._section.write([about, "", *page])


@click.group()
def bench() -> None:
    """Measure what the check costs: contenders take turns, and ratios have intervals."""


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
    help="Identities in the agent's cache at 1,000 a second.",
)
def agent_command(*, peers: tuple[Path, ...], identities: int, **options: Any) -> None:  # noqa: ANN401 - click's
    """Measure the reference agent beside a no-op agent, HAProxy's own jwt_verify, and peers.

    Exit status: 0, 1 wrong answers, 2 bad arguments, 3 the stage or the generator failed.
    """
    with usage():
        others = [AgentSpec.load(peer) for peer in peers]
    this = _Bench("bench agent", options)
    turns = 2 * (4 + len(others))  # straight: those of the contender with a proof, and before it
    found = this.run(agents.measure, others, turns=turns, life=agents.PROVEN, identities=identities)
    shapes = [["", f"**{shape}**", "", *docs.rates(played)] for shape, played in found.items()]
    tables = list(itertools.chain(*shapes))
    targets = agents.targets(found)
    lines = [
        f"{what}: {docs.ranged(seen)}{f', target {target}' if target else ''}"
        for what, target, seen in targets
    ]
    rows = [(what, target, docs.ranged(seen), docs.verdict(target, seen)) for what, target, seen in targets]
    crowd = (
        f"At 1,000 a second the agent holds {identities:,} identities, {agents.CALM.once_share:.0%} of the "
        "tokens are new, and key sets are fetched each second."
    )
    page = [crowd, *tables, "", *table(("ratio", "target", "seen", ""), rows)]
    this.end(found, [*tables, "", *lines], agents.wrong(found), page)


@bench.command("gate")
@_common
@click.option(
    "--step", "chosen", multiple=True, help="Only this step; more than once for more.  [default: all]"
)
def gate_command(*, chosen: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click's
    """Measure what each step of the gate costs HAProxy: CPU microseconds a request at 64 connections.

    Exit status: as `bench agent`.
    """
    this = _Bench("bench gate", options)
    names = gates.step_names()
    if strange := sorted(set(chosen) - names.keys()):
        raise click.UsageError(f"unknown step {strange[0]!r}; the steps are {', '.join(names)}")
    names = {name: says for name, says in names.items() if name in (chosen or names)}
    played = this.run(gates.measure, names, turns=3 + len(names), life=LIFE)
    rows = [(row["step"], row["says"], docs.ranged(row)) for row in gates.rows(names, played)]
    lines = [f"{step:<28} {cost} µs  {says}" for step, says, cost in rows]
    page = table(("step", "what it does", "HAProxy's CPU, µs a request"), rows)
    this.end({"steps": names, "rounds": played}, lines, agents.wrong({"gate": played}), page)
