"""The soak: traffic, rotation, revocation and faults without a pause, for any length of time, by a seed.

One world: HAProxy, two agents (one, if the configuration takes no second), the policy of the orders. One move
of `data/soak.toml` follows another, chosen and spaced by the seed, and is played as a timeline's steps are.
Planned moves (keys, sessions, policies, revocations, an agent that is stopped, a reload of HAProxy, another
certificate, an identity provider that is down for a while) excuse nothing. The keys of the signed identity
change meanwhile, and each header must verify. Faults (a process killed, an agent killed or frozen) excuse
5xx, missing answers and false denies until they are over, and for `RECOVERS` after. Nothing excuses a false
allow. What can have a witness has one: a token whose key is withdrawn, a session that was ended and a person
that was revoked go on asking, and must be refused.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base import lateness
from iamroles_scenarios.base.errors import AgentFault, HarnessFault, TooSlow, Untestable
from iamroles_scenarios.base.family import descriptors, resident
from iamroles_scenarios.declarations.scenario import Step, merged
from iamroles_scenarios.declarations.timeline import BEGIN
from iamroles_scenarios.declarations.walk import Cycle, Move, walk
from iamroles_scenarios.engine.certificates import proxy_fault
from iamroles_scenarios.engine.events import EVENT_DEADLINE, Events
from iamroles_scenarios.engine.judged_traffic import PATIENCE
from iamroles_scenarios.engine.ledger import Kind, Outcomes
from iamroles_scenarios.engine.setups import ended
from iamroles_scenarios.engine.timeline import Timeline
from iamroles_scenarios.engine.tokens import Mint
from iamroles_scenarios.engine.verdicts import too_late
from iamroles_scenarios.traffic.polling import NANO, now

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target
    from iamroles_scenarios.engine.worlds import Loan

LEAST_ANSWERS, LEAST_EVENTS = 1000, 20
"""A run with fewer shows nothing, and counts as failed."""
RECOVERS = 4.0
"""Seconds, times the scale, after a fault."""
_JUDGED = 5.0
"""Seconds, times the scale, after which no later move bears on an answer that has come."""
_FLAT_FROM = 300.0
"""Seconds that a run must last for memory and descriptors to be judged."""
_GROWTH, _SPARE = 1.5, {"memory": 32 << 20, "descriptors": 32}
"""The last quarter may have this many times what the second had, and this much more."""


@dataclass(slots=True)
class SoakEvent:
    """One move, in seconds from the begin of the traffic."""

    at: float
    name: str
    fault: bool
    took: float = 0.0
    recovered: float = 0.0
    """Until the last answer before the next event that was not right; 0: there was none."""


@dataclass(slots=True)
class Sample:
    """Memory and descriptors of a part at a moment: its processes together."""

    at: float
    memory: int
    """Resident, bytes."""
    descriptors: int


@dataclass(slots=True)
class SoakResult:
    """The result of a soak."""

    seed: int
    seconds: float
    outcomes: Outcomes
    events: list[SoakEvent] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """By part."""
    unseen: set[str] = field(default_factory=set)
    """Parts of which memory and descriptors cannot be read from here."""
    keys: int = 0
    """Number of keys whose signed identities verified."""
    problems: list[str] = field(default_factory=list)
    """Why it failed; empty if it did not."""
    late: str = ""
    """How the host was first late for what proves nothing therefore; "" if it never was."""
    held: list[str] = field(default_factory=list)
    """What would be problems if it had not been."""


def soak(
    target: Target,
    seconds: float,
    *,
    seed: int,
    rate: float,
    on_event: Callable[[str], None] = lambda _: None,
) -> SoakResult:
    """Soak an agent.

    Args:
        target: agent and stage; its lane is "gate".
        seconds: how long.
        seed: of the moves and of the traffic.
        rate: questions a second.
        on_event: gets a line for each move.
    """
    with closing(_opened(target, f"soak-{seed}")) as loan:
        return _Soak(target, loan, seed=seed, rate=rate).run(seconds, on_event)


def _opened(target: Target, owner: str) -> Loan:
    features, spec = target.agent.features, walk().world
    override: Any = spec.override
    for feature, more in walk().override_with.items():
        if features.get(feature):
            override = merged(override, more)
    spec = spec.model_copy(update={"override": override, "agents": 2 if features.get("pair") else 1})
    signed = target.seconds(walk().signed) if features.get("identity") else 0.0
    try:
        return target.worlds.start_own(spec, owner, signed=signed, tls=walk().tls)
    except Untestable:
        return target.worlds.start_own(spec, owner, signed=signed)


@dataclass(slots=True)
class _Position:
    """The walk's position in a cycle."""

    cycle: Cycle
    number: int
    """Number of its last move, among those of all cycles."""
    done: int = 0
    """Its moves so far."""
    ended: float = 0.0
    """When its last move was over (`time.monotonic`)."""

    @property
    def next(self) -> int:
        """Index of the cycle's next move."""
        return self.done % len(self.cycle.moves)


class _Soak:
    def __init__(self, target: Target, loan: Loan, *, seed: int, rate: float) -> None:
        self._target, self._place, self._seed, self._rate = target, loan, seed, rate
        self._scale = target.scale
        self._judged_at = time.monotonic()
        lateness.start()
        self._chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        features = {name for name, value in target.agent.features.items() if value}
        features |= {"tls"} if loan.certificates else set()
        self._positions = [
            _Position(cycle, -cycle.apart) for cycle in walk().cycles if features.issuperset(cycle.needs)
        ]
        self._number = 0
        mint = Mint(walk().tokens, target, loan)
        self._events = Events(target, loan, mint, self._proved)
        self._timeline = Timeline(
            loan, walk().flows, mint, scale=self._scale, rate=rate, connections=12, seed=seed
        )
        self._traffic = self._timeline.traffic

    def _proved(self, _check: str, message: str, _sent: str, _received: str) -> None:
        if message:
            raise proxy_fault(self._target.agent, message)

    def run(self, seconds: float, on_event: Callable[[str], None]) -> SoakResult:
        sets = self._place.sets
        with self._timeline:
            begin = self._traffic.steps[BEGIN].begin
            found = SoakResult(self._seed, seconds, Outcomes(self._traffic.ledger, begin))
            try:
                self._step(walk().begin, "at the begin")
                self._traffic.wait(50)
                while (now() - begin) / NANO < seconds:
                    self._wait(self._chance.uniform(0.3, 1.2))
                    try:
                        event = self._move(found, begin)
                    except Untestable:  # another user's process cannot be killed
                        found.events.pop()
                        continue
                    on_event(f"{event.at:7.1f} s  {event.name}, {event.took:.2f} s")
                    before = now() - round((PATIENCE + _JUDGED) * self._scale * NANO)
                    self._judge(found, before)
                    if sets is not None:
                        sets.forget(before)
                    self._measure(found, begin)
                self._look()
                for world in self._place.worlds:
                    world.agent.start()
            except (AgentFault, TooSlow) as fault:
                why = str(getattr(fault, "message", fault))
                late = why if isinstance(fault, TooSlow) else self._late(self._judged_at)
                if gone := ended(self._place.worlds, 0.0):  # whether the host was late or not
                    why, late = gone.cause, ""
                found.late = found.late or late
                (found.held if late else found.problems).append(why)
        self._judge(found, now())
        if sets is not None:
            found.keys = len(sets.signed)
            if sets.unseen and not found.keys:
                found.late = found.late or "the judge fetched keys too late"
                found.held.append("no signed identity was verified")
        _judge(found)
        return found

    def _wait(self, seconds: float) -> None:
        """Wait as long as this many seconds' answers take."""
        self._traffic.wait(max(1, round(self._rate * seconds)))

    def _judge(self, found: SoakResult, before: int) -> None:
        """Judge answers; what is not right while the host was late proves nothing, but for a false allow."""
        outcomes, known = found.outcomes, found.outcomes.bad.copy()
        since, self._judged_at = self._judged_at, time.monotonic()
        outcomes.judge(before)
        new = outcomes.bad - known
        del new[Kind.FALSE_ALLOW]
        if new and (late := self._late(since)):
            found.late = found.late or late
            outcomes.bad -= new
            outcomes.held += new

    def _late(self, since: float) -> str:
        """Return why the host was late for what was judged since a moment; "" if it was not."""
        since -= (PATIENCE + _JUDGED) * self._scale
        pids = [pid for world in self._place.worlds for pid in world.host_pids]
        return too_late(lateness.delay(since, pids, RECOVERS * self._scale), self._scale)

    # --- what happens --------------------------------------------------------------------------------------

    def choose(self) -> tuple[_Position, Move]:
        """Draw the next move: by numbers, not by time, so that a seed replays."""
        begun = {position.cycle.name for position in self._positions if position.next}
        possible = [
            position
            for position in self._positions
            if self._number - position.number >= position.cycle.apart
            and position.cycle.while_at_begin not in begun - {""}
        ]
        chosen = possible[self._chance.randrange(len(possible))]
        move = chosen.cycle.moves[chosen.next]
        self._number += 1
        chosen.number, chosen.done = self._number, chosen.done + 1
        return chosen, move

    def _move(self, found: SoakResult, begin: int) -> SoakEvent:
        position, move = self.choose()
        event = SoakEvent((now() - begin) / NANO, move.name, move.fault)
        found.events.append(event)
        began = now()
        while time.monotonic() - position.ended < position.cycle.spaced * self._scale:
            self._traffic.wait(1)
        self._play(move)
        ended, position.ended = now(), time.monotonic()
        event.took = (ended - began) / NANO
        if move.fault:
            found.outcomes.excuses.append((began, ended + round(RECOVERS * self._scale * NANO)))
        return event

    def _play(self, move: Move) -> None:
        nth = 1
        if any(step.agent for step in move.steps):
            nth = self._chance.choice(range(1, len(self._place.worlds) + 1))
        for number, step in enumerate(move.steps):
            if number and move.pause:
                self._wait(move.pause)
            name = f"{self._number}.{number} {move.name}"
            self._step(step.model_copy(update={"nth": nth}), name, move.revocations)

    def _step(self, step: Step, name: str, revocations: str | None = None) -> None:
        def act() -> None:
            self._look()
            if revocations is not None:
                for world in self._place.worlds:
                    world.agent.put("revocations.toml", revocations)
            self._events.act(step)
            if step.agent == "start" and self._place.second is None:
                self._place.wait_agents(self._target.seconds(EVENT_DEADLINE))

        self._timeline.step(name, step, act)

    def _look(self) -> None:
        """Raise the fault of a part that ended by itself: a kill or a start to come would hide it."""
        if gone := ended(self._place.worlds, 0.0):
            raise AgentFault(gone.cause) if gone.part == "agent" else HarnessFault(gone.cause)

    # --- what it uses --------------------------------------------------------------------------------------

    def _measure(self, found: SoakResult, begin: int) -> None:
        at = (now() - begin) / NANO
        parts = {f"agent {n}": world.agent.host_pid for n, world in enumerate(self._place.worlds, 1)}
        if not self._target.agent.runs:
            parts = {}
        for part, pid in (parts | {"haproxy": self._place.world.haproxy.host_pid}).items():
            try:
                seen = None if pid is None else used(pid)
            except PermissionError:
                seen = None
            if seen is None:
                found.unseen.add(part)
            else:
                found.samples.setdefault(part, []).append(Sample(at, *seen))


def used(pid: int) -> tuple[int, int]:
    """Return the resident bytes and descriptors of a process and all below it that still run.

    Raises:
        PermissionError: another user's.
    """
    with suppress(FileNotFoundError):
        next(Path(f"/proc/{pid}/fd").iterdir(), None)
    return resident(pid) or 0, descriptors(pid)


def _judge(found: SoakResult) -> None:
    outcomes = found.outcomes
    for happened, later in zip(found.events, [*found.events, None][1:], strict=True):
        end = found.seconds + 60.0 if later is None else later.at
        late = [at - happened.at for at in outcomes.late if happened.at <= at < end]
        happened.recovered = max(late, default=0.0)
    found.problems += [f"{count} answers: {kind}" for kind, count in outcomes.bad.items()]
    unless_late = found.held if found.late else found.problems
    if outcomes.answers < LEAST_ANSWERS:
        unless_late.append(f"{outcomes.answers} answers, fewer than {LEAST_ANSWERS}: nothing was shown")
    if len(found.events) < LEAST_EVENTS:
        unless_late.append(f"{len(found.events)} events, fewer than {LEAST_EVENTS}: nothing was shown")
    if found.seconds < _FLAT_FROM:
        return
    found.problems += [
        f"memory and descriptors of {part} cannot be read by this user: run as root"
        for part in sorted(found.unseen)
    ]
    for part, samples in found.samples.items():
        quarter = max(1, len(samples) // 4)
        for what, spare in _SPARE.items():
            before, after = (
                sorted(getattr(one, what) for one in some)[len(some) // 2]
                for some in (samples[quarter : 2 * quarter] or samples, samples[-quarter:])
            )
            if after > before * _GROWTH + spare:
                found.problems.append(f"{what} of {part} grew from {before} to {after}")
