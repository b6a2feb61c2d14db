"""Prove that an audit log is whole: nothing removed, changed or reordered; or say which line is wrong.

Each worker has a chain. A record must hash to its own `hash`, follow the record whose hash is its `prev`, and
count one up. What a break means follows from which of the three fails:

| own hash | prev | seq | verdict |
|---|---|---|---|
| wrong | any | any | this line was changed |
| right | wrong | one up | the line before was replaced by one with a hash of its own |
| right | wrong | leaps | lines were removed before this one |
| right | wrong | falls | this line was moved or copied |

A chain proves nothing against someone who may rewrite all of it; for that, keep a head elsewhere (the summary
prints it, the agent keeps one beside the log) and give it back with `--head`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from iamroles_agent.audit.file import Head, head_path
from iamroles_agent.audit.record import GENESIS, HASH_MARK

STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class Finding:
    """A place where the log is not what the agent wrote."""

    file: str
    line: int
    """1-based; 0: the end of the file."""
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line or 'end'}: {self.message}"


@dataclass(slots=True)
class Span:
    """What was seen of one worker's chain."""

    worker: int
    first: int
    """Sequence number of the first record given."""
    since: str
    place: str
    last: Head = field(default_factory=Head)
    until: str = ""
    ended: bool = False
    """Whether the last record is an `end`."""
    headless: Finding | None = None
    """That it does not begin with a `start`, as long as no later one explains why."""
    sync: float | None = None
    """The window that the last `start` declared, seconds."""
    records: int = 0


@dataclass(slots=True)
class Proof:
    """The result of a verification."""

    complete: bool = False
    """Whether the log must begin at record 1."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is not a fault, but a reader should know: gaps the agent itself declared, kills, missing files."""
    spans: dict[int, Span] = field(default_factory=dict)
    files: int = 0
    skipped: int = 0
    """Lines that are no records, in a mixed stream."""

    @property
    def whole(self) -> bool:
        """Whether nothing was removed, changed or reordered."""
        return not self.findings

    @property
    def records(self) -> int:
        """How many records were read."""
        return sum(span.records for span in self.spans.values())


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A log for reading: a file, a gzip-compressed one (`.gz`), or `-` for standard input."""
    if path == STDIN:
        yield sys.stdin.buffer
    elif path.suffix == ".gz":
        with gzip.open(path, "rb") as stream:
            yield stream  # type: ignore[misc]  # a GzipFile reads as any binary file does
    else:
        with path.open("rb") as stream:
            yield stream


def in_order(paths: Iterable[Path]) -> list[Path]:
    """The logs as they were written, whatever order a shell's glob gave: by worker, then by first record.

    Head files are left out, so that `audit.jsonl*` may be given. Empty files come last.
    """

    def key(path: Path) -> tuple[int, int]:
        if path == STDIN:
            return (0, 0)
        with opened(path) as stream:
            record = parsed(stream.readline())
        return (sys.maxsize, 0) if record is None else (record["worker"], record["seq"])

    return sorted((path for path in paths if path.suffix != ".head"), key=key)


def verify(
    paths: Iterable[Path], *, mixed: bool = False, complete: bool = False, heads: Iterable[str] = ()
) -> Proof:
    """Check the chains in these files.

    Args:
        paths: all files of one log, in any order (`in_order`).
        mixed: whether other lines than records may stand between them, as in a captured standard error.
        complete: whether it is a fault that the oldest file continues one that was not given.
        heads: hashes kept elsewhere that must occur in the chain.

    Raises:
        OSError: a file cannot be read.
    """
    proof = Proof(complete)
    wanted = set(heads)
    for path in in_order(paths):
        proof.files += 1
        beside = head_path(path)
        vouched = Head.parse(beside.read_text("ascii")) if path != STDIN and beside.exists() else None
        last = _verify_file(proof, path, mixed=mixed, wanted=wanted, vouched=vouched)
        if vouched is not None:
            _check_end(proof, path, last, vouched)
    proof.findings += [
        Finding("(all files)", 0, f"no record has the hash {head}: it was removed, or the log was rewritten")
        for head in sorted(wanted)
    ]
    return proof


def _verify_file(
    proof: Proof, path: Path, *, mixed: bool, wanted: set[str], vouched: Head | None
) -> Span | None:
    name, span = str(path), None
    with opened(path) as stream:
        for number, line in enumerate(stream, 1):
            record = parsed(line)
            if record is None:
                if not line.endswith(b"\n") and not mixed:
                    proof.notes.append(
                        f"{name}:{number}: an unfinished line: the agent is writing it, or was killed. "
                        "It is cut off when the agent starts again"
                    )
                elif mixed:
                    proof.skipped += 1
                else:
                    proof.findings.append(Finding(name, number, "not an audit record"))
                continue
            if not _hashes(line):
                proof.findings.append(
                    Finding(
                        name, number, f"record {record['seq']} was changed: its bytes do not give its hash"
                    )
                )
            span = _follow(proof, name, number, record)
            wanted.discard(record["hash"])
            if vouched is not None and record["seq"] == vouched.seq and record["hash"] != vouched.hash:
                proof.findings.append(
                    Finding(
                        name, number, f"record {record['seq']} is not the one that {name}.head vouches for"
                    )
                )
    return span


def _follow(proof: Proof, name: str, number: int, record: dict[str, Any]) -> Span:
    """Take a record as the next of its worker's chain."""
    place, seq = f"{name}:{number}", record["seq"]
    span = proof.spans.get(record["worker"])
    if span is None:
        span = proof.spans[record["worker"]] = Span(record["worker"], seq, record["time"], place)
        span.headless = _begin(proof, name, number, record)
    elif record["prev"] != span.last.hash or seq != span.last.seq + 1:
        proof.findings.append(Finding(name, number, _break(span, record)))
        if seq <= span.last.seq and record["prev"] != GENESIS:
            span.records += 1
            return span  # a stray: the next line is measured against the one before it
    _note(proof, place, span, record)
    span.last = Head(seq, record["hash"])
    span.until, span.place = record["time"], place
    span.ended = record.get("kind") == "end"
    span.records += 1
    return span


def _begin(proof: Proof, name: str, number: int, record: dict[str, Any]) -> Finding | None:
    """Judge the first record that was given; returns what a later `start` may still explain."""
    if record.get("kind") != "start":
        found = Finding(
            name, number, f"begins with record {record['seq']}, in the middle: what came before is gone"
        )
        proof.findings.append(found)
        return found
    if record["prev"] != GENESIS:
        _continued(proof, f"{name}:{number}", Finding(name, number, _earlier(record["seq"])))
    return None


def _continued(proof: Proof, place: str, found: Finding) -> None:
    if proof.complete:
        proof.findings.append(found)
    else:
        proof.notes.append(f"{place}: {found.message}")


def _earlier(seq: int) -> str:
    return f"continues record {seq - 1}, in a file that was not given"


def _break(span: Span, record: dict[str, Any]) -> str:
    seq, last = record["seq"], span.last.seq
    if record["prev"] == GENESIS:
        return f"record {seq} begins a new chain that does not continue record {last} ({span.place})"
    if seq <= last:
        return f"record {seq} is out of order: it stands after record {last} ({span.place})"
    if seq == last + 1:
        return f"record {seq} does not follow record {last} ({span.place}): that one was replaced"
    missing = f"record {last + 1} is" if seq == last + 2 else f"records {last + 1} to {seq - 1} are"
    return f"{missing} missing before record {seq}"


def _note(proof: Proof, place: str, span: Span, record: dict[str, Any]) -> None:
    kind = record.get("kind")
    if kind == "start" and record.get("reason") == "started" and span.records and not span.ended:
        torn = f", and {record['torn']} bytes of an unfinished record" if record.get("torn") else ""
        proof.notes.append(
            f"{place}: the agent was killed before this start: up to {span.sync} s of decisions "
            f"may be missing{torn}"
        )
    if kind == "start":
        span.sync = record.get("sync")
        if span.headless is not None and record.get("after") == span.first - 1:
            # Emptied in place by logrotate: what was buffered then stands before the start that says so.
            proof.findings.remove(span.headless)
            _continued(proof, place, Finding(span.headless.file, span.headless.line, _earlier(span.first)))
            span.headless = None
    if kind == "gap":
        proof.notes.append(
            f"{place}: the agent declares {record.get('lost')} decisions without a record since "
            f"{record.get('since')} ({record.get('detail')}; on_error = {record.get('answered')})"
        )


def _check_end(proof: Proof, path: Path, last: Span | None, vouched: Head) -> None:
    if last is None:
        proof.findings.append(
            Finding(str(path), 0, f"no records, but {path.name}.head vouches for record {vouched.seq}")
        )
    elif vouched.seq > last.last.seq:
        proof.findings.append(
            Finding(
                str(path),
                0,
                f"the log ends with record {last.last.seq}, but {path.name}.head vouches for record "
                f"{vouched.seq}: the end was cut off",
            )
        )


def _hashes(line: bytes) -> bool:
    """Whether a line ends in the hash of all that comes before, and in nothing else."""
    end = line.rfind(HASH_MARK)
    return line[end:] == HASH_MARK + hashlib.sha256(line[:end]).hexdigest().encode() + b'"}\n'


def parsed(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None where it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if (
        isinstance(record, dict)
        and type(record.get("seq")) is int
        and type(record.get("worker")) is int
        and all(isinstance(record.get(name), str) for name in ("time", "prev", "hash"))
        and line.endswith(b'"}\n')
    ):
        return record
    return None
