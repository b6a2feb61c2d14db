"""`iamroles load`: measure a gate, any SPOE agent or any URL at proxy speed, with every answer judged."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from iamroles_loadtests import report as reports
from iamroles_loadtests import result as results
from iamroles_loadtests import slo as slos
from iamroles_loadtests import targets
from iamroles_loadtests.conductor import SHARES, Conductor, Score, tokens_for_pairs
from iamroles_loadtests.generator import Generator, GeneratorError
from iamroles_loadtests.plan import Expected
from iamroles_loadtests.questions import POPULATIONS
from iamroles_loadtests.shapes import ANYWHERE, SHAPES, cold_tokens
from iamroles_scenarios.errors import ControlError, DocumentError, StageError
from iamroles_scenarios.reference import reference_agent
from iamroles_scenarios.stage import KINDS, AgentSpec

_PAIR_RATE = 1000.0
"""Requests a second of the paired measurement, at most: each new token has to be made before."""
INVALID = 4
_NOT_TOLD = ("directory", "as_json")
"""Options that say nothing about what was measured."""


@click.group()
def load() -> None:
    """Measure at proxy speed: latency by the kernel's stamps, every answer judged."""


def _parsed(items: Sequence[str], separator: str, what: str) -> dict[str, str]:
    found = {}
    for item in items:
        name, there, value = item.partition(separator)
        if not there or not name.strip():
            raise click.UsageError(f"{item!r}: write {what}")
        found[name.strip()] = value.strip()
    return found


@load.command("run")
@click.option("--stage", "kind", type=click.Choice(KINDS), default="auto", show_default=True)
@click.option("--haproxy", metavar="VERSION", help="2.6, 2.8, 3.0, 3.2, or for processes a path.")
@click.option(
    "--agent",
    "agent_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another agent's agent.toml.  [default: the reference agent]",
)
@click.option("--straight", is_flag=True, help="Ask the stage's agent by SPOP, without HAProxy.")
@click.option("--agent-address", metavar="HOST:PORT", help="Any running SPOE agent, asked by SPOP.")
@click.option(
    "--argument", "arguments", multiple=True, metavar="NAME=VALUE", help="Of iam-check, for these two."
)
@click.option("--url", metavar="URL", help="Any HTTP/1.1 server, e.g. your own HAProxy.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Of the requests to --url.")
@click.option("--method", default="GET", show_default=True, help="Of the requests to --url.")
@click.option("--status", type=click.IntRange(0, 999), help="The right status.  [default: 200; SPOP: any]")
@click.option("--holds", multiple=True, metavar="TEXT", help="What the right answer holds.")
@click.option("--pid", "pids", multiple=True, metavar="NAME=PID", help="Processes whose CPU time is read.")
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(1, 500_000),
    multiple=True,
    help="Per second, instead of the knee.",
)
@click.option("--shape", "shapes", type=click.Choice(list(SHAPES)), multiple=True, help="Measured besides.")
@click.option(
    "--duration", type=click.FloatRange(0.5, 3600), default=4.0, show_default=True, help="Seconds of a phase."
)
@click.option(
    "--warmup", type=click.FloatRange(0, 60), default=0.5, show_default=True, help="Seconds before it."
)
@click.option("--connections", type=click.IntRange(1, 20_000), default=64, show_default=True)
@click.option("--in-flight", type=click.IntRange(1, 1024), default=1, show_default=True, help="By SPOP.")
@click.option("--pairs", type=click.IntRange(0, 200), default=7, show_default=True, help="Rounds; 0: none.")
@click.option("--constant", is_flag=True, help="Even gaps between requests, not a Poisson process.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the timetables.")
@click.option(
    "--slo",
    "slo_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=slos.DEFAULT,
    help="Objectives, TOML.  [default: the slo.toml that ships with this package]",
)
@click.option("--report", "directory", type=click.Path(file_okay=False, path_type=Path), help="For results.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def run_command(context: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - click's options
    """Find the knee, measure at a tenth, a half and nine tenths of it, and what the check itself costs.

    Exit status: 0 objectives met, 1 not met or wrong answers, 2 bad arguments, 3 the stage or the generator
    failed, 4 the run is invalid: the generator was not in time.
    """
    try:
        slo = slos.load(options["slo_file"])
        agent = AgentSpec.load(options["agent_file"]) if options["agent_file"] else reference_agent()
        opened = _target(options, agent)
    except (DocumentError, targets.TargetError) as error:
        raise click.UsageError(str(error)) from error
    except StageError as error:
        raise click.UsageError(str(error)) from error
    console = Console(highlight=False, width=None if Console().is_terminal else 110)
    asked = {name: _plain(name, value) for name, value in options.items() if name not in _NOT_TOLD}
    try:
        with console.status("Setting the stage...") as status, opened as target:
            with Generator(target.piles) as generator:
                played = _played(options, target, generator, status.update)
            result = results.assembled(
                target=target.about, asked=asked, reproduce=_command(context), slo=slo, **played
            )
    except (StageError, ControlError, GeneratorError, OSError) as error:
        click.echo(f"iamroles load: {error}", err=True)
        raise SystemExit(3) from error
    if options["as_json"]:
        click.echo(json.dumps(result, indent=2))
    else:
        reports.summary(result, console)
    if options["directory"] is not None:
        click.echo(f"written to {reports.write(result, options['directory'])}", err=True)
    if not result["met"] or result["wrong"]:
        raise SystemExit(1)
    if not result["valid"]:
        raise SystemExit(INVALID)


def _target(options: dict[str, Any], agent: AgentSpec) -> AbstractContextManager[targets.Target]:
    """What is measured, from the options.

    Raises:
        click.UsageError: options that do not go together.
    """
    strange = [name for name in ("url", "agent_address", "straight") if options[name]]
    if len(strange) > 1:
        raise click.UsageError("--url, --agent-address and --straight exclude each other")
    if strange and (needs := [name for name in options["shapes"] if name not in ANYWHERE]):
        raise click.UsageError(f"--shape {needs[0]} needs tokens: it is for the gate on a stage")
    pids = _numbers(_parsed(options["pids"], "=", "--pid agent=1234"))
    right = Expected(
        status=(0 if options["agent_address"] else 200) if options["status"] is None else options["status"],
        holds=list(options["holds"]),
    )
    if options["url"]:
        fields = _parsed(options["headers"], ":", "--header 'Name: value'")
        return nullcontext(
            targets.url(
                options["url"], method=options["method"].upper(), fields=fields, right=right, pids=pids
            )
        )
    check = _parsed(options["arguments"], "=", "--argument name=value")
    if options["agent_address"]:
        return nullcontext(targets.spoe(options["agent_address"], check=check, right=right, pids=pids))
    return targets.gate(
        agent,
        _wanted(options),
        kind=options["kind"],
        haproxy=options["haproxy"],
        straight_on=options["straight"],
    )


def _numbers(pids: dict[str, str]) -> dict[str, int]:
    wrong = [value for value in pids.values() if not value.isdecimal()]
    if wrong:
        raise click.UsageError(f"--pid: {wrong[0]!r} is not the number of a process")
    return {name: int(value) for name, value in pids.items()}


def _wanted(options: dict[str, Any]) -> targets.Wanted:
    each = options["duration"] + options["warmup"] + 1.0
    phases = len(options["rates"] or SHARES) + len(options["shapes"])
    return targets.Wanted(
        seconds=60.0 + phases * each,
        new=tokens_for_pairs(_score(options), _PAIR_RATE) if options["pairs"] else 0,
        populations=[name for name in options["shapes"] if name in POPULATIONS],
        hostile="hostile" in options["shapes"],
        cold=cold_tokens(each) if "cold" in options["shapes"] else 0,
    )


def _score(options: dict[str, Any]) -> Score:
    return Score(
        level=options["duration"],
        warmup=options["warmup"],
        rounds=options["pairs"],
        connections=options["connections"],
        in_flight=options["in_flight"],
        constant=options["constant"],
        seed=options["seed"],
    )


def _played(
    options: dict[str, Any], target: targets.Target, generator: Generator, say: Callable[[str], None]
) -> dict[str, Any]:
    """Play all parts of a run; arguments of `result.assembled`."""
    score = _score(options)
    conductor = Conductor(target, generator, score, say=say, generator=lambda: generator.pid)
    begun = time.time()
    rates: dict[str, float] = {f"{rate:g}": rate for rate in options["rates"]}
    knee = None
    if not rates or options["shapes"]:
        knee = conductor.knee()
    if knee is not None and not rates:
        rates = {name: knee["rate"] * share for name, share in SHARES.items()}
    phases = []
    for name, rate in rates.items():
        say(f"{name}: {rate:,.0f} a second")
        phases.append(conductor.play(conductor.phase(name, rate, score.level), "level"))
    for shape in options["shapes"]:
        assert knee is not None  # noqa: S101 - found above
        say(f"shape {shape}")
        chosen = SHAPES[shape](knee["rate"], score.level)
        phases.append(conductor.play(conductor.phase(shape, 0.0, score.level, **chosen), "shape"))
    pairs = None
    if target.paired:
        slowest = min(rates.values()) if knee is None else knee["rate"] * SHARES["low"]
        pairs = conductor.pairs(min(_PAIR_RATE, slowest))
    return {
        "phases": phases,
        "knee": knee,
        "pairs": pairs,
        "measured": conductor.measured,
        "events": [{"at": begun, "what": "begin"}],
    }


def _plain(name: str, value: object) -> object:
    if isinstance(value, tuple):
        return [_safe(name, str(item)) if isinstance(item, str) else item for item in value]
    return str(value) if isinstance(value, Path) else value


def _command(context: click.Context) -> str:
    """The command line that makes this run again; credentials are left out."""
    words = ["iamroles", "load", "run"]
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params.get(name)
        if name in _NOT_TOLD or value in (None, False, ()) or value == parameter.default:
            continue
        flag = parameter.opts[0]
        for item in value if isinstance(value, tuple) else (value,):
            words += [flag] if item is True else [flag, _safe(name, str(item))]
    return shlex.join(words)


def _safe(name: str, value: str) -> str:
    """A header or argument that may be a credential is named and not told."""
    if name == "headers" and ":" in value:
        return f"{value.partition(':')[0]}: ..."
    return f"{value.partition('=')[0]}=..." if name == "arguments" else value


@load.command("report")
@click.argument("result", type=click.Path(exists=True, path_type=Path))
def report_command(result: Path) -> None:
    """Print a result again."""
    try:
        found = results.load(result)
    except results.ResultError as error:
        raise click.UsageError(str(error)) from error
    reports.summary(found, Console(highlight=False))
