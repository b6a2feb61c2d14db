"""Options and errors that the commands share: the agent that is judged, and the exit code of an error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from iamroles_conformance.errors import ConformanceError, ExitCode
from iamroles_conformance.subject import Subject
from iamroles_scenarios.base.errors import Mistake, PageError, StageError, WireError
from iamroles_scenarios.commands.values import Number
from iamroles_scenarios.declarations.scenario import ALL_LANES
from iamroles_scenarios.stage import KINDS

_OPTIONS = {
    "agent": click.option(
        "--agent", type=click.Path(), help="Path of an agent.toml; default: the reference agent's."
    ),
    "address": click.option("--agent-address", "address", metavar="HOST:PORT", help="A running agent."),
    "allowed": click.option(
        "--allowed", type=click.Path(), help="JSON: an iam-check that the running agent allows."
    ),
    "lanes": click.option(
        "--lane", "lanes", multiple=True, type=click.Choice(ALL_LANES), help="May be repeated."
    ),
    "stage": click.option("--stage", type=click.Choice(KINDS), default="auto", show_default=True),
    "require": click.option(
        "--require", type=click.Choice(["containers"]), help="A missing container engine is an error."
    ),
    "haproxy": click.option("--haproxy", metavar="VERSION", help="2.6, 2.8, 3.0, 3.2; default: the stage's."),
    "grade": click.option(
        "--grade",
        type=click.Choice(["core", "strict"]),
        default="core",
        show_default=True,
        help="strict: what SPEC.md asks beyond the standards counts too.",
    ),
    "load": click.option(
        "--under-load",
        "load",
        type=Number(min=0, max=100_000),
        default=0.0,
        metavar="RATE",
        help="Questions a second during the whole run, each answer judged.",
    ),
    "scale": click.option(
        "--time-scale", "scale", type=Number(min=0.1), default=1.0, help="Factor on all deadlines."
    ),
}


def judges(*fields: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these fields of a `Subject`, and the subject that they name."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(**given: Any) -> None:  # noqa: ANN401 - as click has them
            function(subject=Subject(**{name: given.pop(name) for name in fields}), **given)

        for name in reversed(fields):
            command = _OPTIONS[name](command)
        return command

    return decorate


class Command(click.Command):
    """A command of the judge: a caller's mistake ends it with 2, a stage that cannot be used with 3."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own
        try:
            return super().invoke(ctx)
        except (Mistake, ConformanceError, PageError) as error:
            raise click.UsageError(str(error)) from error
        except (StageError, WireError) as error:
            click.echo(f"the stage cannot be used: {error}", err=True)
            sys.exit(ExitCode.STAGE_FAULT)
