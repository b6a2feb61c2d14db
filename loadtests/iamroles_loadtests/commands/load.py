"""`iamroles load`: measure a gate, any SPOE agent or any URL at proxy speed, with every answer judged."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from iamroles_loadtests.asking import targets
from iamroles_loadtests.asking.questions import POPULATIONS
from iamroles_loadtests.asking.shapes import SHAPES, cold_tokens
from iamroles_loadtests.commands.options import (
    INVALID,
    command_line,
    console,
    end,
    faults,
    opened,
    shown,
    usage,
    where,
)
from iamroles_loadtests.commands.timeline import timeline_command
from iamroles_loadtests.locusting import composed
from iamroles_loadtests.measuring.conductor import SHARES, Conductor, RunOptions, longest, tokens_for_pairs
from iamroles_loadtests.measuring.generator import Generator
from iamroles_loadtests.measuring.hosted import hosted
from iamroles_loadtests.pages import page
from iamroles_loadtests.pages import report as reports
from iamroles_loadtests.results import result as results
from iamroles_loadtests.results import slo as slos
from iamroles_loadtests.results.compare import cautions, compared, obstacles
from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.commands.values import Number, OutputPath
from iamroles_scenarios.stage.haproxies import RELEASES
from iamroles_scenarios.traffic import Segment

_PAIR_RATE = 1000.0
"""Requests a second of the paired measurement, at most: each new token has to be made before."""


@click.group()
def load() -> None:
    """Measure at proxy speed: latency by the kernel's stamps, every answer judged."""


load.add_command(timeline_command)


@load.command("run")
@where
@click.option(
    "--rate",
    "rates",
    type=Number(1, 500_000),
    multiple=True,
    help="Requests a second; default: by the knee.",
)
@click.option("--shape", "shapes", type=click.Choice(list(SHAPES)), multiple=True, help="Also measured.")
@click.option(
    "--duration", type=Number(0.5, 3600), default=4.0, show_default=True, help="Seconds of a phase."
)
@click.option("--warmup", type=Number(0, 60), default=0.5, show_default=True, help="Seconds before it.")
@click.option("--connections", type=click.IntRange(1, 20_000), default=64, show_default=True)
@click.option("--in-flight", type=click.IntRange(1, 1024), default=1, show_default=True, help="By SPOP.")
@click.option("--pairs", type=click.IntRange(0, 200), default=7, show_default=True, help="Rounds; 0: none.")
@click.option("--tls", is_flag=True, help="Clients speak TLS to the stage's HAProxy.")
@click.option("--constant", is_flag=True, help="Even gaps between requests, not a Poisson process.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of timetables.")
@click.option(
    "--slo",
    "slo_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=slos.DEFAULT,
    help="Objectives, TOML.  [default: the slo.toml that ships with this package]",
)
@click.option("--report", "directory", type=OutputPath(folder=True), help="For results.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def run_command(context: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - click's options
    """Find the knee, measure at a tenth, a half and nine tenths of it, and what the check itself costs.

    Exit status: 0 objectives met, 1 not met or wrong answers, 2 bad arguments, 3 the stage or the generator
    failed, 4 the run is invalid: the generator was not in time.
    """
    with usage():
        slo = slos.load(options["slo_file"])
        opens = opened(options, _wanted(options))
    with faults(), console().status("Setting the stage...") as status, opens as target:
        with Generator(target.pools) as generator:
            played = _played(options, target, generator, status.update)
        result = results.assembled(
            target=target.about, asked=shown(options), reproduce=command_line(context), slo=slo, **played
        )
    end(result, options["directory"], as_json=options["as_json"])


def _wanted(options: dict[str, Any]) -> targets.Wanted:
    lengths, shapes = _run_options(options), options["shapes"]
    return targets.Wanted(
        seconds=60.0 + longest(lengths, len(options["rates"] or SHARES) + len(shapes)),
        new=tokens_for_pairs(lengths, _PAIR_RATE) if options["pairs"] else 0,
        populations=[name for name in shapes if name in POPULATIONS],
        hostile="hostile" in shapes,
        cold=cold_tokens(lengths.duration + lengths.warmup + 1.0) if "cold" in shapes else 0,
        tls=options["tls"],
        streams="streams" in shapes,
        second="second-agent" in shapes,
    )


def _run_options(options: dict[str, Any]) -> RunOptions:
    names = ("duration", "warmup", "pairs", "connections", "in_flight", "constant", "seed")
    return RunOptions(**{name: options[name] for name in names})


def _played(
    options: dict[str, Any], target: targets.Target, generator: Generator, say: Callable[[str], None]
) -> dict[str, Any]:
    """Play all parts of a run; arguments of `result.assembled`."""
    level = options["duration"]
    conductor = Conductor(target, generator, _run_options(options), say=say)
    events: list[dict[str, Any]] = [{"at": time.time(), "what": "begin"}]
    rates: dict[str, float] = {f"{rate:g}": rate for rate in options["rates"]}
    knee = None
    if not rates or options["shapes"]:
        knee = conductor.knee()
    if knee is not None and not rates:
        rates = {name: knee["rate"] * share for name, share in SHARES.items()}
    phases = []
    for name, rate in rates.items():
        say(f"{name}: {rate:,.0f} a second")
        phases.append(conductor.play(conductor.phase(name, rate, level)))
    for shape in options["shapes"]:
        assert knee is not None  # noqa: S101 - found above
        say(f"shape {shape}")
        chosen = SHAPES[shape](knee["rate"], level)
        phase = conductor.phase(shape, 0.0, level, **chosen)
        with _second_agent(target, level, events) if shape == "second-agent" else nullcontext():
            phases.append(conductor.play(phase, "shape"))
    pairs = None
    if target.paired:
        slowest = min(rates.values()) if knee is None else knee["rate"] * SHARES["low"]
        pairs = conductor.pairs(min(_PAIR_RATE, slowest))
    return {
        "phases": phases,
        "knee": knee,
        "pairs": pairs,
        "played": conductor.played,
        "events": events,
    }


@contextmanager
def _second_agent(target: targets.Target, seconds: float, events: list[dict[str, Any]]) -> Iterator[None]:
    """Start the second agent after a third of the time; note its share of the questions from then on."""
    second = target.second
    assert second is not None  # noqa: S101 - `_wanted` asked for it
    seen: list[int] = []

    def begin() -> None:
        second.start()
        events.append({"at": time.time(), "what": "a second agent begins"})
        seen.extend(target.questions())

    timer = threading.Timer(seconds / 3, begin)
    timer.start()
    try:
        yield
    finally:
        timer.join()
    if not seen:
        raise StageError("The second agent did not start.", {"agent": second.logs()})
    first, other = (after - before for before, after in zip(seen, target.questions(), strict=True))
    said = f"the second agent got {other / max(1, first + other):.0%} of the questions since it began"
    events.append({"at": time.time(), "what": said})
    click.echo(said, err=True)
    second.stop()


@load.command("locust", context_settings={"ignore_unknown_options": True})
@where
@click.option("--rate", type=Number(min=0), default=0.0, help="Per second; 0: a closed loop.")
@click.option("--connections", type=click.IntRange(1, 20_000), default=64, show_default=True)
@click.option("--in-flight", type=click.IntRange(1, 1024), default=1, show_default=True, help="By SPOP.")
@click.option("--report", "directory", type=OutputPath(folder=True), help="For results.")
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def locust_command(context: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - click's options
    """Run the load by locust: its UI, CSV, --processes, --master and --worker.

    What follows `--` is locust's: `iamroles load locust --rate 2000 -- --headless -t 30s --processes 2`. Its
    numbers are in microseconds, on lines of type `sent us` and `due us`. Give one user for each process.

    Exit status: 0, 1 wrong answers or faults, 2 bad arguments, 3 the stage or locust failed, 4 invalid.
    """
    phase = {
        "name": "locust",
        "connections": options["connections"],
        "in_flight": options["in_flight"],
        "timetable": [Segment(1.0, options["rate"])] if options["rate"] else [],
    }
    with usage():
        opens = opened({**options, "shapes": ()}, targets.Wanted(seconds=_run_time(options["rest"])))
    with faults(), opens as target:
        played = hosted(target, phase, options["rest"])
        target.still_there()
        result = results.assembled(
            target=target.about,
            asked=shown(options),
            reproduce=command_line(context),
            slo=slos.Slo(),
            phases=[played],
            played=[played],
        )
    end(result, options["directory"], as_json=False)


def _run_time(arguments: Sequence[str]) -> float:
    """Return the seconds of locust's `-t`, and some to begin and to end; without it, what tokens allow."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-t", "--run-time", default="")
    parts = re.findall(r"(\d+)([hms]?)", parser.parse_known_args(arguments)[0].run_time)
    seconds = sum(int(count) * {"h": 3600, "m": 60}.get(unit, 1) for count, unit in parts)
    return 60.0 + seconds if seconds else targets.LIFE


@load.command("compose")
@click.option("--rate", type=Number(min=0), default=2000.0, show_default=True, help="Sum over workers.")
@click.option("--duration", type=click.IntRange(2, 3000), default=20, show_default=True, help="Seconds.")
@click.option("--workers", type=click.IntRange(1, 100), default=2, show_default=True)
@click.option("--connections", type=click.IntRange(1, 20_000), default=64, show_default=True)
@click.option("--haproxy", type=click.Choice(sorted(RELEASES)), default="3.0", show_default=True)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("iamroles-load"),
    show_default=True,
    help="Where compose.yaml and the report are written.",
)
@click.option("--up/--no-up", default=True, help="Run it; or only write it.")
def compose_command(*, directory: Path, haproxy: str, up: bool, **options: Any) -> None:  # noqa: ANN401 - click's
    """Run HAProxy, two agents, mocks, a locust master and its workers, each in a container.

    Exit status: as `load run`.
    """
    settings = {"IAMROLES_PROJECT": f"iamroles-load-{secrets.token_hex(4)}", "IAMROLES_HAPROXY": haproxy}
    for name in ("rate", "duration", "workers", "connections"):
        settings[f"IAMROLES_{name.upper()}"] = f"{options[name]:g}"
    with faults():
        composed.prepare(directory, settings, haproxy=haproxy)
        code = composed.up(directory) if up else 0
    written = up and (directory / "out" / "result.json").exists()
    if written:
        click.echo(f"written to {directory / 'out'}", err=True)
    if code:  # 1 may also be docker's own
        raise SystemExit(code if written and code in (1, INVALID) else 3)


@load.command("report")
@click.argument("result", type=click.Path(exists=True, path_type=Path))
@click.option("--html", type=OutputPath(), help="Write its page, too.")
def report_command(result: Path, html: Path | None) -> None:
    """Print a result again."""
    with usage():
        found = results.load(result)
    reports.summary(found, console())
    if html is not None:
        html.write_text(page.render(found), encoding="utf-8")


@load.command("compare")
@click.argument("first", type=click.Path(exists=True, path_type=Path))
@click.argument("second", type=click.Path(exists=True, path_type=Path))
@click.option("--worse", type=Number(min=1.0), help="Fail if a ratio is above this with 95 % confidence.")
@click.option("--anyway", is_flag=True, help="Judge even if the runs do not compare.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option("--html", type=OutputPath(), help="Write a page of it, too.")
def compare_command(
    first: Path, second: Path, worse: float | None, html: Path | None, *, anyway: bool, as_json: bool
) -> None:
    """Compare two results: ratios of the second over the first, with 95 % intervals.

    Exit status: 0, 1 something is worse than --worse allows, 2 not two results, 4 the two do not compare
    (another machine or load, an invalid run, wrong answers) and there is no --anyway.
    """
    with usage():
        before, after = results.load(first), results.load(second)
    figures, why = compared(before, after), cautions(before, after)
    against = obstacles(before, after)
    if not {one.phase for one in figures} & {phase["name"] for phase in before["phases"]}:
        raise click.UsageError("the two runs have no phase in common")
    if as_json:
        found = {"comparable": not against, "obstacles": against, "cautions": why}
        click.echo(json.dumps(found | {"lines": [one.as_dict() for one in figures]}, indent=2))
    else:
        reports.comparison(figures, against, why, console())
    if html is not None:
        html.write_text(page.render_comparison(before, after), encoding="utf-8")
    if against and not anyway:
        raise SystemExit(INVALID)
    if worse is not None and any(one.low is not None and one.low > worse for one in figures):
        raise SystemExit(1)
