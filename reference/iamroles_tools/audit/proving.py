"""Make checkpoints and proofs from logs on disk: which batch, its position in the tree, under which root."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

from iamroles_agent.audit.chain import SEALED, Tree, seq_of
from iamroles_tools.audit.checkpoint import (
    Checkpoint,
    CheckpointError,
    digest_of,
    proof_text,
    witness_request,
)
from iamroles_tools.audit.merkle import KnownTree
from iamroles_tools.audit.reading import Owner, Record, in_order, lines_of, parsed
from iamroles_tools.audit.verify import EVERYWHERE, Proof, Span


def origin_of(name: str, owner: Owner) -> str:
    """Return a log's own name, below the name that all logs of an installation share."""
    worker, turn = owner
    return f"{name}/worker-{worker}" + (f"-turn-{turn}" if turn else "")


def owners(proof: Proof) -> dict[Owner, Span]:
    """Return the spans of a verification that are logs in files."""
    return {key: span for key, span in proof.spans.items() if isinstance(key, tuple)}


def root_at(span: Span, size: int) -> bytes:
    """Return the root that a log's tree had at `size` batches.

    Raises:
        CheckpointError: the given files do not hold these batches.
    """
    base = span.base
    if base is None or size < base.size:
        raise CheckpointError(
            f"{span.name}: give its older files too, back to batch {size}. If they are deleted, move the "
            "checkpoint away: `audit checkpoint` then begins a new series, which its witnesses refuse"
        )
    if size > base.size + len(span.entries):
        raise CheckpointError(
            f"{span.name} has {base.size + len(span.entries)} batches, the checkpoint {size}: "
            "the end was cut off, or a newer file was not given"
        )
    tree = base
    for entry in span.entries[: size - base.size]:
        tree = tree.grown(entry)
    return tree.root


def checkpoint_of(span: Span, origin: str, previous: Checkpoint | None) -> Checkpoint:
    """Return the checkpoint of a log's present state.

    Raises:
        CheckpointError: the log does not hold the batches that were signed before.
    """
    if previous is not None:
        _check(span, origin, previous)
    size = (span.base or Tree()).size + len(span.entries)
    return Checkpoint(origin, size, root_at(span, size))


def for_witness(span: Span, former: Checkpoint | None, note: str) -> str:
    """Make the request to a witness (C2SP tlog-witness, `add-checkpoint`): a note that follows `former`."""
    size = 0 if former is None else former.size
    return witness_request(size, KnownTree(span.base or Tree(), span.entries).path_from(size), note)


def _is_of(checkpoint: Checkpoint, owner: Owner) -> bool:
    return checkpoint.origin.rpartition("/")[2] == origin_of("", owner)[1:]


def _check(span: Span, origin: str, checkpoint: Checkpoint) -> None:
    if checkpoint.origin != origin:
        raise CheckpointError(f"the checkpoint is of {checkpoint.origin}, not of {origin}")
    if root_at(span, checkpoint.size) != checkpoint.root:
        raise CheckpointError(
            f"{span.name} does not hold the {checkpoint.size} batches of the checkpoint: it was rewritten"
        )


def check(proof: Proof, checkpoints: Iterable[Checkpoint]) -> None:
    """Compare logs with checkpoints that were kept elsewhere; findings go into the proof.

    Every log must have a checkpoint: a log without one may be foreign.
    """
    left = list(checkpoints)
    for owner, span in owners(proof).items():
        own = [one for one in left if _is_of(one, owner)]
        left = [one for one in left if one not in own]
        if not own:
            proof.found(EVERYWHERE, 0, f"no checkpoint for {span.name}: its log may be foreign")
        for one in own:
            try:
                _check(span, one.origin, one)
            except CheckpointError as error:
                proof.found(EVERYWHERE, 0, str(error))
            else:
                proof.notes.append(f"{span.name} holds the {one.size} batches that {one.origin} signed")
    for checkpoint in left:
        proof.found(EVERYWHERE, 0, f"no log for the checkpoint of {checkpoint.origin}")


def find(paths: Iterable[Path], *, request: str) -> list[tuple[Owner, int]]:
    """Find the records of a request's last decision: the full record of its verdict, then its own short line.

    A request may have two decisions, of which the later was answered.

    Raises:
        CheckpointError: no decision on the request is in the files.
    """
    mark = f'"request":"{request}"'.encode()
    found: list[tuple[str, int, Owner, Record]] = []
    for log, line in lines_of(in_order(paths)):
        if mark not in line or log.owner is None or (record := parsed(line)) is None:
            continue
        if record.get("request") == request and ("use" in record or record.get("kind") == "decision"):
            found.append((record["time"], record["seq"], log.owner, record))
    if not found:
        raise CheckpointError(f"no decision on request {request} in these files")
    *_, owner, record = max(found, key=itemgetter(0, 1))
    return [(owner, record[name]) for name in ("use", "seq") if name in record]


def prove(paths: Iterable[Path], proof: Proof, owner: Owner, seq: int, note: str) -> str:
    """Make the proof that record `seq` is in the log whose signed checkpoint is `note`.

    `proof` is the verification of the files `paths`.

    Raises:
        CheckpointError: the record is not in it.
    """
    span, checkpoint = owners(proof)[owner], Checkpoint.parse(note)
    if not _is_of(checkpoint, owner):
        raise CheckpointError(
            f"record {seq} is in the log of {span.name}: give its checkpoint, not that of {checkpoint.origin}"
        )
    _check(span, checkpoint.origin, checkpoint)
    at, base = bisect_left(span.ends, seq), span.base or Tree()
    if at >= checkpoint.size - base.size:
        raise CheckpointError(f"record {seq} is younger than the checkpoint: make a new one")
    batch = _batch(paths, owner, seq)
    if digest_of(batch) != span.entries[at]:
        raise CheckpointError(f"the batch of record {seq} does not give its hash: run `audit verify`")
    known = KnownTree(base, span.entries[: checkpoint.size - base.size])
    return proof_text(batch, base.size + at, known.path_to(base.size + at), note)


def _batch(paths: Iterable[Path], owner: Owner, seq: int) -> bytes:
    batch = b""
    for _, line in lines_of(log for log in in_order(paths) if log.owner == owner):
        batch += line
        if SEALED.search(line):
            if seq_of(line) >= seq:
                return batch
            batch = b""
    raise CheckpointError(f"record {seq} is not in these files")
