"""The agent's members: which process lives in which slot, which is silent or dead, what the shell must do.

A *slot* is the fetcher's or a worker's position in the agent; the process in it may change. A slot is GONE,
BORN (forked, not ready yet), UP (built what it was born with) or DYING (killed, its end not seen yet).

Deadlines are counted on `fair`: seconds without those in which the parent itself was late, less what a member
waited for a CPU (`Scheduled`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import Any

from iamroles_agent.control.channel import Message, message
from iamroles_agent.control.document import Document

FETCHER = -1
LOADER = -2
DETAIL = 2000
"""Characters of a refusal that each worker's audit gets; the log gets all of it."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    ping: float = 0.25
    """Between two pings to a member."""
    silence: float = 1.0
    """A member that says nothing for longer is replaced."""
    look: float = 1.0
    """At least, between two looks at a member that talks: one reads two files for each of its threads."""
    patience: float = 3.0
    """For a member killed for silence to be replaced, before another one is killed for it."""
    late: float = 0.25
    """Normal delay of the parent; a longer one is not counted against members."""
    start: float = 60.0
    """From the fork until a member has built what is in force."""
    load: float = 60.0
    """For reading and checking a configuration."""
    stall: float = 3.0
    """A loader that uses no CPU for longer is stuck."""
    prepare: float = 5.0
    """For preparing a change of no size, and more for each MiB of it."""
    prepare_mib: float = 4.0
    switch: float = 2.0
    confirm: float = 3.0
    """For replacements and for the disk, before the outcome is reported."""
    first_backoff: float = 0.1
    """Before a dead member is replaced; doubled each time, until one lives `healthy` seconds."""
    longest_backoff: float = 5.0
    healthy: float = 10.0


class Life(Enum):
    """The state of the process in a slot."""

    GONE = auto()
    BORN = auto()
    UP = auto()
    DYING = auto()


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Seconds that the threads of a process have had in its life."""

    ran: float = 0.0
    """On a CPU."""
    waited: float = 0.0
    """For a CPU, in waits that are over."""
    waiting: float = 0.0
    """For a CPU, at most, in waits that last."""

    def since(self, waited: float) -> float:
        """Return how long it has waited, at most, since it had waited this long."""
        return self.waited + self.waiting - waited


# Effects: what the shell must do.


@dataclass(frozen=True, slots=True)
class Fork:
    """Make a member, then call `forked`."""

    slot: int
    why: str
    """How the one before ended, "" for the first: the new member records it."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End a member's process at once, then call `died`."""

    slot: int
    why: str


@dataclass(frozen=True, slots=True)
class Send:
    """Put a message into a member's channel."""

    slot: int
    message: Message


@dataclass(frozen=True, slots=True)
class Print:
    """Print a line of the launch contract."""

    line: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fail:
    """End the agent, which could not start, and say why."""

    why: str


Effect = Fork | Kill | Send | Print | Fail


@dataclass(slots=True)
class Slot:
    """A member's position, and what the parent knows about the process in it."""

    index: int
    life: Life = Life.GONE
    pid: int = 0
    document: Document = field(default_factory=Document)
    """The version that the process enforces."""
    target: Document | None = None
    """The version that it must switch to before it serves, because it was forked before a commit."""
    serving: bool = False
    heard: float = 0.0
    """Fair time of its last message, or of its fork."""
    waited: float = 0.0
    """How long it had waited for a CPU at that time, or at a look up to `Timing.look` before."""
    looked: float = 0.0
    """Fair time of that look: one costs more than a message."""
    spoken: bool = False
    born: float = 0.0
    """Fair time."""
    fork_at: float = 0.0
    """Clock time of the next fork, while GONE."""
    backoff: float = 0.0
    killed_for: str = ""
    error: str = ""
    """Why it failed, in its own words."""
    last: str = ""
    """How the process before it ended."""
    silenced: float = -inf
    """Fair time at which a process was killed for silence; no time if one has served since."""
    deaths: int = 0
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return self.document.version

    @property
    def alive(self) -> bool:
        return self.life in (Life.BORN, Life.UP)

    @property
    def name(self) -> str:
        return slot_name(self.index)


def slot_name(index: int) -> str:
    """The process in a slot, as the log and the audit call it."""
    return {FETCHER: "the fetcher", LOADER: "the loader"}.get(index, f"worker {index}")


class Members:
    """The processes of the agent, by slot.

    Args:
        workers: their number.
        clock: seconds, monotonic.
        timing: deadlines.
        scheduled: looks at the process in a slot; none is in it: no seconds.
        lost: called with a slot whose process is killed or has died.
    """

    def __init__(
        self,
        workers: int,
        *,
        clock: Callable[[], float],
        timing: Timing,
        scheduled: Callable[[int], Scheduled],
        lost: Callable[[Slot], None],
    ) -> None:
        self.slots = {index: Slot(index) for index in (FETCHER, *range(workers))}
        self.workers = [self.slots[index] for index in range(workers)]
        self.timing, self.scheduled = timing, scheduled
        self.served = False
        """True once all have been ready: from then on dead processes are replaced."""
        self.stopping = False
        self.fair = 0.0
        self.overslept = 0.0
        """Seconds by which the parent itself was late."""
        self._clock, self._lost = clock, lost
        self._seen = clock()
        self._effects: list[Effect] = []

    def emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    @property
    def replacing(self) -> bool:
        """True while dead members are replaced."""
        return self.served and not self.stopping

    @property
    def answering(self) -> bool:
        """True if a worker serves that is not silent."""
        return any(slot.serving and self.quiet(slot) <= self.timing.silence for slot in self.workers)

    def gone(self, slots: list[Slot] | None = None) -> bool:
        """Look whether all slots, or all of these, are empty."""
        return all(slot.life is Life.GONE for slot in slots or self.slots.values())

    def due(self) -> float:
        """Clock time at which the next member must be forked."""
        if not self.replacing:
            return inf
        return min((slot.fork_at for slot in self.slots.values() if slot.life is Life.GONE), default=inf)

    def advance(self) -> float:
        """Move the fair time on; returns the clock time."""
        now = self._clock()
        elapsed, self._seen = now - self._seen, now
        if elapsed > self.timing.ping + self.timing.late:
            self.overslept += elapsed - self.timing.ping
            elapsed = self.timing.ping
        self.fair += max(elapsed, 0.0)
        return now

    def send(self, index: int, said: Message) -> bool:
        slot = self.slots[index]
        if slot.alive:
            self.emit(Send(index, said))
        return slot.alive

    def kill(self, slot: Slot, why: str) -> None:
        slot.life, slot.serving, slot.killed_for = Life.DYING, False, why
        self.emit(Kill(slot.index, why))
        self._lost(slot)

    def drain(self, slot: Slot, **how: bool) -> None:
        """Let a member finish; kill it if it is not ready yet and so has nothing to finish."""
        if slot.life is Life.BORN:
            self.kill(slot, "the agent is stopping")
        else:
            self.send(slot.index, message("drain", **how))

    def forked(self, index: int, pid: int, document: Document) -> None:
        """A process lives in a slot now, with this document."""
        slot = self.slots[index]
        slot.life, slot.pid, slot.document, slot.target = Life.BORN, pid, document, None
        slot.serving = slot.spoken = False
        slot.born = slot.heard = slot.looked = self.fair
        slot.waited, slot.stats = 0.0, {}  # a new process has not waited
        slot.killed_for = slot.error = ""
        self._record(slot)

    def heard(self, slot: Slot) -> None:
        slot.heard, slot.spoken = self.fair, True
        if self.fair - slot.looked >= self.timing.look:
            slot.looked, slot.waited = self.fair, self.scheduled(slot.index).waited

    def died(self, slot: Slot, how: str) -> None:
        """Note that the process in a slot has ended, or could not be forked."""
        lived = 0.0 if slot.life is Life.GONE else self.fair - slot.born
        slot.life, slot.serving, slot.pid = Life.GONE, False, 0
        slot.deaths += 1
        slot.last = slot.killed_for or slot.error or f"it ended with {how}"
        self._lost(slot)
        timing = self.timing
        if slot.backoff == 0.0 or lived >= timing.healthy:
            slot.backoff = timing.first_backoff
        slot.fork_at = self._clock() + slot.backoff
        slot.backoff = min(2 * slot.backoff, timing.longest_backoff)

    def quiet(self, slot: Slot) -> float:
        """Seconds for which a member could have spoken and did not."""
        quiet = self.fair - slot.heard
        if quiet <= self.timing.silence:
            return quiet
        return quiet - self.scheduled(slot.index).since(slot.waited)

    def watch(self, now: float) -> None:
        """Replace dead members, and kill a member that is silent or not ready in time."""
        for slot in self.slots.values():
            if slot.life is Life.GONE and self.served and now >= slot.fork_at:
                self.emit(Fork(slot.index, slot.last))
        # One at a time: the one killed before must serve again, or have had a fair time to.
        if any(self.fair - slot.silenced < self.timing.patience for slot in self.slots.values()):
            return
        for slot in self.slots.values():
            if not slot.alive:
                continue
            quiet = self.quiet(slot)
            if quiet > self.timing.silence * (1 if slot.spoken else 4):
                slot.silenced = self.fair
                self.kill(slot, f"no heartbeat for {quiet:.1f} s")
                return
            if slot.life is Life.BORN and self.fair - slot.born > self.timing.start:
                self.kill(slot, f"not ready within {self.timing.start:g} s")
                return

    def _record(self, slot: Slot) -> None:
        """Let a worker record that the fetcher was replaced; a new worker records that of itself."""
        recorder = next((worker for worker in self.workers if worker.serving), None)
        if slot.index == FETCHER and recorder is not None:
            self.send(recorder.index, message("note", event="replaced", detail=slot.last[:DETAIL]))
