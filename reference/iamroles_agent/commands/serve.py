"""`iamroles agent run` and `iamroles agent status`: run the reference SPOE agent, and ask it."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import click

from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ConfigError, StartError
from iamroles_agent.base.output import log_to_stderr
from iamroles_agent.commands import status_text
from iamroles_agent.commands.emergency import Settings
from iamroles_agent.commands.shared import STATE_DIR, end, ends_if_unsound, policy_option, state_option
from iamroles_agent.processes import local_socket
from iamroles_agent.processes.agent import SOCKET, Agent

Config.model_rebuild()  # here, because a process that forks agents imports this once, and each agent reads


@click.command()
@policy_option("Configuration and policy, TOML or JSON.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    envvar=STATE_DIR,
    help="Directory of the state in force, in place of the configuration's `agent.state_dir`. Then the "
    f"accepted policy comes back even if CONFIG is no longer readable. Default: ${STATE_DIR}.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Take over sockets and state from the agent that runs with this state directory, if any. It drains "
    "when this agent is ready; no connection is refused in between.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Lowest level of the log on standard error.",
)
def run(config: Path, state_dir: Path | None, log_level: str, *, take_over: bool) -> None:
    """Serve until SIGTERM (drains) or SIGINT; SIGHUP reloads CONFIG, all or nothing.

    Prints a line of JSON on standard output when it serves, and a line for each reload.

    Exit status: 0 after a drain, 2 if the file is wrong (every error is listed, nothing is started), 3 if the
    agent cannot start (a busy port, an audit file that cannot be opened).
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # if a standard stream is closed, no file or socket gets its number, and log lines with it
    os.close(number)
    log_to_stderr(log_level.upper())
    # Held back until the supervisor reads the file again for it: by default it would end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        made = Agent.read(config, state_dir, take_over=take_over)
    except StartError as error:
        end(3, f"iamroles agent: {error}")
    except ConfigError as error:
        count = "1 error" if len(error.problems) == 1 else f"{len(error.problems)} errors"
        end(2, f"{error}\niamroles agent: {count} in {config}; nothing was started")
    # From here on an end is the supervisor's too, because what is saved must say that it was orderly.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    # Loaded objects live as long as the process: keep the collector, and forks, from touching them.
    gc.freeze()
    # Fetches, STS calls and the audit's writer are threads. By default Python lets a thread delay the event
    # loop for 5 ms, the time of more than fifty decisions.
    sys.setswitchinterval(0.0005)
    try:
        status = made.run()
    except (StartError, ConfigError) as error:
        end(2 if isinstance(error, ConfigError) else 3, f"iamroles agent: {error}")
    finally:
        logging.shutdown()
    # Fetch threads may still wait for an issuer that does not answer; the drain is over.
    os._exit(status)


@click.command()
@policy_option("The agent's configuration, which says where it answers.", required=False)
@state_option
@click.option("--socket", "path", type=click.Path(path_type=Path), help="The agent's local socket.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")
def status(config: Path | None, state_dir: Path | None, path: Path | None, *, as_json: bool) -> None:
    """Ask the running agent for the version in force, its workers, the ages of keys, and the audit.

    Exit status: 0 if all workers serve the version in force and can decide, and HAProxy answers for its open
    streams; 1 if not, 2 if CONFIG is neither TOML nor JSON, 3 without an answer.
    """
    if path is None:
        path = None if state_dir is None else state_dir / SOCKET
        if config is not None:
            with ends_if_unsound() if path is None else suppress(ConfigError):
                path = Settings(config).socket(state_dir)
    if path is None:
        raise click.UsageError(
            "say which agent: --config with agent.state_dir or agent.control_socket in it, --state-dir, "
            "or --socket"
        )
    try:
        found = local_socket.ask(path, {"command": "status"})
    except (OSError, ValueError) as error:
        end(3, f"iamroles agent: no answer at {path}: {error}")
    if "error" in found:
        end(3, f"iamroles agent: {found['error']}")
    click.echo(json.dumps(found, indent=2) if as_json else status_text.as_text(found))
    sys.exit(0 if status_text.well(found) else 1)
