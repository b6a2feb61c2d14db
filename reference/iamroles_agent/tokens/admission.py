"""Decide which question goes to STS next: sans-IO, with an injected clock.

STS answers a few hundred calls a second, the agent makes a few at a time, and anyone can write a credential
that only STS can tell from a good one. A single queue would serve the most active writer: 400 forged
credentials once kept a good caller waiting past its deadline. Four rules keep room:

- *Known before strangers.* An access key that STS confirmed for a source is known there for an hour. Some
  calls are kept free for known keys; strangers never use all. Nor do known keys: a new caller must be able to
  become known.
- *A share for each flow.* Waiting questions are sorted into flows: a known key at its source, or all
  strangers of a source. Flows take turns. A flow has a limited number of calls and of waiting questions, so
  a flood from one source is one flow.
- *Newest first in a flow, and new strangers before others.* If more questions come than can be asked, the
  clients of the oldest give up next. To serve them in order would serve nobody in time. An IPv6 /48 has
  65,536 networks, each a flow of its own.
- *Nothing grows.* When too many wait, the longest flow loses its oldest question; a question that waited too
  long is refused; known keys stand in a table of fixed size.

An access key id is not secret, so a key is known only together with its source: a forger elsewhere is a
stranger, and a forger at the same source only competes with that one key.

The order is kept twice: by each worker for its questions to the fetcher, and by the fetcher for its calls.
All share `Callers`. Otherwise a caller known to one worker would be a stranger to the next, and wait there
for two seconds behind a flood.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from iamroles_agent.base.clocks import Clock
from iamroles_agent.policy.regions import plain_address

MAX_WAIT = 2.0
"""Seconds; by then HAProxy has given up (`timeout processing`)."""
_KNOWN_FOR = 3600.0
_BUCKETS, _EACH = 1 << 14, 4
"""Buckets of the table of known keys, and entries in each: 1 MiB, whose unused pages cost nothing."""


def client_network(address: IPv4Address | IPv6Address | None) -> str:
    """Name the network of a client: an IPv4 address, or the /64 of an IPv6 subscriber."""
    address = address and plain_address(address)
    if isinstance(address, IPv6Address):
        return address.exploded[:19]
    return str(address or "")


class Callers:
    """The keys that STS confirmed for a source within the hour, in memory that forks share.

    An entry is a number that stands for its caller, and the end of the hour in milliseconds. In a full bucket
    a new caller takes the place of the one whose hour ends first. A salt keeps strangers from choosing whose.
    Readers take no lock: a half-written entry only makes a stranger known, or a known key a stranger, once.
    """

    def __init__(self) -> None:
        self._salt = os.urandom(16)
        self._table = memoryview(mmap.mmap(-1, 16 * _BUCKETS * _EACH)).cast("Q")

    def until(self, caller: tuple[str, ...]) -> float:
        """Return when a caller is a stranger again, monotonic; 0 for a stranger."""
        number, places = self._find(caller)
        return max((self._table[at + 1] / 1000 for at in places if self._table[at] == number), default=0.0)

    def add(self, caller: tuple[str, ...], until: float) -> None:
        number, places = self._find(caller)
        at = min(places, key=lambda at: (self._table[at] != number, self._table[at + 1]))
        self._table[at], self._table[at + 1] = number, int(until * 1000)

    def _find(self, caller: tuple[str, ...]) -> tuple[int, range]:
        digest = hashlib.blake2b(repr(caller).encode(), digest_size=8, key=self._salt).digest()
        number = int.from_bytes(digest, "big")
        first = number % _BUCKETS * 2 * _EACH
        return number, range(first, first + 2 * _EACH, 2)


class Due(NamedTuple):
    """The next actions of the caller."""

    start: list[Hashable]
    """Questions whose call begins; `done` ends each."""
    refuse: list[Hashable]
    """Questions that are not asked: displaced, or waited too long. They are forgotten."""


class _Question(NamedTuple):
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
        clock: monotonic.
        calls: most calls at a time.
        kept: calls that strangers leave to known keys; known keys leave half as many to strangers.
        per_flow: most calls of a flow at a time.
        waiting: most questions that wait, of all flows together.
        waiting_per_flow: most questions of a flow that wait.
        callers: the known keys, of all endpoints.
        endpoint: the URL of this one.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        calls: int = 16,
        kept: int = 4,
        per_flow: int = 8,
        waiting: int = 1024,
        waiting_per_flow: int = 64,
        callers: Callers | None = None,
        endpoint: str = "",
    ) -> None:
        self._clock, self._callers, self._endpoint = clock, callers or Callers(), endpoint
        self._calls, self._kept, self._per_flow = calls, kept, per_flow
        self._max_waiting, self._max_waiting_per_flow = waiting, waiting_per_flow
        self._queued: OrderedDict[Hashable, _Question] = OrderedDict()
        self._flying: dict[Hashable, _Question] = {}
        self._flying_known = 0
        self._flows: dict[tuple[str, ...], _Flow] = {}
        # Flows that wait and may make a call, in their order: those of known keys, those of strangers.
        self._ready: dict[bool, OrderedDict[tuple[str, ...], None]] = {
            known: OrderedDict() for known in (True, False)
        }
        self._refused: list[Hashable] = []

    @property
    def waiting(self) -> int:
        return len(self._queued)

    @property
    def flying(self) -> int:
        return len(self._flying)

    def ask(self, ticket: Hashable, key_id: str, source: str) -> None:
        """Add a question; `ticket` names it and no other question that waits or is being asked."""
        pair = (source, key_id)
        known = self.knows(key_id, source)
        name = ("known", *pair) if known else ("stranger", source)
        new = name not in self._flows
        flow = self._flows.setdefault(name, _Flow())
        if len(flow.waiting) >= self._max_waiting_per_flow:
            self._displace(flow)
        elif len(self._queued) >= self._max_waiting:
            self._displace(max(self._flows.values(), key=lambda one: len(one.waiting)))
        self._flows[name] = flow  # a displaced flow may have been this one's last
        self._queued[ticket] = _Question(name, known, pair, self._clock() + MAX_WAIT)
        flow.waiting[ticket] = None
        self._schedule(name, flow, known=known)
        if new and not known:
            self._ready[known].move_to_end(name, last=False)

    def done(self, ticket: Hashable, *, proved: bool) -> None:
        """End a call; `proved`: STS named the caller, so its key is known from now on."""
        flown = self._flying.pop(ticket)
        self._flying_known -= flown.known
        flow = self._flows[flown.flow]
        flow.flying -= 1
        self._schedule(flown.flow, flow, known=flown.known)
        if proved:
            self._callers.add((self._endpoint, *flown.pair), self._clock() + _KNOWN_FOR)

    def withdraw(self, ticket: Hashable) -> None:
        """Remove a question whose client has gone; does nothing if it does not wait."""
        if ticket in self._queued:
            self._unqueue(ticket)

    def due(self) -> Due:
        """Return the questions that begin and that are refused now, each once."""
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
        for known, flying, left in (
            (True, self._flying_known, self._kept // 2),
            (False, strangers, self._kept),
        ):
            if self._ready[known] and free and flying < self._calls - left:
                name, _ = self._ready[known].popitem(last=False)
                flow = self._flows[name]
                ticket = next(reversed(flow.waiting))
                self._flying[ticket] = self._queued[ticket]
                flow.flying += 1
                self._flying_known += known
                self._unqueue(ticket)
                return ticket
        return None

    def knows(self, key_id: str, source: str) -> bool:
        """Return whether STS confirmed this access key for this source within the hour."""
        return self._callers.until((self._endpoint, source, key_id)) > self._clock()

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
        """Put a flow that may make a call at the end of the order; forget an empty flow."""
        if flow.waiting and flow.flying < self._per_flow:
            self._ready[known].setdefault(name, None)
            return
        self._ready[known].pop(name, None)
        if not flow.waiting and not flow.flying:
            self._flows.pop(name, None)
