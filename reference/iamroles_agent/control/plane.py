"""The parent's side of the control plane, without its sockets: events in, effects out, the clock injected.

Theory of operation
-------------------
The package's docstring tells the story; here is how it is kept.

A *place* is where a member lives: `COURIER`, or a worker's index. Its process may change. A place is GONE,
BORN (forked, not ready yet), UP (built what it was born with) or DYING (killed, its end not seen yet). Only
what an UP or BORN member says counts; what each message means stands in `_HEARD`, and whatever is not there
is nonsense, which costs the member its life.

How a change goes round is told in `changes`.

Deadlines are counted on `_fair`, seconds that leave out what the parent itself overslept, less what a member
waited for a processor (`waits`). If no worker at all prepares in time, the change is given up: that is no
fault of one. Whoever misses the switch is killed in any case: it still enforces the version before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from iamroles_agent.control.changes import Changes
from iamroles_agent.control.channel import ChannelError, Message, message
from iamroles_agent.control.document import POLICY, Document, Part
from iamroles_agent.control.loading import Loading
from iamroles_agent.control.places import (
    COURIER,
    DETAIL,
    LOADER,
    Effect,
    Fail,
    Fork,
    Life,
    Place,
    Say,
    Timing,
    read_part,
)

_MAX_USED = 1 << 20
_MAX_STATS = 64
"""Members of a pong's `stats` that are kept."""


class Plane(Changes):
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
        super().__init__(document, workers, clock=clock, timing=timing or Timing(), waits=waits, saves=saves)
        self.left = False
        """Whether another agent has taken over."""
        self.overslept = 0.0
        """Seconds that the parent was not run when it wanted to."""
        self.used: dict[str, int] = {}
        """What counts once and was used, and until when that holds, epoch seconds: for the next courier."""
        self._runs = runs
        self._seen = self._next_ping = clock()
        self._pings = 0
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

    def stop(self) -> None:
        """Drain: workers first, the courier when they are done."""
        if self.stopping:
            return
        self.stopping = True
        self._loading.failed("the agent is stopping")
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
        if quiet <= self.timing.silence:
            return quiet
        return quiet - max(0.0, self._waits(place.index) - place.waited)

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
        self._kept = version, error = said.number("version"), said.text("error")
        if change is not None and version == change.document.version:
            change.saved = error
            self._look_confirmed()

    def _used_up(self, _place: Place, said: Message) -> None:
        self.used[said.text("what")] = said.number("until")
        if len(self.used) > _MAX_USED:
            del self.used[next(iter(self.used))]

    def _asked_status(self, place: Place, said: Message) -> None:
        self._send(place.index, message("status", ticket=said.number("ticket"), status=self.status()))

    def _leave(self, _place: Place, _said: Message) -> None:
        self.left = True
        self.stop()

    def _asked_load(self, _place: Place, _said: Message) -> None:
        self.load()

    # Reloads

    def _reload_refused(self, error: str) -> None:
        self._say_reload({"done": False, "error": error})
        self._note_refusal(error)

    def _load_next(self) -> None:
        if self._loading.again and not self._loading.busy and not self._reloading():
            self._loading.again = False
            self.load()

    _HEARD: ClassVar[dict[tuple[Life, str], Callable[[Plane, Place, Message], None]]] = {
        (Life.BORN, "pong"): _pong,
        (Life.BORN, "up"): _up,
        (Life.BORN, "failed"): _failed,
        (Life.UP, "pong"): _pong,
        (Life.UP, "serving"): _serving,
        (Life.UP, "prepared"): Changes.prepared,
        (Life.UP, "refused"): Changes.refused,
        (Life.UP, "switched"): Changes.switched,
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
