"""A change of what is in force: prepared by all members, committed, switched to by all, confirmed.

At most one change is under way; the others queue, and what can go together does. PREPARE ends when nobody is
waited for; then the change is committed: `document` is the new version, and each newborn has it. SWITCH ends
likewise. CONFIRM waits, for a bounded time, until replacements have come up and the courier has saved, only
so that the outcome can tell. A member that comes up behind the document (it was forked before the commit) is
sent the difference, prepares, switches, and serves only then. A version number is never used again, also when
a change is given up: an answer that comes late must not count for the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from iamroles_agent.control.channel import ChannelError, Message, message
from iamroles_agent.control.document import Document, Edits, Part
from iamroles_agent.control.places import (
    COURIER,
    DETAIL,
    Effect,
    Kill,
    Life,
    Place,
    Say,
    Send,
    Timing,
)
from iamroles_agent.control.relay import Relay


class Phase(Enum):
    """Of a change."""

    PREPARE = auto()
    SWITCH = auto()
    CONFIRM = auto()


_NOBODY = 0
"""A ticket that no courier gives: each begins to count at 1, and would take the outcome for its own."""


@dataclass(slots=True)
class _Proposal:
    edits: Edits
    ticket: int | None
    """Of the courier; `_NOBODY`: of one that has died since; None: for a reload."""
    number: int


@dataclass(slots=True)
class _Change:
    """A change under way."""

    document: Document
    edits: Edits
    proposals: list[_Proposal]
    waiting: set[int]
    phase: Phase = Phase.PREPARE
    began: float = 0.0
    """Fair time at which the phase began."""
    waited: dict[int, float] = field(default_factory=dict)
    limit: float = 0.0
    saved: str | None = None
    """What the courier said of saving: "" for done, else the error; None: nothing yet."""


class Changes:
    """The part of the `Plane` that changes what is in force.

    Args:
        document: in force at the start.
        workers: how many.
        clock: seconds, monotonic.
        timing: deadlines.
        waits: seconds that the process in a place has waited for a processor in its life.
        saves: whether there is a state directory, so that outcomes tell of saving.
    """

    def __init__(
        self,
        document: Document,
        workers: int,
        *,
        clock: Callable[[], float],
        timing: Timing,
        waits: Callable[[int], float],
        saves: bool,
    ) -> None:
        self.document = document
        """In force."""
        self.timing = timing
        self.places = {index: Place(index) for index in (COURIER, *range(workers))}
        self.stopping = False
        self.served = False
        """Whether all have been ready once: from then on the dead are replaced."""
        self.relay = Relay(self._send, workers)
        self._clock, self._waits, self._saves = clock, waits, saves
        self._fair = 0.0
        self._effects: list[Effect] = []
        self._queue: deque[_Proposal] = deque()
        self._numbers = 0
        self._versions = document.version
        self._change: _Change | None = None
        self._kept: tuple[int, str] | None = None
        """Which version the courier has last tried to save, and the error: "" for none."""

    @property
    def workers(self) -> list[Place]:
        return [place for place in self.places.values() if place.index >= 0]

    @property
    def confirmed(self) -> int:
        """Workers that serve with the version in force."""
        return sum(place.serving and place.version == self.document.version for place in self.workers)

    def propose(self, edits: Edits, ticket: int | None) -> None:
        """Put parts in force everywhere; the outcome follows."""
        self._numbers += 1
        self._queue.append(_Proposal(edits, ticket, self._numbers))
        if ticket is not None:
            self.relay.proposed = self._numbers
        self._begin()

    def _load_next(self) -> None:
        """A change has ended: a reload that waited for that may begin."""

    # Members

    def _send(self, index: int, said: Message) -> bool:
        place = self.places.get(index)
        if place is None or place.life not in (Life.BORN, Life.UP):
            return False
        self._effects.append(Send(index, said))
        return True

    def _kill(self, place: Place, why: str) -> None:
        place.life, place.serving, place.fate = Life.DYING, False, why
        self._effects.append(Kill(place.index, why))
        self._unwait(place.index)

    def _settle(self, place: Place) -> None:
        """What a member needs that is UP and waited for by nobody."""
        if place.holds.version != self.document.version:
            place.target = self.document
            self._send_edits(place, place.holds.differences(self.document), self.document.version)
            return
        if place.index != COURIER and not place.serving:
            self._send(place.index, message("serve"))
        change = self._change
        if change is not None and change.phase is Phase.PREPARE:
            self._invite(place, change)

    def _invite(self, place: Place, change: _Change) -> None:
        """Have a member prepare the change under way."""
        change.waiting.add(place.index)
        change.waited[place.index] = self._waits(place.index)
        self._send_edits(place, change.edits, change.document.version)

    def _send_edits(self, place: Place, edits: Edits, version: int) -> None:
        parts: dict[str, Any] = {}
        for name, part in edits.items():
            if part is None:
                parts[name] = None
                continue
            parts[name] = {"digest": part.digest, "pieces": len(part.pieces), "stamp": part.stamp}
            for piece in part.pieces:
                self._send(place.index, message("piece", piece, name=name, version=version))
        self._send(place.index, message("prepare", version=version, parts=parts))

    def _note_refusal(self, error: str) -> None:
        for place in self.workers:
            self._send(place.index, message("note", event="refused", detail=error[:DETAIL]))

    def _reloading(self) -> bool:
        under_way = self._change.proposals if self._change is not None else []
        return any(proposal.ticket is None for proposal in (*under_way, *self._queue))

    # The phases

    def _begin(self) -> None:
        """Take up what waits, unless a change is under way."""
        # Also while it drains: whoever still waits for a new key is to be answered.
        if self._change is not None or not self._queue:
            return
        proposals = [self._queue.popleft()]
        # A reload goes alone, because it may be refused for reasons that are nobody else's.
        while proposals[0].ticket is not None and self._queue and self._queue[0].ticket is not None:
            proposals.append(self._queue.popleft())
        edits: dict[str, Part | None] = {}
        for proposal in proposals:
            edits |= proposal.edits
        edits = {
            name: part for name, part in edits.items() if part is not None or name in self.document.parts
        }
        coming = self.document.edited(edits, self._versions + 1)
        edits = self.document.differences(coming)
        if not edits:
            self._change = _Change(self.document, edits, proposals, set(), Phase.CONFIRM, self._fair)
            if self._kept is not None and self._kept[0] == self.document.version:
                self._change.saved = self._kept[1]
            self._look_confirmed()
            return
        self._versions += 1  # a number is never used again, also when the change is given up
        self._change = change = _Change(coming, edits, proposals, set(), Phase.PREPARE, self._fair)
        change.limit = self._prepare_limit(edits.values())
        for place in self.places.values():
            if place.life is Life.UP and place.target is None:
                self._invite(place, change)
        self._look_prepared()

    def _prepare_limit(self, parts: Iterable[Part | None]) -> float:
        size = sum(len(piece) for part in parts if part is not None for piece in part.pieces)
        return self.timing.prepare + self.timing.prepare_mib * size / (1 << 20)

    def prepared(self, place: Place, said: Message) -> None:
        """It has built a change, and waits for the word to switch."""
        place.prepared = said.number("version")
        change = self._change
        if change is not None and change.phase is Phase.PREPARE and place.prepared == change.document.version:
            change.waiting.discard(place.index)
            self._look_prepared()
        elif place.target is not None and place.prepared == place.target.version:
            self._send(place.index, message("switch", version=place.prepared))

    def refused(self, place: Place, said: Message) -> None:
        version, error = said.number("version"), said.text("error")
        change = self._change
        if change is not None and change.phase is Phase.PREPARE and version == change.document.version:
            self._give_up(error, f"{place.name} refused it")
        elif place.target is not None and version == place.target.version:
            self._kill(place, f"it cannot take up what is in force: {error[:DETAIL]}")

    def _give_up(self, error: str, why: str) -> None:
        change = self._change
        assert change is not None  # noqa: S101 - only called for one
        for place in self.places.values():
            if place.life is Life.UP:
                self._send(place.index, message("abort", version=change.document.version))
        self._end({"done": False, "error": error or why})

    def _look_prepared(self) -> None:
        change = self._change
        if change is None or change.phase is not Phase.PREPARE or change.waiting:
            return
        self.document = change.document
        change.phase, change.began, change.limit = Phase.SWITCH, self._fair, self.timing.switch
        for place in self.places.values():
            if place.life is Life.UP and place.target is None and place.prepared == self.document.version:
                change.waiting.add(place.index)
                change.waited[place.index] = self._waits(place.index)
                self._send(place.index, message("switch", version=self.document.version))
        self._look_switched()

    def switched(self, place: Place, said: Message) -> None:
        version = said.number("version")
        change = self._change
        if place.target is not None and version == place.target.version:
            place.version, place.holds, place.target = version, place.target, None
            self._settle(place)
            self._look_confirmed()
        elif version == self.document.version and version == place.prepared:
            place.version, place.holds = version, self.document
            if change is not None:
                change.waiting.discard(place.index)
                self._look_switched()
        else:
            raise ChannelError(f"it switched to version {version}, which nobody asked it to")

    def _look_switched(self) -> None:
        change = self._change
        if change is None or change.phase is not Phase.SWITCH or change.waiting:
            return
        change.phase, change.began = Phase.CONFIRM, self._fair
        self._look_confirmed()

    def _look_confirmed(self, *, late: bool = False) -> None:
        change = self._change
        if change is None or change.phase is not Phase.CONFIRM:
            return
        wanted = self.served and not self.stopping and self.confirmed < len(self.workers)
        if (wanted or (self._saves and change.saved is None)) and not late:
            return
        outcome: dict[str, Any] = {
            "done": True,
            "version": self.document.version,
            "workers": len(self.workers),
            "confirmed": self.confirmed,
        }
        if self._saves:
            outcome["saved"] = change.saved == ""
            if change.saved != "":
                outcome["save_error"] = change.saved or "the disk did not answer in time"
        self._end(outcome)

    def _end(self, outcome: dict[str, Any]) -> None:
        change, self._change = self._change, None
        assert change is not None  # noqa: S101 - only called for one
        for proposal in change.proposals:
            if proposal.ticket is None:
                self._say_reload(outcome)
                if not outcome["done"]:
                    self._note_refusal(str(outcome["error"]))
            elif proposal.ticket != _NOBODY:
                self._send(COURIER, message("outcome", ticket=proposal.ticket, outcome=outcome))
        self.relay.settled(change.proposals[-1].number)
        self._load_next()
        self._begin()

    def _say_reload(self, outcome: dict[str, Any]) -> None:
        line = {"reloaded": outcome["done"], "policy": self.document.policy, **outcome}
        del line["done"]
        line.setdefault("version", self.document.version)
        self._effects.append(Say(line))

    def _unwait(self, index: int) -> None:
        """Nobody waits for a member that dies: the next in its place has what is in force."""
        if index == COURIER:
            self._drop_proposals()
        change = self._change
        if change is not None and index in change.waiting:
            change.waiting.discard(index)
            self._look_prepared()
            self._look_switched()

    def _drop_proposals(self) -> None:
        """The courier dies: what it proposed and is not in force yet is given up, and nobody is told.

        The next one compares the outside with what is in force when it is born. A proposal that came into
        force after that look would undo what the next one has found and confirmed.
        """
        self._queue = deque(proposal for proposal in self._queue if proposal.ticket is None)
        change = self._change
        if change is not None and change.proposals[0].ticket is not None:
            for proposal in change.proposals:
                proposal.ticket = _NOBODY
            if change.phase is Phase.PREPARE:
                self._give_up("the courier that proposed it died", "")
        self.relay.settled(self._numbers)

    def _watch_change(self) -> None:
        change = self._change
        if change is None:
            return
        if change.phase is Phase.CONFIRM:
            if self._fair - change.began > self.timing.confirm:
                self._look_confirmed(late=True)
            return
        spent = self._fair - change.began
        late = [
            self.places[index]
            for index in sorted(change.waiting)
            if spent - (self._waits(index) - change.waited[index]) > change.limit
        ]
        if not late:
            return
        word = change.phase.name.lower()
        up = [place for place in self.workers if place.life is Life.UP]
        if change.phase is Phase.PREPARE and up and all(place in late for place in up):
            self._give_up(f"no worker prepared it within {change.limit:.1f} s", "")
            return
        for place in late:
            self._kill(place, f"it did not {word} version {change.document.version} in {change.limit:.1f} s")
