"""Who closes streams that are over: see the package for why this is all there is to know.

The clock decides when to look: at every `POLL` for what is due within `AHEAD`, and `GRACE` after something
was due, when the filter and the timeouts of HAProxy have done what they can. After a change of policy, keys
or revocations all streams are read and judged once, and again at each look for `SETTLE` seconds, because a
request that was allowed before the change may turn out long after it. Revocations change nothing else that
was judged, so after a change of them alone each stream is only looked for in them: a tenth of the work.

A look has three steps: all workers are read, then the credentials that may prolong what is about to end
(`renewal`), then each worker's streams are judged, prolonged or cut.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from iamroles_agent.live.console import (
    FRESH,
    KEPT,
    TABLE,
    Console,
    ConsoleError,
    Row,
    fresh,
    is_stream,
    pointers,
    rows,
    workers,
)
from iamroles_agent.live.judge import EXPIRED, Ends
from iamroles_agent.live.renewal import Fresh, Judge, Renewal, Successors
from iamroles_agent.live.ticket import Ticket, TicketError

POLL = 0.5
"""Seconds between looks when nothing is due."""
AHEAD = 2
"""Seconds ahead of now that a look asks for."""
GRACE = 0.15
"""Seconds after which what HAProxy has not ended itself is cut: not while it is busy with that."""
EARLY = 0.05
"""Seconds before its end at which HAProxy may end a stream; what ended before that has left by itself."""
NEIGHBOUR = 0.35
"""Seconds more for streams that another agent let in: it acts first, if it lives."""
RENEW_AHEAD = 10
"""As `AHEAD`, where the policy has a backend that renews: a renewal must be done in time."""
LAST = 3.0
"""Seconds before its end from which on any agent renews a stream, not only the one that let it in."""
SETTLE = 65.0
"""Seconds after a change in which requests may turn out long that were allowed before: `timeout server` and
some."""
_OFTEN = 3.0
_OFTEN_ENOUGH = 0.2
"""Seconds for which the credentials that may prolong streams are not read again."""
_TOGETHER = 100
"""Streams that are prolonged at a time."""
_SAMPLE = 20
_AT_ONCE = 20
"""Streams that are judged between two turns of the event loop: some 2 ms."""
_MUCH = 200_000
"""Bytes of an answer beyond which it is read in a thread."""
_PARALLEL = 4
"""Connections to one worker when there is much to cut."""

_Parsed = TypeVar("_Parsed")

log = logging.getLogger("iamroles.live")


@dataclass(frozen=True, slots=True)
class Cut:
    """A stream that was ended, for the record."""

    row: Row
    cause: str
    detail: str
    due: float
    """Epoch seconds."""
    done: float
    """Epoch seconds at which it was over."""
    by: str
    """`filter`, `timeout` or `agent`."""
    ticket: Ticket | None

    @property
    def late(self) -> float:
        return max(0.0, self.done - self.due)


@dataclass(slots=True)
class Numbers:
    """For metrics."""

    open: int = 0
    """Long streams at the last full look, or the table's size."""
    unreachable: int = 0
    """1 while the master's socket does not answer; plus workers that do not."""
    lateness: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Due:
    ends: Ends
    done: bool = False


async def _parsed(parse: Callable[[str], _Parsed], answer: str) -> _Parsed:
    """What an answer means; read in a thread where it is long, so that decisions go on meanwhile."""
    return await asyncio.to_thread(parse, answer) if len(answer) > _MUCH else parse(answer)


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of one worker."""

    rows: list[Row]
    whole: bool
    """Whether it is all that the worker has."""
    used: int
    """How many entries its table has."""


class Cutter:
    """Cuts streams of one HAProxy.

    Args:
        path: of the master's socket.
        name: this agent's, as in its tickets.
        judge: judges a stream anew.
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
        self._path, self._name, self._judge, self._cut, self._clock = path, name, judge, cut, clock
        self._renewed, self._renewing = renewed, renewing
        self.numbers = Numbers()
        self._master = Console(path)
        self._consoles: dict[int, Console] = {}
        self._due: dict[tuple[int, str], _Due] = {}
        self._judged: dict[tuple[int, str], tuple[int, int, Ends]] = {}
        """The end that stood in HAProxy when a stream was judged, `_changes` then, and the judgement."""
        self._changes = 0
        self._known = (0.0, Successors())
        """The credentials that may prolong streams, and when they were read."""
        self._changed_at = clock()
        self._said: dict[str, str] = {}
        self._full_at: dict[int, float] = {}
        self._unread: set[int] = set()
        """Workers that did not answer: whatever changed since, their streams have not been judged by it."""
        self._wake = asyncio.Event()

    def changed(self) -> None:
        """Policy or keys changed: judge all streams anew."""
        self._judged.clear()
        self.revoked()

    def revoked(self) -> None:
        """Revocations changed: look for each stream in them; what else was judged of it stands."""
        self._changed_at = self._clock()
        self._changes += 1
        self._wake.set()

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
            for console in self._consoles.values():
                console.close()

    def _pause(self) -> float:
        now = self._clock()
        pause = POLL
        for due in self._due.values():
            if due.done:
                continue
            moment = due.ends.at + GRACE
            pause = min(pause, moment - now if moment > now else 0.1)
        return max(0.001, pause)

    async def look(self) -> None:
        """One look at every worker, and what follows from it."""
        try:
            pids = workers(await self._master.ask("show proc"))
        except ConsoleError as error:
            self._say("master", f"{self._path}: {error}")
            self.numbers.unreachable = 1
            return
        self._say("master", "")
        for pid in [pid for pid in self._consoles if pid not in pids]:
            self._consoles.pop(pid).close()
            self._forget(pid, set())
            self._full_at.pop(pid, None)
            self._unread.discard(pid)
            for about in (f"worker {pid}", f"gate {pid}", f"fresh {pid}"):
                self._said.pop(about, None)
        found = dict(zip(pids, await asyncio.gather(*(self._read(pid) for pid in pids)), strict=True))
        read = {pid: what for pid, what in found.items() if what is not None}
        successors = await self._successors(read)
        done = await asyncio.gather(*(self._act(pid, what, successors) for pid, what in read.items()))
        self.numbers.open = sum(what.used for what in read.values())
        self.numbers.unreachable = len(pids) - len(read) + done.count(False)

    async def _read(self, pid: int) -> _Read | None:
        """Read one worker: what is due there, or all; None where it does not answer, or is not ours."""
        console = self._consoles.setdefault(pid, Console(self._path, pid))
        now = self._clock()
        whole = self._wants_all(pid, now)
        ahead = RENEW_AHEAD if self._renewing() else AHEAD
        which = "" if whole else f" data.gpt0 lt {int(now) + ahead + 1}"
        try:
            answer = await console.ask(f"show table {TABLE}{which}")
            found = await _parsed(rows, answer)
        except ConsoleError as error:
            self._unread.add(pid)
            self._say(f"worker {pid}", f"{self._path}: worker {pid}: {error}")
            return None
        self._unread.discard(pid)
        used = answer[:200].partition("used:")[2].partition("\n")[0].strip()
        if not self._ours(pid, found):
            return None
        return _Read(found, whole, int(used) if used.isdecimal() else 0)

    async def _successors(self, read: dict[int, _Read]) -> Successors:
        """The credentials that may prolong streams: read where a stream needs one, of all workers."""
        now = self._clock()
        if not any(
            self._may_renew(row, now) or self._unjudged(pid, row)
            for pid, what in read.items()
            for row in what.rows
        ):
            return Successors()
        if now - self._known[0] < _OFTEN_ENOUGH:
            return self._known[1]

        async def seen(pid: int) -> list[Fresh]:
            try:
                answer = await self._consoles[pid].ask(f"show table {FRESH} data.gpt0 gt {int(now)}")
                found = await _parsed(fresh, answer)
            except ConsoleError as error:
                self._say(f"fresh {pid}", f"{self._path}: worker {pid}: {error}")
                return []
            self._say(f"fresh {pid}", "")
            return [Fresh(pid, *one) for one in found]

        pieces = await asyncio.gather(*(seen(pid) for pid in read))
        found = await asyncio.to_thread(Successors, [one for piece in pieces for one in piece])
        self._known = now, found
        return found

    def _may_renew(self, row: Row, now: float) -> bool:
        """Whether a stream is about to end, and may be prolonged by this agent.

        The one that let it in does it first, if it lives.
        """
        if not (row.alive and now + EARLY < row.ends <= now + RENEW_AHEAD + 1):
            return False
        try:
            if Ticket.decode(row.ticket).backend not in self._renewing():
                return False
        except TicketError:
            return False
        return row.ends - now < LAST or self._is_mine(row)

    def _unjudged(self, pid: int, row: Row) -> bool:
        """Whether a stream was prolonged that has not been judged since."""
        known = self._judged.get((pid, row.key), ())
        return row.alive and row.ends > row.expires and known[:2] != (row.ends, self._changes)

    async def _act(self, pid: int, what: _Read, successors: Successors) -> bool:
        """Judge, prolong and cut what was read of one worker; whether it answered."""
        try:
            done = await self._prolong(pid, self._consoles[pid], what.rows, successors)
            rest = [row for row in what.rows if row.key not in done]
            await self._settle(pid, self._consoles[pid], rest, successors)
        except ConsoleError as error:
            self._unread.add(pid)
            self._say(f"worker {pid}", f"{self._path}: worker {pid}: {error}")
            return False
        self._forget(pid, {(pid, row.key) for row in what.rows} if what.whole else None)
        self._say(f"worker {pid}", "")
        return True

    def _wants_all(self, pid: int, now: float) -> bool:
        """Whether to read all streams: after a change, often at first, then now and then until it has
        settled; and where the last look failed."""
        if pid in self._unread:
            return True
        since = now - self._changed_at
        if since >= SETTLE or now - self._full_at.get(pid, 0.0) < (0.0 if since < _OFTEN else _OFTEN):
            return False
        self._full_at[pid] = now
        return True

    def _ours(self, pid: int, found: list[Row]) -> bool:
        """Whether this HAProxy asks the agents of our gate: only then are its streams ours to judge.

        Agents of another gate have another policy, and what that permits must not be cut by ours.
        """
        if not found:  # nothing is due: as it was
            return not self._said.get(f"gate {pid}")
        gate = self._name.partition("/")[0]
        for row in found[:_SAMPLE]:
            try:
                if Ticket.decode(row.ticket).agent.partition("/")[0] != gate:
                    problem = f"{self._path}: worker {pid} asks the agents of another gate than {gate!r}"
                    self._say(f"gate {pid}", problem)
                    return False
            except TicketError:
                continue
        self._say(f"gate {pid}", "")
        return True

    async def _settle(self, pid: int, console: Console, found: list[Row], successors: Successors) -> None:
        now = self._clock()
        overdue: list[tuple[Row, _Due]] = []
        for number, row in enumerate(found):
            key = (pid, row.key)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # decisions for HAProxy go on meanwhile
            ends = self._ends(key, row, successors, now)
            if (
                row.alive and ends.cause == EXPIRED and ends.at < row.ends
            ):  # the filter shall know, and a look
                await console.ask(f"set table {TABLE} key {row.key} data.gpt0 {int(ends.at)}")
            due = self._due.get(key)
            if ends.at > now + AHEAD + 1:
                if due is not None and not due.done:
                    del self._due[key]
                continue
            if due is None:
                due = self._due[key] = _Due(ends)
            elif due.ends.cause == EXPIRED or due.ends.at > ends.at:
                due.ends = ends
            if not row.alive:
                await self._over(console, row, due, now)
            elif not due.done:
                grace = GRACE if ends.cause == EXPIRED else 0.0
                if now >= ends.at + grace + (0.0 if self._is_mine(row) else NEIGHBOUR):
                    overdue.append((row, due))
        if overdue:
            await self._cut_all(pid, console, overdue)

    def _ends(self, key: tuple[int, str], row: Row, successors: Successors, now: float) -> Ends:
        """When a stream ends, by what is in force; judged once for each end that HAProxy was told."""
        told, changes, before = self._judged.get(key, (0, 0, None))
        if told != row.ends:
            before = None
        elif before is not None and changes == self._changes:
            return before
        if row.ends <= row.expires:
            ends = self._judge(row.ticket, row.ends, "", before)
        elif now < row.ends:
            ends = successors.judge(row, self._judge, now)
        else:
            ends = Ends(row.ends, EXPIRED)
        if ends.at == 0:
            ends = Ends(now, ends.cause, ends.detail)
        self._judged[key] = row.ends, self._changes, ends
        return ends

    async def _prolong(
        self, pid: int, console: Console, found: list[Row], successors: Successors
    ) -> set[str]:
        """Prolong what is about to end, many at a time, and first what ends first; the keys of these rows."""
        done: set[str] = set()
        now = self._clock()
        soon = [row for row in found if self._may_renew(row, now)]
        soon.sort(key=lambda row: row.ends)
        for start in range(0, len(soon), _TOGETHER):
            await asyncio.sleep(0)  # decisions for HAProxy go on meanwhile
            now = self._clock()
            chosen = [
                renewal
                for row in soon[start : start + _TOGETHER]
                if now < row.ends - EARLY
                and self._ends((pid, row.key), row, successors, now).cause == EXPIRED
                for renewal in successors.renewal(pid, row, self._judge)
            ]
            await console.tell([command for one in chosen for command in one.commands()])
            for one in chosen:
                done.add(one.row.key)
                self._due.pop((pid, one.row.key), None)
                self._renewed(one)
        return done

    async def _over(self, console: Console, row: Row, due: _Due, now: float) -> None:
        """A stream that is no more: cut by us, ended by HAProxy at its time, or before by itself.

        Who records it takes the entry out of the table, so that no other agent records it too.
        """
        if not due.done:
            if not self._is_mine(row) and row.age < NEIGHBOUR:
                return
            due.done = True
            ended = now - row.age
            if row.filtered:
                expired = due.ends if due.ends.cause == EXPIRED else Ends(row.ends, EXPIRED)
                self._record(row, expired, ended, "filter")
            elif due.ends.cause == EXPIRED and ended >= due.ends.at - EARLY:
                self._record(row, due.ends, ended, "timeout")
        await console.ask(f"clear table {TABLE} key {row.key}")

    async def _cut_all(self, pid: int, console: Console, overdue: list[tuple[Row, _Due]]) -> None:
        where = await _parsed(pointers, await console.ask("show sess"))
        lanes = [console] + [Console(self._path, pid) for _ in range(min(_PARALLEL, len(overdue) // 50))]
        try:
            await asyncio.gather(
                *(
                    self._cut_some(lane, overdue[place :: len(lanes)], where)
                    for place, lane in enumerate(lanes)
                )
            )
        finally:
            for lane in lanes[1:]:
                lane.close()

    async def _cut_some(
        self, console: Console, overdue: list[tuple[Row, _Due]], where: dict[str, list[str]]
    ) -> None:
        for row, due in overdue:
            for pointer in where.get(row.source, ()):
                # Look and cut, nothing between: the pointer may belong to another stream a moment later.
                if is_stream(await console.ask(f"show sess {pointer}"), row):
                    await console.ask(f"shutdown session {pointer}")
                    due.done = True
                    self._record(row, due.ends, self._clock(), "agent")
                    break

    def _is_mine(self, row: Row) -> bool:
        try:
            return Ticket.decode(row.ticket).agent == self._name
        except TicketError:
            return True

    def _record(self, row: Row, ends: Ends, done: float, by: str) -> None:
        try:
            ticket = Ticket.decode(row.ticket)
        except TicketError:
            ticket = None
        self._cut(Cut(row, ends.cause, ends.detail, ends.at, done, by, ticket))

    def _forget(self, pid: int, present: set[tuple[int, str]] | None) -> None:
        """Drop what the table no longer shows; `present` is None where it was not read as a whole."""
        now = self._clock()
        for key, due in list(self._due.items()):
            if key[0] == pid and (
                due.ends.at < now - 2 * KEPT / 1000 or (present is not None and key not in present)
            ):
                del self._due[key]
                self._judged.pop(key, None)
        if present is not None:
            for key in [key for key in self._judged if key[0] == pid and key not in present]:
                del self._judged[key]

    def _say(self, about: str, problem: str) -> None:
        """Say a problem once, and once that it is over."""
        before = self._said.get(about, "")
        if problem == before:
            return
        self._said[about] = problem
        if problem:
            log.error(
                "live: %s. Streams are not cut there; they end at their expiry by HAProxy alone", problem
            )
        else:
            log.info("live: %s answers again", about)
