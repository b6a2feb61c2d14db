"""`iamroles conformance selftest`: the kill table."""

from __future__ import annotations

import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import click

from iamroles_conformance.commands.options import Command
from iamroles_conformance.errors import ExitCode
from iamroles_conformance.selftest import record
from iamroles_conformance.selftest.registry import FAMILIES, TOLERANT, Mutant, modules, mutants, permitted
from iamroles_conformance.selftest.runner import SIDE_BY_SIDE, MutantResult, Selftest
from iamroles_conformance.subject import default_agent_toml
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.commands.values import Number
from iamroles_scenarios.declarations.catalogue import catalogue
from iamroles_scenarios.engine.attempts import stretched
from iamroles_scenarios.stage import KINDS, AgentSpec, open_stage

_FILE = click.Path(dir_okay=False, path_type=Path)
_TWINS = 3
"""Limit of tolerant twins side by side. Each plays many checks at a time."""


@click.command(cls=Command)
@click.option("--family", "families", multiple=True, type=click.Choice(FAMILIES), help="Default: all.")
@click.option("--mutant", "names", multiple=True, metavar="ID", help="Only these; an id or a prefix of ids.")
@click.option("--list", "listing", is_flag=True, help="List mutants and what must catch them; run nothing.")
@click.option("--tolerant", is_flag=True, help="Play permitted behaviours: no MUST may fail.")
@click.option("--together", is_flag=True, help="With --tolerant: only all behaviours at once.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=SIDE_BY_SIDE,
    show_default=True,
    help="Mutants side by side.",
)
@click.option(
    "--time-scale", type=Number(min=0.1), default=1.0, show_default=True, help="Multiplies all deadlines."
)
@click.option("--stage", "kind", type=click.Choice(KINDS), default="processes", show_default=True)
@click.option("--haproxy", metavar="VERSION", help="2.6, 2.8, 3.0, 3.2; default: the stage's.")
@click.option(
    "--record",
    "record_in",
    type=_FILE,
    help="Record failing checks in this file. Twice: keep what both runs have.",
)
@click.option(
    "--against", type=_FILE, help="Fail if other checks fail, or with other messages, than recorded."
)
def selftest(
    *,
    families: tuple[str, ...],
    names: tuple[str, ...],
    listing: bool,
    tolerant: bool,
    together: bool,
    jobs: int,
    time_scale: float,
    kind: str,
    haproxy: str | None,
    record_in: Path | None,
    against: Path | None,
) -> None:
    """Break the reference agent in many small ways. The checks that a mutant names must catch it.

    Exit status: 0 if each id that a mutant names caught it, 1 if one did not, if a MUST of a family that was
    run whole has no mutant, or if a mutant differs from the record, 2 for a wrong option, 3 if the stage
    cannot be used.

    With `--tolerant` the agent does what the standards permit, one behaviour at a time and all together, and
    no MUST of `core` may fail. `--mutant` picks behaviours, `--family` those of a family.
    """
    found = permitted() if tolerant else mutants(families or FAMILIES)
    chosen = _chosen(found, (*families, TOLERANT) if families else (), names)
    if listing:
        for one in chosen:
            click.echo(f"{one.id:34} {one.title}" + ("" if tolerant else f"  [{' '.join(one.kills)}]"))
        return
    with open_stage(kind, haproxy=haproxy) as stage:
        spec = AgentSpec.load(default_agent_toml())
        spec = replace(spec, preload=(*spec.preload, *modules((*FAMILIES, TOLERANT))))
        run = Selftest(stage, spec, scale=time_scale * stretched()[0])
        if tolerant:
            sys.exit(_tolerate(run, chosen, jobs, only_together=together))
        bare = [] if names else uncovered(families or FAMILIES, chosen)
        sys.exit(_judge(run, chosen, jobs, bare=bare, record_in=record_in, against=against))


def _judge(
    run: Selftest,
    chosen: list[Mutant],
    jobs: int,
    *,
    bare: list[str],
    record_in: Path | None,
    against: Path | None,
) -> ExitCode:
    """Judge mutants, and print the kill table."""

    def report(outcome: MutantResult) -> None:
        click.echo(line(outcome))
        if record_in and outcome.caught:
            record.add(record_in, outcome)

    started = time.monotonic()
    for result in run.baseline(chosen):
        click.echo(f"{'SOUND':10} {result.check} does not pass on the sound agent: {result.message}")
    outcomes = run.run(chosen, side_by_side=jobs, on_outcome=report, whole=bool(record_in or against))
    differing = _differing(against, outcomes) if against else []
    failed = [outcome for outcome in outcomes if not outcome.caught]
    for name in bare:
        click.echo(f"{'NO MUTANT':10} {name}: {catalogue()[name].text}")
    alone = [outcome.mutant.id for outcome in outcomes if outcome.caught and outcome.alone]
    if alone:
        click.echo(f"survived beside others, and were caught when judged alone: {', '.join(alone)}")
    click.echo(
        f"{len(outcomes)} mutants, {len(outcomes) - len(failed)} caught, {len(failed)} not; "
        f"{time.monotonic() - started:.1f} s"
    )
    return ExitCode.FAILED if failed or bare or differing else ExitCode.PASSED


def _differing(against: Path, outcomes: list[MutantResult]) -> list[str]:
    recorded = record.load(against)
    found = [
        f"{outcome.mutant.id}: {text}"
        for outcome in outcomes
        for text in record.differences(recorded.get(outcome.mutant.id, {}), outcome)
    ]
    for text in found:
        click.echo(f"{'DIFFERS':10} {text}")
    return found


def _chosen(found: dict[str, Mutant], families: tuple[str, ...], names: tuple[str, ...]) -> list[Mutant]:
    chosen = [
        one
        for one in found.values()
        if (not families or one.family in families)
        and (
            not names or any(one.id == name or one.id.startswith((f"{name}.", f"{name}-")) for name in names)
        )
    ]
    if not chosen:
        raise click.UsageError("no such mutant; `--list` shows all")
    return chosen


def _tolerate(run: Selftest, chosen: list[Mutant], jobs: int, *, only_together: bool) -> ExitCode:
    """Play each behaviour alone, and all together."""
    started, accused = time.monotonic(), 0
    singly = [] if only_together or len(chosen) == 1 else chosen
    twins = [*([found] for found in singly), chosen]
    with ThreadPoolExecutor(min(jobs, _TWINS)) as pool:
        for behaviours, accusations in zip(twins, pool.map(run.tolerant, twins), strict=True):
            accused += len(accusations)
            name = behaviours[0].id if len(behaviours) == 1 else "all together"
            click.echo(f"{'ACCUSED' if accusations else 'tolerated':10} {name}")
            for each in accusations:
                click.echo(f"{'':10}   {each.check}: {each.verdict}: {each.message}")
    click.echo(
        f"{len(chosen)} permitted behaviours, {accused} accusations; {time.monotonic() - started:.1f} s"
    )
    return ExitCode.FAILED if accused else ExitCode.PASSED


def line(outcome: MutantResult) -> str:
    """Write a line of the kill table, and for a survivor a second line with the reason."""
    mutant = outcome.mutant
    if outcome.caught:
        by = sorted({check for checks in outcome.killed.values() for check in checks})
        shown = f"{by[0]} and {len(by) - 1} more" if len(by) > 1 else by[0]
        alone = ", only when judged alone" * outcome.alone
        return f"{'caught':10} {mutant.id:34} {mutant.title} — {shown}{alone}"
    text = f"{'SURVIVED':10} {mutant.id:34} {mutant.title}\n{'':10}   "
    if outcome.trouble:
        return text + f"could not be judged: {outcome.trouble}"
    text += f"not caught by {', '.join(outcome.survived)}"
    if outcome.also:
        text += f"; only by {', '.join(sorted(outcome.also)[:6])}, which name other ids"
    return text


def uncovered(families: tuple[str, ...], chosen: list[Mutant]) -> list[str]:
    """List the MUSTs of these families' catalogue files that have a check but no mutant."""
    covered = {name for found in chosen for name in found.kills}
    proven = {name for check in plan() for name in check.requirements}
    bare = _names(families) & proven - covered
    return [name for name, about in catalogue().items() if name in bare and about.level == "MUST"]


def _names(families: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for family in families:
        path = files("iamroles_scenarios") / "data" / "requirements" / f"{family}.toml"
        if path.is_file():
            document = tomllib.loads(path.read_text(encoding="utf-8"))
            found |= {str(entry["id"]) for entry in document["requirement"]}
    return found
