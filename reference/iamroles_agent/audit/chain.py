"""The chain: what makes a missing, changed, foreign or moved line of the log visible.

Theory of operation
-------------------
A line is one JSON object. Lines are written in batches: all that came together while the disk was busy. The
last line of a batch carries two members more, `prev` and `hash`, and with them it seals the batch: `hash` is
the SHA-256 of every byte since the line that sealed the batch before, up to the comma before `"hash"`; `prev`
is the hash of that earlier batch, 64 zeros in the first. So one hash covers many lines, and it runs where it
may take its time: in the writer's thread, outside the interpreter's lock. A log in which every line seals
itself is the case of batches of one line; the first format of this log was that, and is read as it is.

Who wrote it. A sealing line names its `worker` and its `writer`, a random name of the process's life. A
file has one writer at a time, held by a lock; another writer may only go on after a `start` record. On
standard error several workers share one stream: there every line names its writer, each writer has a chain
of its own, and a batch is at most what one write puts into a pipe unbroken.

The tree. The hashes of all batches since the log began are also the entries of a Merkle tree (RFC 9162
section 2.1). Its root says the same as the last hash, but lets a single batch be proven with a few hashes. A
growing tree needs only its `peaks`, the roots of the full subtrees that it is made of; the head file and each
`start` record state them, so each file can be proven from without those before it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

GENESIS = "0" * 64
"""The `prev` of the first batch of a chain that follows no other."""
SEALED = re.compile(rb'"prev":"([0-9a-f]{64})"(,"hash":"([0-9a-f]{64})"\}\n)\Z')
"""The end of a line that seals a batch: `prev`, where the hashed bytes end, `hash`."""
_SEQ = re.compile(rb'\{"time":"[^"]*","seq":(\d+)')
_sha256 = hashlib.sha256


class Tree(NamedTuple):
    """A Merkle tree that grows: how many entries, and the roots of its full subtrees, the largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def grown(self, entry: bytes) -> Tree:
        """The tree with one entry more."""
        peaks, node, size = list(self.peaks), leaf(entry), self.size
        while size & 1:
            node = joint(peaks.pop(), node)
            size >>= 1
        return Tree(self.size + 1, (*peaks, node))

    @property
    def root(self) -> bytes:
        """RFC 9162 section 2.1.1; of no entries the hash of nothing."""
        if not self.peaks:
            return _sha256().digest()
        node = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            node = joint(peak, node)
        return node

    @classmethod
    def stated(cls, size: object, peaks: object) -> Tree | None:
        """A tree as a `start` record or a head file states it; None if it cannot be one."""
        if type(size) is not int or size < 0 or not isinstance(peaks, list) or len(peaks) != size.bit_count():
            return None
        if not all(isinstance(peak, str) and re.fullmatch("[0-9a-f]{64}", peak) for peak in peaks):
            return None
        return cls(size, tuple(map(bytes.fromhex, peaks)))


def leaf(entry: bytes) -> bytes:
    """The hash of an entry."""
    return _sha256(b"\0" + entry).digest()


def joint(left: bytes, right: bytes) -> bytes:
    """The hash of two neighbours."""
    return _sha256(b"\1" + left + right).digest()


class Head(NamedTuple):
    """Where a chain stands: its last record, the hash that seals it, the tree of all batches so far."""

    seq: int = 0
    hash: str = GENESIS
    tree: Tree = Tree()

    def __str__(self) -> str:
        """A head file's content: sequence number, hash, size of the tree, peaks, and a check of all that."""
        text = " ".join(
            (f"{self.seq:020d}", self.hash, str(self.tree.size), *(p.hex() for p in self.tree.peaks))
        )
        return f"{text} {_check(text)}\n"

    @classmethod
    def parse(cls, text: str) -> Head | None:
        """Read a head file's content; None for anything else, a head that was written half among it."""
        body, _, check = text.partition("\n")[0].rpartition(" ")
        seq, digest, size, *peaks = body.split(" ") if body.count(" ") >= 2 else ("", "", "")
        if check != _check(body) or not (seq.isdecimal() and size.isdecimal()) or len(digest) != len(GENESIS):
            return None
        tree = Tree.stated(int(size), peaks)
        return None if tree is None else cls(int(seq), digest, tree)


def _check(text: str) -> str:
    return _sha256(text.encode()).hexdigest()[:16]


def seq_of(line: bytes | bytearray | memoryview) -> int:
    """The sequence number of a line that this agent made."""
    found = _SEQ.match(line)
    assert found is not None  # noqa: S101 - every line begins so
    return int(found[1])


def seal(lines: bytearray, head: Head, who: bytes, already: bytes = b"") -> Head:
    """Seal a batch in place.

    Args:
        lines: whole lines; the last one gets the seal.
        head: the chain before it.
        who: members that name the writer, each with a comma before it.
        already: lines on disk that no seal covers yet; this one does.

    Returns:
        The chain after it.
    """
    seq = seq_of(memoryview(lines)[lines.rfind(b"\n", 0, -1) + 1 :])
    del lines[-2:]
    lines += who + b',"prev":"%b"' % head.hash.encode()
    digest = _sha256(already)
    digest.update(lines)
    lines += b',"hash":"%b"}\n' % digest.hexdigest().encode()
    return Head(seq, digest.hexdigest(), head.tree.grown(digest.digest()))


def portions(lines: bytearray, limit: int) -> Iterable[bytearray]:
    """Cut whole lines into pieces of whole lines, each at most `limit` bytes where a line is not longer."""
    begin = 0
    while begin < len(lines):
        end = len(lines)
        if end - begin > limit:
            end = lines.rfind(b"\n", begin, begin + limit) + 1 or lines.find(b"\n", begin) + 1
        yield lines[begin:end]
        begin = end


class Known(NamedTuple):
    """What is known of a tree: all of its entries, or those after a smaller tree whose peaks are known."""

    before: Tree
    entries: Sequence[bytes]

    @property
    def size(self) -> int:
        return self.before.size + len(self.entries)

    def path_to(self, index: int) -> list[bytes]:
        """The inclusion proof of an entry (RFC 9162 section 2.1.3.1), which is not one of those before.

        Returns:
            The hashes from the entry's neighbour up to below the root.
        """
        root, proof = self._roots(), []
        begin, end = 0, self.size
        while end - begin > 1:
            middle = begin + _half(end - begin)
            if index < middle:
                proof.append(root(middle, end))
                end = middle
            else:
                proof.append(root(begin, middle))
                begin = middle
        return proof[::-1]

    def path_from(self, size: int) -> list[bytes]:
        """The consistency proof from an earlier state (RFC 9162 section 2.1.4.1), not before `before`."""
        root, proof = self._roots(), []
        begin, end, own = 0, self.size, True
        if size == 0:
            return []
        while size != end:
            middle = begin + _half(end - begin)
            if size <= middle:
                proof.append(root(middle, end))
                end = middle
            else:
                proof.append(root(begin, middle))
                begin, own = middle, False
        return ([] if own else [root(begin, end)]) + proof[::-1]

    def _roots(self) -> Callable[[int, int], bytes]:
        """The root of each subtree, from one entry to before another."""
        peaks: dict[tuple[int, int], bytes] = {}
        begin = 0
        for peak, width in zip(self.before.peaks, _bits(self.before.size), strict=True):
            peaks[begin, begin + width] = peak
            begin += width

        def root(begin: int, end: int) -> bytes:
            if (begin, end) in peaks:
                return peaks[begin, end]
            if end - begin == 1:
                return leaf(self.entries[begin - self.before.size])
            middle = begin + _half(end - begin)
            return joint(root(begin, middle), root(middle, end))

        return root


def _half(size: int) -> int:
    """The largest power of two below a size above 1."""
    return 1 << (size - 1).bit_length() - 1


def _bits(size: int) -> list[int]:
    return [1 << bit for bit in range(size.bit_length() - 1, -1, -1) if size >> bit & 1]


def root_of_path(index: int, size: int, entry: bytes, proof: Sequence[bytes]) -> bytes | None:
    """The root that an inclusion proof leads to (RFC 9162 section 2.1.3.2); None where it cannot be one."""
    if not 0 <= index < size:
        return None
    node, last, rest = leaf(entry), size - 1, list(proof)
    for neighbour in rest:
        if last == 0:
            return None
        if index & 1 or index == last:
            node = joint(neighbour, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = joint(node, neighbour)
        index, last = index >> 1, last >> 1
    return node if last == 0 else None
