"""`iamroles conformance oracle`: random policies, tokens and requests by the thousand, decided twice."""

from __future__ import annotations

import random
import sys
from contextlib import closing

import click

from iamroles_conformance.commands.options import Command, judges
from iamroles_conformance.errors import ExitCode
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import CheckFailed, SelectionError
from iamroles_scenarios.checks.oracle.campaign import CASES_PER_WORLD, CampaignReport, campaign, numbers_for
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import open_stage


@click.command(cls=Command)
@judges("agent", "scale")
@click.option("--seed", type=int, help="Seed of the worlds; default: random, and printed.")
@click.option(
    "--cases", type=click.IntRange(min=1), default=20_000, show_default=True, help="Questions, at least."
)
@click.option(
    "--world",
    "number",
    type=click.IntRange(min=0),
    help="Only this world of the seed, after the one before it.",
)
@click.option("--shuffled", is_flag=True, help="Ask everything twice, the second time in another order.")
def oracle(*, subject: Subject, seed: int | None, cases: int, number: int | None, shuffled: bool) -> None:
    """Compare an agent's decisions with a second, simple implementation of the specification.

    Each world is a random policy that the agent reloads; its questions go straight over SPOP,
    with tokens that were signed for them. The first disagreement is reduced and shown.

    Exit status: 0 if all agree, 1 if not, 2 for a wrong option, 3 if the agent or the stage cannot be used.
    """
    chosen = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    numbers = numbers_for(cases) if number is None else [one for one in (number - 1, number) if one >= 0]
    try:
        click.echo(_played(subject, chosen, numbers, shuffled=shuffled))
    except CheckFailed as failure:
        click.echo(f"FAILED: {failure.message}")
        evidence = failure.evidence
        for title, text in (
            ("sent", evidence.sent),
            ("expected", evidence.expected),
            ("received", evidence.received),
            ("trace", evidence.trace),
            ("options that the run had beside", " ".join(subject.arguments("--"))),
        ):
            if text.strip():
                click.echo(f"\n--- {title}\n{text.strip()}")
        sys.exit(ExitCode.FAILED)


def _played(subject: Subject, seed: int, numbers: list[int], *, shuffled: bool) -> CampaignReport:
    spec = subject.spec_for("the oracle")
    if not spec.spop:
        raise SelectionError(f"{spec.path}: features.spop: is false, but the oracle asks over SPOP alone.")
    with (
        open_stage("processes") as stage,
        closing(Worlds(stage, spec, haproxy=False, scale=subject.scale)) as worlds,
        campaign(Target("gate-spop", stage, spec, worlds, subject.scale), seed, shuffled=shuffled) as played,
    ):
        return played.run(numbers, CASES_PER_WORLD)
