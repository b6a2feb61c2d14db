"""The document in force: numbered, made of named parts. Immutable; a change makes another document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

POLICY = "policy"
"""The part with the configuration and policy (`policy_part`)."""
KEYS = "keys/"
"""Prefix of the parts with key sets; one for each source of keys (`tokens.keyring`)."""
REVOCATIONS = "revocations"
"""The part with the revocations."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of what is in force.

    Its pieces take less than 2 ms each to decode, so that members build a new version beside their work, and
    no request waits for it.
    """

    digest: str
    """Names the content: of the policy its version, of others a hash."""
    pieces: tuple[bytes, ...]
    """The content; only the members read it."""
    stamp: float = 0.0
    """When the content was last known good, on CLOCK_MONOTONIC, which all processes of a host share. A new
    stamp does not make a new version."""

    @classmethod
    def of(cls, pieces: Iterable[bytes], *, digest: str = "", stamp: float = 0.0) -> Part:
        """Make a part, named by a hash of its content unless it has a name of its own."""
        held = tuple(pieces)
        if not digest:
            digest = f"sha256:{hashlib.sha256(b''.join(held)).hexdigest()[:16]}"
        return cls(digest, held, stamp)


Parts = Mapping[str, Part]
Edits = Mapping[str, Part | None]
"""Parts that come or change; None: the part goes."""


@dataclass(frozen=True, slots=True)
class Document:
    """All that is in force."""

    version: int = 0
    parts: Parts = field(default_factory=dict)

    @property
    def policy(self) -> str:
        """Version of the policy: `sha256:` and 16 hex digits; "" before there is one."""
        part = self.parts.get(POLICY)
        return part.digest if part is not None else ""

    def edited(self, edits: Edits, version: int) -> Document:
        parts = {name: part for name, part in self.parts.items() if name not in edits}
        parts |= {name: part for name, part in edits.items() if part is not None}
        return Document(version, parts)

    def stamped(self, name: str, at: float) -> Document:
        """The same version, a part of it known good at a later time."""
        part = self.parts.get(name)
        if part is None or at <= part.stamp:
            return self
        return replace(self, parts={**self.parts, name: replace(part, stamp=at)})

    def differences(self, other: Document) -> dict[str, Part | None]:
        """The edits that make this document's content the other's."""
        edits: dict[str, Part | None] = {name: None for name in self.parts if name not in other.parts}
        for name, part in other.parts.items():
            mine = self.parts.get(name)
            if mine is None or mine.digest != part.digest or mine.pieces != part.pieces:
                edits[name] = part
        return edits
