"""The hash chain that makes a missing, changed, foreign or moved line of the log visible.

Theory of operation
-------------------
A line is one JSON object. Lines are written in batches: all that were made while the disk was busy. The last
line of a batch has two more members, `prev` and `hash`, and with them it seals the batch: `hash` is the
SHA-256 of every byte since the line that sealed the previous batch, up to the comma before `"hash"`; `prev`
is the hash of that previous batch, 64 zeros in the first. So one hash covers many lines, and the writer's
thread computes it outside the interpreter's lock. In the first format of this log every line sealed itself:
it is read as a log whose batches have one line.

Who wrote it. A sealing line names its `worker` and its `writer`, a random name that the process chose when it
started. A lock makes sure that a file has one writer at a time; another writer may only continue it after a
`start` record. On standard error several workers share one stream: there every line names its writer, each
writer has a chain of its own, and a batch is at most what one write puts into a pipe unbroken.

The tree. The hashes of all batches since the log began are also the entries of a Merkle tree (RFC 9162
section 2.1). Its root says the same as the last hash, but a few hashes prove that a single batch is in it. To
grow, a tree needs only its `peaks`, the roots of the full subtrees that it is made of. The head file and each
`start` record state them, so proofs from a file need none of the files before it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

GENESIS = "0" * 64
"""The `prev` of the first batch of a chain that follows no other."""
SEALED = re.compile(rb'"prev":"([0-9a-f]{64})"(,"hash":"([0-9a-f]{64})"\}\n)\Z')
"""The end of a line that seals a batch: `prev`, where the hashed bytes end, `hash`."""
BEGIN = b'{"time":"'
"""The beginning of every record."""
_SEQ = re.compile(re.escape(BEGIN) + rb'[^"]*","seq":(\d+)')
_sha256 = hashlib.sha256


class Tree(NamedTuple):
    """A Merkle tree that grows: the number of entries, and the roots of its full subtrees, largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def grown(self, entry: bytes) -> Tree:
        """Add one entry."""
        peaks, node, size = list(self.peaks), leaf(entry), self.size
        while size & 1:
            node = joint(peaks.pop(), node)
            size >>= 1
        return Tree(self.size + 1, (*peaks, node))

    @property
    def root(self) -> bytes:
        """The root (RFC 9162 section 2.1.1); without entries, the hash of nothing."""
        if not self.peaks:
            return _sha256().digest()
        node = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            node = joint(peak, node)
        return node

    @classmethod
    def stated(cls, size: object, peaks: object) -> Tree | None:
        """Read a tree as a `start` record or a head file states it; None if it is invalid."""
        if type(size) is not int or size < 0 or not isinstance(peaks, list) or len(peaks) != size.bit_count():
            return None
        if not all(isinstance(peak, str) and re.fullmatch("[0-9a-f]{64}", peak) for peak in peaks):
            return None
        return cls(size, tuple(map(bytes.fromhex, peaks)))


def leaf(entry: bytes) -> bytes:
    """Hash an entry."""
    return _sha256(b"\0" + entry).digest()


def joint(left: bytes, right: bytes) -> bytes:
    """Hash two neighbours."""
    return _sha256(b"\1" + left + right).digest()


class Head(NamedTuple):
    """The state of a chain: its last record, the hash that seals it, the tree of all batches so far."""

    seq: int = 0
    hash: str = GENESIS
    tree: Tree = Tree()

    def __str__(self) -> str:
        """Write a head file's content: sequence number, hash, size of the tree, peaks, and a checksum."""
        text = " ".join(
            (f"{self.seq:020d}", self.hash, str(self.tree.size), *(p.hex() for p in self.tree.peaks))
        )
        return f"{text} {_check(text)}\n"

    @classmethod
    def parse(cls, text: str) -> Head | None:
        """Read a head file's content; None if it is anything else, such as a half-written head."""
        body, _, check = text.partition("\n")[0].rpartition(" ")
        seq, digest, size, *peaks = body.split(" ") if body.count(" ") >= 2 else ("", "", "")
        if check != _check(body) or not (seq.isdecimal() and size.isdecimal()) or len(digest) != len(GENESIS):
            return None
        tree = Tree.stated(int(size), peaks)
        return None if tree is None else cls(int(seq), digest, tree)


def _check(text: str) -> str:
    return _sha256(text.encode()).hexdigest()[:16]


def seq_of(line: bytes | bytearray | memoryview) -> int:
    """Read the sequence number of a line that this agent made."""
    found = _SEQ.match(line)
    assert found is not None  # noqa: S101 - every line begins like this
    return int(found[1])


def seal(lines: bytearray, head: Head, writer: bytes, already: bytes = b"") -> Head:
    """Seal a batch in place.

    Args:
        lines: whole lines; the last one gets the seal.
        head: the chain before it.
        writer: members that name the writer, each with a comma before it.
        already: lines on disk that no seal covers yet; this seal covers them too.

    Returns:
        The chain after it.
    """
    seq = seq_of(memoryview(lines)[lines.rfind(b"\n", 0, -1) + 1 :])
    del lines[-2:]
    lines += writer + b',"prev":"%b"' % head.hash.encode()
    digest = _sha256(already)
    digest.update(lines)
    lines += b',"hash":"%b"}\n' % digest.hexdigest().encode()
    return Head(seq, digest.hexdigest(), head.tree.grown(digest.digest()))


def batches(lines: bytearray, limit: int, begin: int = 0) -> Iterable[bytearray]:
    """Cut lines, from a byte on, into batches of at most `limit` bytes; a longer line is a batch."""
    while begin < len(lines):
        end = len(lines)
        if end - begin > limit:
            end = lines.rfind(b"\n", begin, begin + limit) + 1 or lines.find(b"\n", begin) + 1
        yield lines[begin:end]
        begin = end
