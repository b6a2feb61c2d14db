"""`iamroles revoke`: end credentials before they expire; list and undo it."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from iamroles_agent.base import files
from iamroles_agent.base.errors import ConfigError, closest
from iamroles_agent.commands.emergency import Known, Settings
from iamroles_agent.commands.shared import end, ends_if_unsound, policy_option, state_option
from iamroles_agent.control.store import LOCK
from iamroles_agent.live.revocations import Revocation, Revocations, read, write
from iamroles_agent.processes import local_socket
from iamroles_agent.processes.agent import SOCKET
from iamroles_agent.processes.in_force import InForce

_HASH = re.compile(r"sha256:[0-9a-f]{16}")
_LOCKED = 10.0
"""Seconds for another command to end."""
_MENDED = 2.0
"""Seconds for HAProxy to answer again, if it does not."""
_WITHIN = 10.0
"""Seconds in which a running agent must have it in force."""
_STS = (
    "No STS credential is spared, whenever it was signed, because a thief of AWS keys signs again. In AWS, "
    "revoke the role's active sessions (a deny with aws:TokenIssueTime), or deactivate the access key, "
    "and then undo this; after 36 h, when no session of before lives, the next `iamroles revoke` removes it"
)

_config = policy_option("The agent's configuration; its `live.revocations` names the file.")
_file_option = click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="The file of revocations, if the configuration cannot be read.",
)


@click.group()
def revoke() -> None:
    """Revoke credentials: their requests are refused and their streams are cut, before they expire."""


@revoke.command()
@_config
@_file_option
@state_option
@click.option(
    "--role", "roles", multiple=True, help="All holders of this role: its name in the policy, or ARN."
)
@click.option("--principal", "principals", multiple=True, help="A principal as the audit names it.")
@click.option("--actor", "actors", multiple=True, help="Who acts for principals, as the audit names it.")
@click.option("--session", "sessions", multiple=True, help="A session label as the audit names it.")
@click.option("--credential", "credentials", multiple=True, help="A credential's hash in the audit.")
@click.option("--key", "keys", multiple=True, help="A key's thumbprint (jkt, x5t#S256) in the audit.")
@click.option("--issuer", "issuers", multiple=True, help="An issuer or STS endpoint: its name in the policy.")
@click.option(
    "--issued-before",
    help='Spare tokens issued later: RFC 3339, epoch seconds, or "now" (with the leeway of the issuers).',
)
@click.option("--reason", default="", help="A note for readers of the audit.")
@click.option("--id", "name", help="A name for it; generated if left out.")
def add(
    config: Path,
    file: Path | None,
    state_dir: Path | None,
    issued_before: str | None,
    name: str | None,
    **given: Any,  # noqa: ANN401 - members of `Revocation`
) -> None:
    """Add a revocation. All options must match: a role and a principal mean this principal in that role.

    Exit status: 0 if it is in force as far as it can be, or no agent runs here; 1 if a running agent does not
    enforce it; 2 for wrong input; 3 if the file cannot be written.
    """
    members = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    members["id"] = name or f"r-{secrets.token_hex(4)}"
    if members["credentials"] and issued_before is None:  # for the reader; older agents refuse it
        members["added"] = round(time.time(), 3)
    known = _known(config)
    if issued_before == "now":
        members["issued_before"] = time.time() + known.leeway(members["issuers"])
    elif issued_before is not None:
        is_number = re.fullmatch(r"\d+(\.\d+)?", issued_before, re.ASCII) is not None
        members["issued_before"] = float(issued_before) if is_number else issued_before
    try:
        row = Revocation.model_validate(members)
    except ValidationError as error:
        said = [("".join(map("--{}: ".format, item["loc"][:1])), item["msg"]) for item in error.errors()]
        said = [(key.replace("s:", ":"), why.removeprefix("Value error, ")) for key, why in said]
        end(2, "\n".join(f"iamroles revoke: {key.replace('_', '-')}{why}" for key, why in said))
    if mistake := _mistake(config, known, row):
        end(2, f"iamroles revoke: {mistake}")
    with _edited(config, file, known) as (path, found):
        if any(other.id == row.id for other in found):
            end(2, f"iamroles revoke: {row.id} is there already; choose another --id")
        found.append(row)
    click.echo(f"{row.id} is in {path}")
    if row.issued_before is not None:
        until = datetime.fromtimestamp(row.issued_before, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        why = ": now, and the leeway for the issuers' clocks" * (issued_before == "now")
        click.echo(f"It spares tokens issued from {until} on{why}")
        if known.may_be_sts(row.issuers):
            click.echo(_STS)
    _wait(config, state_dir, row.id, present=True)


@revoke.command("list")
@_config
@_file_option
def list_(config: Path, file: Path | None) -> None:
    """Show the revocations of the file, a JSON object for each line."""
    for row in _read(file or _file(config)):
        click.echo(json.dumps(row.model_dump(mode="json", exclude_defaults=True)))


@revoke.command()
@_config
@_file_option
@state_option
@click.argument("name")
def undo(config: Path, file: Path | None, state_dir: Path | None, name: str) -> None:
    """Remove a revocation. Streams that it cut stay cut."""
    with _edited(config, file, _known(config)) as (path, found):
        kept = [row for row in found if row.id != name]
        if len(kept) == len(found):
            end(2, f"iamroles revoke: there is no {name} in {path}; `iamroles revoke list` shows all")
        found[:] = kept
    click.echo(f"{name} is out of {path}")
    _wait(config, state_dir, name, present=False)


def _known(config: Path) -> Known:
    """Read what a revocation may name; an unreadable configuration must not prevent a revocation."""
    try:
        return Known(Settings(config))
    except ConfigError:
        return Known(None)


def _mistake(config: Path, known: Known, row: Revocation) -> str | None:
    """Return why a revocation would match no credential; a hurried operator must learn it now."""
    for name in (*row.principals, *row.actors, *row.sessions):
        if not name or name != name.strip() or not name.isprintable():
            return f"{name!r} matches nobody: a name is printable, not empty, and has no outer blanks"
    for credential in row.credentials:
        if not _HASH.fullmatch(credential):
            return f"--credential {credential!r}: write it as the audit does, `sha256:` and 16 hex digits"
    for kind, names, there in (("role", row.roles, known.roles), ("issuer", row.issuers, known.names)):
        for name in names:
            if there and name not in there and not (kind == "role" and name.startswith("arn:")):
                near = closest(name, there)
                meant = f"did you mean {near!r}?" if near else "give its name, or a role's ARN"
                return f"--{kind} {name!r}: no {kind} of {config} has this name; {meant}"
    return None


def _file(config: Path) -> Path:
    """Return the file of revocations; nothing else of the configuration is read, for an emergency."""
    with ends_if_unsound():
        return Settings(config).file("live", "revocations", "revocations.toml")


def _read(path: Path) -> list[Revocation]:
    """Read the file also if a former release wrote more into it than an agent reads: `undo` must work."""
    with ends_if_unsound():
        return list(read(path, most=sys.maxsize).rows)


@contextmanager
def _edited(config: Path, file: Path | None, known: Known) -> Iterator[tuple[Path, list[Revocation]]]:
    """Give the file's revocations to an editor, one at a time, and write back those that are not over."""
    path = file or _file(config)
    try:
        real = files.target(path)
        with os.fdopen(files.lock(real.with_name(f".{real.name}.lock"), _LOCKED)):
            found = _read(path)
            yield path, found
            now = time.time()
            kept = [row for row in found if not row.over(known.lifetimes, now)]
            with ends_if_unsound():
                write(path, Revocations(tuple(kept)))
            if len(kept) < len(found):
                click.echo(f"{len(found) - len(kept)} revocations went: all that they were about has expired")
    except files.HeldError as error:
        why = f"{error.strerror} has held {error.filename} for {_LOCKED:g} s. End it, or remove that file"
        end(3, f"iamroles revoke: {path} is not changed: {why}")
    except OSError as error:
        end(3, f"iamroles revoke: {path} cannot be written: {error.filename}: {error.strerror}")


def _wait(config: Path, state_dir: Path | None, name: str, *, present: bool) -> None:
    """Wait until the agent of this host has the change in force, and report."""
    address = None if state_dir is None else state_dir / SOCKET
    with suppress(ConfigError):
        settings = Settings(config)
        address = settings.socket(state_dir)
        state_dir = state_dir or settings.state_dir
    if address is None:
        click.echo(
            f"This command cannot tell whether an agent has it in force ({config} names no agent.state_dir, "
            "and --state-dir is not given): see the agent's log or audit"
        )
        return
    began, unknown = time.monotonic(), "iamroles revoke: NOT known to be in force"
    while True:
        try:
            answer = local_socket.ask(address, {"command": "revocations", "id": name})
        except local_socket.NoAgentError as error:
            if state_dir is not None and (pid := files.holder(state_dir / LOCK)) is not None:
                end(1, f"{unknown}: process {pid} uses {state_dir}, and nobody answers at {address}")
            click.echo(f"No agent answers at {address} ({error.strerror}): an agent reads it when it starts")
            return
        except (OSError, ValueError) as error:
            end(1, f"{unknown}: the agent at {address} cannot be asked: {error}")
        # A problem of a file that the agent has not read again since is one of before.
        if problem := answer.get("error") or (answer.get("settled") and answer.get("problem")):
            end(1, f"iamroles revoke: NOT in force: {problem}")
        try:
            found, workers = InForce(**answer["enforced"]), answer["workers"]
            settled = answer["settled"] and answer["listed"] is present and not found.requests
        except (KeyError, TypeError):
            end(1, f"{unknown}: what answers at {address} is not this agent")
        waited = time.monotonic() - began
        done = not found.streams or not found.reached or (found.broken and waited > _MENDED)
        if waited > _WITHIN or (settled and done):
            break
        time.sleep(0.05)
    if not settled:
        why = found.requests or "the agent has not taken up the file"
        end(1, f"iamroles revoke: NOT in force after {_WITHIN:g} s: {why}; see the agent's log")
    click.echo(f"in force for new requests in all {workers} workers")
    streams = found.said()["streams"].replace("in force", "in force for open streams", 1)
    if found.streams and found.reached:
        end(1, streams)
    click.echo(streams)
