"""`iamroles load timeline`: a timeline (docs/under-fire.md) at any rate, judged, with figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from iamroles_loadtests.asking.targets import QUIET
from iamroles_loadtests.commands.options import console, faults
from iamroles_loadtests.pages.report import plain_table
from iamroles_scenarios.commands.staged import staged
from iamroles_scenarios.commands.values import Number
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.declarations.scenario import Scenario, scenarios
from iamroles_scenarios.engine.judged_traffic import JudgedTraffic
from iamroles_scenarios.engine.play import Watcher, play
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import AgentSpec, open_stage
from iamroles_scenarios.stage.reference import reference_agent
from iamroles_scenarios.traffic.polling import NANO

_REACHED = 0.9
"""Share of the rate that must be answered for the run to count as one at that rate."""


class _Meter(Watcher):
    """Keeps the traffic; of a timeline that was played again, the last."""

    traffic: JudgedTraffic | None = None

    def asked(self, traffic: JudgedTraffic) -> None:
        self.traffic = traffic

    def phases(self) -> Iterator[dict[str, Any]]:
        """Yield what was answered from each step to the next, and how soon (from sent, milliseconds)."""
        if self.traffic is None:
            return
        for name, begin, end in self.traffic.phases():
            entries = [entry for entry in self.traffic.ledger.between(begin, end) if entry.status]
            times = sorted(entry.received - entry.sent for entry in entries) or [0]
            seconds = max(end - begin, 1) / NANO
            yield {
                "from": name,
                "seconds": seconds,
                "answers": len(entries),
                "rate": len(entries) / seconds,
                **{f"p{share}": times[(len(times) - 1) * share // 100] / 1e6 for share in (50, 90, 99)},
                "max": times[-1] / 1e6,
            }


def _timeline(_context: click.Context, _option: click.Parameter, name: str) -> Scenario:
    known = {key: one for key, one in scenarios().items() if one.traffic is not None}
    if name not in known:
        raise click.BadParameter(f"{name!r} is not a timeline: take one of {', '.join(sorted(known))}")
    return known[name]


@click.command("timeline")
@click.argument("scenario", callback=_timeline)
@click.option("--rate", type=Number(1, 100_000), help="Questions a second.  [default: its own]")
@click.option("--connections", type=click.IntRange(1, 1000), help="[default: grows with the rate]")
@staged
@click.option("--time-scale", "scale", type=Number(min=0.1), default=1.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def timeline_command(  # noqa: PLR0917 - as click gives them
    scenario: Scenario,
    rate: float | None,
    connections: int | None,
    kind: str,
    haproxy: str | None,
    agent_file: Path | None,
    scale: float,
    as_json: bool,
) -> None:
    """Play SCENARIO, a timeline of the suite such as fire.keys, at a chosen rate.

    Exit status: 0 all was right, 1 it was not, 2 bad arguments, 3 the stage failed, or the agent lacks what
    the timeline needs.
    """
    traffic = scenario.traffic
    assert traffic is not None  # noqa: S101 - `_timeline` looked
    rate = rate or traffic.rate
    more = connections or min(1000, round(traffic.connections * max(1.0, rate / traffic.rate)))
    world = scenario.world.model_copy(update={"settings": scenario.world.settings | QUIET})
    faster = traffic.model_copy(update={"rate": rate, "connections": more})
    meter = _Meter()
    with faults():
        agent = AgentSpec.load(agent_file) if agent_file else reference_agent()
        with open_stage(kind, haproxy=haproxy) as stage:
            worlds = Worlds(stage, agent, scale=scale)
            target = Target("gate", stage, agent, worlds, scale)
            results = play(scenario.model_copy(update={"world": world, "traffic": faster}), target, meter)
            worlds.close()
    phases = list(meter.phases())
    answered = sum(one["answers"] for one in phases) / (sum(one["seconds"] for one in phases) or 1)
    reached = answered >= _REACHED * rate if phases else None
    if as_json:
        judged = [{"check": one.check, "verdict": one.verdict, "message": one.message} for one in results]
        asked = {
            "scenario": scenario.id,
            "rate": rate,
            "connections": more,
            "stage": stage.kind,
            "reached": reached,
        }
        click.echo(json.dumps({**asked, "phases": phases, "results": judged}, indent=1))
    else:
        if phases:
            _table(f"{scenario.id}: {rate:g} a second, {more} connections, {stage.kind}", phases)
        for one in results:
            click.echo(f"{one.verdict}  {one.check}: {one.message}")
    if reached is False:
        click.echo(
            f"iamroles load: {answered:,.0f} answers a second, not {rate:g}: the figures are of that. "
            "Give more --connections, or the generator a core of its own",
            err=True,
        )
    verdicts = {one.verdict for one in results}
    raise SystemExit(1 if Verdict.FAIL in verdicts else 0 if verdicts == {Verdict.PASS} else 3)


def _table(title: str, phases: list[dict[str, Any]]) -> None:
    heading = ("from", "seconds", "answers", "a second", "p50 ms", "p90 ms", "p99 ms", "max ms")
    found = plain_table(heading, "from", title)
    for one in phases:
        figures = (f"{one[key]:,.1f}" for key in ("p50", "p90", "p99", "max"))
        found.add_row(
            one["from"], f"{one['seconds']:.1f}", f"{one['answers']:,}", f"{one['rate']:,.0f}", *figures
        )
    console().print(found)
