"""`iamroles agent`: run the reference SPOE agent."""

from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path

import click

from iamroles_agent.agent import Agent
from iamroles_agent.errors import ConfigError, StartError
from iamroles_agent.output import log_to_stderr

WORLD = "IAMROLES_WORLD"
"""Environment variable with the path of the world file (SPEC.md section 8)."""


@click.group()
def agent() -> None:
    """Run the reference SPOE agent."""


@agent.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar=WORLD,
    required=True,
    help=f"Configuration and policy, TOML or JSON. Default: the file named by ${WORLD}.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What goes to standard error.",
)
def run(config: Path, log_level: str) -> None:
    """Serve until SIGTERM (drains) or SIGINT; SIGHUP reloads CONFIG, all or nothing.

    Prints one line of JSON on standard output when it serves, and one for each reload.

    Exit status: 0 after a drain, 2 if the file is wrong (every error is listed, nothing is started), 3 if the
    agent cannot start (a busy port, an audit file that cannot be opened).
    """
    log_to_stderr(log_level.upper())
    try:
        made = Agent.read(config)
    except ConfigError as error:
        click.echo(str(error), err=True)
        click.echo(f"iamroles agent: {_count(error)} in {config}; nothing was started", err=True)
        sys.exit(2)
    # What loading made lives as long as the process: keep the collector, and forks, from touching it.
    gc.freeze()
    # Fetches, STS calls and the audit's writer are threads. Python lets one of them keep the event loop
    # waiting for 5 ms by default, which is fifty decisions and more.
    sys.setswitchinterval(0.0005)
    try:
        status = made.run()
    except (StartError, ConfigError) as error:
        click.echo(f"iamroles agent: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 3)
    finally:
        logging.shutdown()
    sys.stdout.flush()
    # The fetch threads may still wait for an issuer that does not answer; the drain is over.
    os._exit(status)


def _count(error: ConfigError) -> str:
    number = len(error.problems)
    return "1 error" if number == 1 else f"{number} errors"
