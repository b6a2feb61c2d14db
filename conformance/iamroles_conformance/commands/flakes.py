"""`iamroles conformance flakes`: the same run many times, to see how far its verdicts can be relied on."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.reports import flakes as reports
from iamroles_conformance.reports.evidence import environment
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.busy import WAYS
from iamroles_scenarios.base.busy import beside as busy
from iamroles_scenarios.checks.plan import named_by
from iamroles_scenarios.commands.values import OutputPath


@click.command(cls=Command)
@judges("agent", "address", "allowed", "lanes", "stage", "require", "haproxy", "scale")
@click.option("--runs", default=20, show_default=True, type=click.IntRange(min=1), help="Runs of this kind.")
@click.option("--beside", default="nothing", type=click.Choice(list(WAYS)), help="What keeps this host busy.")
@click.option("--check", "checks", multiple=True, metavar="NAME", help="A check, scenario or requirement.")
@click.option("--save", type=OutputPath(), help="Keep each run in this file; its runs count.")
@click.option(
    "--page", type=OutputPath(), help="Write the tables here, Markdown; what follows its first ## stays."
)
def flakes(
    *,
    subject: Subject,
    runs: int,
    beside: str,
    checks: tuple[str, ...],
    save: Path | None,
    page: Path | None,
) -> None:
    """Measure the flake rate and the time margin of each check, over many runs of the same agent.

    Each run is complete, with its own stage. Each is added to the file of --save, so that a measurement can
    be interrupted and continued. The file holds runs of the same agent, --haproxy and checks. They may differ
    in their stage, and in what was beside them (nothing, four endless loops, or these and a disk that copies
    files). The page shows all.
    """
    select = named_by(checks)
    planned = [check for check in subject.planned() if select(check)]
    done = reports.load(save) if save else []
    spec, names = subject.spec(), {check.name for check in planned}
    kind = {"agent": f"{spec.name} {spec.version}".strip(), "--haproxy": subject.haproxy}
    for number, former in enumerate(done, 1):
        other = [key for key, value in kind.items() if former.get(key) != value]
        if other := other + ["checks"] * (former["checks"].keys() != names):
            said = f"{save}:{number}: that run differs in {', '.join(other)}. Name another file."
            raise click.BadParameter(said, param_hint="--save")
    while (count := sum(_is_of(run, subject.stage, beside) for run in done)) < runs:
        with busy(beside), subject.run(planned) as run:
            results = [(check.name, result) for check, result in zip(planned, run.results(), strict=True)]
            here = environment()
            about = {
                **kind,
                "stage": run.stage.kind if run.stage else "none",
                "beside": beside,
                "haproxy": run.haproxy_version,
                "host": f"{here['processors']} processors, {here['system']}, {here['machine']}",
                "load": round(os.getloadavg()[1], 1),
                "day": datetime.now(UTC).date().isoformat(),
            }
        text = reports.line(results, about | {"seconds": round(run.elapsed, 1)})
        if save:
            with save.open("a", encoding="utf-8") as file:
                file.write(text)
        done.append(json.loads(text))
        click.echo(f"run {count + 1} of {runs}: {run.elapsed:.0f} s")
        for name, result in results:
            if result.verdict not in reports.PASSED:
                click.echo(f"  {result.verdict.value} {name}: {result.message.partition(chr(10))[0]}")
    command = " ".join(
        ["iamroles conformance flakes", *subject.arguments("--"), f"--runs={runs}", f"--beside={beside}"]
    )
    text = reports.as_markdown(done, " ".join([command, *(f"--check={name}" for name in checks)]))
    if page:
        _, heading, words = (
            page.read_text(encoding="utf-8").partition("\n## ") if page.exists() else ("", "", "")
        )
        page.write_text(text + heading + words, encoding="utf-8")
        click.echo(f"wrote {page}")
    else:
        click.echo(text)


def _is_of(run: dict[str, Any], stage: str, beside: str) -> bool:
    return run["beside"] == beside and stage in ("auto", run["stage"])
