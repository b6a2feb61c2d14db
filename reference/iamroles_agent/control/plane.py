"""The parent's side of the control plane, without its sockets: events in, effects out, the clock injected.

Theory of operation
-------------------
The package's docstring tells the story; here is how it is kept.

A *place* is where a member lives: `COURIER`, or a worker's index. Its process may change. A place is GONE,
BORN (forked, not ready yet), UP (built what it was born with) or DYING (killed, its end not seen yet). Only
what an UP or BORN member says counts; what each message means stands in `_HEARD`, and whatever is not there
is nonsense, which costs the member its life.

At most one change is under way; the others queue, and what can go together does. PREPARE ends when nobody
is waited for; then the change is committed: `document` is the new version, and each newborn has it. SWITCH
ends likewise. CONFIRM waits, for a bounded time, until replacements have come up and the courier has saved,
only so that the outcome can tell. A member that comes up behind the document (it was forked before the
commit) is sent the difference, prepares, switches, and serves only then.

Deadlines are counted on `_fair`, seconds that leave out what the parent itself overslept, less what a member
waited for a processor (`waits`). If no worker at all prepares in time, the change is given up: that is no
fault of one. Whoever misses the switch is killed in any case: it still enforces the version before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, ClassVar

from iamroles_agent.control.channel import ChannelError, Message, message
from iamroles_agent.control.document import POLICY, Document, Edits, Part
from iamroles_agent.control.loading import Loading
from iamroles_agent.control.places import (
    COURIER,
    DETAIL,
    LOADER,
    Effect,
    Fail,
    Fork,
    Kill,
    Life,
    Place,
    Say,
    Send,
    Timing,
    read_part,
)
from iamroles_agent.control.relay import Relay

_MAX_USED = 1 << 20
_MAX_STATS = 64
"""Members of a pong's `stats` that are kept."""


class Phase(Enum):
    """Of a change."""

    PREPARE = auto()
    SWITCH = auto()
    CONFIRM = auto()


@dataclass(slots=True)
class _Proposal:
    edits: Edits
    ticket: int | None
    """Of the courier; None for a reload."""
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


class Plane:
    """See the module.

    Args:
        document: in force at the start.
        workers: how many.
        clock: seconds, monotonic.
        timing: deadlines.
        waits: seconds that the process in a place has waited for a processor in its life.
        runs: seconds that it has run on one.
        saves: whether there is a state directory, so that outcomes tell of saving.
    """

    def __init__(
        self,
        document: Document,
        workers: int,
        *,
        clock: Callable[[], float],
        timing: Timing | None = None,
        waits: Callable[[int], float] = lambda _index: 0.0,
        runs: Callable[[int], float] = lambda _index: 0.0,
        saves: bool = False,
    ) -> None:
        self.document = document
        self.timing = timing or Timing()
        self.places = {index: Place(index) for index in (COURIER, *range(workers))}
        self.stopping = False
        self.left = False
        """Whether another agent has taken over."""
        self.served = False
        """Whether all have been ready once: from then on the dead are replaced."""
        self.overslept = 0.0
        """Seconds that the parent was not run when it wanted to."""
        self.used: dict[str, int] = {}
        """What counts once and was used, and until when that holds, epoch seconds: for the next courier."""
        self.relay = Relay(self._send, workers)
        self._clock, self._waits, self._runs, self._saves = clock, waits, runs, saves
        self._effects: list[Effect] = []
        self._seen = clock()
        self._fair = 0.0
        self._next_ping = self._seen
        self._pings = 0
        self._queue: deque[_Proposal] = deque()
        self._numbers = 0
        self._versions = document.version
        self._change: _Change | None = None
        self._pieces: dict[int, list[bytes]] = {}
        self._loading = Loading(
            self.timing.load,
            self.timing.stall,
            effect=self._effect,
            propose=lambda part: self.propose({POLICY: part}, None),
            refuse=self._reload_refused,
        )

    # What the shell calls

    def start(self) -> None:
        """Have everybody made."""
        for place in self.places.values():
            self._effects.append(Fork(place.index, ""))

    def take(self) -> list[Effect]:
        """What is to be done now, in order."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def finished(self) -> bool:
        """Whether it was stopped and nobody is left."""
        return self.stopping and all(place.life is Life.GONE for place in self.places.values())

    @property
    def workers(self) -> list[Place]:
        """All places but the courier's."""
        return [place for place in self.places.values() if place.index >= 0]

    @property
    def confirmed(self) -> int:
        """Workers that serve with the version in force."""
        return sum(place.serving and place.version == self.document.version for place in self.workers)

    def due(self) -> float:
        """Clock time at which `tick` must be called at the latest."""
        times = [self._next_ping]
        if self.served and not self.stopping:
            times += [place.again for place in self.places.values() if place.life is Life.GONE]
        return min(times)

    def tick(self) -> None:
        """Look at the clock. Call it often, after all that had arrived was handed to `heard`."""
        now = self._advance()
        if not self.stopping:
            for place in self.places.values():
                if place.life is Life.GONE and self.served and now >= place.again:
                    self._effects.append(Fork(place.index, place.fate))
                    self._record(place)
            self._watch_silence()
            self._loading.watch(self._fair, self._runs(LOADER), self._waits(LOADER))
        self._watch_change()
        if now >= self._next_ping:
            self._next_ping = now + self.timing.ping
            self._ping()

    def forked(self, index: int, pid: int) -> None:
        """A process lives in a place now, with the document in force."""
        if index == LOADER:
            return
        place = self.places[index]
        place.life, place.pid, place.version, place.prepared = Life.BORN, pid, self.document.version, 0
        place.holds, place.target = self.document, None
        place.serving = place.spoken = False
        place.born = place.heard = self._fair
        place.waited = self._waits(index)
        place.fate = place.error = ""
        place.stats = {}
        self._pieces.pop(index, None)

    def heard(self, index: int, said: Message) -> None:
        """A member said something.

        Whatever cannot be understood costs that member its life.
        """
        try:
            if index == LOADER:
                self._loading.heard(said)
                return
            place = self.places[index]
            if place.life not in (Life.BORN, Life.UP):
                return
            place.heard, place.waited, place.spoken = self._fair, self._waits(index), True
            handle = self._HEARD.get((place.life, said.say))
            if handle is None and index == COURIER and place.life is Life.UP:
                handle = self._OF_COURIER.get(said.say)
            if handle is not None:
                handle(self, place, said)
            elif not (place.life is Life.UP and self.relay.heard(index, said)):
                raise ChannelError(f"{said.say!r} is not expected while {place.life.name}")
        except ChannelError as error:
            self.nonsense(index, str(error))

    def nonsense(self, index: int, what: str) -> None:
        """A member's channel cannot be read."""
        if index == LOADER:
            self._loading.failed(f"the loader talked nonsense: {what}")
        elif self.places[index].life in (Life.BORN, Life.UP):
            self._kill(self.places[index], f"it talked nonsense: {what}")

    def died(self, index: int, how: str) -> None:
        """A process has ended, whatever ended it."""
        if index == LOADER:
            self._loading.died(how)
            self._load_next()
            return
        place = self.places[index]
        lived = self._fair - place.born
        place.life, place.serving = Life.GONE, False
        place.pid = 0
        place.deaths += 1
        place.fate = place.last = place.fate or place.error or f"it ended with {how}"
        self.relay.gone(index)
        self._unwait(index)
        if self.stopping:
            self._drain_courier()
            return
        if not self.served:
            self._effects.append(Fail(place.error or f"{place.name} ended with {how} before it was ready"))
            return
        timing = self.timing
        if place.backoff == 0.0 or lived >= timing.healthy:
            place.backoff = timing.first_backoff
        place.again = self._clock() + place.backoff
        place.backoff = min(2 * place.backoff, timing.longest_backoff)

    def load(self) -> None:
        """The configuration may have changed (SIGHUP)."""
        if self.stopping:
            return
        if self._loading.busy or self._reloading():
            self._loading.again = True  # the file may have changed after it was read
            return
        self._loading.start(self._fair)

    def propose(self, edits: Edits, ticket: int | None) -> None:
        """Put parts in force everywhere; the outcome follows."""
        self._numbers += 1
        self._queue.append(_Proposal(edits, ticket, self._numbers))
        if ticket is not None:
            self.relay.proposed = self._numbers
        self._begin()

    def stop(self) -> None:
        """Drain: workers first, the courier when they are done."""
        if self.stopping:
            return
        self.stopping = True
        for place in self.workers:
            if place.life is Life.BORN:
                self._kill(place, "the agent is stopping")
            else:
                self._send(place.index, message("drain", gently=self.left))
        self._drain_courier()
        self._look_confirmed()

    def status(self) -> dict[str, Any]:
        """What an operator is told of the processes and the document."""
        return {
            "version": self.document.version,
            "policy": self.document.policy,
            "workers": len(self.workers),
            "confirmed": self.confirmed,
            "change": None if self._change is None else self._change.phase.name.lower(),
            "parts": {name: part.digest for name, part in sorted(self.document.parts.items())},
            "overslept": round(self.overslept, 3),
            "members": [
                {
                    "name": "courier" if place.index == COURIER else f"worker {place.index}",
                    "pid": place.pid,
                    "state": "serving" if place.serving else place.life.name.lower(),
                    "version": place.version if place.life is Life.UP else None,
                    "replaced": place.deaths,
                    **({"last": place.last} if place.last else {}),
                    "stats": place.stats,
                }
                for place in self.places.values()
            ],
        }

    # The clock

    def _advance(self) -> float:
        now = self._clock()
        elapsed, self._seen = now - self._seen, now
        usual = self.timing.ping + self.timing.late
        if elapsed > usual:
            self.overslept += elapsed - self.timing.ping
            elapsed = self.timing.ping
        self._fair += max(elapsed, 0.0)
        return now

    def _effect(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _ping(self) -> None:
        self._pings += 1
        summary = {
            "version": self.document.version,
            "policy": self.document.policy,
            "workers": len(self.workers),
            "confirmed": self.confirmed,
            "courier": self.places[COURIER].stats,
        }
        ping = message("ping", n=self._pings, summary=summary)
        for place in self.places.values():
            if place.life in (Life.BORN, Life.UP):
                self._send(place.index, ping)

    def _quiet(self, place: Place) -> float:
        """Seconds for which a member could have spoken and did not."""
        quiet = self._fair - place.heard
        return quiet if quiet <= self.timing.silence else quiet - (self._waits(place.index) - place.waited)

    def _watch_silence(self) -> None:
        # One at a time: the one killed before must serve again, or have had a fair time to.
        for place in self.places.values():
            if place.silent and (place.life in (Life.DYING, Life.GONE) or self._fair - place.born < 2.0):
                return
        for place in self.places.values():
            if place.life not in (Life.BORN, Life.UP):
                continue
            quiet = self._quiet(place)
            bound = self.timing.silence if place.spoken else 4 * self.timing.silence
            if quiet > bound:
                place.silent = True
                self._kill(place, f"no heartbeat for {quiet:.1f} s")
                return
            if place.life is Life.BORN and self._fair - place.born > self.timing.birth:
                self._kill(place, f"not ready within {self.timing.birth:g} s")
                return

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

    def _drain_courier(self) -> None:
        if self.stopping and all(place.life is Life.GONE for place in self.workers):
            courier = self.places[COURIER]
            if courier.life is Life.BORN:
                self._kill(courier, "the agent is stopping")
            else:
                self._send(COURIER, message("drain"))

    def _up(self, place: Place, said: Message) -> None:
        """It has built what it was born with."""
        if said.number("version") != place.version:
            raise ChannelError(f"born with version {place.version}, it came up with another")
        place.life = Life.UP
        if place.index == COURIER:
            place.serving = True
            self.relay.courier_up()
        self._settle(place)
        self._look_served()
        self._look_confirmed()

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

    def _serving(self, place: Place, _said: Message) -> None:
        place.serving, place.silent = True, False
        self._look_served()
        self._look_confirmed()

    def _look_served(self) -> None:
        if not self.served and all(place.serving for place in self.places.values()):
            self.served = True
            self._effects.append(Say({"ready": True}))

    def _failed(self, place: Place, said: Message) -> None:
        place.error = said.text("error")

    def _pong(self, place: Place, said: Message) -> None:
        stats = said.table("stats")
        if len(stats) > _MAX_STATS:
            raise ChannelError(f"a pong with {len(stats)} stats")
        place.stats = stats
        if place.index == COURIER:
            place.silent = False

    def _record(self, place: Place) -> None:
        """Have it put on record that the courier was replaced; a worker records that of itself."""
        recorder = next((worker for worker in self.workers if worker.serving), None)
        if place.index == COURIER and recorder is not None:
            note = message("note", event="replaced", detail=place.fate[:DETAIL])
            self._send(recorder.index, note)

    # The courier's own messages

    def _piece(self, place: Place, said: Message) -> None:
        self._pieces.setdefault(place.index, []).append(said.body)

    def _proposed(self, place: Place, said: Message) -> None:
        """`parts`: by name, how many of the pieces sent before are this part's, in order; null: it goes."""
        held = iter(self._pieces.pop(place.index, []))
        edits: dict[str, Part | None] = {}
        for name, about in said.table("parts").items():
            edits[name] = None if about is None else read_part(about, held)
        if next(held, None) is not None:
            raise ChannelError("a proposal with pieces of no part")
        self.propose(edits, said.number("ticket"))

    def _stamped(self, place: Place, said: Message) -> None:
        del place
        name, at = said.text("name"), said.head.get("at")
        if type(at) is not float:
            raise ChannelError("a stamp without a time")
        self.document = self.document.stamped(name, at)
        if self._change is not None:
            self._change.document = self._change.document.stamped(name, at)
        for member in self.places.values():
            self._send(member.index, message("stamp", name=name, at=at))

    def _saved(self, _place: Place, said: Message) -> None:
        change = self._change
        if change is not None and said.number("version") == change.document.version:
            change.saved = said.text("error")
            self._look_confirmed()

    def _used_up(self, _place: Place, said: Message) -> None:
        self.used[said.text("what")] = said.number("until")
        if len(self.used) > _MAX_USED:
            del self.used[next(iter(self.used))]

    def _asked_status(self, place: Place, said: Message) -> None:
        self._send(place.index, message("status", ticket=said.number("ticket"), status=self.status()))

    def _leave(self, _place: Place, _said: Message) -> None:
        """Another agent has taken over."""
        self.left = True
        self.stop()

    def _asked_load(self, _place: Place, _said: Message) -> None:
        self.load()

    # Reloads

    def _reload_refused(self, error: str) -> None:
        self._say_reload({"done": False, "error": error})
        self._note_refusal(error)

    def _note_refusal(self, error: str) -> None:
        for place in self.workers:
            self._send(place.index, message("note", event="refused", detail=error[:DETAIL]))

    def _load_next(self) -> None:
        if self._loading.again and not self._loading.busy and not self._reloading():
            self._loading.again = False
            self.load()

    def _reloading(self) -> bool:
        under_way = self._change.proposals if self._change is not None else []
        return any(proposal.ticket is None for proposal in (*under_way, *self._queue))

    # A change

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
            self._change.saved = ""
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

    def _prepared(self, place: Place, said: Message) -> None:
        place.prepared = said.number("version")
        change = self._change
        if change is not None and change.phase is Phase.PREPARE and place.prepared == change.document.version:
            change.waiting.discard(place.index)
            self._look_prepared()
        elif place.target is not None and place.prepared == place.target.version:
            self._send(place.index, message("switch", version=place.prepared))

    def _refused(self, place: Place, said: Message) -> None:
        version, error = said.number("version"), said.text("error")
        change = self._change
        if change is not None and change.phase is Phase.PREPARE and version == change.document.version:
            self._give_up(error, f"{place.name} refused it")
        elif place.target is not None and version == place.target.version:
            self._kill(place, f"it cannot take up what is in force: {error[:DETAIL]}")

    def _give_up(self, error: str, why: str) -> None:
        """Nothing has changed anywhere."""
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

    def _switched(self, place: Place, said: Message) -> None:
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
            else:
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
        change = self._change
        if change is not None and index in change.waiting:
            change.waiting.discard(index)
            self._look_prepared()
            self._look_switched()

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

    _HEARD: ClassVar[dict[tuple[Life, str], Callable[[Plane, Place, Message], None]]] = {
        (Life.BORN, "pong"): _pong,
        (Life.BORN, "up"): _up,
        (Life.BORN, "failed"): _failed,
        (Life.UP, "pong"): _pong,
        (Life.UP, "serving"): _serving,
        (Life.UP, "prepared"): _prepared,
        (Life.UP, "refused"): _refused,
        (Life.UP, "switched"): _switched,
        (Life.UP, "failed"): _failed,
    }
    _OF_COURIER: ClassVar[dict[str, Callable[[Plane, Place, Message], None]]] = {
        "piece": _piece,
        "propose": _proposed,
        "stamp": _stamped,
        "saved": _saved,
        "used": _used_up,
        "status": _asked_status,
        "load": _asked_load,
        "leave": _leave,
    }
