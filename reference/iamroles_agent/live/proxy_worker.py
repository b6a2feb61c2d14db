"""One worker process of HAProxy, perhaps an old one: what is read of its streams, judged and cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from iamroles_agent.live.console import (
    FRESH,
    KEPT,
    TABLE,
    WAITING,
    Console,
    ConsoleError,
    Problems,
    Stream,
    TableMissingError,
    fresh,
    parsed,
    streams,
    waiting,
)
from iamroles_agent.live.judge import EXPIRED, UNKNOWN, Ends
from iamroles_agent.live.renewal import Fresh, Successors
from iamroles_agent.live.shutdown import in_turns, shut

if TYPE_CHECKING:
    from iamroles_agent.live.cutter import Cutter


AHEAD = 2
"""Seconds ahead of now that a look asks for."""
GRACE = 0.15
"""Seconds that HAProxy has to end a stream itself before the agent cuts it."""
EARLY = 0.05
"""Seconds before its end at which HAProxy may end a stream; an earlier end is the client's own."""
NEIGHBOUR = 0.35
"""Seconds more for streams that another agent let in: that agent acts first, if it lives."""
RENEW_AHEAD = 10
"""As `AHEAD`, if the policy has a backend that renews: a renewal must be done in time."""
LAST = 3.0
"""Seconds before its end from which on any agent renews a stream, not only that which let it in."""
WAIT = 0.3
"""Seconds from a look that saw a request wait beyond its end until it is cut. Most end by themselves, and
HAProxy gives their pointer to the next request: only what has waited for long is safe to cut."""
SETTLE = 5.0
"""Seconds after a change in which all streams are read at each look: longer than a verdict is under way."""
UNLISTED = 65.0
"""As `SETTLE`, for a HAProxy without the table of requests that wait: more than `timeout server`."""
_OFTEN = 3.0
_TOGETHER = 100
"""Streams that are prolonged, or forgotten, at a time."""
_SAMPLE = 20
_AT_ONCE = 20
"""Streams that are judged before the event loop runs again: some 2 ms."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A stream that was ended, for the record."""

    stream: Stream
    cause: str
    detail: str
    due: float
    """Epoch seconds."""
    done: float
    """Epoch seconds at which it was over."""
    by: str
    """`filter`, `timeout` or `agent`."""

    @property
    def late(self) -> float:
        return max(0.0, self.done - self.due)


@dataclass(slots=True)
class _Due:
    ends: Ends
    cut_at: float = 0.0
    """Epoch seconds: when this agent cuts it, if it still lives."""
    seen: float = 0.0
    """Epoch seconds: when it was first seen to wait beyond its end; 0: not yet."""
    done: float = 0.0
    """Epoch seconds: when this agent cut it; 0: not yet."""
    missed: int = 0
    """Looks at which HAProxy did not show it."""


class _Judgement(NamedTuple):
    given: int
    """The end that stood in HAProxy then."""
    changes: int
    """`Cutter.changes` then."""
    ends: Ends


class ProxyWorker:
    """The streams of a worker process, as far as they are known."""

    def __init__(self, cutter: Cutter, pid: int) -> None:
        self._cutter, self._pid = cutter, pid
        self.console = Console(cutter.path, pid)
        self.current = False
        """True for the worker that takes new requests."""
        self.streams: list[Stream] = []
        """The streams of the last answer: those that are due, or all."""
        self.used = 0
        """The number of entries in its table."""
        self.due: dict[str, _Due] = {}
        self.judged: dict[str, _Judgement] = {}
        self._whole = False
        """True if the last answer held all streams."""
        self._whole_at = 0.0
        self.unread = False
        """True if it did not answer, so its streams have not been judged by later changes."""
        self.reading: asyncio.Task[bool] | None = None
        """The answer that a look still waits for, or a later one will take."""
        self.read_at = -1
        """`Cutter.changes` when it was read."""
        self._back_at = 0.0
        """Epoch seconds: when it answered again."""
        self._lists = True
        """False if it has no table of the requests that wait."""
        self._ours: bool | None = None
        """False if it asks the agents of another gate; None: not known yet."""
        self._problems = Problems()

    def close(self) -> None:
        if self.reading is not None:
            self.reading.cancel()
        self.console.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait until a connection to an old worker may be open, and keep it open no longer."""
        if self.current:
            yield
            return
        async with self._cutter.turns:
            try:
                yield
            finally:
                if not self.console.owed:
                    self.console.close()

    def problems(self) -> list[str]:
        return self._problems.current()

    def holds(self) -> bool:
        """Tell whether a stream must still be ended before its time."""
        return any(not due.done and due.ends.cause != EXPIRED for due in self.due.values())

    async def read(self) -> bool:
        """Read the long streams that are due, or all; false if it does not answer, or is not ours."""
        now, self.read_at = self._cutter.clock(), self._cutter.changes
        self._whole = self._wants_all(now)
        try:
            async with self._turn():
                answer = await self.console.read(f"show table {TABLE} data.conn_cur gt 0{self._which(now)}")
            self.streams = await parsed(streams, answer)
        except ConsoleError as error:
            self._fail(error)
            return False
        if self.unread:
            self.unread, self._back_at = False, now
        used = answer[:200].partition("used:")[2].partition("\n")[0].strip()
        self.used = int(used) if used.isdecimal() else 0
        return self._is_ours()

    def _which(self, now: float) -> str:
        """Filter what is read: nothing, or what is due."""
        ahead = RENEW_AHEAD if self._cutter.renewing() else AHEAD
        return "" if self._whole else f" data.gpt0 lt {int(now) + ahead + 1}"

    def _fail(self, error: ConsoleError) -> None:
        self.unread = True
        self._problems.report(f"worker {self._pid}", f"{self._cutter.path}: worker {self._pid}: {error}")

    def _wants_all(self, now: float) -> bool:
        """Decide whether to read all streams: after a failed look, while one is due before its credential
        ends, and for some seconds after a change."""
        if self.unread or self.holds():
            return True
        since = now - max(self._cutter.changed_at, self._back_at)
        if self._lists:
            return since < SETTLE
        if since >= UNLISTED or now - self._whole_at < (0.0 if since < _OFTEN else _OFTEN):
            return False
        self._whole_at = now
        return True

    def _is_of_gate(self, stream: Stream) -> bool:
        ticket = stream.decoded()
        return ticket is None or ticket.agent.partition("/")[0] == self._cutter.name.partition("/")[0]

    def _is_ours(self) -> bool:
        """Look whether this HAProxy asks the agents of our gate: only then may we judge its streams.

        Agents of another gate have another policy, and ours must not cut what that permits.
        """
        gate, path, problem = self._cutter.name.partition("/")[0], self._cutter.path, ""
        if not all(map(self._is_of_gate, self.streams[:_SAMPLE])):
            problem = f"{path}: worker {self._pid} asks the agents of another gate than {gate!r}"
        if self.streams:  # else it is as it was
            self._ours = problem == ""
            self._problems.report(f"gate {self._pid}", problem)
        return self._ours is not False

    async def fresh(self, now: float) -> list[Fresh]:
        """The credentials that this worker saw in backends that renew."""
        problem, found = "", []
        try:
            async with self._turn():
                answer = await self.console.read(f"show table {FRESH} data.gpt0 gt {int(now)}")
            found = await parsed(fresh, answer)
        except ConsoleError as error:
            problem = f"{self._cutter.path}: worker {self._pid}: {error}"
        self._problems.report(f"fresh {self._pid}", problem)
        return [Fresh(*one) for one in found]

    def may_renew(self, stream: Stream, now: float) -> bool:
        """Look whether a stream is about to end, and this agent may prolong it.

        The agent that let it in does it first, if it lives.
        """
        if not (stream.alive and now + EARLY < stream.ends <= now + RENEW_AHEAD + 1):
            return False
        ticket = stream.decoded()
        if ticket is None or ticket.backend not in self._cutter.renewing():
            return False
        return stream.ends - now < LAST or ticket.agent == self._cutter.name

    def unjudged(self, stream: Stream) -> bool:
        """True if a stream was prolonged and has not been judged since."""
        known = self.judged.get(stream.key)
        return (
            stream.alive
            and stream.ends > stream.expires
            and (known is None or (known.given, known.changes) != (stream.ends, self._cutter.changes))
        )

    async def act(self, successors: Successors) -> bool:
        """Judge, prolong and cut what was read; false if the worker did not answer, or hides a due stream."""
        try:
            async with self._turn():
                prolonged = await self._prolong(successors)
                await self._judge_all([one for one in self.streams if one.key not in prolonged], successors)
                waits = await self._judge_waiting(successors)
                await self._record_ended()
        except ConsoleError as error:
            self._fail(error)
            return False
        self._forget({stream.key for stream in (*self.streams, *waits)})
        self._problems.report(f"worker {self._pid}")
        uncut = sum(due.missed > 1 and not due.done for due in self.due.values())
        lost = f"{self._cutter.path}: worker {self._pid} does not show {uncut} due streams in `show sess`"
        self._problems.report(f"uncut {self._pid}", lost if uncut else "")
        return not uncut

    async def _judge_waiting(self, successors: Successors) -> list[Stream]:
        """Judge the requests that wait for their answer, or that turned out long only now; return them.

        Every living request is in their table. What the table of long streams has is judged by that.
        """
        if not self._lists:
            return []
        answer = await self.console.read(f"show table {WAITING}{self._which(self._cutter.clock())}")
        known = {stream.number for stream in self.streams}
        try:
            found = await parsed(partial(waiting, known=known), answer)
        except TableMissingError:
            self._lists = False
            self._cutter.unlisted(self._pid)
            return []
        found = [stream for stream in found if self._is_of_gate(stream)]
        await self._judge_all(found, successors)
        return found

    async def _judge_all(self, found: list[Stream], successors: Successors) -> None:
        cutter, now = self._cutter, self._cutter.clock()
        overdue: list[Stream] = []
        sooner: list[str] = []
        """For HAProxy: the filter must know, and a look."""
        for number, stream in enumerate(found):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # decisions for HAProxy go on meanwhile
            ends = self._ends(stream, successors, now)
            if ends.cause == UNKNOWN and not self._whole and stream.ends <= stream.expires:
                ends = Ends(stream.ends, EXPIRED)  # nothing has changed since it was allowed
            if ends.cause == EXPIRED and ends.at < stream.ends:
                table = WAITING if stream.waits else TABLE
                sooner.append(f"set table {table} key {stream.key} data.gpt0 {int(ends.at)}")
            due = self.due.get(stream.key)
            if due is not None and due.done and not stream.waits and now < stream.ends:
                # `shutdown session` did nothing: the client had closed its side. The filter ends it.
                sooner.append(f"set table {TABLE} key {stream.key} data.gpt0 {int(now)}")
            if ends.at > now + AHEAD + 1:
                if due is not None and not due.done:
                    del self.due[stream.key]
                continue
            if due is None:
                due = self.due[stream.key] = _Due(ends)
            elif due.ends.cause == EXPIRED or due.ends.at > ends.at:
                due.ends = ends
            begin, grace = due.ends.at, GRACE if ends.cause == EXPIRED else 0.0
            if stream.waits:
                due.seen = due.seen or now * (now >= begin)
                begin, grace = max(begin, due.seen), WAIT
            due.cut_at = begin + grace + (0.0 if stream.let_in_by(cutter.name) else NEIGHBOUR)
            if not due.done and now >= due.cut_at:
                overdue.append(stream)
        if overdue:
            await self._cut_all(overdue)
        await self.console.tell(sooner)

    def _ends(self, stream: Stream, successors: Successors, now: float) -> Ends:
        """When a stream ends, by what is in force; judged once for each end that HAProxy was given."""
        cutter = self._cutter
        known, before = self.judged.get(stream.key), None
        if known is not None and known.given == stream.ends:
            before = known.ends
            if known.changes == cutter.changes:
                return before
        if stream.ends <= stream.expires:
            ends = cutter.judge(stream.ticket, stream.ends, "", before)
        elif now < stream.ends:
            ends = successors.judge(stream, cutter.judge, now)
        else:
            ends = Ends(stream.ends, EXPIRED)
        if ends.at == 0:
            ends = Ends(now, ends.cause, ends.detail)
        self.judged[stream.key] = _Judgement(stream.ends, cutter.changes, ends)
        return ends

    async def _prolong(self, successors: Successors) -> set[str]:
        """Prolong what is about to end, many at a time, and first what ends first; the keys of these."""
        cutter, done = self._cutter, set()
        now = cutter.clock()
        soon = [stream for stream in self.streams if self.may_renew(stream, now)]
        soon.sort(key=lambda stream: stream.ends)
        for start in range(0, len(soon), _TOGETHER):
            await asyncio.sleep(0)  # decisions for HAProxy go on meanwhile
            now = cutter.clock()
            chosen = [
                renewal
                for stream in soon[start : start + _TOGETHER]
                if now < stream.ends - EARLY and self._ends(stream, successors, now).cause == EXPIRED
                for renewal in successors.renewal(stream, cutter.judge)
            ]
            await self.console.tell([command for one in chosen for command in one.commands()])
            for one in chosen:
                done.add(one.stream.key)
                self.due.pop(one.stream.key, None)
                cutter.kept.add(one.fresh)
                cutter.renewed(one)
        return done

    async def _record_ended(self) -> None:
        """Record what has ended, and take it out of the table, so that no other agent records it too.

        A credential whose streams end sooner than itself may leave thousands of entries, which mean nothing:
        HAProxy drops those by itself. The rest waits for the next look if something changes.
        """
        now, ended = self._cutter.clock(), f"table {TABLE} data.conn_cur eq 0"
        if self._ours:
            await self.console.ask(f"clear {ended} data.gpc0 eq 0 data.gpt0 gt {int(now) + 1}")
        answer = await self.console.read(f"show {ended} data.gpt0 lt {int(now) + 2}")
        found = [one for one in await parsed(streams, answer) if not one.alive and self._is_of_gate(one)]
        for start in range(0, len(found), _TOGETHER):
            if start and self._cutter.stop(now):
                break
            over = [stream for stream in found[start : start + _TOGETHER] if self._over(stream, now)]
            await self.console.tell([f"clear table {TABLE} key {stream.key}" for stream in over])

    def _over(self, stream: Stream, now: float) -> bool:
        """Record a stream that is gone: cut by us, ended by HAProxy at its time, or before by itself.

        Returns:
            Whether its entry may go: another agent, which let it in, records it first.
        """
        due = self.due.get(stream.key)
        if due is None or not due.done:
            if not stream.let_in_by(self._cutter.name) and stream.age < NEIGHBOUR:
                return False
            ends, ended = due.ends if due else Ends(stream.ends, EXPIRED), now - stream.age
            if stream.filtered:
                expired = ends if ends.cause == EXPIRED else Ends(stream.ends, EXPIRED)
                self._record(stream, expired, ended, "filter")
            elif ends.cause == EXPIRED and ended >= ends.at - EARLY:
                self._record(stream, ends, ended, "timeout")
        self.due.pop(stream.key, None)
        self.judged.pop(stream.key, None)
        return True

    async def _cut_all(self, overdue: list[Stream]) -> None:
        cutter, began = self._cutter, self._cutter.clock()
        if overdue[0].waits and not self._whole:
            # A stream that was prolonged, or turned out long just now, is judged by its other entry.
            long = await parsed(streams, await self.console.read(f"show table {TABLE} data.conn_cur gt 0"))
            known = {stream.number for stream in long}
            for stream in [stream for stream in overdue if stream.number in known]:
                overdue.remove(stream)
                del self.due[stream.key]

        def ended(stream: Stream) -> None:
            self.due[stream.key].done = now = cutter.clock()
            self._record(stream, self.due[stream.key].ends, now, "agent")

        wanted = in_turns(sorted(overdue, key=lambda stream: self.due[stream.key].ends.at))
        for stream in await shut(self.console, wanted, ended, lambda: cutter.stop(began)):
            self.due[stream.key].missed += 1

    def _record(self, stream: Stream, ends: Ends, done: float, by: str) -> None:
        self._cutter.cut(Cut(stream, ends.cause, ends.detail, ends.at, done, by))

    def _forget(self, present: set[str]) -> None:
        """Drop what the tables no longer show, as far as they were read."""
        oldest = self._cutter.clock() - 2 * KEPT / 1000
        for key, due in list(self.due.items()):
            waits, old = key.count("|") == 1, due.ends.at < oldest  # of what waits, all that is due was read
            gone = key not in present and (self._whole or waits or old)
            if gone and (waits or old or not due.done):
                del self.due[key]
                self.judged.pop(key, None)
        if self._whole:
            for key in self.judged.keys() - present:
                del self.judged[key]
