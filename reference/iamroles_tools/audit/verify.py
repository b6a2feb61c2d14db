"""Prove that an audit log is whole: nothing removed, changed, inserted or reordered. Report where it is not.

How it judges. A file belongs to one worker; its numbers grow by one with each line, and each batch of lines
must give the hash that seals it and follow the batch before (`chain`). So a valid seal covers a line, or
there is a finding:

| seen | meaning |
|---|---|
| the number leaps | lines were removed before this line |
| the number falls | this line was moved, copied or inserted |
| the number is right, the batch does not give its hash | one of its lines was changed or replaced |
| the batch gives its hash, `prev` is not the hash before | the batch before was replaced |
| sealed by another worker, or by another writer without a start between | a foreign line |
| no seal covers it | appended by someone else, or the agent was killed while it wrote |
| the file ends in half a line | the same; the log is whole up to its last record |

A line with a wrong number is left out of its batch, so that one foreign line is one finding.

A chain proves nothing against someone who can rewrite all of it. For that, keep a head or a signed checkpoint
elsewhere and pass it (`--head`, `--checkpoint`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from iamroles_agent.audit.chain import BEGIN, GENESIS, SEALED, Head, Tree
from iamroles_agent.audit.file import head_path, lock_path
from iamroles_agent.base import files
from iamroles_tools.audit.reading import STDIN, Log, Record, in_order, opened, owner_of, parsed

EVERYWHERE = Path("(all files)")
_WRITER = re.compile(rb'"writer":"[0-9a-f]+"')


@dataclass(frozen=True, slots=True)
class LogFinding:
    """A line at which the log is not what the agent wrote."""

    file: str
    line: int
    """1-based; 0: the end of the file."""
    message: str
    tail: int = 0
    """Bytes at the end of the file, after its last record, that belong to no record."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line or 'end'}: {self.message}"


@dataclass(frozen=True, slots=True)
class _Leap:
    """The state before a line whose number leaps: the next line shows whether that line is foreign."""

    digest: hashlib._Hash
    seq: int


@dataclass(slots=True)
class Span:
    """The part of a chain that the files hold."""

    name: str
    """`worker 0`, or in a stream `writer 1f2e3d4c`."""
    worker: int = -1
    first: int = 0
    """Sequence number of the first record given."""
    since: str = ""
    last: Head = field(default_factory=Head)
    """The last seal."""
    seq: int = 0
    """The last record."""
    where: str = ""
    """File and line of the last record."""
    until: str = ""
    writer: bytes = b""
    records: int = 0
    ended: bool = False
    """True if the last record is an `end`."""
    headless: LogFinding | None = None
    """That it does not begin with a `start`, as long as no later `start` explains why."""
    sync: float | None = None
    """The window that the last `start` declared, seconds."""
    vouched: bool = False
    """True if a hash that was kept elsewhere occurs in the log."""
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    """Hash of the lines since the last seal."""
    open: list[tuple[Path, int, int]] = field(default_factory=list)
    """First and last line since the last seal: file, line, sequence number."""
    started: bool = False
    """True if a `start` is among these lines."""
    suspect: bool = False
    """True if these lines already have a finding."""
    leap: _Leap | None = None
    torn: LogFinding | None = None
    """That a file ends in half a line, as long as no later `start` shows that the agent was killed there."""
    base: Tree | None = None
    """The tree before `entries`."""
    tree: Tree | None = None
    entries: list[bytes] = field(default_factory=list)
    """The hashes of the batches."""
    ends: list[int] = field(default_factory=list)
    """Their last records."""


@dataclass(slots=True)
class Proof:
    """The result of a verification."""

    complete: bool = False
    """True if the log must begin at record 1."""
    findings: list[LogFinding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """No faults, but worth knowing: gaps that the agent itself declared, kills, missing files."""
    spans: dict[object, Span] = field(default_factory=dict)
    files: int = 0
    skipped: int = 0
    """Lines of a mixed stream that are not records."""
    alone: list[tuple[Path, Head]] = field(default_factory=list)
    """Logs without a record, and their heads, which after a rotation vouch for a record of another file."""

    @property
    def whole(self) -> bool:
        """True if nothing was removed, changed, inserted or reordered."""
        return not self.findings

    @property
    def records(self) -> int:
        return sum(span.records for span in self.spans.values())

    def found(self, path: Path, line: int, message: str, *, tail: int = 0) -> LogFinding:
        finding = LogFinding(str(path), line, message, tail)
        self.findings.append(finding)
        return finding


def verify(
    paths: Iterable[Path], *, mixed: bool = False, complete: bool = False, heads: Iterable[str] = ()
) -> Proof:
    """Check the chains in these files.

    Args:
        paths: all files of a log, in any order (`in_order`).
        mixed: whether other lines may stand between the records, as in a captured standard error.
        complete: whether it is a fault that the oldest file continues a file that was not given.
        heads: hashes kept elsewhere that must occur in the chain; every chain must have one of them.

    Raises:
        OSError: a file cannot be read.
    """
    proof = Proof(complete)
    wanted, given, paths = set(heads), bool(heads), list(paths)
    for beside in paths:
        if beside.suffix == ".head" and not (gone := beside.with_suffix("")).exists():
            proof.alone.append((gone, _vouched(proof, gone) or Head()))
    for log in in_order(paths):
        proof.files += 1
        _FileCheck(proof, log, wanted, mixed=mixed).run()
    for path, vouched in proof.alone:
        holding = (span for span in proof.spans.values() if vouched.hash in map(bytes.hex, span.entries))
        _judge_end(proof, path, next(holding, None), vouched)
    for span in proof.spans.values():
        _check_rest(proof, span)
        if given and not span.vouched:
            why = "its log was rewritten, or is foreign. Give one --head for each worker"
            proof.found(EVERYWHERE, 0, f"{span.name} has none of the hashes kept elsewhere: {why}")
    for head in sorted(wanted):
        message = f"no record has the hash {head}: it was removed, or the log was rewritten"
        proof.found(EVERYWHERE, 0, message)
    return proof


class _FileCheck:
    """Checks the lines of a file, and adds findings to the proof.

    `wanted` has the hashes kept elsewhere that have not occurred yet.
    """

    def __init__(self, proof: Proof, log: Log, wanted: set[str], *, mixed: bool) -> None:
        self._proof, self._log, self._wanted, self._mixed = proof, log, wanted, mixed
        self._path, self._number = log.path, 0
        self._vouched = _vouched(proof, log.path)

    def run(self) -> None:
        span = None
        with opened(self._path) as stream:
            for self._number, line in enumerate(stream, 1):
                record = parsed(line)
                if record is None:
                    self._other_line(line, span)
                    continue
                sealed = SEALED.search(line)
                owner = owner_of(record) if sealed else None
                if not self._mixed and self._log.owner is not None and owner not in (None, self._log.owner):
                    self._found(f"a foreign line: sealed by worker {owner and owner[0]}")
                    continue
                span = self._span_of(record)
                if owner is not None:
                    span.worker = owner[0]
                if not self._counts(span, record):
                    continue
                self._read(span, record)
                if sealed:
                    self._judge_batch(span, line, sealed)
                    self._compare_hashes(span)
                else:
                    span.digest.update(line)
        if self._vouched is None:
            return
        if span is None:
            self._proof.alone.append((self._path, self._vouched))
        else:
            _judge_end(self._proof, self._path, span, self._vouched)

    def _found(self, message: str) -> LogFinding:
        return self._proof.found(self._path, self._number, message)

    def _note(self, message: str) -> None:
        self._proof.notes.append(f"{self._path}:{self._number}: {message}")

    def _span_of(self, record: Record) -> Span:
        if self._mixed:
            key: object = str(record.get("writer", record.get("worker")))
            name = f"writer {key}" if "writer" in record else f"worker {key}"
        elif (key := self._log.owner) is None:
            name = self._path.name
        else:
            worker, turn = key
            name = f"worker {worker}" + (f", turn {turn}" if turn else "")
        return self._proof.spans.setdefault(key, Span(name))

    def _other_line(self, line: bytes, span: Span | None) -> None:
        if self._mixed:
            self._proof.skipped += 1
        elif line.endswith(b"\n"):
            self._found("not an audit record")
        else:
            self._judge_tail(line, span)

    def _judge_tail(self, line: bytes, span: Span | None) -> None:
        """Judge the bytes after the last whole line."""
        half = line.startswith(BEGIN[: len(line)])
        if half and _is_written(self._path):
            self._note("an unfinished line: the agent is writing it")
            return
        remedy = (
            "the agent was killed while it wrote, or someone appended them. Its next start cuts them off"
            if half
            else "someone appended them, and the agent does not start on them. Keep a copy, then remove them"
        )
        after = f"record {span.seq}" if span else "no record"
        message = f"{len(line)} bytes after {after} belong to no record: {remedy}"
        found = self._proof.found(self._path, self._number, message, tail=len(line))
        if span and half and not span.ended:
            span.torn = found

    def _counts(self, span: Span, record: Record) -> bool:
        """Return whether a record's number fits its chain; add a finding if it is not the next."""
        seq = record["seq"]
        leap, span.leap = span.leap, None
        if not span.records:
            span.first, span.since = seq, record["time"]
            if record.get("kind") != "start":
                message = f"begins with record {seq}, in the middle: what came before is gone"
                span.headless = self._found(message)
        elif seq <= span.seq:
            new = record.get("kind") == "start" and seq == 1
            self._found(
                f"record {seq} begins a new chain that does not continue record {span.seq} ({span.where})"
                if new
                else f"record {seq} is out of order: it stands after record {span.seq} ({span.where})"
            )
            if leap is not None and seq == leap.seq + 1:
                span.digest = leap.digest  # the line before is the foreign line
            elif not new:
                return False
            span.suspect = True
        elif seq > span.seq + 1:
            last = span.seq
            missing = f"record {last + 1} is" if seq == last + 2 else f"records {last + 1} to {seq - 1} are"
            self._found(f"{missing} missing before record {seq}")
            span.leap, span.suspect = _Leap(span.digest.copy(), last), True
        here = (self._path, self._number, seq)
        span.open = [span.open[0], here] if span.open else [here, here]
        span.seq, span.where, span.until = seq, f"{self._path}:{self._number}", record["time"]
        span.records += 1
        return True

    def _judge_batch(self, span: Span, line: bytes, sealed: re.Match[bytes]) -> None:
        """Judge a batch by the line that seals it."""
        (begin, first_line, first), _ = span.open
        prev, digest = sealed[1].decode(), sealed[3].decode()
        span.digest.update(line[: sealed.start(2)])
        message = ""
        if span.digest.hexdigest() != digest and not span.suspect:
            message = (
                f"record {first} was changed: its bytes do not give its hash"
                if first == span.seq
                else f"one of records {first} to {span.seq} (up to {self._path}:{self._number}) was changed: "
                "their bytes do not give the hash that seals them"
            )
        elif not span.entries and not span.last.seq:
            if prev != GENESIS:
                message = f"continues record {span.first - 1}, in a file that was not given"
                if not self._proof.complete:
                    self._proof.notes.append(str(LogFinding(str(begin), first_line, message)))
                    message = ""
        elif prev != span.last.hash and not span.suspect:
            message = (
                f"record {first} does not follow record {span.last.seq}: that one, or its batch, was replaced"
            )
        if message:
            self._proof.found(begin, first_line, message)
        writer = _WRITER.search(line)
        if span.entries and not span.started and writer and writer[0] != span.writer:
            self._found("a foreign line: sealed by a writer who never started here")
        span.writer = writer[0] if writer else b""
        span.started, span.suspect, span.leap = False, False, None
        span.last = Head(span.seq, digest)
        span.digest, span.open = hashlib.sha256(), []
        entry = bytes.fromhex(digest)
        span.entries.append(entry)
        span.ends.append(span.seq)
        span.tree = span.tree and span.tree.grown(entry)

    def _compare_hashes(self, span: Span) -> None:
        """Compare a seal with the hashes that were kept beside the log and elsewhere."""
        if span.last.hash in self._wanted:
            span.vouched = True
            self._wanted.discard(span.last.hash)
        head = self._vouched
        if head is not None and span.seq == head.seq and span.last.hash != head.hash:
            self._found(f"record {span.seq} is not the record that {self._path.name}.head vouches for")

    def _read(self, span: Span, record: Record) -> None:
        """Read what a record itself states about the chain."""
        kind = record.get("kind")
        if kind == "start":
            if record.get("reason") == "started" and span.records > 1 and not span.ended:
                torn = f", and {record['torn']} bytes of an unfinished record" if record.get("torn") else ""
                lost = f"up to {span.sync} s of decisions may be missing{torn}"
                self._note(f"the agent was killed before this start: {lost}")
                if span.torn is not None:  # the file was rotated before the agent could cut them off
                    self._proof.findings.remove(span.torn)
                    self._proof.notes.append(str(span.torn))
            span.torn = None
            span.sync, span.started = record.get("sync"), True
            self._read_tree(span, record)
        if kind == "gap":
            self._note(
                f"the agent declares {record.get('lost')} decisions without a record since "
                f"{record.get('since')} ({record.get('detail')}; on_error = {record.get('answered')})"
            )
        span.ended = kind == "end"

    def _read_tree(self, span: Span, record: Record) -> None:
        """Take the tree that a `start` states, or compare it with the batches before it."""
        after = record["after"] if type(record.get("after")) is int else 0
        if span.headless is not None and after == span.first - 1:
            # logrotate truncated the file: the lines that were buffered then stand before the start.
            self._proof.findings.remove(span.headless)
            span.headless = None
        stated = Tree.stated(record.get("batches"), record.get("peaks"))
        if stated is None:
            return
        if span.base is None:
            known = sum(end <= after for end in span.ends)
            del span.entries[:known], span.ends[:known]
            span.base = span.tree = stated
            for entry in span.entries:
                span.tree = span.tree.grown(entry)
        elif span.last.seq == after and span.tree != stated:
            self._found(f"states another tree of the batches up to record {after} than they give")


def _vouched(proof: Proof, path: Path) -> Head | None:
    """Read the head beside a log."""
    beside = head_path(path)
    text = beside.read_text("ascii", "replace") if path != STDIN and beside.exists() else ""
    head = Head.parse(text)
    if text and head is None:
        proof.notes.append(f"{beside}: not a head as this agent writes it; nothing vouches for the end")
    return head


def _judge_end(proof: Proof, path: Path, span: Span | None, vouched: Head) -> None:
    name = f"{path.name}.head"
    if span is None:
        proof.found(path, 0, f"no records, but {name} vouches for record {vouched.seq} in no given file")
    elif vouched.seq > span.last.seq:
        end = f"record {vouched.seq}: the end was cut off"
        proof.found(path, 0, f"the log ends with record {span.seq}, but {name} vouches for {end}")
    elif proof.whole and span.tree and vouched.seq == span.last.seq and vouched.tree != span.tree:
        proof.found(path, 0, f"{name} states another tree than the log's batches give")


def _check_rest(proof: Proof, span: Span) -> None:
    """Judge the lines that no seal covers."""
    if not span.open:
        return
    (path, number, first), _ = span.open
    records = f"record {first} is" if first == span.seq else f"records {first} to {span.seq} are"
    if _is_written(path):
        proof.notes.append(f"{path}:{number}: {records} not sealed yet: the agent is writing")
        return
    cause = "appended by someone else, or the agent was killed while it wrote. When it starts again it seals "
    proof.found(path, number, f"{records} sealed by nothing: {cause}what is its own")


def _is_written(path: Path) -> bool:
    """Return whether an agent holds the log's lock now, as the kernel lists it."""
    return files.holder(lock_path(path)) is not None
