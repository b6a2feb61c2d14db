"""A change of what is in force: prepared by all members, committed, switched to by all, confirmed.

One change is under way at a time; the others queue, and are joined if possible. PREPARE ends when all
have answered. Then the change is committed: `document` is the new version, and each new member has it. SWITCH
ends the same way. CONFIRM waits, for a bounded time, until replacements are ready and the fetcher has saved,
only so that the outcome can say so. A member that comes up behind the document, because it was forked before
the commit, gets the difference, prepares, switches, and only then serves.

If no worker at all prepares in time, the change is given up: the cause is the host, not a worker. A member
that misses the switch is killed in any case: it still enforces the old version. A version number is never
used again, also when a change is given up: a late answer must not count for the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from iamroles_agent.control.channel import ChannelError, Message, message, with_parts
from iamroles_agent.control.document import Document, Edits
from iamroles_agent.control.slots import DETAIL, FETCHER, Life, Members, Slot

Outcome = dict[str, Any]


class Phase(Enum):
    """The phase of a change."""

    PREPARE = auto()
    SWITCH = auto()
    CONFIRM = auto()


@dataclass(slots=True)
class _Proposal:
    edits: Edits
    done: Callable[[Outcome], None]
    reload: bool


@dataclass(slots=True)
class _Change:
    document: Document
    edits: Edits
    proposals: list[_Proposal]
    phase: Phase
    began: float
    """Fair time at which the phase began."""
    limit: float
    """Seconds that the phase may take."""
    waiting: dict[int, float]
    """Slots of members that have not answered yet, with their waits for a CPU until the phase began."""


class Changes:
    """The document in force, and the change under way.

    Args:
        document: in force at the start.
        members: the processes that take part.
        saves: whether there is a state directory, so that outcomes say whether they are saved.
    """

    def __init__(self, document: Document, members: Members, *, saves: bool) -> None:
        self.document = document
        self._members, self._saves = members, saves
        self._queue: deque[_Proposal] = deque()
        self._versions = document.version
        self._change: _Change | None = None
        self._saved: tuple[int, str] = (0, "")
        """The version that the fetcher tried to save last, and the error: "" for none."""

    @property
    def confirmed(self) -> int:
        """Number of workers that serve with the version in force."""
        return sum(slot.serving and slot.version == self.document.version for slot in self._members.workers)

    @property
    def phase(self) -> Phase | None:
        return None if self._change is None else self._change.phase

    @property
    def reloading(self) -> bool:
        under_way = self._change.proposals if self._change is not None else []
        return any(proposal.reload for proposal in (*under_way, *self._queue))

    def propose(self, edits: Edits, done: Callable[[Outcome], None], *, reload: bool = False) -> None:
        """Put parts in force everywhere, then call `done` with the outcome."""
        self._queue.append(_Proposal(edits, done, reload))
        self._begin()

    def _begin(self) -> None:
        """Begin the next change, unless one is under way."""
        # Also while it drains: a question that still waits for a new key is answered.
        if self._change is not None or not self._queue:
            return
        proposals = [self._queue.popleft()]
        # A reload goes alone, because it may be refused for reasons of its own.
        while not proposals[0].reload and self._queue and not self._queue[0].reload:
            proposals.append(self._queue.popleft())
        wanted: Edits = {name: part for proposal in proposals for name, part in proposal.edits.items()}
        wanted = {
            name: part for name, part in wanted.items() if part is not None or name in self.document.parts
        }
        document, timing = self.document.edited(wanted, self._versions + 1), self._members.timing
        edits = self.document.differences(document)
        if not edits:
            self._change = _Change(
                self.document, edits, proposals, Phase.CONFIRM, self._members.fair, timing.confirm, {}
            )
            self.proceed()
            return
        self._versions += 1
        size = sum(len(piece) for part in edits.values() if part is not None for piece in part.pieces)
        limit = timing.prepare + timing.prepare_mib * size / (1 << 20)
        self._change = change = _Change(
            document, edits, proposals, Phase.PREPARE, self._members.fair, limit, {}
        )
        for slot in self._members.slots.values():
            if slot.life is Life.UP and slot.target is None:
                self._invite(slot, change)
        self.proceed()

    def _invite(self, slot: Slot, change: _Change) -> None:
        """Let a member prepare the change under way."""
        change.waiting[slot.index] = self._members.scheduled(slot.index).waited
        self._send_edits(slot, change.edits, change.document.version)

    def _send_edits(self, slot: Slot, edits: Edits, version: int) -> None:
        for said in with_parts("prepare", edits, version=version):
            self._members.send(slot.index, said)

    # What members say

    def came_up(self, slot: Slot) -> None:
        """Send a member that is UP, and in no change, the parts that it lacks."""
        if slot.version != self.document.version:
            slot.target = self.document
            self._send_edits(slot, slot.document.differences(self.document), self.document.version)
            return
        if slot.index != FETCHER and not slot.serving:
            self._members.send(slot.index, message("serve"))
        if self._change is not None and self._change.phase is Phase.PREPARE:
            self._invite(slot, self._change)

    def prepared(self, slot: Slot, said: Message) -> None:
        """A member has built a change, and waits for the word to switch."""
        version = said.number("version")
        change = self._change
        if change is not None and change.phase is Phase.PREPARE and version == change.document.version:
            change.waiting.pop(slot.index, None)
            self.proceed()
        elif slot.target is not None and version == slot.target.version:
            self._members.send(slot.index, message("switch", version=version))

    def refused(self, slot: Slot, said: Message) -> None:
        version, error = said.number("version"), said.text("error")
        change = self._change
        if change is not None and change.phase is Phase.PREPARE and version == change.document.version:
            self._give_up(error or f"{slot.name} refused it")
        elif slot.target is not None and version == slot.target.version:
            self._members.kill(slot, f"it cannot take up what is in force: {error[:DETAIL]}")

    def switched(self, slot: Slot, said: Message) -> None:
        version = said.number("version")
        change = self._change
        if slot.target is not None and version == slot.target.version:
            slot.document, slot.target = slot.target, None
            self.came_up(slot)
        elif (
            change is not None
            and change.phase is Phase.SWITCH
            and version == change.document.version
            and slot.index in change.waiting
        ):
            slot.document = self.document
            del change.waiting[slot.index]
        else:
            raise ChannelError(f"it switched to version {version}, which nobody asked it to")
        self.proceed()

    def saved(self, version: int, error: str) -> None:
        self._saved = version, error
        self.proceed()

    def stamped(self, name: str, at: float) -> None:
        """A part was found to be good at a later time."""
        self.document = self.document.stamped(name, at)
        if self._change is not None:
            self._change.document = self._change.document.stamped(name, at)

    def lost(self, slot: Slot) -> None:
        """Stop waiting for a member that dies: the next in its slot has what is in force."""
        if slot.index == FETCHER:
            self._drop_proposals()
        if self._change is not None:
            self._change.waiting.pop(slot.index, None)
            self.proceed()

    def stop(self, error: str) -> None:
        """Give up a reload that is not in force yet, because the workers end; end others sooner."""
        for proposal in [proposal for proposal in self._queue if proposal.reload]:
            self._queue.remove(proposal)
            proposal.done({"done": False, "error": error})
        change = self._change
        if change is not None and change.phase is Phase.PREPARE and change.proposals[0].reload:
            self._give_up(error)
        self.proceed()

    def _drop_proposals(self) -> None:
        """Give up what the dying fetcher proposed and is not in force yet, and report it to nobody.

        The next one compares the outside with what is in force when it is born. A proposal that came into
        force after that look would undo what the next one has found and confirmed.
        """
        self._queue = deque(proposal for proposal in self._queue if proposal.reload)
        change = self._change
        if change is not None and not change.proposals[0].reload:
            for proposal in change.proposals:
                proposal.done = lambda _outcome: None
            if change.phase is Phase.PREPARE:
                self._give_up("the fetcher that proposed it died")

    # The phases

    def proceed(self, *, late: bool = False) -> None:
        """End the phase if nothing is left to wait for, and the ones after it.

        Args:
            late: whether CONFIRM has waited long enough.
        """
        change, members = self._change, self._members
        if change is None or change.waiting:
            return
        if change.phase is Phase.PREPARE:
            self.document = change.document
            change.phase, change.began, change.limit = Phase.SWITCH, members.fair, members.timing.switch
            for slot in members.slots.values():
                if slot.life is Life.UP and slot.target is None:
                    change.waiting[slot.index] = members.scheduled(slot.index).waited
                    members.send(slot.index, message("switch", version=self.document.version))
            if change.waiting:
                return
        if change.phase is Phase.SWITCH:
            change.phase, change.began, change.limit = Phase.CONFIRM, members.fair, members.timing.confirm
        workers, version = len(members.workers), self.document.version
        save_error = self._saved[1] if self._saved[0] == version else None
        unsaved = self._saves and save_error is None and (members.replacing or members.slots[FETCHER].alive)
        if not late and (unsaved or (members.replacing and self.confirmed < workers)):
            return
        outcome: Outcome = {
            "done": True,
            "version": version,
            "workers": workers,
            "confirmed": self.confirmed,
        }
        if self._saves:
            outcome["saved"] = save_error == ""
            if save_error != "":
                outcome["save_error"] = save_error or "the disk did not answer in time"
        self._end(outcome)

    def _give_up(self, error: str) -> None:
        assert self._change is not None  # noqa: S101 - only called for one
        for slot in self._members.slots.values():
            if slot.life is Life.UP:
                self._members.send(slot.index, message("abort", version=self._change.document.version))
        self._end({"done": False, "error": error})

    def _end(self, outcome: Outcome) -> None:
        change, self._change = self._change, None
        assert change is not None  # noqa: S101 - only called for one
        for proposal in change.proposals:
            proposal.done(outcome)
        self._begin()

    def watch(self) -> None:
        """End a phase that has taken too long."""
        change, members = self._change, self._members
        if change is None or (spent := members.fair - change.began) <= change.limit:
            return
        if change.phase is Phase.CONFIRM:
            self.proceed(late=True)
            return
        late = [
            members.slots[index]
            for index, waited in sorted(change.waiting.items())
            if spent - members.scheduled(index).since(waited) > change.limit
        ]
        up = [slot for slot in members.workers if slot.life is Life.UP]
        if change.phase is Phase.PREPARE and late and up and all(slot in late for slot in up):
            self._give_up(f"no worker prepared it within {change.limit:.1f} s")
            return
        for slot in late:
            why = f"it did not {change.phase.name.lower()} version {change.document.version}"
            members.kill(slot, f"{why} in {change.limit:.1f} s")
