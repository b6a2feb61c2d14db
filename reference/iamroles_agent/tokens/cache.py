"""Verified identities by the hash of their credential: bounded in entries and in bytes.

An entry is good while its identity lives and the key that proved it is in force; both are looked at when it
is read, so a removed key needs no search. Refused credentials never get here: no flood of bad tokens can
evict a good one. The least recently used goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from iamroles_agent.discard import discard
from iamroles_agent.identity import Identity
from iamroles_agent.tokens.keys import Key

_BASE_SIZE = 760
"""Bytes of an entry without its strings: table slots, digest, identity, tuples (measured, CPython 3.11)."""

_FEW, _ROLE_SIZE = 16, 320
"""Roles of an identity with few are shared with others; of one with many, hardly."""


def size_of(identity: Identity) -> int:
    """Roughly the bytes that an entry takes; interned roles and grounds cost a pointer."""
    _, principal, session, roles, _, _, _, scopes, _, key_id, _, _ = identity
    count = len(roles)
    size = (
        _BASE_SIZE
        + (8 * count if count <= _FEW else _ROLE_SIZE * count)
        + len(principal)
        + len(session)
        + len(key_id)
    )
    return size if scopes is None else size + 216 + 60 * len(scopes) + sum(map(len, scopes))


class IdentityCache:
    """See the module.

    Args:
        clock: epoch seconds.
        max_entries: at most so many identities.
        max_bytes: at most about so many bytes.
    """

    def __init__(self, clock: Callable[[], float], max_entries: int, max_bytes: int) -> None:
        self._clock = clock
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._entries: OrderedDict[bytes, tuple[Identity, Key | None, int]] = OrderedDict()
        self.bytes = 0
        """What the entries take, by estimate."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes) -> Identity | None:
        """The identity, if it still holds."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        identity, key, size = entry
        if self._clock() >= identity.believed_until or (key is not None and not key.live):
            del self._entries[digest]
            self.bytes -= size
            return None
        self._entries.move_to_end(digest)
        return identity

    def put(self, digest: bytes, identity: Identity, key: Key | None) -> None:
        """Keep an identity; `key` is what proved it, None where no key of ours did (STS)."""
        if digest in self._entries:
            self.drop(digest)
        size = size_of(identity)
        self._entries[digest] = (identity, key, size)
        self.bytes += size
        while len(self._entries) > self._max_entries or self.bytes > self._max_bytes:
            _, (_, _, gone) = self._entries.popitem(last=False)
            self.bytes -= gone

    def drop(self, digest: bytes) -> None:
        """Forget one, if it is there."""
        if entry := self._entries.pop(digest, None):
            self.bytes -= entry[2]

    def clear(self) -> None:
        """Forget all."""
        former, self._entries = self._entries, OrderedDict()
        self.bytes = 0
        discard([former])
