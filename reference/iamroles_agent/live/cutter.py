"""Closing streams that are over: the package says why HAProxy's table is all that the agent must know.

The clock decides when to look: at every `POLL` for what is due within `AHEAD`, and `GRACE` after something
was due, when the filter and the timeouts of HAProxy have done what they can. After a change of policy, keys
or revocations all streams are read and judged once, and again now and then for `TAIL` seconds, because a
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
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from iamroles_agent.live.console import (
    FRESH,
    KEPT,
    TABLE,
    Console,
    ConsoleError,
    Stream,
    fresh,
    is_stream,
    pointers,
    streams,
    workers,
)
from iamroles_agent.live.judge import EXPIRED, Ends
from iamroles_agent.live.renewal import Fresh, Judge, Renewal, Successors

POLL = 0.5
"""Seconds between looks when nothing is due."""
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
TAIL = 65.0
"""Seconds after a change in which requests that were allowed before may turn out long: more than `timeout
server`."""
_OFTEN = 3.0
_OFTEN_ENOUGH = 0.2
"""Seconds for which the credentials that may prolong streams are not read again."""
_TOGETHER = 100
"""Streams that are prolonged at a time."""
_SAMPLE = 20
_AT_ONCE = 20
"""Streams that are judged before the event loop runs again: some 2 ms."""
_MUCH = 200_000
"""Bytes of an answer beyond which it is read in a thread."""
_PARALLEL = 4
"""Connections to one worker when there is much to cut."""

_Parsed = TypeVar("_Parsed")

log = logging.getLogger("iamroles.live")


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
class Numbers:
    """For metrics."""

    open: int = 0
    """Long streams at the last full look, or the table's size."""
    unreachable: int = 0
    """1 while the master's socket does not answer; plus workers that do not."""
    problem: str = ""
    """What does not answer, and why; "" if all answers."""
    judged: int = -1
    """The number of changes by which all streams were judged, and those ended that had to."""


@dataclass(slots=True)
class _Due:
    ends: Ends
    done: bool = False


class _Judgement(NamedTuple):
    given: int
    """The end that stood in HAProxy then."""
    changes: int
    """`Cutter.changes` then."""
    ends: Ends


async def _parsed(parse: Callable[[str], _Parsed], answer: str) -> _Parsed:
    """Read an answer, in a thread if it is long, so that decisions go on meanwhile."""
    return await asyncio.to_thread(parse, answer) if len(answer) > _MUCH else parse(answer)


class _Problems:
    """Logs a problem once, and once that it is over."""

    def __init__(self) -> None:
        self._logged: dict[str, str] = {}

    def current(self) -> list[str]:
        return [problem for problem in self._logged.values() if problem]

    def report(self, about: str, problem: str = "") -> None:
        """Log what is wrong with something, "" for nothing."""
        if problem == self._logged.get(about, ""):
            return
        self._logged[about] = problem
        if problem:
            log.error(
                "live: %s. Streams are not cut there; they end at their expiry by HAProxy alone", problem
            )
        else:
            log.info("live: %s answers again", about)


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
        self.changed_at = clock()
        self._master = Console(path)
        self._workers: dict[int, _ProxyWorker] = {}
        self._successors: tuple[float, Successors] = (0.0, Successors())
        """When the credentials that may prolong streams were read, and which they were."""
        self._problems = _Problems()
        self._wake = asyncio.Event()

    def changed(self) -> None:
        """Policy or keys changed: judge all streams again."""
        for worker in self._workers.values():
            worker.judged.clear()
        self.revoked()

    def revoked(self) -> None:
        """Revocations changed: look for each stream in them; what else was judged of it stands."""
        self.changed_at = self.clock()
        self.changes += 1
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
            for worker in self._workers.values():
                worker.console.close()

    def _pause(self) -> float:
        now = self.clock()
        pause = POLL
        for worker in self._workers.values():
            for due in worker.due.values():
                if not due.done:
                    moment = due.ends.at + GRACE
                    pause = min(pause, moment - now if moment > now else 0.1)
        return max(0.001, pause)

    async def look(self) -> None:
        """Look at every worker of HAProxy, and do what follows from it."""
        changes = self.changes
        try:
            pids = workers(await self._master.ask("show proc"))
        except ConsoleError as error:
            self._problems.report("master", f"{self.path}: {error}")
            self.numbers.unreachable, self.numbers.problem = 1, f"{self.path}: {error}"
            return
        self._problems.report("master")
        for pid in self._workers.keys() - pids:
            self._workers.pop(pid).console.close()
        for pid in pids:
            if pid not in self._workers:
                self._workers[pid] = _ProxyWorker(self, pid)
        found = [self._workers[pid] for pid in pids]
        answered = await asyncio.gather(*(worker.read() for worker in found))
        read = [worker for worker, well in zip(found, answered, strict=True) if well]
        successors = await self._find_successors(read)
        done = await asyncio.gather(*(worker.act(successors) for worker in read))
        self.numbers.open = sum(worker.used for worker in read)
        self.numbers.unreachable = len(pids) - sum(done)
        self.numbers.problem = "; ".join(what for worker in found for what in worker.problems())
        if not self.numbers.unreachable and not any(worker.holds() for worker in found):
            self.numbers.judged = changes

    async def _find_successors(self, read: list[_ProxyWorker]) -> Successors:
        """The credentials that may prolong streams, of all workers; none if no stream needs one."""
        now = self.clock()
        if not any(
            worker.may_renew(stream, now) or worker.unjudged(stream)
            for worker in read
            for stream in worker.streams
        ):
            return Successors()
        if now - self._successors[0] >= _OFTEN_ENOUGH:
            pieces = await asyncio.gather(*(worker.fresh(now) for worker in read))
            found = await asyncio.to_thread(Successors, [one for piece in pieces for one in piece])
            self._successors = now, found
        return self._successors[1]


class _ProxyWorker:
    """One worker process of HAProxy, perhaps an old one, and what is known about its streams."""

    def __init__(self, cutter: Cutter, pid: int) -> None:
        self._cutter, self._pid = cutter, pid
        self.console = Console(cutter.path, pid)
        self.streams: list[Stream] = []
        """The streams of the last answer: those that are due, or all."""
        self.used = 0
        """The number of entries in its table."""
        self.due: dict[str, _Due] = {}
        self.judged: dict[str, _Judgement] = {}
        self._whole = False
        """True if the last answer held all streams."""
        self._whole_at = 0.0
        self._unread = False
        """True if it did not answer, so its streams have not been judged by later changes."""
        self._foreign = False
        """True if it asks the agents of another gate."""
        self._problems = _Problems()

    def problems(self) -> list[str]:
        return self._problems.current()

    def holds(self) -> bool:
        """Tell whether a stream must still be ended before its time."""
        return any(not due.done and due.ends.cause != EXPIRED for due in self.due.values())

    async def read(self) -> bool:
        """Read what is due, or all; false if it does not answer, or is not ours."""
        cutter, now = self._cutter, self._cutter.clock()
        self._whole = self._wants_all(now)
        ahead = RENEW_AHEAD if cutter.renewing() else AHEAD
        which = "" if self._whole else f" data.gpt0 lt {int(now) + ahead + 1}"
        try:
            answer = await self.console.ask(f"show table {TABLE}{which}")
            self.streams = await _parsed(streams, answer)
        except ConsoleError as error:
            self._fail(error)
            return False
        self._unread = False
        used = answer[:200].partition("used:")[2].partition("\n")[0].strip()
        self.used = int(used) if used.isdecimal() else 0
        return self._is_ours()

    def _fail(self, error: ConsoleError) -> None:
        self._unread = True
        self._problems.report(f"worker {self._pid}", f"{self._cutter.path}: worker {self._pid}: {error}")

    def _wants_all(self, now: float) -> bool:
        """Decide whether to read all streams: after a failed look, and for `TAIL` seconds after a change, at
        first at each look, then now and then."""
        if self._unread:
            return True
        since = now - self._cutter.changed_at
        if since >= TAIL or now - self._whole_at < (0.0 if since < _OFTEN else _OFTEN):
            return False
        self._whole_at = now
        return True

    def _is_ours(self) -> bool:
        """Look whether this HAProxy asks the agents of our gate: only then may we judge its streams.

        Agents of another gate have another policy, and ours must not cut what that permits.
        """
        gate, path = self._cutter.name.partition("/")[0], self._cutter.path
        problem = ""
        for stream in self.streams[:_SAMPLE]:
            ticket = stream.decoded()
            if ticket is not None and ticket.agent.partition("/")[0] != gate:
                problem = f"{path}: worker {self._pid} asks the agents of another gate than {gate!r}"
                break
        if self.streams:  # else it is as it was
            self._foreign = problem != ""
            self._problems.report(f"gate {self._pid}", problem)
        return not self._foreign

    async def fresh(self, now: float) -> list[Fresh]:
        """The credentials that this worker saw in backends that renew."""
        problem, found = "", []
        try:
            answer = await self.console.ask(f"show table {FRESH} data.gpt0 gt {int(now)}")
            found = await _parsed(fresh, answer)
        except ConsoleError as error:
            problem = f"{self._cutter.path}: worker {self._pid}: {error}"
        self._problems.report(f"fresh {self._pid}", problem)
        return [Fresh(self._pid, *one) for one in found]

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
        """Judge, prolong and cut what was read; false if the worker did not answer."""
        try:
            prolonged = await self._prolong(successors)
            await self._judge_all([one for one in self.streams if one.key not in prolonged], successors)
        except ConsoleError as error:
            self._fail(error)
            return False
        self._forget()
        self._problems.report(f"worker {self._pid}")
        return True

    async def _judge_all(self, found: list[Stream], successors: Successors) -> None:
        cutter, now = self._cutter, self._cutter.clock()
        overdue: list[tuple[Stream, _Due]] = []
        for number, stream in enumerate(found):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # decisions for HAProxy go on meanwhile
            ends = self._ends(stream, successors, now)
            if stream.alive and ends.cause == EXPIRED and ends.at < stream.ends:
                # The filter must know, and a look.
                await self.console.ask(f"set table {TABLE} key {stream.key} data.gpt0 {int(ends.at)}")
            due = self.due.get(stream.key)
            if ends.at > now + AHEAD + 1:
                if due is not None and not due.done:
                    del self.due[stream.key]
                continue
            if due is None:
                due = self.due[stream.key] = _Due(ends)
            elif due.ends.cause == EXPIRED or due.ends.at > ends.at:
                due.ends = ends
            if not stream.alive:
                await self._over(stream, due, now)
            elif not due.done:
                grace = GRACE if ends.cause == EXPIRED else 0.0
                if now >= ends.at + grace + (0.0 if stream.let_in_by(cutter.name) else NEIGHBOUR):
                    overdue.append((stream, due))
        if overdue:
            await self._cut_all(overdue)

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
                for renewal in successors.renewal(self._pid, stream, cutter.judge)
            ]
            await self.console.tell([command for one in chosen for command in one.commands()])
            for one in chosen:
                done.add(one.stream.key)
                self.due.pop(one.stream.key, None)
                cutter.renewed(one)
        return done

    async def _over(self, stream: Stream, due: _Due, now: float) -> None:
        """Record a stream that is gone: cut by us, ended by HAProxy at its time, or before by itself.

        The agent that records it takes the entry out of the table, so that no other records it too.
        """
        if not due.done:
            if not stream.let_in_by(self._cutter.name) and stream.age < NEIGHBOUR:
                return
            due.done = True
            ended = now - stream.age
            if stream.filtered:
                expired = due.ends if due.ends.cause == EXPIRED else Ends(stream.ends, EXPIRED)
                self._record(stream, expired, ended, "filter")
            elif due.ends.cause == EXPIRED and ended >= due.ends.at - EARLY:
                self._record(stream, due.ends, ended, "timeout")
        await self.console.ask(f"clear table {TABLE} key {stream.key}")

    async def _cut_all(self, overdue: list[tuple[Stream, _Due]]) -> None:
        found = await _parsed(pointers, await self.console.ask("show sess"))
        more = [Console(self._cutter.path, self._pid) for _ in range(min(_PARALLEL, len(overdue) // 50))]
        consoles = [self.console, *more]
        try:
            shares = [overdue[at :: len(consoles)] for at in range(len(consoles))]
            await asyncio.gather(
                *(self._cut_some(*share, found) for share in zip(consoles, shares, strict=True))
            )
        finally:
            for console in more:
                console.close()

    async def _cut_some(
        self, console: Console, overdue: list[tuple[Stream, _Due]], found: dict[str, list[str]]
    ) -> None:
        for stream, due in overdue:
            for pointer in found.get(stream.source, ()):
                # Look and cut, nothing between: the pointer may belong to another stream a moment later.
                if is_stream(await console.ask(f"show sess {pointer}"), stream):
                    await console.ask(f"shutdown session {pointer}")
                    due.done = True
                    self._record(stream, due.ends, self._cutter.clock(), "agent")
                    break

    def _record(self, stream: Stream, ends: Ends, done: float, by: str) -> None:
        self._cutter.cut(Cut(stream, ends.cause, ends.detail, ends.at, done, by))

    def _forget(self) -> None:
        """Drop what the table no longer shows, as far as it was read."""
        oldest = self._cutter.clock() - 2 * KEPT / 1000
        present = {stream.key for stream in self.streams} if self._whole else None
        for key, due in list(self.due.items()):
            if due.ends.at < oldest or (present is not None and key not in present):
                del self.due[key]
                self.judged.pop(key, None)
        if present is not None:
            for key in self.judged.keys() - present:
                del self.judged[key]
