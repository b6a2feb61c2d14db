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


def staged(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds them: `kind`, `haproxy`, `agent_file`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
