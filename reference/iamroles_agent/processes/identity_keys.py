"""The keys of the identity header as a part of the document in force (`control.document`).

The parent has them at the start: those of the state directory, or new ones. The fetcher changes them when
that is due, and the parent puts them in force everywhere. All workers publish the keys of all. Where the
policy names `identity_header.secrets`, the part holds the secrets instead: each worker derives the keys
(`identity_header.shared`), nothing rotates them, and a reload reads the file again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from iamroles_agent.base.config import IdentityHeader
from iamroles_agent.base.errors import StartError
from iamroles_agent.control.document import Document, Edits, Part, Parts
from iamroles_agent.control.member import Build, Step
from iamroles_agent.identity_header import KeyRing, SharedRing, Signer, secrets_to_bytes
from iamroles_agent.processes.link import Link, LinkLost

IDENTITY_KEYS = "identity-keys"
"""Name of the part. It holds private keys."""
_LONGEST_NAP = 60.0
"""Seconds after which to look at the clock again: it may have been set."""


def shared(secrets: tuple[bytes, ...]) -> Part:
    """Make the part of secrets that agents share."""
    return Part.of((secrets_to_bytes(secrets),))


def at_start(
    header: IdentityHeader | None, document: Document, now: float, given: Part | None = None
) -> Document:
    """Put the keys in force at the start: those of the file, those that were kept, or new ones.

    Args:
        header: None: the keys are removed.
        document: without them, or with those of the agent before.
        now: epoch seconds.
        given: the secrets of the file that `header` names; None: it could not be read, or none is named.

    Raises:
        StartError: what was kept is damaged. Servers that hold the old keys would refuse new ones.
    """
    kept = document.parts.get(IDENTITY_KEYS)
    if header is None:
        return document if kept is None else document.edited({IDENTITY_KEYS: None}, document.version + 1)
    version = document.version + (kept is not None)
    if given is not None:
        return document if kept == given else document.edited({IDENTITY_KEYS: given}, version)
    if kept is not None and header.secrets is None and kept.pieces[0].startswith(b"["):
        kept = None  # the agent before shared its keys, which are not this one's
    if kept is None:
        part = _to_part(KeyRing.first(now, header.rotate))
    else:
        try:
            known = _from_part(document.parts, header)
        except ValueError as error:
            raise StartError(
                f"{error}: what the state directory holds is damaged. Restore it, or move the directory away "
                "for new keys"
            ) from None
        if isinstance(known, SharedRing) or (ring := known.at(now)) is known:
            return document
        part = _to_part(ring)
    return document.edited({IDENTITY_KEYS: part}, version)


async def keep_rotating(header: IdentityHeader, link: Link) -> None:
    """Change keys when that is due, for as long as the fetcher lives; derived keys change by themselves."""
    while isinstance(ring := _from_part(link.document.parts, header), KeyRing):
        now = time.time()
        later = ring.at(now)
        if later is ring:
            wait = min(max(0.0, ring.due - now), _LONGEST_NAP)
        else:
            wait = _LONGEST_NAP
            with suppress(LinkLost):
                outcome = await link.propose({IDENTITY_KEYS: _to_part(later)})
                wait = 0.0 if outcome["done"] else _LONGEST_NAP
        await asyncio.sleep(wait)


def signing(header: IdentityHeader | None, use: Callable[[Signer], None]) -> Build:
    """Build a worker's signer; `use` takes it on the event loop, with the keys then in force."""

    def build(edits: Edits, coming: Parts) -> Step:
        if header is None or edits[IDENTITY_KEYS] is None:
            return lambda: None
        signer = Signer(_from_part(coming, header), header.issuer, int(header.lifetime))
        return lambda: use(signer)

    return build


def _to_part(ring: KeyRing) -> Part:
    return Part.of((ring.to_bytes(),))


def _from_part(parts: Parts, header: IdentityHeader) -> KeyRing | SharedRing:
    text = parts[IDENTITY_KEYS].pieces[0]
    if header.secrets is None:
        return KeyRing.from_bytes(text, header.rotate)
    return SharedRing.from_bytes(text, header.issuer, header.rotate)
