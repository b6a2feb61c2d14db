"""`iamroles conformance fuzz`: broken inputs by the thousand, and the replay of what did harm."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.errors import ExitCode
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import CheckFailed, SelectionError, StageError
from iamroles_scenarios.commands.values import OutputPath
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.wire_target import wire_target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.wire.fuzz import FuzzReport, load, replay
from iamroles_scenarios.wire.fuzz import fuzz as run_fuzz
from iamroles_scenarios.wire.target import WireTarget


@click.command(cls=Command)
@judges("agent", "address", "allowed", "scale")
@click.option("--seed", type=int, help="Seed of the inputs; default: random, and printed.")
@click.option(
    "--count", type=click.IntRange(min=1), default=10_000, show_default=True, help="Number of inputs."
)
@click.option("--replay", "kept", type=click.Path(path_type=Path), help="Send the inputs of this file again.")
@click.option(
    "--save",
    type=OutputPath(),
    default=Path("iamroles-fuzz.json"),
    show_default=True,
    help="File for a failure.",
)
def fuzz(*, subject: Subject, seed: int | None, count: int, kept: Path | None, save: Path) -> None:
    """Send broken SPOP to an agent; it must stay alive, bounded, and right about good requests.

    Exit status: 0 if it did, 1 if not (the inputs are kept, and the command that replays them is printed),
    2 for a wrong option or file, 3 if the agent or the stage cannot be used.
    """
    number = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    try:
        inputs = None if kept is None else load(kept)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        with target_of(subject) as target:
            work = run_fuzz(target, seed=number, count=count) if inputs is None else replay(target, inputs)
            report = asyncio.run(work)
            log = "" if target.logs is None else target.logs()
    except CheckFailed as error:
        raise StageError(str(error)) from error
    _say(report, replayed=kept is not None)
    if report.failure:
        if kept is None:
            report.save(save)
            again = " ".join(["iamroles conformance fuzz", *subject.arguments("--"), f"--replay {save}"])
            click.echo(f"kept: {len(report.suspects)} inputs that were on their way; again:\n  {again}")
        elif report.suspects:
            click.echo(f"it was: {report.suspects[0].raw.hex()}")
        click.echo("\n".join(log.splitlines()[-15:]), err=True)
        sys.exit(ExitCode.FAILED)


def _say(report: FuzzReport, *, replayed: bool) -> None:
    grown = "memory not watched" if report.grown is None else f"grew by {report.grown >> 10} KiB"
    what = "replayed" if replayed else f"seed {report.seed}"
    click.echo(
        f"{report.sent} inputs in {report.seconds:.1f} s ({what}): {report.answered} answered, "
        f"{report.ended} ended their connection; {grown}"
    )
    if report.failure:
        click.echo(f"FAILED: {report.failure}")


@contextmanager
def target_of(subject: Subject) -> Iterator[WireTarget]:
    """The agent that was asked for, as the wire lane sees it.

    Raises:
        SelectionError: it does not speak SPOP.
        StageError: it cannot be started.
    """
    spec = subject.spec()
    if not spec.spop:
        raise SelectionError(f"{spec.path}: features.spop: is false, but the fuzzer asks over SPOP alone.")
    if spec.address:
        yield WireTarget(spec.address, time_scale=subject.scale, allowed=subject.allowed_arguments())
        return
    with (
        open_stage("processes") as stage,
        closing(Worlds(stage, spec, haproxy=False, scale=subject.scale)) as worlds,
        wire_target(Target("gate-spop", stage, spec, worlds, subject.scale)) as target,
    ):
        yield target
