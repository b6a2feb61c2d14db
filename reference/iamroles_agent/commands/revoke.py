"""`iamroles revoke`: end credentials before they expire; list and undo it."""

from __future__ import annotations

import fcntl
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from iamroles_agent.base.errors import ConfigError, StartError, closest
from iamroles_agent.commands.emergency import Settings
from iamroles_agent.commands.shared import end, ends_if_unsound, policy_option
from iamroles_agent.live.revocations import Revocation, Revocations, read, write
from iamroles_agent.processes import local_socket

_HASH = re.compile(r"sha256:[0-9a-f]{16}")
_WITHIN = 5.0
"""Seconds in which a running agent must have it in force."""

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
@click.option(
    "--role", "roles", multiple=True, help="All holders of this role: its name in the policy, or ARN."
)
@click.option("--principal", "principals", multiple=True, help="A principal as the audit names it.")
@click.option("--session", "sessions", multiple=True, help="A session label as the audit names it.")
@click.option("--credential", "credentials", multiple=True, help="A credential's hash in the audit.")
@click.option(
    "--issued-before",
    help='Spare credentials issued later: RFC 3339, epoch seconds, or "now" (IAM: revoke active sessions).',
)
@click.option("--reason", default="", help="A note for readers of the audit.")
@click.option("--id", "name", help="A name for it; generated if left out.")
def add(
    config: Path,
    file: Path | None,
    issued_before: str | None,
    name: str | None,
    **given: Any,  # noqa: ANN401 - members of `Revocation`
) -> None:
    """Add a revocation. All options must match: a role and a principal mean this principal in that role."""
    members = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    members["id"] = name or f"r-{secrets.token_hex(4)}"
    if issued_before is not None:
        is_number = issued_before.replace(".", "", 1).isdecimal()
        members["issued_before"] = (
            time.time() if issued_before == "now" else float(issued_before) if is_number else issued_before
        )
    try:
        row = Revocation.model_validate(members)
    except ValidationError as error:
        said = [(".".join(map(str, item["loc"])) or "it", item["msg"]) for item in error.errors()]
        end(2, "\n".join(f"iamroles revoke: {where}: {message}" for where, message in said))
    if mistake := _mistake(config, row):
        end(2, f"iamroles revoke: {mistake}")
    with _edited(config, file) as (path, found):
        if any(known.id == row.id for known in found):
            end(2, f"iamroles revoke: {row.id} is there already; choose another --id")
        found.append(row)
    click.echo(f"{row.id} is in {path}")
    _wait(config, row.id, present=True)


@revoke.command("list")
@_config
@_file_option
def list_(config: Path, file: Path | None) -> None:
    """Show the revocations of the file, a JSON object for each line."""
    for row in _read(file or _file(config)).rows:
        click.echo(json.dumps(row.model_dump(mode="json", exclude_defaults=True)))


@revoke.command()
@_config
@_file_option
@click.argument("name")
def undo(config: Path, file: Path | None, name: str) -> None:
    """Remove a revocation. Streams that it cut stay cut."""
    with _edited(config, file) as (path, found):
        kept = [row for row in found if row.id != name]
        if len(kept) == len(found):
            end(2, f"iamroles revoke: there is no {name} in {path}; `iamroles revoke list` shows all")
        found[:] = kept
    click.echo(f"{name} is out of {path}")
    _wait(config, name, present=False)


def _mistake(config: Path, row: Revocation) -> str | None:
    """Return why a revocation would match no credential; a hurried operator must learn it now."""
    if "" in (*row.principals, *row.sessions):
        return "an empty name matches nobody"
    for credential in row.credentials:
        if not _HASH.fullmatch(credential):
            return f"--credential {credential!r}: write it as the audit does, `sha256:` and 16 hex digits"
    try:
        known = Settings(config).roles
    except ConfigError:
        return None  # an unreadable configuration must not prevent a revocation
    for role in row.roles:
        if known and role not in known and not role.startswith("arn:"):
            near = closest(role, known)
            meant = f"did you mean {near!r}?" if near else "give its name or its ARN"
            return f"--role {role!r}: no role of {config} has this name; {meant}"
    return None


def _file(config: Path) -> Path:
    """Return the file of revocations; nothing else of the configuration is read, for an emergency."""
    with ends_if_unsound():
        return Settings(config).file("live", "revocations", "revocations.toml")


def _read(path: Path) -> Revocations:
    with ends_if_unsound():
        return read(path)


@contextmanager
def _edited(config: Path, file: Path | None) -> Iterator[tuple[Path, list[Revocation]]]:
    """Give the file's revocations to an editor, one at a time, and write them back."""
    path = file or _file(config)
    try:
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = list(_read(path).rows)
            yield path, found
            write(path, Revocations(tuple(found)))
    except OSError as error:
        end(3, f"iamroles revoke: {path} cannot be written: {error.strerror}")


def _wait(config: Path, name: str, *, present: bool) -> None:
    """Wait until the agent of this host has the change in force, and report."""
    try:
        address = Settings(config).socket
    except ConfigError:
        address = None
    if address is None:
        click.echo(
            f"This command cannot tell whether an agent has it in force ({config} names no agent.state_dir): "
            "see the agent's log or audit"
        )
        return
    deadline = time.monotonic() + _WITHIN
    while True:
        try:
            answer = local_socket.ask(address, {"command": "revocations"})
        except (OSError, StartError, ValueError) as error:
            click.echo(f"No agent answers at {address} ({error}): an agent reads it when it starts")
            return
        if answer.get("problem"):
            end(1, f"iamroles revoke: NOT in force: {answer['problem']}")
        if answer.get("settled") and (name in answer.get("in_force", ())) == present:
            click.echo(f"in force in all workers of the agent at {address}")
            return
        if time.monotonic() > deadline:
            end(1, f"iamroles revoke: NOT in force after {_WITHIN:g} s: see the agent's log")
        time.sleep(0.05)
