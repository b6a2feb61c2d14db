"""Closing streams that are over: the package says why HAProxy's tables are all that the agent must know.

The clock decides when to look: at every `POLL` for what is due within `AHEAD`, and `GRACE` after something
was due, when the filter and the timeouts of HAProxy have done what they can. After a change of policy, keys
or revocations all streams are read and judged once, and again at each look until `SETTLE` seconds after the
last worker has followed, because the verdict on a request may have been under way to HAProxy. Revocations
change nothing else that was judged, so after a change of them alone each stream is only looked for in them: a
tenth of the work.

A look has these steps: the long streams of all workers are read (nobody waits for a silent worker), then the
credentials that may prolong what is about to end (`renewal`); then for each worker its streams are judged,
prolonged or cut, then its requests that wait, and at last what has ended is read, for the record. What has
ended delays no cut.

Nobody's streams delay the cuts of others: each principal's first stream comes before anybody's second, and
cutting stops for a new look when something changes, and after `POLL`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from iamroles_agent.live.console import WAITING, Console, ConsoleError, Problems, workers
from iamroles_agent.live.proxy_worker import Cut, ProxyWorker
from iamroles_agent.live.renewal import Fresh, Judge, Renewal, Successors

POLL = 0.5
"""Seconds between looks when nothing is due, and after which cutting makes way for a new look."""
_PATIENCE = 0.1
"""Seconds that a look waits for the other workers of HAProxy once one has answered."""
_STEP = 2.0
"""Seconds between two looks that count at most: a verdict that is under way waits while the host stands
still, and a clock that is set makes no time pass."""
_TURNS = 2
"""Connections open at a time beside those to the master and its current worker: a master takes ten, of all
agents and operators, and lets more wait without an end."""
_OFTEN_ENOUGH = 0.2
"""Seconds for which the credentials that may prolong streams are not read again."""

log = logging.getLogger("iamroles.live")


@dataclass(slots=True)
class Numbers:
    """For metrics."""

    open: int = 0
    """Long streams at the last full look, or the table's size."""
    unreachable: int = 0
    """1 while the master's socket does not answer; plus workers that do not, or that hide a due stream."""
    problem: str = ""
    """The part that does not answer, and why; "" if all answers."""
    judged: int = -1
    """The number of changes by which all streams were judged, and those ended that had to."""


class Cutter:
    """Cuts the streams of a HAProxy.

    Args:
        path: of the master's socket.
        name: this agent's, as in its tickets.
        judge: judges a stream again.
        cut: called for each stream that was ended.
        renewed: called for each stream that was prolonged.
        renewing: the backends whose streams may be prolonged.
        clock: epoch seconds.
    """

    def __init__(
        self,
        path: str,
        name: str,
        judge: Judge,
        cut: Callable[[Cut], None],
        *,
        renewed: Callable[[Renewal], None] = lambda _: None,
        renewing: Callable[[], frozenset[str]] = frozenset,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.name, self.judge, self.cut = path, name, judge, cut
        self.renewed, self.renewing, self.clock = renewed, renewing, clock
        self.numbers = Numbers()
        self.changes = 0
        """Number of changes that ask for a new judgement."""
        self.changed_at = self._looked = clock()
        self._master = Console(path)
        self.turns = asyncio.Semaphore(_TURNS)
        self._workers: dict[int, ProxyWorker] = {}
        self._successors: tuple[float, Successors] = (0.0, Successors())
        """When the credentials that may prolong streams were read, and which they were."""
        self.kept: set[Fresh] = set()
        """Those that prolonged open streams, or may have: HAProxy's table may be full, or on its way."""
        self._problems = Problems()
        self._wake = asyncio.Event()
        self._unlisted = False
        """True once it was logged that a worker does not list the requests that wait."""

    def changed(self) -> None:
        """Policy or keys changed: judge all streams again."""
        for worker in self._workers.values():
            worker.judged.clear()
        self.revoked()

    def revoked(self) -> None:
        """Revocations changed: look for each stream in them; what else was judged of it stands."""
        self.keep_reading()
        self.changes += 1
        self._wake.set()

    def keep_reading(self) -> None:
        """Read all streams for `SETTLE` from now: a worker may still judge by what was in force before."""
        self.changed_at = self.clock()

    async def run(self) -> None:
        """Look and cut, until cancelled."""
        try:
            while True:
                self._wake.clear()  # before the look: a change during it is followed by the next one at once
                try:
                    await self.look()
                except Exception:
                    log.exception("live: a look failed; the next one follows")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._pause())
        finally:
            self._master.close()
            for worker in self._workers.values():
                worker.close()

    def _pause(self) -> float:
        now, pause = self.clock(), POLL
        for due in (due for worker in self._workers.values() for due in worker.due.values()):
            if not due.done:
                pause = min(pause, due.cut_at - now if due.cut_at > now else POLL if due.missed else 0.1)
            elif due.done >= self._looked:  # if the cut did nothing, the next look has the filter end it
                pause = min(pause, 0.15)
        return max(0.001, pause)

    def stop(self, since: float) -> bool:
        """Look whether to leave what is not done since a moment to the next look."""
        return self._wake.is_set() or self.clock() - since > POLL

    def unlisted(self, pid: int) -> None:
        """Log once that HAProxy runs a configuration from before the table of requests that wait."""
        if not self._unlisted:
            self._unlisted = True
            log.warning(
                "live: %s: worker %d has no table %s: a request that waits for its answer is not cut. Render "
                "the configuration again by `iamroles policy render`, and reload HAProxy",
                self.path,
                pid,
                WAITING,
            )

    async def look(self) -> None:
        """Look at every worker of HAProxy, and do what follows from it."""
        changes, now = self.changes, self.clock()
        lost = now - self._looked - min(max(now - self._looked, 0.0), _STEP)
        self.changed_at, self._looked = min(self.changed_at + lost, now), now
        try:
            pids = workers(await self._master.ask("show proc"))
        except ConsoleError as error:
            self._problems.report("master", f"{self.path}: {error}")
            self.numbers.unreachable, self.numbers.problem = 1, f"{self.path}: {error}"
            return
        self._problems.report("master")
        for pid in self._workers.keys() - pids:
            self._workers.pop(pid).close()
        for pid in pids:
            if pid not in self._workers:
                self._workers[pid] = ProxyWorker(self, pid)
        found = [self._workers[pid] for pid in pids]
        for worker in found:
            worker.current = worker is found[0]
        read = await self._read(found)
        successors = await self._find_successors(read)
        done = await asyncio.gather(*(worker.act(successors) for worker in read))
        self.numbers.open = sum(worker.used for worker in read)
        late = [worker for worker in found if worker.reading is not None]
        self.numbers.unreachable = len(pids) - sum(done) - sum(not worker.unread for worker in late)
        self.numbers.problem = "; ".join(what for worker in found for what in worker.problems())
        open_ = late or any(worker.holds() or worker.read_at != changes for worker in found)
        if not self.numbers.unreachable and not open_:
            self.numbers.judged = changes

    async def _read(self, found: list[ProxyWorker]) -> list[ProxyWorker]:
        """Read the workers, and return those that answered.

        A worker whose answer takes longer than that of another delays nobody: a later look takes the answer.
        """
        reading = {}
        for worker in found:
            worker.reading = worker.reading or asyncio.create_task(worker.read())
            reading[worker.reading] = worker
        if reading:
            _, late = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            if late:
                _, late = await asyncio.wait(late, timeout=_PATIENCE)
            for task in late:
                task.add_done_callback(self._came)
        done = [(worker, task) for task, worker in reading.items() if task.done()]
        for worker, _ in done:
            worker.reading = None
        return [worker for worker, task in done if task.result()]

    def _came(self, reading: asyncio.Task[bool]) -> None:
        if not reading.cancelled() and reading.exception() is None and reading.result():
            self._wake.set()

    async def _find_successors(self, read: list[ProxyWorker]) -> Successors:
        """The credentials that may prolong streams, of all workers; none if no stream needs one."""
        now = self.clock()
        if not any(
            worker.may_renew(stream, now) or worker.unjudged(stream)
            for worker in read
            for stream in worker.streams
        ):
            return Successors()
        if not 0 <= now - self._successors[0] < _OFTEN_ENOUGH:  # the clock may have been set back
            pieces = await asyncio.gather(*(worker.fresh(now) for worker in read))
            self.kept = {one for one in self.kept if one.expires > now}
            found = await asyncio.to_thread(Successors, self.kept.union(*pieces))
            self._successors = now, found
            prolonged = (one for worker in read for one in worker.streams if one.ends > one.expires)
            self.kept.update(*map(found.matching, prolonged))
        return self._successors[1]
