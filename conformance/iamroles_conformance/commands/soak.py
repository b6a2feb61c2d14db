"""`iamroles conformance soak`: traffic, rotation, revocation and faults for as long as one likes."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
from pathlib import Path

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.errors import ExitCode
from iamroles_conformance.reports import soak_page
from iamroles_conformance.subject import Subject
from iamroles_scenarios.commands.values import Length, Number, OutputPath
from iamroles_scenarios.engine.attempts import stretched
from iamroles_scenarios.engine.soak import soak as played
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import open_stage


@click.command(cls=Command)
@judges("agent", "stage", "require", "haproxy", "scale")
@click.option("--for", "length", default="10m", show_default=True, type=Length(), help="Length of the run.")
@click.option("--seed", type=int, help="Seed of events and traffic; default: random, and printed.")
@click.option("--rate", type=Number(min=1, max=100_000), default=100.0, show_default=True)
@click.option("--page", type=OutputPath(), help="Write an HTML page there.")
@click.option("--json", "data", type=OutputPath(), help="Write the result there.")
def soak(  # noqa: PLR0917 - as click gives them
    subject: Subject, length: float, seed: int | None, rate: float, page: Path | None, data: Path | None
) -> None:
    """Keep traffic, rotation, revocation and faults going, and judge every answer.

    Exit code 0 if all was right, 1 for wrong verdicts, for 5xx or missing answers that no fault excuses, for
    memory or descriptors that grow (runs of 5 minutes and more), and for a run with fewer than 1,000 answers
    or 20 events, which proves nothing; 6 if the host was late for all that was not right; 2 for a mistake in
    the command or agent.toml, 3 if the stage cannot be used.
    """
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    spec = subject.spec_for("a soak")
    again = ["iamroles", "conformance", "soak", *subject.arguments("--"), f"--for={length:g}s"]
    again += [f"--seed={seed}", f"--rate={rate:g}"]
    click.echo(f"soaking {spec.name} {spec.version} for {length:g} s, seed {seed}")
    with open_stage(subject.stage, subject.require, subject.haproxy) as stage:
        click.echo(stage.why)
        factor, busy = stretched()
        worlds = Worlds(stage, spec, scale=subject.scale * factor)
        click.echo(busy or "this host was quiet")
        target = Target("gate", stage, spec, worlds, subject.scale * factor)
        found = played(target, length, seed=seed, rate=rate, on_event=click.echo)
        worlds.close()
    result = soak_page.document(found, f"{spec.name} {spec.version}".strip(), stage.kind, shlex.join(again))
    for path, text in ((page, soak_page.html(result)), (data, json.dumps(result, indent=1))):
        if path is not None:
            path.write_text(text, encoding="utf-8")
            click.echo(f"wrote {path}")
    for line in soak_page.summary(result):
        click.echo(line)
    late = ExitCode.UNTESTABLE if found.late else ExitCode.PASSED
    sys.exit(ExitCode.FAILED if found.problems else late)
