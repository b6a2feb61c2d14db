"""The fetcher's watch on the revocations file: it looks ten times a second, and puts a change in force
everywhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic
from typing import TypeVar

from iamroles_agent.base.errors import ConfigError
from iamroles_agent.base.files import Stamp, stamp
from iamroles_agent.control.document import REVOCATIONS
from iamroles_agent.live.revocations import NONE, from_part, read, to_part
from iamroles_agent.processes.link import Body, Link, LinkLost

_PAUSE = 0.1
_AGAIN = 2.0
"""Seconds until what failed for another reason than the file's content is tried again, or a look is late."""

log = logging.getLogger("iamroles.live")

T = TypeVar("T")


class Watch:
    """Keeps the revocations in force as the file says.

    A file that is wrong or gone changes nothing: revocations stay, and the log says so once.

    Args:
        path: the file.
        link: the fetcher's.
    """

    def __init__(self, path: Path, link: Link) -> None:
        self._path, self._link = path, link
        self.problem = ""
        """Why the revocations in force are not those of the file; "" if they are, as far as is known."""
        self._ids: tuple[str, list[str]] = ("", [])
        """A part's digest, and the ids of its revocations."""
        self._seen: Stamp | str | None = ""
        """The file's stamp at the last look."""
        self._taken = False
        """True if the file as last seen is in force in all workers, or is a problem."""
        self._again = inf
        """Monotonic time of the next look at the same file, if its problem may go without another file."""

    async def run(self) -> None:
        """Look, for as long as the fetcher lives."""
        while True:
            found = await self._asked(stamp)
            if found != self._seen or monotonic() >= self._again:
                self._taken, self._again = False, inf
                known, self.problem = self.problem, await self._take(found)
                self._seen, self._taken = found, True
                if self.problem and self.problem != known:
                    log.error("%s\nthe revocations in force stay in force", self.problem)
            await asyncio.sleep(_PAUSE)

    async def answer(self, question: Body) -> Body:
        """List the revocations in force, or look for an `id`; `settled`: as the file stands now."""
        settled = self._taken and self._seen == stamp(self._path)
        part = self._link.document.parts.get(REVOCATIONS)
        if part is not None and part.digest != self._ids[0]:
            self._ids = part.digest, [row.id for row in from_part(part).rows]
        listed = self._ids[1] if part is not None else []
        about = {"listed": question["id"] in listed} if "id" in question else {"in_force": listed}
        return {**about, "settled": settled, "problem": self.problem}

    async def _asked(self, look: Callable[[Path], T]) -> T:
        """Look in a thread, because a share may not answer; then the log says so, and the fetcher goes on."""
        late = asyncio.get_running_loop().call_later(_AGAIN, self._is_late)
        try:
            return await asyncio.to_thread(look, self._path)
        finally:
            late.cancel()

    def _is_late(self) -> None:
        self._taken, self._again = False, 0.0
        self.problem = f"{self._path} cannot be read: its file system does not answer"
        log.error("%s\nthe revocations in force stay in force", self.problem)

    async def _take(self, seen: Stamp | None) -> str:
        """Put the file in force; the problem, if there is one."""
        try:
            found = NONE if seen is None else await self._asked(read)
            if found is NONE:  # also if it went between the look and the reading: that lifts no revocation
                return "" if REVOCATIONS not in self._link.document.parts else f"{self._path} is gone"
            # Also if the document has it already: a fetcher that is born in the middle of a change has what
            # some worker may not enforce yet, and the outcome comes when all do.
            outcome = await self._link.propose({REVOCATIONS: to_part(found)})
        except LinkLost:
            return ""
        except Exception as error:  # noqa: BLE001 - else no later revocation would be taken up
            if not isinstance(error, ConfigError) or isinstance(error.__cause__, OSError):
                self._again = monotonic() + _AGAIN  # perhaps the disk, or a lack of descriptors or threads
            return str(error) or f"{self._path} cannot be taken up: no memory"
        if not outcome["done"]:
            self._again = monotonic() + _AGAIN
            return f"{self._path} could not be put in force: {outcome['error']}"
        log.info("revocations of %s are in force: no worker serves without them", self._path)
        return ""
