"""Whose question to STS is asked next: sans-IO, with an injected clock.

STS answers a few hundred calls a second, the agent makes a few at a time, and anyone can write a credential
that only STS can tell from a good one. One queue would therefore belong to whoever writes most: 400 forged
credentials once kept a good caller waiting past its time. Four rules keep room:

- *Known before strangers.* An access key that STS confirmed for a source is known there for an hour. Some
  calls are kept free for the known; strangers never use all. Nor do the known: a new caller must be able to
  become known.
- *A share for each flow.* What waits is sorted into flows: a known key at its source, or all strangers of one
  source. Flows take turns. One flow has a limited number of calls and of waiting questions, so a flood
  from one place is one flow.
- *Newest first in a flow.* Where more comes than can be asked, the oldest are those whose asker gives up
  next. Serving them in order would serve nobody in time.
- *Nothing grows.* When too many wait, the longest flow loses its oldest question; a question that waited too
  long is refused; of known keys the least recently confirmed is forgotten.

An access key id is no secret, so being known is bound to the source too: a forger elsewhere is a stranger,
and one at the same place only competes with that one key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

MAX_WAIT = 2.0
"""Seconds; by then HAProxy has given up (`timeout processing`)."""
_KNOWN_FOR = 3600.0
_MAX_KNOWN = 4096


def place_of(address: IPv4Address | IPv6Address | None) -> str:
    """What counts as one place: an IPv4 address, or the /64 that one IPv6 subscriber has."""
    if isinstance(address, IPv6Address):
        return address.exploded[:19]
    return str(address or "")


class Due(NamedTuple):
    """What the shell has to do now."""

    start: list[Hashable]
    """Tickets whose call begins; each is over by `done`."""
    refuse: list[Hashable]
    """Tickets that are not asked: displaced, or waited too long. They are forgotten."""


class _Ticket(NamedTuple):
    flow: tuple[str, ...]
    known: bool
    pair: tuple[str, str]
    """Source and access key id."""
    deadline: float


@dataclass(slots=True)
class _Flow:
    waiting: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)
    flying: int = 0


class Admission:
    """The queue before one STS endpoint. After each call of a method that changes it, carry out `due()`.

    Args:
        clock: seconds on a clock that never jumps.
        calls: at a time.
        kept: calls that strangers leave to known keys, and half as many the known leave to strangers.
        per_flow: calls of one flow at a time.
        waiting: questions that wait, of all flows together.
        waiting_per_flow: questions that wait, of one flow.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        calls: int = 16,
        kept: int = 4,
        per_flow: int = 8,
        waiting: int = 1024,
        waiting_per_flow: int = 64,
    ) -> None:
        self._clock = clock
        self._calls, self._kept, self._per_flow = calls, kept, per_flow
        self._max_waiting, self._max_waiting_per_flow = waiting, waiting_per_flow
        self._queued: OrderedDict[Hashable, _Ticket] = OrderedDict()
        self._flying: dict[Hashable, _Ticket] = {}
        self._flying_known = 0
        self._flows: dict[tuple[str, ...], _Flow] = {}
        # Flows with something waiting and room to fly, in the order of their turns: the known, the strangers.
        self._turns: dict[bool, OrderedDict[tuple[str, ...], None]] = {
            True: OrderedDict(),
            False: OrderedDict(),
        }
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._refused: list[Hashable] = []

    @property
    def waiting(self) -> int:
        return len(self._queued)

    @property
    def flying(self) -> int:
        return len(self._flying)

    @property
    def known(self) -> int:
        return len(self._known)

    def ask(self, ticket: Hashable, key_id: str, source: str) -> None:
        """A question comes; `ticket` names it and no other that waits or flies."""
        pair = (source, key_id)
        known = self.knows(key_id, source)
        name = ("known", *pair) if known else ("stranger", source)
        flow = self._flows.setdefault(name, _Flow())
        if len(flow.waiting) >= self._max_waiting_per_flow:
            self._displace(flow)
        elif len(self._queued) >= self._max_waiting:
            self._displace(max(self._flows.values(), key=lambda one: len(one.waiting)))
        self._flows[name] = flow  # a displaced flow may have been this one's last
        self._queued[ticket] = _Ticket(name, known, pair, self._clock() + MAX_WAIT)
        flow.waiting[ticket] = None
        self._schedule(name, flow, known=known)

    def done(self, ticket: Hashable, *, proved: bool) -> None:
        """A call ended; `proved`: STS named the caller, so its key is known from now on."""
        flown = self._flying.pop(ticket)
        self._flying_known -= flown.known
        flow = self._flows[flown.flow]
        flow.flying -= 1
        self._schedule(flown.flow, flow, known=flown.known)
        if proved:
            self._known[flown.pair] = self._clock() + _KNOWN_FOR
            self._known.move_to_end(flown.pair)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)

    def withdraw(self, ticket: Hashable) -> None:
        """Whoever waited has gone; nothing happens if the ticket does not wait."""
        if ticket in self._queued:
            self._unqueue(ticket)

    def due(self) -> Due:
        """What begins and what is refused now; each ticket is returned once."""
        now = self._clock()
        while self._queued and next(iter(self._queued.values())).deadline <= now:
            self._refuse(next(iter(self._queued)))
        start = []
        while (ticket := self._next()) is not None:
            start.append(ticket)
        refused, self._refused = self._refused, []
        return Due(start, refused)

    def _next(self) -> Hashable | None:
        strangers = len(self._flying) - self._flying_known
        free = len(self._flying) < self._calls
        lanes = ((True, self._flying_known, self._kept // 2), (False, strangers, self._kept))
        for known, flying, left in lanes:
            turns = self._turns[known]
            if turns and free and flying < self._calls - left:
                name, _ = turns.popitem(last=False)
                flow = self._flows[name]
                ticket = next(reversed(flow.waiting))
                self._flying[ticket] = self._queued[ticket]
                flow.flying += 1
                self._flying_known += known
                self._unqueue(ticket)
                return ticket
        return None

    def knows(self, key_id: str, source: str) -> bool:
        """Whether STS confirmed this access key for this source within the hour."""
        pair = (source, key_id)
        until = self._known.get(pair)
        if until is None:
            return False
        if until > self._clock():
            return True
        del self._known[pair]
        return False

    def _displace(self, flow: _Flow) -> None:
        self._refuse(next(iter(flow.waiting)))

    def _refuse(self, ticket: Hashable) -> None:
        self._unqueue(ticket)
        self._refused.append(ticket)

    def _unqueue(self, ticket: Hashable) -> None:
        gone = self._queued.pop(ticket)
        flow = self._flows[gone.flow]
        del flow.waiting[ticket]
        self._schedule(gone.flow, flow, known=gone.known)

    def _schedule(self, name: tuple[str, ...], flow: _Flow, *, known: bool) -> None:
        """Give a flow its turn, the last, if it can use one; forget a flow that is empty."""
        turns = self._turns[known]
        if flow.waiting and flow.flying < self._per_flow:
            turns.setdefault(name, None)
            return
        turns.pop(name, None)
        if not flow.waiting and not flow.flying:
            self._flows.pop(name, None)
