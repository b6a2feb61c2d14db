"""Parts that the agent's commands share: the option `--config`, and how they end early."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from iamroles_agent.base.errors import ConfigError

VARIABLE, FORMER = "IAMROLES_POLICY", "IAMROLES_WORLD"
"""Environment variables with the path of the policy file (SPEC.md section 8); the second is deprecated."""
STATE_DIR = "IAMROLES_STATE_DIR"
"""Environment variable with the path of the state directory."""
state_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    envvar=STATE_DIR,
    help=f"The agent's state directory, if it was given on the command line. Default: ${STATE_DIR}.",
)


def policy_option(help_text: str, *, required: bool = True) -> Callable[[Any], Any]:
    """Make `--config`, which defaults to the file that the environment names."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, readable=False),  # its reader says what to do
        envvar=[VARIABLE, FORMER],
        required=required,
        callback=_warn,
        help=f"{help_text} Default: the file named by ${VARIABLE}.",
    )


def _warn(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    source = context.get_parameter_source(option.name or "")
    if source is click.core.ParameterSource.ENVIRONMENT and not os.environ.get(VARIABLE):
        click.echo(f"{FORMER} is deprecated: set {VARIABLE} instead", err=True)
    return value


def end(status: int, message: str) -> NoReturn:
    """Print an error, and leave with this exit status."""
    click.echo(message, err=True)
    sys.exit(status)


@contextmanager
def ends_if_unsound() -> Iterator[None]:
    """Turn faults of an operator's file into exit status 2, with every problem."""
    try:
        yield
    except ConfigError as error:
        end(2, str(error))
