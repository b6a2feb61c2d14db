"""The parent's side of the control plane, without its sockets: events in, effects out, the clock injected.

The package's docstring tells the story. The plane hands each event to the object that knows what it means:
`slots` the processes, `changes` what is in force, `reloads` the loader, `relay` questions of workers. Only an
UP or BORN member is heard. The tables at the end say what each message means; any other message is nonsense,
and its sender is killed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, ClassVar

from iamroles_agent.control.changes import Changes
from iamroles_agent.control.channel import ChannelError, Message, message, read_parts
from iamroles_agent.control.document import Document
from iamroles_agent.control.relay import Relay
from iamroles_agent.control.reloads import Reloads
from iamroles_agent.control.slots import (
    FETCHER,
    LOADER,
    Effect,
    Fail,
    Fork,
    Life,
    Members,
    Print,
    Scheduled,
    Slot,
    Timing,
)

_MAX_USED = 1 << 20
_MAX_STATS = 64
"""Members of a pong's `stats` that are kept."""


class Plane:
    """See the module.

    Args:
        document: in force at the start.
        workers: how many.
        clock: seconds, monotonic.
        timing: deadlines.
        scheduled: looks at the process in a slot; none is in it: no seconds.
        saves: whether there is a state directory, so that outcomes say whether they are saved.
    """

    def __init__(
        self,
        document: Document,
        workers: int,
        *,
        clock: Callable[[], float],
        timing: Timing | None = None,
        scheduled: Callable[[int], Scheduled] = lambda _index: Scheduled(),
        saves: bool = False,
    ) -> None:
        self.members = Members(
            workers, clock=clock, timing=timing or Timing(), scheduled=scheduled, lost=self._lost
        )
        self.changes = Changes(document, self.members, saves=saves)
        self.reloads = Reloads(self.members, self.changes)
        self.relay = Relay(self.members.send)
        self.left = False
        """True once another agent has taken over."""
        self.used: dict[str, int] = {}
        """Used signatures that count once, and until when they are kept (monotonic): for the next fetcher."""
        self._clock = clock
        self._next_ping = clock()
        self._pings = 0
        self._pieces: list[bytes] = []
        """The pieces of its next proposal that the fetcher has sent."""

    # What the shell calls

    @property
    def document(self) -> Document:
        """In force."""
        return self.changes.document

    def start(self) -> None:
        for index in self.members.slots:
            self.members.emit(Fork(index, ""))

    def take(self) -> list[Effect]:
        """Take the effects that are due, in order."""
        return self.members.take()

    @property
    def finished(self) -> bool:
        """True when it was stopped and no member is left."""
        return self.members.stopping and self.members.gone()

    def due(self) -> float:
        """Clock time at which `tick` must be called at the latest."""
        return min(self._next_ping, self.members.due())

    def tick(self) -> None:
        """Look at the clock. Call it often, after all that had arrived was handed to `heard`."""
        now = self.members.advance()
        if not self.members.stopping:
            self.members.watch(now)
            self.reloads.watch()
        self.changes.watch()
        if now >= self._next_ping:
            self._next_ping = now + self.members.timing.ping
            self._ping()

    def forked(self, index: int, pid: int) -> None:
        """A process lives in a slot now, with the document in force."""
        if index == FETCHER:
            self._pieces.clear()
        if index != LOADER:
            self.members.forked(index, pid, self.document)

    def heard(self, index: int, said: Message) -> None:
        """A member said something; the plane kills a member that it cannot understand."""
        try:
            if index == LOADER:
                self.reloads.heard(said)
            elif (slot := self.members.slots[index]).alive:
                self.members.heard(slot)
                handle = self._HEARD.get((slot.life, said.say))
                if handle is None and slot.life is Life.UP:
                    handle = (self._OF_FETCHER if index == FETCHER else self._OF_WORKERS).get(said.say)
                if handle is None:
                    raise ChannelError(f"{said.say!r} is not expected while {slot.life.name}")
                handle(self, slot, said)
        except ChannelError as error:
            self.nonsense(index, str(error))

    def nonsense(self, index: int, what: str) -> None:
        """A member's channel cannot be read."""
        if index == LOADER:
            self.reloads.failed(f"the loader talked nonsense: {what}")
        elif (slot := self.members.slots[index]).alive:
            self.members.kill(slot, f"it talked nonsense: {what}")

    def died(self, index: int, how: str) -> None:
        """A process has ended, whatever ended it."""
        if index == LOADER:
            self.reloads.died(how)
            return
        members, slot = self.members, self.members.slots[index]
        members.died(slot, how)
        if members.stopping:
            self._drain_fetcher()
        elif not members.served:
            members.emit(Fail(slot.error or f"{slot.name} ended with {how} before it was ready"))

    def load(self) -> None:
        """The configuration may have changed (SIGHUP)."""
        self.reloads.load()

    def stop(self) -> None:
        """Drain: workers first, the fetcher when they are done."""
        if self.members.stopping:
            return
        self.members.stopping = True
        self.members.send(FETCHER, message("note", event="stopping"))
        self.reloads.failed("the agent is stopping")
        self.changes.stop("the agent is stopping")
        for slot in self.members.workers:
            self.members.drain(slot, gently=self.left)
        self._drain_fetcher()

    def status(self) -> dict[str, Any]:
        """Report the processes and the document, for `iamroles agent status`."""
        phase = self.changes.phase
        return {
            **self._summary(),
            "change": None if phase is None else phase.name.lower(),
            "parts": {name: part.digest for name, part in sorted(self.document.parts.items())},
            "overslept": round(self.members.overslept, 3),
            "members": [
                {
                    "name": slot.name.removeprefix("the "),
                    "pid": slot.pid,
                    "state": "serving" if slot.serving else slot.life.name.lower(),
                    "version": slot.version if slot.life is Life.UP else None,
                    "replaced": slot.deaths,
                    **({"last": slot.last} if slot.last else {}),
                    "stats": slot.stats,
                }
                for slot in self.members.slots.values()
            ],
        }

    def _summary(self) -> dict[str, Any]:
        return {
            "version": self.document.version,
            "policy": self.document.policy,
            "workers": len(self.members.workers),
            "confirmed": self.changes.confirmed,
            "fetcher": self.members.slots[FETCHER].stats,
            "live": self.members.slots[0].stats.get("live", {}),
        }

    def _ping(self) -> None:
        self._pings += 1
        version = self.document.version
        behind = any(slot.serving and slot.version != version for slot in self.members.workers)
        summary = {**self._summary(), "behind": behind}
        for index in self.members.slots:
            self.members.send(index, message("ping", n=self._pings, summary=summary))

    def _lost(self, slot: Slot) -> None:
        """A member is killed, or has died."""
        self.relay.lost(slot.index)
        self.changes.lost(slot)
        if slot.index == FETCHER:
            self.relay.ended(self.relay.proposed)

    def _drain_fetcher(self) -> None:
        if self.members.gone(self.members.workers):
            self.members.drain(self.members.slots[FETCHER])

    # What members say

    def _up(self, slot: Slot, said: Message) -> None:
        """A member has built what it was born with."""
        if said.number("version") != slot.version:
            raise ChannelError(f"born with version {slot.version}, it came up with another")
        slot.life = Life.UP
        if slot.index == FETCHER:
            slot.serving = True
        self.changes.came_up(slot)
        self._caught_up(slot)
        self._look_served()

    def _switched(self, slot: Slot, said: Message) -> None:
        self.changes.switched(slot, said)
        self._caught_up(slot)

    def _caught_up(self, slot: Slot) -> None:
        """Let the fetcher answer once it has what is in force; a worker may have more than a new fetcher."""
        if slot.index == FETCHER and slot.target is None:
            self.relay.fetcher_up()

    def _serving(self, slot: Slot, _said: Message) -> None:
        slot.serving, slot.silenced = True, -inf
        self._look_served()

    def _look_served(self) -> None:
        members = self.members
        if not (members.served or members.stopping) and all(slot.serving for slot in members.slots.values()):
            members.served = True
            members.emit(Print({"ready": True}))
        self.changes.proceed()

    def _failed(self, slot: Slot, said: Message) -> None:
        slot.error = said.text("error")

    def _pong(self, slot: Slot, said: Message) -> None:
        stats = said.table("stats")
        if len(stats) > _MAX_STATS:
            raise ChannelError(f"a pong with {len(stats)} stats")
        slot.stats = stats
        if slot.index == FETCHER:
            slot.silenced = -inf

    # What the fetcher says

    def _proposed(self, _slot: Slot, said: Message) -> None:
        request, edits = said.number("id"), read_parts(said, self._pieces)
        self.relay.proposed += 1
        number = self.relay.proposed

        def done(outcome: dict[str, Any]) -> None:
            self.members.send(FETCHER, message("outcome", id=request, body=outcome))
            self.relay.ended(number)

        self.changes.propose(edits, done)

    def _stamped(self, _slot: Slot, said: Message) -> None:
        name, at = said.text("name"), said.at()
        self.changes.stamped(name, at)
        for index in self.members.slots:
            self.members.send(index, message("stamp", name=name, at=at))

    def _used_up(self, _slot: Slot, said: Message) -> None:
        what, until, now = said.text("what"), said.number("until"), self._clock()
        while self.used and (len(self.used) >= _MAX_USED or next(iter(self.used.values())) <= now):
            del self.used[next(iter(self.used))]
        self.used[what] = until

    def _leave(self, _slot: Slot, _said: Message) -> None:
        self.left = True
        self.stop()

    _HEARD: ClassVar[dict[tuple[Life, str], Callable[[Plane, Slot, Message], object]]] = {
        (Life.BORN, "pong"): _pong,
        (Life.BORN, "up"): _up,
        (Life.BORN, "failed"): _failed,
        (Life.UP, "pong"): _pong,
        (Life.UP, "serving"): _serving,
        (Life.UP, "prepared"): lambda self, slot, said: self.changes.prepared(slot, said),
        (Life.UP, "refused"): lambda self, slot, said: self.changes.refused(slot, said),
        (Life.UP, "switched"): _switched,
        (Life.UP, "failed"): _failed,
    }
    _OF_WORKERS: ClassVar[dict[str, Callable[[Plane, Slot, Message], object]]] = {
        "ask": lambda self, slot, said: self.relay.ask(slot.index, said),
    }
    _OF_FETCHER: ClassVar[dict[str, Callable[[Plane, Slot, Message], object]]] = {
        "piece": lambda self, _slot, said: self._pieces.append(said.body),
        "propose": _proposed,
        "stamp": _stamped,
        "saved": lambda self, _slot, said: self.changes.saved(said.number("version"), said.text("error")),
        "used": _used_up,
        "status": lambda self, _slot, said: self.members.send(
            FETCHER, message("status", id=said.number("id"), body=self.status())
        ),
        "answer": lambda self, _slot, said: self.relay.answer(said),
        "leave": _leave,
    }
