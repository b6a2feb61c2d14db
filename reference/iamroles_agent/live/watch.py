"""The courier's side of revocations: their file, looked at four times a second, in force everywhere when it
changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from iamroles_agent.errors import ConfigError
from iamroles_agent.live.revocations import REVOCATIONS, part, read
from iamroles_agent.processes.link import Link, LinkLost

_PAUSE = 0.25

log = logging.getLogger("iamroles.live")

_Stamp = tuple[int, int, int] | None


async def watch(path: Path, link: Link) -> None:
    """Put the file's revocations in force whenever it changes, for as long as the courier lives.

    A file that is wrong, or gone, changes nothing: what was revoked stays revoked, and the log says so once.
    """
    seen: _Stamp | str = ""
    while True:
        stamp = _stamp(path)
        if stamp != seen:
            seen = stamp
            await _take(path, link, stamp)
        await asyncio.sleep(_PAUSE)


def _stamp(path: Path) -> _Stamp:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


async def _take(path: Path, link: Link, stamp: _Stamp) -> None:
    before = link.document.parts.get(REVOCATIONS)
    if stamp is None:
        if before is not None:
            log.error("%s is gone: what was revoked stays revoked until it is back", path)
        return
    try:
        coming = part(await asyncio.to_thread(read, path))
    except ConfigError as error:
        log.error("%s\nthe revocations in force stay in force", error)
        return
    if before is not None and before.digest == coming.digest:
        return
    try:
        outcome = await link.propose({REVOCATIONS: coming})
    except LinkLost:
        return
    if outcome["done"]:
        log.info("revocations of %s are in force in %s workers", path, outcome.get("confirmed"))
    else:
        log.error("revocations of %s could not be put in force: %s", path, outcome["error"])
