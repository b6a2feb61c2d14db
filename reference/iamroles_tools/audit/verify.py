"""Prove that an audit log is whole: nothing removed, changed, inserted or reordered; or say where it is not.

How it judges. A file is one worker's; its lines count one up, and each batch of them must give the hash
that seals it and follow the batch before (`chain`). So each line is either covered by a seal that holds, or
it is told:

| seen | what it means |
|---|---|
| the number leaps | lines were removed before this one |
| the number falls | this line was moved, copied or inserted |
| the number is right, the batch does not give its hash | one of its lines was changed or replaced |
| the batch gives its hash, `prev` is not the one before | the batch before was replaced |
| sealed by another worker, or by another writer without a start between | a foreign line |
| no seal covers it | appended by someone else, or written by an agent that was killed meanwhile |

A line that the number betrays is left out of its batch, so that one foreign line is one finding.

A chain proves nothing against someone who may rewrite all of it; for that, keep a head or a signed checkpoint
elsewhere and give it back (`--head`, `--checkpoint`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from iamroles_agent.audit.chain import GENESIS, SEALED, Head, Tree
from iamroles_agent.audit.file import head_path
from iamroles_tools.audit.reading import STDIN, Log, Record, in_order, opened, owner_of, parsed

_WRITER = re.compile(rb'"writer":"[0-9a-f]+"')


@dataclass(frozen=True, slots=True)
class Finding:
    """A place where the log is not what the agent wrote."""

    file: str
    line: int
    """1-based; 0: the end of the file."""
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line or 'end'}: {self.message}"


@dataclass(frozen=True, slots=True)
class _Leap:
    """What stood before a line whose number leaps: it may be a foreign one, and the next will tell."""

    digest: hashlib._Hash
    seq: int


@dataclass(slots=True)
class Span:
    """What was seen of one chain."""

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
    place: str = ""
    until: str = ""
    writer: bytes = b""
    records: int = 0
    ended: bool = False
    """Whether the last record is an `end`."""
    headless: Finding | None = None
    """That it does not begin with a `start`, as long as no later one explains why."""
    sync: float | None = None
    """The window that the last `start` declared, seconds."""
    vouched: bool = False
    """Whether a hash that was kept elsewhere occurs in it."""
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    """Of the lines since the last seal."""
    open: list[tuple[Path, int, int]] = field(default_factory=list)
    """First and last line since the last seal: file, line, sequence number."""
    started: bool = False
    """Whether a `start` is among them."""
    suspect: bool = False
    """Whether something is already found among them."""
    leap: _Leap | None = None
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
    """Whether the log must begin at record 1."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is not a fault, but a reader should know: gaps the agent itself declared, kills, missing files."""
    spans: dict[object, Span] = field(default_factory=dict)
    files: int = 0
    skipped: int = 0
    """Lines that are no records, in a mixed stream."""

    @property
    def whole(self) -> bool:
        """Whether nothing was removed, changed, inserted or reordered."""
        return not self.findings

    @property
    def records(self) -> int:
        return sum(span.records for span in self.spans.values())

    def found(self, path: Path, line: int, message: str) -> Finding:
        finding = Finding(str(path), line, message)
        self.findings.append(finding)
        return finding


def verify(
    paths: Iterable[Path], *, mixed: bool = False, complete: bool = False, heads: Iterable[str] = ()
) -> Proof:
    """Check the chains in these files.

    Args:
        paths: all files of one log, in any order (`in_order`).
        mixed: whether other lines than records may stand between them, as in a captured standard error.
        complete: whether it is a fault that the oldest file continues one that was not given.
        heads: hashes kept elsewhere that must occur in the chain; every chain must have one of them.

    Raises:
        OSError: a file cannot be read.
    """
    proof = Proof(complete)
    wanted, given, paths = set(heads), bool(heads), list(paths)
    for beside in paths:
        if beside.suffix == ".head" and not beside.with_suffix("").exists():
            proof.found(beside, 0, f"vouches for {beside.stem}, which is gone")
    for log in in_order(paths):
        proof.files += 1
        beside = head_path(log.path)
        text = beside.read_text("ascii", "replace") if log.path != STDIN and beside.exists() else ""
        vouched = Head.parse(text)
        if text and vouched is None:
            proof.notes.append(f"{beside}: not a head as this agent writes it; nothing vouches for the end")
        span = _verify_file(proof, log, mixed=mixed, wanted=wanted, vouched=vouched)
        if vouched is not None:
            _check_end(proof, log.path, span, vouched)
    for span in proof.spans.values():
        _check_rest(proof, span)
        if given and not span.vouched:
            proof.found(
                Path("(all files)"),
                0,
                f"{span.name} has none of the hashes kept elsewhere: its log was rewritten, or is foreign. "
                "Give one --head for each worker",
            )
    for head in sorted(wanted):
        proof.found(
            Path("(all files)"), 0, f"no record has the hash {head}: it was removed, or the log was rewritten"
        )
    return proof


def _verify_file(
    proof: Proof, log: Log, *, mixed: bool, wanted: set[str], vouched: Head | None
) -> Span | None:
    span = None
    with opened(log.path) as stream:
        for number, line in enumerate(stream, 1):
            record = parsed(line)
            if record is None:
                _no_record(proof, log.path, number, line, mixed=mixed)
                continue
            sealed = SEALED.search(line)
            owner = owner_of(record) if sealed else None
            if mixed:
                key: object = str(record.get("writer", record.get("worker")))
                name = f"writer {key}" if "writer" in record else f"worker {key}"
            else:
                key, name = log.owner, _name(log)
                if log.owner is not None and owner not in (None, log.owner):
                    proof.found(log.path, number, f"a foreign line: sealed by worker {owner and owner[0]}")
                    continue
            span = proof.spans.setdefault(key, Span(name))
            if owner is not None:
                span.worker = owner[0]
            if not _counts(proof, span, log.path, number, record):
                continue
            _note(proof, span, log.path, number, record)
            if sealed:
                _sealed(proof, span, log.path, number, line)
                _vouch(proof, span, log.path, number, wanted=wanted, vouched=vouched)
            else:
                span.digest.update(line)
    return span


def _name(log: Log) -> str:
    if log.owner is None:
        return log.path.name
    worker, turn = log.owner
    return f"worker {worker}" + (f", turn {turn}" if turn else "")


def _no_record(proof: Proof, path: Path, number: int, line: bytes, *, mixed: bool) -> None:
    if mixed:
        proof.skipped += 1
    elif line.endswith(b"\n"):
        proof.found(path, number, "not an audit record")
    else:
        proof.notes.append(
            f"{path}:{number}: an unfinished line: the agent is writing it, or was killed. "
            "It is cut off when the agent starts again"
        )


def _counts(proof: Proof, span: Span, path: Path, number: int, record: Record) -> bool:
    """Whether a record is the next of its chain, by its number; judges it if not."""
    seq = record["seq"]
    leap, span.leap = span.leap, None
    if not span.records:
        span.first, span.since = seq, record["time"]
        if record.get("kind") != "start":
            span.headless = proof.found(
                path, number, f"begins with record {seq}, in the middle: what came before is gone"
            )
    elif seq <= span.seq:
        new = record.get("kind") == "start" and seq == 1
        proof.found(
            path,
            number,
            f"record {seq} begins a new chain that does not continue record {span.seq} ({span.place})"
            if new
            else f"record {seq} is out of order: it stands after record {span.seq} ({span.place})",
        )
        if leap is not None and seq == leap.seq + 1:
            span.digest = leap.digest  # it was the line before that does not belong here
        elif not new:
            return False
        span.suspect = True
    elif seq > span.seq + 1:
        last = span.seq
        missing = f"record {last + 1} is" if seq == last + 2 else f"records {last + 1} to {seq - 1} are"
        proof.found(path, number, f"{missing} missing before record {seq}")
        span.leap, span.suspect = _Leap(span.digest.copy(), last), True
    here = (path, number, seq)
    span.open = [span.open[0], here] if span.open else [here, here]
    span.seq, span.place, span.until = seq, f"{path}:{number}", record["time"]
    span.records += 1
    return True


def _sealed(proof: Proof, span: Span, path: Path, number: int, line: bytes) -> None:
    """Judge a batch by the line that seals it."""
    (begin, first_line, first), _ = span.open
    sealed = SEALED.search(line)
    assert sealed is not None  # noqa: S101 - the caller has seen it
    prev, digest = sealed[1].decode(), sealed[3].decode()
    span.digest.update(line[: sealed.start(2)])
    if span.digest.hexdigest() != digest and not span.suspect:
        single = first == span.seq
        proof.found(
            begin,
            first_line,
            f"record {first} was changed: its bytes do not give its hash"
            if single
            else f"one of records {first} to {span.seq} (up to {path}:{number}) was changed: "
            "their bytes do not give the hash that seals them",
        )
    elif not span.entries and not span.last.seq:
        if prev != GENESIS:
            _continued(proof, Finding(str(begin), first_line, _earlier(span.first)))
    elif prev != span.last.hash and not span.suspect:
        proof.found(
            begin,
            first_line,
            f"record {first} does not follow record {span.last.seq}: that one, or its batch, was replaced",
        )
    writer = _WRITER.search(line)
    if span.entries and not span.started and writer and writer[0] != span.writer:
        proof.found(path, number, "a foreign line: sealed by a writer who never started here")
    span.writer = writer[0] if writer else b""
    span.started, span.suspect, span.leap = False, False, None
    span.last = Head(span.seq, digest)
    span.digest, span.open = hashlib.sha256(), []
    entry = bytes.fromhex(digest)
    span.entries.append(entry)
    span.ends.append(span.seq)
    span.tree = span.tree and span.tree.grown(entry)


def _vouch(
    proof: Proof, span: Span, path: Path, number: int, *, wanted: set[str], vouched: Head | None
) -> None:
    """Compare a seal with what was kept beside the log and elsewhere."""
    if span.last.hash in wanted:
        span.vouched = True
        wanted.discard(span.last.hash)
    if vouched is not None and span.seq == vouched.seq and span.last.hash != vouched.hash:
        proof.found(path, number, f"record {span.seq} is not the one that {path.name}.head vouches for")


def _continued(proof: Proof, found: Finding) -> None:
    if proof.complete:
        proof.findings.append(found)
    else:
        proof.notes.append(str(found))


def _earlier(seq: int) -> str:
    return f"continues record {seq - 1}, in a file that was not given"


def _note(proof: Proof, span: Span, path: Path, number: int, record: Record) -> None:
    """What a record itself tells about the chain."""
    kind, place = record.get("kind"), f"{path}:{number}"
    if kind == "start":
        if record.get("reason") == "started" and span.records > 1 and not span.ended:
            torn = f", and {record['torn']} bytes of an unfinished record" if record.get("torn") else ""
            proof.notes.append(
                f"{place}: the agent was killed before this start: up to {span.sync} s of decisions "
                f"may be missing{torn}"
            )
        span.sync, span.started = record.get("sync"), True
        _tree(proof, span, path, number, record)
    if kind == "gap":
        proof.notes.append(
            f"{place}: the agent declares {record.get('lost')} decisions without a record since "
            f"{record.get('since')} ({record.get('detail')}; on_error = {record.get('answered')})"
        )
    span.ended = kind == "end"


def _tree(proof: Proof, span: Span, path: Path, number: int, record: Record) -> None:
    """Take up, or check, what a `start` states of the tree before it."""
    after = record["after"] if type(record.get("after")) is int else 0
    if span.headless is not None and after == span.first - 1:
        # Emptied in place by logrotate: what was buffered then stands before the start that says so.
        proof.findings.remove(span.headless)
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
        proof.found(path, number, f"states another tree of the batches up to record {after} than they give")


def _check_end(proof: Proof, path: Path, span: Span | None, vouched: Head) -> None:
    if span is None:
        proof.found(path, 0, f"no records, but {path.name}.head vouches for record {vouched.seq}")
    elif vouched.seq > span.last.seq:
        proof.found(
            path,
            0,
            f"the log ends with record {span.seq}, but {path.name}.head vouches for record "
            f"{vouched.seq}: the end was cut off",
        )
    elif proof.whole and span.tree and vouched.seq == span.last.seq and vouched.tree != span.tree:
        proof.found(path, 0, f"{path.name}.head states another tree than the log's batches give")


def _check_rest(proof: Proof, span: Span) -> None:
    """Judge the lines that no seal covers."""
    if not span.open:
        return
    (path, number, first), _ = span.open
    what = f"record {first} is" if first == span.seq else f"records {first} to {span.seq} are"
    if _is_written(path):
        proof.notes.append(f"{path}:{number}: {what} not sealed yet: the agent is writing")
    else:
        proof.found(
            path,
            number,
            f"{what} sealed by nothing: appended by someone else, or the agent was killed while it wrote. "
            "When it starts again it seals what is its own",
        )


def _is_written(path: Path) -> bool:
    """Whether an agent holds the log's lock right now, as the kernel lists it."""
    try:
        locks, inode = Path("/proc/locks").read_text("ascii"), path.stat().st_ino
    except OSError:
        return False
    return re.search(rf" FLOCK .*:{inode} ", locks) is not None
