"""Proofs from the tree of a log (RFC 9162 section 2.1): which hashes lead from an entry to the root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from iamroles_agent.audit.chain import Tree, joint, leaf


class KnownTree(NamedTuple):
    """The known part of a tree: the peaks of the tree `before`, and the entries since."""

    before: Tree
    entries: Sequence[bytes]

    @property
    def size(self) -> int:
        return self.before.size + len(self.entries)

    def path_to(self, index: int) -> list[bytes]:
        """Prove that the entry is included (RFC 9162 section 2.1.3.1); `index` is one of `entries`.

        Returns:
            The hashes from the entry's neighbour up to below the root.
        """
        return self._down(index, lambda begin, end: end - begin == 1)[2]

    def path_from(self, size: int) -> list[bytes]:
        """Prove that the tree continues an earlier one (RFC 9162 section 2.1.4.1), not before `before`."""
        if size == 0:
            return []
        begin, end, proof = self._down(size - 1, lambda _, end: end == size)
        return proof if begin == 0 else [self._roots()(begin, end), *proof]

    def _down(self, index: int, is_there: Callable[[int, int], bool]) -> tuple[int, int, list[bytes]]:
        """Go down towards an entry; return the subtree that is wanted, and the roots beside the way to it."""
        root, proof = self._roots(), []
        begin, end = 0, self.size
        while not is_there(begin, end):
            middle = begin + _half(end - begin)
            if index < middle:
                proof.append(root(middle, end))
                end = middle
            else:
                proof.append(root(begin, middle))
                begin = middle
        return begin, end, proof[::-1]

    def _roots(self) -> Callable[[int, int], bytes]:
        """Return a function that gives the root of a subtree, by its first entry and the one after it."""
        peaks: dict[tuple[int, int], bytes] = {}
        begin = 0
        for peak in self.before.peaks:
            end = begin + (1 << (self.before.size - begin).bit_length() - 1)
            peaks[begin, end] = peak
            begin = end

        def root(begin: int, end: int) -> bytes:
            if (begin, end) in peaks:
                return peaks[begin, end]
            if end - begin == 1:
                return leaf(self.entries[begin - self.before.size])
            middle = begin + _half(end - begin)
            return joint(root(begin, middle), root(middle, end))

        return root


def _half(size: int) -> int:
    """Return the largest power of two below a size above 1."""
    return 1 << (size - 1).bit_length() - 1


def root_of_path(index: int, size: int, entry: bytes, proof: Sequence[bytes]) -> bytes | None:
    """Return the root that an inclusion proof leads to (RFC 9162 section 2.1.3.2); None if it is invalid."""
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
