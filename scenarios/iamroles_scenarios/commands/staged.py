"""The options of every command that sets up a stage for one agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from iamroles_scenarios.stage import KINDS

OPTIONS = (
    click.option("--stage", "kind", type=click.Choice(KINDS), default="auto", show_default=True),
    click.option("--haproxy", metavar="VERSION", help="2.6, 2.8, 3.0, 3.2, or for processes a path."),
    click.option(
        "--agent",
        "agent_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Another agent's agent.toml.  [default: the reference agent]",
    ),
)


Command = Callable[..., Any]


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Make a decorator that gives a command these options, in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


staged = with_options(*OPTIONS)
"""Adds `kind`, `haproxy`, `agent_file`."""
