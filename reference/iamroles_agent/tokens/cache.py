"""Verified identities by the hash of their credential: bounded in entries and in bytes.

An entry is valid while its identity lives and the key that proved it is in force. Both are checked when it is
read, so a removed key needs no search. Refused credentials are not kept, so a flood of bad tokens cannot
evict a good one. The least recently used entry goes first.

Two things would block the event loop for long at 100,000 entries. The garbage collector visits all objects,
but it soon skips a plain tuple of texts and numbers: so an entry holds its roles as ARNs and its key as a
number, and `get` builds the identity again. And a growing table is copied: so there are several tables, each
for its part of the hashes.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from itertools import chain
from typing import Any

from iamroles_agent.base.clocks import Clock
from iamroles_agent.base.identity import Actor, Identity
from iamroles_agent.base.release import release
from iamroles_agent.tokens.claims import role_arn
from iamroles_agent.tokens.keys import Key

_BASE_SIZE = 700
"""Bytes of an entry without its strings: table slots, digest, identity, tuples (measured, CPython 3.11)."""

_TABLES, _LEAST = 16, 1024
"""Tables of a large cache, and entries that are worth a table."""
_FEW, _ROLE_SIZE = 16, 320
"""Identities with few roles share their role objects; identities with more roles hardly do."""
_BINDING_SIZE = 248
"""Two thumbprints and their tuple."""
_ACTOR_SIZE, _TEXT_SIZE = 200, 60
"""An actor's tuples without their texts, and a text without its characters."""


def size_of(identity: Identity) -> int:
    """Estimate the bytes that an entry takes; interned roles and grounds cost a pointer."""
    _, principal, session, roles, _, _, _, scopes, _, key_id, _, _, binding, actor = identity
    count = len(roles)
    size = (
        _BASE_SIZE
        + (8 * count if count <= _FEW else _ROLE_SIZE * count)
        + len(principal)
        + len(session)
        + len(key_id)
        + (0 if binding is None else _BINDING_SIZE)
    )
    if actor is not None:
        texts = (actor.sub, actor.issuer, *chain.from_iterable(actor.chain))
        size += _ACTOR_SIZE + sum(_TEXT_SIZE + len(text) for text in texts)
    return size if scopes is None else size + 216 + 60 * len(scopes) + sum(map(len, scopes))


_arn = lru_cache(maxsize=4096)(str)
"""The inverse of `role_arn`."""


class IdentityCache:
    """The cache, for at most `max_entries` identities and about `max_bytes` bytes."""

    def __init__(self, clock: Clock, max_entries: int, max_bytes: int) -> None:
        self._clock = clock
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._tables = self._empty()
        """An entry holds its size, the number of the key, and the fields of `Identity`."""
        self._held = 0
        self._keys: dict[int, Key] = {}
        self.bytes = 0
        """The estimated size of all entries."""

    def __len__(self) -> int:
        return self._held

    def _empty(self) -> list[OrderedDict[bytes, tuple[Any, ...]]]:
        return [OrderedDict() for _ in range(max(1, min(_TABLES, self._max_entries // _LEAST)))]

    def _table(self, digest: bytes) -> OrderedDict[bytes, tuple[Any, ...]]:
        return self._tables[digest[0] % len(self._tables)]

    def get(self, digest: bytes) -> Identity | None:
        """Return the identity, if it is still valid."""
        table = self._table(digest)
        entry = table.get(digest)
        if entry is None:
            return None
        _, number, idp, who, label, roles, end, issued, wish, scopes, name, kid, again, on, keys, by = entry
        roles = tuple([role_arn(arn) for arn in roles])
        preferred = None if wish is None else role_arn(wish)
        scopes = None if scopes is None else frozenset(scopes)
        actor = None if by is None else Actor._make(by)
        identity = Identity(
            idp, who, label, roles, end, issued, preferred, scopes, name, kid, again, on, keys, actor
        )
        key = self._keys.get(number)
        if self._clock() >= identity.believed_until or (number and (key is None or not key.live)):
            self.drop(digest)
            return None
        table.move_to_end(digest)
        return identity

    def put(self, digest: bytes, identity: Identity, key: Key | None) -> None:
        """Keep an identity; `key` is the key that proved it, None if STS did."""
        table = self._table(digest)
        if digest in table:
            self.drop(digest)
        if key is not None and key.number not in self._keys:
            self._keys = {one.number: one for one in (*self._keys.values(), key) if one.live or one is key}
        size = size_of(identity)
        issuer, who, session, roles, end, issued, wish, scopes, *rest, actor = identity
        number = 0 if key is None else key.number
        arns = tuple([_arn(role) for role in roles])
        preferred = None if wish is None else _arn(wish)
        texts = None if scopes is None else tuple(scopes)
        table[digest] = (
            *(size, number, issuer, who, session, arns),
            *(end, issued, preferred, texts, *rest, None if actor is None else tuple(actor)),
        )
        self.bytes += size
        self._held += 1
        while table and (self._held > self._max_entries or self.bytes > self._max_bytes):
            self.drop(next(iter(table)))

    def drop(self, digest: bytes) -> None:
        """Remove an identity, if it is there."""
        if entry := self._table(digest).pop(digest, None):
            self.bytes -= entry[0]
            self._held -= 1

    def clear(self) -> None:
        former, self._tables = self._tables, self._empty()
        self.bytes = self._held = 0
        release(former)
