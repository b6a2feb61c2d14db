"""`iamroles audit`: prove that a log is whole, and ask it questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from iamroles_agent.audit.proxy import CAUSES
from iamroles_agent.audit.proxy import read as read_proxy_log
from iamroles_agent.audit.query import Query, moment, rows, search, summary, table
from iamroles_agent.audit.reading import STDIN
from iamroles_agent.audit.verify import Proof
from iamroles_agent.audit.verify import verify as verify_log
from iamroles_agent.reasons import Reason

_FILES = click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)


class _Moment(click.ParamType[datetime]):
    name = "time"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return moment(value)
        except ValueError:
            self.fail(
                f"{value!r} is no time. Write 2026-03-01, 2026-03-01T12:00:00Z, or how long ago: 15m, 2h, 7d",
                param,
                ctx,
            )


@click.group()
def audit() -> None:
    """Verify and query the audit log."""


@audit.command()
@_FILES
@click.option("--mixed", is_flag=True, help="Pass over other lines, as in a captured standard error.")
@click.option("--complete", is_flag=True, help="Older files must not be missing.")
@click.option(
    "--head", "heads", multiple=True, metavar="HASH", help="A hash kept elsewhere that the log must contain."
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def verify(
    *, files: tuple[Path, ...], mixed: bool, complete: bool, heads: tuple[str, ...], form: str
) -> None:
    """Prove that nothing was removed, changed or reordered, or say which line was.

    Give all FILES of one log, rotated ones too, in any order; `.gz` files are read as they are, `-` is
    standard input. Exit status: 0 whole, 1 not whole, 2 unreadable.
    """
    try:
        proof = verify_log(files, mixed=mixed, complete=complete, heads=heads)
    except OSError as error:
        raise _unreadable(error) from error
    click.echo(_as_json(proof) if form == "json" else "\n".join(_as_text(proof)))
    if not proof.whole or not proof.records:
        raise SystemExit(1)


def _as_text(proof: Proof) -> Iterator[str]:
    yield from map(str, proof.findings)
    yield from (f"note: {note}" for note in proof.notes)
    for span in proof.spans.values():
        yield (
            f"worker {span.worker}: records {span.first} to {span.last.seq}, {span.since} to {span.until}, "
            f"head {span.last.hash}"
        )
    if proof.skipped:
        yield f"{proof.skipped} other lines passed over"
    count = f"{proof.records} records in {proof.files} file{'s' * (proof.files != 1)}"
    if not proof.records:
        yield f"NOT PROVEN: {count}"
    elif proof.whole:
        yield f"WHOLE: {count}, nothing removed, changed or reordered"
    else:
        yield f"NOT WHOLE: {count}, {len(proof.findings)} finding{'s' * (len(proof.findings) != 1)}"


def _as_json(proof: Proof) -> str:
    return json.dumps(
        {
            "whole": proof.whole and proof.records > 0,
            "files": proof.files,
            "records": proof.records,
            "findings": [
                {"file": found.file, "line": found.line or None, "message": found.message}
                for found in proof.findings
            ],
            "notes": proof.notes,
            "skipped": proof.skipped,
            "workers": [
                {
                    "worker": span.worker,
                    "first": span.first,
                    "last": span.last.seq,
                    "since": span.since,
                    "until": span.until,
                    "head": span.last.hash,
                }
                for span in proof.spans.values()
            ],
        },
        indent=2,
    )


@audit.command()
@_FILES
@click.option("--who", default="", metavar="PATTERN", help="Principal, session or credential hash (* and ?).")
@click.option("--since", type=_Moment(), help="Not before: 2026-03-01, 2026-03-01T12:00:00Z, 2h, 7d.")
@click.option("--until", type=_Moment(), help="Before.")
@click.option("--role", default="", metavar="PATTERN", help="A role's ARN or name, granted or carried.")
@click.option("--verdict", type=click.Choice(["allow", "deny"]), default=None)
@click.option("--reason", type=click.Choice([str(reason) for reason in Reason]), default=None)
@click.option(
    "--cause",
    default="",
    metavar="CAUSE",
    help=f"Why HAProxy refused by itself ({', '.join(CAUSES)}), or why a connection was cut.",
)
@click.option("--path", default="", metavar="PATTERN", help="The request's path.")
@click.option("--request", default="", metavar="ID", help="One request, by its X-IAM-Request-Id.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(["decision", "termination", "proxy", "event", "policy", "start", "end", "gap"]),
    default=("decision", "termination", "proxy"),
    help="Kinds of records.  [default: decision, termination, proxy]",
)
@click.option(
    "--haproxy-log",
    "proxy_logs",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="HAProxy's log, several times for rotated files: joins in what HAProxy refused by itself.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "summary"]),
    default="table",
    show_default=True,
    help="summary: who used which role for what, how often.",
)
def query(
    *,
    files: tuple[Path, ...],
    who: str,
    since: datetime | None,
    until: datetime | None,
    role: str,
    verdict: str | None,
    reason: str | None,
    cause: str,
    path: str,
    request: str,
    kinds: tuple[str, ...],
    proxy_logs: tuple[Path, ...],
    form: str,
) -> None:
    """Answer who did what, when, with which role.

    Answers by time, each use of a verdict with all its fields. Does not judge FILES: run `audit verify`
    first.
    """
    asked = Query(
        who=who,
        since=since,
        until=until,
        role=role,
        verdict=verdict or "",
        reason=reason or "",
        cause=cause,
        path=path,
        request=request,
        kinds=frozenset(kinds),
    )
    if proxy_logs and STDIN in files:
        raise click.UsageError("With --haproxy-log the audit is read twice: give files, not standard input")
    asides: list[str] = []
    try:
        proxy = read_proxy_log(proxy_logs) if proxy_logs else None
        for line in _SHAPES[form](search(files, asked, proxy=proxy, asides=asides)):
            click.echo(line)
        for aside in asides:
            click.echo(f"note: {aside}", err=True)
    except OSError as error:
        raise _unreadable(error) from error


def _lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    yield from map(json.dumps, records)


_SHAPES: dict[str, Callable[[Iterable[dict[str, Any]]], Iterator[str]]] = {
    "table": table,
    "json": _lines,
    "csv": rows,
    "summary": summary,
}


def _unreadable(error: OSError) -> click.UsageError:
    return click.UsageError(
        f"{error.filename}: {error.strerror or error}. Check the path and its permissions"
    )
