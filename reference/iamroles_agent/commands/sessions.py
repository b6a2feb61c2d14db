"""`iamroles sessions`: the open streams and their principals."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import click

from iamroles_agent.commands.emergency import Settings
from iamroles_agent.commands.shared import end, ends_if_unsound, policy_option
from iamroles_agent.live.console import TABLE, Console, ConsoleError, Stream, streams, workers


@click.command()
@policy_option("The agent's configuration; its `live.master_socket` leads to HAProxy.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each line.")
def sessions(config: Path, as_json: bool) -> None:
    """Show the long streams in all of HAProxy's workers: principal, actor, role, route, begin, end."""
    with ends_if_unsound():
        settings = Settings(config)
        socket = settings.file("live", "master_socket", "/run/haproxy/master.sock")
    name = settings.text("live", "master_socket") or ""
    path = name if ":" in name and "/" not in name else str(socket.absolute())
    try:
        found, silent = asyncio.run(_all(path))
    except ConsoleError as error:
        end(3, f"iamroles sessions: {path}: {error}")
    for about in sorted(map(_about, found), key=itemgetter("until")):
        click.echo(json.dumps(about) if as_json else _line(about))
    for problem in silent:
        click.echo(f"iamroles sessions: {problem}", err=True)
    sys.exit(3 if silent else 0)


async def _all(path: str) -> tuple[list[Stream], list[str]]:
    master = Console(path)
    found: list[Stream] = []
    silent = []
    for pid in workers(await master.ask("show proc")):
        console = Console(path, pid)
        try:
            answer = await console.read(f"show table {TABLE} data.conn_cur gt 0")
            found += [stream for stream in streams(answer) if stream.alive]
        except ConsoleError as error:
            silent.append(f"worker {pid}: {error}")
        console.close()
    master.close()
    return found, silent


def _about(stream: Stream) -> dict[str, Any]:
    about: dict[str, Any] = {"since": stream.since, "until": stream.ends, "src": stream.source}
    about["request"] = stream.request_id
    ticket = stream.decoded()
    if ticket is None:
        return about
    who, request = ticket.identity, ticket.request
    about |= {
        "principal": who.principal,
        **({} if who.actor is None else {"actor": who.actor.sub, "actor_issuer": who.actor.issuer}),
        "session": who.session,
        "role": ticket.role,
        "issuer": who.issuer,
        "credential": who.credential,
        "route": ticket.backend,
        "path": request.path + "…" * ticket.partial if request is not None else "",
    }
    return about


def _line(about: dict[str, Any]) -> str:
    since = datetime.fromtimestamp(about["since"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    left = about["until"] - time.time()
    who = "  ".join(str(about.get(name, "?")) for name in ("principal", "role", "route", "path"))
    who += f"  by {about['actor']}" if "actor" in about else ""
    return f"{who}  since {since}  ends in {left:.0f} s  from {about['src']}  {about['request']}"
