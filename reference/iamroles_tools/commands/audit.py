"""`iamroles audit`: prove that a log is whole, and ask it questions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from iamroles_agent.base.files import write as write_file
from iamroles_agent.base.reasons import Reason
from iamroles_tools.audit import proving
from iamroles_tools.audit.checkpoint import (
    NAME,
    Checkpoint,
    CheckpointError,
    KeyFormatError,
    Verifier,
    new_key,
    proven,
    read_key,
)
from iamroles_tools.audit.proxy import CAUSES
from iamroles_tools.audit.proxy import read as read_proxy_log
from iamroles_tools.audit.query import Query, moment, rows, search, summary, table, visible
from iamroles_tools.audit.reading import STDIN
from iamroles_tools.audit.verify import Proof
from iamroles_tools.audit.verify import verify as verify_log

_LOG = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILES = click.argument("files", nargs=-1, required=True, type=_LOG)


def _moment(_context: click.Context, _option: click.Parameter, value: str | None) -> datetime | None:
    try:
        return None if value is None else moment(value)
    except (ValueError, OverflowError):
        ways = "2026-03-01, 2026-03-01T12:00:00Z, or an age: 15m, 2h, 7d"
        raise click.BadParameter(f"{value!r} is not a time. Write {ways}") from None


def _name(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if not NAME.fullmatch(value):
        raise click.BadParameter("write a name without blanks and `+`, for example gate.example.com/audit")
    return value


@contextmanager
def _readable() -> Iterator[None]:
    """Turn a file or key that cannot be read into exit status 2, and wrong content into 1."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise click.UsageError(f"{error.filename}: {why}. Check the path and its permissions") from error
    except KeyFormatError as error:
        raise click.UsageError(str(error)) from error
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error


@click.group()
def audit() -> None:
    """Verify, query, sign and prove the audit log."""


@audit.command()
@click.argument("files", nargs=-1, type=_LOG)
@click.option("--mixed", is_flag=True, help="Skip other lines, as in a captured standard error.")
@click.option("--complete", is_flag=True, help="Older files must not be missing.")
@click.option(
    "--head", "heads", multiple=True, metavar="HASH", help="A hash kept elsewhere that the log must contain."
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="FILE",
    type=_FILE,
    help="A signed checkpoint kept elsewhere, one for each worker, which the log must hold; with --key.",
)
@click.option(
    "--proof",
    "proofs",
    multiple=True,
    metavar="FILE",
    type=_FILE,
    help="Instead of FILES: a proof that `audit prove` made; prints the lines that it proves; with --key.",
)
@click.option(
    "--key", "keys", multiple=True, metavar="KEY", help="The signer's verifier key, as `audit key` prints it."
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def verify(
    *,
    files: tuple[Path, ...],
    mixed: bool,
    complete: bool,
    heads: tuple[str, ...],
    checkpoints: tuple[Path, ...],
    proofs: tuple[Path, ...],
    keys: tuple[str, ...],
    form: str,
) -> None:
    """Prove that nothing was removed, changed, inserted or reordered, or report where it was.

    Give all FILES of a log, rotated ones too, in any order; `.gz` files are read as they are, `-` is
    standard input. Exit status: 0 whole, 1 not whole, 2 unreadable.
    """
    if bool(files) == bool(proofs):
        raise click.UsageError("Give the files of a log, or --proof")
    if (checkpoints or proofs) and not keys:
        raise click.UsageError("Which signature is trusted? Give --key, as `iamroles audit key` prints it")
    with _readable():
        verifiers = [Verifier.parse(key) for key in keys]
        for path in proofs:
            checkpoint, lines = proven(path.read_text("utf-8", "replace"), verifiers)
            texts = [line.decode("ascii", "replace") for line in lines]
            about = {"log": checkpoint.origin, "batches": checkpoint.size, "lines": texts}
            heading = f"PROVEN: {len(lines)} lines are in {checkpoint.origin}, {checkpoint.size} batches"
            click.echo(json.dumps(about) if form == "json" else "\n".join(map(visible, (heading, *texts))))
        if proofs:
            return
        signed = [Checkpoint.opened(path.read_text("utf-8", "replace"), verifiers) for path in checkpoints]
        proof = verify_log(files, mixed=mixed, complete=complete, heads=heads)
        if signed:
            proving.check(proof, signed)
    click.echo(_as_json(proof) if form == "json" else "\n".join(map(visible, _as_text(proof))))
    if not proof.whole or not proof.records:
        raise SystemExit(1)


@audit.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--name", required=True, callback=_name, help="Name of the installation, e.g. gate.example.com/audit."
)
def key(*, file: Path, name: str) -> None:
    """Print the verifier key of the signing key in FILE; make FILE, mode 0600, if it is absent.

    Keep FILE in a place that the agent cannot read. The printed line is public. A witness wants one key for
    each log: print it with the log's own name, --name NAME/worker-0.
    """
    with _readable():
        if not file.exists():
            with open(file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
                stream.write(new_key())
        signer = read_key(file.read_bytes(), str(file))
        click.echo(Verifier.parse(str(Verifier(name, signer.public_key()))))


@audit.command()
@_FILES
@click.option(
    "--sign",
    "signers",
    multiple=True,
    required=True,
    metavar="FILE",
    type=_FILE,
    help="Signing key; give both keys while a new key replaces an old one.",
)
@click.option("--name", required=True, callback=_name, help="The name, as in `audit key`.")
@click.option(
    "--out",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of the checkpoints, one file for each worker. The log must still hold those in it.",
)
def checkpoint(*, files: tuple[Path, ...], signers: tuple[Path, ...], name: str, out: Path) -> None:
    """Sign the present state of each log, if it is whole and still holds what was signed before.

    Run it where the agent cannot run: a key that is writable beside the log proves nothing. Keep copies of
    the checkpoints elsewhere, or have them witnessed: worker-0.add-checkpoint is the body of the request to a
    witness (C2SP tlog-witness). Exit status: 0 signed, 1 not whole or rewritten, 2 unreadable.
    """
    with _readable():
        keys = [read_key(path.read_bytes(), str(path)) for path in signers]
        own = [Verifier(name, one.public_key()) for one in keys]
        proof = verify_log(files)
        if not proof.whole or not proof.records:
            click.echo("\n".join(map(visible, _as_text(proof))), err=True)
            raise CheckpointError("nothing is signed: the log is not whole")
        notes: dict[Path, str] = {}
        signed: list[str] = []
        for owner, span in proving.owners(proof).items():
            origin = proving.origin_of(name, owner)
            target = out / f"{origin.rpartition('/')[2]}.checkpoint"
            former = Checkpoint.opened(target.read_text("utf-8", "replace"), own) if target.exists() else None
            note = proving.checkpoint_of(span, origin, former).signed(keys)
            notes[target.with_suffix(".add-checkpoint")] = proving.for_witness(span, former, note)
            notes[target] = note
            signed.append(f"{target}: {note.splitlines()[1]} batches")
        for target, note in notes.items():
            write_file(target, note.encode())
        click.echo("\n".join(signed))


@audit.command()
@_FILES
@click.option("--request", required=True, metavar="ID", help="The request, by its X-IAM-Request-Id.")
@click.option("--checkpoint", "note", required=True, metavar="FILE", type=_FILE, help="The log's checkpoint.")
@click.option("--out", required=True, metavar="PREFIX", help="Write PREFIX.tlog-proof.")
def prove(*, files: tuple[Path, ...], request: str, note: Path, out: str) -> None:
    """Prove to others that a request's record is in the log, without giving them the log.

    If the record is a short line, PREFIX.verdict.tlog-proof proves the full record that it names. A proof
    shows the whole batch of lines that were written together. `audit verify --proof` checks it.
    """
    with _readable():
        signed = note.read_text("utf-8", "replace")
        records, proof = proving.find(files, request=request), verify_log(files)
        texts = [proving.prove(files, proof, owner, seq, signed) for owner, seq in records]
        for text, mark in zip(texts, (".verdict", "")[-len(texts) :], strict=True):
            path = Path(f"{out}{mark}.tlog-proof")
            write_file(path, text.encode(), mode=0o640)  # as the log itself; through no stranger's link
            click.echo(path)


def _as_text(proof: Proof) -> Iterator[str]:
    yield from map(str, proof.findings)
    yield from (f"note: {note}" for note in proof.notes)
    for span in proof.spans.values():
        yield (
            f"worker {span.worker}: records {span.first} to {span.last.seq}, {span.since} to {span.until}, "
            f"head {span.last.hash}"
        )
    if proof.skipped:
        yield f"{proof.skipped} other lines skipped"
    count = f"{proof.records} records in {proof.files} file{'s' * (proof.files != 1)}"
    if not proof.records:
        yield f"NOT PROVEN: {count}"
    elif proof.whole:
        yield f"WHOLE: {count}, nothing removed, changed, inserted or reordered"
    elif all(found.tail for found in proof.findings):
        yield f"WHOLE up to there: {count}, but bytes follow"
    else:
        yield f"NOT WHOLE: {count}, {len(proof.findings)} finding{'s' * (len(proof.findings) != 1)}"


def _as_json(proof: Proof) -> str:
    return json.dumps(
        {
            "whole": proof.whole and proof.records > 0,
            "files": proof.files,
            "records": proof.records,
            "findings": [asdict(found) | {"line": found.line or None} for found in proof.findings],
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
@click.option("--who", default="", metavar="PATTERN", help="Principal, actor, session or credential hash.")
@click.option(
    "--since", callback=_moment, metavar="TIME", help="Not before: 2026-03-01T12:00:00Z, 2026-03-01, 2h, 7d."
)
@click.option("--until", callback=_moment, metavar="TIME", help="Before this.")
@click.option("--role", default="", metavar="PATTERN", help="A role's ARN or name, granted or carried.")
@click.option("--verdict", type=click.Choice(["allow", "deny", "answer"]))
@click.option("--reason", type=click.Choice([str(reason) for reason in Reason]))
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
    type=_LOG,
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
    proxy_logs: tuple[Path, ...],
    form: str,
    kinds: tuple[str, ...],
    **conditions: Any,  # noqa: ANN401 - the fields of `Query`
) -> None:
    """Answer who did what, when, with which role.

    Prints the records by time, each use of a verdict with all its fields. Does not judge FILES: run
    `audit verify` first.
    """
    if proxy_logs and STDIN in files:
        raise click.UsageError("With --haproxy-log the audit is read twice: give files, not standard input")
    asides: list[str] = []
    with _readable():
        proxy = read_proxy_log(proxy_logs) if proxy_logs else None
        given = {name: value for name, value in conditions.items() if value is not None}
        asked = Query(**given, kinds=frozenset(kinds))
        for line in _SHAPES[form](search(files, asked, proxy=proxy, asides=asides)):
            click.echo(line)
        for aside in asides:
            click.echo(f"note: {aside}", err=True)


_SHAPES: dict[str, Callable[[Iterable[dict[str, Any]]], Iterable[str]]] = {
    "table": table,
    "json": partial(map, json.dumps),
    "csv": rows,
    "summary": summary,
}
